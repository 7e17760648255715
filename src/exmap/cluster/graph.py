"""The symmetric nearest-neighbour graph of a set of vectors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.neighbors import kneighbors_graph

from exmap.cluster.libraries import search_by
from exmap.cluster.rows import Rows
from exmap.errors import DataError
from exmap.records import IntArray

__all__ = ["default_neighbors", "few_neighbors", "neighbor_graph", "ordered_graph"]


def default_neighbors(n_samples: int) -> int:
    """Return ``int(ln N)``, at least 2 (ExMap's choice; von Luxburg, 2007, section 8.2).

    Examples
    --------
    >>> default_neighbors(10_000), default_neighbors(3)
    (9, 2)
    """
    return max(2, int(math.log(max(n_samples, 1))))


def few_neighbors(n_neighbors: int, n_samples: int) -> str:
    """State that so many neighbours cannot be had of so many samples."""
    return (
        f"n_neighbors must lie in [2, {n_samples}] for {n_samples} samples (a sample counts as its own neighbour), got "
        f"{n_neighbors}; lower cluster.n_neighbors or give more samples"
    )


def neighbor_graph(
    vectors: NDArray[np.floating], n_neighbors: int, *, approximate: bool = False, seed: int = 0
) -> sparse.csr_array:
    """Connect each vector with its nearest ones, with weight 1 where the relation is mutual and 1/2 where not.

    Parameters
    ----------
    vectors : ndarray of float, shape (N, F)
    n_neighbors : int in [2, N]
        Counts the vector itself, as scikit-learn's spectral clustering does.
    approximate : bool
        Search in near-linear time, :func:`~exmap.cluster.neighbors.approximate_neighbors`, instead of comparing all
        pairs.
    seed : int
        Of the approximate search.

    Returns
    -------
    csr_array of float64, shape (N, N)
        Symmetric, with a zero diagonal.

    Raises
    ------
    DataError
        If there are fewer vectors than neighbours.
    """
    return ordered_graph(vectors, n_neighbors, approximate=approximate, seed=seed)[0]


def ordered_graph(
    vectors: Rows, n_neighbors: int, *, approximate: bool = False, seed: int = 0, search: str = "cells"
) -> tuple[sparse.csr_array, IntArray | None]:
    """Return :func:`neighbor_graph`, and an order of its vertices in which neighbours lie together.

    Parameters
    ----------
    vectors : ndarray or SomeRows of float, shape (N, F)
    n_neighbors, approximate, seed
        As of :func:`neighbor_graph`.
    search : str
        What searches approximately, :func:`~exmap.cluster.libraries.search_by`.

    Returns
    -------
    graph : csr_array of float64, shape (N, N)
    order : ndarray of int64, shape (N,), or None
        None where all pairs were compared, since there are so few that memory is no matter, and where the search knows
        of none.
    """
    n = len(vectors)
    if not 2 <= n_neighbors <= n:
        raise DataError(few_neighbors(n_neighbors, n))
    order: IntArray | None
    if approximate:
        found, order = search_by(search)(vectors, n_neighbors, seed)
        found.sort(axis=1)
        others = found != np.arange(n)[:, None]
        ends = np.arange(0, found.size + 1, n_neighbors, dtype=np.int32 if found.size < 2**31 else np.int64)
        directed = sparse.csr_array((others.ravel().view(np.int8), found.ravel(), ends), shape=(n, n))
    else:
        order = None
        directed = sparse.csr_array(kneighbors_graph(np.asarray(vectors), n_neighbors, include_self=True))
        directed.setdiag(0)
    both = sparse.csr_array(directed + directed.T)
    graph = sparse.csr_array((both.data * 0.5, both.indices, both.indptr), shape=(n, n))
    graph.eliminate_zeros()
    return graph, order
