"""Honest evaluation: accuracy by group with counts and intervals, and pseudo-groups against the truth."""

from exmap.evaluation.agreement import Agreement, group_agreement
from exmap.evaluation.by_group import group_table, worst_share
from exmap.evaluation.compare import Difference, worst_group_difference
from exmap.evaluation.gaps import shortcut_gaps
from exmap.evaluation.measure import measure

__all__ = [
    "Agreement",
    "Difference",
    "group_agreement",
    "group_table",
    "measure",
    "shortcut_gaps",
    "worst_group_difference",
    "worst_share",
]
