"""Eigenvalues of a graph's normalised Laplacian, the number of clusters they suggest, and labels from eigenvectors.

von Luxburg (2007), "A tutorial on spectral clustering", for the Laplacian and the eigengap; Damle, Minden and Ying
(2019), "Simple, direct and efficient multi-way spectral clustering", for labels by a pivoted QR factorisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from threadpoolctl import threadpool_limits

from exmap.errors import NumericalError
from exmap.records import IntArray

__all__ = ["Spectrum", "cluster_qr", "eigengap", "laplacian_spectrum"]

ROUNDING = 1e-9  # eigenvalues below are zero
SINGLE_FROM = 15_000  # samples; the iteration then runs in single precision, which halves what memory has to move
TOLERANCE = 1e-5  # of it, relative
MOST_RESTARTS = 10_000
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
    scale = sparse.diags_array(1 / np.sqrt(np.where(degree > 0, degree, 1.0)))
    # A vertex without edges must have eigenvalue 0, not 1: give it a loop.
    loops = sparse.diags_array((degree == 0).astype(np.float64))
    adjacency = sparse.csr_array(scale @ graph @ scale + loops)
    count = min(count, n)
    if n < DENSE_BELOW or count >= n - 1:
        values, vectors = linalg.eigh(np.eye(n) - adjacency.toarray(), subset_by_index=[0, count - 1])
        return Spectrum(np.clip(values, 0.0, 2.0), vectors, int(components), _residual(adjacency, values, vectors))
    # Each component has an eigenvector of eigenvalue 0 that is known, and an iteration may miss repeated ones.
    null = _component_vectors(member, np.sqrt(np.where(degree > 0, degree, 1.0)), count)
    values, vectors = np.zeros(null.shape[1]), null.toarray()
    if missing := count - len(values):
        found, others = _largest(adjacency, null, missing, seed, order)
        values, vectors = np.concatenate([values, 1 - found]), np.hstack([vectors, others])
    return Spectrum(np.clip(values, 0.0, 2.0), vectors, int(components), _residual(adjacency, values, vectors))


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


def _largest(
    adjacency: sparse.csr_array, null: sparse.csc_array, count: int, seed: int, order: IntArray | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest eigenpairs of the normalised adjacency beside those of eigenvalue 1, in falling order."""
    n = adjacency.shape[0]
    kind: Any = np.float32 if n >= SINGLE_FROM else np.float64
    start = np.random.default_rng(seed).standard_normal(n).astype(kind)
    if order is not None:
        adjacency, null, start = _reordered(adjacency, order), sparse.csc_array(null.tocsr()[order]), start[order]
    matrix, known = adjacency.astype(kind, copy=False), null.astype(kind, copy=False)

    def multiply(x: NDArray[Any]) -> NDArray[Any]:
        # Shifted into [0, 2], with the known eigenvectors moved to 0.
        product: NDArray[Any] = matrix @ x + x - 2 * (known @ (known.T @ x))
        return product

    try:
        with threadpool_limits(1, "blas"):  # the products are memory-bound; threads wait, and round differently
            found, vectors = eigsh(
                LinearOperator((n, n), matvec=multiply, dtype=kind),
                k=count,
                which="LA",
                v0=start,
                ncv=max(4 * count, 40),
                maxiter=MOST_RESTARTS,
                tol=TOLERANCE if kind is np.float32 else 0,
            )
    except ArpackNoConvergence as error:
        raise NumericalError(
            f"the eigenvalues of the neighbour graph of {n} samples did not converge ({error}); raise "
            "cluster.n_neighbors"
        ) from error
    if kind is np.float32:  # eigenvalues are as exact as the square of the vectors' error, computed in double precision
        vectors = linalg.qr(vectors.astype(np.float64), mode="economic", overwrite_a=True)[0]
        products = np.column_stack([adjacency @ column for column in vectors.T])
        found, turned = linalg.eigh(vectors.T @ products)
        found, vectors = found[::-1], vectors @ turned[:, ::-1]
    else:
        falling = np.argsort(-found)
        found, vectors = found[falling] - 1, vectors[:, falling]
    if order is not None:
        placed = np.empty_like(vectors)
        placed[order] = vectors
        vectors = placed
    return found, vectors


def _reordered(matrix: sparse.csr_array, order: IntArray) -> sparse.csr_array:
    """Return a matrix with its rows and columns in another order."""
    place = np.empty(len(order), dtype=matrix.indices.dtype)
    place[order] = np.arange(len(order), dtype=place.dtype)
    rows = matrix[order]
    return sparse.csr_array((rows.data, place[rows.indices], rows.indptr), shape=matrix.shape)


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
