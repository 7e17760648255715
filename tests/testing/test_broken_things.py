"""A thing that breaks a promise is told which one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClusterMixin
from torch import nn

from exmap.data import Task, planted_shortcut
from exmap.explain import Relevance
from exmap.explain.occlusion import Occlusion
from exmap.records import Explained, Groups
from exmap.retrain import DFR, Head
from exmap.retrain.learner import LastLayer
from exmap.testing import (
    check_clusterer,
    check_dataset,
    check_explainer,
    check_learner,
    check_model_builder,
    check_source,
)

DRAWN: list[int] = []  # what things have counted that should not


def complaint(check: Callable[..., None], thing: Any, **options: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        check(thing, **options)
    return str(caught.value)


# --- learners ----------------------------------------------------------------------------------------------------


@dataclass
class Eager(LastLayer):
    """Goes on whatever the groups are."""

    name: ClassVar[str] = "eager"

    def fit_head(
        self, features: Any, labels: Any, groups: Any, *, n_classes: int, head: Any = None, listen: Any = None
    ) -> Head:
        means = np.stack([features[labels == k].mean(axis=0) for k in range(n_classes)])
        return Head(means.astype(np.float32), np.zeros(n_classes, dtype=np.float32))


@dataclass
class Forgetful(Eager):
    def fit_head(self, features: Any, *args: Any, **kwargs: Any) -> Head:
        head = super().fit_head(features, *args, **kwargs)
        return replace(head, weight=head.weight + np.random.default_rng().normal(size=head.weight.shape))


@dataclass
class Hungry(Eager):
    def fit_head(self, features: Any, *args: Any, **kwargs: Any) -> Head:
        np.random.rand(3)
        return super().fit_head(features, *args, **kwargs)


@dataclass
class Wrecker(Eager):
    def fit(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        fitted = super().fit(model, *args, **kwargs)
        with torch.no_grad():
            next(model.parameters()).add_(1)
        return fitted


@dataclass
class Nameless(DFR):
    name: ClassVar[Any] = None


@dataclass
class WrongDefault(Eager):
    strength: float = "large"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Eager, "must refuse groups of another length with a DataError, but went on"),
        (Forgetful, "must give the same bits for the same seed"),
        (Hungry, "must draw from a generator of its own, made of its seed, but drew from a global one"),
        (Wrecker, "must leave the weights of the model as they are, but changed some"),
        (Nameless, "must have a class variable name, a string"),
        (WrongDefault, "and their defaults, must fit the annotations of its constructor, but: option strength"),
    ],
)
def test_learners(kind: type, said: str) -> None:
    assert said in complaint(check_learner, kind)


def test_a_learner_that_cannot_be_found_and_an_option_that_it_lacks() -> None:
    assert "unknown learner 'no_such'" in complaint(check_learner, "no_such")

    class Local(DFR):
        pass

    assert "as worker processes look for it" in complaint(check_learner, Local)
    assert "unknown option of the learner dfr 'strength'" in complaint(check_learner, "dfr", strength=3)


# --- clusterers --------------------------------------------------------------------------------------------------


class Ones(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    def __init__(self, random_state: Any = None) -> None:
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Any:
        self.labels_ = np.ones(len(X), dtype=int)
        return self


class Restless(Ones):
    def fit(self, X: Any, y: Any = None) -> Any:
        super().fit(X)
        self.labels_ = np.arange(len(X)) % 2
        self.random_state = 7
        return self


class Changing(Ones):
    def fit(self, X: Any, y: Any = None) -> Any:
        super().fit(X)
        self.labels_ -= 1
        X *= 2
        return self


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Ones, "must count from 0 without gaps, got [1]"),
        (Restless, "must change no setting, but changed some"),
        (Changing, "must leave the data as they are, but changed them"),
    ],
)
def test_clusterers(kind: type, said: str) -> None:
    assert said in complaint(check_clusterer, kind)
    assert said in complaint(check_clusterer, kind(random_state=0))


# --- explainers --------------------------------------------------------------------------------------------------


class Training(Occlusion):
    def explain(self, model: nn.Module, x: torch.Tensor, target: Any) -> Relevance:
        made = super().explain(model, x, target)
        model.eval()
        return made


class Halved(Occlusion):
    def explain(self, model: nn.Module, x: torch.Tensor, target: Any) -> Relevance:
        made = super().explain(model, x, target)
        return replace(made, values=made.values[:, :1])


class PerBatch(Occlusion):
    def explain(self, model: nn.Module, x: torch.Tensor, target: Any) -> Relevance:
        made = super().explain(model, x, target)
        return replace(made, values=made.values / len(x))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Training, "must leave modules in their mode"),
        (Halved, "must give relevance of the images' shape (4, 3, 8, 8), got (4, 1, 8, 8)"),
        (PerBatch, "must explain an image alone as it does in a batch, but image 0 differs"),
    ],
)
def test_explainers(kind: type, said: str) -> None:
    assert said in complaint(check_explainer, kind, patch=4)


# --- sources -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    name: ClassVar[str] = "drawn"

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        index = np.random.default_rng().integers(0, 2, len(explained))
        return Groups(index, ("one", "two"), "drawn", ("class labels",))


@dataclass(frozen=True)
class Anonymous:
    name: ClassVar[str] = "anonymous"

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        return Groups(explained.labels, ("a", "b", "c"), "classes", ("class labels",))


@dataclass(frozen=True)
class Silent:
    name: ClassVar[str] = "silent"

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        return Groups(explained.labels, ("a", "b", "c"), "silent", ())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Drawn, "must give the same groups for the same seed"),
        (Anonymous, "must say where they come from, 'anonymous', got 'classes'"),
        (Silent, "must say which labels were used"),
    ],
)
def test_sources(kind: type, said: str) -> None:
    assert said in complaint(check_source, kind)


# --- models and data sets ----------------------------------------------------------------------------------------


def other_weights_each_time(n_classes: int) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, n_classes))
    with torch.no_grad():
        model[1].bias += len(DRAWN)
    DRAWN.append(1)
    return model


def features_only() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (other_weights_each_time, "must have the same weights for the same seed, but had others"),
        (features_only, "must be a classifier that exmap can work with"),
    ],
)
def test_models(build: Callable[..., nn.Module], said: str) -> None:
    assert said in complaint(check_model_builder, build, side=8)


def without_digests(settings: Any) -> Task:
    """Bars with patches."""
    return planted_shortcut()


def another_each_time(settings: Any) -> Task:
    """Bars with patches."""
    task = planted_shortcut(seed=len(DRAWN))
    DRAWN.append(1)
    return replace(task, digests={"seed": "always"})


def test_data_sets() -> None:
    assert "must give digests" in complaint(check_dataset, without_digests)
    assert "must be the same each time it is read" in complaint(check_dataset, another_each_time)
    assert "unknown data set" in complaint(check_dataset, f"{__name__}:no_such")
    assert __name__ in sys.modules
