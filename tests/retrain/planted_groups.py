"""Small splits whose groups are planted, a small net, and plain ERM, for the tests of whole-network learners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from exmap.data import Split, array_split
from exmap.model import collect_outputs
from exmap.model.fit import EmpiricalRisk
from exmap.records import Groups, IntArray
from exmap.retrain.learner import WholeNetwork
from exmap.runtime import torch_seed
from exmap.settings import RuntimeSettings, TrainSettings

RUNTIME = RuntimeSettings(accelerator="cpu", precision="32-true")  # on every machine, whatever it is quickest in
TRAIN = TrainSettings(epochs=6, batch_size=32, learning_rate=0.03, select="last")
SHORT = TRAIN.model_copy(update={"epochs": 2})


class Net(nn.Module):
    """Batch normalisation and dropout, so that modes and random draws matter."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(64, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x))).flatten(1)))


def net(n_classes: int = 3, seed: int = 0) -> Net:
    with torch_seed(seed):
        return Net(n_classes)


def planted(counts: Sequence[Sequence[int]], seed: int = 0, core: float = 0.5, noise: float = 1.0) -> Split:
    """Plant a weak feature of the class in channel 0 and a strong one of the shortcut in channel 1.

    `counts` has a row per class and a column per shortcut; group = class * columns + shortcut. Images are 8 x 8.
    """
    rng = np.random.default_rng(seed)
    k = len(counts)
    group = rng.permutation(np.repeat(np.arange(k * k), np.ravel(counts)))
    images = rng.normal(0, noise, (len(group), 2, 8, 8)).astype(np.float32)
    for channel, (value, strength) in enumerate([(group // k, core), (group % k, 3 * core)]):
        images[:, channel] += strength * (np.arange(8) % k == value[:, None])[:, None, :]
    names = [str(c) for c in range(k)]
    return array_split(images, group // k, name="train", class_names=names, true_groups=group)


def biased(k: int = 3, large: int = 120, small: int = 12, seed: int = 0) -> Split:
    """Plant `large` samples in the groups whose shortcut is the class, and `small` in the others."""
    return planted(np.where(np.eye(k, dtype=bool), large, small).tolist(), seed)


def groups_of(index: Sequence[int] | IntArray) -> Groups:
    index = np.asarray(index, dtype=np.int64)
    return Groups(index, tuple(f"g{g}" for g in range(index.max() + 1)), "own", ())


def true_groups(split: Split) -> Groups:
    return groups_of(split.true_groups().index)


def worst_accuracy(model: nn.Module, split: Split, index: IntArray) -> float:
    right = collect_outputs(model, split).predicted == split.labels
    return min(float(right[index == g].mean()) for g in np.unique(index[index >= 0]))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: nn.Module | dict[str, torch.Tensor], b: nn.Module | dict[str, torch.Tensor]) -> bool:
    first, second = (x.state_dict() if isinstance(x, nn.Module) else x for x in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@dataclass
class ERM(WholeNetwork):
    """What all others are compared with."""

    name: ClassVar[str] = "erm"
    fits_groups: ClassVar[bool] = False

    def objective(self, model, split, groups, listen):  # type: ignore[no-untyped-def]
        return EmpiricalRisk(len(split))
