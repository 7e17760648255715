"""What explainers share: the contract, and a model as they run it, whatever it is wrapped in and returns."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from exmap.errors import DataError, SettingsError
from exmap.explain.engine import Relevance, constant_parameters, explained_logit, full_precision
from exmap.model.backbone import evaluation_mode
from exmap.model.classifier import check_differentiable, unwrapped, without_wrappers
from exmap.model.head import as_classifier
from exmap.model.running import eager, model_dtype, way_back

__all__ = ["Explainer", "Prepared", "Selection", "Target", "gradient_of", "nan_for", "selected", "state_of"]

Target = str | int | torch.Tensor


class Explainer(Protocol):
    """The seam: a model and a batch in, relevance out.

    What an explainer has worked out of a model is kept for its next batch, and worked out again for another model or
    other weights.
    """

    def explain(self, model: nn.Module, x: torch.Tensor, target: Target) -> Relevance:
        """Return the relevance of a batch of images, shape (n, C, H, W)."""
        ...


@dataclass(eq=False)
class Prepared:
    """A model as explainers run it: unwrapped, in float32 at least, giving logits (n, K) before any softmax."""

    model: Any = None
    state: tuple[Any, ...] = ()
    classifier: nn.Module = field(default_factory=nn.Identity)
    prefix: str = ""  # of the paths of the model's modules in the classifier

    def of(self, model: nn.Module, x: torch.Tensor) -> tuple[nn.Module, bool]:
        """Return the classifier that a model is, and whether it is another than before.

        Raises
        ------
        DataError
            For a model without gradients (scripted, quantised), or one that fails on the images.
        """
        if model is self.model and state_of(model) == self.state:
            return self.classifier, False
        check_differentiable(model)
        precise = full_precision(unwrapped(model))
        self.classifier = as_classifier(precise, np.asarray(x[:2].detach().float().cpu().numpy()))
        self.prefix = "" if self.classifier is precise else "model."
        self.model, self.state = model, state_of(model)
        return self.classifier, True

    @contextmanager
    def running(self, model: nn.Module, x: torch.Tensor) -> Iterator[tuple[nn.Module, torch.Tensor]]:
        """Give the classifier, and `x` as a leaf in its kind of numbers, in evaluation mode and with gradients.

        The leaf is the caller's to give to the model as a clone, because models may write to what they are given.
        """
        classifier, _ = self.of(model, x)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            evaluation_mode(classifier),
            eager(classifier),
            constant_parameters(classifier),
        ):
            leaf = (x.clone() if x.is_inference() else x.detach()).to(model_dtype(classifier))
            yield classifier, leaf.detach().requires_grad_()

    def path(self, name: str, what: str) -> str:
        """Return the path in the classifier of a module of the model.

        Raises
        ------
        SettingsError
            If there is no such module.
        """
        inner = without_wrappers(self.model, name)
        names = [known for known, _ in unwrapped(self.model).named_modules() if known]
        if inner not in names:
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise SettingsError(f"{what} must be the path of a module of the model, found no {name!r}{hint}")
        return f"{self.prefix}{inner}"


def state_of(model: nn.Module) -> tuple[Any, ...]:
    """Return what changes when a model's weights do: its tensors, and how often each was written to."""
    tensors = [*model.parameters(), *model.buffers()]
    return tuple((id(tensor), -1 if tensor.is_inference() else tensor._version) for tensor in tensors)


@dataclass(frozen=True)
class Selection:
    """What of the logits is explained, as numbers to multiply them with: it stays the same when the images change.

    Attributes
    ----------
    target : Tensor of int64, shape (n,)
    factors : Tensor of float, shape (n, K)
        1 for the explained class, -1 for the runner-up where a margin is explained, else 0.
    explained : Tensor of float, shape (n,)
    """

    target: torch.Tensor
    factors: torch.Tensor
    explained: torch.Tensor

    def of(self, logits: torch.Tensor, images: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """Return what is explained of other logits, shape (m,), those of the given images, or one row for all."""
        factors = self.factors[images]
        return torch.where(factors != 0, logits * factors, 0.0).sum(dim=1)


def selected(logits: torch.Tensor, target: Target) -> Selection:
    """Return what is explained, as :func:`exmap.explain.engine.explained_logit` chooses it for these logits."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = logits.detach().clone().requires_grad_()
        chosen, explained = explained_logit(leaf, target)
        (factors,) = torch.autograd.grad(explained.sum(), leaf)
    return Selection(chosen, factors, explained.detach())


def gradient_of(explained: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the gradient of a sum with respect to tensors, zeros where it does not depend on one.

    Raises
    ------
    DataError
        If nothing leads back from it.
    """
    if not explained.requires_grad:
        raise DataError(
            "the model's output must depend on its input through operations that have a gradient, but it does not; use "
            'explainer="occlusion", or remove detach, argmax or rounding from forward'
        )
    with way_back():
        return torch.autograd.grad(explained.sum(), tensors, materialize_grads=True, allow_unused=True)


def nan_for(x: torch.Tensor) -> torch.Tensor:
    """Return the constants of explainers that know none: NaN, shape (n,)."""
    return torch.full((len(x),), torch.nan, device=x.device)
