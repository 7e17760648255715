"""Nearest neighbours of many vectors in near-linear time: principal axes, small cells, and a search of nearby cells.

The search is that of an inverted file (Jegou, Douze and Schmid, 2011, "Product quantization for nearest neighbor
search"), with cells from hierarchical k-means (Nister and Stewenius, 2006, "Scalable recognition with a vocabulary
tree"). All vectors of a cell are compared with the same candidates, which is one matrix product.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.extmath import randomized_svd

from exmap.cluster.rows import nearest_center, row_blocks, sample_rows
from exmap.records import IntArray
from exmap.runtime import worker_threads

__all__ = ["approximate_neighbors", "principal_coordinates", "search_cells"]

AXES = 128
SAMPLE = 4_000  # rows that the axes are fitted on
CELL, LARGEST_CELL = 64, 127  # vectors in a cell: what is aimed at, and what is left whole
BRANCHES, ROUNDS, FITTED = 128, 3, 32  # of the k-means that makes cells: most centres, rounds, vectors per centre
CANDIDATES = 4_000  # vectors that each vector is compared with
QUERIES = 256  # of a cell of equal vectors at once


def principal_coordinates(vectors: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return centred coordinates along the first principal axes of a sample.

    Parameters
    ----------
    vectors : ndarray of float, shape (N, F)
        May lie on disk.
    rng : Generator

    Returns
    -------
    ndarray of float32, shape (N, min(AXES, F))
    """
    sample = np.asarray(vectors[sample_rows(len(vectors), SAMPLE, rng)], dtype=np.float32)
    mean = sample.mean(axis=0)
    axes = randomized_svd(sample - mean, min(AXES, *sample.shape), random_state=int(rng.integers(2**31)))[2].T
    result = np.empty((len(vectors), axes.shape[1]), dtype=np.float32)
    for block in row_blocks(*vectors.shape):
        result[block] = (vectors[block] - mean) @ axes
    return result


def approximate_neighbors(vectors: NDArray[np.floating], n_neighbors: int, seed: int) -> NDArray[np.int32]:
    """Return each vector's nearest ones among those of the cells around it.

    Parameters
    ----------
    vectors : ndarray of float, shape (N, F)
        May lie on disk; it is read once, in order.
    n_neighbors : int in [1, N]
        Counts the vector itself; among equal vectors it may be missing.
    seed : int
        Of the samples that axes and cells are fitted on. The number of threads does not change the search.

    Returns
    -------
    ndarray of int32, shape (N, n_neighbors)
        In no order; of different vectors each.
    """
    return search_cells(vectors, n_neighbors, seed)[0]


def search_cells(vectors: NDArray[np.floating], n_neighbors: int, seed: int) -> tuple[NDArray[np.int32], IntArray]:
    """Return what :func:`approximate_neighbors` returns, and an order of all vectors in which neighbours lie together.

    Returns
    -------
    found : ndarray of int32, shape (N, n_neighbors)
    order : ndarray of int64, shape (N,)
        Cell by cell.
    """
    with worker_threads() as pool:
        return _search(vectors, n_neighbors, seed, pool)


def _search(
    vectors: NDArray[np.floating], n_neighbors: int, seed: int, pool: ThreadPoolExecutor
) -> tuple[NDArray[np.int32], IntArray]:
    rng = np.random.default_rng(seed)
    points = principal_coordinates(vectors, rng)
    order, starts = _cells(points, rng)
    points = points[order]
    sizes = np.diff(starts)
    squares = np.einsum("ij,ij->i", points, points)
    centers = np.add.reduceat(points, starts[:-1], axis=0) / sizes[:, None].astype(np.float32)
    most = max(CANDIDATES, n_neighbors)
    wanted = min(len(sizes), max(4 * most // CELL, n_neighbors))
    index = NearestNeighbors(n_neighbors=wanted, algorithm="brute").fit(centers)
    nearby = index.kneighbors(centers, return_distance=False)
    found = np.empty((len(points), n_neighbors), dtype=np.int32)

    def search(cell: int) -> None:
        cells = nearby[cell][: np.searchsorted(np.cumsum(sizes[nearby[cell]]), most) + 1]
        candidates = np.concatenate([np.arange(starts[c], starts[c + 1]) for c in cells])[:most]
        others = points[candidates].T
        for start in range(starts[cell], starts[cell + 1], QUERIES):
            block = slice(start, min(start + QUERIES, starts[cell + 1]))
            distances = points[block] @ others
            distances *= -2
            distances += squares[candidates]
            best = np.argpartition(distances, n_neighbors - 1, axis=1)[:, :n_neighbors]
            found[block] = order[candidates[best]]

    for _ in pool.map(search, range(len(sizes))):
        pass
    result = np.empty_like(found)
    result[order] = found
    return result, order


def _cells(points: NDArray[np.float32], rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Return an order of the points in which cells follow each other, and where each starts, with the end.

    Parts are split by k-means until they are small; a part of equal points stays whole.
    """
    order = np.arange(len(points))
    starts, todo = [len(points)], [(0, len(points))]
    while todo:
        start, stop = todo.pop()
        rows = order[start:stop]
        if len(rows) > LARGEST_CELL:
            branch = nearest_center(points[rows], _centers(points[rows], min(BRANCHES, len(rows) // CELL), rng))
            sizes = np.bincount(branch)
            if sizes.max() < len(rows):
                order[start:stop] = rows[np.argsort(branch, kind="stable")]
                ends = start + np.cumsum(sizes)
                todo += [(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True) if size]
                continue
        starts.append(start)
    return order, np.sort(starts)


def _centers(points: NDArray[np.float32], number: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return centres of k-means after a few rounds on a sample.

    Random members instead would be far from a small cluster in noisy dimensions, and scatter it over many cells.
    """
    sample = points[sample_rows(len(points), FITTED * number, rng)]
    centers = sample[rng.choice(len(sample), number, replace=False)]
    for _ in range(ROUNDS):
        order = np.argsort(nearest := nearest_center(sample, centers), kind="stable")
        kept, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts, axis=0)
        centers[kept] = sums / np.bincount(nearest)[kept, None].astype(np.float32)
    return centers
