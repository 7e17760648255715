"""Pseudo-groups against the truth, within each class: the only place where the two meet.

Purity is not reported: with 95 % of a class in one true group, a useless clustering scores 95 %.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from exmap.errors import DataError
from exmap.records import IntArray
from exmap.results import ClassAgreement, GroupInference

__all__ = ["group_agreement"]


def group_agreement(
    index: IntArray, true_index: IntArray, labels: IntArray, true_names: tuple[str, ...] = ()
) -> GroupInference:
    """Compare pseudo-groups with true groups.

    Parameters
    ----------
    index, true_index, labels : ndarray of int64, shape (N,)
        Pseudo-group (-1: unassigned, counted as a group of its own), true group and class of each sample.
    true_names : tuple of str, optional

    Returns
    -------
    GroupInference
        Each number inside each class, then averaged over the classes that have more than one true group; NaN if none
        has. Precision and recall are of a class's smallest true group in the pseudo-group that matches it best.
    """
    if not len(index) == len(true_index) == len(labels):
        raise DataError(
            f"groups can only be compared sample by sample, got {len(index)} pseudo-groups, {len(true_index)} true "
            f"groups and {len(labels)} labels"
        )
    rows = []
    for label in np.unique(labels):
        members = labels == label
        found, true = index[members], true_index[members]
        kinds, counts = np.unique(true, return_counts=True)
        if len(kinds) < 2:
            continue
        smallest = int(kinds[counts.argmin()])
        precision, recall = _best_match(found, true == smallest)
        rows.append(
            ClassAgreement(
                label=int(label),
                ari=float(adjusted_rand_score(true, found)),
                nmi=float(normalized_mutual_info_score(true, found)),
                minority=true_names[smallest] if true_names else str(smallest),
                minority_count=int(counts.min()),
                minority_precision=precision,
                minority_recall=recall,
            )
        )
    keys = ("ari", "nmi", "minority_precision", "minority_recall")
    means = {key: float(np.mean([getattr(row, key) for row in rows])) if rows else float("nan") for key in keys}
    return GroupInference(**means, by_class=tuple(rows))


def _best_match(found: IntArray, minority: NDArray[np.bool_]) -> tuple[float, float]:
    """Return precision and recall of the pseudo-group with the largest F1 against `minority`."""
    names, inverse = np.unique(found, return_inverse=True)
    size = np.bincount(inverse, minlength=len(names))
    hits = np.bincount(inverse, weights=minority, minlength=len(names))
    best = int((2 * hits / (size + minority.sum())).argmax())
    return float(hits[best] / size[best]), float(hits[best] / minority.sum())
