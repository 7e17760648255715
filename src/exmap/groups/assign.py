"""From a clusterer to named groups: local or global scope, crossed with the class."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from exmap.cluster import make_clusterer
from exmap.cluster.rows import finite_rows
from exmap.config import ClusterSettings
from exmap.errors import DataError, NumericalError
from exmap.records import Clusters, Groups, IntArray
from exmap.runtime import child_seed

__all__ = ["class_names_of", "cluster_samples", "groups_from_clusters"]

FEWEST_TO_CLUSTER = 4  # a class with fewer samples is one cluster


def cluster_samples(
    vectors: NDArray[np.floating],
    labels: IntArray,
    settings: ClusterSettings,
    *,
    seed: int,
    usable: NDArray[np.bool_] | None = None,
) -> Clusters:
    """Cluster samples inside each class (local) or all together (global).

    Parameters
    ----------
    vectors : ndarray of float, shape (N, F)
        One representation per sample; may lie on disk, and is only copied where some samples are left out.
    labels : ndarray of int64, shape (N,)
        Class labels.
    settings : ClusterSettings
    seed : int
    usable : ndarray of bool, shape (N,), optional
        Samples left out get cluster -1.

    Returns
    -------
    Clusters
        Clusters of each fit are numbered by falling size.

    Raises
    ------
    NumericalError
        If a usable vector is not finite.
    """
    use = np.ones(len(vectors), dtype=np.bool_) if usable is None else usable
    if broken := int((~finite_rows(vectors) & use).sum()):
        raise NumericalError(
            f"clustering needs finite numbers, but {broken} of {int(use.sum())} samples hold NaN or infinity; leave "
            "them out or choose another representation"
        )
    result = np.full(len(vectors), -1, dtype=np.int64)
    parts = [("all", use)]
    if settings.scope == "local":
        parts = [(f"class {c}", use & (labels == c)) for c in np.unique(labels)]
    notes = []
    for name, members in parts:
        rows = np.flatnonzero(members)
        chosen = vectors if len(rows) == len(vectors) else vectors[rows]
        found, note = _cluster(chosen, settings, child_seed(seed, name))
        result[rows] = found
        notes.append({"samples_of": name, "n_samples": len(rows), **note})
    return Clusters(result, settings.scope, tuple(notes))


def _cluster(vectors: NDArray[np.floating], settings: ClusterSettings, seed: int) -> tuple[IntArray, dict[str, Any]]:
    clusterer = make_clusterer(settings, seed)
    if len(vectors) < FEWEST_TO_CLUSTER:
        return np.zeros(len(vectors), dtype=np.int64), {"n_clusters": 1, "note": "too few samples to cluster"}
    if (settings.n_clusters or 0) > len(vectors):
        raise DataError(
            f"cluster.n_clusters must be at most the number of samples that are clustered together, {len(vectors)}, "
            f"got {settings.n_clusters}; lower it, or set cluster.scope=global"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        clusterer.fit(vectors)
    labels = by_size(clusterer.labels_)
    said = [getattr(clusterer, "note_", ""), *(str(w.message) for w in caught)]
    note: dict[str, Any] = {"n_clusters": int(labels.max()) + 1, "note": "; ".join(filter(None, said))}
    if hasattr(clusterer, "eigenvalues_"):
        note["eigenvalues"] = [round(float(value), 6) for value in clusterer.eigenvalues_]
        note["graph_components"] = int(clusterer.n_components_)
        note["residual"] = float(f"{clusterer.residual_:.1e}")
    return labels, note


def by_size(labels: NDArray[np.integer]) -> IntArray:
    """Return labels numbered from 0 by falling size; equal sizes keep their order.

    Examples
    --------
    >>> by_size(np.array([5, 2, 2, 9]))
    array([1, 0, 0, 2])
    """
    found, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rank = np.empty(len(found), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(found))
    return rank[inverse]


def groups_from_clusters(
    labels: IntArray, clusters: IntArray, class_names: tuple[str, ...]
) -> tuple[IntArray, tuple[str, ...]]:
    """Cross classes with clusters; only pairs that have samples become groups.

    Parameters
    ----------
    labels, clusters : ndarray of int64, shape (N,)
        A cluster of -1 leaves the sample unassigned.
    class_names : tuple of str

    Returns
    -------
    index : ndarray of int64, shape (N,)
    names : tuple of str
        For example ``class 5-9 / cluster 1``.
    """
    width = int(clusters.max(initial=0)) + 1
    assigned = clusters >= 0
    codes, inverse = np.unique(labels[assigned] * width + clusters[assigned], return_inverse=True)
    index = np.full(len(labels), -1, dtype=np.int64)
    index[assigned] = inverse
    return index, tuple(f"class {class_names[code // width]} / cluster {code % width}" for code in codes)


def class_names_of(groups: Groups, labels: IntArray, n_classes: int) -> tuple[str, ...]:
    """Return the names of the classes as :func:`groups_from_clusters` wrote them; a number for a class without group.

    Parameters
    ----------
    groups : Groups
    labels : ndarray of int64, shape (N,), in [0, n_classes)
    n_classes : int
    """
    names = []
    for number in range(n_classes):
        index = groups.index[(labels == number) & (groups.index >= 0)]
        name = groups.names[index[0]].rpartition(" / ")[0].removeprefix("class ") if len(index) else str(number)
        names.append(name)
    return tuple(names)
