from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from exmap.data import Task, array_split
from exmap.errors import DataError, NumericalError
from exmap.model import collect_outputs
from exmap.records import Groups
from exmap.retrain.bpa import BPA, ClusterRisk
from exmap.retrain.learner import Selection
from exmap.runtime import torch_seed
from exmap.settings import RuntimeSettings, TrainSettings


def net(seed: int = 0) -> nn.Sequential:
    with torch_seed(seed):
        return nn.Sequential(nn.Conv2d(3, 6, 5, stride=3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))


def learner(**settings: object) -> BPA:
    chosen = TrainSettings(**{"epochs": 3, "batch_size": 32, "learning_rate": 0.05, "select": "last", **settings})
    return BPA(train=chosen, runtime=RuntimeSettings(accelerator="cpu"))


def truth(split) -> Groups:
    true = split.true_groups()
    return Groups(true.index, true.names, "oracle", ("true groups",))


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(value) for value in logits)) - logits[label]


@pytest.mark.parametrize("seed", range(3))
def test_weights_and_losses_are_those_written_out_over_epochs_of_batches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    index = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, -1, -1])
    labels = rng.integers(0, 3, 12)
    objective = ClusterRisk(index)
    weights, last = {0: 1.0, 1: 1.0, 2: 1.0}, dict.fromkeys(range(10), 1.0)
    sizes = {0: 6, 1: 3, 2: 1}
    for epoch in range(4):
        order = objective.order(epoch, rng)
        assert sorted(order) == list(range(10))
        followed = {k: np.mean([last[r] for r in range(10) if index[r] == k]) / sizes[k] for k in sizes}
        scale = 10 / sum(followed[k] * sizes[k] for k in sizes)  # a mean over samples of 1
        weights = {k: 0.7 * weights[k] + 0.3 * followed[k] * scale for k in sizes}
        assert objective.weights == pytest.approx(list(weights.values()))
        assert sum(weights[k] * sizes[k] for k in sizes) == pytest.approx(10)
        for rows in (order[:4], order[4:]):
            logits = rng.normal(0, 2, (len(rows), 3))
            losses = [cross_entropy(each.tolist(), labels[row]) for each, row in zip(logits, rows, strict=True)]
            batch = [weights[index[row]] for row in rows]
            found = objective.loss(torch.from_numpy(logits).float(), torch.from_numpy(labels[rows]), rows)
            assert float(found) == pytest.approx(np.average(losses, weights=batch), rel=1e-5)
            last.update(zip(rows, losses, strict=True))


def test_before_the_first_epoch_weights_follow_the_sizes_alone() -> None:
    objective = ClusterRisk(np.array([0, 0, 0, 1]), momentum=1.0)
    objective.order(0, np.random.default_rng(0))
    assert objective.weights == pytest.approx([2 / 3, 2.0])


def test_clusters_that_the_network_fails_on_weigh_more() -> None:
    objective = ClusterRisk(np.array([0, 0, 1, 1]))
    objective.order(0, np.random.default_rng(0))
    assert objective.weights == pytest.approx([1, 1])
    logits = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, 3.0]])
    for epoch in range(1, 30):
        objective.loss(logits, torch.zeros(4, dtype=torch.int64), np.arange(4))
        objective.order(epoch, np.random.default_rng(epoch))
    low, high = (cross_entropy([3.0, 0.0], label) for label in (0, 1))
    assert objective.weights == pytest.approx([2 * low / (low + high), 2 * high / (low + high)], rel=1e-3)


def test_empty_clusters_and_losses_of_nothing_change_no_weights() -> None:
    objective = ClusterRisk(np.array([0, 2, 2]))
    objective.order(0, np.random.default_rng(0))
    before = objective.weights.copy()
    assert np.isfinite(before).all()
    objective.losses[:] = 0
    objective.order(1, np.random.default_rng(0))
    assert np.array_equal(objective.weights, before)


def test_samples_in_no_cluster_are_left_out_and_said_so(three_classes: Task) -> None:
    groups = truth(three_classes.train)
    index = groups.index.copy()
    index[:17] = -1
    bpa = learner(epochs=1)
    bpa.fit(net(), three_classes.train, dataclasses.replace(groups, index=index))
    assert bpa.notes_ == ("17 samples are in no group and were left out",)
    bpa.fit(net(), three_classes.train, groups)
    assert bpa.notes_ == ()


def test_three_classes_are_learned_and_the_given_model_stays(three_classes: Task) -> None:
    given = net()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    bpa = learner(select="worst_class", epochs=4)
    selection = Selection(three_classes.val, truth(three_classes.val))
    model = bpa.fit(given, three_classes.train, truth(three_classes.train), selection=selection)
    assert all(torch.equal(before[name], tensor) for name, tensor in given.state_dict().items())
    right = collect_outputs(model, three_classes.val).predicted == three_classes.val.labels
    assert right.mean() > 0.6
    assert len(bpa.history_[0]) == 4


def test_groups_are_needed_and_must_be_those_of_the_split(three_classes: Task) -> None:
    assert (BPA.name, BPA.part, BPA.fits_groups, BPA.tunes_groups) == ("bpa", "whole network", True, True)
    with pytest.raises(DataError, match="the learner bpa needs groups of the split it trains on, got none; infer them"):
        learner().fit(net(), three_classes.train)
    with pytest.raises(DataError, match="training needs one group per sample of split train, got 150 groups for 240"):
        learner().fit(net(), three_classes.train, truth(three_classes.val))


def test_a_loss_that_is_not_finite_stops_with_what_to_do(three_classes: Task) -> None:
    images = np.array(three_classes.train.images.batch(np.arange(60)))
    images[3] = np.nan
    split = array_split(images, three_classes.train.labels[:60])
    groups = Groups(split.labels, ("a", "b", "c"), "classes", ())
    with pytest.raises(NumericalError, match=r"the training loss of epoch 1 is nan; .*lower train\.learning_rate"):
        learner(epochs=1).fit(net(), split, groups)
