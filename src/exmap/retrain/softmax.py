"""Multinomial logistic regression with an L1 penalty, for the last layer of more than two classes.

The objective is scikit-learn's: C times the summed cross-entropy plus the absolute sum of the weights; the intercepts
are free. A weight is written as the difference of two non-negative numbers, which makes the penalty linear and leaves
a smooth problem with bounds, for SciPy's L-BFGS-B. It starts from a given solution, so that a path of strengths costs
little more than its hardest fit; scikit-learn's only solver for this problem, saga, took nine times as long on the
features of ten coloured digits (see docs/performance.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from exmap.records import IntArray

__all__ = ["SoftmaxFit", "fit_softmax"]

MEMORY = 10  # past steps that L-BFGS-B learns the curvature from


@dataclass(frozen=True)
class SoftmaxFit:
    """A fitted regression.

    Attributes
    ----------
    weight : ndarray of float64, shape (K, D)
    bias : ndarray of float64, shape (K,)
    converged : bool
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    converged: bool


def fit_softmax(
    features: NDArray[np.float64],
    labels: IntArray,
    n_classes: int,
    strength: float,
    *,
    start: SoftmaxFit | None = None,
    max_iter: int = 1000,
    tolerance: float = 1e-4,
) -> SoftmaxFit:
    """Minimise ``strength * cross-entropy + sum |weight|``.

    Parameters
    ----------
    features : ndarray of float64, shape (N, D)
        Standardised, or the penalty weighs them unevenly.
    labels : ndarray of int64, shape (N,), in [0, n_classes)
    n_classes : int
    strength : float
        C: a larger one fits closer.
    start : SoftmaxFit, optional
        Where to begin; zero by default.
    max_iter : int
    tolerance : float
        Of the largest violation of the optimality conditions, whose scale is that of the penalty, 1.

    Examples
    --------
    >>> x = np.array([[-1.0], [0.0], [1.0]])
    >>> fit = fit_softmax(x, np.array([0, 1, 2]), 3, 10.0)
    >>> (x @ fit.weight.T + fit.bias).argmax(axis=1)
    array([0, 1, 2])
    """
    n, d = features.shape
    size = n_classes * d
    rows = np.arange(n)

    def objective(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight = (values[:size] - values[size : 2 * size]).reshape(n_classes, d)
        logits = features @ weight.T + values[2 * size :]
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits)
        total = chances.sum(axis=1, keepdims=True)
        loss = float(np.log(total).sum() - logits[rows, labels].sum())
        chances /= total
        chances[rows, labels] -= 1
        chances *= strength
        slope = (chances.T @ features).ravel()
        gradient = np.concatenate([1 + slope, 1 - slope, chances.sum(axis=0)])
        return strength * loss + float(values[: 2 * size].sum()), gradient

    begin = np.zeros(2 * size + n_classes)
    if start is not None:
        begin[:size] = np.maximum(start.weight, 0).ravel()
        begin[size : 2 * size] = np.maximum(-start.weight, 0).ravel()
        begin[2 * size :] = start.bias
    low = np.concatenate([np.zeros(2 * size), np.full(n_classes, -np.inf)])
    found = minimize(
        objective,
        begin,
        jac=True,
        method="L-BFGS-B",
        bounds=np.column_stack([low, np.full(len(low), np.inf)]),
        options={"maxiter": max_iter, "maxfun": 2 * max_iter, "maxcor": MEMORY, "gtol": tolerance, "ftol": 1e-9},
    )
    weight = (found.x[:size] - found.x[size : 2 * size]).reshape(n_classes, d)
    return SoftmaxFit(weight, found.x[2 * size :], bool(found.status == 0))
