"""Explanations behind one call: relevance propagation, gradients, and occlusion for models without a gradient.

An explainer is an object with ``explain(model, x, target) -> Relevance``. Anything with Captum's
``attribute(inputs, target=...)`` works, too. Names are those of :data:`exmap.registry.EXPLAINERS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn

from exmap.errors import DataError, SettingsError, unknown_name
from exmap.explain.adapters import Attribution
from exmap.explain.engine import Engine, Relevance, composite_for, propagate
from exmap.explain.grad_cam import GradCAM
from exmap.explain.gradients import GradientXInput, IntegratedGradients
from exmap.explain.occlusion import Occlusion
from exmap.explain.prepared import Explainer, Prepared, Target
from exmap.explain.rules import Composite, make_composite
from exmap.registry import EXPLAINERS

__all__ = [
    "EXPLAINERS",
    "LRP",
    "Attribution",
    "Explainer",
    "GradCAM",
    "GradientXInput",
    "IntegratedGradients",
    "Occlusion",
    "Target",
    "explainer_names",
    "make_explainer",
]


@EXPLAINERS.register(name="lrp")
@dataclass
class LRP:
    """Layer-wise relevance propagation (Bach et al., 2015), by operation.

    Relevance of pixels plus that of constants is the explained logit. With a composite whose ``times_input`` is False
    (guided_backprop, deconvnet, beta_smooth) the maps are changed gradients, in logits per unit of pixel value.

    Parameters
    ----------
    composite : str or Composite
        Which rules; see :data:`exmap.explain.rules.COMPOSITES`. "auto" takes the default of the model's kind, seen by
        running it.
    gamma : float, optional
        Strength of ``symmetric_gamma``, by default 4.
    layers : sequence of str
        Paths of modules whose outputs' relevance is wanted, too.
    """

    composite: str | Composite = "auto"
    gamma: float | None = None
    layers: tuple[str, ...] = ()
    needs_gradient: ClassVar[bool] = True
    _prepared: Prepared = field(default_factory=Prepared, init=False, repr=False, compare=False)
    _engine: Engine | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.layers = (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)
        if isinstance(self.composite, str) and self.composite != "auto":
            make_composite(self.composite)  # refuses an unknown name first

    def _rules(self, classifier: nn.Module, x: torch.Tensor) -> Composite:
        """Return the composite, with its strength where that is set."""
        if isinstance(self.composite, Composite):
            return self.composite
        name = composite_for(classifier, x, "auto").name if self.composite == "auto" else self.composite
        return make_composite(name, gamma=self.gamma)

    @property
    def rules(self) -> Composite | None:
        """The composite in use, or None before a model is known."""
        return None if self._engine is None else self._engine.composite

    def rules_for(self, model: nn.Module, x: torch.Tensor) -> Composite:
        """Return the composite that is used for a model."""
        _, changed = self._prepared.of(model, x)
        if self._engine is None or changed:
            with self._prepared.running(model, x) as (classifier, given):
                self._engine = Engine(self._rules(classifier, given))
        return self._engine.composite

    def explain(self, model: nn.Module, x: torch.Tensor, target: Target = "predicted") -> Relevance:
        """Return the relevance of a batch; what the rules derive from the weights is kept for the next."""
        composite = self.rules_for(model, x)
        paths = {self._prepared.path(name, "layers"): name for name in self.layers}
        with self._prepared.running(model, x) as (classifier, given):
            if composite.bounded:
                _check_bounds(x, composite)
            made = propagate(classifier, given, target=target, layers=tuple(paths), engine=self._engine)
        if absent := [name for path, name in paths.items() if path not in made.layers]:
            raise DataError(f"layers must run when the model does and depend on the image, but {absent[0]!r} does not")
        return replace(made, layers={paths[path]: made.layers[path] for path in paths})


def _check_bounds(x: torch.Tensor, composite: Composite) -> None:
    """Refuse pixels that the box rule is not made for."""
    low, high = float(x.min()), float(x.max())
    if not 0 <= low <= high <= 1:
        raise DataError(
            f"composite {composite.name} needs pixels in [0, 1], found {low:.3g} to {high:.3g}; choose a composite "
            "without a pixel range, such as symmetric_gamma"
        )


def explainer_names() -> list[str]:
    """Return the names of all explainers."""
    return EXPLAINERS.names()


def make_explainer(explainer: str | Any, **options: Any) -> Explainer:
    """Return an explainer by name, or one that is given.

    Parameters
    ----------
    explainer : str, class or object
        A name of :func:`explainer_names`, a dotted path ``package.module:Class`` or an explainer's class; an object
        with ``explain(model, x, target)``; or one with Captum's ``attribute(inputs, target=...)``.
    **options
        Settings of that explainer, for names and classes.

    Raises
    ------
    SettingsError
        For an unknown name, an object of another kind, or an option that the explainer does not have.

    Examples
    --------
    >>> make_explainer("occlusion", patch=4)
    Occlusion(patch=4, stride=None, baseline='mean', at_once=None)
    """
    if isinstance(explainer, str):
        return _made(explainer, EXPLAINERS.get(explainer), options)
    if isinstance(explainer, type) and hasattr(explainer, "explain"):
        return _made(explainer.__name__, explainer, options)
    if options:
        raise SettingsError(
            f"options are for explainers by name, got {', '.join(sorted(options))} beside an object of "
            f"{type(explainer).__name__}; set them when it is made"
        )
    if callable(getattr(explainer, "explain", None)):
        made: Explainer = explainer
        return made
    if callable(getattr(explainer, "attribute", None)) and not isinstance(explainer, type):
        return Attribution(explainer)
    raise SettingsError(
        f"explainer must be one of {', '.join(explainer_names())}, or an object with explain(model, x, target) or "
        f"Captum's attribute(inputs, target), got {explainer!r:.80}"
    )


def _made(name: str, make: Callable[..., Explainer], options: dict[str, Any]) -> Explainer:
    """Make an explainer, after a look at the names of its options."""
    allowed = list(inspect.signature(make).parameters)
    unknown = [option for option in options if option not in allowed]
    if unknown and not allowed:
        raise SettingsError(f"explainer {name} has no options, got {', '.join(unknown)}; leave them out")
    if unknown:
        raise SettingsError(unknown_name(f"option of explainer {name}", unknown[0], allowed))
    return make(**options)
