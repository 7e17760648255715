"""The warning of shortcuts that nothing goes against, of classifiers that are known to look at one thing alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from exmap.auto.properties import image_properties
from exmap.auto.warning import EXCHANGES, PLACES, PropertyFinding, property_warnings
from exmap.data.dataset import ArrayImages
from exmap.errors import DataError
from exmap.runtime import generator

Floats = NDArray[np.float32]
IntArray = NDArray[np.int64]
Predict = Callable[[Floats], IntArray]

N, SIDE = 80, 28
TEXTURE = {"sharpness", "orientation"}


def pictures(labels: IntArray, **given: IntArray) -> Floats:
    """Bars that lie or stand by their class, with other things by other values: colour, corner, place, stripes."""
    rng, pixels = generator(0, "pictures"), np.zeros((len(labels), 3, SIDE, SIDE), dtype=np.float32)
    y, x = np.mgrid[:SIDE, :SIDE]
    for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        value = {name: int(values[row]) for name, values in given.items()}
        down, right = rng.integers(8, 11, 2) + (6 * value["place"] - 3 if "place" in value else 0)
        long, wide = (10, 4) if label else (4, 10)
        image[:, down : down + long, right : right + wide] = 0.6 + 0.4 * rng.random()
        if "colour" in value:
            image[[1, 2][value["colour"]]] = 0
        if "corner" in value:
            image[:, :4, [0, SIDE - 4][value["corner"]] :][:, :, :4] = 1
        if "stripes" in value:
            across = x if value["stripes"] else y
            image[:] = np.maximum(image, 0.15 + 0.15 * np.sin(2 * np.pi * (across / 4 + rng.random())))
    return pixels


def by_shape(pixels: Floats) -> IntArray:
    """Whether the bright part is taller than it is wide."""
    seen = pixels.max(axis=1) > 0.5
    return (seen.any(axis=2).sum(axis=1) > seen.any(axis=1).sum(axis=1)).astype(np.int64)


def by_colour(pixels: Floats) -> IntArray:
    total = pixels.sum(axis=(2, 3))
    return (total[:, 2] < total[:, 1]).astype(np.int64)


def by_corner(pixels: Floats) -> IntArray:
    return (pixels[:, 0, :3, -3:].mean(axis=(1, 2)) > pixels[:, 0, :3, :3].mean(axis=(1, 2))).astype(np.int64)


def by_place(pixels: Floats) -> IntArray:
    return (pixels[:, 0].sum(axis=2) @ np.arange(SIDE) > 13.5 * pixels[:, 0].sum(axis=(1, 2))).astype(np.int64)


def by_stripes(pixels: Floats) -> IntArray:
    faint = pixels[:, 0, :7]
    return (np.abs(np.diff(faint, axis=2)).mean(axis=(1, 2)) > np.abs(np.diff(faint, axis=1)).mean(axis=(1, 2))).astype(
        np.int64
    )


def asked(
    pixels: Floats, labels: IntArray, predict: Predict, heatmaps: Floats | None = None, seed: int = 0
) -> dict[str, PropertyFinding]:
    images = ArrayImages(pixels)
    found = property_warnings(
        image_properties(images),
        labels,
        predict(pixels),
        pixels=images.pixels,
        predict=predict,
        heatmaps=heatmaps,
        images=60,
        seed=seed,
    )
    return {finding.family: finding for finding in found}


LABELS = np.arange(N, dtype=np.int64) % 2


@pytest.mark.parametrize(
    ("what", "predict", "families"),
    [
        ("colour", by_colour, {"colour"}),
        ("corner", by_corner, {"border", "background", PLACES, *TEXTURE}),  # a corner is also edges
        ("place", by_place, {"layout"}),
        ("stripes", by_stripes, {"border", "background", *TEXTURE}),  # it looks at those above the bar
    ],
)
def test_a_classifier_that_looks_at_a_property_alone_is_warned_of(
    what: str, predict: Predict, families: set[str]
) -> None:
    pixels = pictures(LABELS, **{what: LABELS})
    assert (predict(pixels) == LABELS).all()  # no image is classified wrong
    found = asked(pixels, LABELS, predict)
    warned = {name for name, finding in found.items() if finding.warned}
    assert warned
    assert warned <= families
    assert what != "corner" or {"border", PLACES} <= warned
    assert what != "stripes" or "orientation" in warned
    for name in warned:
        finding = found[name]
        assert finding.accuracy >= 0.9
        assert finding.low <= finding.accuracy <= finding.high
        assert finding.followed is not None
        assert finding.control is not None
        assert finding.followed > 0.7 > 0.2 > finding.control
        assert finding.p_value <= 0.05
        assert finding.why.endswith(".")
        assert f"{finding.followed:.0%}" in finding.why


@pytest.mark.parametrize("what", ["colour", "corner"])
def test_a_classifier_that_looks_at_the_thing_is_not_warned_of_however_well_a_property_tells_the_class(
    what: str,
) -> None:
    pixels = pictures(LABELS, **{what: LABELS})

    def predict(images: Floats) -> IntArray:
        middle = images[:, :, 4:-4, 4:-4] if what == "corner" else images
        return by_shape(middle)

    found = asked(pixels, LABELS, predict)
    assert any(finding.accuracy > 0.95 for finding in found.values())
    assert not found["colour"].warned
    assert not found["border"].warned
    assert not found["layout"].warned


def test_a_property_that_says_nothing_of_the_class_is_not_looked_into() -> None:
    values = generator(0, "values").integers(0, 2, N)
    found = asked(pictures(LABELS, colour=values), LABELS, by_shape)
    finding = found["colour"]
    assert finding.accuracy < 0.7
    assert (finding.followed, finding.control, finding.images, finding.p_value) == (None, None, 0, 1.0)
    assert not finding.warned
    assert finding.why.startswith("The class can be told from the colour alone in")
    assert found[PLACES].relevance is None


def test_relevance_in_constant_places_is_told_beside_them() -> None:
    heatmaps = np.zeros((N, 1, SIDE, SIDE), dtype=np.float32)
    heatmaps[:, :, 1:3, 1:3] = -1
    heatmaps[:, :, 24:26, 24:26] = 1
    finding = asked(pictures(LABELS, corner=LABELS), LABELS, by_corner, heatmaps)[PLACES]
    assert finding.area is not None
    assert 8 / 196 <= finding.area < 0.1  # two corners of 2 x 2 places, and perhaps some of the bar
    assert finding.relevance == pytest.approx(0.5)
    assert "50% of the relevance" in finding.why


def test_findings_follow_from_the_seed() -> None:
    labels = LABELS[:30]
    pixels = pictures(labels, colour=labels)
    assert asked(pixels, labels, by_colour) == asked(pixels, labels, by_colour)


def test_what_predict_says_must_be_what_was_predicted() -> None:
    images = ArrayImages(pictures(LABELS, colour=LABELS))
    with pytest.raises(DataError, match="predict must say"):
        property_warnings(
            image_properties(images), LABELS, LABELS, pixels=images.pixels, predict=lambda batch: by_colour(1 - batch)
        )


def test_arrays_of_other_images_are_refused() -> None:
    images = ArrayImages(pictures(LABELS[:20]))
    with pytest.raises(DataError, match="one length"):
        property_warnings(image_properties(images), LABELS, LABELS, pixels=images.pixels, predict=by_shape)


def test_of_few_images_nothing_is_exchanged() -> None:
    labels = LABELS[:10]
    found = asked(pictures(labels, colour=labels), labels, by_colour)
    assert not any(finding.warned for finding in found.values())
    assert {finding.images for finding in found.values()} == {0}


@pytest.mark.parametrize("family", EXCHANGES)
@pytest.mark.parametrize("shape", [(1, 20, 31), (3, 8, 8), (3, 40, 28)])
def test_an_exchange_keeps_images_what_they_are(family: str, shape: tuple[int, int, int]) -> None:
    rng = generator(0, "exchange")
    kept, given = rng.random((2, 3, *shape), dtype=np.float32)
    made = EXCHANGES[family](kept, given)
    assert made.shape == kept.shape
    assert made.dtype == np.float32
    assert 0 <= made.min() <= made.max() <= 1
    np.testing.assert_allclose(EXCHANGES[family](kept, kept), kept, atol=1e-4)
