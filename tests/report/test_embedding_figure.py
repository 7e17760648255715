from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from matplotlib.axes import Axes

from exmap.errors import DataError
from exmap.report import embedding_figure

POINTS = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [2, 2], [np.nan, np.nan]])
TRUE = np.array([1, 1, 1, 0, 0, 0])
FOUND = np.array([0, 0, 2, 2, -1, 0])


def offsets(ax: Axes, label: str) -> list[list[float]]:
    (drawn,) = [dots for dots in ax.collections if dots.get_label() == label]
    return np.asarray(drawn.get_offsets()).tolist()


def test_each_panel_has_the_same_points_by_its_own_groups() -> None:
    figure = embedding_figure(POINTS, [("true", TRUE, ("a", "b")), ("found", FOUND, ("x", "y", "z"))], title="t")
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("true", "found")
    assert offsets(left, "b, n = 3") == [[0, 0], [1, 0], [0, 1]]
    assert offsets(left, "a, n = 2") == [[1, 1], [2, 2]]
    assert offsets(right, "x, n = 2") == [[0, 0], [1, 0]]
    assert offsets(right, "no group, n = 1") == [[2, 2]]
    legend = right.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["x, n = 2", "z, n = 2", "no group, n = 1"]
    figure.savefig(BytesIO(), format="png", dpi=30)


def test_smaller_groups_lie_on_top() -> None:
    index = np.repeat([0, 1, 2], [3, 30, 10])
    points = np.random.default_rng(0).normal(size=(43, 2))
    (ax,) = embedding_figure(points, [("t", index, ("few", "many", "some"))]).axes
    order = sorted(ax.collections, key=lambda dots: dots.get_zorder())
    assert [str(dots.get_label()).split(",")[0] for dots in order] == ["many", "some", "few"]
    assert order[0].get_sizes()[0] < order[-1].get_sizes()[0]


def test_of_many_groups_the_largest_are_named_and_all_are_drawn() -> None:
    index = np.repeat(np.arange(40), np.arange(1, 41))
    points = np.random.default_rng(0).normal(size=(len(index), 2))
    figure = embedding_figure(points, [("t", index, [f"$g_{{{i}" for i in range(40)])])
    (ax,) = figure.axes
    legend = ax.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 16
    assert legend.get_title().get_text() == "and 24 smaller groups"
    assert sum(len(dots.get_offsets()) for dots in ax.collections) == len(index)
    styles = {(tuple(dots.get_facecolor()[0]), len(dots.get_paths()[0].vertices)) for dots in ax.collections}
    assert len(styles) > 20
    figure.savefig(BytesIO(), format="png", dpi=30)


def test_a_figure_without_points_or_panels_is_drawn() -> None:
    for figure in (
        embedding_figure(np.zeros((0, 2)), [("t", np.zeros(0, dtype=np.int64), ("a",))]),
        embedding_figure(POINTS, []),
    ):
        figure.savefig(BytesIO(), format="png", dpi=30)


@pytest.mark.parametrize("points", [np.zeros((6, 3)), np.zeros(6), np.zeros((5, 2))])
def test_points_that_do_not_fit_are_refused(points: np.ndarray) -> None:
    with pytest.raises(DataError, match="shape"):
        embedding_figure(points, [("t", TRUE, ("a", "b"))])
