"""The whole idea on a planted shortcut over three classes: it is learnt, found without group labels, and removed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import exmap
from exmap.api import evaluate
from exmap.evaluation import group_agreement
from exmap.model.training import train_model
from exmap.records import Groups, GroupTable
from exmap.runtime import torch_seed
from exmap.settings import RuntimeSettings, TrainSettings


def small_network(seed: int) -> nn.Module:
    with torch_seed(seed):
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 3),
        )


@dataclass
class Repair:
    """Everything that one seed gave."""

    erm: GroupTable
    by_class: GroupTable
    by_exmap: GroupTable
    ari: float
    class_ari: float
    unchanged: bool


@pytest.fixture(scope="module", params=[0, 3])
def repair(request: pytest.FixtureRequest) -> Repair:
    seed: int = request.param
    task = exmap.planted_shortcut(n_classes=3, sizes=(900, 900, 900), correlation=0.9, noise=0.7, seed=seed)
    model = small_network(seed)
    settings = TrainSettings(epochs=3, batch_size=32, learning_rate=0.003)
    train_model(model, task.train, task.val, settings, RuntimeSettings(accelerator="cpu"), seed=seed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    found = exmap.ExMap(n_neighbors=15, seed=seed).infer(model, task.val)
    classes = Groups(task.val.labels, task.val.class_names, "classes", ("class labels",))
    learner = exmap.DFR(strengths=(0.3,), subsamples=5, seed=seed)
    fixed = [learner.fit(model, task.val, groups) for groups in (classes, found)]
    after = model.state_dict()
    truth = task.val.true_groups().index
    return Repair(
        *(evaluate(each, task.test) for each in (model, *fixed)),
        ari=group_agreement(found.index, truth, task.val.labels).ari,
        class_ari=group_agreement(classes.index, truth, task.val.labels).ari,
        unchanged=all(torch.equal(before[name], after[name]) for name in before),
    )


def test_the_shortcut_is_learnt(repair: Repair) -> None:
    assert repair.erm.worst < repair.erm.mean - 0.2


def test_heatmap_clusters_find_the_planted_attribute(repair: Repair) -> None:
    assert repair.class_ari == 0
    assert repair.ari > 0.6


def test_retraining_on_the_found_groups_lifts_the_worst_group(repair: Repair) -> None:
    assert repair.by_exmap.worst > repair.erm.worst + 0.15


def test_the_found_groups_do_better_than_classes_alone(repair: Repair) -> None:
    assert repair.by_exmap.worst > repair.by_class.worst + 0.05


def test_the_trained_model_stays_as_it_was(repair: Repair) -> None:
    assert repair.unchanged
