"""Held-out images that received properties of others, by which the epoch of an exchange is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from planted_groups import ERM, RUNTIME, true_groups

from exmap.data import Split, array_split, planted_shortcut
from exmap.model import build_model
from exmap.retrain import Exchange, Selection
from exmap.retrain.exchanged import exchanged_selection
from exmap.settings import ModelSettings, TrainSettings


def grey(counts: list[int]) -> Split:
    """Images of as many classes, each as bright as its class says."""
    labels = np.repeat(np.arange(len(counts)), counts)
    values = (labels + 1) / 10
    return array_split(np.broadcast_to(values[:, None, None, None], (len(labels), 3, 8, 8)).astype(np.float32), labels)


def swapped(receivers: np.ndarray, donors: np.ndarray) -> np.ndarray:
    return donors


@pytest.mark.parametrize("counts", [[900, 100], [40, 3], [200, 500, 5_000]])
def test_every_class_receives_as_often_of_its_own_as_of_others(counts: list[int]) -> None:
    split = grey(counts)
    selection = exchanged_selection(split, (swapped,), seed=0)
    found, index = selection.split, selection.groups.index
    sizes = np.bincount(index)
    assert len(sizes) == 2 * len(counts)
    assert sizes.max() - sizes.min() <= 1
    assert 1_000 - len(counts) <= len(found) <= 4_000
    given = np.round(found.images.batch(np.arange(len(found)))[:, 0, 0, 0] * 10).astype(int) - 1
    assert ((given == found.labels) == (index % 2 == 0)).all()
    assert (index // 2 == found.labels).all()
    assert selection.groups.names[1] == "0, given what images of other classes have"


def test_all_properties_are_of_one_donor() -> None:
    split = grey([30, 30])

    def added(receivers: np.ndarray, donors: np.ndarray) -> np.ndarray:
        return receivers + donors

    images = exchanged_selection(split, (swapped, added), seed=0).split.images
    values = np.unique(np.round(10 * images.batch(np.arange(len(images)))[:, 0, 0, 0]))
    assert values.tolist() == [2, 4]  # twice the donor's, never one donor's and another's


def test_seeds_decide() -> None:
    split = grey([30, 30, 30])
    first, again, other = (
        exchanged_selection(split, (swapped,), seed=seed).split.images.batch(np.arange(300)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_images_are_made_when_they_are_read_and_streamed_alike() -> None:
    images = exchanged_selection(grey([30, 30]), (swapped,), seed=0).split.images
    rows = np.array([5, 0, 5], dtype=np.int64)
    (streamed,) = images.stream([(rows, 7)])
    np.testing.assert_array_equal(streamed, images.batch(rows))


def test_the_epoch_is_chosen_by_images_that_received() -> None:
    task = planted_shortcut(2, (300, 120, 60), correlation=0.985, noise=0.7)
    training = TrainSettings(epochs=8, batch_size=64, learning_rate=0.05)
    biased = ERM(training, RUNTIME).fit(build_model(ModelSettings(name="tiny"), 2, seed=0), task.train)
    groups, chosen = true_groups(task.train), Selection(task.val, true_groups(task.val))
    rows = {}
    for way in ("exchanged", "groups"):
        learner = Exchange(training, RUNTIME, steps=12, properties="colour+place", chosen_by=way)
        learner.fit_choices(biased, task.train, groups, [chosen, chosen])
        assert len(learner.history_) == 2
        rows[way] = learner.history_[0]
    assert [row["train_loss"] for row in rows["exchanged"]] == [row["train_loss"] for row in rows["groups"]]
    assert [row["val_worst_class"] for row in rows["exchanged"]] != [row["val_worst_class"] for row in rows["groups"]]
