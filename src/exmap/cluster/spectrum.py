"""Eigenvalues of a graph's normalised Laplacian, the number of clusters they suggest, and labels from eigenvectors.

von Luxburg (2007), "A tutorial on spectral clustering", for the Laplacian and the eigengap; Damle, Minden and Ying
(2019), "Simple, direct and efficient multi-way spectral clustering", for labels by a pivoted QR factorisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse.csgraph import connected_components

from exmap.cluster.iteration import largest_pairs
from exmap.cluster.rows import row_blocks
from exmap.records import IntArray

__all__ = ["Spectrum", "cluster_qr", "eigengap", "laplacian_spectrum"]

ROUNDING = 1e-9  # eigenvalues below are zero
DENSE_BELOW = 500  # samples; the exact dense solver is faster there


@dataclass(frozen=True)
class Spectrum:
    """The smallest eigenvalues of a normalised Laplacian and their vectors.

    Attributes
    ----------
    values : ndarray of float64, shape (m,), ascending, in [0, 2]
    vectors : ndarray of float64, shape (N, m)
        Orthonormal columns.
    components : int
        Connected components of the graph; as many eigenvalues are zero.
    residual : float
        Largest length of ``L v - value * v`` over the vectors: how far the iteration has converged.
    """

    values: NDArray[np.float64]
    vectors: NDArray[np.float64]
    components: int
    residual: float


def laplacian_spectrum(graph: sparse.csr_array, count: int, seed: int, order: IntArray | None = None) -> Spectrum:
    """Return the `count` smallest eigenpairs of ``I - D^-1/2 A D^-1/2``.

    Parameters
    ----------
    graph : csr_array of float, shape (N, N)
        Symmetric, non-negative, zero diagonal; a vertex without edges is a component of its own.
    count : int
        At most N eigenpairs are returned.
    seed : int
        Of the iteration's starting vector.
    order : ndarray of int64, shape (N,), optional
        Of the vertices, in which neighbours lie together: the iteration then waits less for memory.

    Raises
    ------
    NumericalError
        If the iteration does not converge.
    """
    n = graph.shape[0]
    components, member = connected_components(graph, directed=False)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    weight = np.sqrt(np.where(degree > 0, degree, 1.0))
    count = min(count, n)
    small = n < DENSE_BELOW or count >= n - 1
    if small or order is None:
        order = np.arange(n)
    adjacency = _normalised(graph, weight, order)
    if small:
        values, vectors = linalg.eigh(np.eye(n) - adjacency.toarray(), subset_by_index=[0, count - 1])
    else:
        # Each component has an eigenvector of eigenvalue 0 that is known, and an iteration may miss repeated ones.
        known = _component_vectors(member[order], weight[order], count)
        values, vectors = np.zeros(known.shape[1]), known.toarray()
        if missing := count - len(values):
            found, others = largest_pairs(adjacency, known, missing, seed)
            values, vectors = np.concatenate([values, 1 - found]), np.hstack([vectors, others])
    residual = _residual(adjacency, values, vectors)
    for column in vectors.T:  # one at a time: no second copy of the vectors
        column[order] = column.copy()
    return Spectrum(np.clip(values, 0.0, 2.0), vectors, int(components), residual)


def _normalised(graph: sparse.csr_array, weight: NDArray[np.float64], order: IntArray) -> sparse.csr_array:
    """Return a graph with its weights divided by those of both vertices, and its vertices in another order.

    A vertex without edges must have eigenvalue 0, not 1, and so gets a loop.
    """
    n = graph.shape[0]
    place = np.empty(n, dtype=graph.indices.dtype)
    place[order] = np.arange(n, dtype=place.dtype)
    rows = graph[order]
    ends, weight = rows.indptr, weight[order]
    rows.indices = place[rows.indices]
    for block in row_blocks(n, int(ends[-1]) // n + 1):
        inside = slice(ends[block.start], ends[min(block.stop, n)])
        own = np.repeat(weight[block], np.diff(ends[block.start : block.stop + 1]))
        rows.data[inside] /= own * weight[rows.indices[inside]]
    if (lone := np.diff(ends) == 0).any():
        rows = sparse.csr_array(rows + sparse.diags_array(lone.astype(np.float64)))
    return rows


def _residual(adjacency: sparse.csr_array, values: NDArray[np.float64], vectors: NDArray[np.float64]) -> float:
    pairs = zip(values, vectors.T, strict=True)  # one at a time: no second copy of the vectors
    return float(max(np.linalg.norm((1 - value) * vector - adjacency @ vector) for value, vector in pairs))


def _component_vectors(member: IntArray, weight: NDArray[np.float64], most: int) -> sparse.csc_array:
    """Return the eigenvectors of eigenvalue 0: one per component, the largest components first."""
    _, inverse, sizes = np.unique(member, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    column = rank[inverse]
    norms = np.sqrt(np.bincount(column, weights=weight**2))
    kept = np.flatnonzero(column < most)
    shape = (len(member), min(most, len(sizes)))
    return sparse.csc_array((weight[kept] / norms[column[kept]], (kept, column[kept])), shape=shape)


def eigengap(values: NDArray[np.float64], first: int = 2, *, relative: bool = False) -> int:
    """Return the number of clusters before the largest gap between consecutive eigenvalues.

    The absolute gap (von Luxburg, 2007; the ExMap authors) is the difference. It grows with the eigenvalues, and so
    favours many small clusters over one split that is far deeper: of 0, 0.0001, 0.005, 0.015, 0.025 it says 3. The
    relative gap is the ratio, which theory asks to be large (Peng, Sun and Zanetti, 2017, "Partitioning well-clustered
    graphs"): the k clusters are cut off at a far lower cost than k + 1 would be. It says 2.

    Parameters
    ----------
    values : ndarray of float, shape (m,), ascending
    first : int
        Smallest number that may be returned: 2 skips the first gap, as the authors do; 1 lets the answer be
        "no clusters".
    relative : bool
        Compare ratios instead of differences.

    Examples
    --------
    >>> eigengap(np.array([0.0, 0.01, 0.02, 0.5, 0.6]))
    3
    >>> eigengap(np.array([0.0, 0.0001, 0.005, 0.015, 0.025]), relative=True)
    2
    """
    scale = np.log(values + ROUNDING) if relative else values
    gaps = np.diff(scale)[first - 1 :]
    return first + int(np.argmax(gaps)) if len(gaps) else min(first, len(values))


def cluster_qr(vectors: NDArray[np.float64]) -> IntArray:
    """Assign each row to one of its columns: rotate the eigenvectors to the rows that a pivoted QR picks.

    Parameters
    ----------
    vectors : ndarray of float, shape (N, k)
        Orthonormal columns.

    Returns
    -------
    ndarray of int64, shape (N,), in [0, k)
    """
    k = vectors.shape[1]
    _, pivots = linalg.qr(vectors.T, mode="r", pivoting=True)
    left, _, right = linalg.svd(vectors[pivots[:k]].T)
    return np.asarray(np.abs(vectors @ (left @ right)).argmax(axis=1), dtype=np.int64)
