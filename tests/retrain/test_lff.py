from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from exmap.data import Task, array_split
from exmap.errors import DataError, NumericalError
from exmap.model import collect_outputs
from exmap.model.twins import Pair
from exmap.records import Groups
from exmap.retrain.learner import Selection
from exmap.retrain.lff import LfF, RelativeDifficulty
from exmap.runtime import torch_seed
from exmap.settings import RuntimeSettings, TrainSettings


def net(seed: int = 0) -> nn.Sequential:
    with torch_seed(seed):
        return nn.Sequential(nn.Conv2d(3, 6, 5, stride=3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))


def learner(**settings: object) -> LfF:
    chosen = TrainSettings(**{"epochs": 3, "batch_size": 32, "learning_rate": 0.05, "select": "last", **settings})
    return LfF(train=chosen, runtime=RuntimeSettings(accelerator="cpu"))


def classes(task: Task) -> Groups:
    return Groups(task.val.labels, task.val.class_names, "classes", ("class labels",))


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(value) for value in logits)) - logits[label]


@pytest.mark.parametrize("seed", range(3))
def test_losses_and_weights_are_those_written_out_sample_by_sample(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(12) % 3)
    objective = RelativeDifficulty(labels, 3)
    smoothed: list[dict[int, float]] = [{}, {}]
    for rows in (np.arange(6), np.arange(3, 9), rng.permutation(12)):
        logits = rng.normal(0, 2, (2, len(rows), 3))
        total, weights = 0.0, []
        for at, row in enumerate(rows):
            for mean, each in zip(smoothed, logits, strict=True):
                loss = cross_entropy(each[at].tolist(), labels[row])
                mean[row] = 0.7 * mean[row] + 0.3 * loss if row in mean else loss
        for at, row in enumerate(rows):
            largest = [max(m for r, m in mean.items() if labels[r] == labels[row]) for mean in smoothed]
            b, d = (mean[row] / most for mean, most in zip(smoothed, largest, strict=True))
            weights.append(b / (b + d))
            losses = [cross_entropy(each[at].tolist(), labels[row]) for each in logits]
            total += (1 - math.exp(-losses[0]) ** 0.7) / 0.7 + weights[-1] * losses[1]
        both = torch.from_numpy(logits).float().unbind()
        wanted = torch.from_numpy(labels[rows])
        assert float(objective.loss(both, wanted, rows)) == pytest.approx(total / len(rows), rel=1e-5)


def test_the_first_weights_of_two_batches_by_hand() -> None:
    objective = RelativeDifficulty(np.array([0, 0, 1]), 2, decay=0.5)
    first = objective.weights(torch.tensor([[4.0, 1.0], [1.0, 1.0]]), np.array([0, 1]))
    assert first.tolist() == pytest.approx([1 / (1 + 1), 0.25 / (0.25 + 1)])
    # Sample 0 is smoothed to (4 + 2) / 2 = 3 and (1 + 3) / 2 = 2, each now its class's largest; sample 2 is alone.
    second = objective.weights(torch.tensor([[2.0, 7.0], [3.0, 0.5]]), np.array([0, 2]))
    assert second.tolist() == pytest.approx([0.5, 0.5])
    third = objective.weights(torch.tensor([[1.0], [1.0]]), np.array([1]))
    assert third.tolist() == pytest.approx([(1 / 3) / (1 / 3 + 1 / 2)])


def test_weights_have_no_gradient_and_the_biased_network_follows_what_is_easy() -> None:
    logits = [torch.tensor([[2.0, 0.0], [-2.0, 0.0]], requires_grad=True) for _ in range(2)]
    labels = torch.tensor([0, 0])
    RelativeDifficulty(np.array([0, 0]), 2).loss(logits, labels, np.arange(2)).backward()
    chance = torch.softmax(logits[0].detach(), dim=1)[:, 0]
    weights = torch.tensor([0.5, 0.5])  # both networks alike
    of_cross_entropy = (chance - 1) / 2
    assert torch.allclose(logits[0].grad[:, 0], chance**0.7 * of_cross_entropy)
    assert torch.allclose(logits[1].grad[:, 0], weights * of_cross_entropy)


def test_samples_without_any_loss_weigh_nothing() -> None:
    sure = torch.tensor([[1000.0, 0.0]])
    objective = RelativeDifficulty(np.array([0]), 2)
    assert float(objective.loss((sure, sure), torch.tensor([0]), np.array([0]))) == 0.0


def test_the_debiased_network_is_chosen_and_returned(three_classes: Task) -> None:
    selection = Selection(three_classes.val, classes(three_classes))
    lff = learner(select="worst_class", epochs=4)
    model = lff.fit(net(), three_classes.train, selection=selection)
    assert not isinstance(model, Pair)
    assert not model.training
    right = collect_outputs(model, three_classes.val).predicted == three_classes.val.labels
    kept = [row for row in lff.history_[0] if row["kept"]][-1]
    assert right.mean() == pytest.approx(kept["val_mean"])
    assert right.mean() > 0.5


def test_both_networks_start_from_the_weights_given(three_classes: Task) -> None:
    lff = learner(epochs=2)
    network = lff.wrapped(net())
    assert isinstance(network, Pair)
    pairs = zip(network.first.parameters(), network.second.parameters(), strict=True)
    assert all(torch.equal(a, b) and a is not b for a, b in pairs)
    assert lff.unwrapped(network) is network.second


def test_the_same_seed_gives_the_same_bits_and_the_given_model_stays(three_classes: Task) -> None:
    given = net()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    one, again = (learner(epochs=2).fit(given, three_classes.train).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert all(torch.equal(before[name], tensor) for name, tensor in given.state_dict().items())
    assert one.keys() == before.keys()
    assert not torch.equal(one["4.weight"], before["4.weight"])


def test_it_needs_no_groups_to_fit_and_checks_those_it_chooses_by(three_classes: Task) -> None:
    assert (LfF.name, LfF.part, LfF.fits_groups, LfF.tunes_groups) == ("lff", "whole network", False, True)
    groups = classes(three_classes)
    with pytest.raises(DataError, match="selection needs one group per sample of split train, got 150 groups for 240"):
        Selection(three_classes.train, groups)


def test_a_loss_that_is_not_finite_stops_with_what_to_do(three_classes: Task) -> None:
    images = np.array(three_classes.train.images.batch(np.arange(60)))
    images[3] = np.nan
    with pytest.raises(NumericalError, match=r"the training loss of epoch 1 is nan; .*lower train\.learning_rate"):
        learner(epochs=1).fit(net(), array_split(images, three_classes.train.labels[:60]))
