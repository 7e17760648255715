"""Budgets in steps, warm starts, and settings of their own of learners that train the whole network."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from planted_groups import ERM, RUNTIME, SHORT, TRAIN, biased, net, planted, same, true_groups

from exmap.errors import SettingsError
from exmap.model.fit import EmpiricalRisk
from exmap.records import Groups, Progress
from exmap.retrain.bpa import BPA
from exmap.retrain.budget import InSteps, checks_of
from exmap.retrain.group_dro import GroupDRO
from exmap.retrain.jtt import JTT
from exmap.retrain.learner import Selection, WholeNetwork
from exmap.retrain.lff import LfF
from exmap.retrain.reweight import RWG, SUBG

SPLIT = biased(large=40, small=8)  # 168 samples
GROUPS = true_groups(SPLIT)
VAL = planted([[12] * 3] * 3, seed=5)


@dataclass
class Watched(ERM):
    """Counts its steps, and how many samples each shows."""

    name: ClassVar[str] = "watched"

    def objective(self, model: Any, split: Any, groups: Any, listen: Any) -> Any:
        self.watched = Watching(len(split))
        return self.watched


class Watching(EmpiricalRisk):
    """Keeps the rows of every batch."""

    def __init__(self, n_samples: int) -> None:
        super().__init__(n_samples)
        object.__setattr__(self, "shown", [])

    def loss(self, logits: Any, labels: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        self.shown.append(rows)
        return super().loss(logits, labels, rows)


@pytest.mark.parametrize(("steps", "epochs", "checks"), [(1, 10, 1), (7, 2, 7), (23, 2, 10), (23, 12, 12), (41, 0, 10)])
def test_the_number_of_steps_is_exact_and_the_network_is_checked_often_enough(
    steps: int, epochs: int, checks: int
) -> None:
    learner = Watched(TRAIN.model_copy(update={"epochs": epochs, "batch_size": 4}), RUNTIME, steps=steps)
    learner.fit(net(), SPLIT)
    shown = learner.watched.shown
    assert len(shown) == steps
    assert {len(rows) for rows in shown} == {4}
    assert len(learner.history_[0]) == checks == checks_of(steps, epochs)


def test_steps_go_on_where_a_pass_ends() -> None:
    parts = InSteps(EmpiricalRisk(10), steps=11, parts=4, batch_size=3)
    orders = [parts.order(number, np.random.default_rng(number)) for number in range(4)]
    assert [len(rows) for rows in orders] == [6, 9, 9, 9]
    together = np.concatenate(orders)
    for start in (0, 10, 20):  # every pass shows every row once
        assert np.array_equal(np.sort(together[start : start + 10]), np.arange(10))


def test_a_subset_smaller_than_a_batch_is_shown_more_than_once_a_step() -> None:
    parts = InSteps(EmpiricalRisk(3), steps=2, parts=2, batch_size=7)
    rows = parts.order(0, np.random.default_rng(0))
    assert sorted(np.bincount(rows)) == [2, 2, 3]


def test_an_objective_in_steps_changes_images_as_it_does_without_and_can_be_sent_to_another_process() -> None:
    parts = pickle.loads(pickle.dumps(InSteps(Darker(6), steps=2, parts=2, batch_size=3)))
    assert parts.images(np.ones((1, 1, 2, 2), dtype=np.float32), np.array([0]), np.random.default_rng(0)).max() == 0.5
    assert not hasattr(InSteps(EmpiricalRisk(6), steps=2, parts=2, batch_size=3), "images")
    assert InSteps(EmpiricalRisk(6), 2, 2, 3).one_process is False
    assert InSteps(GroupDRO(SHORT, RUNTIME).objective(net(), SPLIT, GROUPS, print), 2, 2, 3).one_process is True


class Darker(EmpiricalRisk):
    def images(self, batch: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return batch / 2


@pytest.mark.parametrize("kind", [RWG, SUBG, GroupDRO, BPA, JTT, LfF])
def test_every_learner_takes_as_many_steps(kind: type[WholeNetwork]) -> None:
    heard: list[Progress] = []
    learner = kind(SHORT, RUNTIME, steps=13)
    learner.fit(net(), SPLIT, GROUPS, listen=heard.append)
    trained = [progress for progress in heard if progress.task == "train"]
    assert len(trained) == 13
    assert trained[-1].done == trained[-1].total
    assert len(learner.history_[0]) == 10


def test_the_epoch_is_chosen_among_the_parts_of_the_steps() -> None:
    settings = SHORT.model_copy(update={"select": "worst_class"})
    learner = RWG(settings, RUNTIME, steps=20)
    learner.fit(net(), SPLIT, GROUPS, selection=Selection(VAL, true_groups(VAL)))
    rates = [row["learning_rate"] for row in learner.history_[0]]
    assert len(rates) == 10
    assert rates == sorted(rates, reverse=True)


def test_a_learning_rate_and_a_weight_decay_take_the_place_of_those_of_the_settings() -> None:
    own = RWG(SHORT, RUNTIME, learning_rate=0.01, weight_decay=0.5)
    settings = SHORT.model_copy(update={"learning_rate": 0.01, "weight_decay": 0.5})
    assert own.training == settings
    assert same(own.fit(net(), SPLIT, GROUPS), RWG(settings, RUNTIME).fit(net(), SPLIT, GROUPS))
    assert RWG(SHORT, RUNTIME, weight_decay=0.0).training.weight_decay == 0


def test_both_trainings_of_jtt_have_the_learning_rate_that_is_given() -> None:
    slow = SHORT.model_copy(update={"learning_rate": 1e-4})
    learners = [JTT(SHORT, RUNTIME, learning_rate=1e-4), JTT(slow, RUNTIME), JTT(SHORT, RUNTIME)]
    models = [learner.fit(net(), SPLIT) for learner in learners]
    assert same(models[0], models[1])
    assert (learners[0].error_set_ == learners[1].error_set_).all()
    assert (learners[0].error_set_ != learners[2].error_set_).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"epochs": 3, "steps": 5},
            r"^a learner is given epochs or steps, got epochs=3 and steps=5 for rwg; leave one of them out$",
        ),
        ({"steps": 0}, r"^option steps of the learner rwg: .* got 0$"),
        ({"start": "middle"}, r"^option start of the learner rwg: .* got 'middle'$"),
        ({"learning_rate": 0.0}, r"^option learning_rate of the learner rwg: .* got 0.0$"),
        ({"weight_decay": -1.0}, r"^option weight_decay of the learner rwg: .* got -1.0$"),
        ({"pooled": -1}, r"^option pooled of the learner rwg: .* got -1$"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        RWG(SHORT, RUNTIME, **options)


def test_a_learner_may_look_at_the_model_and_at_held_out_images_before_it_trains() -> None:
    learner = Looking(SHORT, RUNTIME)
    selection = Selection(VAL, true_groups(VAL))
    learner.fit(net(), SPLIT, GROUPS, selection=selection)
    assert learner.seen == (len(SPLIT), [selection], GROUPS)
    assert learner.notes_[-1] == "looked first"
    learner.fit(net(), SPLIT, GROUPS)
    assert learner.notes_ == ("looked first",)


@dataclass
class Looking(RWG):
    name: ClassVar[str] = "looking"

    def begin(self, model: Any, split: Any, groups: Groups | None, selections: Any, listen: Any) -> None:
        self.seen = (len(split), list(selections), groups)
        self.notes_ = (*self.notes_, "looked first")
