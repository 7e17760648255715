"""How far the groups hold when they are inferred again: from part of the images, with other seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.metrics import adjusted_rand_score

from exmap.errors import DataError
from exmap.records import IntArray, Listener, Progress, silent
from exmap.results import Rerun

__all__ = ["rerun_agreement", "within_class_ari"]

Regroup = Callable[[IntArray, int], IntArray]


def rerun_agreement(
    regroup: Regroup,
    index: IntArray,
    labels: IntArray,
    *,
    rng: np.random.Generator,
    reruns: int = 5,
    share: float = 0.8,
    most: int = 10_000,
    listen: Listener = silent,
) -> tuple[Rerun, ...]:
    """Infer groups again from random parts of the images, and compare with those that were found.

    Parameters
    ----------
    regroup : callable
        Takes the rows to group, ascending, and a seed; returns one group for each.
    index, labels : ndarray of int64, shape (N,)
        The groups in question (-1: unassigned, left out) and the classes.
    rng : numpy.random.Generator
    reruns : int
    share : float in (0, 1]
        Of the images, for each rerun.
    most : int
        Images of a rerun; keeps it cheap where there are many.
    listen : Listener

    Returns
    -------
    tuple of Rerun
        Empty if no image has a group.
    """
    if not 0 < share <= 1:
        raise DataError(f"the share of the images of a rerun must lie in (0, 1], got {share}")
    assigned = np.flatnonzero(index >= 0)
    size = min(max(1, round(share * len(assigned))), most)
    found = []
    for _ in range(reruns if len(assigned) else 0):
        rows = np.sort(rng.choice(assigned, size, replace=False)).astype(np.int64)
        again = regroup(rows, int(rng.integers(2**32)))
        ari = within_class_ari(again, index[rows], labels[rows])
        found.append(Rerun(images=size, groups=len(np.unique(again[again >= 0])), ari=ari))
        listen(Progress("groups inferred again", len(found), reruns, "reruns"))
    return tuple(found)


def within_class_ari(first: IntArray, second: IntArray, labels: IntArray) -> float:
    """Return the adjusted Rand index of two groupings inside each class, averaged over the classes that either splits.

    Classes are part of every pseudo-group, so agreement on them proves nothing. Where neither grouping splits any
    class they agree: 1.

    Examples
    --------
    >>> y = np.array([0, 0, 0, 0, 1, 1])
    >>> within_class_ari(np.array([0, 0, 1, 1, 2, 2]), np.array([5, 5, 3, 3, 4, 4]), y)
    1.0
    """
    if not len(first) == len(second) == len(labels):
        raise DataError(
            f"groupings can only be compared sample by sample, got {len(first)} and {len(second)} groups and "
            f"{len(labels)} labels"
        )
    scores = []
    for label in np.unique(labels):
        one, two = first[labels == label], second[labels == label]
        if len(np.unique(one)) > 1 or len(np.unique(two)) > 1:
            scores.append(float(adjusted_rand_score(one, two)))
    return float(np.mean(scores)) if scores else 1.0
