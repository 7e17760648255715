"""Which images stand for all where a step cannot take millions, and the sentence that says so."""

from __future__ import annotations

import numpy as np

from exmap.records import IntArray

__all__ = ["by_turns", "sample_images", "sample_said", "stratified_rows"]


def stratified_rows(strata: IntArray, most: int, rng: np.random.Generator) -> IntArray:
    """Return `most` random rows in rising order, of each stratum in proportion; all rows where there are no more.

    Parameters
    ----------
    strata : ndarray of int64, shape (N,)
        The stratum of each row.
    most : int
    rng : Generator
        Not asked where all rows are returned.

    Returns
    -------
    ndarray of int64, shape (min(N, most),)
        Of a stratum with a share of the rows that makes no whole number, one more or less (largest remainders).

    Examples
    --------
    >>> strata = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    >>> np.bincount(strata[stratified_rows(strata, 4, np.random.default_rng(0))])
    array([3, 1])
    """
    n = len(strata)
    if n <= most:
        return np.arange(n, dtype=np.int64)
    rows, places, counts = _one_by_one(strata, rng.permutation(n))
    taken, rest = np.divmod(counts * most, n)
    taken[np.argsort(-rest, kind="stable")[: most - taken.sum()]] += 1
    return np.sort(rows[places < np.repeat(taken, counts)])


def sample_images(labels: IntArray, predicted: IntArray, most: int, rng: np.random.Generator) -> IntArray:
    """Return `most` random images in rising order, of each class and predicted class in proportion; all of no more.

    Parameters
    ----------
    labels, predicted : ndarray of int64, shape (N,)
        Predicted is -1 where the classifier gives no finite logits.
    most : int
    rng : Generator
    """
    return stratified_rows(labels * (int(predicted.max(initial=0)) + 2) + predicted, most, rng)


def sample_said(drawn: int, of: int, what: str, setting: str) -> str:
    """Return the sentence that says which images stand for all, and what they were drawn for.

    Examples
    --------
    >>> sample_said(100_000, 1_000_000, "The grouping was chosen", "auto.most_images")
    'The grouping was chosen by 100,000 of 1,000,000 images, drawn at random from each class and predicted class in \
proportion (auto.most_images).'
    """
    return (
        f"{what} by {drawn:,} of {of:,} images, drawn at random from each class and predicted class in proportion "
        f"({setting})."
    )


def by_turns(cells: IntArray, rng: np.random.Generator) -> IntArray:
    """Return all rows, the first of every cell first, then the second of every cell, in a random order within each.

    Parameters
    ----------
    cells : ndarray of int64, shape (N,)
    rng : Generator

    Returns
    -------
    ndarray of int64, shape (N,)
        Its beginning holds as many rows of each cell as can be, so that no small cell is missed.

    Examples
    --------
    >>> cells = np.array([0, 0, 0, 0, 1])
    >>> sorted(cells[by_turns(cells, np.random.default_rng(0))[:2]].tolist())
    [0, 1]
    """
    order = rng.permutation(len(cells))
    rows, places, _ = _one_by_one(cells, order)
    turn = np.empty(len(cells), dtype=np.int64)
    turn[rows] = places
    return np.asarray(order[np.argsort(turn[order], kind="stable")], dtype=np.int64)


def _one_by_one(cells: IntArray, order: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Return rows cell by cell, in order within each, the place of each in its cell, and how many each cell has."""
    _, number, counts = np.unique(cells, return_inverse=True, return_counts=True)
    rows = order[np.argsort(number[order], kind="stable")]
    return rows, np.arange(len(cells)) - np.repeat(np.cumsum(counts) - counts, counts), counts
