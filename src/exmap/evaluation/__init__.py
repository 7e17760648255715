"""Honest evaluation: accuracy by group with counts and intervals, and pseudo-groups against the truth."""

from exmap.evaluation.agreement import Agreement, group_agreement
from exmap.evaluation.by_group import group_table
from exmap.evaluation.gaps import shortcut_gaps

__all__ = ["Agreement", "group_agreement", "group_table", "shortcut_gaps"]
