"""Learning from failure: a biased and a debiased network trained together (Nam et al., NeurIPS 2020).

The biased network descends the generalised cross-entropy ``(1 - p^q) / q``, which follows what is easy; the debiased
one a cross-entropy in which a sample weighs ``b / (b + d)``, its *relative difficulty*: how hard it is for the biased
network, by how hard it is for both. As in the authors' code (github.com/alinlab/LfF), b and d are each sample's loss,
smoothed over the times it was seen and divided by the largest smoothed loss in its class.

Both start from the weights given, as the authors' do, but for the head, where these are pretrained; what sets them
apart is their losses. The authors' code has another factor q before the generalised cross-entropy, which Adam does not
see; the paper, and so this module, does not.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from exmap.data import Split
from exmap.model.fit import Objective
from exmap.model.twins import Pair
from exmap.records import Groups, IntArray, Listener
from exmap.registry import LEARNERS
from exmap.retrain.learner import WholeNetwork

__all__ = ["LfF", "RelativeDifficulty"]


@LEARNERS.register
@dataclass
class LfF(WholeNetwork):
    """Two networks, of which the second learns from the failure of the first.

    The fit needs no groups; the epoch is chosen by the debiased network alone, and that is the model returned. The
    authors train with Adam for 100 (Coloured MNIST) or 200 epochs (Corrupted CIFAR-10, CelebA) and keep the last one;
    here it is SGD for as many epochs as `train` says, or for `steps`. A step costs two networks.

    Parameters
    ----------
    train, runtime, seed
        As for :class:`WholeNetwork`.
    q : float
        How much the biased network prefers what is easy; towards 0 its loss is the cross-entropy.
    decay : float
        Share of a sample's smoothed loss that stays when the sample is seen again.
    """

    q: Annotated[float, Field(gt=0, le=1)] = 0.7
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.7

    name: ClassVar[str] = "lff"
    one_process: ClassVar[bool] = True
    fits_groups: ClassVar[bool] = False

    def objective(self, model: nn.Module, split: Split, groups: Groups | None, listen: Listener) -> Objective:
        """Return the loss of both networks."""
        return RelativeDifficulty(split.labels, split.n_classes, self.q, self.decay)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return the biased network, a copy, and the debiased one."""
        return Pair(copy.deepcopy(model), model)

    def unwrapped(self, network: nn.Module) -> nn.Module:
        """Return the debiased network."""
        assert isinstance(network, Pair)
        return network.second


class RelativeDifficulty:
    """The generalised cross-entropy of the biased network, and the weighted cross-entropy of the debiased one.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,), in [0, n_classes)
        Of the training split.
    n_classes : int
    q, decay : float
        As for :class:`LfF`.
    """

    one_process: ClassVar[bool] = True

    def __init__(self, labels: IntArray, n_classes: int, q: float = 0.7, decay: float = 0.7) -> None:
        self.labels, self.n_classes, self.q, self.decay = torch.from_numpy(labels), n_classes, q, decay
        self.smoothed = torch.zeros(2, len(labels))  # losses of the biased and the debiased network
        self.seen = torch.zeros(len(labels), dtype=torch.bool)

    def order(self, epoch: int, rng: np.random.Generator) -> IntArray:
        """Return all rows, shuffled."""
        return rng.permutation(len(self.labels))

    def loss(self, logits: Any, labels: torch.Tensor, rows: IntArray) -> torch.Tensor:
        """Return the sum of both networks' mean losses.

        Parameters
        ----------
        logits : pair of Tensor of shape (n, K)
            Of the biased and the debiased network.
        labels : Tensor of int64, shape (n,)
        rows : ndarray of int64, shape (n,)
        """
        losses = torch.stack([nn.functional.cross_entropy(each, labels, reduction="none") for each in logits])
        easy = -torch.expm1(-self.q * losses[0]) / self.q
        return (easy + self.weights(losses.detach(), rows) * losses[1]).mean()

    def weights(self, losses: torch.Tensor, rows: IntArray) -> torch.Tensor:
        """Take note of the losses, and return the relative difficulties.

        Parameters
        ----------
        losses : Tensor of float32, shape (2, n)
            Of the biased and the debiased network.
        rows : ndarray of int64, shape (n,)

        Returns
        -------
        Tensor of float32, shape (n,), in [0, 1]
        """
        self.labels, self.smoothed, self.seen = (t.to(losses.device) for t in (self.labels, self.smoothed, self.seen))
        at = torch.from_numpy(rows).to(losses.device)
        before = torch.where(self.seen[at], self.smoothed[:, at], losses)
        self.smoothed[:, at] = self.decay * before + (1 - self.decay) * losses
        self.seen[at] = True
        largest = torch.zeros(2, self.n_classes, device=losses.device)
        largest.scatter_reduce_(1, self.labels.expand(2, -1), self.smoothed, "amax")
        biased, debiased = self.smoothed[:, at] / largest[:, self.labels[at]].clamp_min(1e-8)  # no loss: no difficulty
        difficulty: torch.Tensor = biased / (biased + debiased + 1e-8)
        return difficulty
