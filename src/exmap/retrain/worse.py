"""Which classes get worse, by what is right of the same images before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from exmap.records import IntArray
from exmap.results import ClassHarm

__all__ = ["LEVEL", "Comparison", "compare_classes"]

LEVEL = 0.05  # of the test whether a class gets worse, one-sided
CLEAR = 0.01  # of that whether it loses with its groups counted alike
SMALLEST_GROUP = 6  # images; a smaller group has no say of its own
BY_HEART = 0.5  # share that a class may lose of images that the classifier was trained on
RARE = 10  # images; a class of fewer, and
RARE_SHARE = 0.2  # of fewer than this share of the mean class, is too rare to tell


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is right before and after, of the same images.

    Attributes
    ----------
    images : ndarray of int64, shape (K,)
        Of each class.
    before, after : ndarray of float64, shape (K,)
        Share of them that is right.
    p_value : ndarray of float64, shape (K,)
    worse : ndarray of bool, shape (K,)
        Whether fewer are right, beyond noise.
    rare : ndarray of bool, shape (K,)
        Whether it has so few images, beside the others, that nothing can be told.
    loss : ndarray of float64, shape (K,)
        What the class loses, with each of its groups counted alike; 0 where that is noise.
    worst_before, worst_after : float
        Share that is right in the worst group or class.
    """

    images: IntArray
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    p_value: NDArray[np.float64]
    worse: NDArray[np.bool_]
    rare: NDArray[np.bool_]
    loss: NDArray[np.float64]
    worst_before: float
    worst_after: float

    def losing(self) -> dict[int, float]:
        """Return what each class loses that loses anything."""
        return {int(k): float(self.loss[k]) for k in np.flatnonzero(self.loss > 0)}

    def of_class(self, k: int, class_name: str, *, harmed: bool, kept: bool) -> ClassHarm:
        """Return what becomes of a class as a part of results."""
        return ClassHarm(
            class_name=class_name,
            images=int(self.images[k]),
            before=float(self.before[k]),
            after=float(self.after[k]),
            p_value=float(self.p_value[k]),
            harmed=harmed,
            kept=kept,
        )


def compare_classes(
    before: IntArray, after: IntArray, labels: IntArray, index: IntArray, n_classes: int, *, by_heart: bool = False
) -> Comparison:
    """Compare what is right before and after.

    Parameters
    ----------
    before, after, labels, index : ndarray of int64, shape (N,)
        What is predicted of each image, its class and its group; -1 is in none. Groups that are made of errors, as the
        error set is, are no parts to count alike: retraining gains in what is wrong, whatever it does to the class.
    n_classes : int
    by_heart : bool
        Whether the classifier was trained on these images.

    Examples
    --------
    >>> y = np.repeat([0, 1], 8)
    >>> compare_classes(y, np.zeros(16, dtype=int), y, y, 2).losing()
    {1: 1.0}
    """
    was, now = before == labels, after == labels

    def count(which: NDArray[np.bool_]) -> IntArray:
        return np.bincount(labels[which], minlength=n_classes)

    images, right, lost, won = count(labels >= 0), count(was), count(was & ~now), count(now & ~was)
    p_value = np.asarray(binom.sf(lost - 1, lost + won, 0.5))
    few = 0.5**right > LEVEL
    worse = (lost > won) & ((p_value <= LEVEL) | few)
    parts = _Parts.of(labels, index, n_classes)
    loss, noise = parts.loss(was, now)
    loss = np.where(worse & (few | (loss > norm.isf(CLEAR) * noise)), np.maximum(loss, 0), 0)
    rare = (images > 0) & (images < RARE) & (images < RARE_SHARE * len(labels) / max((images > 0).sum(), 1))
    share = 1 / np.maximum(images, 1)
    if by_heart:
        most = lost - won > BY_HEART * right
        worse, rare, loss = worse & most, rare & most, loss * most
    loss = np.where(rare, np.maximum((lost - won + 1) * share, 0), loss)
    after_share = (right - lost + won) * share
    return Comparison(
        images, right * share, after_share, p_value, worse, rare, loss, parts.worst(was), parts.worst(now)
    )


@dataclass(frozen=True, eq=False)
class _Parts:
    """The groups of each class; what lies in its small ones, or in none, is one together."""

    cells: IntArray
    counts: IntArray  # shape (K, 1 + G)
    small: NDArray[np.bool_]
    alike: NDArray[np.bool_]  # which of a class's parts count

    @classmethod
    def of(cls, labels: IntArray, index: IntArray, n_classes: int) -> _Parts:
        columns = int(index.max(initial=-1)) + 2
        cells = labels * columns + index + 1
        counts = np.bincount(cells, minlength=n_classes * columns).reshape(n_classes, columns)
        small = counts < SMALLEST_GROUP
        small[:, 0] = False
        parts = cls(cells, counts, small, ~small)
        counts = parts._together(counts)
        alike = counts >= SMALLEST_GROUP
        alike[:, 0] |= ~alike.any(axis=1)
        return cls(cells, counts, small, alike)

    def _together(self, table: NDArray[Any]) -> NDArray[Any]:
        table = table.copy()
        table[:, 0] += (table * self.small).sum(axis=1)
        table[self.small] = 0
        return table

    def shares(self, which: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the share of each part that has something."""
        found = np.bincount(self.cells, which, minlength=self.counts.size).reshape(self.counts.shape)
        return np.asarray(self._together(found) / np.maximum(self.counts, 1))

    def loss(self, was: NDArray[np.bool_], now: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what each class loses, its parts counted alike, and the standard error of that."""
        counts = np.maximum(self.counts, 1)
        lost = self.shares(was) - self.shares(now)
        changed = (self.shares(was != now) * counts + 1) / (counts + 1)  # one more, as none of a few is not certain
        error = (changed - lost**2).clip(0) / counts
        number = self.alike.sum(axis=1)
        return (lost * self.alike).sum(axis=1) / number, np.sqrt((error * self.alike).sum(axis=1)) / number

    def worst(self, right: NDArray[np.bool_]) -> float:
        """Return the share that is right in the worst part that is large enough to say, or of all."""
        large = self.counts >= SMALLEST_GROUP
        return float(self.shares(right)[large if large.any() else self.counts > 0].min(initial=1.0))
