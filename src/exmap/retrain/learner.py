"""The one contract of all group-robust learners: a model, a split and groups go in, a model comes out.

A learner says by class variables which part of the network it retrains and what it needs groups for. A
:class:`LastLayer` fits a head to features. A :class:`WholeNetwork` trains with another objective
(:mod:`exmap.model.fit`) and keeps the epoch that is best in the worst group of a :class:`Selection`. The groups may
come from any source.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import nn

from exmap.data import Split
from exmap.errors import DataError
from exmap.model import collect_outputs, find_last_layer, replace_head
from exmap.model.ending import LastLayer as Last
from exmap.model.fit import Objective
from exmap.model.training import train_choices
from exmap.records import Groups, IntArray, Listener, silent
from exmap.registry import LEARNERS
from exmap.retrain.harm import Harm, Verdict, judge_head, judge_network, parts_of_classes
from exmap.retrain.head import Head, finite_part
from exmap.settings import RuntimeSettings, TrainSettings

__all__ = ["LastLayer", "Learner", "Selection", "WholeNetwork", "assigned", "checked_groups", "own_head"]

LAST_LAYER, WHOLE_NETWORK = "last layer", "whole network"


class Learner(Protocol):
    """The seam: whatever gives groups serves any learner, and whatever learns takes any groups."""

    name: ClassVar[str]
    part: ClassVar[str]  # "last layer" or "whole network"
    fits_groups: ClassVar[bool]  # whether the fit itself takes groups
    tunes_groups: ClassVar[bool]  # whether epochs or hyperparameters are chosen by the worst of given groups

    def fit(self, model: nn.Module, split: Split, groups: Groups | None, *, listen: Listener = silent) -> nn.Module:
        """Return a model that treats the groups alike; the one given stays as it is."""
        ...


@dataclass(frozen=True)
class Selection:
    """What an epoch is chosen by: the accuracy in the worst of some groups of a validation split.

    Attributes
    ----------
    split : Split
    groups : Groups
        One group per sample of the split, from any source.
    """

    split: Split
    groups: Groups

    def __post_init__(self) -> None:
        checked_groups(self.split, self.groups, "selection")


@dataclass
class LastLayer:
    """Base of the learners that fit a last layer to the features before it; each has a :meth:`fit_head` of its own.

    Parameters
    ----------
    seed : int
    harm : {"keep", "warn"}
        What becomes of a class that retraining makes worse, or that has no image to retrain on: it keeps the
        classifier's own decision (:mod:`exmap.retrain.harm`), or it is only said.

    Attributes
    ----------
    head_ : Head
        Set by :meth:`fit`.
    verdict_ : Verdict
        Which classes retraining makes worse, and what was done about them. Set by :meth:`fit`.
    """

    seed: int = field(default=0, kw_only=True)
    harm: Harm = field(default="keep", kw_only=True)

    name: ClassVar[str]
    part: ClassVar[str] = LAST_LAYER
    fits_groups: ClassVar[bool] = True
    tunes_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        LEARNERS.check_made(self)

    def fit(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None = None,
        *,
        head: str | None = None,
        listen: Listener = silent,
    ) -> nn.Module:
        """Return a copy of `model` with another last layer.

        Parameters
        ----------
        model : torch.nn.Module
            Its logits are a linear map of features; stays as it is.
        split : Split
            The retraining set: images and class labels.
        groups : Groups, optional
            One group per sample of the split; only learners that fit or choose by groups need them.
        head : str, optional
            Name of the layer to retrain, by default the last linear map, found by running the model. Where more than a
            linear map follows the named layer, the model that is returned leaves that out.
        listen : Listener

        Raises
        ------
        DataError
            If no linear map makes the logits and none is named, and what :meth:`fit_head` raises.

        Notes
        -----
        Images whose features are not finite are left out. What is handed over harms no class, unless ``harm="warn"``.
        """
        last = find_last_layer(model, split.first_images(), head)
        features = collect_outputs(model, split, head=last, listen=listen).features
        own, names = own_head(last), split.class_names
        features, labels, groups, notes = finite_part(features, split.labels, groups, split.ids)
        fitted = self.fit_head(features, labels, groups, n_classes=len(names), head=own, listen=listen)
        fitted = replace(fitted, notes=(*notes, *fitted.notes))
        by_heart = split.name == "train"
        self.verdict_ = judge_head(
            self, fitted, features, labels, groups, own=own, class_names=names, by_heart=by_heart
        )
        self.head_ = self.verdict_.applied(fitted, own, features)
        return replace_head(model, last, self.head_.weight, self.head_.bias)

    def expected_seconds(self, features: NDArray[np.floating], labels: IntArray, groups: Groups | None) -> float:
        """Return how long :meth:`fit_head` takes, roughly; 0 where that is not known, or not worth a word."""
        return 0.0

    def for_parts(self, head: Head, groups: Groups | None, parts: int) -> LastLayer:
        """Return the learner that fits again to all of some samples but one of several parts, as a check.

        Parameters
        ----------
        head : Head
            As fitted to all samples: what was chosen for it is not chosen again.
        groups : Groups or None
            Of all samples.
        parts : int
        """
        return self

    def fit_head(
        self,
        features: NDArray[np.floating],
        labels: IntArray,
        groups: Groups | None,
        *,
        n_classes: int,
        head: Head | None = None,
        listen: Listener = silent,
    ) -> Head:
        """Return the last layer that is fitted to some features.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        labels : ndarray of int64, shape (N,), in [0, n_classes)
        groups : Groups or None
            One group per feature vector; an index of -1 is unassigned. :func:`~exmap.retrain.head.check_samples`
            refuses what does not fit.
        n_classes : int
        head : Head, optional
            The classifier's own last layer, for learners that start from it; None where it is not one linear map.
        listen : Listener
        """
        raise NotImplementedError


def own_head(last: Last) -> Head | None:
    """Return a classifier's last layer as it is, or None where more than a linear map follows it."""
    return None if last.kind == "cut" else Head(*last.by_class())


@dataclass
class WholeNetwork:
    """Base of the learners that train all weights with an objective of their own.

    They start from the weights of the model they are given: a fresh or pretrained one is trained from its beginning,
    a trained one further.

    Parameters
    ----------
    train : TrainSettings
        Epochs, batches and SGD, as for the classifier itself. With ``select="last"`` a selection is not asked.
    runtime : RuntimeSettings
    seed : int
    epochs : int, optional
        In place of those of `train`: a learner that shows fewer samples an epoch needs more of them.
    harm : {"keep", "warn"}
        What :meth:`fit` does where training makes a class worse (:mod:`exmap.retrain.harm`): it returns the classifier
        as it was, or only says so.

    Attributes
    ----------
    history_ : list of list of dict
        For each selection one row per epoch. Set by :meth:`fit` and :meth:`fit_choices`.
    notes_ : tuple of str
        What a reader should know of the last fit.
    verdict_ : Verdict
        Which classes training makes worse, on the images that the epoch was chosen by. Set by :meth:`fit`.
    """

    train: TrainSettings = field(default_factory=TrainSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    seed: int = 0
    epochs: PositiveInt | None = None
    harm: Harm = field(default="keep", kw_only=True)

    name: ClassVar[str]
    part: ClassVar[str] = WHOLE_NETWORK
    one_process: ClassVar[bool] = False  # whether its objective must see every batch whole
    fits_groups: ClassVar[bool] = True
    tunes_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        LEARNERS.check_made(self)

    def fit(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None = None,
        *,
        selection: Selection | None = None,
        listen: Listener = silent,
    ) -> nn.Module:
        """Return a trained copy of `model`.

        Parameters
        ----------
        model : torch.nn.Module
        split : Split
            What is trained on, usually the training split.
        groups : Groups, optional
            One group per sample of the split; only learners with ``fits_groups`` need them.
        selection : Selection, optional
            What the epoch is chosen by; None keeps the last one.
        listen : Listener

        Raises
        ------
        DataError
            If groups are missing, or are not those of the split.
        NumericalError
            If the loss leaves the finite numbers.
        """
        trained = self.fit_choices(model, split, groups, [selection] if selection else [], listen=listen)[0]
        self.verdict_ = Verdict()
        if selection is None:
            return trained
        before = collect_outputs(model, selection.split, listen=listen).predicted
        self.verdict_ = self.judged(before, trained, selection, listen=listen)
        self.notes_: tuple[str, ...] = (*filter(None, [self.verdict_.first_line]), *self.notes_)
        return copy.deepcopy(model).eval() if self.verdict_.left_alone else trained

    def judged(
        self, before: IntArray, trained: nn.Module, selection: Selection, *, listen: Listener = silent
    ) -> Verdict:
        """Say what training did to the classes of the split that the epoch was chosen by.

        Parameters
        ----------
        before : ndarray of int64, shape (N,)
            What the classifier said of that split before.
        trained : torch.nn.Module
        selection : Selection
        listen : Listener
        """
        split = selection.split
        after = collect_outputs(trained, split, listen=listen).predicted
        index = parts_of_classes(selection.groups)
        return judge_network(before, after, split.labels, index, split.class_names, harm=self.harm)

    def fit_choices(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None,
        selections: Sequence[Selection],
        *,
        listen: Listener = silent,
    ) -> list[nn.Module]:
        """Train once and choose an epoch by each selection: one model for each, or the last epoch's without any.

        Parameters
        ----------
        model, split, groups, listen
            As for :meth:`fit`.
        selections : sequence of Selection
            All of one split.
        """
        if self.fits_groups:
            if groups is None:
                raise DataError(f"the learner {self.name} needs groups of the split it trains on, got none; infer them")
            checked_groups(split, groups, "training")
        if any(selection.split is not selections[0].split for selection in selections):
            raise DataError("selections from one training must be of one split; give groups of the same split")
        self.notes_ = ()
        network = self.wrapped(copy.deepcopy(model))
        objective = self.objective(model, split, groups, listen)
        self.history_, chosen = train_choices(
            network,
            split,
            selections[0].split if selections else None,
            self.train if self.epochs is None else self.train.model_copy(update={"epochs": self.epochs}),
            self.runtime,
            seed=self.seed,
            objective=objective,
            choices=[selection.groups.index for selection in selections] or None,
            listen=listen,
        )
        models = []
        for weights in chosen:
            network.load_state_dict(weights)
            models.append(copy.deepcopy(self.unwrapped(network)).eval())
        return models

    def objective(self, model: nn.Module, split: Split, groups: Groups | None, listen: Listener) -> Objective:
        """Return what is descended; `model` is as given, for learners that first look at what it gets wrong."""
        raise NotImplementedError

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return the network that is trained: the model itself, unless it has company while it trains."""
        return model

    def unwrapped(self, network: nn.Module) -> nn.Module:
        """Return the model that is kept of what :meth:`wrapped` returned."""
        return network


def checked_groups(split: Split, groups: Groups, what: str) -> None:
    """Raise DataError unless there is one group per sample, and a sample in some group."""
    if len(groups) != len(split):
        raise DataError(
            f"{what} needs one group per sample of split {split.name}, got {len(groups)} groups for {len(split)} "
            "samples; use the groups of the same split"
        )
    if not (groups.index >= 0).any():
        raise DataError(f"{what} needs samples in groups, but all of split {split.name} are unassigned")


def assigned(groups: Groups) -> tuple[IntArray, IntArray]:
    """Return the rows that are in a group, and the sizes of all groups."""
    return (groups.index >= 0).nonzero()[0], groups.counts()
