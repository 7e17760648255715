"""Properties of images: each family sees what it is for, and nothing depends on how images are read."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from exmap.auto.properties import FAMILIES, Properties, averaged, image_properties
from exmap.data.dataset import ArrayImages, array_split
from exmap.errors import DataError
from exmap.runtime import generator

Floats = NDArray[np.float32]


def random_images(*shape: int) -> ArrayImages:
    return ArrayImages(generator(0, "images").integers(0, 256, shape).astype(np.uint8))


def blobs(n: int, side: int = 32, *, colour: tuple[float, float, float] = (1, 1, 1), at: int = 8) -> Floats:
    """Bright squares of random size and brightness on black."""
    rng, pixels = generator(1, "blobs"), np.zeros((n, 3, side, side), dtype=np.float32)
    for image in pixels:
        size, light = rng.integers(6, 12), 0.5 + 0.5 * rng.random()
        image[:, at : at + size, at : at + size] = light * np.array(colour)[:, None, None]
    return pixels


def stripes(n: int, degrees: float, side: int = 32) -> Floats:
    """Faint stripes, shifted at random, behind a bright square."""
    y, x = np.mgrid[:side, :side]
    angle, rng = np.deg2rad(degrees), generator(2, "stripes", int(degrees))
    across = (x * np.cos(angle) + y * np.sin(angle)) / 5
    wave = 0.1 * (1 + np.sin(2 * np.pi * (across + rng.random(n)[:, None, None])))
    return np.maximum(blobs(n, side), wave[:, None].astype(np.float32))


def apart(a: Floats, b: Floats, family: str) -> float:
    """How far two sets of images lie apart in a family, over how far images of one set do."""
    found = image_properties(ArrayImages(np.concatenate([a, b]))).standardised(family)
    left, right = found[: len(a)], found[len(a) :]
    within = np.sqrt((left.var(axis=0).sum() + right.var(axis=0).sum()) / 2)
    return float(np.linalg.norm(left.mean(axis=0) - right.mean(axis=0)) / (within + 1e-9))


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 28, 28), (3, 4, 5), (3, 40, 300), (1, 257, 70)])
def test_every_family_is_a_finite_matrix_whatever_the_images_are(shape: tuple[int, int, int]) -> None:
    found = image_properties(random_images(5, *shape))
    assert found.names == tuple(FAMILIES)
    assert len(found) == 5
    for name in found.names:
        assert found[name].dtype == np.float32
        assert found[name].shape == (5, sum(found.blocks[name]))
        assert np.isfinite(found[name]).all()
        assert np.isfinite(found.standardised(name)).all()


def test_nothing_depends_on_the_batches_that_images_are_read_in() -> None:
    images = random_images(7, 3, 20, 24)
    together, apart_ = image_properties(images), image_properties(images, batch_size=2)
    for name in FAMILIES:
        np.testing.assert_allclose(together[name], apart_[name], atol=1e-5)


@dataclass
class Counted:
    """Images that keep how many were asked for at once."""

    images: ArrayImages
    asked: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def __getattr__(self, name: str) -> object:
        return getattr(self.images, name)

    def pixels(self, indices: NDArray[np.int64]) -> Floats:
        self.asked.append(len(indices))
        return self.images.pixels(indices)


def test_large_images_are_never_held_all_at_once() -> None:
    images = Counted(random_images(60, 3, 224, 224))
    image_properties(images)  # type: ignore[arg-type]
    assert sum(images.asked) == 60
    assert max(images.asked) * 3 * 224 * 224 <= 4_000_000


def test_a_split_may_be_given_for_its_images() -> None:
    images = random_images(4, 3, 8, 8)
    split = array_split(images.array, [0, 1, 0, 1])
    np.testing.assert_array_equal(image_properties(split)["colour"], image_properties(images)["colour"])


def test_colour_sees_a_tint_and_not_how_bright_it_is() -> None:
    red, green = blobs(20, colour=(1, 0, 0)), blobs(20, colour=(0, 1, 0))
    assert apart(red, green, "colour") > 10
    assert apart(red, green, "brightness") < 0.1
    bright, dark = blobs(20), blobs(20) * 0.5
    assert apart(bright, dark, "brightness") > 0.5
    np.testing.assert_allclose(image_properties(ArrayImages(bright))["colour"][:, :15], 0, atol=1e-5)


def test_layout_sees_where_things_are_and_how_large() -> None:
    assert apart(blobs(20, at=2), blobs(20, at=18), "layout") > 2
    found = image_properties(ArrayImages(blobs(1, at=2)))["layout"]
    assert (found[0, :2] < -0.1).all()  # above and left of the middle


def test_border_sees_a_mark_in_a_corner() -> None:
    plain, marked = blobs(20), blobs(20)
    marked[:, :, :4, :4] = 1
    assert apart(plain, marked, "border") > 10
    assert apart(plain, marked, "colour") < 1


@pytest.mark.parametrize(("first", "second"), [(0, 90), (30, 48), (135, 153)])
def test_orientation_sees_faint_stripes_at_an_angle(first: int, second: int) -> None:
    one, other = stripes(20, first), stripes(20, second)
    assert apart(one, other, "orientation") > 1.5
    assert apart(one, other, "orientation") > 5 * apart(one, other, "brightness")


def test_sharpness_sees_blur() -> None:
    sharp = random_images(10, 3, 32, 32).array.astype(np.float32) / 255
    blurred = (sharp + np.roll(sharp, 1, axis=2) + np.roll(sharp, 1, axis=3) + np.roll(sharp, 2, axis=3)) / 4
    assert apart(sharp, blurred, "sharpness") > 3


def test_background_sees_what_is_around_a_thing() -> None:
    black, blue = blobs(20, at=10), blobs(20, at=10)
    blue[:, 2] = np.maximum(blue[:, 2], 0.3)
    assert apart(black, blue, "background") > 1
    assert apart(black, blue, "sharpness") < apart(black, blue, "background")


def test_standardised_blocks_have_one_length_and_keep_what_hardly_varies_small() -> None:
    matrix = np.array([[0, 0, 5], [1, 0.01, 5], [0, 0.01, 5], [1, 0, 5]], dtype=np.float32)
    found = Properties({"made": matrix}, {"made": (2, 1)}).standardised("made")
    assert np.square(found[:, :2]).sum(axis=1).mean() == pytest.approx(1, abs=1e-5)
    assert np.ptp(found[:, 1]) < 0.05
    assert (found[:, 2] == 0).all()


def test_rows_are_those_of_the_images() -> None:
    found = image_properties(random_images(6, 3, 8, 8))
    rows = np.array([4, 1])
    np.testing.assert_array_equal(found.rows(rows)["border"], found["border"][rows])


def test_means_over_tiles_weigh_pixels_by_the_share_that_lies_in_each() -> None:
    assert averaged(np.array([[[0, 3, 6]]], dtype=np.float32), 1, 2)[0, 0].tolist() == pytest.approx([1, 5])


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 2, 8, 8), (2, 3, 3, 8)])
def test_images_that_have_no_properties_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="1 or 3 channels"):
        image_properties(ArrayImages(np.zeros(shape, dtype=np.uint8)))


def test_pixels_that_are_no_numbers_are_black_or_refused_where_they_are_shown_as_such() -> None:
    class Shown(ArrayImages):
        def pixels(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
            return self.batch(indices)

    pixels = generator(0, "images").random((2, 3, 8, 8), dtype=np.float32)
    pixels[1] = 0
    black = image_properties(ArrayImages(pixels))
    pixels[1] = np.nan
    found = image_properties(ArrayImages(pixels))
    for name in FAMILIES:
        np.testing.assert_array_equal(found[name], black[name])
    with pytest.raises(DataError, match="finite"):
        image_properties(Shown(pixels))


def test_families_of_different_images_do_not_go_together() -> None:
    with pytest.raises(DataError, match="2 rows"):
        Properties({"a": np.zeros((2, 1), np.float32), "b": np.zeros((3, 1), np.float32)}, {"a": (1,), "b": (1,)})
