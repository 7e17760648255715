"""Spectral clustering whose number of clusters is read off the largest gap between eigenvalues (ExMap, section 4.2)."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from exmap.cluster.graph import default_neighbors, few_neighbors, ordered_graph
from exmap.cluster.libraries import search_by
from exmap.cluster.rows import Rows, SomeRows, distinct_rows
from exmap.cluster.spectrum import cluster_qr, eigengap, laplacian_spectrum
from exmap.errors import DataError, SettingsError, unknown_name
from exmap.records import IntArray
from exmap.registry import CLUSTERERS

__all__ = ["SpectralEigengap"]

GAPS = ("relative", "absolute")
EXACT_BELOW = 15_000  # samples, of which all pairs are compared


@CLUSTERERS.register(name="spectral")
class SpectralEigengap(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Spectral clustering on a nearest-neighbour graph, with the eigengap and labels by pivoted QR.

    Parameters
    ----------
    n_clusters : int, optional
        None takes the number from the eigengap.
    gap : "relative" or "absolute"
        Which eigengap; "absolute" is the ExMap authors'. See :func:`~exmap.cluster.spectrum.eigengap`.
    n_neighbors : int, optional
        Counts the sample itself. None is ``int(ln N)``.
    n_eigenvalues : int
        How many of the smallest eigenvalues the gap is looked for in.
    exact_below : int
        With this many samples or more, neighbours are searched in near-linear time and some are missed; with fewer
        all pairs are compared.
    search : "cells", "faiss" or "cuvs"
        What searches in near-linear time: exmap itself, or a library that is installed besides, on a GPU where it finds
        one.
    random_state : int, RandomState or None
        Starting vector of the eigenvalue iteration, and the approximate search.

    Of equal samples one is clustered, and the others share its cluster. Where there are few kinds of samples, and of
    each enough to be one another's neighbours, each kind is a cluster.

    Attributes
    ----------
    labels_ : ndarray of int64, shape (N,)
    n_clusters_ : int
    eigenvalues_ : ndarray of float64, ascending
    n_components_ : int
        Connected components of the graph.
    residual_ : float
        How far the eigenvalue iteration has converged: the largest length of ``L v - value * v``.
    note_ : str
        Why this many clusters, in one sentence, and whether neighbours were searched approximately.

    Examples
    --------
    >>> points = np.concatenate([np.random.default_rng(0).normal(c, 0.1, (50, 2)) for c in (0, 5, 9)])
    >>> SpectralEigengap(random_state=0).fit(points).n_clusters_
    3
    """

    def __init__(
        self,
        n_clusters: int | None = None,
        *,
        gap: str = "relative",
        n_neighbors: int | None = None,
        n_eigenvalues: int = 10,
        exact_below: int = EXACT_BELOW,
        search: str = "cells",
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.gap = gap
        self.n_neighbors = n_neighbors
        self.n_eigenvalues = n_eigenvalues
        self.exact_below = exact_below
        self.search = search
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Cluster the rows of `X`, shape (N, F), which may lie on disk, also as half-precision numbers.

        Raises
        ------
        DataError
            For fewer samples than clusters or neighbours.
        """
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused
            vectors = validate_data(self, X, dtype=[np.float32, np.float64, np.float16], ensure_min_samples=2)
        n = len(vectors)
        if self.n_clusters is not None and not 1 <= self.n_clusters <= n:
            raise DataError(f"n_clusters must lie in [1, {n}] for {n} samples, got {self.n_clusters}")
        if self.gap not in GAPS:
            raise SettingsError(unknown_name("gap", str(self.gap), GAPS))
        search_by(self.search)  # an unknown one is refused before any work
        if self.n_neighbors is not None and not 2 <= self.n_neighbors <= n:
            raise DataError(few_neighbors(self.n_neighbors, n))
        first, place = distinct_rows(vectors)  # copies that know only one another would be clusters of nothing
        different = vectors if len(first) == n else SomeRows(vectors, first)
        seed = int(check_random_state(self.random_state).randint(2**31))
        self.labels_ = self._fitted(different, np.bincount(place), seed)[place]
        return self

    def _fitted(self, vectors: Rows, copies: NDArray[np.int64], seed: int) -> IntArray:
        """Return the clusters of vectors of which no two are equal, given how often there is each."""
        n, samples = len(vectors), int(copies.sum())

        def neighbors_of(count: int) -> int:
            return default_neighbors(count) if self.n_neighbors is None else self.n_neighbors

        enough = copies.min() >= neighbors_of(samples)
        by_copies = self.n_clusters is None and n <= self.n_eigenvalues and enough
        if n == 1 or by_copies:  # nobody's neighbours are of another kind
            self.eigenvalues_, self.n_components_, self.residual_ = np.zeros(n), n, 0.0
            self.n_clusters_ = n
            self.note_ = "1 cluster: all samples are equal" if n == 1 else f"{n} clusters of equal samples each"
            return np.arange(n, dtype=np.int64)
        asked = None if self.n_clusters is None else min(self.n_clusters, n)
        neighbors = min(neighbors_of(n), n)
        wanted = max(self.n_eigenvalues, asked or 0)
        approximate = n >= self.exact_below
        graph, order = ordered_graph(vectors, neighbors, approximate=approximate, seed=seed, search=self.search)
        spectrum = laplacian_spectrum(graph, wanted, seed, order)
        self.eigenvalues_ = spectrum.values
        self.n_components_ = spectrum.components
        self.residual_ = spectrum.residual
        first = spectrum.values[: self.n_eigenvalues]
        self.n_clusters_ = eigengap(first, relative=self.gap == "relative") if asked is None else asked
        self.note_ = self._note(first) + ("; neighbours were searched approximately" if approximate else "")
        return cluster_qr(spectrum.vectors[:, : self.n_clusters_])

    def _note(self, values: np.ndarray) -> str:
        if self.n_clusters is not None:
            return f"{self.n_clusters} clusters were asked for"
        k = self.n_clusters_
        if self.n_components_ > 1:
            why = (
                "the gap only counts the graph's components"
                if k == self.n_components_
                else f"the graph falls into {self.n_components_} components, and as many eigenvalues are zero"
            )
            return f"{k} clusters; {why}: raise n_neighbors, or give n_clusters"
        if len(values) <= k:
            return f"{k} clusters; too few samples for a gap"
        return (
            f"{k} clusters: the {self.gap} gap between eigenvalues {k} ({values[k - 1]:.2g}) and {k + 1} "
            f"({values[k]:.2g}) is the largest"
        )
