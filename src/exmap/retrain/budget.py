"""Training for a number of gradient steps, whatever an epoch of a learner shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from exmap.model.fit import ChangesImages, Objective
from exmap.records import IntArray

__all__ = ["InSteps", "checks_of"]

LEAST_CHECKS = 10  # of the network on held-out images: early stopping must have something to choose from


def checks_of(steps: int, epochs: int) -> int:
    """Return in how many parts a training of some steps is made, with a check of the network after each.

    Examples
    --------
    >>> checks_of(5000, epochs=30), checks_of(5000, epochs=2), checks_of(4, epochs=30)
    (30, 10, 4)
    """
    return min(steps, max(epochs, LEAST_CHECKS))


@dataclass
class InSteps:
    """An objective whose epochs are parts of a number of steps: its orders, one after the other, and divided again.

    Every step shows one full batch; where the objective's own order ends within a batch, its next one goes on in it.
    The orders of a part are all drawn where it begins.

    Attributes
    ----------
    objective : Objective
    steps : int
        Of the whole training.
    parts : int
        In how many epochs they are made; they differ by one step at most.
    batch_size : int
    """

    objective: Objective
    steps: int
    parts: int
    batch_size: int
    one_process: ClassVar[bool] = False
    _rest: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64), init=False, repr=False)
    _orders: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self.one_process = self.objective.one_process  # type: ignore[misc]  # as the objective has it
        if isinstance(self.objective, ChangesImages):
            self.images = self.objective.images

    def order(self, epoch: int, rng: np.random.Generator) -> IntArray:
        """Return the rows of the next part; parts are asked for one after the other."""
        steps = self.steps * (epoch + 1) // self.parts - self.steps * epoch // self.parts
        wanted, rows = steps * self.batch_size, [self._rest]
        while sum(map(len, rows)) < wanted:
            rows.append(self.objective.order(self._orders, rng))
            self._orders += 1
        shown = np.concatenate(rows)
        self._rest = shown[wanted:]
        return shown[:wanted]

    def loss(self, logits: Any, labels: torch.Tensor, rows: IntArray) -> torch.Tensor:
        """Return what the objective says that a batch costs."""
        return self.objective.loss(logits, labels, rows)
