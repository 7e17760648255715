"""Group distributionally robust optimisation: descend the loss of the worst group (Sagawa et al., ICLR 2020).

Their algorithm 1 keeps one weight q per group. Every batch first raises the weights of groups with a high loss,
``q_g <- q_g * exp(eta * loss_g)``, normalised to sum to 1, and then descends ``sum_g q_g * loss_g``. As in the
authors' code (github.com/kohpangwei/group_DRO), a group's loss is the mean over its samples in the batch, 0 if it has
none there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import nn

from exmap.data import Split
from exmap.errors import SettingsError
from exmap.model.fit import Objective
from exmap.records import Groups, IntArray, Listener
from exmap.registry import LEARNERS
from exmap.retrain.balance import left_out
from exmap.retrain.learner import WholeNetwork, assigned
from exmap.retrain.reweight import Shuffled, balanced_draws, checked_rows
from exmap.retrain.tuning import Setting, combinations

__all__ = ["GroupDRO", "RobustRisk"]

STEP_SIZE = 0.01


@LEARNERS.register
@dataclass
class GroupDRO(WholeNetwork):
    """Train all weights against the worst group, for any number of classes and groups.

    The paper finds that it needs strong regularisation or early stopping: its networks fit all training groups. So it
    tunes weight decay and learning rate together, which ``tuned`` does here. It trains for 300 epochs on Waterbirds and
    50 on CelebA, from ImageNet weights; here for as many as `train` says, or for `steps`.

    Parameters
    ----------
    train, runtime, seed
        As for :class:`~exmap.retrain.learner.WholeNetwork`; ``runtime.devices`` must be 1. The paper's weight decay is
        1e-4 (standard, at a learning rate of 1e-3 on Waterbirds and 1e-4 on CelebA) or as strong as 1 on Waterbirds and
        0.1 on CelebA (both at 1e-5); we keep those of `train`.
    step_size : float, optional
        How fast weights move between groups, eta in the paper. By default 0.01, as by the authors, or with ``tuned``
        the better of 0.01 and 0.1.
    adjustment : float
        C of the generalisation adjustment: ``C / sqrt(n_g)`` is added to the loss of a group of n_g samples. 0, none,
        is the authors' default; the paper tunes it over 0 to 5 with strong weight decay.
    balanced : bool
        Whether samples are drawn with replacement, every group equally likely, as in all the authors' commands
        (``--reweight_groups``); otherwise each is shown once an epoch.
    pooled : int
        With `balanced`: size of a group that is drawn half as often as a very large one; 0 draws all groups equally
        often. See :func:`~exmap.retrain.reweight.balanced_draws`.

    Attributes
    ----------
    GRID : tuple of mapping of str to float
        The standard and the two strong regularisations of the paper, the latter at a lower learning rate, each with
        the authors' step size and with that of Idrissi et al. (CLeaR 2022), 0.1: six trainings, or three where
        `step_size` is given.

    Raises
    ------
    SettingsError
        If the step size is not positive, or the adjustment is negative.
    """

    name: ClassVar[str] = "group_dro"
    one_process: ClassVar[bool] = True
    GRID: ClassVar[tuple[Setting, ...]] = (
        *combinations(learning_rate=(1.0,), weight_decay=(1e-4,), step_size=(0.01, 0.1)),
        *combinations(learning_rate=(0.1,), weight_decay=(0.1, 1.0), step_size=(0.01, 0.1)),
    )

    step_size: PositiveFloat | None = None
    adjustment: NonNegativeFloat = 0.0
    balanced: bool = True
    pooled: NonNegativeInt = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if not (self._step_size > 0 and self.adjustment >= 0):
            raise SettingsError(
                f"group_dro needs a positive step_size and an adjustment of at least 0, got {self._step_size:g} and "
                f"{self.adjustment:g}; the authors' are 0.01 and 0"
            )
        super().__post_init__()

    @property
    def _step_size(self) -> float:
        return STEP_SIZE if self.step_size is None else self.step_size

    def objective(self, model: nn.Module, split: Split, groups: Groups | None, listen: Listener) -> Objective:
        """Return the robust risk, all groups with samples weighing the same at first.

        Raises
        ------
        DataError
            If a class has no sample in a group, or there are too few samples for a batch.
        """
        assert groups is not None
        self.notes_ = (*self.notes_, *left_out(groups))
        rows, counts = assigned(groups)
        checked_rows(self.name, split, rows, self.runtime.devices)
        return RobustRisk(
            groups.index,
            torch.from_numpy((counts > 0) / np.count_nonzero(counts)),
            torch.from_numpy(self.adjustment / np.sqrt(np.maximum(counts, 1))),
            self._step_size,
            balanced_draws(groups, self.pooled) if self.balanced else Shuffled(rows),
        )


@dataclass
class RobustRisk:
    """The weighted sum of the groups' losses, and the weights, which every batch moves.

    Attributes
    ----------
    index : ndarray of int64, shape (N,)
        Group of each sample of the training split; -1 is never shown.
    q : Tensor of float64, shape (G,)
        Weights of the groups; they sum to 1, and an empty group's is and stays 0.
    adjustment : Tensor of float64, shape (G,)
        Added to the groups' losses.
    step_size : float
    shown : Shuffled
        What an epoch shows.
    """

    index: IntArray
    q: torch.Tensor
    adjustment: torch.Tensor
    step_size: float
    shown: Shuffled
    one_process: ClassVar[bool] = True  # the weights come from whole batches

    def order(self, epoch: int, rng: np.random.Generator) -> IntArray:
        """Return the rows that an epoch shows."""
        return self.shown.order(epoch, rng)

    def loss(self, logits: Any, labels: torch.Tensor, rows: IntArray) -> torch.Tensor:
        """Move the weights by the batch's losses, and return the losses' weighted sum."""
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        group = torch.from_numpy(self.index[rows]).to(losses.device)
        member = nn.functional.one_hot(group, len(self.q)).to(losses.dtype)
        means = (losses @ member) / member.sum(dim=0).clamp(min=1)
        adjusted = means + self.adjustment.to(means.dtype).to(means.device)
        self.q = torch.softmax(self.q.log() + self.step_size * adjusted.detach().cpu().double(), dim=0)
        return adjusted @ self.q.to(means.dtype).to(means.device)
