"""What is measured of an image moves as its words say, and only that."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from exmap.describe.measures import COLOURS, MEASURES, averaged, colour_words, measure_pixels, small_side
from exmap.errors import DataError

Pixels = NDArray[np.float32]
NAMES = [measure.name for measure in MEASURES]


def photo(n: int = 4, side: int = 32, seed: int = 0) -> Pixels:
    """Return smooth noise in middling colours."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random((n, 3, side, side)), (0, 0, 2, 2))
    return (0.3 + 0.4 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def measured(pixels: Pixels, name: str) -> NDArray[np.float32]:
    return measure_pixels(pixels)[0][:, NAMES.index(name)]


def scaled(*factors: float) -> Callable[[Pixels], Pixels]:
    return lambda x: x * np.array(factors, dtype=np.float32)[:, None, None]


def stripes(down: float, across: float) -> Callable[[Pixels], Pixels]:
    y, x = np.mgrid[:32, :32]
    return lambda pixels: pixels + 0.1 * np.sin(down * y + across * x).astype(np.float32)


def frame(change: Callable[[Pixels], Pixels], *, inside: bool = False) -> Callable[[Pixels], Pixels]:
    middle = np.zeros((32, 32), dtype=bool)
    middle[8:-8, 8:-8] = True
    return lambda x: np.where(middle == inside, change(x), x).astype(np.float32)


def box(top: int, left: int, size: int = 10) -> Pixels:
    pixels = np.full((2, 3, 32, 32), 0.2, dtype=np.float32)
    pixels[:, :, top : top + size, left : left + size] = 0.8
    return pixels


CHANGES: list[tuple[str, Callable[[Pixels], Pixels]]] = [
    ("brightness", scaled(1.3, 1.3, 1.3)),
    ("contrast", lambda x: x + 0.5 * (x - x.mean(axis=(2, 3), keepdims=True))),
    ("entropy", lambda x: x + np.float32(0.15) * np.random.default_rng(1).random(x.shape, dtype=np.float32)),
    ("saturation", scaled(1.2, 0.6, 0.6)),
    ("red against green", scaled(1.3, 0.8, 1)),
    ("blue against yellow", scaled(0.8, 0.8, 1.3)),
    ("detail", stripes(1.5, 0)),
    ("vertical lines", stripes(0, 1.5)),
    ("slanting lines", stripes(1, 1)),
    ("top against bottom", lambda x: x + np.linspace(0.2, -0.2, 32, dtype=np.float32)[:, None]),
    ("left against right", lambda x: x + np.linspace(0.2, -0.2, 32, dtype=np.float32)),
    ("background brightness", frame(scaled(1.3, 1.3, 1.3))),
    ("background saturation", frame(scaled(1.2, 0.5, 0.5))),
    ("background red against green", frame(scaled(1.3, 0.7, 1))),
    ("background blue against yellow", frame(scaled(0.7, 0.7, 1.3))),
    ("background detail", frame(stripes(1.5, 0))),
    ("middle brightness", frame(scaled(1.3, 1.3, 1.3), inside=True)),
    ("middle red against green", frame(scaled(1.3, 0.7, 1), inside=True)),
    ("middle blue against yellow", frame(scaled(0.7, 0.7, 1.3), inside=True)),
]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[name for name, _ in CHANGES])
def test_a_change_of_the_image_raises_what_is_named_after_it(name: str, change: Callable[[Pixels], Pixels]) -> None:
    before = photo()
    assert (measured(change(before), name) > measured(before, name) + 0.01).all()


def test_a_blurred_image_is_less_sharp_whatever_its_contrast() -> None:
    noise = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    blurred = ndimage.gaussian_filter(noise, (0, 0, 1, 1))
    for strength in (0.5, 1.0, 2.0):
        assert (measured(0.5 + strength * (blurred - 0.5), "sharpness") < measured(noise, "sharpness")).all()


def test_brightness_and_detail_do_not_change_with_the_hue() -> None:
    grey = photo()[:, :1]
    red, green = (np.concatenate([grey * c for c in colour], axis=1) for colour in ((1, 0, 0), (0, 1, 0)))
    for name in ("brightness", "contrast", "detail", "sharpness", "entropy"):
        assert np.allclose(measured(red, name), measured(green, name))
    assert (measured(red, "red against green") > measured(green, "red against green") + 1).all()


def test_where_the_subject_is() -> None:
    places = [(measured(box(*at), "place across")[0], measured(box(*at), "place down")[0]) for at in ((2, 2), (20, 20))]
    assert places[0] == pytest.approx((-0.28, -0.28), abs=0.02)
    assert places[1] == pytest.approx((0.28, 0.28), abs=0.02)
    assert measured(box(8, 8, 16), "extent")[0] > measured(box(12, 12, 8), "extent")[0] + 0.05


def test_slanting_lines_rise_or_fall() -> None:
    """Rows count from the top: brightness that depends on row + column is constant on lines that rise to the right."""
    rise, fall = stripes(1, 1)(photo()), stripes(1, -1)(photo())
    assert (measured(rise, "slanting lines") > 0.2).all()
    assert (measured(fall, "slanting lines") < -0.2).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (89, 109), (224, 224)])
def test_all_is_measured_of_images_of_any_size(channels: int, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).random((2, channels, *shape), dtype=np.float32)
    numbers, colours = measure_pixels(pixels)
    assert numbers.shape == (2, len(MEASURES))
    assert np.isfinite(numbers).all()
    assert all(set(named) <= set(COLOURS) for named in colours.values())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_images_have_no_colour(value: float) -> None:
    numbers, colours = measure_pixels(np.full((1, 3, 16, 16), value, dtype=np.float32))
    assert np.isfinite(numbers).all()
    assert colours["colour"] == ["black" if value == 0 else "white"]
    assert measured(np.full((1, 3, 16, 16), value, dtype=np.float32), "saturation")[0] == 0


def test_pixels_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="finite"):
        measure_pixels(np.full((1, 3, 16, 16), np.nan, dtype=np.float32))


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((0, 0, 1), "blue"),
        ((1, 1, 0), "yellow"),
        ((0, 1, 1), "turquoise"),
        ((0.6, 0, 1), "purple"),
        ((1, 0.4, 0.7), "pink"),
        ((1, 0.5, 0), "orange"),
        ((0.45, 0.3, 0.15), "brown"),
        ((0.5, 0.02, 0.02), "red"),
        ((0.5, 0.5, 0.5), "grey"),
    ],
)
def test_colours_have_the_names_that_people_give_them(colour: tuple[float, ...], name: str) -> None:
    assert colour_words(np.array([colour], dtype=np.float32)) == [name]


@pytest.mark.parametrize("tiles", [4, 5])
def test_averages_cover_the_image_evenly(tiles: int) -> None:
    values = np.random.default_rng(0).random((2, 20, 12), dtype=np.float32)
    found = averaged(values, tiles, 3)
    assert found.shape == (2, tiles, 3)
    assert found.mean() == pytest.approx(values.mean(), rel=1e-5)
    exact = np.kron(values, np.ones((tiles, 1), np.float32)).reshape(2, tiles, 20, 3, 4).mean(axis=(2, 4))
    assert np.allclose(found, exact, atol=1e-5)


def test_a_small_picture_is_at_most_64_pixels_wide() -> None:
    assert all(small_side(side) <= 64 for side in range(1, 600))
    assert small_side(448) == 64
