"""What an epoch is chosen by, and the check of groups against a split."""

from __future__ import annotations

from dataclasses import dataclass

from exmap.data import Split
from exmap.errors import DataError
from exmap.records import Groups, IntArray

__all__ = ["Selection", "assigned", "checked_groups"]


@dataclass(frozen=True)
class Selection:
    """What an epoch is chosen by: the accuracy in the worst of some groups of a validation split.

    Attributes
    ----------
    split : Split
    groups : Groups
        One group per sample of the split, from any source.
    """

    split: Split
    groups: Groups

    def __post_init__(self) -> None:
        checked_groups(self.split, self.groups, "selection")


def checked_groups(split: Split, groups: Groups, what: str) -> None:
    """Raise DataError unless there is one group per sample, and a sample in some group."""
    if len(groups) != len(split):
        raise DataError(
            f"{what} needs one group per sample of split {split.name}, got {len(groups)} groups for {len(split)} "
            "samples; use the groups of the same split"
        )
    if not (groups.index >= 0).any():
        raise DataError(f"{what} needs samples in groups, but all of split {split.name} are unassigned")


def assigned(groups: Groups) -> tuple[IntArray, IntArray]:
    """Return the rows that are in a group, and the sizes of all groups."""
    return (groups.index >= 0).nonzero()[0], groups.counts()
