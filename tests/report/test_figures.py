from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exmap.report import strategies_figure
from exmap.report.figures import Row


def rows(n_rows: int = 3, n: int = 4, channels: int = 3, side: int = 8, map_side: int = 4) -> list[Row]:
    rng = np.random.default_rng(0)
    return [
        (
            f"class {i} / cluster 0",
            rng.random((n, channels, side, side)).astype(np.float32),
            rng.uniform(-1, 1, (n, channels, map_side, map_side)).astype(np.float32),
        )
        for i in range(n_rows)
    ]


def grid(figure: Figure, columns: int) -> list[list[Axes]]:
    axes = figure.axes
    return [axes[start : start + 2 * columns] for start in range(0, len(axes), 2 * columns)]


@pytest.mark.parametrize("columns", [1, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_there_are_two_axes_for_each_sample_and_one_row_for_each_group(channels: int, columns: int) -> None:
    figure = strategies_figure(rows(channels=channels), columns=columns)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 3 * 2 * columns
    assert all(len(ax.images) == 1 for ax in figure.axes)
    assert [line[0].get_ylabel() for line in grid(figure, columns)] == [f"class {i} / cluster 0" for i in range(3)]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_summed_heatmaps_stand_side_by_side(channels: int) -> None:
    data = rows(channels=channels)
    figure = strategies_figure(data, columns=2)
    for line, (_, images, maps) in zip(grid(figure, 2), data, strict=True):
        for number in range(2):
            picture, heat = line[2 * number].images[0], line[2 * number + 1].images[0]
            wanted = images[number].transpose(1, 2, 0) if channels == 3 else images[number, 0]
            np.testing.assert_allclose(picture.get_array(), wanted)
            np.testing.assert_allclose(heat.get_array(), maps[number].sum(axis=0), rtol=1e-6)
            low, high = heat.get_clim()
            assert high == -low == pytest.approx(np.abs(maps[number].sum(axis=0)).max())


def test_fewer_samples_than_columns_leave_the_rest_empty() -> None:
    figure = strategies_figure(rows(n_rows=2, n=1), columns=3)
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 0, 0, 0, 0] * 2


def test_an_all_zero_heatmap_and_a_group_without_samples_are_drawn() -> None:
    zero = ("zero", np.zeros((1, 3, 8, 8), dtype=np.float32), np.zeros((1, 3, 4, 4), dtype=np.float32))
    empty = ("empty", np.zeros((0, 3, 8, 8), dtype=np.float32), np.zeros((0, 3, 4, 4), dtype=np.float32))
    figure = strategies_figure([zero, empty], columns=1)
    assert figure.axes[1].images[0].get_clim() == (-1.0, 1.0)
    assert len(figure.axes[2].images) == 0


def test_no_groups_give_an_empty_figure() -> None:
    assert len(strategies_figure([], columns=2).axes) == 4


def test_pixels_outside_the_range_are_clipped_for_show() -> None:
    _, images, maps = rows(1, 1)[0]
    figure = strategies_figure([("a", images * 4 - 2, maps)], columns=1)
    shown = figure.axes[0].images[0].get_array()
    assert (shown.min(), shown.max()) == (0.0, 1.0)


def test_a_figure_can_be_saved() -> None:
    buffer = BytesIO()
    strategies_figure(rows(1, 1), columns=1).savefig(buffer, format="png", dpi=30)
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_the_given_arrays_are_left_alone() -> None:
    data = rows()
    kept = [(images.copy(), maps.copy()) for _, images, maps in data]
    strategies_figure(data)
    for (_, images, maps), (old_images, old_maps) in zip(data, kept, strict=True):
        assert np.array_equal(images, old_images)
        assert np.array_equal(maps, old_maps)


def test_nothing_is_shown_and_pyplot_is_never_imported() -> None:
    program = (
        "import sys, numpy as np; from exmap.report import strategies_figure;"
        "x = np.zeros((1, 3, 4, 4), dtype=np.float32);"
        "strategies_figure([('a', x, x)]); print('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
