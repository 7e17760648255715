from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from exmap.report import save_figure, strategies_figure
from exmap.report.drawing import give_title, picture_grid, plain, show_heatmap

IMAGES = np.random.default_rng(0).random((3, 3, 8, 8)).astype(np.float32)


def figure() -> Figure:
    return strategies_figure([("class a / cluster 0", IMAGES, IMAGES - 0.5)], columns=3, title="All that is seen")


def streams(pdf: bytes) -> bytes:
    """Return what the compressed streams of a PDF hold."""
    found = re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL)
    return b"\n".join(zlib.decompress(part) for part in found if part[:1] == b"x")


def test_a_figure_is_saved_as_pixels_and_as_text_that_can_be_searched(tmp_path: Path) -> None:
    png, pdf = save_figure(figure(), tmp_path / "v1.0")
    assert (png.name, pdf.name) == ("v1.0.png", "v1.0.pdf")
    assert png.read_bytes().startswith(b"\x89PNG")
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Subtype /Type0" in content
    assert b"/Type3" not in content
    assert b"beginbfchar" in streams(content) or b"beginbfrange" in streams(content)  # glyphs back to letters
    assert len(content) < 100_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1.0.pdf", "v1.0.png"]


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (save_figure(figure(), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_only_the_formats_asked_for_are_written(tmp_path: Path) -> None:
    assert save_figure(figure(), tmp_path / "a", ["pdf"]) == [tmp_path / "a.pdf"]


def test_settings_of_matplotlib_are_left_alone(tmp_path: Path) -> None:
    import matplotlib

    before = matplotlib.rcParams["pdf.fonttype"]
    save_figure(figure(), tmp_path / "a")
    assert matplotlib.rcParams["pdf.fonttype"] == before


@pytest.mark.parametrize(
    ("text", "wanted"), [("a\tb", "a b"), ("a\nb", "a\nb"), ("x" * 70, "x" * 59 + "…"), ("grün", "grün")]
)
def test_text_is_made_fit_to_be_drawn(text: str, wanted: str) -> None:
    assert plain(text) == wanted


def test_a_reduced_heatmap_covers_its_image() -> None:
    _, axes = picture_grid(1, 2, (2, 1))
    show_heatmap(axes[0, 0], np.ones((3, 4, 4)), np.ones((3, 56, 28)))
    show_heatmap(axes[0, 1], np.ones((3, 4, 6)))
    assert axes[0, 0].images[0].get_extent() == [-0.5, 27.5, 55.5, -0.5]
    assert axes[0, 1].images[0].get_extent() == [-0.5, 5.5, 3.5, -0.5]


def test_a_heatmap_has_full_colour_at_its_largest_value() -> None:
    _, axes = picture_grid(1, 2, (2, 1))
    show_heatmap(axes[0, 0], np.array([[[0.1, -0.4]], [[0.1, 0.0]]]))
    show_heatmap(axes[0, 1], np.zeros((3, 2, 2)))
    assert axes[0, 0].images[0].get_clim() == (-0.4, 0.4)
    np.testing.assert_allclose(axes[0, 0].images[0].get_array(), [[0.2, -0.4]])
    assert axes[0, 1].images[0].get_clim() == (-1.0, 1.0)


@pytest.mark.parametrize("width", [1.5, 4, 12])
def test_a_title_is_no_wider_than_its_figure(width: float) -> None:
    drawn, _ = picture_grid(1, 1, (width, 3))
    give_title(drawn, "The surest of 132 mistakes of the repaired classifier on 2,000 test images\nand $x_{ more")
    drawn.draw_without_rendering()
    (title,) = drawn.texts
    assert title.get_window_extent().width <= drawn.bbox.width
    assert title.get_text().replace("\n", " ").endswith("images and $x_{ more")
