"""Balance the groups by what an epoch shows (Idrissi, Arjovsky, Pezeshki and Lopez-Paz, CLeaR 2022).

"Simple data balancing achieves competitive worst-group-accuracy": the loss stays the mean cross-entropy, and either
samples are drawn with a chance inverse to the size of their group (RWG), or all groups are cut to one size (SUBG).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import nn

from exmap.data import Split
from exmap.errors import DataError
from exmap.model.fit import Objective
from exmap.records import FloatArray, Groups, IntArray, Listener
from exmap.registry import LEARNERS
from exmap.retrain.balance import balanced_size, balanced_subset, left_out, small_groups
from exmap.retrain.learner import WholeNetwork, assigned
from exmap.runtime import generator

__all__ = ["RWG", "SUBG", "Drawn", "Shuffled", "balanced_draws", "checked_rows"]


@LEARNERS.register
@dataclass
class RWG(WholeNetwork):
    """Train on samples drawn so that every group is equally likely, for any number of classes and groups.

    Samples are drawn with replacement, as many in an epoch as are in a group, each with a chance inverse to the size
    of its group. The paper has no parameter for it beyond those of SGD, which it tunes (``tuned``). It trains for 360
    epochs on Waterbirds and 60 on CelebA, from ImageNet weights; here for as many as `train` says, or for `steps`.

    Parameters
    ----------
    train, runtime, seed
        As for :class:`~exmap.retrain.learner.WholeNetwork`.
    pooled : int
        Size of a group that is drawn half as often as a very large one; 0 draws all groups equally often. The paper
        has 0, which shows the few images of a small group very often. See :func:`balanced_draws`.
    """

    name: ClassVar[str] = "rwg"

    pooled: NonNegativeInt = field(default=0, kw_only=True)

    def objective(self, model: nn.Module, split: Split, groups: Groups | None, listen: Listener) -> Drawn:
        """Return balanced draws and the mean cross-entropy.

        Raises
        ------
        DataError
            If a class has no sample in a group, or there are too few samples for a batch.
        """
        assert groups is not None
        self.notes_ = (*self.notes_, *left_out(groups))
        drawn = balanced_draws(groups, self.pooled)
        checked_rows(self.name, split, drawn.rows, self.runtime.devices)
        return drawn


@LEARNERS.register
@dataclass
class SUBG(WholeNetwork):
    """Train on groups cut to one size, for any number of classes and groups.

    The subset is drawn once and is the same in every epoch, as in the authors' code. An epoch is one pass over it, and
    so takes fewer steps than one over the whole split; the paper does not make up for that (it trains for 360 epochs on
    Waterbirds and 60 on CelebA). With `steps` it takes as many as any other learner.

    Parameters
    ----------
    train, runtime, seed
        As for :class:`~exmap.retrain.learner.WholeNetwork`; the subset depends on the seed.
    smallest_group : int
        A smaller group takes part but does not set the size, as in :class:`~exmap.retrain.DFR`. With 1 it is the
        paper's rule: the smallest group sets the size.
    """

    name: ClassVar[str] = "subg"

    smallest_group: PositiveInt = 6

    def objective(self, model: nn.Module, split: Split, groups: Groups | None, listen: Listener) -> Objective:
        """Return the subset, shuffled, and the mean cross-entropy.

        Raises
        ------
        DataError
            If the subset holds fewer than 2 samples of a class, or too few for a batch.
        """
        assert groups is not None
        rng = generator(self.seed, "subset")
        rows = balanced_subset(groups.index, rng, smallest_group=self.smallest_group)
        checked_rows(self.name, split, rows, self.runtime.devices, least=2)
        size = balanced_size(groups.counts(), self.smallest_group)
        shown = f"groups were cut to {size} samples each: an epoch shows {len(rows)} of {len(split)} samples"
        self.notes_ = (*self.notes_, shown, *small_groups(groups, self.smallest_group), *left_out(groups))
        return Shuffled(rows)


@dataclass(frozen=True)
class Shuffled:
    """The same rows in every epoch, shuffled, and the mean cross-entropy.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
        Of the training split; one that is there twice is shown twice.
    """

    rows: IntArray
    one_process: ClassVar[bool] = False

    def order(self, epoch: int, rng: np.random.Generator) -> IntArray:
        """Return the rows, shuffled."""
        return rng.permutation(self.rows)

    def loss(self, logits: Any, labels: torch.Tensor, rows: IntArray) -> torch.Tensor:
        """Return the mean cross-entropy of the batch."""
        return nn.functional.cross_entropy(logits, labels)


@dataclass(frozen=True)
class Drawn(Shuffled):
    """As many rows as there are, drawn with replacement, and the mean cross-entropy.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
        Of the training split.
    chances : ndarray of float64, shape (n,)
        Of each row to be drawn; they sum to 1.
    """

    chances: FloatArray

    def order(self, epoch: int, rng: np.random.Generator) -> IntArray:
        """Return the rows that are drawn."""
        return rng.choice(self.rows, len(self.rows), p=self.chances)


def balanced_draws(groups: Groups, pooled: int = 0) -> Drawn:
    """Return draws of the samples in a group that make every group equally likely, or nearly so where one is small.

    Parameters
    ----------
    groups : Groups
    pooled : int
        A group of n samples is drawn with a chance proportional to ``n / (n + pooled)``. With 0 every group is drawn
        equally often, whatever its size; with 50 one of five samples a tenth as often as one of five hundred.

    Examples
    --------
    >>> balanced_draws(Groups(np.array([0, 0, 1, -1]), ("a", "b"), "own", ())).chances
    array([0.25, 0.25, 0.5 ])
    >>> balanced_draws(Groups(np.array([0, 0, 1, -1]), ("a", "b"), "own", ()), pooled=1).chances.round(3)
    array([0.286, 0.286, 0.429])
    """
    rows, counts = assigned(groups)
    shares = (counts > 0) / np.maximum(counts + pooled, 1)  # of each sample; a group's is as many times that
    return Drawn(rows, shares[groups.index[rows]] / (shares @ counts))


def checked_rows(learner: str, split: Split, rows: IntArray, devices: int, *, least: int = 1) -> None:
    """Refuse rows that no network should be trained on.

    Parameters
    ----------
    learner : str
        Its name, for the message.
    split : Split
    rows : ndarray of int64, shape (n,)
        What an epoch is made of.
    devices : int
        Processes that share a batch.
    least : int
        Samples that every class of the split must have.

    Raises
    ------
    DataError
        If a class has fewer, or a process would get fewer than 2 samples.
    """
    counts = np.bincount(split.labels[rows], minlength=split.n_classes)
    for label in np.unique(split.labels):
        if counts[label] < least:
            raise DataError(
                f"{learner} must show samples of each class, at least {least}, but {counts[label]} of class "
                f"{split.class_names[label]!r} would be left; give groups that do not mix classes, or more samples in "
                "groups"
            )
    if len(rows) < 2 * devices:
        raise DataError(
            f"{learner} must show at least 2 samples to each of {devices} processes, but {len(rows)} would be left; "
            "give more samples in groups"
        )
