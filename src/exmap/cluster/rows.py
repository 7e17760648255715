"""Many rows, a few at a time: they may lie on disk, and no step here makes a copy of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from numpy.typing import DTypeLike, NDArray

from exmap.records import IntArray

__all__ = [
    "Rows",
    "SomeRows",
    "distinct_rows",
    "finite_rows",
    "nearest_center",
    "row_blocks",
    "sample_rows",
    "smallest",
]

BLOCK = 2**22  # numbers that are worked on at once
WORD = np.dtype(np.uint32)  # that rows are read as, to tell which may be equal
STRIPE = 16  # values, at most, of which the smallest bounds a search


def row_blocks(n_rows: int, width: int) -> Iterator[slice]:
    """Yield slices that cover `n_rows` rows in order, each of about ``BLOCK / width`` rows.

    Examples
    --------
    >>> list(row_blocks(5, 2**21))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    step = max(1, BLOCK // max(width, 1))
    return (slice(start, start + step) for start in range(0, n_rows, step))


class SomeRows:
    """Some rows of an array, which are read when they are asked for.

    Parameters
    ----------
    vectors : ndarray of float, shape (N, F)
        May lie on disk.
    rows : ndarray of int64, shape (M,)

    Examples
    --------
    >>> SomeRows(np.arange(8).reshape(4, 2), np.array([0, 2, 3]))[1:]
    array([[4, 5],
           [6, 7]])
    """

    def __init__(self, vectors: NDArray[np.floating], rows: IntArray) -> None:
        self._vectors, self._rows = vectors, rows
        self.shape = (len(rows), *vectors.shape[1:])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: slice | IntArray) -> NDArray[np.floating]:
        return self._vectors[self._rows[which]]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[np.floating]:
        return np.asarray(self[:], dtype=dtype)


Rows = NDArray[np.floating] | SomeRows


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
    alike = _alike(vectors)
    numbers: dict[bytes, int] = {}
    same = np.arange(len(vectors))  # the first row that each is equal to
    for block in row_blocks(len(alike), vectors.shape[1]):
        for row, values in zip(alike[block].tolist(), vectors[alike[block]] + 0.0, strict=True):
            same[row] = numbers.setdefault(blake2b(values.data, digest_size=16).digest(), row)
    first = np.flatnonzero(same == np.arange(len(vectors)))
    return first, np.searchsorted(first, same)


def _alike(vectors: NDArray[np.floating]) -> IntArray:
    """Return the rows, in order, whose bits have the same sum as those of another: all that may be equal to one.

    The sum has random factors and wraps around, so hardly any different rows have the same.
    """
    n, width = vectors.shape
    kind = np.result_type(vectors.dtype, np.float32)
    words = width * kind.itemsize // WORD.itemsize
    factors = np.random.default_rng(0).integers(0, 2**32, words, dtype=WORD) | WORD.type(1)
    sums = np.empty(n, dtype=WORD)
    for block in row_blocks(n, width):
        bits = (np.ascontiguousarray(vectors[block], dtype=kind) + kind.type(0)).view(WORD)  # a negative zero is a zero
        np.matmul(bits, factors, out=sums[block])
    _, inverse, counts = np.unique(sums, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[inverse] > 1)


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


def nearest_center(
    vectors: NDArray[np.floating], centers: NDArray[np.floating], rows: IntArray | None = None
) -> IntArray:
    """Return the number of each row's nearest centre, the first of equally near ones.

    Parameters
    ----------
    vectors : ndarray of float, shape (N, F)
    centers : ndarray of float, shape (K, F)
    rows : ndarray of int64, shape (M,), optional
        Which rows are asked about; None for all.

    Returns
    -------
    ndarray of int64, shape (M,)
    """
    squares = np.einsum("ij,ij->i", centers, centers)
    result = np.empty(len(vectors) if rows is None else len(rows), dtype=np.int64)
    for block in row_blocks(len(result), max(vectors.shape[1], len(centers))):
        distances = (vectors[block] if rows is None else vectors[rows[block]]) @ centers.T
        distances *= -2
        distances += squares
        distances.argmin(axis=1, out=result[block])
    return result


def smallest(values: NDArray[np.floating], number: int) -> IntArray:
    """Return the columns of each row's smallest values, the smallest first, of equal ones the first.

    Parameters
    ----------
    values : ndarray of float, shape (N, F)
    number : int in [1, F]

    Returns
    -------
    ndarray of int64, shape (N, number)

    Notes
    -----
    The smallest values of `number` stripes of a row are values of the row, so the largest of them bounds what is
    looked for. Few values lie below such a bound, and only those are sorted.

    Examples
    --------
    >>> smallest(np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 0.0]]), 2)
    array([[1, 2],
           [0, 2]])
    """
    n, width = values.shape
    stripe = min(width // (2 * number), STRIPE)
    if stripe > 1:
        stripes = width // stripe
        lows = values[:, : stripes * stripe].reshape(n, stripe, stripes).min(axis=1)
        bound = np.partition(lows, number - 1, axis=1)[:, number - 1, None]
        places = np.flatnonzero(values <= bound)
        rows, columns = np.divmod(places, width)
        counts = np.bincount(rows, minlength=n)
        if counts.min() >= number:
            by_value = np.lexsort((values.ravel()[places], rows))
            firsts = np.cumsum(counts) - counts
            found: IntArray = columns[by_value[firsts[:, None] + np.arange(number)]]
            return found
    return np.argsort(values, axis=1, kind="stable")[:, :number]
