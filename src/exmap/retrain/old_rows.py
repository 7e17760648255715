"""A fitted last layer in which some classes keep the classifier's own decision."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from exmap.retrain.head import Head

__all__ = ["with_old_rows"]

MORE = 0.005  # share of all images that kept classes may be predicted on beside as many as before, in their favour
SAME = 0.95  # of the images that kept classes were predicted on
MOST_ROWS = 4_000  # images that the scale of old rows is found on
NEVER = -1e8  # a bias below it is that of a class without samples


def with_old_rows(head: Head, own: Head, kept: Collection[int], features: NDArray[np.floating]) -> Head:
    """Return a last layer in which some classes keep the classifier's own decision.

    A row of the old layer says something only beside the others. So a kept class gets the mean of the new rows, and on
    top of it what its old row is above the mean of the old rows, on the scale of the new ones; all kept classes are
    shifted alike, so that they are predicted on as many of the images as before and a few more, or on up to half as
    many more where that keeps 95 % of those of before.

    Parameters
    ----------
    head, own : Head
        The fitted last layer and the classifier's own, of the same shape.
    kept : collection of int
        Classes. Fewer than two others with samples leave the fitted layer as it is.
    features : ndarray of float, shape (N, D)
    """
    old_rows = np.array(sorted(kept), dtype=np.int64)
    others = np.setdiff1d(np.flatnonzero(head.bias > NEVER), old_rows)
    if not len(old_rows) or len(others) < 2:
        return head
    some: NDArray[np.float64] = np.asarray(features[:: max(1, len(features) // MOST_ROWS)], dtype=np.float64)
    new, old = (np.column_stack([each.weight, each.bias]).astype(np.float64) for each in (head, own))
    middle, old_middle = new[others].mean(axis=0), old[others].mean(axis=0)
    scale = _height(some, new[others] - middle) / max(_height(some, old[others] - old_middle), 1e-12)
    rows = middle + scale * (old[old_rows] - old_middle)
    above = _logits(some, rows).max(axis=1) - _logits(some, new[others]).max(axis=1)
    was = np.isin(_logits(some, old).argmax(axis=1), old_rows)
    rows[:, -1] += _shift(above, was)
    weight, bias = head.weight.copy(), head.bias.copy()
    weight[old_rows], bias[old_rows] = rows[:, :-1], rows[:, -1]
    return replace(head, weight=weight, bias=bias)


def _logits(features: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(features @ rows[:, :-1].T + rows[:, -1])


def _height(features: NDArray[np.float64], rows: NDArray[np.float64]) -> float:
    """Return how far the largest logit stands above the mean, on average."""
    return float(_logits(features, rows).max(axis=1).mean())


def _shift(above: NDArray[np.float64], was: NDArray[np.bool_]) -> float:
    """Return the shift that lifts above zero as many of some numbers as there were, or more to lift those that were."""
    falling, number = np.sort(above)[::-1], int(was.sum())
    if not number:
        return _lifting(falling, 0)
    least = _lifting(falling, number + math.ceil(min(math.sqrt(number), MORE * len(was))))
    again = -float(np.quantile(above[was], 1 - SAME, method="lower"))
    return max(least, min(again * (1 + 1e-6), _lifting(falling, number + number // 2 + 1)))


def _lifting(falling: NDArray[np.float64], wanted: int) -> float:
    """Return the smallest shift, in size, that lifts `wanted` of some falling numbers above zero, and no more."""
    low = -falling[wanted - 1] if 0 < wanted <= len(falling) else -np.inf
    high = -falling[wanted] if wanted < len(falling) else np.inf
    if low < 0 < high:
        return 0.0
    if np.isinf(low) or np.isinf(high):
        end = high if np.isinf(low) else low
        return float(end + np.copysign(1e-3 * (1 + abs(end)), end))
    return float((low + high) / 2)
