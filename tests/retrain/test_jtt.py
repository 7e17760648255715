from __future__ import annotations

import numpy as np
import pytest
import torch
from planted_groups import (
    RUNTIME,
    SHORT,
    TRAIN,
    biased,
    groups_of,
    net,
    same,
    true_groups,
)
from torch import nn

from exmap.data import Split, array_split
from exmap.errors import DataError, NumericalError, SettingsError
from exmap.model import collect_outputs, fit
from exmap.model.fit import EmpiricalRisk
from exmap.records import IntArray, Progress, silent
from exmap.retrain.jtt import JTT
from exmap.retrain.learner import Selection
from exmap.runtime import child_seed, make_fabric

SPLIT = biased()
STILL = TRAIN.model_copy(update={"learning_rate": 1e-12})  # the identification model stays the model given


class Reader(nn.Module):
    """Reads the class off the first pixel, or always another class."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-sign], [sign]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x[:, 0, 0, :1])


def readable(labels: list[int], pixels: list[float]) -> Split:
    return array_split(np.tile(np.array(pixels, dtype=np.float32)[:, None, None, None], (1, 1, 8, 8)), labels)


def order(learner: JTT, model: nn.Module, split: Split, epoch: int = 0) -> IntArray:
    return learner.objective(model, split, None, silent).order(epoch, np.random.default_rng(epoch))


def test_errors_by_hand_appear_as_often_as_said() -> None:
    split = readable([0, 0, 1, 1, 1], [-1.0, 2.0, 1.0, -3.0, 4.0])  # samples 1 and 3 look like the other class
    learner = JTT(STILL, RUNTIME, up_weight=7)
    rows = order(learner, Reader(1.0), split)
    assert learner.error_set_.tolist() == [False, True, False, True, False]
    assert np.bincount(rows).tolist() == [1, 7, 1, 7, 1]
    assert learner.notes_ == (
        "with identification_epochs=1, 2 of 5 samples are in the error set: an epoch shows each of them 7 times",
    )
    assert not np.array_equal(rows, order(learner, Reader(1.0), split, epoch=1))


def test_an_error_set_of_everything_is_trained_on() -> None:
    split = readable([0, 1, 0, 1], [-1.0, 1.0, -2.0, 2.0])
    learner = JTT(STILL, RUNTIME, up_weight=3)
    learner.fit(Reader(-1.0), split)
    assert learner.error_set_.all()
    assert np.bincount(order(learner, Reader(-1.0), split)).tolist() == [3] * 4


def test_an_empty_error_set_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        JTT(STILL, RUNTIME).fit(Reader(1.0), readable([0, 1, 0, 1], [-1.0, 1.0, -2.0, 2.0]))
    assert str(caught.value) == (
        "jtt needs errors to show more often, but the identification model makes none on split val with "
        "identification_epochs=1; lower it or train.learning_rate"
    )


def test_both_trainings_are_those_of_the_paper_written_out() -> None:
    fabric = make_fabric(RUNTIME)
    first, second = net(), net()
    short = TRAIN.model_copy(update={"epochs": 3})
    _, (weights,) = fit(first, SPLIT, None, short, fabric=fabric, seed=child_seed(9, "identification"))
    first.load_state_dict(weights)
    wrong = collect_outputs(first, SPLIT).predicted != SPLIT.labels
    rows: list[int] = []
    for row in range(len(SPLIT)):
        rows += [row] * (4 if wrong[row] else 1)

    class UpSampled(EmpiricalRisk):
        def order(self, epoch: int, rng: np.random.Generator) -> IntArray:
            return rng.permutation(np.array(rows))

    history, (weights,) = fit(second, SPLIT, None, TRAIN, fabric=fabric, seed=9, objective=UpSampled(len(SPLIT)))
    learner = JTT(TRAIN, RUNTIME, 9, identification_epochs=3, up_weight=4)
    model = learner.fit(net(), SPLIT)
    assert np.array_equal(learner.error_set_, wrong)
    assert same(model, weights)
    assert repr(learner.history_) == repr(history)  # scores without a selection are NaN


def test_errors_are_rich_in_the_groups_that_the_shortcut_misleads() -> None:
    learner = JTT(TRAIN, RUNTIME, identification_epochs=3)
    order(learner, net(), SPLIT)
    group = true_groups(SPLIT).index
    misled = group // 3 != group % 3
    assert learner.error_set_[misled].mean() > 3 * learner.error_set_[~misled].mean()


def test_groups_have_no_part_in_the_fit_but_a_selection_must_fit_its_split() -> None:
    learner = JTT(SHORT, RUNTIME, up_weight=3)
    groups = groups_of(np.where(np.arange(len(SPLIT)) % 2, 0, -1))
    assert same(learner.fit(net(), SPLIT, groups), learner.fit(net(), SPLIT))
    with pytest.raises(DataError, match=r"^selection needs one group per sample of split train, got 10 groups for 432"):
        Selection(SPLIT, groups_of(range(10)))


def test_both_trainings_are_told_of() -> None:
    heard: list[Progress] = []
    JTT(SHORT, RUNTIME, up_weight=2).fit(net(), SPLIT, listen=heard.append)
    tasks = list(dict.fromkeys(progress.task for progress in heard))
    assert tasks == ["identify", "features (train)", "train"]


@pytest.mark.parametrize(("epochs", "up_weight"), [(0, 50), (1, 0), (-1, -1)])
def test_parameters_out_of_range_are_refused(epochs: int, up_weight: int) -> None:
    with pytest.raises(SettingsError) as caught:
        JTT(identification_epochs=epochs, up_weight=up_weight)
    assert str(caught.value) == (
        f"jtt needs identification_epochs and up_weight of at least 1, got {epochs} and {up_weight}; the paper's for "
        "CelebA are 1 and 50"
    )


def test_a_loss_that_is_not_finite_stops() -> None:
    with pytest.raises(NumericalError, match=r"lower train\.learning_rate"):
        JTT(SHORT.model_copy(update={"learning_rate": 1e30}), RUNTIME).fit(net(), SPLIT)
