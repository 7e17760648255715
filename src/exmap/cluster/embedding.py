"""Vectors in the plane, for looking at: UMAP, or principal components of few samples. Nothing is clustered on it."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from exmap.cluster.rows import finite_rows
from exmap.errors import NumericalError

__all__ = ["embed", "umap_coordinates"]

ENOUGH_FOR_UMAP = 500  # below, principal components show as much, at once
NEIGHBORS = 15  # UMAP's default
KEPT_FIRST = 50  # principal components that UMAP is given; the rest costs time and is noise


def embed(vectors: NDArray[np.floating], *, seed: int) -> NDArray[np.float32]:
    """Return coordinates in the plane: alike vectors lie near each other.

    Above 500 samples by UMAP of the first 50 principal components (McInnes, Healy and Melville, 2018), otherwise by the
    first two principal components. Distances between far clusters mean nothing with UMAP.

    Parameters
    ----------
    vectors : ndarray of float, shape (N, F)
    seed : int
        The same seed gives the same coordinates.

    Returns
    -------
    ndarray of float32, shape (N, 2)

    Raises
    ------
    NumericalError
        If a vector is not finite.
    """
    if broken := int((~finite_rows(vectors)).sum()):
        raise NumericalError(
            f"an embedding needs finite numbers, but {broken} of {len(vectors)} samples hold NaN or infinity; leave "
            "them out"
        )
    samples, features = vectors.shape
    many = samples > ENOUGH_FOR_UMAP
    components = min(KEPT_FIRST if many else 2, samples, features)
    if components == 0:
        return np.zeros((samples, 2), dtype=np.float32)
    spread = bool((vectors != vectors[0]).any())
    solver = "randomized" if many and min(samples, features) > 2 * KEPT_FIRST else "full"
    if spread:
        found = PCA(components, svd_solver=solver, random_state=seed).fit_transform(vectors)
    else:
        found = np.zeros((samples, components))
    if not many or not spread:
        flat = np.zeros((samples, 2), dtype=np.float32)
        flat[:, : min(components, 2)] = found[:, :2]
        return flat
    return umap_coordinates(found.astype(np.float32), 2, NEIGHBORS, seed)


def umap_coordinates(
    vectors: NDArray[np.floating], n_components: int, n_neighbors: int, seed: int
) -> NDArray[np.float32]:
    """Return UMAP's coordinates, shape (N, n_components); one thread, so that the seed decides them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that are not installed, and of graphs in several parts
        from umap import UMAP

        reducer = UMAP(n_components=n_components, n_neighbors=n_neighbors, random_state=seed, n_jobs=1)
        return np.asarray(reducer.fit_transform(vectors), dtype=np.float32)
