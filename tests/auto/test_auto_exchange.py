"""What predictions follow: exchanges of properties, of classifiers that are known to read one thing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from planted_pictures import Reader, Scene, of, pictures, scene
from torch import nn

from exmap.auto.exchange import Exchanges, measure_exchanges
from exmap.auto.experiment import experiment
from exmap.data.dataset import ArrayImages
from exmap.exchange import Looks, exchange_background, exchange_colour, exchange_place
from exmap.pipeline.files import load_exchanges, save_exchanges
from exmap.records import IntArray, Outputs, Progress

MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)[:, None, None]

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Normalised(ArrayImages):
    """Images in [0, 1] that the classifier wants normalised, each channel by itself."""

    def batch(self, indices: IntArray) -> Pixels:
        return np.asarray((self.array[indices] - MEAN) / STD, dtype=np.float32)

    def pixels(self, indices: IntArray) -> Pixels:
        return np.asarray(self.array[indices], dtype=np.float32)


class Undone(nn.Module):
    """A classifier of images in [0, 1], of normalised ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.mean, self.std = model, torch.from_numpy(MEAN), torch.from_numpy(STD)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(x * self.std + self.mean)
        return found


def measured(drawn: Scene, *, seed: int = 0) -> Exchanges:
    return measure_exchanges(drawn.looks, drawn.explained, seed=seed)


def relied_on(exchanges: Exchanges) -> set[tuple[str, str]]:
    return {(each.property, each.class_name) for each in exchanges.reliances if each.relied_on}


def some_pictures(prop: str = "colour", n: int = 8, seed: int = 0) -> tuple[Pixels, IntArray]:
    rng = np.random.default_rng(seed)
    values = np.arange(n) % 2
    return pictures(rng.integers(0, 2, n), 2, {prop: values}, rng), values


# What is exchanged


def test_a_given_colour_keeps_the_brightness() -> None:
    images, _ = some_pictures()
    changed = exchange_colour(images, images[::-1])
    np.testing.assert_allclose(changed.max(axis=1), images.max(axis=1), atol=1e-5)
    given = exchange_colour(images[:1], images[1:2])
    np.testing.assert_allclose(given.mean((2, 3)) / given.max(), images[1:2].mean((2, 3)) / images[1].max(), atol=0.1)


def test_grey_images_stay_grey_among_grey_ones_and_a_grey_donor_makes_one_colour_grey() -> None:
    grey = np.repeat(np.random.default_rng(0).random((4, 1, 12, 15), dtype=np.float32), 3, axis=1)
    np.testing.assert_allclose(exchange_colour(grey, grey[::-1]), grey, atol=1e-5)
    one = grey[:, :1]
    np.testing.assert_allclose(exchange_colour(one, one[::-1]), one, atol=1e-6)
    images, _ = some_pictures()
    block = images.max(axis=1) > 0.4
    faded = exchange_colour(images, np.resize(grey[:, :, :, :12], (8, 3, 12, 12)))
    assert np.ptp(faded, axis=1)[block].mean() < 0.2 * np.ptp(images, axis=1)[block].mean()


def test_a_given_background_leaves_the_object() -> None:
    images, values = some_pictures("background")
    changed = exchange_background(images, images[np.arange(8) ^ 1])
    block = images[:, 0] > 0.45
    for channel in range(3):
        np.testing.assert_allclose(changed[:, channel][block], images[:, channel][block], atol=0.02)
    at = {0: np.s_[:2, :2], 1: np.s_[:2, -2:]}
    for image, value in zip(changed[:, 0], values, strict=True):
        assert image[at[value]].max() < 0.15
        assert image[at[1 - value]].min() > 0.25


def test_a_given_place_moves_what_is_shown_and_fills_with_the_border() -> None:
    images = np.full((2, 3, 20, 30), 0.2, np.float32)
    images[0, :, 2:8, 3:9] = 1
    images[1, :, 10:16, 20:26] = 0.6
    moved = exchange_place(images, images[::-1])
    expected = np.full_like(images, 0.2)
    expected[0, :, 10:16, 20:26] = 1
    expected[1, :, 2:8, 3:9] = 0.6
    np.testing.assert_allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize("exchange", [exchange_colour, exchange_background, exchange_place])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_that_gives_to_itself_stays_as_it_is(exchange: object, channels: int) -> None:
    images = np.random.default_rng(1).random((5, channels, 11, 14), dtype=np.float32)
    images[0], images[1] = 0, 1
    before = images.copy()
    changed = exchange(images, images)  # type: ignore[operator]
    assert (changed.shape, changed.dtype) == (images.shape, np.float32)
    np.testing.assert_allclose(changed, before, atol=0.06)  # dark pixels of a tint lose some of it
    np.testing.assert_array_equal(images, before)


# What is found


@pytest.fixture(scope="module")
def coloured() -> Scene:
    return scene("colour", {"colour": 1.0}, classes=3)


@pytest.fixture(scope="module")
def by_colour(coloured: Scene) -> Exchanges:
    return measured(coloured)


def test_what_is_said_of_a_class_that_follows_the_colour(coloured: Scene, by_colour: Exchanges) -> None:
    assert relied_on(by_colour) == {("colour", name) for name in coloured.split.class_names}
    first = by_colour.of("block 0")[0]
    assert (first.property, first.pairs) == ("colour", 100)
    assert first.moved > first.moved_low > 0.2
    assert first.turned > 0.9 > 0.1 > first.turned_control
    assert first.p_value < 1e-6
    assert first.why.startswith("Given the colour of images that are taken for another class, ")
    assert set(by_colour.votes) == {"colour"}
    votes = by_colour.votes["colour"]
    assert (votes.shape, votes.dtype) == ((240, 3), np.float32)
    np.testing.assert_array_equal(votes.argmax(axis=1), coloured.values)
    against = by_colour.against("colour", coloured.split.labels)
    np.testing.assert_array_equal(against, coloured.values != coloured.split.labels)


def test_the_seed_decides(coloured: Scene, by_colour: Exchanges) -> None:
    same, other = measured(coloured), measured(coloured, seed=1)
    assert same.reliances == by_colour.reliances != other.reliances
    np.testing.assert_array_equal(same.votes["colour"], by_colour.votes["colour"])
    assert not np.array_equal(other.votes["colour"], by_colour.votes["colour"])


def test_a_donors_label_does_not_matter(coloured: Scene, by_colour: Exchanges) -> None:
    """Labels say who may receive, so of images that are wrong anyway any wrong label gives the same votes."""
    explained = coloured.explained
    third = 3 - explained.labels - explained.outputs.predicted
    labels = np.where(explained.correct, explained.labels, third)
    assert (labels != explained.labels).sum() > 10
    other = measure_exchanges(coloured.looks, replace(explained, labels=labels), seed=0)
    np.testing.assert_array_equal(other.votes["colour"], by_colour.votes["colour"])
    assert other.reliances == by_colour.reliances


def test_only_some_of_many_images_vote(coloured: Scene, by_colour: Exchanges, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exmap.auto.exchange.MOST_VOTES", 100)
    votes = measured(coloured).votes["colour"]
    asked = np.isfinite(votes).all(axis=1)
    assert asked.sum() == 50
    assert np.isnan(votes[~asked]).all()
    against = replace(by_colour, votes={"colour": votes}).against("colour", coloured.split.labels)
    np.testing.assert_array_equal(against == -1, ~asked)


def test_exchanges_go_to_files_and_back(coloured: Scene, tmp_path: Path) -> None:
    found = experiment(coloured.split, coloured.explained, coloured.model)
    assert found.measured
    assert found.reactions
    for number, each in enumerate((found, Exchanges())):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_exchanges(each, folder)
        again = load_exchanges(folder)
        assert (again.reliances, again.reactions, again.warnings) == (each.reliances, each.reactions, each.warnings)
        assert again.votes.keys() == each.votes.keys()
        for name, votes in each.votes.items():
            np.testing.assert_array_equal(again.votes[name], votes)


def test_progress_is_told(coloured: Scene) -> None:
    told: list[Progress] = []
    few = replace(coloured.explained, labels=1 - np.minimum(coloured.explained.outputs.predicted, 1))
    measure_exchanges(coloured.looks, few, seed=0, listen=told.append)
    assert told == []  # no image is right: nothing to exchange
    found = measure_exchanges(coloured.looks, coloured.explained, seed=0, listen=told.append)
    assert found.votes
    assert [each.done for each in told] == sorted(each.done for each in told)
    assert all(each.done <= each.total for each in told)
    assert told[-1].done == told[-1].total > told[0].total  # more images are asked about where a property votes


def test_one_channel() -> None:
    found = measured(scene("background", channels=1))
    assert relied_on(found) == {("background", "block 0"), ("background", "block 1")}
    assert all(each.moved == 0 for each in found.reliances if each.property == "colour")


def test_many_classes() -> None:
    found = measured(scene("colour", classes=12, n=480))
    assert {each.pairs for each in found.reliances} == {50}
    assert relied_on(found) == {("colour", f"block {k}") for k in range(12)}
    assert found.votes["colour"].shape == (480, 12)


def test_large_images_that_are_no_squares() -> None:
    drawn = scene("colour", n=48, enlarged=5)  # beyond 64 pixels, to which views that need no detail are averaged
    wide = np.pad(np.asarray(drawn.looks.images.array), ((0, 0), (0, 0), (20, 20), (0, 0)), mode="edge")  # type: ignore[attr-defined]
    assert wide.shape[1:] == (3, 140, 100)
    model = Reader(2, {"colour": 1.0}, enlarged=5)
    found = measured(of(wide, drawn.split.labels, model, drawn.values, 2))
    assert relied_on(found) == {("colour", "block 0"), ("colour", "block 1")}


def test_images_that_cannot_be_exchanged_are_left_alone() -> None:
    drawn = scene("colour", n=60)
    array = drawn.split.images.array  # type: ignore[attr-defined]
    for other in (array[:, :2], array[:, :, :7]):
        split = replace(drawn.split, images=ArrayImages(other))
        assert not experiment(split, drawn.explained, drawn.model).measured


def test_without_twenty_right_images_of_a_class_or_with_one_prediction_nothing_is_measured() -> None:
    assert not measured(scene("colour", n=36)).measured
    drawn = scene("colour", n=60)
    logits = np.tile(np.array([[1, 0]], dtype=np.float32), (60, 1))
    alone = replace(drawn.explained, outputs=Outputs(logits, logits))
    assert not measure_exchanges(drawn.looks, alone, seed=0).measured


# The scale in which images are changed


def test_the_scale_of_a_normalised_input_is_read_exactly() -> None:
    drawn = scene("colour", n=60)
    array = drawn.split.images.array  # type: ignore[attr-defined]
    split = replace(drawn.split, images=Normalised(array))
    looks = Looks.of(split, Undone(drawn.model))
    assert looks.from_pixels
    np.testing.assert_allclose(looks.slope, 1 / STD, rtol=1e-4)
    np.testing.assert_allclose(looks.offset, -MEAN / STD, rtol=1e-4)
    np.testing.assert_array_equal(looks.pixels(np.arange(60)), array)
    np.testing.assert_allclose(looks.logits(array), drawn.explained.outputs.logits, atol=1e-4)
    np.testing.assert_array_equal(looks.predict(array), drawn.explained.outputs.predicted)


def test_images_that_are_stretched_one_by_one_are_looked_at_in_the_input_s_own_scale() -> None:
    drawn = scene("colour", n=60)
    wanted = np.asarray((drawn.split.images.array - MEAN) / STD, dtype=np.float32)  # type: ignore[attr-defined]
    wanted *= np.linspace(0.8, 1, 60, dtype=np.float32)[:, None, None, None]
    split, model = replace(drawn.split, images=ArrayImages(wanted)), Undone(drawn.model)
    looks, rows = Looks.of(split, model), np.arange(60)
    assert not looks.from_pixels
    seen = looks.pixels(rows)
    assert seen[:32].min() == pytest.approx(0, abs=1e-5)
    assert seen[:32].max() == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(looks.logits(seen), model(torch.from_numpy(wanted)).numpy(), atol=1e-4)


def test_a_constant_channel_and_bytes_are_read_exactly() -> None:
    array = np.zeros((40, 3, 9, 9), dtype=np.uint8)
    array[:, 1] = np.random.default_rng(0).integers(0, 256, (40, 9, 9))
    split = replace(scene("colour", n=40).split, images=ArrayImages(array))
    looks = Looks.of(split, lambda x: x.mean(axis=(2, 3)))
    assert looks.from_pixels
    np.testing.assert_allclose(looks.pixels(np.arange(40)), array / np.float32(255), atol=1e-6)
    np.testing.assert_allclose(looks.logits(looks.pixels(np.arange(40))), array.mean(axis=(2, 3)) / 255, atol=1e-5)
