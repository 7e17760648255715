"""What holds of the search for neighbours whatever the vectors: many, few, equal."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from exmap.cluster import neighbors
from exmap.cluster.neighbors import search_cells

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def vectors(draw: st.DrawFn) -> NDArray[np.float32]:
    """Draw up to 700 vectors, of which as many as may be are equal."""
    rng = np.random.default_rng(draw(SEEDS))
    distinct = rng.normal(size=(draw(st.integers(1, 700)), draw(st.integers(1, 9)))).astype(np.float32)
    return distinct[rng.integers(0, len(distinct), draw(st.integers(1, 700)))]


@given(vectors(), SEEDS)
def test_cells_hold_every_vector_once(points: NDArray[np.float32], seed: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        order, starts = neighbors._cells(points, seed, pool)
    assert np.array_equal(np.sort(order), np.arange(len(points)))
    assert (starts[0], starts[-1]) == (0, len(points))
    assert (np.diff(starts) > 0).all()


@given(vectors(), st.integers(1, 12), SEEDS)
def test_every_vector_gets_different_neighbours_that_exist(points: NDArray[np.float32], number: int, seed: int) -> None:
    number = min(number, len(points))
    found, order = search_cells(points, number, seed)
    assert found.shape == (len(points), number)
    assert found.min() >= 0
    assert found.max() < len(points)
    assert (np.diff(np.sort(found, axis=1), axis=1) > 0).all()
    assert np.array_equal(np.sort(order), np.arange(len(points)))
