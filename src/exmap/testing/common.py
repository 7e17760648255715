"""What the checks share: how a thing is found, what must stay as it was, and small planted data."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from exmap.data import Task, planted_shortcut
from exmap.errors import SettingsError
from exmap.model import build_model
from exmap.registry import REQUIRED, Registry
from exmap.settings import ModelSettings

__all__ = [
    "check_options",
    "check_pickles",
    "found",
    "must",
    "nothing_drawn",
    "path_of",
    "planted",
    "same_weights",
    "small_model",
    "untouched",
]


def must(holds: Any, sentence: str) -> None:
    """Raise AssertionError with a sentence where something does not hold."""
    if not holds:
        raise AssertionError(sentence)


def path_of(thing: Any) -> str:
    """Return the name, or the dotted path by which other processes find a class or function."""
    return thing if isinstance(thing, str) else f"{thing.__module__}:{thing.__qualname__}"


def found(registry: Registry, thing: Any) -> tuple[str, Any]:
    """Return the name or path of a thing, and the thing."""
    name = path_of(thing)
    try:
        there = registry.get(name)
    except SettingsError as error:
        raise AssertionError(
            f"a {registry.kind} must be found by its name or path, as worker processes look for it, but: {error}"
        ) from error
    must(
        isinstance(thing, str) or there is thing,
        f"{name} must lead to the {registry.kind} itself, but it leads to {there!r:.80}",
    )
    return name, there


def check_options(registry: Registry, name: str, options: Mapping[str, Any]) -> None:
    """Check that options are known, and that defaults fit what the constructor says of them."""
    known = registry.options(name)
    usual = {key: option.default for key, option in known.items() if option.default is not REQUIRED}
    try:
        registry.check_options(name, {**usual, **options})
    except SettingsError as error:
        raise AssertionError(
            f"options of the {registry.kind} {name}, and their defaults, must fit the annotations of its constructor, "
            f"but: {error}"
        ) from error


def check_pickles(what: str, thing: Any) -> None:
    """Check that worker processes can be given a thing."""
    try:
        back = pickle.loads(pickle.dumps(thing))
    except Exception as error:  # pickle's errors have many kinds
        raise AssertionError(f"{what} must be picklable, for worker processes, but: {error}") from error
    must(type(back) is type(thing), f"{what} must be the same after pickling, but is a {type(back).__name__}")


def planted(seed: int = 0) -> Task:
    """Return images of three classes with a shortcut, small and quick."""
    return planted_shortcut(3, (150, 90, 30), correlation=0.8, side=8, seed=seed)


def small_model(n_classes: int = 3, seed: int = 0) -> nn.Module:
    """Return a small network with batch normalisation, partly in training mode: modes must be left alone."""
    model = build_model(ModelSettings(name="tiny"), n_classes, seed=seed).train()
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    return model


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Return whether two models hold the same bits under the same names."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@contextmanager
def untouched(what: str, model: nn.Module) -> Iterator[None]:
    """Check that a model is afterwards as it was: weights, modes, gradients and hooks."""
    before = copy.deepcopy(model)
    yield
    must(same_weights(model, before), f"{what} must leave the weights of the model as they are, but changed some")
    for (name, now), (_, then) in zip(model.named_modules(), before.named_modules(), strict=True):
        must(now.training == then.training, f"{what} must leave modules in their mode, but changed that of {name!r}")
        hooks = [*now._forward_hooks, *now._forward_pre_hooks, *now._backward_hooks]
        must(not hooks, f"{what} must leave no hooks behind, but left one on {name!r}")
    for (name, now), (_, then) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        must(now.requires_grad == then.requires_grad, f"{what} must not change requires_grad, but did for {name!r}")
        must(now.grad is None, f"{what} must leave no gradients behind, but left one on {name!r}")


@contextmanager
def nothing_drawn(what: str) -> Iterator[None]:
    """Check that no global generator is drawn from."""
    before = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    yield
    same = (
        random.getstate() == before[0]
        and str(np.random.get_state(legacy=False)) == str(before[1])
        and torch.equal(torch.get_rng_state(), before[2])
    )
    must(same, f"{what} must draw from a generator of its own, made of its seed, but drew from a global one")
