"""Penalise relevance where the shortcut is: be right for the right reasons.

Ross, Hughes and Doshi-Velez (IJCAI 2017) add to the cross-entropy a penalty on gradients in the parts of an image that
a person has marked as irrelevant. Reveal to Revise (Pahde et al., MICCAI 2023) finds such parts by explanations. Here
they are :func:`exmap.retrain.region.shortcut_region`, and nobody marks anything. What is penalised is a share of an
image's relevance, not its amount: flatter logits lower the amount, only other reasons lower the share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from exmap.data import Split
from exmap.errors import ExMapError
from exmap.exchange import Region, exchangeable
from exmap.model.classifier import logits_of
from exmap.model.fit import Answers, Objective
from exmap.model.running import run_model, way_back
from exmap.precision import Precision
from exmap.records import Groups, IntArray, Listener
from exmap.registry import LEARNERS
from exmap.retrain.region import shortcut_region
from exmap.retrain.reweight import RWG, Drawn
from exmap.retrain.selection import Selection
from exmap.retrain.tuning import Setting, combinations
from exmap.retrain.whole_network import Start

__all__ = ["RelevancePenalty", "RelevanceRisk", "WithImages", "share_inside"]

PENALTY = 0.3
FLOAT32: Precision = "32-true"
LEAST = 1e-12  # relevance of an image; below, its share is taken for 0


@LEARNERS.register
@dataclass
class RelevancePenalty(RWG):
    """Train on balanced draws, and keep relevance out of the region of the shortcut, for any number of classes.

    The loss is the mean cross-entropy plus `penalty` times the mean share of relevance inside the region. Relevance is
    gradient times input of the log-probability of the true class, as an absolute value, summed over channels. The paper
    penalises squared gradients of the log-probabilities of all classes, with a weight that brings penalty and
    cross-entropy to the same order of magnitude; a share needs no such weight.

    The penalty cannot help where the shortcut lies on the object itself, such as the colour of a digit: there is no
    region then, and groups are only drawn equally often, as by :class:`~exmap.retrain.RWG`.

    Parameters
    ----------
    train, runtime, seed, pooled
        As for :class:`~exmap.retrain.RWG`.
    penalty : float, optional
        What relevance that lies wholly inside the region costs, where a coin toss between two classes costs 0.69. By
        default 0.3, or with ``tuned`` the best of 0.1, 0.3 and 1. With more, training often breaks down.
    every : int
        The penalty is part of every so many-th step, and then counts so many times. A step with it costs up to three
        times one without.
    start
        By default the trained classifier. With ``initial`` there is no region.

    Trained in float32 whatever the precision of `runtime`: the gradient is differentiated once more, which mixed
    precision does not allow outside the step itself.

    Attributes
    ----------
    region_ : Region or None
        Where relevance is penalised; None where nowhere. Set by :meth:`fit` and :meth:`fit_choices`.
    """

    name: ClassVar[str] = "relevance_penalty"
    GRID: ClassVar[tuple[Setting, ...]] = combinations(learning_rate=(1.0, 0.1), penalty=(0.1, 0.3, 1.0))

    penalty: PositiveFloat | None = field(default=None, kw_only=True)
    every: PositiveInt = field(default=1, kw_only=True)
    start: Start = field(default="classifier", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        named, self._told = self.runtime.precision, ""
        if named not in ("auto", FLOAT32):
            self._told = f"relevance is penalised in float32, not in {named}, as its gradient is differentiated again"
        self.runtime = self.runtime.model_copy(update={"precision": FLOAT32})

    def begin(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None,
        selections: Sequence[Selection],
        listen: Listener,
    ) -> None:
        """Ask the model's heatmaps where the shortcut is."""
        assert groups is not None
        self.notes_ += tuple(filter(None, [self._told]))
        self.region_, why = self._region(model, split, groups, listen)
        if self.region_ is None:
            self.notes_ += (f"no relevance was penalised, and groups were only drawn equally often, as by rwg: {why}",)
        else:
            share = self.region_.inside.mean()
            self.notes_ += (f"relevance was penalised in the region of the shortcut, {share:.0%} of the image{why}",)

    def _region(self, model: nn.Module, split: Split, groups: Groups, listen: Listener) -> tuple[Region | None, str]:
        """Return the region of the shortcut and what to add about it, or None and why there is none."""
        if not exchangeable(split.images.shape):
            return None, "images smaller than 8 pixels, or with other than 1 or 3 channels, are not looked at"
        if self.start == "initial":
            return None, "a network that is not trained shows no region"
        try:
            found = shortcut_region(model, split, groups, seed=self.seed, listen=listen)
        except ExMapError as error:
            return None, f"the model cannot be explained: {error}"
        if found.region is None:
            return None, found.missing
        return found.region, (
            f"; {found.left_out} of {found.parts} parts that relevance gathers in were left out, since they may hold "
            "what images are labelled by"
        ) * bool(found.left_out)

    def objective(self, model: nn.Module, split: Split, groups: Groups | None, listen: Listener) -> Objective:  # type: ignore[override]
        """Return balanced draws, with the penalty where there is a region.

        Raises
        ------
        DataError
            If a class has no sample in a group, or there are too few samples for a batch.
        """
        drawn = super().objective(model, split, groups, listen)
        if self.region_ is None:
            return drawn
        return RelevanceRisk(
            drawn, torch.from_numpy(self.region_.inside), PENALTY if self.penalty is None else self.penalty, self.every
        )

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return the model, and with a region one that hands out its images beside the logits."""
        return model if self.region_ is None else WithImages(model)

    def unwrapped(self, network: nn.Module) -> nn.Module:
        """Return the model alone."""
        return network.model if isinstance(network, WithImages) else network


class WithImages(nn.Module):
    """A classifier that returns the images beside the logits while it trains, so that relevance can be computed.

    Parameters
    ----------
    model : torch.nn.Module
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> Any:
        """Return logits (n, K) and the images (n, C, H, W) that they are a function of; logits alone in evaluation."""
        if not (self.training and torch.is_grad_enabled()):
            return self.model(x)
        images = x.detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # quicker kernels of attention have no second derivative
            logits = logits_of(run_model(self.model, images.clone()), len(images))  # a model may write to its input
        return Answers((logits, images))


@dataclass
class RelevanceRisk:
    """The mean cross-entropy, and at every so many-th step a penalty on relevance inside a region.

    Attributes
    ----------
    drawn : Drawn
        What an epoch shows.
    inside : Tensor of bool, shape (H, W)
    penalty : float
    every : int
    """

    drawn: Drawn
    inside: torch.Tensor
    penalty: float
    every: int = 1
    one_process: ClassVar[bool] = False
    _steps: int = field(default=0, init=False, repr=False)

    def order(self, epoch: int, rng: np.random.Generator) -> IntArray:
        """Return the rows that an epoch shows."""
        return self.drawn.order(epoch, rng)

    def loss(self, logits: Any, labels: torch.Tensor, rows: IntArray) -> torch.Tensor:
        """Return the mean cross-entropy of the batch, with the penalty where it is due.

        Parameters
        ----------
        logits : pair of Tensor, shapes (n, K) and (n, C, H, W)
            Logits, and the images they are a function of.
        labels : Tensor of int64, shape (n,)
        rows : ndarray of int64, shape (n,)
        """
        answers, images = logits
        cost = nn.functional.cross_entropy(answers, labels)
        self._steps += 1
        if (self._steps - 1) % self.every:
            return cost
        return cost + self.penalty * self.every * share_inside(answers, images, labels, self.inside).mean()


def share_inside(
    logits: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, inside: torch.Tensor | NDArray[np.bool_]
) -> torch.Tensor:
    """Return how much of each image's relevance lies inside a region, with gradients of its own, shape (n,).

    The gradient of the log-odds of the true class is that of its log-probability over 1 - p, so an image's share is the
    same. It stays accurate where p is 1 up to rounding.

    Parameters
    ----------
    logits : Tensor, shape (n, K)
    images : Tensor, shape (n, C, H, W)
        That the logits are a function of.
    labels : Tensor of int64, shape (n,)
    inside : Tensor or ndarray of bool, shape (H, W)

    Raises
    ------
    DataError
        If the logits have no gradient by the images.
    """
    wide, own = logits.float(), labels[:, None]
    odds = wide.gather(1, own)[:, 0] - wide.scatter(1, own, -torch.inf).logsumexp(dim=1)
    with way_back(otherwise=", or choose another repair"):
        (slope,) = torch.autograd.grad(odds.sum(), images, create_graph=True)
    relevance = (slope * images).float().abs().sum(dim=1)
    mask = torch.as_tensor(inside, device=relevance.device)
    return (relevance * mask).sum(dim=(1, 2)) / relevance.sum(dim=(1, 2)).clamp(min=LEAST)
