"""A classifier of some of another's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from exmap.errors import DataError
from exmap.model.classifier import raw_logits

__all__ = ["ChosenOutputs"]


class ChosenOutputs(nn.Module):
    """Some outputs of a classifier, as the classes of the data in their order.

    Parameters
    ----------
    model : torch.nn.Module
    outputs : sequence of int
    """

    def __init__(self, model: nn.Module, outputs: Sequence[int]) -> None:
        super().__init__()
        self.model, self.outputs = model, tuple(outputs)
        self.training = model.training

    @property
    def gradient_free(self) -> bool:
        """Whether the model has no gradients that torch can follow."""
        return bool(getattr(self.model, "gradient_free", False))

    def forward(self, x: torch.Tensor) -> Any:
        """Return the chosen logits (n, K) of images (n, C, H, W)."""
        logits = raw_logits(self.model(x), len(x))
        width = logits.numel() // len(logits)
        if max(self.outputs) >= width:
            raise DataError(
                f"model.outputs must be outputs that the model has, 0 to {width - 1}, got {max(self.outputs)}; correct "
                "it"
            )
        logits = logits if logits.ndim == 2 else logits.flatten(1)
        return logits[:, list(self.outputs)]
