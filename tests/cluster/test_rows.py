from __future__ import annotations

import numpy as np
import pytest

from exmap.cluster import rows
from exmap.cluster.rows import SomeRows, distinct_rows, finite_rows, nearest_center, row_blocks, sample_rows, smallest


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK", 30)


@pytest.mark.parametrize(("n", "width"), [(0, 3), (1, 3), (10, 3), (11, 3), (7, 100), (5, 0)])
def test_blocks_cover_every_row_once_in_order(n: int, width: int, small_blocks: None) -> None:
    found = [row for block in row_blocks(n, width) for row in range(n)[block]]
    assert found == list(range(n))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 9, 10, 22])
def test_a_number_that_is_not_finite_is_found_in_any_block(bad: float, row: int, small_blocks: None) -> None:
    vectors = np.zeros((23, 3), dtype=np.float32)
    vectors[row, 1] = bad
    assert np.flatnonzero(~finite_rows(vectors)).tolist() == [row]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_nearest_centre_is_the_one_found_by_a_loop(dtype: type, small_blocks: None) -> None:
    rng = np.random.default_rng(0)
    vectors, centers = rng.normal(size=(40, 3)).astype(dtype), rng.normal(size=(7, 3)).astype(dtype)
    wanted = [int(((centers - vector) ** 2).sum(axis=1).argmin()) for vector in vectors]
    assert nearest_center(vectors, centers).tolist() == wanted


def test_of_equal_centres_the_first_is_taken() -> None:
    assert nearest_center(np.zeros((3, 2)), np.zeros((4, 2))).tolist() == [0, 0, 0]


def test_a_sample_is_of_different_rows_in_order() -> None:
    found = sample_rows(50, 20, np.random.default_rng(0))
    assert len(found) == 20
    assert (np.diff(found) > 0).all()
    assert sample_rows(20, 20, np.random.default_rng(0)).tolist() == list(range(20))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 3, 40])
def test_different_rows_are_those_found_by_a_set(dtype: type, width: int, small_blocks: None) -> None:
    rng = np.random.default_rng(width)
    vectors = rng.integers(-1, 2, (60, width)).astype(dtype) * dtype(0.3)
    vectors[::3] = vectors[rng.integers(0, 60, 20)]
    first, place = distinct_rows(vectors)
    assert len(first) == len({tuple(row) for row in vectors.tolist()})
    assert (np.diff(first) > 0).all()
    np.testing.assert_array_equal(vectors[first][place], vectors)


def test_rows_whose_sums_of_bits_are_equal_by_chance_are_still_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_alike", lambda vectors: np.arange(len(vectors)))
    first, place = distinct_rows(np.array([[1.0], [2.0], [1.0]]))
    assert (first.tolist(), place.tolist()) == ([0, 1], [0, 1, 0])


@pytest.mark.parametrize("kind", ["random", "ties", "rising", "nan", "inf"])
@pytest.mark.parametrize(("width", "number"), [(1, 1), (40, 3), (400, 9), (1000, 30), (1000, 1000), (403, 5)])
def test_the_smallest_values_are_those_of_a_full_sort(kind: str, width: int, number: int) -> None:
    rng = np.random.default_rng(width)
    values = rng.normal(size=(7, width)).astype(np.float32)
    if kind == "ties":
        values = np.round(values)
    elif kind == "rising":
        values = np.sort(values, axis=1)
    elif kind in ("nan", "inf"):
        values[:, :: max(1, width // 9)] = np.nan if kind == "nan" else np.inf
    wanted = np.argsort(values, axis=1, kind="stable")[:, :number]
    np.testing.assert_array_equal(smallest(values, number), wanted)


def test_some_rows_are_read_when_they_are_asked_for() -> None:
    vectors = np.random.default_rng(0).normal(size=(9, 4))
    chosen = np.array([1, 3, 8])
    some = SomeRows(vectors, chosen)
    assert (len(some), some.shape) == (3, (3, 4))
    np.testing.assert_array_equal(some[1:], vectors[[3, 8]])
    np.testing.assert_array_equal(some[np.array([2, 0])], vectors[[8, 1]])
    np.testing.assert_array_equal(np.asarray(some), vectors[chosen])
