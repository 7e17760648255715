"""Honest evaluation: accuracy by group with counts and intervals, and pseudo-groups against the truth."""

from exmap.evaluation.agreement import group_agreement
from exmap.evaluation.by_group import group_table, worst_share
from exmap.evaluation.compare import Difference, worst_group_difference
from exmap.evaluation.gaps import shortcut_gaps
from exmap.evaluation.measure import measure
from exmap.evaluation.stability import rerun_agreement, within_class_ari

__all__ = [
    "Difference",
    "group_agreement",
    "group_table",
    "measure",
    "rerun_agreement",
    "shortcut_gaps",
    "within_class_ari",
    "worst_group_difference",
    "worst_share",
]
