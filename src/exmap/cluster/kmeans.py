"""k-means that is fitted on a sample where there are many vectors; the others join their nearest centre."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data

from exmap.cluster.rows import distinct_rows, nearest_center, sample_rows
from exmap.errors import DataError
from exmap.registry import CLUSTERERS

__all__ = ["SampledKMeans", "best_means"]

LARGE = 1e12  # numbers whose squares single precision may not hold


def best_means(vectors: NDArray[np.floating], n_clusters: int, random_state: Any) -> KMeans:
    """Return the best of ten fits, with no more clusters than there are different vectors.

    Vectors that differ by next to nothing may still give fewer: that is no cause for a warning. Large numbers are
    scaled for the fit, and the centres are scaled back.
    """
    number = min(n_clusters, len(distinct_rows(vectors)[0]))
    peak = float(np.abs(vectors).max(initial=0))
    scale = peak if peak > LARGE else 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(number, n_init=10, random_state=random_state).fit(vectors if scale == 1 else vectors / scale)
    means.cluster_centers_ = means.cluster_centers_ * scale
    return means


@CLUSTERERS.register(name="kmeans")
class SampledKMeans(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """The best of ten k-means fits, on at most `fit_most` samples.

    Parameters
    ----------
    n_clusters : int
    fit_most : int
        Of more samples, this many are drawn for the fit.
    random_state : int, RandomState or None

    Attributes
    ----------
    labels_ : ndarray of int64, shape (N,)
    cluster_centers_ : ndarray of float, shape (n_clusters, F)
    note_ : str
        How samples outside the fit were assigned; empty where there are none.
    """

    def __init__(self, n_clusters: int = 2, *, fit_most: int = 50_000, random_state: Any = None) -> None:
        self.n_clusters = n_clusters
        self.fit_most = fit_most
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Cluster the rows of `X`, shape (N, F), which may lie on disk.

        Raises
        ------
        DataError
            For fewer samples, or fewer of them in the fit, than clusters.
        """
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused
            vectors = validate_data(self, X, dtype=[np.float32, np.float64])
        most = min(len(vectors), self.fit_most)
        if not 1 <= self.n_clusters <= most:
            raise DataError(f"n_clusters must lie in [1, {most}] for {most} samples to fit, got {self.n_clusters}")
        random_state = check_random_state(self.random_state)
        chosen, self.note_ = vectors, ""
        if most < len(vectors):
            chosen = vectors[sample_rows(len(vectors), most, np.random.default_rng(random_state.randint(2**31)))]
            self.note_ = f"fitted on {most} of {len(vectors)} samples; the others joined their nearest centre"
        means = best_means(chosen, self.n_clusters, random_state)
        self.cluster_centers_ = means.cluster_centers_
        labels = means.labels_ if chosen is vectors else nearest_center(vectors, means.cluster_centers_)
        self.labels_ = np.asarray(labels, dtype=np.int64)
        return self
