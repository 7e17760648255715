from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from exmap.data import Task, array_split, planted_shortcut
from exmap.errors import NumericalError
from exmap.model import collect_outputs, twins
from exmap.model.twins import CrossRisk, Pair, Twins, flip_chances, train_twins
from exmap.records import Progress, silent
from exmap.runtime import generator, torch_seed
from exmap.settings import RuntimeSettings, TrainSettings

CPU = RuntimeSettings(accelerator="cpu")


def net(seed: int = 0, n_classes: int = 3) -> nn.Sequential:
    with torch_seed(seed):
        return nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, n_classes)
        )


def train(model: nn.Module, task: Task, *, seed: int = 0, listen=silent, runtime=CPU, **settings) -> Twins:
    chosen = TrainSettings(**{"epochs": 3, "batch_size": 32, "learning_rate": 0.05, **settings})
    return train_twins(model, task.train, task.val, chosen, runtime, seed=seed, listen=listen)


@pytest.fixture(scope="module")
def misleading() -> Task:
    """Bars that are hard to see, and patches that are not."""
    return planted_shortcut(n_classes=3, sizes=(300, 150, 30), correlation=0.9, noise=1.0, seed=0)


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[Pair]:
    """Every pair of twins that is made."""
    made: list[Pair] = []

    class Kept(Pair):
        def __init__(self, first: nn.Module, second: nn.Module) -> None:
            super().__init__(first, second)
            made.append(self)

    monkeypatch.setattr(twins, "Pair", Kept)
    return made


def test_labels_give_way_as_often_as_the_paper_says() -> None:
    assert flip_chances(np.array([0.5, 0.6, 1.0]), 2) == pytest.approx([0, 0.2, 1])
    assert flip_chances(np.array([1 / 3, 2 / 3, 1.0]), 3) == pytest.approx([0, 0.5, 1])
    assert flip_chances(np.array([0.1, 0.55, 1.0]), 10) == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("n", [20, 21])
def test_each_twin_owns_a_random_half(n: int) -> None:
    labels = np.zeros(n, dtype=np.int64)
    first, again, other = (CrossRisk(labels, 3, seed=seed).owner for seed in (0, 0, 1))
    assert sorted(np.bincount(first)) == [n // 2, n - n // 2]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("seed", range(3))
def test_losses_and_flips_are_those_written_out_sample_by_sample(seed: int) -> None:
    rng = np.random.default_rng(seed)
    original = rng.integers(0, 3, 24)
    objective = CrossRisk(original, 3, seed=seed)
    current, draws, changed = original.copy(), generator(seed, "flips"), 0
    objective.order(0, rng)
    for rows in (np.arange(12), np.arange(12, 24), rng.permutation(24)):
        logits = [rng.normal(0, 3, (len(rows), 3)).astype(np.float32) for _ in range(2)]
        found = objective.loss([torch.from_numpy(each) for each in logits], torch.from_numpy(original[rows]), rows)
        by_class: dict[int, list[float]] = {}
        draw = draws.random(len(rows))
        for at, row in enumerate(rows):
            inside, outside = logits[objective.owner[row]][at], logits[1 - objective.owner[row]][at]
            by_class.setdefault(current[row], []).append(-math.log(softmax(inside)[current[row]]))
            confidence = max(softmax(outside))
            if draw[at] < (confidence - 1 / 3) * 3 / 2:
                current[row] = outside.argmax()
        assert float(found) == pytest.approx(np.mean([np.mean(losses) for losses in by_class.values()]), rel=1e-5)
        assert np.array_equal(objective.labels, current)
        assert objective.flip_rates == [np.mean(current != original)]
        changed += int(np.sum(current != original))
    assert changed > 0


def softmax(row: np.ndarray) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def test_a_twin_learns_from_its_own_half_alone() -> None:
    objective = CrossRisk(np.array([0, 1, 2] * 4), 3, seed=0)
    logits = [torch.zeros(12, 3, requires_grad=True) for _ in range(2)]
    objective.order(0, np.random.default_rng(0))
    objective.loss(logits, torch.from_numpy(objective.original), np.arange(12)).backward()
    for twin, each in enumerate(logits):
        assert np.array_equal(each.grad.abs().sum(dim=1).numpy() > 0, objective.owner == twin)


def test_sure_mistakes_are_believed_and_doubts_are_not() -> None:
    original = np.zeros(40, dtype=np.int64)
    for scale, rate in ((1000.0, 1.0), (0.0, 0.0)):
        objective = CrossRisk(original, 3, seed=0)
        objective.order(0, np.random.default_rng(0))
        logits = torch.zeros(40, 3)
        logits[:, 2] = scale
        objective.loss((logits, logits), torch.from_numpy(original), np.arange(40))
        assert objective.flip_rates == [rate]
        assert (original == 0).all()


def test_an_epoch_shows_every_sample_once_and_counts_its_own_flips() -> None:
    objective = CrossRisk(np.zeros(9, dtype=np.int64), 2, seed=0)
    for epoch in range(2):
        assert sorted(objective.order(epoch, np.random.default_rng(epoch))) == list(range(9))
    assert len(objective.flip_rates) == 2


def test_a_pair_answers_twice_while_it_trains_and_then_for_the_second() -> None:
    pair = Pair(net(0).eval(), net(1).eval())
    images = torch.rand(5, 3, 16, 16)
    both = pair(images)
    assert all(torch.equal(a, b(images)) for a, b in zip(both, (pair.first, pair.second), strict=True))
    assert torch.equal(pair.eval()(images), both[1])


def test_predictions_come_from_the_twin_that_does_not_own_the_sample(misleading: Task, pairs: list[Pair]) -> None:
    found = train(net(), misleading, epochs=1)
    answers = {
        split.name: [collect_outputs(twin, split).predicted for twin in (pairs[0].first, pairs[0].second)]
        for split in (misleading.train, misleading.val)
    }
    assert (answers["train"][0] != answers["train"][1]).any()
    for row, label in enumerate(misleading.train.labels):
        outside, inside = (answers["train"][twin][row] for twin in (1 - found.owner[row], found.owner[row]))
        assert found.held_out[row] == outside
        assert found.train_predicted[row] == (outside if outside != label else inside)
    for row, label in enumerate(misleading.val.labels):
        first, second = (answers["val"][twin][row] for twin in range(2))
        assert (found.val_predicted[row] != label) == (first != label or second != label)
        assert found.val_predicted[row] in (first, second)


@pytest.mark.parametrize("seed", range(3))
def test_cross_mistakes_are_where_the_shortcut_misleads(misleading: Task, seed: int) -> None:
    found = train(net(seed), misleading, seed=seed, epochs=4)
    for split, predicted in ((misleading.train, found.train_predicted), (misleading.val, found.val_predicted)):
        misled = split.true_groups().index % 4 != 0  # of groups 0 to 8 it leads right in 0, 4 and 8
        wrong = predicted != split.labels
        assert wrong[misled].mean() > 0.8
        assert wrong[~misled].mean() < 0.1
    assert found.score == found.history[-1]["flip_rate"] > 0.02


def test_every_epoch_leaves_a_row_with_its_flips(three_classes: Task) -> None:
    heard: list[Progress] = []
    found = train(net(), three_classes, listen=heard.append)
    assert [row["epoch"] for row in found.history] == [1, 2, 3]
    assert all(0 <= row["flip_rate"] <= 1 for row in found.history)
    assert heard[-1] == Progress("twins (val)", 150, 150)
    assert {p.task for p in heard} == {"train", "twins (train)", "twins (val)"}


def test_the_same_seed_gives_the_same_twins_and_leaves_everything_else_alone(three_classes: Task) -> None:
    model, labels = net(), three_classes.train.labels.copy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    one, again, other = (train(model, three_classes, seed=seed, epochs=2) for seed in (0, 0, 1))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert np.array_equal(three_classes.train.labels, labels)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert one.history == again.history
    for name in ("train_predicted", "val_predicted", "held_out", "owner"):
        assert np.array_equal(getattr(one, name), getattr(again, name))
    assert not np.array_equal(one.owner, other.owner)


def test_without_mistakes_in_some_class_the_score_is_nothing(three_classes: Task) -> None:
    always = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    nn.init.zeros_(always[1].weight)
    with torch.no_grad():
        always[1].bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    found = train(always, three_classes, epochs=0)
    assert (found.held_out == 1).all()
    assert (found.score, found.history) == (0.0, [])
    assert train(always, three_classes, epochs=1, learning_rate=1e-9).score == 0.0


def test_bfloat16_is_used_where_it_is_asked_for(three_classes: Task) -> None:
    found = train(net(), three_classes, epochs=1, runtime=RuntimeSettings(accelerator="cpu", precision="bf16-mixed"))
    assert math.isfinite(found.history[0]["train_loss"])
    assert set(found.held_out) <= {0, 1, 2}


def test_a_loss_that_is_not_finite_stops_with_what_to_do(three_classes: Task) -> None:
    images = np.array(three_classes.train.images.batch(np.arange(60)))
    images[3] = np.nan
    split = array_split(images, three_classes.train.labels[:60])
    with pytest.raises(NumericalError, match=r"the training loss of epoch 1 is nan; .*lower train\.learning_rate"):
        train(net(), Task("bad", split, split, split), epochs=1)
