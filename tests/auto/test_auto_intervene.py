"""Exchanged properties: a classifier that looks at one is found out, one that only meets hard images is not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import ttest_ind

from exmap.auto.intervene import PROPERTIES, Intervention, Predict, _match, _test, intervene
from exmap.data import ArrayImages
from exmap.errors import DataError
from exmap.records import Explained, Heatmaps, IntArray, Outputs

SIDE = 4  # pixels of an object
SHAPE = (12, 18)
EACH, SOME = 70, 16  # images of a class, and of them a group's and others that are as hard
Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """Images, a classifier of them, and the rows of a group."""

    predict: Predict
    images: ArrayImages
    explained: Explained
    group: IntArray

    def intervene(self, **given: Any) -> Intervention:
        return intervene(self.predict, self.images, self.explained, self.group, **given)

    def judged_by(self, predict: Predict) -> Scene:
        logits = predict(self.images.array)
        outputs = Outputs(np.zeros((len(logits), 1), np.float32), logits)
        return replace(self, predict=predict, explained=replace(self.explained, outputs=outputs))


def classifier(kind: str, templates: Pixels, reliance: float) -> Predict:
    """Return a classifier that finds objects wherever they are, and looks at one property of the image besides."""
    classes = len(templates)

    def predict(images: Pixels) -> NDArray[np.float64]:
        assert images.dtype == np.float32
        assert images.ndim == 4
        grey = images.mean(axis=1)
        found = np.fft.rfft2(grey)[:, None] * np.conj(np.fft.rfft2(templates, s=grey.shape[1:]))
        logits = np.fft.irfft2(found, s=grey.shape[1:]).max(axis=(2, 3)) / SIDE
        return logits + reliance * property_of(images, kind, classes)

    return predict


def property_of(images: Pixels, kind: str, classes: int) -> NDArray[np.floating]:
    """Return how much an image's property speaks for each class, shape (n, classes)."""
    if kind == "border":
        return images[:, :, 0, :classes].mean(axis=1)
    if kind == "colours":
        return images.sum(axis=(2, 3)) / images.sum(axis=(1, 2, 3))[:, None]
    mass = images.sum(axis=(1, 2))
    centre = mass @ np.arange(mass.shape[1]) / mass.sum(axis=1)
    return -np.abs(centre[:, None] - columns(classes) - (SIDE - 1) / 2) / 4


def columns(classes: int) -> IntArray:
    return 2 + 5 * np.arange(classes)


@cache
def scene(kind: str, group: str, *, classes: int = 3, channels: int = 3, reliance: float = 3.0) -> Scene:
    """Draw objects, each with its class's value of a property.

    The group is of the first class: images with another class's value ("fooled"), or with an object that is halfway to
    another class's ("hard"). The rest of the class holds as many hard ones.
    """
    rng = np.random.default_rng(5)
    templates = np.zeros((classes, SIDE * SIDE), np.float32)
    for template in templates:
        template[rng.permutation(SIDE * SIDE)[: SIDE * SIDE // 2]] = 1
    templates = templates.reshape(-1, SIDE, SIDE)
    labels = np.repeat(np.arange(classes), EACH)
    value, other = labels.copy(), (labels + 1) % classes
    mixed = rng.uniform(0, 0.1, len(labels))
    others = slice(40, 40 + SOME)
    mixed[others] = rng.uniform(0.3, 0.7, SOME)
    if group == "hard":
        mixed[:SOME], mixed[others] = rng.uniform(0.5, 1, (2, SOME))
    else:
        value[:SOME] = other[:SOME]
    objects = templates[labels] * (1 - mixed)[:, None, None] + templates[other] * mixed[:, None, None]
    pixels = np.zeros((len(labels), channels, *SHAPE), np.float32)
    for image, thing, number in zip(pixels, objects, value, strict=True):
        top, left = rng.integers(3, 6), columns(classes)[number] if kind == "place" else rng.integers(3, 11)
        shown = slice(number, number + 1) if kind == "colours" else slice(None)
        image[shown, top : top + SIDE, left : left + SIDE] = thing * (channels if kind == "colours" else 1)
        if kind == "border":
            image[:, 0, number] = 1
    names, ids = tuple(f"class {k}" for k in range(classes)), tuple(map(str, range(len(labels))))
    nothing = Outputs(np.zeros((len(labels), 1), np.float32), np.zeros((len(labels), classes), np.float32))
    explained = Explained("val", ids, labels, names, nothing)
    drawn = Scene(lambda x: x, ArrayImages(pixels), explained, np.arange(SOME))
    return drawn.judged_by(classifier(kind, templates, reliance))


# What is found


@pytest.mark.parametrize("kind", PROPERTIES)
def test_a_group_that_a_property_fools_reacts_to_that_property(kind: str) -> None:
    found = scene(kind, "fooled").intervene()
    assert found.reacts is True
    assert found.exchanged == kind
    assert found.p_value == pytest.approx(0.001)
    assert found.restored[0] > 0.9
    assert found.spoiled[0] > 0.9 > 0.3 > found.spoiled[1]
    assert found.why.startswith(f"With the {kind} of its images, {found.spoiled[0]:.0%} of class-mates are classified")
    assert f"with a class-mate's {kind}, {found.restored[0]:.0%} of its 16 wrong images are right." in found.why
    assert min(found.gained[0] - found.gained[1], found.lost[0] - found.lost[1]) == pytest.approx(found.effect)


@pytest.mark.parametrize("kind", PROPERTIES)
def test_a_group_of_hard_images_does_not_react(kind: str) -> None:
    drawn = scene(kind, "hard", reliance=0.2)
    assert (~drawn.explained.correct[drawn.group]).sum() >= 4
    found = drawn.intervene()
    assert found.reacts is False
    assert found.p_value > 0.05
    assert abs(found.margin_gap) < 0.3
    assert "the images are hard, or another property fools the classifier" in found.why


@pytest.mark.parametrize("kind", PROPERTIES)
def test_an_unusual_property_that_the_classifier_does_not_look_at_is_none(kind: str) -> None:
    drawn = scene(kind, "fooled", reliance=0.0)
    assert drawn.explained.correct[drawn.group].all()
    found = drawn.intervene()
    assert found.reacts is False
    assert found.restored[0] is None


def test_a_group_may_react_though_none_of_its_images_is_wrong() -> None:
    drawn = scene("border", "fooled", reliance=0.3)
    assert drawn.explained.correct[drawn.group].all()
    found = drawn.intervene()
    assert found.reacts is True
    assert found.restored[0] is None
    assert "wrong images" not in found.why


def test_one_channel_and_many_classes() -> None:
    found = scene("border", "fooled", classes=10, channels=1).intervene()
    assert (found.reacts, found.exchanged) == (True, "border")
    assert scene("border", "hard", classes=10, channels=1, reliance=0.2).intervene().reacts is False


def test_a_small_reaction_does_not_count_however_sure_it_is() -> None:
    found = scene("border", "fooled", reliance=0.05).intervene()
    assert found.p_value <= 0.05
    assert 0 < found.effect < 0.5
    assert found.reacts is False
    assert "too little to count" in found.why


def test_the_level_is_asked_for() -> None:
    assert scene("border", "fooled").intervene(level=0.0005).reacts is False


# Determinism, cost


def test_the_seed_decides_and_the_order_of_the_group_does_not() -> None:
    drawn = scene("place", "hard")
    assert drawn.intervene() == replace(drawn, group=drawn.group[::-1]).intervene()
    assert drawn.intervene() != drawn.intervene(seed=1)


def test_heatmaps_make_no_difference() -> None:
    drawn, n = scene("border", "fooled"), len(scene("border", "fooled").explained)
    zeros = np.zeros((n, 1, 2, 2), np.float32)
    maps = Heatmaps(zeros, drawn.explained.predicted, zeros[:, 0, 0, 0], np.ones(n, bool), np.ones(n, bool))
    assert replace(drawn, explained=replace(drawn.explained, heatmaps=maps)).intervene() == drawn.intervene()


def test_a_large_group_costs_no_more_than_1536_images_of_at_most_64_at_once() -> None:
    seen: list[int] = []

    def predict(images: Pixels) -> NDArray[np.floating]:
        seen.append(len(images))
        return np.stack([np.full(len(images), 1.0), images.mean(axis=(1, 2, 3))], axis=1)

    labels = np.zeros(400, dtype=np.int64)
    pixels = np.random.default_rng(0).random((400, 1, 5, 5)).astype(np.float32)
    outputs = Outputs(np.zeros((400, 1), np.float32), predict(pixels))
    explained = Explained("val", tuple(map(str, labels.cumsum() + np.arange(400))), labels, ("a", "b"), outputs)
    seen.clear()
    found = intervene(predict, ArrayImages(pixels), explained, np.arange(100))
    assert (found.images, found.matched, found.mates) == (64, 64, 236)
    assert (sum(seen), max(seen)) == (1536, 64)


# Too little


@pytest.mark.parametrize("rows", [np.arange(3), np.arange(EACH - 3), np.arange(EACH)])
def test_nothing_is_tested_where_group_or_rest_are_too_small(rows: IntArray) -> None:
    found = replace(scene("border", "fooled"), group=rows).intervene()
    assert found.reacts is None
    assert found.p_value is None
    assert found.exchanged == ""
    assert found.why.startswith(f"The group has {min(len(rows), 64)} images")


def test_a_group_of_four_can_be_tested_and_class_mates_are_those_that_are_right() -> None:
    drawn = scene("border", "hard", reliance=0.2)
    found = replace(drawn, group=np.arange(4)).intervene()
    assert (found.images, found.matched) == (4, 4)
    assert found.reacts is not None
    assert found.mates <= drawn.explained.correct[4:EACH].sum() < EACH - 8


def test_the_record_goes_to_json_and_back() -> None:
    drawn = scene("border", "fooled")
    for found in (drawn.intervene(), replace(drawn, group=np.arange(3)).intervene()):
        assert Intervention.from_json(found.model_dump(mode="json")) == found


# Errors


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "must hold rows in"),
        ([-1, 2], "must hold rows in"),
        ([0, 999], "must hold rows in"),
        ([[0, 1]], "must hold rows in"),
        ([0, 1, 1], "some repeat"),
        ([0, EACH], "of one class, got class 0, class 1"),
    ],
)
def test_a_group_that_is_none_is_refused(rows: list[Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        replace(scene("border", "fooled"), group=np.array(rows, dtype=np.int64)).intervene()


@pytest.mark.parametrize(
    ("predict", "said"),
    [
        (lambda x: np.zeros((len(x), 2)), r"of shape \(32, 3\), got shape \(32, 2\)"),
        (lambda x: np.full((len(x), 3), np.nan), "got NaN or infinity"),
    ],
)
def test_another_classifier_is_refused(predict: Predict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        replace(scene("border", "fooled"), predict=predict).intervene()


def test_other_images_are_refused() -> None:
    with pytest.raises(DataError, match="must be the 210 explained ones, got 2"):
        replace(scene("border", "fooled"), images=ArrayImages(np.zeros((2, 1, 3, 3)))).intervene()


# The parts


def test_reactions_are_the_smaller_welch_statistic_of_both_directions() -> None:
    scores = np.random.default_rng(1).normal(size=(21, 3, 2)) + np.arange(6).reshape(3, 2)
    scores[:9] += 1
    reactions, _ = _test(scores, 9, np.random.default_rng(0))
    slow = ttest_ind(scores[:9], scores[9:], equal_var=False).statistic.min(axis=1)
    np.testing.assert_allclose(reactions, slow, rtol=1e-6)


def test_p_values_hold_their_level_where_images_are_alike() -> None:
    rng = np.random.default_rng(2)
    p_values = np.array([_test(rng.normal(size=(20, 3, 1)).repeat(2, axis=2), 10, rng)[1] for _ in range(100)])
    assert 0.01 <= np.mean(p_values <= 0.05) <= 0.1
    assert 0.4 < p_values.mean() < 0.6


def test_identical_images_react_with_a_p_value_of_one() -> None:
    assert _test(np.ones((8, 3, 2)), 4, np.random.default_rng(0))[1] == 1


def test_each_image_is_matched_with_the_nearest_that_remains() -> None:
    margins = np.array([0.0, 1.0, 9.0, 1.1, 0.8, 8.0, 5.0, 6.0, 7.0])
    assert _match(margins, np.array([1, 0, 2]), np.array([3, 4, 5, 6, 7, 8])).tolist() == [3, 4, 5]
    assert len(_match(margins, np.array([1, 0, 2]), np.array([3, 4, 5]))) == 1  # half of the rest are left as mates


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_exchanges_keep_shapes_and_do_nothing_between_equal_images(c: int, h: int, w: int, seed: int) -> None:
    own, other = np.random.default_rng(seed).random((2, 3, c, h, w), dtype=np.float32)
    for name, change in PROPERTIES.items():
        before, changed = own.copy(), change(own, other)
        assert (changed.shape, changed.dtype) == (own.shape, np.float32)
        assert np.isfinite(changed).all()
        np.testing.assert_array_equal(own, before)
        if name != "colours" or c == 1:
            np.testing.assert_allclose(change(own, own), own, atol=1e-5)


def test_colours_are_the_mean_and_spread_of_each_channel() -> None:
    own, other = np.random.default_rng(0).random((2, 3, 3, 6, 7), dtype=np.float32)
    changed = PROPERTIES["colours"](own, other)
    np.testing.assert_allclose(changed.mean((2, 3)), other.mean((2, 3)), atol=1e-5)
    np.testing.assert_allclose(changed.std((2, 3)), other.std((2, 3)), atol=1e-5)
    assert np.corrcoef(changed[0, 0].ravel(), own[0].mean(0).ravel())[0, 1] > 0.999


def test_the_border_is_exchanged_and_the_inside_kept() -> None:
    changed = PROPERTIES["border"](np.zeros((1, 1, 20, 28), np.float32), np.ones((1, 1, 20, 28), np.float32))
    assert changed[0, 0, 3:17, 3:25].sum() == 0
    assert changed.sum() == 20 * 28 - 14 * 22


def test_what_is_shown_moves_to_the_place_of_the_other() -> None:
    own, other = np.zeros((2, 1, 2, 9, 11), np.float32)
    own[0, :, 1:3, 1:3] = 1
    other[0, :, 6:8, 4:6] = 5
    np.testing.assert_allclose(PROPERTIES["place"](own, other), other / 5)
