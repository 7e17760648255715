"""A map of many vectors: two coordinates each, for looking at."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

__all__ = ["plane"]

PCA_BELOW = 500  # vectors: fewer have too few neighbours for UMAP to show more than principal components do
DIMENSIONS = 50  # that are kept for UMAP; its neighbours are found far quicker there
NEIGHBORS = 15


def plane(vectors: NDArray[np.float32], *, seed: int) -> tuple[NDArray[np.float32], str]:
    """Place vectors in the plane so that similar ones are near each other.

    Parameters
    ----------
    vectors : ndarray of float32, shape (N, F)
    seed : int

    Returns
    -------
    places : ndarray of float32, shape (N, 2)
        By UMAP (McInnes, Healy and Melville, 2018) on the first 50 principal components; with fewer than 500 vectors
        the first two principal components.
    method : str
        ``UMAP`` or ``PCA``.
    """
    n, features = vectors.shape
    kept = min(DIMENSIONS if n >= PCA_BELOW else 2, n, features)
    places = np.zeros((n, 2), dtype=np.float32)
    if n < 2 or not np.ptp(vectors, axis=0).any():
        return places, "PCA"
    components = PCA(kept, svd_solver="auto", random_state=seed).fit_transform(vectors)
    if n < PCA_BELOW:
        places[:, :kept] = components
        return places, "PCA"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that are not installed, and of graphs in several parts
        from umap import UMAP

        reducer = UMAP(n_components=2, n_neighbors=NEIGHBORS, random_state=seed, n_jobs=1)
        return np.asarray(reducer.fit_transform(components), dtype=np.float32), "UMAP"
