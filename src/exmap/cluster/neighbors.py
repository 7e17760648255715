"""Nearest neighbours of many vectors in near-linear time: principal axes, small cells, and a search of nearby cells.

The search is that of an inverted file (Jegou, Douze and Schmid, 2011, "Product quantization for nearest neighbor
search"), with cells from hierarchical k-means (Nister and Stewenius, 2006, "Scalable recognition with a vocabulary
tree"). All vectors of a cell are compared with the same candidates, which is one matrix product. Which cells are near
is the same question about their centres, and has the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from exmap.cluster.rows import Rows, nearest_center, row_blocks, sample_rows, smallest
from exmap.cluster.sharing import sharing
from exmap.records import IntArray, Listener, Progress, silent
from exmap.runtime import worker_threads

__all__ = ["approximate_neighbors", "principal_coordinates", "search_cells"]

AXES = 128
SAMPLE = 4_000  # rows that the axes are fitted on
CELL, LARGEST_CELL = 64, 127  # vectors in a cell: what is aimed at, and what is left whole
BRANCHES, ROUNDS, FITTED = 128, 3, 32  # of the k-means that makes cells: most centres, rounds, vectors per centre
CANDIDATES = 4_000  # vectors that each vector is compared with
ALL_CANDIDATES = 20_000  # centres of cells; up to so many are all compared with one another
QUERIES = 256  # vectors that are compared at once
CELLS_AT_ONCE = 64  # of which the points are searched by one thread, or one task
TASK, UNIT = "neighbours", "samples"  # of what progress says
COLUMNS = 16  # that are brought into another order at once: a line of the processor's cache


def principal_coordinates(vectors: Rows, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return centred coordinates along the first principal axes of a sample.

    Parameters
    ----------
    vectors : ndarray of float, shape (N, F)
        May lie on disk; it is read once, in order.
    rng : Generator

    Returns
    -------
    ndarray of float32, shape (N, min(AXES, F))
    """
    sample = np.asarray(vectors[sample_rows(len(vectors), SAMPLE, rng)], dtype=np.float32)
    mean = sample.mean(axis=0)
    axes = randomized_svd(sample - mean, min(AXES, *sample.shape), random_state=int(rng.integers(2**31)))[2].T
    result = np.empty((len(vectors), axes.shape[1]), dtype=np.float32)

    def project(block: slice) -> None:
        result[block] = (vectors[block] - mean) @ axes

    with worker_threads() as pool:
        for _ in pool.map(project, row_blocks(*vectors.shape)):
            pass
    return result


def approximate_neighbors(vectors: Rows, n_neighbors: int, seed: int) -> NDArray[np.int32]:
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
        The nearest first; of different vectors each.
    """
    return search_cells(vectors, n_neighbors, seed)[0]


def search_cells(vectors: Rows, n_neighbors: int, seed: int) -> tuple[NDArray[np.int32], IntArray]:
    """Return what :func:`approximate_neighbors` returns, and an order of all vectors in which neighbours lie together.

    Blocks of cells are searched by threads of this process, or by whatever :func:`~exmap.cluster.sharing.shared_out`
    names.

    Returns
    -------
    found : ndarray of int32, shape (N, n_neighbors)
    order : ndarray of int64, shape (N,)
        Cell by cell.
    """
    rng, ways = np.random.default_rng(seed), sharing()
    n = len(vectors)
    ways.listen(Progress(TASK, 0, n, UNIT, "principal axes"))
    points = principal_coordinates(vectors, rng)
    ways.listen(Progress(TASK, 0, n, UNIT, "cells"))
    with worker_threads() as pool:
        cells = _searchable(points, n_neighbors, rng, pool)
    with closing(ways.map_blocks(_searched, cells, cells.blocks())) as searched:
        return _gathered(cells, searched, ways.listen), cells.order


@dataclass(frozen=True, eq=False)
class _Cells:
    """Points cell by cell, and all that a search of them needs.

    Attributes
    ----------
    points : ndarray of float32, shape (N, A)
    halves : ndarray of float32, shape (N,)
        Half of their squared lengths.
    order : ndarray of int64, shape (N,)
        Which vector each is.
    starts : ndarray of int64, shape (cells + 1,)
        Where each cell starts, with the end.
    nearby : ndarray of int32, shape (cells, m)
        The cells around each, the nearest first.
    most, n_neighbors : int
        Points that each is compared with, and how many are found.
    """

    points: NDArray[np.float32]
    halves: NDArray[np.float32]
    order: IntArray
    starts: IntArray
    nearby: NDArray[np.int32]
    most: int
    n_neighbors: int

    def blocks(self) -> list[range]:
        """Return the numbers of all cells, some at a time."""
        count = len(self.starts) - 1
        return [range(start, min(start + CELLS_AT_ONCE, count)) for start in range(0, count, CELLS_AT_ONCE)]


def _searchable(
    points: NDArray[np.float32], n_neighbors: int, rng: np.random.Generator, pool: ThreadPoolExecutor
) -> _Cells:
    """Bring points into cells, and find the cells near each."""
    order, starts = _cells(points, int(rng.integers(2**31)), pool)
    for column in range(0, points.shape[1], COLUMNS):  # a few columns at a time: no second copy of all points
        points[:, column : column + COLUMNS] = points[order, column : column + COLUMNS]
    sizes = np.diff(starts)
    most = max(CANDIDATES, n_neighbors)
    sums = np.add.reduceat(points, starts[:-1], axis=0)
    centers = np.asarray(sums / sizes[:, None], dtype=np.float32)
    nearby = _near_cells(centers, min(len(sizes), max(4 * most // CELL, n_neighbors)), rng, pool)
    halves = 0.5 * np.einsum("ij,ij->i", points, points)
    return _Cells(points, halves, order, starts, nearby, most, n_neighbors)


def _gathered(cells: _Cells, searched: Iterable[NDArray[np.int32]], listen: Listener) -> NDArray[np.int32]:
    """Return the neighbours of each vector, of what was found block by block."""
    n = len(cells.points)
    result = np.empty((n, cells.n_neighbors), dtype=np.int32)
    for block, found in zip(cells.blocks(), searched, strict=True):
        start, stop = cells.starts[block.start], cells.starts[block.stop]
        result[cells.order[start:stop]] = found
        listen(Progress(TASK, int(stop), n, UNIT))
    return result


def _searched(cells: _Cells, block: range) -> NDArray[np.int32]:
    """Return the neighbours of the points in some cells, shape (points, n_neighbors)."""
    starts, found = cells.starts, []
    gathered = np.empty((0, cells.points.shape[1]), dtype=np.float32)  # memory is written again: new memory is slow
    for cell in block:
        near = cells.nearby[cell]
        sizes = starts[near + 1] - starts[near]
        near = near[: np.searchsorted(np.cumsum(sizes), cells.most) + 1]
        slices = [slice(starts[c], starts[c + 1]) for c in near]
        count = int(sizes[: len(near)].sum())
        if len(gathered) < count:
            gathered = np.empty((count, cells.points.shape[1]), dtype=np.float32)
            distances = np.empty(QUERIES * min(count, cells.most), dtype=np.float32)
        np.concatenate([cells.points[part] for part in slices], out=gathered[:count])
        others = gathered[: min(count, cells.most)]
        numbers = np.concatenate([cells.order[part] for part in slices])[: cells.most]
        offsets = np.concatenate([cells.halves[part] for part in slices])[: cells.most]
        for start in range(starts[cell], starts[cell + 1], QUERIES):
            points = cells.points[start : min(start + QUERIES, starts[cell + 1])]
            room = distances[: len(points) * len(others)].reshape(len(points), len(others))
            found.append(numbers[_nearest(points, others, offsets, cells.n_neighbors, room)].astype(np.int32))
    return np.concatenate(found)


def _near_cells(
    centers: NDArray[np.float32], wanted: int, rng: np.random.Generator, pool: ThreadPoolExecutor
) -> NDArray[np.int32]:
    """Return the nearest ones of each centre, the nearest first."""
    if len(centers) > ALL_CANDIDATES:
        cells = _searchable(centers, wanted, rng, pool)
        return _gathered(cells, pool.map(partial(_searched, cells), cells.blocks()), silent)
    halves = 0.5 * np.einsum("ij,ij->i", centers, centers)
    blocks = [slice(start, start + CELL) for start in range(0, len(centers), CELL)]
    found = list(pool.map(lambda block: _nearest(centers[block], centers, halves, wanted), blocks))
    return np.concatenate(found).astype(np.int32)


def _nearest(
    points: NDArray[np.float32],
    others: NDArray[np.float32],
    halves: NDArray[np.float32],
    number: int,
    room: NDArray[np.float32] | None = None,
) -> IntArray:
    """Return the positions of each point's nearest others, given half of their squared lengths.

    `room` is what distances are written to.
    """
    distances = np.matmul(points, others.T, out=room)
    np.subtract(halves, distances, out=distances)
    return smallest(distances, number)


def _cells(points: NDArray[np.float32], seed: int, pool: ThreadPoolExecutor) -> tuple[IntArray, IntArray]:
    """Return an order of the points in which cells follow each other, and where each starts, with the end.

    Parts are split by k-means until they are small; a part of equal points stays whole.
    """
    order = np.arange(len(points))
    starts, parts = [len(points)], [(0, len(points))]

    def split(part: tuple[int, int]) -> list[tuple[int, int]]:
        start, stop = part
        rows = order[start:stop]
        if len(rows) <= LARGEST_CELL:
            return []
        rng = np.random.default_rng([seed, start, stop])
        centers = _centers(points, rows, min(BRANCHES, len(rows) // CELL), rng)
        branch = nearest_center(points, centers, rows)
        sizes = np.bincount(branch)
        if sizes.max() == len(rows):
            return []
        order[start:stop] = rows[np.argsort(branch, kind="stable")]
        ends = start + np.cumsum(sizes)
        return [(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True) if size]

    while parts:
        inner = list(pool.map(split, parts))
        starts += [start for (start, _), within in zip(parts, inner, strict=True) if not within]
        parts = [part for within in inner for part in within]
    return order, np.sort(starts)


def _centers(points: NDArray[np.float32], rows: IntArray, number: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return centres of k-means after a few rounds on a sample of some rows.

    Random members instead would be far from a small cluster in noisy dimensions, and scatter it over many cells.
    """
    sample = points[rows[sample_rows(len(rows), FITTED * number, rng)]]
    centers = sample[rng.choice(len(sample), number, replace=False)]
    for _ in range(ROUNDS):
        order = np.argsort(nearest := nearest_center(sample, centers), kind="stable")
        kept, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(sample[order], starts, axis=0)
        centers[kept] = sums / np.bincount(nearest)[kept, None].astype(np.float32)
    return centers
