"""Explainers of other libraries: whatever has Captum's ``attribute(inputs, target=...)``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from exmap.errors import DataError, SettingsError
from exmap.explain.engine import Relevance
from exmap.explain.occlusion import Occlusion
from exmap.explain.prepared import Target, nan_for, selected
from exmap.model.backbone import evaluation_mode
from exmap.model.running import model_dtype

__all__ = ["Attribution"]


@dataclass
class Attribution:
    """An object with Captum's ``attribute(inputs, target=...)``, as an explainer.

    It explains the model that it was made with, and of that what the model returns; the model given to :meth:`explain`
    tells logits and classes, and should be the same. What its maps mean is its own affair: ``constants`` is NaN.

    Parameters
    ----------
    method : object
        For example ``captum.attr.Saliency(model)``. Must return attributions in the shape of the images, or one
        channel, which is then spread evenly over the image's.
    """

    method: Any
    needs_gradient: ClassVar[bool] = False  # its own affair
    _reader: Occlusion = field(default_factory=Occlusion, init=False, repr=False, compare=False)

    def explain(self, model: Any, x: torch.Tensor, target: Target = "predicted") -> Relevance:
        """Return the attributions of a batch of images, shape (n, C, H, W)."""
        if isinstance(target, str) and target == "margin":
            raise SettingsError(
                f"target must be predicted or classes for {self.name}, which explains one output, got 'margin'; choose "
                "an explainer of exmap's for margins"
            )
        logits, _ = self._reader.logits(model, x)
        given = x.to(model_dtype(model)) if isinstance(model, nn.Module) else x
        selection = selected(logits, target)
        with ExitStack() as stack:
            for module in (model, getattr(self.method, "forward_func", None), getattr(self.method, "model", None)):
                if isinstance(module, nn.Module):
                    stack.enter_context(evaluation_mode(module))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            made = self._attributed(given.detach().clone().requires_grad_(), selection.target)
        return Relevance(self._in_shape(made, x), logits, selection.target, selection.explained, nan_for(x))

    @property
    def name(self) -> str:
        """The name of the object's class."""
        return type(self.method).__name__

    def _attributed(self, x: torch.Tensor, chosen: torch.Tensor) -> Any:
        try:
            return self.method.attribute(x, target=chosen)
        except Exception as error:  # whatever another library says
            said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].rstrip('.')}"
            raise DataError(
                f"the explainer {self.name} failed on images of shape {tuple(x.shape)} ({said}); give one whose "
                "attribute takes images and target alone, and that supports the model"
            ) from error

    def _in_shape(self, made: Any, x: torch.Tensor) -> torch.Tensor:
        """Return attributions in the shape of the images."""
        made = made[0] if isinstance(made, (tuple, list)) and len(made) == 1 else made
        values = torch.from_numpy(np.asarray(made)) if isinstance(made, np.ndarray) else made
        if isinstance(values, torch.Tensor):
            values = values.detach().to(x.device)
            if values.shape == x.shape:
                return values
            if values.shape == x[:, :1].shape:
                return (values / x.shape[1]).expand_as(x).contiguous()
        found = tuple(values.shape) if isinstance(values, torch.Tensor) else type(made).__name__
        raise DataError(
            f"the explainer {self.name} must return attributions in the shape of the images, {tuple(x.shape)}, or of "
            f"one channel, got {found}; enlarge those of a layer, for example by "
            "captum.attr.LayerAttribution.interpolate"
        )
