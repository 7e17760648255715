"""Vectors in the plane, for looking at: UMAP, or principal components of few samples. Nothing is clustered on it."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from exmap.cluster.neighbors import approximate_neighbors
from exmap.cluster.rows import distinct_rows, finite_rows, row_blocks
from exmap.cluster.spectral import EXACT_BELOW
from exmap.errors import NumericalError, SettingsError

__all__ = ["embed", "embedding_method", "umap_coordinates"]

ENOUGH_FOR_UMAP = 500  # below, principal components show as much, at once
NEIGHBORS = 15  # UMAP's default
UMAP, COMPONENTS = "UMAP", "two principal components"
EPOCHS = 200  # of the layout, UMAP's default for more than 10,000 samples
NOISE = 1e-4  # of the start's deviation: UMAP stretches each axis of it, and a flat one would be none
KEPT_FIRST = 50  # principal components that UMAP is given; the rest costs time and is noise


def embed(vectors: NDArray[np.floating], *, seed: int) -> NDArray[np.float32]:
    """Return coordinates in the plane: alike vectors lie near each other.

    Above 500 samples by UMAP of the first 50 principal components (McInnes, Healy and Melville, 2018), where it is
    installed, otherwise by the first two principal components; :func:`embedding_method` says which. Distances between
    far clusters mean nothing with UMAP.

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
    if embedding_method(len(vectors)) != UMAP:
        return components(vectors, 2)
    first, place = distinct_rows(vectors)  # before rounding makes copies differ
    different = vectors if len(first) == len(vectors) else vectors[first]
    solver = "randomized" if min(different.shape) > 2 * KEPT_FIRST else "full"
    kept = max(2, min(KEPT_FIRST, *different.shape))
    return _map(components(different, kept, solver, seed), seed)[place]


def embedding_method(samples: int) -> str:
    """Return what so many samples are embedded by, in words."""
    return UMAP if samples > ENOUGH_FOR_UMAP and find_spec("umap") is not None else COMPONENTS


def umap_coordinates(
    vectors: NDArray[np.floating], n_components: int, n_neighbors: int, seed: int
) -> NDArray[np.float32]:
    """Return UMAP's coordinates, shape (N, n_components); one thread, so that the seed decides them.

    Equal vectors are embedded once and share their place: a graph of copies that know only one another has no one
    spectrum, and what UMAP makes of it is a matter of chance. Where hardly any differ, they lie by principal
    components.

    Raises
    ------
    SettingsError
        If umap-learn is not installed.
    """
    if find_spec("umap") is None:
        raise SettingsError(
            "cluster.method=umap_kmeans needs the package umap-learn, which is not installed; install it with "
            "pip install 'exmap[umap]', or choose another method, such as kmeans"
        )
    first, place = distinct_rows(vectors)
    different = vectors if len(first) == len(vectors) else vectors[first]
    if len(first) <= n_components + 2:  # UMAP's spectral start needs more; there is nothing to embed
        return components(different, n_components)[place]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that are not installed, and of graphs in several parts
        import umap

        neighbors = min(n_neighbors, len(first) - 1)
        reducer = umap.UMAP(n_components=n_components, n_neighbors=neighbors, random_state=seed, n_jobs=1)
        return np.asarray(reducer.fit_transform(different), dtype=np.float32)[place]


def _map(coordinates: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return UMAP's coordinates in the plane of different principal coordinates, shape (N, 2).

    UMAP is given its neighbours and starts from the first two components (Kobak and Linderman, 2021, "Initialization is
    critical for preserving global data structure"). Otherwise compiling its own search, and a spectral start in a graph
    of several parts, take most of the time.
    """
    if len(coordinates) <= NEIGHBORS:
        return coordinates[:, :2]
    start = coordinates[:, :2]
    noise = np.random.default_rng(seed).standard_normal(start.shape, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import umap

        reducer = umap.UMAP(
            n_neighbors=NEIGHBORS,
            precomputed_knn=_neighbors(coordinates, seed),
            init=start + np.float32(NOISE * start.std()) * noise,
            n_epochs=EPOCHS,
            random_state=seed,
            n_jobs=1,
        )
        return np.asarray(reducer.fit_transform(coordinates), dtype=np.float32)


def _neighbors(coordinates: NDArray[np.float32], seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each point's nearest ones, itself first, and how far they are."""
    if len(coordinates) < EXACT_BELOW:
        distances, found = NearestNeighbors(n_neighbors=NEIGHBORS).fit(coordinates).kneighbors(coordinates)
        return found, distances.astype(np.float32)
    found = approximate_neighbors(coordinates, NEIGHBORS, seed).astype(np.int64)
    distances = np.empty(found.shape, dtype=np.float32)
    for block in row_blocks(len(found), NEIGHBORS * coordinates.shape[1]):
        distances[block] = np.linalg.norm(coordinates[found[block]] - coordinates[block, None], axis=2)
    return found, distances


def components(vectors: NDArray[np.floating], count: int, solver: str = "full", seed: int = 0) -> NDArray[np.float32]:
    """Return the first principal components, shape (N, count); zeros beyond those there are."""
    found = np.zeros((len(vectors), count), dtype=np.float32)
    kept = min(count, *vectors.shape)
    if kept and (vectors != vectors[0]).any():
        found[:, :kept] = PCA(kept, svd_solver=solver, random_state=seed).fit_transform(vectors)
    return found
