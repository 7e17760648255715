"""Images beside heatmaps of two classifiers, and the figure of mistakes."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray

from exmap.errors import DataError
from exmap.report import comparison_figure, mistakes_figure

RNG = np.random.default_rng(0)
WORDS = ["a", "b, with a long name indeed", "$x_{", "d"]


def pictures(n: int, channels: int = 3, height: int = 8, width: int = 8) -> NDArray[np.float32]:
    return RNG.random((n, channels, height, width)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_stands_above_both_of_its_heatmaps(n: int, channels: int) -> None:
    images, before, after = pictures(n, channels), pictures(n, channels, 4, 4) - 0.5, pictures(n, channels, 4, 4) - 0.5
    said = [f"says {i}" for i in range(n)]
    figure = comparison_figure(
        images,
        before,
        after,
        titles=WORDS[:n],
        said_before=said,
        said_after=said[::-1],
        title="T",
        names=("one", "two"),
    )
    axes = np.array(figure.axes).reshape(3, n)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["image", "one", "two"]
    assert [ax.get_title() for ax in axes[2]] == said[::-1]
    for i in range(n):
        wanted = images[i].transpose(1, 2, 0) if channels == 3 else images[i, 0]
        np.testing.assert_allclose(axes[0, i].images[0].get_array(), wanted)
        for row, maps in ((1, before), (2, after)):
            np.testing.assert_allclose(axes[row, i].images[0].get_array(), maps[i].sum(axis=0), rtol=1e-6)
    assert figure.get_suptitle().startswith("T\nred speaks")
    figure.savefig(BytesIO(), format="png", dpi=30)


@pytest.mark.parametrize(("n", "lines"), [(1, 1), (4, 1), (5, 2), (12, 3)])
def test_mistakes_fill_rows_each_beside_its_heatmap(n: int, lines: int) -> None:
    images, maps = pictures(n), pictures(n) - 0.5
    figure = mistakes_figure(images, maps, [f"$caption {i}" for i in range(n)], columns=4)
    columns = 2 * min(n, 4)
    assert len(figure.axes) == lines * columns
    filled = [ax for ax in figure.axes if ax.images]
    assert len(filled) == 2 * n
    for i in range(n):
        left, right = filled[2 * i : 2 * i + 2]
        np.testing.assert_allclose(left.images[0].get_array(), images[i].transpose(1, 2, 0))
        np.testing.assert_allclose(right.images[0].get_array(), maps[i].sum(axis=0), rtol=1e-6)
        assert left.get_title("left") == f"$caption {i}"
    figure.savefig(BytesIO(), format="png", dpi=30)


def test_tall_images_make_tall_figures() -> None:
    words = ["a", "b"]
    tall, flat = (
        comparison_figure(x, x, x, titles=words, said_before=words, said_after=words).get_figheight()
        for x in (pictures(2, height=16), pictures(2, height=4))
    )
    assert tall > 2 * flat


def test_no_images_give_an_empty_figure() -> None:
    comparison_figure(*[pictures(0)] * 3, titles=[], said_before=[], said_after=[])
    mistakes_figure(pictures(0), pictures(0), [])


def test_parts_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="one entry per image"):
        comparison_figure(*[pictures(2)] * 3, titles=["a"], said_before=["a", "b"], said_after=["a", "b"])
    with pytest.raises(DataError, match="one entry per image"):
        mistakes_figure(pictures(2), pictures(3), ["a", "b"])
