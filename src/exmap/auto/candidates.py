"""The groupings that are weighed against one another, made with as little work as possible.

Representation (heatmaps of three sizes, features) x scope x clustering, as the ExMap paper varies them, with the error
set and the classes alone. What clusterings share is computed once: a neighbour graph and its eigenvectors serve every
spectral clustering of a representation and scope.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from exmap.auto.effort import Effort
from exmap.cluster.graph import default_neighbors, ordered_graph
from exmap.cluster.kmeans import SampledKMeans
from exmap.cluster.rows import distinct_rows
from exmap.cluster.spectral import EXACT_BELOW
from exmap.cluster.spectrum import cluster_qr, eigengap, laplacian_spectrum
from exmap.explain import reduce_heatmaps
from exmap.groups import ClassGroups, ErrorSetGroups, crossed_groups, scaled_features
from exmap.groups.assign import FEWEST_TO_CLUSTER, by_size
from exmap.records import Explained, Groups, IntArray, Listener, Progress, silent
from exmap.runtime import child_seed

__all__ = ["AUTO", "Candidate", "Candidates", "find_candidates"]

AUTO = "auto"  # source of the chosen grouping
SMALLEST_SIDE = 3  # of heatmaps, the smallest of the paper's sweep
EIGENVALUES = 10
SPECTRAL: dict[str, Callable[[NDArray[np.float64]], int]] = {  # a setting, and how many clusters it takes
    "gap=relative": lambda values: eigengap(values, relative=True),
    "gap=absolute": lambda values: eigengap(values),
    "n_clusters=2": lambda values: 2,
    "n_clusters=4": lambda values: 4,
}
KMEANS = {"method=kmeans,n_clusters=2": 2, "method=kmeans,n_clusters=8": 8}


@dataclass(frozen=True)
class Candidate:
    """One grouping.

    Attributes
    ----------
    name : str
        As ``exmap bench`` writes sources of groups, for example ``exmap[size=7,scope=global,gap=relative]``.
    representation : str
        ``heatmaps 7``, ``features``, ``exchange colour``, ``errors`` or ``classes``.
    groups : Groups
    also : tuple of str
        Names of candidates that turned out as the same grouping.
    """

    name: str
    representation: str
    groups: Groups
    also: tuple[str, ...] = ()

    @property
    def judges(self) -> bool:
        """Whether other candidates are judged by its groups.

        Only groups of heatmaps and of exchanged properties do: groups of features follow the prediction, and so hold
        the errors themselves.
        """
        return self.representation.startswith(("heatmaps", "exchange"))


@dataclass(frozen=True)
class Candidates:
    """All groupings of one split, and the neighbour graphs of its heatmaps.

    Attributes
    ----------
    each : tuple of Candidate
        No two of them the same grouping.
    graphs : dict of (str, int) to (ndarray of int64, csr_array)
        By representation and class: the rows of its samples, of equal ones the first, and how they are neighbours.
    """

    each: tuple[Candidate, ...]
    graphs: dict[tuple[str, int], tuple[IntArray, sparse.csr_array]]

    def names(self) -> dict[str, Candidate]:
        """Return the candidates by all their names."""
        return {name: candidate for candidate in self.each for name in (candidate.name, *candidate.also)}


def find_candidates(
    explained: Explained,
    *,
    seed: int,
    features: bool = True,
    effort: Effort | None = None,
    listen: Listener = silent,
) -> Candidates:
    """Make the grid of groupings.

    Parameters
    ----------
    explained : Explained
        With heatmaps.
    seed : int
    features : bool
        Whether features are clustered, too; to look for shortcuts, heatmaps are enough.
    effort : Effort, optional
        How many sizes of heatmaps and which clusterings there are.
    listen : Listener
    """
    effort = effort or Effort()
    found = _Found()
    labels, classes = explained.labels, np.unique(explained.labels)
    graphs: dict[tuple[str, int], tuple[IntArray, sparse.csr_array]] = {}
    representations = list(_representations(explained, features, effort.sizes))
    done, total = 0, 2 * len(representations)
    for source, representation, vectors, usable in representations:
        for scope in ("global", "local"):
            parts = [usable] if scope == "global" else [usable & (labels == label) for label in classes]
            clusters: dict[str, IntArray] = {}
            for number, members in enumerate(parts):
                rows = np.flatnonzero(members)
                first, graph, made = _clusterings(vectors[rows], child_seed(seed, representation, scope, number))
                if scope == "local" and source == "exmap" and graph is not None:
                    graphs[representation, int(classes[number])] = (rows[first], graph)
                for setting, values in made.items():
                    clusters.setdefault(setting, np.full(len(labels), -1, dtype=np.int64))[rows] = values
            size = f"size={representation.rpartition(' ')[2]}," if source == "exmap" else ""
            for setting, values in clusters.items():
                if effort.clusterings is None or setting in effort.clusterings:
                    groups = crossed_groups(labels, values, explained.class_names, source=AUTO)
                    found.add(f"{source}[{size}scope={scope},{setting}]", representation, groups)
            done += 1
            listen(Progress("candidates", done, total, "clusterings", representation))
    found.add("error_set", "errors", ErrorSetGroups().infer(explained, seed=seed))
    found.add("classes", "classes", ClassGroups().infer(explained, seed=seed))
    return Candidates(found.candidates(), graphs)


class _Found:
    """Candidates as they turn up; those that turn out as the same grouping are one."""

    def __init__(self) -> None:
        self._by_partition: dict[bytes, Candidate] = {}

    def add(self, name: str, representation: str, groups: Groups) -> None:
        key = _partition(groups.index)
        there = self._by_partition.get(key)
        new = Candidate(name, representation, groups) if there is None else replace(there, also=(*there.also, name))
        self._by_partition[key] = new

    def candidates(self) -> tuple[Candidate, ...]:
        return tuple(self._by_partition.values())


def _partition(index: IntArray) -> bytes:
    """Return what two groupings share that differ in the numbers of their groups alone."""
    _, first, inverse = np.unique(index, return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first))[inverse]
    return bytes(np.where(index >= 0, numbers, -1).tobytes())


def _representations(
    explained: Explained, features: bool, sizes: int
) -> Iterator[tuple[str, str, NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield a source's name, what it clusters, the vectors, and which of them are finite."""
    maps = explained.maps()
    side = min(maps.values.shape[2:])
    sides = [size for size in dict.fromkeys((side // 2, side // 4, SMALLEST_SIDE)) if SMALLEST_SIDE <= size < side]
    for size in (sides or [side])[:sizes]:
        yield "exmap", f"heatmaps {size}", reduce_heatmaps(maps.values, size), maps.finite
    if features:
        yield "george", "features", scaled_features(explained.features), np.ones(len(explained), dtype=np.bool_)


def _clusterings(
    vectors: NDArray[np.float32], seed: int
) -> tuple[IntArray, sparse.csr_array | None, dict[str, IntArray]]:
    """Return the rows that differ, their neighbour graph, and each clustering's labels of all rows.

    Equal vectors count once and share a cluster; those too few to be clustered are one.
    """
    first, place = distinct_rows(vectors)
    made = dict.fromkeys([*SPECTRAL, *KMEANS], np.zeros(len(vectors), dtype=np.int64))
    if (n := len(first)) < FEWEST_TO_CLUSTER:
        return first, None, made
    different = vectors if n == len(vectors) else vectors[first]
    graph, order = ordered_graph(different, min(default_neighbors(n), n), approximate=n >= EXACT_BELOW, seed=seed)
    spectrum = laplacian_spectrum(graph, EIGENVALUES, seed, order)
    cut: dict[int, IntArray] = {}
    for setting, count in SPECTRAL.items():
        k = min(count(spectrum.values[:EIGENVALUES]), spectrum.vectors.shape[1])
        if k not in cut:
            cut[k] = by_size(cluster_qr(spectrum.vectors[:, :k])[place])
        made[setting] = cut[k]
    for setting, k in KMEANS.items():
        if k < n:
            made[setting] = by_size(SampledKMeans(k, random_state=seed).fit(different).labels_[place])
    return first, graph, made
