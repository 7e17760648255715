"""What every learner keeps."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from exmap.data import Split
from exmap.errors import DataError
from exmap.model import collect_outputs, find_last_layer
from exmap.records import Groups, IntArray
from exmap.registry import LEARNERS
from exmap.settings import RuntimeSettings, TrainSettings
from exmap.testing.common import (
    check_options,
    check_pickles,
    found,
    must,
    nothing_drawn,
    planted,
    same_weights,
    small_model,
    untouched,
)

__all__ = ["check_learner"]

LAST_LAYER, WHOLE_NETWORK = "last layer", "whole network"
GIVEN = {
    "train": TrainSettings(epochs=2, batch_size=32, learning_rate=0.03, select="last"),
    "runtime": RuntimeSettings(accelerator="cpu"),
}


def check_learner(learner: str | type, **options: Any) -> None:
    """Check a learner on small images of three classes with nine groups.

    Parameters
    ----------
    learner : str or class
        A registered name, a dotted path ``package.module:Class``, or a class that can be imported.
    **options
        Its options, for example those that make it quick.

    Raises
    ------
    AssertionError
        For the first promise that it breaks.
    """
    name, kind = found(LEARNERS, learner)
    check_options(LEARNERS, name, options)
    _check_words(name, kind)
    build = partial(LEARNERS.build, name, options, **GIVEN)
    check_pickles(f"the learner {name}", build(seed=0))
    task = planted()
    split, groups = task.train, task.train.true_groups()
    given = Groups(groups.index, (*groups.names, "a group without samples"), "own", ("class labels",))
    model = small_model()
    what = f"the learner {name}"
    with untouched(what, model), nothing_drawn(what):
        fitted = build(seed=3).fit(model, split, given)
    _check_model(what, fitted, model, task.val)
    if kind.part == LAST_LAYER:
        _check_rest(what, fitted, model, split)
    blind = replace(split, truth=None)
    again = build(seed=3).fit(small_model(), blind, given)
    must(
        same_weights(fitted, again),
        f"{what} must give the same bits for the same seed, whether or not the split holds true groups, but did not",
    )
    index: IntArray = np.where(np.arange(len(split)) % 7 == 0, -1, given.index)
    partly = build(seed=0).fit(small_model(), split, replace(given, index=index))
    _check_model(f"{what}, given unassigned samples (-1),", partly, model, task.val)
    if kind.fits_groups or (kind.part == LAST_LAYER and kind.tunes_groups):
        _check_refusal(what, build, split, given)


def _check_words(name: str, kind: Any) -> None:
    """Check what a learner says of itself, and how it is called."""
    must(isinstance(getattr(kind, "name", None), str), f"the learner {name} must have a class variable name, a string")
    must(":" in name or kind.name == name, f"the learner {name} must be registered under its name, {kind.name!r}")
    part = getattr(kind, "part", None)
    must(part in (LAST_LAYER, WHOLE_NETWORK), f"{name}.part must be {LAST_LAYER!r} or {WHOLE_NETWORK!r}, got {part!r}")
    for flag in ("fits_groups", "tunes_groups"):
        value = getattr(kind, flag, None)
        must(isinstance(value, bool), f"{name}.{flag} must be True or False, got {value!r}")
    takes = inspect.signature(kind).parameters
    must("seed" in takes, f"the constructor of the learner {name} must take a seed, but takes {', '.join(takes)}")
    called = ("fit", "fit_head") if part == LAST_LAYER else ("fit", "fit_choices")
    for method in called:
        must(callable(getattr(kind, method, None)), f"the learner {name} must have a method {method}; its base has one")


def _check_model(what: str, fitted: Any, model: nn.Module, split: Split) -> None:
    must(isinstance(fitted, nn.Module), f"{what} must return a torch.nn.Module, got {fitted!r:.80}")
    must(fitted is not model, f"{what} must return a model of its own, but returned the one that it was given")
    logits = collect_outputs(fitted, split).logits
    wanted = (len(split), split.n_classes)
    must(logits.shape == wanted, f"{what} must return a model with logits of shape {wanted}, got {logits.shape}")
    must(np.isfinite(logits).all(), f"{what} must return a model with finite logits, but some are NaN or infinite")


def _check_rest(what: str, fitted: nn.Module, model: nn.Module, split: Split) -> None:
    """Check that only the last layer was changed."""
    last = find_last_layer(model, split.images.batch(np.arange(2)))
    before = model.state_dict()
    changed = [key for key, value in fitted.state_dict().items() if key in before and not value.equal(before[key])]
    others = [key for key in changed if not key.startswith(f"{last.name}.")]
    must(not others, f"{what} retrains the last layer and must leave all else alone, but changed {', '.join(others)}")
    must(changed, f"{what} must change the last layer, but left it as it was")


def _check_refusal(what: str, build: Any, split: Split, groups: Groups) -> None:
    for wrong, said in ((replace(groups, index=groups.index[:-1]), "of another length"), (None, "that are missing")):
        try:
            build(seed=0).fit(small_model(), split, wrong)
        except DataError:
            continue
        raise AssertionError(f"{what} must refuse groups {said} with a DataError, but went on")
