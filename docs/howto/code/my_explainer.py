"""An explainer: input times gradient, averaged over small shifts of the image."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from exmap.explain import Relevance, make_explainer

SHIFTS = ((1, 0), (-1, 0), (0, 1), (0, -1))  # rows, columns


@dataclass
class Shifted:
    """Input times gradient, averaged over the image and four shifts of it by one pixel.

    Parameters
    ----------
    weight : float
        How much a shifted image counts beside the image itself.
    """

    weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    needs_gradient: ClassVar[bool] = True
    _plain: Any = field(default_factory=lambda: make_explainer("gradient_x_input"), init=False, repr=False)

    def explain(self, model: torch.nn.Module, x: torch.Tensor, target: Any = "predicted") -> Relevance:
        """Return the relevance of a batch of images, shape (n, C, H, W)."""
        found = self._plain.explain(model, x, target)
        same = "margin" if isinstance(target, str) and target == "margin" else found.target  # for the shifts, too
        values = found.values.clone()
        for rows, columns in SHIFTS:
            shifted = self._plain.explain(model, torch.roll(x, (rows, columns), (2, 3)), same).values
            values += self.weight * torch.roll(shifted, (-rows, -columns), (2, 3))
        return replace(found, values=values / (1 + self.weight * len(SHIFTS)))
