"""All that is reported of a method on a test split, as ``results.json`` holds it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exmap.evaluation.by_group import group_table
from exmap.evaluation.gaps import shortcut_gaps
from exmap.records import GroupTable, IntArray
from exmap.results import GroupAccuracy, MethodResult

__all__ = ["measure"]


def measure(
    predicted: NDArray[np.int64],
    labels: IntArray,
    index: IntArray,
    names: tuple[str, ...],
    *,
    rng: np.random.Generator,
    train_counts: IntArray | None,
    attributes: tuple[str, ...] = (),
    coordinates: IntArray | None = None,
    bootstrap: int = 1000,
    confidence: float = 0.95,
) -> MethodResult:
    """Measure the predictions of R repeats of a method.

    Parameters
    ----------
    predicted : ndarray of int64, shape (R, N)
    labels, index : ndarray of int64, shape (N,)
        Class and group of each sample.
    names : tuple of str
        One per group.
    rng : numpy.random.Generator
        Of the bootstrap.
    train_counts : ndarray of int64, shape (G,), or None
        Size of each group in the training split; None where that is not known, which leaves weighted means NaN.
    attributes, coordinates
        What the groups are made of, as in :class:`exmap.data.TrueGroups`; gaps need two attributes.
    bootstrap, confidence
        As for :func:`exmap.evaluation.group_table`.

    Returns
    -------
    MethodResult
        Without what only the caller knows: the labels used, and how the method was fitted. With gaps where there are
        several attributes.
    """

    def table(rows: NDArray[np.int64]) -> GroupTable:
        return group_table(
            rows,
            labels,
            index,
            names,
            rng=rng,
            train_counts=train_counts,
            bootstrap=bootstrap,
            confidence=confidence,
        )

    each, together = [table(row) for row in predicted], table(predicted)
    worst = np.array([t.worst for t in each])
    gaps = None
    if coordinates is not None and len(attributes) > 1 and train_counts is not None:
        gaps = shortcut_gaps(together, coordinates, attributes, train_counts)
    return MethodResult(
        worst_group_accuracy=float(worst.mean()),
        worst_group=together.worst_group,
        mean_accuracy=together.mean,
        weighted_mean_accuracy=float(np.mean([t.weighted_mean for t in each])),
        std=float(worst.std(ddof=1)) if len(worst) > 1 else None,
        repeats=len(each),
        group_accuracy=_by_group(together),
        gaps=gaps,
    )


def _by_group(table: GroupTable) -> dict[str, GroupAccuracy]:
    columns = (table.accuracy.tolist(), table.count.tolist(), table.low.tolist(), table.high.tolist())
    return {
        name: GroupAccuracy(value=value, count=count, low=low, high=high)
        for name, value, count, low, high in zip(table.names, *columns, strict=True)
    }
