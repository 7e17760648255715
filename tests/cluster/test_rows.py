from __future__ import annotations

import numpy as np
import pytest

from exmap.cluster import rows
from exmap.cluster.rows import finite_rows, nearest_center, row_blocks, sample_rows


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
