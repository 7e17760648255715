"""Balance groups by subsampling, once for every learner that needs it."""

from __future__ import annotations

import numpy as np

from exmap.errors import DataError
from exmap.records import Groups, IntArray

__all__ = ["balanced_size", "balanced_subset", "left_out", "parts_of", "small_groups", "smallest_in_parts"]


def balanced_size(counts: IntArray, smallest_group: int) -> int:
    """Return the size every group is subsampled to: that of the smallest group worth that say.

    A group with fewer than `smallest_group` samples does not set the size (the ExMap authors' rule); it takes part
    with all it has. If every group is smaller, the smallest sets the size after all.

    Examples
    --------
    >>> balanced_size(np.array([400, 30, 2]), smallest_group=6)
    30
    """
    filled = counts[counts > 0]
    if not len(filled):
        raise DataError("balancing needs at least one group with samples, got none; every sample is unassigned")
    large = filled[filled >= smallest_group]
    return int((large if len(large) else filled).min())


def smallest_in_parts(counts: IntArray, smallest_group: int, parts: int) -> int:
    """Return the `smallest_group` with which the same groups set the size when each has lost one of some parts.

    Examples
    --------
    >>> smallest_in_parts(np.array([400, 6, 2]), smallest_group=6, parts=5)
    4
    """
    size = balanced_size(counts, smallest_group)
    return max(1, min(smallest_group, size - -(-size // parts)))


def balanced_subset(index: IntArray, rng: np.random.Generator, *, smallest_group: int = 6) -> IntArray:
    """Draw a subset in which every group has the same size.

    Parameters
    ----------
    index : ndarray of int64, shape (N,)
        Group of each sample; -1 is never drawn.
    rng : numpy.random.Generator
    smallest_group : int
        As for :func:`balanced_size`.

    Returns
    -------
    ndarray of int64
        Positions, group by group.
    """
    size = balanced_size(np.bincount(index[index >= 0], minlength=1), smallest_group)
    groups = np.unique(index[index >= 0])
    return np.concatenate([rng.permutation(np.flatnonzero(index == group))[:size] for group in groups])


def parts_of(labels: IntArray, groups: Groups | None, parts: int, rng: np.random.Generator) -> list[IntArray]:
    """Return the rows of each part of some samples, every class and group spread evenly over the parts.

    Examples
    --------
    >>> [len(rows) for rows in parts_of(np.array([0, 0, 0, 1, 1, 1]), None, 3, np.random.default_rng(0))]
    [2, 2, 2]
    """
    kinds = labels if groups is None else labels * (len(groups.names) + 1) + groups.index
    order = np.lexsort((rng.permutation(len(kinds)), kinds))
    turn = np.empty(len(order), dtype=np.int64)
    turn[order] = np.arange(len(order)) % parts
    return [np.flatnonzero(turn == number) for number in range(parts)]


def small_groups(groups: Groups, smallest_group: int) -> tuple[str, ...]:
    """Return a sentence about each group that is too small to set the balanced size; none if all are."""
    counts = groups.counts()
    least = min(smallest_group, balanced_size(counts, smallest_group))
    return tuple(
        f"group {name!r} has {count} samples, fewer than {smallest_group}: it takes part with all of them but does not "
        "set the balanced size"
        for name, count in zip(groups.names, counts, strict=True)
        if 0 < count < least
    )


def left_out(groups: Groups) -> tuple[str, ...]:
    """Return a sentence about unassigned samples, if there are any."""
    unassigned = int((groups.index < 0).sum())
    return (f"{unassigned} samples are in no group and were left out",) if unassigned else ()
