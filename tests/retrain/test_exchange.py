"""The learner that exchanges properties, on a shortcut that is a coloured patch in a corner."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_groups import ERM, RUNTIME, same, true_groups, worst_accuracy
from torch import nn

from exmap.data import Split, Task, array_split, planted_shortcut
from exmap.data.dataset import ArrayImages
from exmap.errors import NumericalError, SettingsError
from exmap.exchange import Region, Scale, exchange_brightness
from exmap.model import build_model
from exmap.model.fit import ChangesImages
from exmap.records import silent
from exmap.retrain import RWG, Exchange, Selection
from exmap.retrain.exchange import ExchangedDraws
from exmap.retrain.region import labels_stay, shortcut_region
from exmap.settings import ModelSettings, TrainSettings

TRAIN = TrainSettings(epochs=8, batch_size=64, learning_rate=0.05)
PATCH = np.zeros((16, 16), dtype=bool)
PATCH[:4, :4] = True


@pytest.fixture(scope="module")
def task() -> Task:
    return planted_shortcut(2, (600, 300, 400), correlation=0.985, noise=0.7)


@pytest.fixture(scope="module")
def biased(task: Task) -> nn.Module:
    """A classifier that follows the patch."""
    return ERM(TRAIN, RUNTIME).fit(build_model(ModelSettings(name="tiny"), 2, seed=0), task.train)


def chosen(task: Task) -> Selection:
    return Selection(task.val, true_groups(task.val))


def begun(learner: Exchange, model: nn.Module, split: Split) -> Exchange:
    """Let the learner look at a model, and do nothing else."""
    learner.begin(model, split, true_groups(split), [], silent)
    return learner


# What it gains


def test_a_planted_shortcut_is_repaired_better_than_by_balanced_draws(task: Task, biased: nn.Module) -> None:
    index, worst = task.test.true_groups().index, {}
    assert worst_accuracy(biased, task.test, index) < 0.3
    learners = [RWG(TRAIN, RUNTIME, start="classifier", steps=60), Exchange(TRAIN, RUNTIME, steps=60)]
    for learner in learners:
        model = learner.fit(biased, task.train, true_groups(task.train), selection=chosen(task))
        worst[learner.name] = worst_accuracy(model, task.test, index)
    assert worst["exchange"] > worst["rwg"] + 0.03
    exchange = learners[1]
    assert isinstance(exchange, Exchange)
    assert exchange.exchanged_ == ("region",)
    assert exchange.notes_ == ("region was exchanged between images, with a chance of 0.9 for each image shown",)


def test_seeds_decide(task: Task, biased: nn.Module) -> None:
    groups = true_groups(task.train)
    first, again, other = (
        Exchange(TRAIN, RUNTIME, seed, steps=3, properties="colour+place").fit(biased, task.train, groups)
        for seed in (0, 0, 1)
    )
    assert same(first, again)
    assert not same(first, other)


# Where


def test_the_region_is_where_the_shortcut_is(task: Task, biased: nn.Module) -> None:
    found = shortcut_region(biased, task.train, true_groups(task.train), seed=0)
    assert found.region is not None
    np.testing.assert_array_equal(found.region.inside, PATCH)
    assert (found.parts, found.left_out, found.note) == (1, 0, "")


def test_what_images_are_labelled_by_is_not_exchanged(task: Task) -> None:
    class ByBrightness(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value = x[:, :, 6:10, 6:10].mean(dim=(1, 2, 3))
            return torch.stack([value, 0.5 - value], dim=1) + 0.1 * x.mean(dim=(1, 2, 3))[:, None]

    train = task.train
    images = train.images.batch(np.arange(len(train)))
    images[:, :, 6:10, 6:10] = np.where(train.labels == 0, 0.9, 0.1)[:, None, None, None]
    split = replace(train, images=ArrayImages(images))
    model, groups, middle = ByBrightness(), true_groups(train), np.zeros((16, 16), dtype=bool)
    middle[6:10, 6:10] = True
    assert labels_stay(model, split, groups, [Region(middle), Region(PATCH)], seed=0) == [False, True]
    found = shortcut_region(model, split, groups, seed=0)
    assert (found.region, found.left_out) == (None, found.parts)
    assert found.note == "where relevance gathers may be what images are labelled by, so no region was exchanged"


def test_a_region_is_given_with_soft_edges() -> None:
    receivers, donors = np.zeros((2, 3, 16, 16), np.float32), np.ones((2, 3, 16, 16), np.float32)
    changed = Region(PATCH)(receivers, donors)
    assert changed[:, :, :3, :3].min() == pytest.approx(1, abs=0.01)
    assert changed[:, :, 7:, 7:].max() == 0
    assert 0 < changed[0, 0, 4, 0] < 1
    assert changed.dtype == np.float32


# What a batch becomes


def halves() -> tuple[Split, np.ndarray]:
    """Ninety dark images of the first class and ten bright ones of the second, that the model wants shifted."""
    values = np.repeat([0.25, 0.75], [90, 10]).astype(np.float32)
    values = values[:, None, None, None] * np.ones((1, 3, 8, 8), np.float32)
    return array_split(values, np.repeat([0, 1], [90, 10]), true_groups=np.repeat([0, 1], [90, 10])), values


def swapped(receivers: np.ndarray, donors: np.ndarray) -> np.ndarray:
    return donors


def drawn(share: float, split: Split) -> ExchangedDraws:
    rows = np.arange(len(split))
    chances = np.repeat([1 / 180, 1 / 20], [90, 10])
    scale = replace(
        Scale.read(split), slope=np.full((3, 1, 1), 2, np.float32), offset=np.full((3, 1, 1), -1, np.float32)
    )
    return ExchangedDraws(rows, chances, scale, (swapped,), share)


def test_as_many_images_receive_as_say_and_from_each_group_equally_often() -> None:
    split, values = halves()
    rows = np.zeros(4_000, dtype=np.int64)
    batch = 2 * values[rows] - 1
    shown = drawn(0.5, split).images(batch, rows, np.random.default_rng(0))
    assert set(np.unique(shown)) == {-0.5, 0.5}
    assert np.mean(shown[:, 0, 0, 0] == 0.5) == pytest.approx(0.25, abs=0.03)  # half receive, half of them of the ten
    np.testing.assert_array_equal(batch, 2 * values[rows] - 1)


def test_images_that_receive_nothing_stay_bit_for_bit() -> None:
    split, _ = halves()
    batch = np.random.default_rng(0).normal(size=(50, 3, 8, 8)).astype(np.float32)
    shown = drawn(0.0, split).images(batch, np.arange(50), np.random.default_rng(0))
    np.testing.assert_array_equal(shown, batch)
    some = drawn(0.3, split).images(batch, np.arange(50), np.random.default_rng(0))
    kept = (some == batch).all(axis=(1, 2, 3))
    assert 0.4 < kept.mean() < 0.9


def test_a_channel_that_the_model_is_given_as_a_constant_stays_one() -> None:
    values = np.random.default_rng(0).random((40, 3, 8, 8), dtype=np.float32)
    split = array_split(values, np.arange(40) % 2)

    class Blind(ArrayImages):
        def batch(self, rows: np.ndarray) -> np.ndarray:
            return super().batch(rows) * np.array([1, 1, 0], np.float32)[:, None, None]

        def pixels(self, indices: np.ndarray) -> np.ndarray:
            return super().batch(indices)

    scale = Scale.read(replace(split, images=Blind(values)))
    rows = np.arange(40)
    batch = scale.images.batch(rows)
    shown = ExchangedDraws(rows, np.full(40, 1 / 40), scale, (swapped,), 1.0).images(
        batch, rows, np.random.default_rng(0)
    )
    assert np.isfinite(shown).all()
    assert not shown[:, 2].any()
    assert not np.array_equal(shown, batch)
    gaps = np.abs(shown[:, None] - batch[None]).max(axis=(2, 3, 4))
    assert gaps.min(axis=1).max() < 1e-5  # each is one of the images


def test_the_objective_changes_images_in_every_process(task: Task, biased: nn.Module) -> None:
    learner = begun(Exchange(TRAIN, RUNTIME, properties="colour+background+place"), biased, task.train)
    objective = pickle.loads(pickle.dumps(learner.objective(biased, task.train, true_groups(task.train), silent)))
    assert isinstance(objective, ChangesImages)
    rows = np.arange(20)
    batch = task.train.images.batch(rows)
    first, again = (objective.images(batch, rows, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first.shape, first.dtype) == (batch.shape, np.float32)
    assert not np.array_equal(first, batch)


# Nothing to exchange


@pytest.mark.parametrize("shape", [(3, 7, 12), (2, 8, 8)])
def test_images_without_properties_are_only_drawn(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).random((60, *shape), dtype=np.float32)
    split = array_split(images, np.arange(60) % 2, true_groups=np.arange(60) % 4)
    learner = begun(Exchange(TRAIN, RUNTIME, properties="region"), nn.Flatten(), split)
    assert learner.exchanged_ == ()
    assert learner.notes_ == (
        "images smaller than 8 pixels, or with other than 1 or 3 channels, have no property to exchange: groups are "
        "only drawn equally often, as by rwg",
    )
    assert not isinstance(learner.objective(nn.Flatten(), split, true_groups(split), silent), ChangesImages)


def test_where_nothing_is_followed_groups_are_only_drawn(task: Task) -> None:
    class ByBar(nn.Module):
        """Tells the bars apart: one lies, the other stands."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shown = x.mean(dim=1)
            lying = shown[:, 7:9, 2:14].mean(dim=(1, 2))
            standing = shown[:, 2:14, 7:9].mean(dim=(1, 2))
            return torch.stack([lying, standing], dim=1)

    learner = begun(Exchange(TRAIN, RUNTIME), ByBar(), task.train)
    assert learner.exchanged_ == ()
    assert learner.notes_[-1] == (
        "predictions follow none of colour, background, place, brightness, so groups are only drawn equally often, as "
        "by rwg"
    )


def test_an_untrained_network_is_asked_nothing(task: Task) -> None:
    model = build_model(ModelSettings(name="tiny"), 2, seed=0)
    asked = begun(Exchange(TRAIN, RUNTIME, start="initial"), model, task.train)
    named = begun(Exchange(TRAIN, RUNTIME, start="initial", properties="place+region"), model, task.train)
    assert (asked.exchanged_, named.exchanged_) == ((), ("place",))
    assert asked.notes_[0].startswith("a network that is not trained follows no property")
    assert named.notes_[0] == "a network that is not trained shows no region, so it was left out"


def test_too_few_right_images_are_said(task: Task, biased: nn.Module) -> None:
    learner = begun(Exchange(TRAIN, RUNTIME), biased, task.train.rows(np.arange(24)))
    assert learner.exchanged_ == ()
    assert learner.notes_[0].startswith("too few images of a class are classified right")


def test_a_model_that_cannot_be_explained_has_no_region(
    task: Task, biased: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise NumericalError("heatmaps must be finite, but none is; check the weights")

    monkeypatch.setattr("exmap.retrain.region.compute_heatmaps", broken)
    learner = begun(Exchange(TRAIN, RUNTIME), biased, task.train)
    assert "region" not in learner.exchanged_
    assert learner.notes_[0] == (
        "no region was exchanged, since the model cannot be explained: heatmaps must be finite, but none is; check the "
        "weights"
    )
    with pytest.raises(NumericalError):
        begun(Exchange(TRAIN, RUNTIME, properties="region"), biased, task.train)


@pytest.mark.parametrize("properties", ["", "hue", "colour+auto", "colour,place"])
def test_unknown_properties_are_refused(properties: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Exchange(properties=properties)
    assert str(caught.value) == (
        "exchange needs properties=auto, or some of colour, background, place, brightness, region, surroundings joined "
        f"by +, got {properties!r}; take out what is not among them"
    )


def test_grey_images_of_one_channel() -> None:
    rng = np.random.default_rng(0)
    split = array_split(rng.random((80, 1, 8, 8), dtype=np.float32), np.arange(80) % 2, true_groups=np.arange(80) % 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[1].weight.normal_(generator=torch.Generator().manual_seed(0))
    learner = Exchange(TRAIN, RUNTIME, steps=2, properties="colour+background+place+region")
    assert learner.fit(model, split, true_groups(split)) is not None
    assert set(learner.exchanged_) >= {"colour", "background", "place"}


def test_brightness_is_that_of_the_donor_and_the_rest_of_the_image_stays() -> None:
    rng = np.random.default_rng(0)
    drawn_dim, drawn_bright = np.zeros((2, 4, 3, 16, 16), dtype=np.float32)
    drawn_dim[:, :, 4:8, 4:8], drawn_bright[:, :2, 2:12, 6:9] = 0.4, 0.8
    drawn_dim *= rng.uniform(0.9, 1, drawn_dim.shape)
    given = exchange_brightness(drawn_dim, drawn_bright)
    assert given.max() == pytest.approx(0.85, abs=0.04)
    most = [images.max(axis=(1, 2, 3), keepdims=True) for images in (given, drawn_dim)]
    np.testing.assert_allclose(given / most[0], drawn_dim / most[1], atol=1e-5)
    np.testing.assert_allclose(exchange_brightness(given, drawn_dim), drawn_dim, atol=1e-5)
    assert np.isfinite(exchange_brightness(drawn_dim, np.zeros_like(drawn_dim))).all()
