"""k-means on a UMAP embedding: GEORGE's way (Sohoni et al., 2020), an option of ExMap (supplement, section 2.2)."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from exmap.cluster.embedding import umap_coordinates
from exmap.cluster.graph import default_neighbors
from exmap.cluster.kmeans import best_means
from exmap.cluster.neighbors import principal_coordinates
from exmap.cluster.rows import nearest_center, sample_rows
from exmap.errors import DataError
from exmap.registry import CLUSTERERS

__all__ = ["UmapKMeans"]


@CLUSTERERS.register(name="umap_kmeans")
class UmapKMeans(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Embed with UMAP, then cluster with k-means.

    Parameters
    ----------
    n_clusters : int
    n_components : int
        Dimensions of the embedding.
    n_neighbors : int, optional
        None is ``int(ln N)``.
    fit_most : int
        Of more samples, this many are drawn and embedded; the others join the nearest of them.
    random_state : int, RandomState or None

    Attributes
    ----------
    labels_ : ndarray of int64, shape (N,)
    embedding_ : ndarray of float32, shape (min(N, fit_most), n_components)
    note_ : str
        How samples that are not embedded were assigned; empty where there are none.
    """

    def __init__(
        self,
        n_clusters: int = 2,
        *,
        n_components: int = 2,
        n_neighbors: int | None = None,
        fit_most: int = 20_000,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.fit_most = fit_most
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Cluster the rows of `X`, shape (N, F), which may lie on disk.

        Raises
        ------
        DataError
            For fewer samples than clusters, or not more samples than neighbours.
        """
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused
            vectors = validate_data(self, X, dtype=[np.float32, np.float64], ensure_min_samples=2)
        n = min(len(vectors), self.fit_most)
        if not 1 <= self.n_clusters <= n:
            raise DataError(f"n_clusters must lie in [1, {n}] for {n} samples, got {self.n_clusters}")
        neighbors = min(default_neighbors(n), n - 1) if self.n_neighbors is None else self.n_neighbors
        if not 1 < neighbors < n and n > 2:
            raise DataError(
                f"n_neighbors must lie in [2, {n - 1}] for {n} samples, got {neighbors}; lower cluster.n_neighbors or "
                "give more samples"
            )
        seed = int(check_random_state(self.random_state).randint(2**31))
        rng = np.random.default_rng(seed)
        rows = sample_rows(len(vectors), n, rng)
        every = n == len(vectors)
        self.embedding_ = umap_coordinates(vectors if every else vectors[rows], self.n_components, neighbors, seed)
        means = best_means(self.embedding_, self.n_clusters, seed)
        self.labels_, self.note_ = means.labels_.astype(np.int64), ""
        if not every:
            points = principal_coordinates(vectors, rng)
            self.labels_ = self.labels_[nearest_center(points, points[rows])]
            self.note_ = f"embedded {n} of {len(vectors)} samples; the others joined the nearest embedded one"
        return self
