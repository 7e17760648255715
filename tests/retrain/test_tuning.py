"""Learners that are trained with every combination of a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from planted_groups import RUNTIME, SHORT, biased, groups_of, net, planted, same, true_groups, worst_accuracy

from exmap.errors import NumericalError, SettingsError
from exmap.records import Progress
from exmap.retrain import LEARNERS
from exmap.retrain.group_dro import GroupDRO
from exmap.retrain.learner import Selection, WholeNetwork
from exmap.retrain.reweight import RWG, SUBG
from exmap.retrain.tuning import Setting, combinations

SPLIT = biased(large=60, small=10)
GROUPS = true_groups(SPLIT)
VAL = planted([[12] * 3] * 3, seed=5)
BY_GROUP, ONE_CLASS = Selection(VAL, true_groups(VAL)), Selection(VAL, groups_of(np.where(VAL.labels == 1, 0, -1)))


@dataclass
class Tried(RWG):
    """Two learning rates, of which the first moves nothing."""

    name: ClassVar[str] = "tried"
    GRID: ClassVar[tuple[Setting, ...]] = combinations(learning_rate=(1e-9, 1.0))


def test_the_best_combination_is_kept_as_it_would_be_trained_alone() -> None:
    learner = Tried(SHORT, RUNTIME, steps=40, tuned=True)
    model = learner.fit(net(), SPLIT, GROUPS, selection=BY_GROUP)
    rate = SHORT.learning_rate
    alone = {
        share: Tried(SHORT, RUNTIME, steps=40, learning_rate=rate * share).fit(net(), SPLIT, GROUPS, selection=BY_GROUP)
        for share in (1e-9, 1.0)
    }
    scores = [worst_accuracy(one, VAL, BY_GROUP.groups.index) for one in alone.values()]
    assert scores[1] > scores[0]
    assert same(model, alone[1.0])
    assert [trial.worst for trial in learner.trials_] == [pytest.approx((score,)) for score in scores]
    assert len(learner.history_[0]) == 10
    assert learner.notes_ == (
        "tried was tuned by the worst group of the held-out images: learning_rate=0.03 is the best of 2 trainings, "
        f"{scores[1]:.1%} there",
    )
    assert learner.learning_rate is None


def test_every_selection_has_a_combination_of_its_own() -> None:
    settings = SHORT.model_copy(update={"select": "worst_class"})
    learner = SUBG(settings, RUNTIME, epochs=3, tuned=True)
    models = learner.fit_choices(net(), SPLIT, GROUPS, [BY_GROUP, ONE_CLASS])
    assert len(learner.trials_) == 6
    assert not any("tuned" in note for note in learner.notes_)
    assert not same(*models)
    for number, (model, selection) in enumerate(zip(models, (BY_GROUP, ONE_CLASS), strict=True)):
        best = max(trial.worst[number] for trial in learner.trials_)
        assert worst_accuracy(model, VAL, selection.groups.index) == pytest.approx(best)
        (note,) = learner.choice_notes_[number]
        assert note.endswith(f"is the best of 6 trainings, {best:.1%} there")


def test_what_is_given_is_not_tuned() -> None:
    learner = GroupDRO(SHORT, RUNTIME, steps=2, tuned=True, learning_rate=0.01, weight_decay=0.0)
    learner.fit(net(), SPLIT, GROUPS, selection=BY_GROUP)
    assert [dict(trial.setting) for trial in learner.trials_] == [{"step_size": 0.01}, {"step_size": 0.1}]
    assert (learner.step_size, learner.learning_rate, learner.weight_decay) == (None, 0.01, 0.0)
    given = GroupDRO(SHORT, RUNTIME, step_size=0.01, steps=1, tuned=True, learning_rate=0.01, weight_decay=0.0)
    given.fit(net(), SPLIT, GROUPS, selection=BY_GROUP)
    assert [dict(trial.setting) for trial in given.trials_] == [{}]
    assert given.step_size == 0.01


def test_progress_is_of_all_trainings_together() -> None:
    heard: list[Progress] = []
    Tried(SHORT, RUNTIME, steps=10, tuned=True).fit(net(), SPLIT, GROUPS, selection=BY_GROUP, listen=heard.append)
    trained = [progress for progress in heard if progress.task == "train"]
    assert [progress.done for progress in trained] == sorted(progress.done for progress in trained)
    assert trained[-1].done == trained[-1].total == 20 * SHORT.batch_size
    assert trained[-1].note == "training 2/2, epoch 10/10"


@dataclass
class Diverging(RWG):
    name: ClassVar[str] = "diverging"
    GRID: ClassVar[tuple[Setting, ...]] = combinations(learning_rate=(1e30, 1.0))


def test_a_combination_whose_loss_leaves_the_finite_numbers_is_not_chosen() -> None:
    learner = Diverging(SHORT, RUNTIME, tuned=True)
    learner.fit(net(), SPLIT, GROUPS, selection=BY_GROUP)
    assert math.isnan(learner.trials_[0].worst[0])
    assert learner.notes_[-1].endswith("there; the loss of 1 left the finite numbers")


def test_where_none_is_finite_that_is_said() -> None:
    learner = Diverging(SHORT.model_copy(update={"learning_rate": 1e30}), RUNTIME, tuned=True)
    with pytest.raises(NumericalError, match=r"lower train\.learning_rate"):
        learner.fit(net(), SPLIT, GROUPS, selection=BY_GROUP)
    assert learner.learning_rate is None


def test_nothing_is_tuned_without_a_selection() -> None:
    with pytest.raises(SettingsError) as caught:
        RWG(SHORT, RUNTIME, tuned=True).fit(net(), SPLIT, GROUPS)
    assert str(caught.value) == (
        "rwg is tuned by the worst group of a selection, got tuned=True without one; give a selection, or leave tuned "
        "out"
    )


@pytest.mark.parametrize("name", [n for n in sorted(LEARNERS) if issubclass(LEARNERS[n], WholeNetwork)])
def test_grids_hold_options_of_their_learner_that_fit(name: str) -> None:
    grid = LEARNERS[name].GRID
    assert 1 <= len(grid) <= 6
    assert len({tuple(setting.items()) for setting in grid}) == len(grid)
    for setting in grid:
        LEARNERS.build(name, setting, seed=0)
