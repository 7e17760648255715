"""Where memory runs out, images are computed in halves; a step of training stays what it was."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exmap.data import Task
from exmap.errors import SettingsError
from exmap.model import fit
from exmap.model.fit import Answers
from exmap.model.halving import AtOnce, step_in_parts
from exmap.records import Progress
from exmap.runtime import make_fabric
from exmap.settings import RuntimeSettings, TrainSettings

FABRIC = make_fabric(RuntimeSettings(accelerator="cpu", precision="32-true"))
SAID = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
CPU_ERROR = RuntimeError(SAID)
GPU_ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Hungry(nn.Module):
    """A small network whose memory suffices for so many images, with gradients or at all."""

    def __init__(self, width: int, most: int, error: Exception = CPU_ERROR, *, normed: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(width, 12), nn.BatchNorm1d(12) if normed else nn.Tanh(), nn.Linear(12, 3)
        )
        self.most, self.error = most, error
        self.ran: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most and (torch.is_grad_enabled() or not self.training):
            raise self.error
        self.ran.append(len(x))
        made: torch.Tensor = self.layers(x)
        return made


def networks(width: int, *most: int, **more: Any) -> list[Hungry]:
    """Return networks of the same weights, with memory for different numbers of images."""
    made = []
    for each in most:
        torch.manual_seed(0)
        made.append(Hungry(width, each, **more))
    return made


@pytest.mark.parametrize("error", [CPU_ERROR, GPU_ERROR, MemoryError()], ids=["processor", "GPU", "Python"])
def test_training_in_parts_is_the_same_training(three_classes: Task, error: Exception) -> None:
    train, val = three_classes.train, three_classes.val
    whole, hungry = networks(int(np.prod(train.images.shape)), 10_000, 20, error=error)
    settings = TrainSettings(epochs=2, batch_size=64)
    heard: list[Progress] = []
    (wanted,), _ = fit(whole, train, val, settings, fabric=FABRIC, seed=0)
    (rows,), _ = fit(hungry, train, val, settings, fabric=FABRIC, seed=0, listen=heard.append)
    for one, other in zip(whole.parameters(), hungry.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert [row["val_mean"] for row in rows] == [row["val_mean"] for row in wanted]
    assert rows[-1]["train_loss"] == pytest.approx(wanted[-1]["train_loss"], rel=1e-5)
    assert "images at a time, as memory ran out" in heard[0].note
    assert [progress.at_once for progress in heard].count(True) == 1


def test_statistics_of_batches_are_those_of_parts_and_count_each_image_once(three_classes: Task) -> None:
    train = three_classes.train
    (hungry,) = networks(int(np.prod(train.images.shape)), 16, normed=True)
    fit(hungry, train, None, TrainSettings(epochs=1, batch_size=60), fabric=FABRIC, seed=0)
    steps = len(train) // 60
    counted = hungry.state_dict()["layers.2.num_batches_tracked"]
    assert int(counted) == 4 * steps  # parts of 15


def test_a_step_that_two_images_are_too_many_for_is_refused(
    three_classes: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[fit.__module__], "check_trainable", lambda *_: None)
    train = three_classes.train
    (hungry,) = networks(int(np.prod(train.images.shape)), 1)
    with pytest.raises(SettingsError, match="memory must suffice for training on 64 images at a time"):
        fit(hungry, train, None, TrainSettings(epochs=1, batch_size=64), fabric=FABRIC, seed=0)


def back(number: torch.Tensor) -> None:
    torch.autograd.backward(number)


def worst_of_rows(logits: Any) -> torch.Tensor:
    """A loss that is no mean: what is worst of the whole batch."""
    return torch.logsumexp(logits.square().sum(dim=1), dim=0)


def of_two(logits: Any) -> torch.Tensor:
    """A loss of two networks' logits, given as they return them."""
    assert isinstance(logits, Answers)
    first, second = logits
    return (first.softmax(dim=1) * second.square()).sum()


@pytest.mark.parametrize(("loss", "twins"), [(worst_of_rows, False), (of_two, True)], ids=["no mean", "two networks"])
@pytest.mark.parametrize("most", [8, 3, 2])
def test_gradients_of_any_loss_are_those_of_the_whole_batch(
    loss: Callable[[Any], torch.Tensor], twins: bool, most: int
) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    images = torch.randn(11, 5)

    def gradients(most: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        def run(part: slice) -> Any:
            made = model(images[part])
            return Answers((made, 2 * made)) if twins else made

        model.zero_grad()
        torch.manual_seed(7)
        cost = step_in_parts(AtOnce(most), len(images), run=run, loss=loss, backward=back, model=model)
        return cost, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    model.eval()  # the draws of dropout belong to a part: another number of parts draws otherwise
    (cost, wanted), (in_parts, found) = gradients(11), gradients(most)
    torch.testing.assert_close(in_parts, cost)
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_leaves_out_the_same_on_the_way_back() -> None:
    torch.manual_seed(3)
    images, dropout, weight = torch.ones(8, 50), nn.Dropout(0.5), nn.Linear(50, 1)
    seen: list[torch.Tensor] = []

    def run(part: slice) -> torch.Tensor:
        seen.append(dropout(images[part]))
        made: torch.Tensor = weight(seen[-1])
        return made

    step_in_parts(AtOnce(4), 8, run=run, loss=torch.sum, backward=back, model=weight)
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_any_other_error_is_not_taken_for_too_little_memory() -> None:
    def run(part: slice) -> torch.Tensor:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        step_in_parts(AtOnce(8), 8, run=run, loss=torch.sum, backward=back, model=nn.Identity())
