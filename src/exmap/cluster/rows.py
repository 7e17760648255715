"""Many rows, a few at a time: they may lie on disk, and no step here makes a copy of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from exmap.records import IntArray

__all__ = ["distinct_rows", "finite_rows", "nearest_center", "row_blocks", "sample_rows"]

BLOCK = 2**22  # numbers that are worked on at once


def row_blocks(n_rows: int, width: int) -> Iterator[slice]:
    """Yield slices that cover `n_rows` rows in order, each of about ``BLOCK / width`` rows.

    Examples
    --------
    >>> list(row_blocks(5, 2**21))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    step = max(1, BLOCK // max(width, 1))
    return (slice(start, start + step) for start in range(0, n_rows, step))


def distinct_rows(vectors: NDArray[np.floating]) -> tuple[IntArray, IntArray]:
    """Return the first row of each content, in order, and which of them each row is equal to.

    Parameters
    ----------
    vectors : ndarray of float, shape (N, F)
        May lie on disk; it is read once, in order.

    Returns
    -------
    first : ndarray of int64, shape (M,), ascending
        Rows of which no two are equal.
    place : ndarray of int64, shape (N,), in [0, M)
        ``vectors[first][place]`` is `vectors` again.

    Examples
    --------
    >>> distinct_rows(np.array([[0.0, 1.0], [2.0, 2.0], [-0.0, 1.0]]))
    (array([0, 1]), array([0, 1, 0]))
    """
    numbers: dict[bytes, int] = {}
    first: list[int] = []
    place = np.empty(len(vectors), dtype=np.int64)
    for block in row_blocks(*vectors.shape):
        part = np.ascontiguousarray(vectors[block]) + 0.0  # a negative zero is a zero
        for row, values in enumerate(part, block.start):
            place[row] = number = numbers.setdefault(blake2b(values.data, digest_size=16).digest(), len(first))
            if number == len(first):
                first.append(row)
    return np.array(first, dtype=np.int64), place


def finite_rows(vectors: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which rows hold finite numbers only, shape (N,)."""
    result = np.empty(len(vectors), dtype=np.bool_)
    for block in row_blocks(len(vectors), vectors.shape[1]):
        result[block] = np.isfinite(vectors[block]).all(axis=1)
    return result


def sample_rows(n_rows: int, most: int, rng: np.random.Generator) -> IntArray:
    """Return `most` different row numbers in rising order, or all of them where there are no more."""
    if n_rows <= most:
        return np.arange(n_rows)
    return np.sort(rng.choice(n_rows, most, replace=False))


def nearest_center(vectors: NDArray[np.floating], centers: NDArray[np.floating]) -> IntArray:
    """Return the number of each row's nearest centre, the first of equally near ones.

    Parameters
    ----------
    vectors : ndarray of float, shape (N, F)
    centers : ndarray of float, shape (K, F)

    Returns
    -------
    ndarray of int64, shape (N,)
    """
    squares = np.einsum("ij,ij->i", centers, centers)
    result = np.empty(len(vectors), dtype=np.int64)
    for block in row_blocks(len(vectors), max(vectors.shape[1], len(centers))):
        distances = vectors[block] @ centers.T
        distances *= -2
        distances += squares
        distances.argmin(axis=1, out=result[block])
    return result
