"""Honest evaluation: accuracy by group with counts and intervals, and pseudo-groups against the truth."""

from exmap.evaluate.agreement import Agreement, group_agreement
from exmap.evaluate.by_group import group_table

__all__ = ["Agreement", "group_agreement", "group_table"]
