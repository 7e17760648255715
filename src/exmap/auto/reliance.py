"""How much last layers rely on what distinguishes groups, and the candidates as judges of one another by that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from exmap.auto.candidates import Candidate
from exmap.records import IntArray

__all__ = ["Judges", "reliance"]

SHRINK = 5.0  # samples of the class that are added to a group's mean margin
FEWEST = 3  # samples of a group that has a say


def reliance(
    margins: NDArray[np.float64], labels: IntArray, index: IntArray, weight: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return how much heads rely on what distinguishes some groups, in standard deviations of the class's margins.

    Of each class: its mean margin less that of its worst group (shrunk towards the class's mean by five samples), over
    the standard deviation; of the classes, the largest.

    Parameters
    ----------
    margins : ndarray of float64, shape (heads, N)
    labels : ndarray of int64, shape (N,)
    index : ndarray of int64, shape (N,)
        Group of each sample; -1 has no say. No group lies in two classes.
    weight : ndarray of float64, shape (N,), optional
        How often each sample counts.

    Returns
    -------
    ndarray of float64, shape (heads,), at least 0
    """
    return _reliance(margins, labels, [index], weight)[:, 0]


@dataclass(frozen=True, eq=False)
class Judges:
    """The candidates as judges of one another: only those of heatmaps judge.

    Attributes
    ----------
    candidates : sequence of Candidate
        Of the images that are judged.
    labels : ndarray of int64, shape (N,)
    """

    candidates: Sequence[Candidate]
    labels: IntArray

    def reliance(self, margins: NDArray[np.float64], rng: np.random.Generator | None = None) -> NDArray[np.float64]:
        """Return the mean reliance of heads on the groups of all others; 0 is best.

        Parameters
        ----------
        margins : ndarray of float64, shape (heads, N)
            With one head per candidate, in their order, a head's own groups have no say.
        rng : numpy.random.Generator, optional
            Scores a bootstrap sample of the images.

        Returns
        -------
        ndarray of float64, shape (heads,)
        """
        n = len(self.labels)
        weight = None if rng is None else rng.multinomial(n, np.full(n, 1 / n)).astype(np.float64)
        judging = [number for number, candidate in enumerate(self.candidates) if candidate.judges]
        found = _reliance(margins, self.labels, [self.candidates[number].groups.index for number in judging], weight)
        others = np.ones_like(found, dtype=np.bool_)
        if len(margins) == len(self.candidates):
            for column, number in enumerate(judging):
                others[number, column] = False
        total = np.where(others, found, 0).sum(axis=1)
        return np.asarray(total / np.maximum(others.sum(axis=1), 1))


def _reliance(
    margins: NDArray[np.float64],
    labels: IntArray,
    judges: Sequence[IntArray],
    weight: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return :func:`reliance` on each of several groupings, shape (heads, groupings)."""
    n = len(labels)
    weight = np.ones(n) if weight is None else weight
    kinds, label = np.unique(labels, return_inverse=True)
    of_class = sparse.csr_array((weight, (np.arange(n), label)), shape=(n, len(kinds)))
    size = np.maximum(np.asarray(of_class.sum(axis=0)).ravel(), 1e-12)
    mean = np.asarray(margins @ of_class) / size
    deviation = np.sqrt(np.maximum(np.asarray(margins**2 @ of_class) / size - mean**2, 1e-24))
    result = np.zeros((len(margins), len(judges)))
    for number, index in enumerate(judges):
        rows = np.flatnonzero(index >= 0)
        names, column = np.unique(index[rows], return_inverse=True)
        inside = sparse.csr_array((weight[rows], (rows, column)), shape=(n, len(names)))
        count = np.asarray(inside.sum(axis=0)).ravel()
        owner = np.zeros(len(names), dtype=np.int64)
        owner[column] = label[rows]
        group = (np.asarray(margins @ inside) + SHRINK * mean[:, owner]) / (count + SHRINK)
        short = (mean[:, owner] - group) / deviation[:, owner]
        short[:, count < FEWEST] = 0
        result[:, number] = short.max(axis=1, initial=0)
    return result
