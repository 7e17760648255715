"""Logistic regression of two classes with an L1 penalty, for a path of strengths on the same samples.

The objective is liblinear's, and so that of the original DFR: C times the summed log loss plus the absolute sum of the
weights, the intercept among them. Few features end with a weight, so each round works on those that have one and those
that want one most (Yuan, Ho and Lin, 2012, "An improved GLMNET for L1-regularized logistic regression"), by Newton
steps that are cut off where a weight would change its sign (Schmidt, Fung and Rosales, 2007, "Fast optimization methods
for L1 regularization", two-metric projection). A fit may start from that of a similar strength.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.special import expit

__all__ = ["LogisticFit", "LogisticPath"]

FEWEST_ADDED = 16  # weights that a round may add; beyond, as many as there are
MOST_STEPS = 30  # in a round
CLOSER = 0.1  # of the largest violation, where a round may end
CHANGED = 0.5  # share by which what samples count for in the curvature may change before it is computed again
SUFFICIENT = 1e-4  # share of the promised decrease that a step must bring
SMALLEST_STEP = 1e-10
RIDGES = (1e-6, 1e-4, 1e-2)  # of the curvature's mean, the first one added to it that will do: columns may be alike


@dataclass(frozen=True)
class LogisticFit:
    """A fitted regression.

    Attributes
    ----------
    weight : ndarray of float64, shape (D,)
    bias : float
    converged : bool
    """

    weight: NDArray[np.float64]
    bias: float
    converged: bool


class LogisticPath:
    """Samples that are prepared once for fits of several strengths.

    Parameters
    ----------
    features : ndarray of float, shape (N, D)
        Standardised, or the penalty weighs them unevenly.
    positive : ndarray of bool, shape (N,)
        Which samples are of the second class.

    Examples
    --------
    >>> path = LogisticPath(np.array([[-2.0], [-1.0], [1.0], [2.0]]), np.array([False, False, True, True]))
    >>> path.fit(0.1).weight, path.fit(10.0).weight.round(3)
    (array([0.]), array([3.044]))
    """

    def __init__(self, features: NDArray[np.floating], positive: NDArray[np.bool_]) -> None:
        self._x = np.asfortranarray(features, dtype=np.float64)  # whole columns lie together: a few are taken at a time
        self._target = positive.astype(np.float64)

    def fit(
        self, strength: float, *, start: LogisticFit | None = None, max_iter: int = 500, tolerance: float = 1e-3
    ) -> LogisticFit:
        """Minimise ``strength * log loss + |bias| + sum |weight|``.

        Parameters
        ----------
        strength : float
            C: a larger one fits closer.
        start : LogisticFit, optional
            Where to begin; zero by default.
        max_iter : int
            Rounds.
        tolerance : float
            Of the largest violation of the optimality conditions, whose scale is that of the penalty, 1.
        """
        weights = np.zeros(self._x.shape[1] + 1)
        if start is not None:
            weights[:-1], weights[-1] = start.weight, start.bias
        margin = self._x @ weights[:-1] + weights[-1]
        for _ in range(max_iter):
            wrong = strength * (expit(margin) - self._target)
            slope = np.append(wrong @ self._x, wrong.sum())
            violation = _violation(slope, weights)
            largest = float(violation.max())
            if largest <= tolerance:
                return LogisticFit(weights[:-1], float(weights[-1]), True)
            active = _wanted(weights, violation)
            part = weights[active]
            moved, margin = self._descend(active, part, margin, strength, max(CLOSER * largest, tolerance / 2))
            if np.array_equal(part, moved):
                break  # rounding is all that is left
            weights[active] = moved
        return LogisticFit(weights[:-1], float(weights[-1]), False)

    def _descend(
        self,
        active: NDArray[np.intp],
        weights: NDArray[np.float64],
        margin: NDArray[np.float64],
        strength: float,
        tolerance: float,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Take Newton steps in the weights of some columns, from the samples' margins; return both as they end.

        The curvature of one step serves the next as well, as long as the samples' chances have hardly changed.
        """
        x = self._columns(active)
        now = self._objective(margin, weights, strength)
        curved: NDArray[np.float64] | None = None  # what each sample counted for in the curvature in use
        for _ in range(MOST_STEPS):
            chance = expit(margin)
            slope = strength * ((chance - self._target) @ x)
            largest = float(_violation(slope, weights).max())
            if largest <= tolerance:
                break
            # A weight of zero may leave it against the slope, where that is steeper than the penalty.
            side = np.where(weights != 0, np.sign(weights), -np.sign(slope))
            free = (weights != 0) | (np.abs(slope) > 1)
            steep = slope + side
            sizes = strength * chance * (1 - chance)
            if curved is None or np.abs(sizes - curved).sum() > CHANGED * sizes.sum():
                curvature, curved = _curvature(x, sizes), sizes
            direction = np.zeros_like(weights)
            direction[free] = -_solved(curvature[np.ix_(free, free)], steep[free])
            taken = self._step(x, weights, margin, direction, side, steep, now, strength)
            if taken is None:  # a cut-off step may point uphill: the steepest descent never does
                direction[free] = -steep[free] / np.maximum(np.diag(curvature)[free], 1e-12)
                taken = self._step(x, weights, margin, direction, side, steep, now, strength)
            if taken is None:
                break  # rounding is all that is left
            weights, margin, now = taken
        return weights, margin

    def _columns(self, active: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return some columns in ascending order; the intercept's, of ones, follows the last feature's."""
        features = active[active < self._x.shape[1]]
        columns = np.empty((len(active), len(self._x)))
        np.take(self._x.T, features, axis=0, out=columns[: len(features)], mode="clip")
        columns[len(features) :] = 1
        return columns.T

    def _step(
        self,
        x: NDArray[np.float64],
        weights: NDArray[np.float64],
        margin: NDArray[np.float64],
        direction: NDArray[np.float64],
        side: NDArray[np.float64],
        steep: NDArray[np.float64],
        now: float,
        strength: float,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], float] | None:
        """Go along a direction, on each weight's side of zero, as far as that brings a sufficient decrease."""
        share = 1.0
        while share > SMALLEST_STEP:
            there = weights + share * direction
            there[there * side < 0] = 0
            change = there - weights
            moved = margin + x @ change
            value = self._objective(moved, there, strength)
            promised = float(steep @ change)
            if promised < 0 and value <= now + SUFFICIENT * promised:
                return there, moved, value
            share /= 2
        return None

    def _objective(self, margin: NDArray[np.float64], weights: NDArray[np.float64], strength: float) -> float:
        loss = np.logaddexp(0, margin).sum() - self._target @ margin
        return float(strength * loss + np.abs(weights).sum())


def _curvature(x: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the curvature of the loss for samples of these sizes.

    It only steers, in single precision; slopes and objective decide, in double precision.
    """
    root = np.multiply(x, np.sqrt(sizes)[:, None], dtype=np.float32, casting="same_kind")
    return (root.T @ root).astype(np.float64)


def _solved(curvature: NDArray[np.float64], steep: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Newton step, with as little of a ridge as makes the curvature positive definite; it is overwritten."""
    diagonal = curvature.diagonal().copy()
    for ridge in RIDGES:
        np.fill_diagonal(curvature, diagonal + ridge * (1 + diagonal.mean()))
        try:
            factor = linalg.cho_factor(curvature, check_finite=False)
        except linalg.LinAlgError:  # columns that are alike up to single precision
            continue
        step: NDArray[np.float64] = linalg.cho_solve(factor, steep, check_finite=False)
        return step
    return steep / (diagonal + 1)


def _wanted(weights: NDArray[np.float64], violation: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the columns to work on: those with a weight, and those that violate optimality most."""
    used = weights != 0
    most = max(FEWEST_ADDED, int(used.sum()))
    outside = np.where(used, 0.0, violation)
    if len(outside) > most:
        outside[outside < np.partition(outside, -most)[-most]] = 0
    return np.flatnonzero(used | (outside > 0))


def _violation(slope: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each weight is from where the loss's slope and the penalty's balance."""
    return np.where(weights != 0, np.abs(slope + np.sign(weights)), np.maximum(np.abs(slope) - 1, 0))
