"""Accuracy gaps of several shortcuts: how much is lost where one of them, or some together, point the wrong way.

As for UrbanCars in Li et al., "A Whac-A-Mole dilemma" (CVPR 2023), section 3: the in-distribution accuracy weighs each
group by its training frequency; a gap is the accuracy on the groups in which exactly the named shortcuts are uncommon,
minus that. Gaps flatter a method of low in-distribution accuracy: read them beside the group accuracies.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from exmap.errors import DataError
from exmap.records import GroupTable, IntArray

__all__ = ["shortcut_gaps"]


def shortcut_gaps(
    table: GroupTable, coordinates: IntArray, attributes: tuple[str, ...], train_counts: IntArray
) -> dict[str, float]:
    """Return the gap of each shortcut, and of each combination of them.

    Parameters
    ----------
    table : GroupTable
        Accuracy of each group on the test split, with `train_share`.
    coordinates : ndarray of int64, shape (G, 1 + A)
        Class and attribute values of each group.
    attributes : tuple of str
        Names of the A attributes.
    train_counts : ndarray of int64, shape (G,)
        A class's common value of an attribute is its most frequent one in the training split.

    Returns
    -------
    dict of str to float
        For example ``{"background": -0.2, "background + co-occurring object": -0.5}``; NaN where no test image has
        exactly these shortcuts uncommon. Empty without attributes.
    """
    if coordinates.shape != (len(table.names), 1 + len(attributes)) or len(train_counts) != len(table.names):
        raise DataError(
            f"gaps need one row of {1 + len(attributes)} coordinates and one training count per group, got "
            f"{coordinates.shape} and {len(train_counts)} for {len(table.names)} groups"
        )
    classes = coordinates[:, 0]
    uncommon = np.zeros((len(classes), len(attributes)), dtype=np.bool_)
    for number in range(len(attributes)):
        values = coordinates[:, 1 + number]
        for label in np.unique(classes):
            rows = classes == label
            common = np.bincount(values[rows], weights=train_counts[rows]).argmax()
            uncommon[rows, number] = values[rows] != common
    usual = table.weighted_mean
    gaps = {}
    for size in range(1, len(attributes) + 1):
        for chosen in combinations(range(len(attributes)), size):
            wanted = np.isin(np.arange(len(attributes)), chosen)
            rows = (uncommon == wanted).all(axis=1) & (table.count > 0)
            count = table.count[rows]
            accuracy = float(table.accuracy[rows] @ count / count.sum()) if rows.any() else float("nan")
            gaps[" + ".join(attributes[i] for i in chosen)] = accuracy - usual
    return gaps
