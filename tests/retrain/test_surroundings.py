"""Objects cut out by heatmaps, what surrounds them, and a last layer that is fitted once more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted_groups import ERM, RUNTIME, same, true_groups
from torch import nn

from exmap.data import Split, Task, array_split, planted_shortcut
from exmap.errors import SettingsError
from exmap.exchange import paired
from exmap.model import build_model, collect_outputs
from exmap.records import Groups
from exmap.retrain import Exchange, Selection
from exmap.retrain.refit import predicted_apart, refit
from exmap.retrain.surroundings import CutOut, cut_out, exchange_surroundings
from exmap.settings import ModelSettings, TrainSettings

TRAIN = TrainSettings(epochs=8, batch_size=64, learning_rate=0.05)
MIDDLE = (slice(None), slice(None), slice(11, 21), slice(11, 21))


@pytest.fixture(scope="module")
def task() -> Task:
    return planted_shortcut(2, (400, 200, 60), correlation=0.985, noise=0.7)


@pytest.fixture(scope="module")
def biased(task: Task) -> nn.Module:
    return ERM(TRAIN, RUNTIME).fit(build_model(ModelSettings(name="tiny"), 2, seed=0), task.train)


class Middle(nn.Module):
    """Reads the middle of the image: whether it is redder than blue."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = x[MIDDLE].mean(dim=(2, 3))
        return torch.as_tensor(self.head(inside[:, [0, 2]]))


def camouflaged(n: int) -> Split:
    """Images of red or blue middles in a checkerboard that stands out more than they do."""
    rng, labels = np.random.default_rng(0), np.arange(n) % 2
    checks = (np.indices((32, 32)).sum(axis=0) // 8 % 2).astype(np.float32)
    images = np.broadcast_to(checks, (n, 3, 32, 32)).copy()
    images[MIDDLE] = 0.5
    for label, channel in ((0, 0), (1, 2)):
        images[labels == label, channel, 11:21, 11:21] = 0.7
    images[MIDDLE] += rng.normal(0, 0.03, (n, 3, 1, 1))
    return array_split((images + 0.02 * rng.random(images.shape)).astype(np.float32), labels)


def by_class(split: Split) -> Groups:
    return Groups(split.labels, split.class_names, "classes", ())


# Cut out


def test_what_speaks_for_the_class_is_the_object() -> None:
    found = cut_out(Middle(), camouflaged(6)).inside(np.arange(6))
    assert found[:, 13:19, 13:19].all()
    assert not found[:, :6].any()
    assert not found[:, :, 26:].any()


def test_masks_are_kept_bit_by_bit() -> None:
    masks = np.random.default_rng(0).random((5, 7, 9)) < 0.5
    cut = CutOut(np.packbits(masks.reshape(5, -1), axis=1), (7, 9))
    np.testing.assert_array_equal(cut.inside(np.array([3, 0, 3])), masks[[3, 0, 3]])


def test_an_image_without_positive_relevance_is_all_object() -> None:
    class Constant(Middle):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0

    assert cut_out(Constant(), camouflaged(2)).inside(np.arange(2)).all()


# Exchange


def test_objects_stay_and_those_of_donors_do_not_come_along() -> None:
    receivers, donors = np.full((1, 3, 32, 32), 0.2, np.float32), np.full((1, 3, 32, 32), 0.8, np.float32)
    inside, theirs = (np.zeros((1, 32, 32), dtype=bool) for _ in range(2))
    inside[:, 4:12, 4:12], theirs[:, 18:28, 18:28] = True, True
    donors[:, :, 18:28, 18:28] = 0.0
    changed = exchange_surroundings(receivers, donors, inside=inside, theirs=theirs)
    np.testing.assert_allclose(changed[:, :, 6:10, 6:10], 0.2, atol=0.01)
    np.testing.assert_allclose(changed[:, :, 18:28, 18:28], 0.8, atol=0.02)
    np.testing.assert_allclose(changed[:, :, 28:, :10], 0.8, atol=0.01)


@pytest.mark.parametrize("share", [0, 1])
def test_an_image_without_surroundings_or_object_gives_nothing(share: int) -> None:
    rng = np.random.default_rng(0)
    receivers, donors = (rng.random((1, 3, 16, 16), dtype=np.float32) for _ in range(2))
    inside = np.zeros((1, 16, 16), dtype=bool)
    inside[:, 4:8, 4:8] = True
    theirs = np.full((1, 16, 16), bool(share))
    changed = exchange_surroundings(receivers, donors, inside=inside, theirs=theirs)
    np.testing.assert_allclose(changed, receivers, atol=1e-6)


def test_rows_say_whose_objects_are_meant() -> None:
    masks = np.zeros((3, 16, 16), dtype=bool)
    masks[0, :8], masks[1, 8:], masks[2, :, :8] = True, True, True
    cut = CutOut(np.packbits(masks.reshape(3, -1), axis=1), (16, 16))
    rng = np.random.default_rng(0)
    receivers, donors = (rng.random((2, 3, 16, 16), dtype=np.float32) for _ in range(2))
    rows, others = np.array([0, 2]), np.array([1, 0])
    np.testing.assert_array_equal(
        paired(cut, rows, others)(receivers, donors),
        exchange_surroundings(receivers, donors, inside=masks[rows], theirs=masks[others]),
    )


# The learner


def test_surroundings_are_exchanged_when_named(task: Task, biased: nn.Module) -> None:
    learner = Exchange(TRAIN, RUNTIME, steps=4, properties="surroundings")
    chosen = Selection(task.val, true_groups(task.val))
    first = learner.fit(biased, task.train, true_groups(task.train), selection=chosen)
    again = learner.fit(biased, task.train, true_groups(task.train), selection=chosen)
    assert learner.exchanged_ == ("surroundings",)
    assert same(first, again)


def test_a_refitted_last_layer_alone_differs(task: Task, biased: nn.Module) -> None:
    chosen, groups = Selection(task.val, true_groups(task.val)), true_groups(task.train)
    plain, refitted = (
        Exchange(TRAIN, RUNTIME, steps=6, properties="colour", harm="warn", refitted=given).fit(
            biased, task.train, groups, selection=chosen
        )
        for given in (False, True)
    )
    before, after = (collect_outputs(model, task.test) for model in (plain, refitted))
    np.testing.assert_allclose(before.features, after.features, rtol=1e-5, atol=1e-5)
    assert not np.allclose(before.logits, after.logits, atol=1e-2)


def test_a_refitted_last_layer_is_judged_by_layers_fitted_to_other_images(task: Task, biased: nn.Module) -> None:
    rng = np.random.default_rng(0)
    noise = array_split(rng.random((120, *task.val.images.shape), dtype=np.float32), rng.integers(2, size=120))
    chosen = Selection(noise, by_class(noise))
    model = refit(biased, chosen, seed=0)
    own = float(np.mean(collect_outputs(model, noise).predicted == noise.labels))
    apart = float(np.mean(predicted_apart(model, chosen, seed=0) == noise.labels))
    assert own > apart
    assert apart < 0.65


def test_a_last_layer_is_refitted_to_a_selection(task: Task, biased: nn.Module) -> None:
    with pytest.raises(SettingsError, match="needs a selection for its last layer to be refitted to"):
        Exchange(TRAIN, RUNTIME, steps=4, refitted=True).fit(biased, task.train, true_groups(task.train))
