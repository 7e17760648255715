"""Accuracy by group: one table shape, a count and a bootstrap interval beside every value."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exmap.errors import DataError
from exmap.records import GroupTable, IntArray

__all__ = ["group_table", "worst_share"]


def group_table(
    predicted: IntArray,
    labels: IntArray,
    index: IntArray,
    names: Sequence[str],
    *,
    rng: np.random.Generator,
    train_counts: ArrayLike | None = None,
    bootstrap: int = 1000,
    confidence: float = 0.95,
) -> GroupTable:
    """Return the accuracy of each group.

    Parameters
    ----------
    predicted : ndarray of int64, shape (N,) or (R, N)
        Predicted class of each sample, by one model or by R repeats of it; repeats are averaged sample by sample.
    labels, index : ndarray of int64, shape (N,)
        Class label and group of each sample; a group of -1 is left out.
    names : sequence of str
        One per group, empty groups included.
    rng : numpy.random.Generator
        Of the bootstrap over the samples of each group.
    train_counts : array-like of int, shape (G,), optional
        Size of each group in the training split, for the weighted mean.
    bootstrap : int
        Number of resamples.
    confidence : float in (0, 1)
        Mass of the percentile interval.

    Returns
    -------
    GroupTable
        NaN for an empty group.

    Examples
    --------
    >>> y = np.array([0, 0, 1, 1])
    >>> table = group_table(np.array([0, 1, 1, 1]), y, y, ["a", "b"], rng=np.random.default_rng(0))
    >>> table.worst, table.worst_group, table.mean
    (0.5, 'a', 0.75)
    """
    predicted = np.atleast_2d(predicted)
    if not predicted.shape[1] == len(labels) == len(index):
        raise DataError(
            f"evaluation needs one prediction and one group per label, got {predicted.shape[1]} predictions, "
            f"{len(index)} groups and {len(labels)} labels"
        )
    n_groups = len(names)
    if len(index) and index.max() >= n_groups:
        raise DataError(f"group numbers must lie in [-1, {n_groups - 1}], got {index.max()}; name every group")
    scores = (predicted == labels).mean(axis=0)
    count = np.bincount(index[index >= 0], minlength=n_groups).astype(np.int64)
    accuracy, low, high = (np.full(n_groups, np.nan) for _ in range(3))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    for group in np.flatnonzero(count):
        # Resampling n scores with replacement is drawing how often each distinct score comes.
        values, times = np.unique(scores[index == group], return_counts=True)
        draws = rng.multinomial(count[group], times / count[group], size=bootstrap) @ values / count[group]
        accuracy[group] = values @ times / count[group]
        low[group], high[group] = np.quantile(draws, tails)
    share = None
    if train_counts is not None:
        counts = np.asarray(train_counts, dtype=np.float64)
        if counts.shape != (n_groups,) or not counts.sum() > 0:
            raise DataError(
                f"train_counts must hold one number per group and not be zero throughout, got {counts.tolist()} for "
                f"{n_groups} groups"
            )
        share = counts / counts.sum()
    return GroupTable(tuple(names), accuracy, count, low, high, share)


def worst_share(right: NDArray[np.bool_], index: IntArray) -> float:
    """Return the worst-group accuracy alone.

    Parameters
    ----------
    right : ndarray of bool, shape (N,)
        Which samples are classified right.
    index : ndarray of int64, shape (N,)
        Group of each sample; a group of -1 is left out.

    Returns
    -------
    float in [0, 1]
        NaN where no group has samples.
    """
    use = index >= 0
    hits, count = np.bincount(index[use], weights=right[use]), np.bincount(index[use])
    filled = count > 0
    return float((hits[filled] / count[filled]).min()) if filled.any() else math.nan
