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
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from exmap.errors import NumericalError
from exmap.records import IntArray

__all__ = ["Spectrum", "cluster_qr", "eigengap", "laplacian_spectrum"]

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
    """

    values: NDArray[np.float64]
    vectors: NDArray[np.float64]
    components: int


def laplacian_spectrum(graph: sparse.csr_array, count: int, seed: int) -> Spectrum:
    """Return the `count` smallest eigenpairs of ``I - D^-1/2 A D^-1/2``.

    Parameters
    ----------
    graph : csr_array of float, shape (N, N)
        Symmetric, non-negative, zero diagonal; a vertex without edges is a component of its own.
    count : int
        At most N eigenpairs are returned.
    seed : int
        Of the iteration's starting vector.

    Raises
    ------
    NumericalError
        If the iteration does not converge.
    """
    n = graph.shape[0]
    components = int(connected_components(graph, directed=False, return_labels=False))
    degree = np.asarray(graph.sum(axis=1)).ravel()
    scale = sparse.diags_array(1 / np.sqrt(np.where(degree > 0, degree, 1.0)))
    # A vertex without edges must have eigenvalue 0, not 1: give it a loop.
    loops = sparse.diags_array((degree == 0).astype(np.float64))
    adjacency = sparse.csr_array(scale @ graph @ scale + loops)
    count = min(count, n)
    if n < DENSE_BELOW or count >= n - 1:
        values, vectors = linalg.eigh(np.eye(n) - adjacency.toarray(), subset_by_index=[0, count - 1])
    else:
        start = np.random.default_rng(seed).standard_normal(n)
        try:
            found, vectors = eigsh(adjacency, k=count, which="LA", v0=start, ncv=max(4 * count, 40), maxiter=20 * n)
        except ArpackNoConvergence as error:
            raise NumericalError(
                f"the eigenvalues of the neighbour graph of {n} samples did not converge ({error}); raise "
                "cluster.n_neighbors"
            ) from error
        order = np.argsort(-found)
        values, vectors = 1 - found[order], vectors[:, order]
    return Spectrum(np.clip(values, 0.0, 2.0), vectors, components)


def eigengap(values: NDArray[np.float64], first: int = 2) -> int:
    """Return the number of clusters before the largest gap between consecutive eigenvalues.

    Parameters
    ----------
    values : ndarray of float, shape (m,), ascending
    first : int
        Smallest number that may be returned: 2 skips the first gap, as the authors do; 1 lets the answer be
        "no clusters".

    Examples
    --------
    >>> eigengap(np.array([0.0, 0.01, 0.02, 0.5, 0.6]))
    3
    """
    gaps = np.diff(values)[first - 1 :]
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
