"""Classifiers that a function of the user's builds."""

from __future__ import annotations

from typing import Any

from torch import nn

from exmap.errors import DataError
from exmap.importing import called, needed, object_at
from exmap.model.named.chosen import ChosenOutputs
from exmap.model.named.words import FORMS, Facts, check_outputs, names_at, only_texts
from exmap.model.probe import copied
from exmap.registry import MODELS
from exmap.runtime import torch_seed
from exmap.settings import ModelSettings

__all__ = ["build", "class_names", "facts", "find", "transform"]

NUMBERS = ("n_classes", "num_classes")


def find(word: str) -> Any:
    """Return the function, or the module, that a word names."""
    with torch_seed(0):  # of what is drawn when a file is first run; a second time it is not
        return object_at(word, what="a model", forms=FORMS)


def build(word: str, settings: ModelSettings, n_classes: int | None) -> nn.Module:
    """Return what the function returns; with chosen outputs as a module that returns these alone.

    Raises
    ------
    SettingsError
        If it is no function, or needs other arguments than those that were given.
    DataError
        If it fails, or returns no module.
    """
    made = find(word)
    chosen = settings.outputs
    required = set() if isinstance(made, nn.Module) else set(needed(made) if callable(made) else ())
    given = settings.options | {"settings": settings}
    if settings.options:
        given |= MODELS.check_options(word, settings.options, beside=ModelSettings.model_fields)
    asks = bool(required & set(NUMBERS))
    if n_classes is not None and (asks or not chosen):
        given = dict.fromkeys(NUMBERS, n_classes) | given
    model = called(made, word, makes="a model", whole=(nn.Module,), given=given)
    if not isinstance(model, nn.Module):
        raise DataError(f"{word} must return a torch.nn.Module, got {type(model).__name__}")
    if model is made:  # what stands in the user's module stays as it is
        model = copied(model)
    if not chosen or asks:
        return model
    check_outputs(chosen, n_classes)
    return ChosenOutputs(model, chosen)


def _inner(word: str, settings: ModelSettings) -> nn.Module:
    """Return the model to read its attributes."""
    model = build(word, settings, len(settings.outputs) or 2)
    return model.model if isinstance(model, ChosenOutputs) else model


def transform(word: str, settings: ModelSettings) -> Any:
    """Return the model's own attribute that prepares images, if it has one."""
    model = _inner(word, settings)
    for name in ("preprocess", "transform", "transforms"):
        found = getattr(model, name, None)
        if callable(found) and not (isinstance(found, nn.Module) and name in model._modules and _is_layer(found)):
            return found
    return None


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module of that name is a part of the network: one with weights, or a detector's first step."""
    within = type(module).__module__.startswith("torchvision.models.")
    return within or next(module.parameters(), None) is not None


def class_names(word: str, settings: ModelSettings) -> tuple[str, ...] | None:
    """Return the model's own names of its classes, if it has some."""
    model = _inner(word, settings)
    for name in ("class_names", "classes"):
        if (found := only_texts(getattr(model, name, None))) is not None:
            return names_at(found, settings.outputs)
    return None


def facts(word: str, model: nn.Module, n_classes: int | None) -> Facts:
    """Return what check-model says of it."""
    return Facts(f"what {word} returns")
