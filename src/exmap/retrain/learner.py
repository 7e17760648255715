"""The one contract of all group-robust learners: a model, a split and groups go in, a model comes out.

A learner says by class variables which part of the network it retrains and what it needs groups for. A
:class:`LastLayer` fits a head to features. A :class:`WholeNetwork` trains with another objective
(:mod:`exmap.model.fit`) and keeps the epoch that is best in the worst group of a :class:`Selection`. The groups may
come from any source.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from exmap.data import Split
from exmap.model import collect_outputs, find_last_layer, replace_head
from exmap.model.ending import LastLayer as Last
from exmap.records import Groups, IntArray, Listener, silent
from exmap.registry import LEARNERS
from exmap.retrain.harm import Harm, judge_head
from exmap.retrain.head import Head, finite_part
from exmap.retrain.selection import Selection, assigned, checked_groups
from exmap.retrain.whole_network import WholeNetwork

__all__ = ["LastLayer", "Learner", "Selection", "WholeNetwork", "assigned", "checked_groups", "own_head"]

LAST_LAYER = "last layer"


class Learner(Protocol):
    """The seam: whatever gives groups serves any learner, and whatever learns takes any groups."""

    name: ClassVar[str]
    part: ClassVar[str]  # "last layer" or "whole network"
    fits_groups: ClassVar[bool]  # whether the fit itself takes groups
    tunes_groups: ClassVar[bool]  # whether epochs or hyperparameters are chosen by the worst of given groups

    def fit(self, model: nn.Module, split: Split, groups: Groups | None, *, listen: Listener = silent) -> nn.Module:
        """Return a model that treats the groups alike; the one given stays as it is."""
        ...


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
