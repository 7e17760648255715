"""Which samples stand for a group, and which stand at its border: cosine similarity to the groups' means."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exmap.cluster.rows import row_blocks
from exmap.errors import DataError
from exmap.records import IntArray

__all__ = ["group_means", "similarity_to_means"]


def group_means(vectors: NDArray[np.float32], index: IntArray, n_groups: int) -> NDArray[np.float32]:
    """Return the mean vector of each group.

    Parameters
    ----------
    vectors : ndarray of float32, shape (N, F)
        May be a memory map.
    index : ndarray of int64, shape (N,), in [-1, G)
        A sample of group -1 is left out.
    n_groups : int

    Returns
    -------
    ndarray of float32, shape (G, F)
        Zero for an empty group.

    Examples
    --------
    >>> group_means(np.array([[1, 0], [3, 0], [9, 9]], dtype=np.float32), np.array([0, 0, -1]), 2)
    array([[2., 0.],
           [0., 0.]], dtype=float32)
    """
    _check(vectors, index)
    total = np.zeros((n_groups, vectors.shape[1]))
    for block in row_blocks(*vectors.shape):
        part, groups = np.asarray(vectors[block]), index[block]
        for group in np.unique(groups[groups >= 0]):
            total[group] += part[groups == group].sum(axis=0, dtype=np.float64)
    counts = np.bincount(index[index >= 0], minlength=n_groups)
    means: NDArray[np.float32] = (total / np.maximum(counts, 1)[:, None]).astype(np.float32)
    return means


def similarity_to_means(vectors: NDArray[np.float32], means: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine similarity of each vector to each mean.

    Parameters
    ----------
    vectors : ndarray of float32, shape (N, F)
        May be a memory map.
    means : ndarray of float32, shape (G, F)

    Returns
    -------
    ndarray of float32, shape (N, G), in [-1, 1]
        0 where a vector or a mean is zero.
    """
    found = np.empty((len(vectors), len(means)), dtype=np.float32)
    directions = _unit(means).T
    for block in row_blocks(*vectors.shape):
        found[block] = _unit(np.asarray(vectors[block])) @ directions
    return np.clip(found, -1, 1)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1), dtype=np.float32)


def _check(vectors: NDArray[np.float32], index: IntArray) -> None:
    if len(vectors) != len(index):
        raise DataError(f"each vector needs one group, got {len(vectors)} vectors and {len(index)} groups")
