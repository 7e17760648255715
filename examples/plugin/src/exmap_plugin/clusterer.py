"""A clusterer with scikit-learn's contract: HDBSCAN, and a sentence about what it leaves out."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import HDBSCAN

__all__ = ["Density"]


class Density(ClusterMixin, BaseEstimator):
    """Clusters are dense regions; samples in thin ones are unassigned, with the label -1.

    Parameters
    ----------
    min_cluster_size : int
        Fewest samples of a cluster.
    min_samples : int, optional
        Neighbours that make a region dense; None takes `min_cluster_size`.

    Attributes
    ----------
    labels_ : ndarray of int64, shape (N,)
    note_ : str
        How many samples are unassigned; exmap keeps it beside the clusters.
    """

    def __init__(self, min_cluster_size: int = 10, *, min_samples: int | None = None) -> None:
        self.min_cluster_size = min_cluster_size
        self.min_samples = min_samples

    def fit(self, X: Any, y: Any = None) -> Self:
        """Cluster the rows of `X`, shape (N, F)."""
        found = HDBSCAN(self.min_cluster_size, min_samples=self.min_samples, copy=True).fit(X)
        self.labels_ = np.asarray(found.labels_, dtype=np.int64)
        self.note_ = f"{int((self.labels_ < 0).sum())} of {len(self.labels_)} samples are in no dense region"
        return self
