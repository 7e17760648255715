"""Sources of groups behind one seam: ExMap, GEORGE, the error set, classes, random clusters, and the oracle."""

from exmap.groups.assign import cluster_samples, groups_from_clusters
from exmap.groups.edits import edit_groups
from exmap.groups.environments import EIILGroups, XRMGroups
from exmap.groups.infer import (
    ClassGroups,
    ErrorSetGroups,
    Evidence,
    ExMapGroups,
    GeorgeGroups,
    GroupSource,
    OracleGroups,
    RandomGroups,
    check_channels,
    check_george,
    explained_vectors,
    scaled_features,
    source_names,
)

__all__ = [
    "ClassGroups",
    "EIILGroups",
    "ErrorSetGroups",
    "Evidence",
    "ExMapGroups",
    "GeorgeGroups",
    "GroupSource",
    "OracleGroups",
    "RandomGroups",
    "XRMGroups",
    "check_channels",
    "check_george",
    "cluster_samples",
    "edit_groups",
    "explained_vectors",
    "groups_from_clusters",
    "scaled_features",
    "source_names",
]
