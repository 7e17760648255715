"""Sources of groups behind one seam: ExMap, GEORGE, EIIL, XRM, the error set, classes, random groups, the oracle."""

from exmap.groups.assign import cluster_samples, crossed_groups
from exmap.groups.chosen import ChosenGroups
from exmap.groups.clustered import (
    ExMapGroups,
    GeorgeGroups,
    check_channels,
    check_george,
    explained_vectors,
    scaled_features,
)
from exmap.groups.controls import ClassGroups, ErrorSetGroups, OracleGroups, RandomGroups
from exmap.groups.edits import EDITED, edit_groups, edited_labels
from exmap.groups.environments import EIILGroups, XRMGroups
from exmap.groups.source import GroupSource, make_source, needs_of, source_names

__all__ = [
    "EDITED",
    "ChosenGroups",
    "ClassGroups",
    "EIILGroups",
    "ErrorSetGroups",
    "ExMapGroups",
    "GeorgeGroups",
    "GroupSource",
    "OracleGroups",
    "RandomGroups",
    "XRMGroups",
    "check_channels",
    "check_george",
    "cluster_samples",
    "crossed_groups",
    "edit_groups",
    "edited_labels",
    "explained_vectors",
    "make_source",
    "needs_of",
    "scaled_features",
    "source_names",
]
