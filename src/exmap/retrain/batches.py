"""Multinomial logistic regression with an L1 penalty by mini-batches, for the last layers of very many classes.

The objective is that of :mod:`exmap.retrain.softmax`. That solver looks at all samples at once, some hundred times; for
a thousand classes that is half an hour for each of dozens of fits. Here each step sees a batch: an accelerated proximal
gradient step in single precision, whose length falls to zero along a cosine over a fixed number of epochs, so that the
time is known beforehand. It ends near the solution, not on it: the tests say how near.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.records import IntArray
from exmap.retrain.softmax import SoftmaxFit

__all__ = ["fit_by_batches", "in_words", "seconds_of_step", "steps_of", "worth_batches"]

MANY_CLASSES = 50
MANY_PRODUCTS = 2e8  # samples times features times classes

BATCH = 256
EPOCHS = 20  # of a fit that starts from zero; one with a start needs fewer
EPOCHS_AFTER = 8
MOMENTUM = 0.9
POWER_STEPS = 20  # to find the largest curvature


def worth_batches(n: int, n_features: int, n_classes: int) -> bool:
    """Return whether a fit is so large that it is done by mini-batches."""
    return n_classes >= MANY_CLASSES and n * n_features * n_classes >= MANY_PRODUCTS


def seconds_of_step(n_features: int, n_classes: int) -> float:
    """Return how long a step takes on this machine, by taking some."""
    x = np.ones((2 * BATCH, n_features), np.float32)
    labels = np.arange(len(x)) % n_classes
    begun = time.perf_counter()
    fit_by_batches(x, labels, n_classes, 1.0, rng=np.random.default_rng(0), epochs=2)
    return (time.perf_counter() - begun) / 4


def in_words(seconds: float) -> str:
    """Return a time in words.

    Examples
    --------
    >>> in_words(40), in_words(700), in_words(9000)
    ('a minute', '12 minutes', '2.5 hours')
    """
    minutes = max(1, round(seconds / 60))
    if minutes > 90:
        return f"{seconds / 3600:.1f} hours"
    return "a minute" if minutes == 1 else f"{minutes} minutes"


def steps_of(n: int, *, started: bool = False) -> int:
    """Return the number of batches that a fit of n samples takes."""
    return (EPOCHS_AFTER if started else EPOCHS) * -(-n // BATCH)


def fit_by_batches(
    features: NDArray[np.floating],
    labels: IntArray,
    n_classes: int,
    strength: float,
    *,
    rng: np.random.Generator,
    start: SoftmaxFit | None = None,
    epochs: int | None = None,
) -> SoftmaxFit:
    """Minimise ``strength * cross-entropy + sum |weight|``, nearly.

    Parameters
    ----------
    features : ndarray of float, shape (N, D)
        Standardised, or the penalty weighs them unevenly.
    labels : ndarray of int64, shape (N,), in [0, n_classes)
    n_classes : int
    strength : float
        C: a larger one fits closer.
    rng : numpy.random.Generator
        Of the order of samples.
    start : SoftmaxFit, optional
        Where to begin; zero by default.
    epochs : int, optional
        By default :data:`EPOCHS`, or :data:`EPOCHS_AFTER` with a start.
    """
    x, n = np.ascontiguousarray(features, dtype=np.float32), len(features)
    penalty, longest = np.float32(1 / (strength * n)), 1 / _curvature(x, rng)
    weight, bias = np.zeros((n_classes, x.shape[1]), np.float32), np.zeros(n_classes, np.float32)
    if start is not None:
        weight[:], bias[:] = start.weight, start.bias
    before = weight.copy(), bias.copy()
    epochs = epochs or (EPOCHS if start is None else EPOCHS_AFTER)
    steps, number = epochs * -(-n // BATCH), 0
    while number < steps:
        order = rng.permutation(n)
        for begin in range(0, n, BATCH):
            rows = order[begin : begin + BATCH]
            length = np.float32(longest * 0.5 * (1 + np.cos(np.pi * number / steps)))
            ahead, ahead_bias = (
                now + MOMENTUM * (now - last) for now, last in zip((weight, bias), before, strict=True)
            )
            wrong = _chances(x[rows] @ ahead.T + ahead_bias)
            wrong[np.arange(len(rows)), labels[rows]] -= 1
            wrong /= len(rows)
            before = weight, bias
            ahead -= length * (wrong.T @ x[rows])
            weight = np.asarray(np.sign(ahead) * np.maximum(np.abs(ahead) - length * penalty, 0))
            bias = ahead_bias - length * wrong.sum(axis=0)
            number += 1
    return SoftmaxFit(np.asarray(weight, np.float64), np.asarray(bias, np.float64), True)


def _chances(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def _curvature(x: NDArray[np.float32], rng: np.random.Generator) -> float:
    """Return the largest curvature of the mean cross-entropy: half the largest eigenvalue of the features' products."""
    sample = x[rng.permutation(len(x))[:4096]]
    vector: NDArray[Any] = np.asarray(rng.normal(size=x.shape[1]), np.float32)
    size = 1.0
    for _ in range(POWER_STEPS):
        vector = sample.T @ (sample @ vector) / len(sample)
        size = float(np.linalg.norm(vector))
        vector /= max(size, 1e-30)
    return max(size, 1.0) / 2
