"""Where relevance lies, in parts of the image that have a name."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from exmap.describe.relevance import PLACES, measure_relevance, where_in_words
from exmap.records import Heatmaps


def heatmaps(values: NDArray[np.floating]) -> Heatmaps:
    n = len(values)
    finite = np.isfinite(values).reshape(n, -1).all(axis=1)
    filled = np.where(np.isfinite(values), values, 0).astype(np.float32)
    zero = (filled == 0).reshape(n, -1).all(axis=1) & finite
    return Heatmaps(filled, np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.float32), finite, zero)


def spots(place: str, n: int = 20, side: int = 12, seed: int = 0) -> NDArray[np.float32]:
    """Return maps with most of their relevance in one place."""
    rng = np.random.default_rng(seed)
    maps = 0.005 * rng.random((n, 1, side, side))
    mask = np.kron(PLACES[place], np.ones((side // 12, side // 12)))
    return (maps + mask * rng.random((n, 1, side, side))).astype(np.float32)


ROWS = np.arange(20)


@pytest.mark.parametrize("place", PLACES)
def test_the_place_is_named_in_which_the_group_has_more(place: str) -> None:
    elsewhere = "centre" if place != "centre" else "upper left corner"
    values = np.concatenate([spots(place), spots(elsewhere, seed=1)])
    found = measure_relevance(heatmaps(values), np.arange(40)).place(ROWS, ROWS + 20, tests=10)
    assert found is not None
    assert found.apart
    assert found.where == place
    assert found.share > 0.9
    assert found.area == pytest.approx(PLACES[place].mean())


@pytest.mark.parametrize("side", [12, 24, 48])
def test_maps_of_any_size_and_sign_say_the_same(side: int) -> None:
    values = np.concatenate([-spots("left edge", side=side), spots("centre", side=side, seed=1)])
    found = measure_relevance(heatmaps(values), np.arange(40)).place(ROWS, ROWS + 20, tests=10)
    assert found is not None
    assert found.where == "left edge"


def test_where_both_look_at_the_same_place_it_is_said_but_not_as_a_difference() -> None:
    values = np.concatenate([spots("centre"), spots("centre", seed=1)])
    found = measure_relevance(heatmaps(values), np.arange(40)).place(ROWS, ROWS + 20, tests=10)
    assert found is not None
    assert (found.where, found.apart) == ("centre", False)


def test_relevance_all_over_has_no_place() -> None:
    values = np.random.default_rng(0).random((40, 1, 12, 12)).astype(np.float32)
    found = measure_relevance(heatmaps(values), np.arange(40)).place(ROWS, ROWS + 20, tests=10)
    assert found is not None
    assert (found.where, found.apart) == ("", False)
    assert 0.5 < found.area_80 < 0.8


def test_the_area_is_the_smallest_that_holds_80_percent() -> None:
    values = np.zeros((2, 1, 10, 10), dtype=np.float32)
    values[0, 0, 0, :10] = 1  # 8 of 100 pixels hold 80 %
    values[1, 0, 3, 3] = -1
    found = measure_relevance(heatmaps(values), np.arange(2))
    assert found.area == pytest.approx([0.08, 0.01])


def test_maps_that_are_zero_or_not_finite_are_left_out() -> None:
    values = np.concatenate([spots("centre"), np.zeros((1, 1, 12, 12)), np.full((1, 1, 12, 12), np.nan)])
    found = measure_relevance(heatmaps(values), np.arange(22))
    assert np.isnan(found.area[20:]).all()
    with_them = found.place(np.arange(22), np.arange(0), tests=1)
    assert with_them == found.place(ROWS, np.arange(0), tests=1)
    assert found.place(np.array([20, 21]), ROWS, tests=1) is None


def test_the_share_in_a_box() -> None:
    values = np.zeros((1, 1, 12, 12), dtype=np.float32)
    values[0, 0, 0, 0], values[0, 0, 6, 6] = 3, 1
    found = measure_relevance(heatmaps(values), np.arange(1))
    assert found.in_box(np.arange(1), (0, 0, 1 / 12, 1 / 12)) == pytest.approx(0.75)
    assert found.in_box(np.arange(1), (0, 0, 1, 1)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("box", "where"),
    [
        ((0, 0.4, 0.1, 0.6), "upper edge"),
        ((0, 0.8, 0.2, 1), "upper right corner"),
        ((0.3, 0, 0.7, 0.1), "left edge"),
        ((0, 0, 1, 0.1), "left edge"),
        ((0.4, 0.4, 0.5, 0.5), "centre"),
    ],
)
def test_boxes_lie_where_one_says(box: tuple[float, float, float, float], where: str) -> None:
    assert where_in_words(*box) == where
