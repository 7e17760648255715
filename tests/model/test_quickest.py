"""The precision of a training: what the device says, or a few steps where that leaves doubt."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from exmap.data import Task
from exmap.errors import NumericalError
from exmap.model import quickest
from exmap.model.quickest import quickest_precision
from exmap.precision import PrecisionChoice
from exmap.settings import RuntimeSettings, TrainSettings

CPU = RuntimeSettings(accelerator="cpu")
LONG = TrainSettings(epochs=100_000, batch_size=8)


class Slow(nn.Module):
    """A linear map that takes its time in one of the two precisions."""

    def __init__(self, slow_in: torch.dtype, width: int) -> None:
        super().__init__()
        self.map, self.slow_in, self.steps = nn.Linear(width, 3), slow_in, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.map(x.flatten(1))
        self.steps += 1
        if made.dtype == self.slow_in:
            time.sleep(0.02)
        return made


@pytest.fixture
def in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(runtime: RuntimeSettings) -> PrecisionChoice:
        return PrecisionChoice("bf16-mixed", "as it may be", certain=False)

    monkeypatch.setattr(quickest, "choose_precision", choose)
    monkeypatch.setattr(quickest, "_FOUND", {})


@pytest.mark.parametrize(
    ("slow_in", "best"), [(torch.bfloat16, "32-true"), (torch.float32, "bf16-mixed")], ids=["float32", "bfloat16"]
)
def test_where_instructions_leave_doubt_a_few_steps_tell(
    in_doubt: None, three_classes: Task, slow_in: torch.dtype, best: str
) -> None:
    channels, height, width = three_classes.train.images.shape
    model = Slow(slow_in, channels * height * width)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    choice = quickest_precision(model, three_classes.train, LONG, CPU)
    assert choice.precision == best
    assert choice.certain
    assert "as a step takes" in choice.why
    assert model.steps == 0  # a copy was tried
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert quickest_precision(model, three_classes.train, LONG, CPU) is choice  # tried once


@pytest.mark.parametrize(
    ("training", "runtime"),
    [(TrainSettings(epochs=1, batch_size=128), CPU), (LONG, RuntimeSettings(accelerator="cpu", devices=2))],
    ids=["short", "several processes"],
)
def test_nothing_is_tried_where_it_does_not_pay(
    in_doubt: None, three_classes: Task, training: TrainSettings, runtime: RuntimeSettings
) -> None:
    assert quickest_precision(nn.Identity(), three_classes.train, training, runtime).why == "as it may be"


def test_a_precision_that_leaves_the_finite_numbers_is_not_taken(
    in_doubt: None, three_classes: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise NumericalError("the loss is nan")

    monkeypatch.setattr(quickest, "fit", diverge)
    assert quickest_precision(nn.Linear(1, 1), three_classes.train, LONG, CPU).precision == "32-true"
