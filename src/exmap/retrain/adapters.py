"""Low-rank adapters in the last blocks (LoRA: Hu et al., ICLR 2022), trained on balanced groups.

Each matrix W of the last blocks, and each kernel laid out as one, becomes W + BA, where A has few rows and B as few
columns; W itself stays. So little is learned of the few images that small groups have, where a whole block can learn
them by heart. In the end BA is added to W: the classifier keeps its architecture and its speed.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import nn
from torch.func import functional_call

from exmap.model.blocks import Blocks
from exmap.registry import LEARNERS
from exmap.retrain.lp_ft import LastBlocks, named_blocks
from exmap.retrain.partly import PartlyTrained
from exmap.retrain.tuning import Setting, combinations
from exmap.runtime import child_seed, torch_seed

__all__ = ["Adapters", "LowRank"]


@LEARNERS.register
@dataclass
class Adapters(LastBlocks):
    """Fit the last layer on balanced groups, then train it and low-rank additions to the last blocks, as RWG does.

    The last layer is :class:`~exmap.retrain.DFR`'s, fitted to features of the images that are trained on. Then samples
    are drawn so that every group is equally likely, and the additions and the last layer descend the mean
    cross-entropy. All else stays as it is, in evaluation mode: biases, normalisation and its statistics, and dropout.

    The paper adapts the attention of transformers and trains with Adam. Here every matrix and kernel of the last blocks
    is adapted, by SGD at the learning rate of `train`. The paper scales BA by alpha / rank; with SGD that is a matter
    of the learning rate, so it is left out.

    Parameters
    ----------
    train, runtime, seed, pooled
        As for :class:`~exmap.retrain.RWG`; the first values of A depend on the seed.
    start
        By default the trained classifier.
    rank : int
        Rows of A: the rank of what is added, or the smaller side of the matrix where that is less.
    blocks : int
        How many of the last blocks are adapted.
    strengths, tuning_splits, subsamples, smallest_group
        Of the last layer's fit, as for :class:`~exmap.retrain.DFR`.
    """

    name: ClassVar[str] = "adapters"
    GRID: ClassVar[tuple[Setting, ...]] = combinations(learning_rate=(1.0, 0.1, 0.01), weight_decay=(1e-4, 1e-2))

    rank: PositiveInt = field(default=8, kw_only=True)

    def said(self, network: PartlyTrained, blocks: Blocks) -> str:
        """Return the sentence about what is trained."""
        names = named_blocks(network, blocks)
        if not names:
            return super().said(network, blocks)
        size = LowRank(network, self.rank, self.seed).size
        return (
            f"after the last layer was fitted, it and adapters of rank {self.rank} in {names} were trained further: "
            f"{size:,} weights beside the last layer's"
        )

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return the network with additions to its last blocks."""
        assert isinstance(model, PartlyTrained)
        return LowRank(model, self.rank, child_seed(self.seed, "adapters"))

    def unwrapped(self, network: nn.Module) -> nn.Module:
        """Return a network with the additions in its weights."""
        assert isinstance(network, LowRank)
        return network.merged()


class LowRank(nn.Module):
    """A network whose matrices and kernels of the last blocks have low-rank additions, 0 at first.

    Parameters
    ----------
    network : PartlyTrained
        Its last layer is trained as well, all else in it held fixed. Stays as it is.
    rank : int
    seed : int
        Of the first values of A, drawn as torch draws those of a linear layer; those of B are 0.
    """

    def __init__(self, network: PartlyTrained, rank: int, seed: int) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        head = {f"model.{name}" for name in network.blocks.head}
        trained = {name: p for name, p in self.network.named_parameters() if p.requires_grad and name not in head}
        for parameter in trained.values():
            parameter.requires_grad_(False)
        matrices = {name: parameter for name, parameter in trained.items() if parameter.ndim > 1}
        self.names = tuple(matrices)
        self.up, self.down = nn.ParameterList(), nn.ParameterList()
        with torch_seed(seed):
            for weight in matrices.values():
                rows, columns = len(weight), weight.numel() // len(weight)
                inner = min(rank, rows, columns)
                down = nn.init.kaiming_uniform_(torch.empty(inner, columns), a=math.sqrt(5))
                self.down.append(down.to(weight))
                self.up.append(torch.zeros(rows, inner).to(weight))
        self.train(network.training)

    @property
    def size(self) -> int:
        """How many weights the additions have."""
        return sum(parameter.numel() for parameter in (*self.up, *self.down))

    def train(self, mode: bool = True) -> LowRank:
        """Put the additions into a mode; the network stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, x: torch.Tensor) -> Any:
        """Return what the network makes of images, with the additions."""
        return functional_call(self.network, self._sums(), (x,))

    def merged(self) -> PartlyTrained:
        """Return a network with the additions in its weights."""
        network = copy.deepcopy(self.network)
        with torch.no_grad():
            for name, weight in self._sums().items():
                network.get_parameter(name).copy_(weight)
        return network

    def _sums(self) -> dict[str, torch.Tensor]:
        """Return the weights with the additions, by name."""
        added = zip(self.names, self.up, self.down, strict=True)
        weights = ((name, self.network.get_parameter(name), up @ down) for name, up, down in added)
        return {name: weight + more.view_as(weight) for name, weight, more in weights}
