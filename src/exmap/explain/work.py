"""What is done with each batch of a split that is explained: maps, their check, and features and logits of one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.data.dataset import Split
from exmap.errors import NumericalError, SettingsError
from exmap.explain.check import check_model
from exmap.explain.engine import Relevance, propagate
from exmap.explain.explainers import LRP, Explainer, make_explainer
from exmap.explain.layers import by_channel, layer_at, unit_peak, whole_layers
from exmap.explain.reduce import reduce_maps
from exmap.model.classifier import logits_of
from exmap.model.ending import Ending, LastLayer
from exmap.model.fits import AnswerCheck
from exmap.model.head import as_classifier, ending_with, reader
from exmap.model.running import eager, evaluation_mode, model_input
from exmap.model.tail import pooled
from exmap.records import IntArray
from exmap.registry import EXPLAINERS
from exmap.settings import ExplainSettings

__all__ = ["Read", "Work", "answer_check", "check_target", "explainer_of", "kept_layer", "outputs_reader"]

CHECKED = 4  # of the first images are looked at one by one
DEPTH = 0.75  # of the layer whose channels are kept


class Read:
    """Features and logits: of the pass that the explainer makes, where that is one, or else of a pass of their own."""

    def __init__(self, layer: LastLayer | None, read: Any) -> None:
        self.layer, self.read = layer, read
        self.seen: list[torch.Tensor] = []

    def keep(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what the last linear map is given."""
        values = (*args, *kwargs.values())
        self.seen.append(next(value for value in values if isinstance(value, torch.Tensor)).detach())

    def __call__(self, model: nn.Module, x: torch.Tensor, made: Relevance) -> list[torch.Tensor]:
        """Return features (n, D) and logits (n, K) of the batch that was explained."""
        if self.read is not None:
            with torch.inference_mode(), evaluation_mode(model):
                return [tensor.float() for tensor in self.read(x)]
        if self.layer is None:
            return [made.logits.float(), made.logits.float()]
        last = self.seen[-self.layer.runs :][self.layer.run]
        return [pooled(last, self.layer.axis, self.layer.tail.positions).float(), made.logits.float()]


@contextmanager
def outputs_reader(
    model: nn.Module, first: NDArray[np.float32], head: str | LastLayer | None, explainer: Explainer
) -> Iterator[Read]:
    """Give what reads features and logits inside the block."""
    ending: Ending = ending_with(model, first, head)
    layer = ending.layer
    if not isinstance(explainer, LRP) or (layer is not None and layer.site is not None):
        with reader(model, ending) as read:
            yield Read(layer, read)
        return
    found = Read(layer, None)
    hook = None
    if layer is not None:
        hook = model.get_submodule(layer.name).register_forward_pre_hook(found.keep, with_kwargs=True)
    try:
        yield found
    finally:
        if hook is not None:
            hook.remove()


@dataclass
class Work:
    """What is done with each batch of images."""

    explainer: Explainer
    model: nn.Module
    split: Split
    settings: ExplainSettings
    layer: str | None
    read: Read | None
    answers: AnswerCheck | None = None
    check: dict[str, Any] = field(default_factory=dict)

    def compute(self, part: slice, images: NDArray[np.float32]) -> list[torch.Tensor]:
        """Return one row per image of each array."""
        given = _given_target(self.settings, self.split.labels[part])
        x = model_input(self.model, images)
        target = given if isinstance(given, str) else torch.from_numpy(given)
        if self.read is not None:
            self.read.seen.clear()
        made = self.explainer.explain(self.model, x, target)
        if self.answers is not None:
            self.answers(part, images, made.logits)
        said = [] if self.read is None else self.read(self.model, x, made)
        if part.start == 0:
            self.check = _first_check(self.explainer, self.model, x, made, self.settings) | {"layer": self.layer}
        sign = torch.where(made.explained < 0, -1.0, 1.0)
        if not _is_relevance(self.explainer):
            sign = torch.ones_like(sign)
        maps, finite, zero = reduce_maps((made.values * sign[:, None, None, None]).float(), self.settings.size)
        share = made.values.flatten(1).sum(dim=1).cpu().double() / made.explained.cpu().double()
        vectors = torch.zeros(len(x), 0) if self.layer is None else self._by_channel(made, sign, x.shape)
        return [maps, made.target, made.error().float(), finite, zero, share.float(), vectors, *said]

    def _by_channel(self, made: Relevance, sign: torch.Tensor, image: torch.Size) -> torch.Tensor:
        assert self.layer is not None
        relevance = by_channel(made.layers[self.layer], image) * sign[:, None]
        return unit_peak(torch.nan_to_num(relevance, 0.0, 0.0, 0.0)).float()


def answer_check(model: nn.Module, split: Split, first: NDArray[np.float32], finite: bool) -> AnswerCheck | None:
    """Return what looks at the logits of each batch; they must be those of the first images by themselves."""
    if not len(split):
        return None
    classifier = as_classifier(model, first)
    with torch.no_grad(), evaluation_mode(model), eager(model):
        return AnswerCheck(model, split, logits_of(classifier(model_input(model, first)), len(first)), finite=finite)


def explainer_of(settings: ExplainSettings) -> Explainer:
    """Return the explainer that the settings name, with its options; of the shared settings, with those it has."""
    if settings.explainer == "lrp":
        return LRP(composite=settings.composite, gamma=settings.gamma)
    options = EXPLAINERS.check_options(settings.explainer, settings.options, beside=ExplainSettings.model_fields)
    if "layer" in EXPLAINERS.options(settings.explainer) and settings.layer not in ("auto", "none"):
        options["layer"] = settings.layer
    EXPLAINERS.check_call(settings.explainer)
    return make_explainer(settings.explainer, **options)


def _is_relevance(explainer: Explainer) -> bool:
    """Return whether maps are relevance of a logit, whose sign is that of the logit."""
    return not isinstance(explainer, LRP) or explainer.rules is None or explainer.rules.times_input


def kept_layer(explainer: Explainer, model: nn.Module, x: torch.Tensor, settings: ExplainSettings) -> str | None:
    """Return the layer whose channels are kept, after telling the explainer of it."""
    if not isinstance(explainer, LRP) or settings.layer == "none" or len(x) == 0:
        return None
    composite = explainer.rules_for(model, x)
    if not composite.times_input:
        return None
    if settings.layer == "auto":
        found = layer_at(whole_layers(model, x, composite), DEPTH)
        path = None if found is None else found.path
    else:
        path = settings.layer
    if path is not None:
        explainer.layers = (path,)
    return path


def _first_check(
    explainer: Explainer, model: nn.Module, x: torch.Tensor, made: Relevance, settings: ExplainSettings
) -> dict[str, Any]:
    """Explain the first images one by one, and refuse to go on where relevance does not add up to the logit."""
    if not isinstance(explainer, LRP) or explainer.rules is None or not explainer.rules.times_input:
        named = settings.explainer if isinstance(explainer, type(explainer_of(settings))) else type(explainer).__name__
        return {"explainer": named}
    errors = []
    for i in range(min(CHECKED, len(x))):
        target = "margin" if settings.target == "margin" else int(made.target[i])
        error = float(propagate(model, x[i : i + 1], composite=explainer.rules, target=target).error()[0])
        if np.isfinite(error):
            errors.append(error)
    worst = max(errors, default=0.0)
    limit = settings.tolerance
    if worst > limit and explainer.rules.exact:  # stabilisers take relevance, and that is their rule
        found = check_model(model, x[:CHECKED], composite=explainer.rules)
        where = f"; {found.first_break}" if found.first_break else ""
        raise NumericalError(
            f"relevance of input and constants must add up to the logit within {limit:g} of it, but is off by "
            f"{worst:.3g} on the first images{where}; see exmap.check_model, choose another explain.explainer, or "
            "raise explain.tolerance to continue anyway"
        )
    return {"explainer": "lrp", "composite": explainer.rules.name, "images": len(errors), "error": worst}


def check_target(settings: ExplainSettings, n_classes: int) -> None:
    """Refuse to explain a class that there is none of."""
    if isinstance(settings.target, int) and not 0 <= settings.target < n_classes:
        raise SettingsError(
            f"explain.target must be predicted, true, margin, or a class in [0, {n_classes - 1}], got {settings.target}"
        )


def _given_target(settings: ExplainSettings, labels: IntArray) -> IntArray | str:
    """Return the classes to explain, or the word for what depends on the logits."""
    if settings.target in ("predicted", "margin"):
        return str(settings.target)
    return np.full(len(labels), settings.target, dtype=np.int64) if isinstance(settings.target, int) else labels
