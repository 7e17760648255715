"""Exchange what a shortcut is made of between images, so that it goes with no class any more.

Counterfactual data augmentation: an image shown keeps its label and is given the colour, the background, the place or
the brightness of another image, or what that has in the region where heatmaps say the shortcut is. Donors come from
every group equally often, so what is given says nothing of the label. Decompose-and-Compose (Noohdani et al., CVPR
2024) exchanges by attribution as well, image by image and without groups; here one experiment decides what is
exchanged (:mod:`exmap.exchange.trial`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from exmap.data import Split
from exmap.errors import ExMapError, SettingsError
from exmap.exchange import GIVEN, Looks, OfRows, Property, Region, Scale, Trial, exchangeable, paired
from exmap.model import collect_outputs
from exmap.model.fit import Row
from exmap.records import Explained, Groups, IntArray, Listener, silent
from exmap.registry import LEARNERS
from exmap.retrain.exchanged import exchanged_selection
from exmap.retrain.harm import Verdict, judge_network, parts_of_classes
from exmap.retrain.learner import Selection
from exmap.retrain.refit import predicted_apart, refit
from exmap.retrain.region import shortcut_region
from exmap.retrain.reweight import RWG, Drawn
from exmap.retrain.surroundings import CutOut, cut_out
from exmap.runtime import child_seed

__all__ = ["Exchange", "ExchangedDraws"]

AUTO, REGION, SURROUNDINGS = "auto", "region", "surroundings"
NAMES = (*GIVEN, REGION, SURROUNDINGS)


@LEARNERS.register
@dataclass
class Exchange(RWG):
    """Train on balanced draws of images that receive properties of others, for any number of classes and groups.

    Samples are drawn so that every group is equally likely, as for :class:`~exmap.retrain.RWG`. Each image shown
    receives each of the properties with a chance of `share`, each from a donor of its own that is drawn in the same
    way. The label stays that of the image that receives.

    Parameters
    ----------
    train, runtime, seed
        As for :class:`~exmap.retrain.learner.WholeNetwork`.
    properties : str
        What is exchanged: ``colour``, ``background``, ``place``, ``brightness``, ``region`` and ``surroundings``,
        joined by ``+``; or ``auto``, those that predictions of the model are seen to follow in some class when they are
        exchanged on the images that the epoch is chosen by (:class:`exmap.exchange.Trial`; the training images without
        a selection). The region is :func:`exmap.retrain.region.shortcut_region`. A background is what surrounds the
        object, found by its contrast to the border; surroundings are the same for an object found by heatmaps
        (:mod:`exmap.retrain.surroundings`), which takes one pass of them over the images. they are
        exchanged only if they are named.
    share : float in [0, 1]
        Chance of each image shown to receive a property, for each property by itself. What is left as it is still
        holds the shortcut, so one that is hard to see past wants a chance near 1.
    chosen_by : {"exchanged", "groups"}
        What the epoch is chosen by: the images of the selection after they, too, received what is exchanged
        (:func:`~exmap.retrain.exchanged.exchanged_selection`), or its groups as they are. Those that a shortcut leads
        wrong are few among the images as they are, and half of the images after the exchange.
    refitted : bool
        Whether the last layer is then fitted to the groups of the selection (:func:`~exmap.retrain.refit.refit`). With
        few training images, or surroundings whose cut leaves a rim, features gain more than the last layer does.
    pooled : int
        As for :class:`~exmap.retrain.RWG`.
    start : {"classifier", "initial"}
        Here the trained classifier by default: what predictions follow, and where, is asked of the model that is
        given. With ``initial`` properties must be named, and there is neither region nor surroundings.

    Attributes
    ----------
    exchanged_ : tuple of str
        Properties that were exchanged. Set by :meth:`fit` and :meth:`fit_choices`.

    Raises
    ------
    SettingsError
        If a property is unknown.
    """

    name: ClassVar[str] = "exchange"

    properties: str = field(default=AUTO, kw_only=True)
    share: Annotated[float, Field(ge=0, le=1)] = field(default=0.9, kw_only=True)
    chosen_by: Literal["exchanged", "groups"] = field(default="exchanged", kw_only=True)
    refitted: bool = field(default=False, kw_only=True)
    start: Literal["initial", "classifier"] = field(default="classifier", kw_only=True)

    def __post_init__(self) -> None:
        unknown = [name for name in self._named() if name not in NAMES]
        if unknown or not self.properties:
            raise SettingsError(
                f"exchange needs properties=auto, or some of {', '.join(NAMES)} joined by +, got {self.properties!r}; "
                "take out what is not among them"
            )
        super().__post_init__()

    def begin(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None,
        selections: Sequence[Selection],
        listen: Listener,
    ) -> None:
        """Ask the model which properties it follows, and where its heatmaps gather."""
        assert groups is not None
        self._exchanges: dict[str, Property | OfRows] = {}
        self._judged: dict[str, Property | OfRows] = {}  # the same, of rows of the split that the epoch is chosen by
        if not exchangeable(split.images.shape):
            self.notes_ += (
                "images smaller than 8 pixels, or with other than 1 or 3 channels, have no property to exchange: "
                "groups are only drawn equally often, as by rwg",
            )
        elif self.properties != AUTO:
            self._exchanges = self._by_name(model, split, groups, selections, listen)
        elif self.start == "initial":
            self.notes_ += (
                "a network that is not trained follows no property, so none was exchanged: name properties, or leave "
                "start=classifier",
            )
        else:
            self._exchanges = self._followed(model, split, groups, selections, listen)
        self.exchanged_ = tuple(self._exchanges)
        self._judged = {name: self._judged.get(name, exchange) for name, exchange in self._exchanges.items()}
        if self._exchanges:
            self.notes_ += (
                f"{' and '.join(self._exchanges)} {'was' if len(self._exchanges) == 1 else 'were'} exchanged between "
                f"images, with a chance of {self.share:g} for each image shown",
            )

    def fit_choices(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None,
        selections: Sequence[Selection],
        *,
        listen: Listener = silent,
    ) -> list[nn.Module]:
        """Train once, choose an epoch by each selection, and fit the last layer once more where that is asked for."""
        if self.refitted and not selections:
            raise SettingsError(
                "exchange needs a selection for its last layer to be refitted to, got refitted=True without one; give "
                "a selection, or leave refitted out"
            )
        models = super().fit_choices(model, split, groups, selections, listen=listen)
        if not self.refitted:
            return models
        return [
            refit(each, selection, seed=self.seed, listen=listen)
            for each, selection in zip(models, selections, strict=True)
        ]

    def judged(
        self, before: IntArray, trained: nn.Module, selection: Selection, *, listen: Listener = silent
    ) -> Verdict:
        """State what training did to the classes; a refitted last layer is judged by layers fitted to other images."""
        if not self.refitted:
            return super().judged(before, trained, selection, listen=listen)
        after = predicted_apart(trained, selection, seed=self.seed, listen=listen)
        split, index = selection.split, parts_of_classes(selection.groups)
        return judge_network(before, after, split.labels, index, split.class_names, harm=self.harm)

    def objective(self, model: nn.Module, split: Split, groups: Groups | None, listen: Listener) -> Drawn:
        """Return balanced draws, with what is exchanged, and the mean cross-entropy.

        Raises
        ------
        DataError
            If a class has no sample in a group, or there are too few samples for a batch.
        """
        drawn = super().objective(model, split, groups, listen)
        if not self._exchanges:
            return drawn
        exchanges = tuple(self._exchanges.values())
        return ExchangedDraws(drawn.rows, drawn.chances, Scale.read(split), exchanges, self.share)

    def _trained(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None,
        selections: Sequence[Selection],
        listen: Listener,
    ) -> tuple[list[list[Row]], list[nn.Module]]:
        """Train a copy once; choose every epoch by images that received what is exchanged, unless told otherwise."""
        if not (selections and self._exchanges and self.chosen_by == "exchanged"):
            return super()._trained(model, split, groups, selections, listen)
        changed = exchanged_selection(selections[0].split, tuple(self._judged.values()), seed=self.seed)
        history, models = super()._trained(model, split, groups, [changed], listen)
        return history * len(selections), models * len(selections)

    def _named(self) -> list[str]:
        return [] if self.properties == AUTO else list(dict.fromkeys(self.properties.split("+")))

    def _by_name(
        self, model: nn.Module, split: Split, groups: Groups, selections: Sequence[Selection], listen: Listener
    ) -> dict[str, Property | OfRows]:
        """Return the properties that are named."""
        found: dict[str, Property | OfRows] = {name: GIVEN[name] for name in self._named() if name in GIVEN}
        shown = [name for name in (REGION, SURROUNDINGS) if name in self._named()]
        if self.start == "initial":
            self.notes_ += tuple(f"a network that is not trained shows no {name}, so it was left out" for name in shown)
            return found
        if REGION in shown:
            found |= self._region(model, split, groups, listen)
        if SURROUNDINGS in shown:
            found[SURROUNDINGS] = self._surroundings(model, split, groups, selections, listen)
        return found

    def _followed(
        self, model: nn.Module, split: Split, groups: Groups, selections: Sequence[Selection], listen: Listener
    ) -> dict[str, Property | OfRows]:
        """Return the properties that predictions follow in some class."""
        judged = selections[0].split if selections else split
        outputs = collect_outputs(model, judged, listen=listen)
        explained = Explained(judged.name, judged.ids, judged.labels, judged.class_names, outputs)
        trial = Trial.of(explained, child_seed(self.seed, "exchange"))
        if trial is None:
            self.notes_ += (
                "too few images of a class are classified right to see which properties predictions follow, so none "
                "was exchanged: name properties",
            )
            return {}
        offered: dict[str, Property | OfRows] = dict(GIVEN)
        try:
            offered |= self._region(model, split, groups, listen)
        except ExMapError as error:
            self.notes_ += (f"no region was exchanged, since the model cannot be explained: {error}",)
        looks, tests = Looks.of(judged, model), len(offered) * trial.classes
        found = {
            name: exchange
            for name, exchange in offered.items()
            if any(each.relied_on for each in trial.reliances(looks, name, exchange, tests))
        }
        if not found:
            self.notes_ += (
                f"predictions follow none of {', '.join(offered)}, so groups are only drawn equally often, as by rwg",
            )
        return found

    def _region(self, model: nn.Module, split: Split, groups: Groups, listen: Listener) -> dict[str, Region]:
        """Return the region of the shortcut by its name; nothing where there is none to exchange."""
        found = shortcut_region(model, split, groups, seed=self.seed, listen=listen)
        self.notes_ += tuple(filter(None, [found.note]))
        return {} if found.region is None else {REGION: found.region}

    def _surroundings(
        self, model: nn.Module, split: Split, groups: Groups, selections: Sequence[Selection], listen: Listener
    ) -> CutOut:
        """Return what surrounds the objects of the training images, and keep that of the images that are judged."""
        fitted = selections[0] if selections else Selection(split, groups)
        reader = refit(model, fitted, seed=self.seed, listen=listen)
        if selections:
            self._judged[SURROUNDINGS] = cut_out(reader, fitted.split, listen=listen)
        return cut_out(reader, split, listen=listen)


@dataclass(frozen=True)
class ExchangedDraws(Drawn):
    """Balanced draws of images that receive properties of others, and the mean cross-entropy.

    Attributes
    ----------
    rows, chances
        As for :class:`~exmap.retrain.reweight.Drawn`, of receivers and of donors.
    scale : Scale
        In which images are changed.
    exchanges : tuple of callable
        One per property.
    share : float
        Chance of each image to receive, for each property.
    """

    scale: Scale
    exchanges: tuple[Property | OfRows, ...]
    share: float

    def images(self, batch: NDArray[np.float32], rows: IntArray, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the batch, some of whose images have received properties; those that have not stay bit for bit."""
        seen, changed = self.scale.seen(batch), np.zeros(len(batch), dtype=bool)
        for exchange in self.exchanges:
            receivers = np.flatnonzero(rng.random(len(batch)) < self.share)
            if len(receivers):
                donors = rng.choice(self.rows, len(receivers), p=self.chances)
                given = paired(exchange, rows[receivers], donors)
                seen[receivers] = given(seen[receivers], self.scale.pixels(donors))
                changed[receivers] = True
        return np.where(changed[:, None, None, None], self.scale.wanted(seen), batch)
