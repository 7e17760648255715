"""Any classifier by a word: of torchvision, timm or Hugging Face, of a file, or of a function of the user's.

``MODELS`` finds such words, so that ``model.name`` takes them wherever it takes ``resnet18``.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

from torch import nn

from exmap.data.preprocess import Preprocess
from exmap.model.named import hugging_face, onnx_file, own_function, scripted, timm_model, vision
from exmap.model.named.chosen import ChosenOutputs
from exmap.model.named.words import (
    FORMS,
    FUNCTION,
    KINDS,
    Facts,
    check_outputs,
    is_place,
    kind_of,
    quiet,
    refuse_place,
    rest_of,
)
from exmap.registry import MODELS
from exmap.settings import ModelSettings

__all__ = [
    "FORMS",
    "KINDS",
    "ChosenOutputs",
    "Facts",
    "build_word",
    "check_outputs",
    "facts_of",
    "has_weights",
    "kind_of",
    "needs_gradient_free",
    "own_class_names",
    "own_preprocess",
    "rest_of",
    "whole_model",
]

WAYS: dict[str, ModuleType] = {
    "torchvision": vision,
    "timm": timm_model,
    "hf": hugging_face,
    "onnx": onnx_file,
    "torchscript": scripted,
}


def _find(word: str) -> Any:
    """Return the function that builds the classifier of a word."""
    return WAYS[kind_of(word)].builder(rest_of(word))


MODELS.register_words(lambda word: kind_of(word) in KINDS, _find)
MODELS.register_words(lambda word: kind_of(word) == FUNCTION, own_function.find, own=True)
MODELS.register_words(is_place, refuse_place, forms=FORMS)


def build_word(settings: ModelSettings, n_classes: int | None) -> Any:
    """Build the classifier that ``settings.name`` names.

    Parameters
    ----------
    settings : ModelSettings
    n_classes : int or None
        None for as many as the model has, where it brings its own.
    """
    if kind_of(settings.name) == FUNCTION:
        return own_function.build(settings.name, settings, n_classes)
    return MODELS.build(settings.name, settings.options, settings=settings, n_classes=n_classes)


def _asked(settings: ModelSettings, what: str) -> Any:
    """Return what the way of a word says of it, or None for a registered name."""
    kind = kind_of(settings.name)
    if not kind:
        return None
    if kind != FUNCTION:
        MODELS.get(settings.name)  # refuses names that there are none of
    way, name = (own_function, settings.name) if kind == FUNCTION else (WAYS[kind], rest_of(settings.name))
    with quiet():
        return getattr(way, what)(name, settings)


def own_preprocess(settings: ModelSettings) -> Preprocess | None:
    """Return the model's own preprocessing of images, or None where it says nothing of it.

    Parameters
    ----------
    settings : ModelSettings
        Of torchvision the transforms of the default weights of that name; of timm its data configuration; of Hugging
        Face the image processor beside the configuration; of a function the attribute ``preprocess`` or ``transform``
        of the module it returns.

    Raises
    ------
    SettingsError, DataError, CheckpointError
        If the model cannot be found.
    """
    found = _asked(settings, "transform")
    return None if found is None else Preprocess.of(found, f"the preprocessing of {settings.name}")


def own_class_names(settings: ModelSettings) -> tuple[str, ...] | None:
    """Return the names of the classes in the order of the model's outputs, or None where it does not say.

    Parameters
    ----------
    settings : ModelSettings
        With `outputs`, the names of these. Of Hugging Face ``id2label``; of a function the attribute ``class_names`` or
        ``classes`` of the module it returns; of torchvision and timm ImageNet's names where outputs are chosen.
    """
    names: tuple[str, ...] | None = _asked(settings, "class_names")
    return names


def needs_gradient_free(settings: ModelSettings) -> bool:
    """Return whether the model has no gradients, so that only ``explain.explainer=occlusion`` explains it."""
    return kind_of(settings.name) in ("onnx", "torchscript")


def has_weights(settings: ModelSettings) -> bool:
    """Return whether the settings name trained weights: a file, or a model that brings its own.

    What a function of the user's returns counts as trained; whether it loads weights cannot be seen.
    """
    kind = kind_of(settings.name)
    if settings.weights is not None or settings.pretrained or kind in (FUNCTION, "onnx", "torchscript"):
        return True
    name = rest_of(settings.name)
    return (kind == "hf" and hugging_face.has_weights(name)) or (kind == "timm" and name.startswith(timm_model.HUB))


def whole_model(settings: ModelSettings) -> nn.Module:
    """Return a model that brings its own weights, of torchvision or timm, with all its outputs."""
    way = vision if kind_of(settings.name) == "torchvision" else timm_model
    whole: nn.Module = way.whole_model(rest_of(settings.name), settings.model_copy(update={"outputs": ()}))
    return whole


def facts_of(word: str, model: nn.Module, n_classes: int | None) -> Facts:
    """Return what is known of a classifier that was built by a word."""
    kind = kind_of(word)
    if kind == FUNCTION:
        return own_function.facts(word, model, n_classes)
    facts = partial(WAYS[kind].facts, rest_of(word))
    found: Facts = facts(model, n_classes)
    return found
