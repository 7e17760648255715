"""From a clusterer to named groups: local or global scope, crossed with the class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from exmap.cluster.methods import as_clusterer, make_clusterer
from exmap.cluster.rows import distinct_rows, finite_rows
from exmap.errors import DataError, NumericalError
from exmap.records import Clusters, Groups, IntArray
from exmap.runtime import child_seed
from exmap.settings import ClusterSettings

__all__ = ["cluster_samples", "crossed_groups"]

FEWEST_TO_CLUSTER = 4  # a class with fewer samples is one cluster


def cluster_samples(
    vectors: NDArray[np.floating],
    labels: IntArray,
    settings: ClusterSettings,
    *,
    seed: int,
    usable: NDArray[np.bool_] | None = None,
    clusterer: Any = None,
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
    clusterer : object, optional
        With scikit-learn's ``fit(X)`` and ``labels_``, in place of the one that the settings name; it is cloned.

    Returns
    -------
    Clusters
        Clusters of each fit are numbered by falling size. Equal vectors share a cluster, so vectors that are all equal
        are one, and there are never more clusters than different vectors.

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
        found, note = _cluster(chosen, settings, child_seed(seed, name), clusterer)
        result[rows] = found
        notes.append({"samples_of": name, "n_samples": len(rows), **note})
    return Clusters(result, settings.scope, tuple(notes))


def _cluster(
    vectors: NDArray[np.floating], settings: ClusterSettings, seed: int, given: Any
) -> tuple[IntArray, dict[str, Any]]:
    clusterer = make_clusterer(settings, seed) if given is None else as_clusterer(given, seed)
    if len(vectors) < FEWEST_TO_CLUSTER:
        return np.zeros(len(vectors), dtype=np.int64), {"n_clusters": 1, "note": "too few samples to cluster"}
    if (settings.n_clusters or 0) > len(vectors):
        raise DataError(
            f"cluster.n_clusters must be at most the number of samples that are clustered together, {len(vectors)}, "
            f"got {settings.n_clusters}; lower it, or set cluster.scope=global"
        )
    first, place = distinct_rows(vectors)
    kinds, wanted = len(first), getattr(clusterer, "n_clusters", None)
    copies = f"{len(vectors) - kinds} of {len(vectors)} samples are copies of others and share their cluster"
    few = kinds <= (FEWEST_TO_CLUSTER - 1 if wanted is None else wanted) and given is None
    if kinds < len(vectors) and (few or kinds == 1):  # each kind is a cluster
        return by_size(place), {"n_clusters": kinds, "note": copies}
    labels, note = _fitted(vectors, clusterer)
    if kinds < len(vectors) and given is None:
        note["note"] = "; ".join(filter(None, (note["note"], copies)))
    return labels, note


def _fitted(vectors: NDArray[np.floating], clusterer: Any) -> tuple[IntArray, dict[str, Any]]:
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
    """Return labels numbered from 0 by falling size; equal sizes keep their order, and negative labels become -1.

    Examples
    --------
    >>> by_size(np.array([5, 2, 2, 9, -1]))
    array([ 1,  0,  0,  2, -1])
    """
    found, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    order = order[found[order] >= 0]
    rank = np.full(len(found), -1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[inverse]


def crossed_groups(
    labels: IntArray,
    parts: IntArray,
    class_names: Sequence[str],
    *,
    source: str,
    labels_used: tuple[str, ...] = ("class labels",),
    part_names: Sequence[str] | None = None,
    clusters: Clusters | None = None,
) -> Groups:
    """Cross classes with clusters, or other parts; only pairs that have samples become groups.

    Parameters
    ----------
    labels, parts : ndarray of int64, shape (N,)
        A part of -1 leaves the sample unassigned.
    class_names : sequence of str
    source : str
        Name of the source of the groups.
    labels_used : tuple of str
    part_names : sequence of str, optional
        By default ``cluster 0``, ``cluster 1`` and so on.
    clusters : Clusters, optional
        The clustering behind the parts.

    Examples
    --------
    >>> groups = crossed_groups(np.array([0, 0, 1]), np.array([0, 1, 1]), ("cat", "dog"), source="mine")
    >>> groups.names, groups.classes, groups.parts
    (('class cat / cluster 0', 'class cat / cluster 1', 'class dog / cluster 1'), (0, 0, 1), (0, 1, 1))
    """
    width = int(parts.max(initial=0)) + 1
    assigned = parts >= 0
    codes, inverse = np.unique(labels[assigned] * width + parts[assigned], return_inverse=True)
    index = np.full(len(labels), -1, dtype=np.int64)
    index[assigned] = inverse
    pairs = [divmod(int(code), width) for code in codes]
    names = [f"cluster {part}" if part_names is None else part_names[part] for _, part in pairs]
    return Groups(
        index,
        tuple(f"class {class_names[label]} / {name}" for (label, _), name in zip(pairs, names, strict=True)),
        source,
        labels_used,
        clusters,
        classes=tuple(label for label, _ in pairs),
        parts=tuple(part for _, part in pairs),
    )
