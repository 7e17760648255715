"""The cheapest repair that suffices: what is tried, measured, kept and said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from planted_groups import RUNTIME, TRAIN, biased, groups_of, net, planted, same, true_groups, worst_accuracy
from torch import nn

from exmap.errors import DataError, SettingsError
from exmap.model import find_last_layer, replace_head
from exmap.registry import LEARNERS
from exmap.results import RepairTrial, repairs_in_words
from exmap.retrain import DFR, RWG, Selection
from exmap.retrain.cheapest import Cheapest
from exmap.retrain.harm import Verdict

SPLIT = biased()
VAL = planted([[40] * 3] * 3, seed=5)
GROUPS = true_groups(SPLIT)
CHOSEN = Selection(VAL, true_groups(VAL))
QUICK = "dfr[subsamples=2,tuning_splits=1]"


@dataclass
class Wrong(DFR):
    """A last layer that calls everything the first class."""

    name: ClassVar[str] = "wrong"

    def fit_head(self, *args: Any, **options: Any) -> Any:
        head = super().fit_head(*args, **options)
        return replace(head, weight=np.zeros_like(head.weight), bias=np.eye(len(head.bias), dtype=np.float32)[0])


@dataclass
class Late(DFR):
    """A last layer that cannot be fitted."""

    name: ClassVar[str] = "late"

    def fit_head(self, *args: Any, **options: Any) -> Any:
        raise DataError("there is no train to take")


class Recall(nn.Module):
    """Tells the class of the images that it has seen, and calls all others the first class."""

    def __init__(self, images: Any, labels: Any) -> None:
        super().__init__()
        self.images = nn.Buffer(torch.from_numpy(images).flatten(1))
        self.classes = nn.Buffer(nn.functional.one_hot(torch.from_numpy(labels), 3).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = torch.cdist(x.flatten(1), self.images) < 0.1
        return seen.float() @ self.classes + 0.1 * torch.eye(3)[0]


@dataclass
class ByHeart(RWG):
    """A network that knows the images by heart that its epoch is chosen by."""

    name: ClassVar[str] = "by_heart"

    def fit_choices(self, model: Any, split: Any, groups: Any, selections: Any, **options: Any) -> list[nn.Module]:
        self.history_ = [[] for _ in selections]
        rows = [np.flatnonzero(selection.groups.index >= 0) for selection in selections]
        pairs = zip(selections, rows, strict=True)
        return [Recall(one.split.images.batch(some), one.split.labels[some]) for one, some in pairs]


@contextmanager
def registered(*kinds: Any) -> Iterator[None]:
    for kind in kinds:
        LEARNERS.register(kind)
    try:
        yield
    finally:
        for kind in kinds:
            del LEARNERS._own[kind.name]


@pytest.fixture(autouse=True)
def bad_repairs() -> Iterator[None]:
    with registered(Wrong, Late, ByHeart):
        yield


def learner(repairs: str, **options: Any) -> Cheapest:
    return Cheapest(TRAIN.model_copy(update={"select": "worst_class"}), RUNTIME, repairs=repairs, **options)


def test_the_cheapest_within_noise_is_kept_and_others_are_said() -> None:
    made = learner(f"{QUICK}|rwg[epochs=1]")
    (network,) = made.fit_choices(net(), SPLIT, GROUPS, [CHOSEN])
    (tried,) = made.tried_
    assert [trial.name for trial in tried] == ["dfr[subsamples=2,tuning_splits=1]", "rwg[epochs=1]"]
    assert [trial.kept for trial in tried] == [True, False]
    assert all(trial.low <= trial.worst <= trial.high and trial.seconds > 0 for trial in tried)
    assert tried[0].gain == 0
    assert tried[1].gain == pytest.approx(tried[1].worst - tried[0].worst)
    assert tried[1].gain_low <= tried[1].gain <= tried[1].gain_high
    assert tried[0].trainings == pytest.approx(len(VAL) / 3 / (6 * len(SPLIT)))
    assert tried[1].trainings == pytest.approx(1 / 6)
    assert made.choice_notes_[0][0].startswith("The repair that was kept is dfr[subsamples=2,tuning_splits=1], ")
    assert "rwg[epochs=1] would " in made.choice_notes_[0][0]
    assert "at up to 0.17 times the cost of training the classifier" in made.choice_notes_[0][0]
    head = made.heads_[0]
    assert head is not None
    last = find_last_layer(net(), VAL.first_images())
    assert same(network, replace_head(net(), last, head.weight, head.bias))
    assert made.history_ == [[]]


def test_a_dearer_one_is_kept_where_it_is_better_beyond_noise() -> None:
    made = learner("wrong|rwg")
    (network,) = made.fit_choices(net(), SPLIT, GROUPS, [CHOSEN])
    (tried,) = made.tried_
    assert [trial.kept for trial in tried] == [False, True]
    assert (tried[0].worst, made.heads_) == (0, [None])
    assert tried[0].gain == -tried[1].worst
    assert len(made.history_[0]) == 6
    alone = RWG(made.train, RUNTIME, seed=made._learner(made._parts[1]).seed)
    assert same(network, alone.fit_choices(net(), SPLIT, GROUPS, [CHOSEN])[0])


def test_networks_are_measured_by_the_half_that_did_not_choose_the_epoch() -> None:
    made = learner("by_heart")
    (network,) = made.fit_choices(net(), SPLIT, GROUPS, [CHOSEN])
    assert worst_accuracy(network, VAL, CHOSEN.groups.index) == 1  # it has seen all
    assert made.tried_[0][0].worst == 0


def test_each_selection_keeps_its_own_and_the_seed_reproduces_it() -> None:
    selections = [CHOSEN, Selection(VAL, groups_of(VAL.labels))]
    models = learner(f"{QUICK}|rwg[epochs=1]").fit_choices(net(), SPLIT, GROUPS, selections)
    for model, selection in zip(models, selections, strict=True):
        again = learner(f"{QUICK}|rwg[epochs=1]").fit_choices(net(), SPLIT, GROUPS, [selection])
        assert same(model, again[0])


def test_nothing_dearer_is_tried_where_a_perfect_one_would_be_within_noise() -> None:
    easy = planted([[20] * 3] * 3, core=8.0, noise=0.1)
    made = learner(f"{QUICK}|rwg")
    made.fit_choices(net(), SPLIT, GROUPS, [Selection(easy, true_groups(easy))])
    (tried,) = made.tried_
    assert tried[0].kept
    assert not tried[1].measured
    assert tried[1].why == "a cheaper one is within noise of a perfect one"
    assert "rwg was not measured: a cheaper one is" in made.choice_notes_[0][0]


def test_what_cannot_be_fitted_is_passed_over_and_named() -> None:
    made = learner(f"late|{QUICK}")
    made.fit_choices(net(), SPLIT, GROUPS, [CHOSEN])
    assert [trial.kept for trial in made.tried_[0]] == [False, True]
    assert "late was not measured: there is no train to take." in made.choice_notes_[0][0]
    with pytest.raises(DataError, match="there is no train to take"):
        learner("late").fit_choices(net(), SPLIT, GROUPS, [CHOSEN])
    with pytest.raises(DataError, match="there is no train to take"):
        learner("late").fit(net(), SPLIT, GROUPS)


def test_the_verdict_on_classes_is_that_of_the_last_layer() -> None:
    made = learner(QUICK)
    made.fit(net(), SPLIT, GROUPS, selection=CHOSEN)
    alone = DFR(subsamples=2, tuning_splits=1, seed=made._learner(made._parts[0]).seed)
    alone.fit(net(), VAL, CHOSEN.groups)
    assert made.verdict_ == alone.verdict_
    assert len(set(made.notes_)) == len(made.notes_)


def test_a_repair_that_harms_a_class_gives_way_to_the_next_best(monkeypatch: pytest.MonkeyPatch) -> None:
    repairs = f"rwg[learning_rate=0.1]|{QUICK}"
    usual = learner(repairs)
    network = usual.fit(net(), SPLIT, GROUPS, selection=CHOSEN)
    assert [trial.kept for trial in usual.tried_[0]] == [True, False]
    ruin = Verdict((), (), "retraining makes class 'a' worse", "The classifier is left as it is.")
    monkeypatch.setattr("exmap.retrain.whole_network.judge_network", lambda *args, **options: ruin)
    made = learner(repairs)
    other = made.fit(net(), SPLIT, GROUPS, selection=CHOSEN)
    (tried,) = made.tried_
    assert [(trial.kept, trial.harm) for trial in tried] == [(False, ruin.left_alone), (True, "")]
    assert made.heads_[0] is not None
    assert not made.verdict_.left_alone
    assert not same(network, other)
    assert "rwg[learning_rate=0.1] would gain " in made.choice_notes_[0][0]
    assert ", but retraining makes class 'a' worse." in made.choice_notes_[0][0]
    alone = learner("rwg")
    assert same(alone.fit(net(), SPLIT, GROUPS, selection=CHOSEN), net())
    assert alone.verdict_ == ruin


def test_one_that_harms_a_class_does_not_keep_others_from_being_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    ruin = Verdict((), (), "retraining makes class 'a' worse", "The classifier is left as it is.")
    monkeypatch.setattr("exmap.retrain.whole_network.judge_network", lambda *args, **options: ruin)
    easy = planted([[20] * 3] * 3, core=8.0, noise=0.1)
    made = learner(f"rwg|{QUICK}")
    made.fit_choices(net(), easy, true_groups(easy), [Selection(easy, true_groups(easy))])
    assert made.tried_[0][0].worst == 1
    assert [trial.measured for trial in made.tried_[0]] == [True, True]
    assert [trial.kept for trial in made.tried_[0]] == [False, True]


def test_without_a_selection_the_first_is_fitted_to_the_split() -> None:
    made = learner(f"{QUICK}|rwg")
    fitted = made.fit(net(), SPLIT, GROUPS)
    alone = DFR(subsamples=2, tuning_splits=1, seed=made._learner(made._parts[0]).seed)
    assert same(fitted, alone.fit(net(), SPLIT, GROUPS))
    assert made.notes_[0].startswith("nothing was given to choose a repair by, so dfr[")
    absent = replace(SPLIT, class_names=(*SPLIT.class_names, "unseen"))
    made.fit(net(4), absent, GROUPS)
    assert made.notes_[1].startswith("No image to retrain on is of class 'unseen'")


def test_what_is_set_reaches_those_that_take_it() -> None:
    made = learner("dfr|rwg|subg[epochs=3]", epochs=2, harm="warn")
    found = [made._learner(part) for part in made._parts]
    assert [each.harm for each in found] == ["warn"] * 3
    assert [each.epochs for each in found[1:]] == [2, 3]
    assert {each.start for each in found[1:]} == {"classifier"}


@pytest.mark.parametrize("repairs", ["", "|", "dfr|dfr", "rwg|cheapest"])
def test_repairs_are_learners_each_once(repairs: str) -> None:
    with pytest.raises(SettingsError, match="each once and none of them cheapest, got"):
        learner(repairs)


def test_unknown_learners_and_options_are_refused_before_any_work() -> None:
    with pytest.raises(SettingsError, match="unknown learner 'dfd'"):
        learner("dfd")
    with pytest.raises(SettingsError, match="unknown option of the learner rwg 'epoch'"):
        learner("rwg[epoch=3]")


def trial(name: str, worst: float, gain: float, low: float, high: float, **more: Any) -> RepairTrial:
    return RepairTrial(
        name=name, worst=worst, low=0.7, high=0.9, gain=gain, gain_low=low, gain_high=high, seconds=3.0, **more
    )


def test_the_record_in_words() -> None:
    kept = trial("dfr", 0.8, 0.0, 0.0, 0.0, trainings=0.1, kept=True)
    better = trial("rwg", 0.84, 0.04, -0.01, 0.08, trainings=1.0)
    worse = trial("subg", 0.7, -0.1, -0.15, -0.05, trainings=float("nan"))
    untried = RepairTrial.not_measured("lff", "it has no features")
    assert repairs_in_words([kept, better, worse, untried]) == (
        "The repair that was kept is dfr, the cheapest that is within noise of the best (rwg), with 80.0 % right in "
        "the worst pseudo-group (70.0 to 90.0 %). rwg would gain 4.0 points (-1.0 to 8.0, within noise) at "
        "up to 1 times the cost of training the classifier. subg would lose 10.0 points (5.0 to 15.0). lff was not "
        "measured: it has no features."
    )
    assert repairs_in_words([better]) == ""
    harmful = better.changed(harm="retraining makes class 'c' worse")
    assert repairs_in_words([kept, harmful]) == (
        "The repair that was kept is dfr, the best of those that can be kept, with 80.0 % right in the worst "
        "pseudo-group (70.0 to 90.0 %). rwg would gain 4.0 points (-1.0 to 8.0, within noise) at up to 1 times the "
        "cost of training the classifier, but retraining makes class 'c' worse."
    )
    assert "harm" not in kept.to_json()
    assert RepairTrial.from_json(untried.to_json()) == untried
    assert untried.to_json()["worst"] is None
