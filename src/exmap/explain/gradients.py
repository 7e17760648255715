"""Explanations by the plain gradient: input x gradient, and integrated gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from exmap.errors import SettingsError, unknown_name
from exmap.explain.engine import Relevance, explained_logit
from exmap.explain.prepared import Prepared, Selection, Target, gradient_of, nan_for, selected
from exmap.registry import EXPLAINERS

__all__ = ["GradientXInput", "IntegratedGradients", "constant_images"]

QUADRATURES = ("gauss_legendre", "midpoint")


@EXPLAINERS.register(name="gradient_x_input")
@dataclass
class GradientXInput:
    """Each pixel times the gradient of the explained logit (Shrikumar et al., 2016).

    On a network of ReLUs without biases this is epsilon LRP, and sums to the logit.
    """

    needs_gradient: ClassVar[bool] = True
    _prepared: Prepared = field(default_factory=Prepared, init=False, repr=False, compare=False)

    def explain(self, model: nn.Module, x: torch.Tensor, target: Target = "predicted") -> Relevance:
        """Return the relevance of a batch of images, shape (n, C, H, W)."""
        with self._prepared.running(model, x) as (classifier, leaf):
            logits = classifier(leaf.clone())
            chosen, explained = explained_logit(logits, target)
            (gradient,) = gradient_of(explained, leaf)
        values = leaf.detach() * gradient
        return Relevance(values, logits.detach(), chosen, explained.detach(), nan_for(values))


@EXPLAINERS.register(name="integrated_gradients")
@dataclass
class IntegratedGradients:
    r"""Integrated gradients along the straight line from a baseline (Sundararajan, Taly and Yan, 2017).

    .. math:: R = (x - x') \int_0^1 \nabla f(x' + a (x - x')) \, da

    Relevance sums to f(x) - f(x'), up to the error of the quadrature; ``constants`` is f(x'), so that
    ``Relevance.error`` tells that error. It is large where the model is not smooth at x', such as a layer normalisation
    of pixels that are all 0; choose another baseline there. The class is that predicted for the whole image.

    Parameters
    ----------
    baseline : float or array-like
        x': a number, or anything that can be broadcast to an image, such as a value per channel of shape (C, 1, 1).
    steps : int
        Points on the line. For networks of ReLUs the error falls slowly with them, for smooth ones quickly.
    quadrature : "gauss_legendre" or "midpoint"
        Where the points lie.
    at_once : int
        Images that are run at once, those of a batch at least.
    """

    baseline: float | ArrayLike | torch.Tensor = 0.0
    steps: int = 32
    quadrature: str = "gauss_legendre"
    at_once: int = 64
    needs_gradient: ClassVar[bool] = True
    _prepared: Prepared = field(default_factory=Prepared, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.quadrature not in QUADRATURES:
            raise SettingsError(unknown_name("quadrature", self.quadrature, QUADRATURES))
        whole_number("steps", self.steps)
        whole_number("at_once", self.at_once)

    def explain(self, model: nn.Module, x: torch.Tensor, target: Target = "predicted") -> Relevance:
        """Return the relevance of a batch of images, shape (n, C, H, W)."""
        with self._prepared.running(model, x) as (classifier, leaf):
            start = constant_images(self.baseline, leaf[:1].detach())
            with torch.no_grad():
                logits = classifier(leaf.detach().clone())
                constants = classifier(start.clone())
            selection = selected(logits, target)
            values = (leaf.detach() - start) * self._mean_gradient(classifier, leaf.detach(), start, selection)
        return Relevance(values, logits, selection.target, selection.explained, selection.of(constants))

    def _mean_gradient(
        self, classifier: nn.Module, x: torch.Tensor, start: torch.Tensor, selection: Selection
    ) -> torch.Tensor:
        """Return the gradient averaged over the line, some of its points at once."""
        mean = torch.zeros_like(x)
        places, weights = (
            torch.from_numpy(part).to(x.dtype).to(x.device) for part in points(self.steps, self.quadrature)
        )
        few = max(1, self.at_once // len(x))
        for first in range(0, self.steps, few):
            shares, weight = (part[first : first + few, None, None, None, None] for part in (places, weights))
            line = (start + shares * (x - start)).flatten(0, 1).requires_grad_()
            images = torch.arange(len(x), device=x.device).repeat(len(shares))
            explained = selection.of(classifier(line.clone()), images)
            (gradient,) = gradient_of(explained, line)
            mean += (gradient.reshape(len(shares), *x.shape) * weight).sum(dim=0)
        return mean


def points(steps: int, quadrature: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points in (0, 1) and their weights, which sum to 1."""
    if quadrature == "midpoint":
        return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (nodes + 1) / 2, weights / 2


def constant_images(baseline: Any, like: torch.Tensor) -> torch.Tensor:
    """Return a baseline in the shape of images, (n, C, H, W).

    Raises
    ------
    SettingsError
        If it cannot be broadcast to them.
    """
    try:
        return torch.as_tensor(baseline, dtype=like.dtype, device=like.device).expand_as(like).contiguous()
    except (RuntimeError, TypeError, ValueError) as error:
        found = f"shape {tuple(np.shape(baseline))}" if np.ndim(baseline) else repr(baseline)
        raise SettingsError(
            f"baseline must be a number, or have the shape of an image, {tuple(like.shape[1:])}, or one like (C, 1, "
            f"1), got {found}"
        ) from error


def whole_number(name: str, value: Any) -> int:
    """Return a whole number of at least 1, or refuse it."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise SettingsError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)
