"""The base of the learners that train all weights: with another objective, a budget, and settings that may be tuned."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import nn

from exmap.data import Split
from exmap.errors import DataError, SettingsError
from exmap.model import collect_outputs
from exmap.model.fit import Objective, Row
from exmap.model.training import train_choices
from exmap.records import Groups, IntArray, Listener, silent
from exmap.registry import LEARNERS
from exmap.retrain.budget import InSteps, checks_of
from exmap.retrain.harm import Harm, Verdict, judge_network, parts_of_classes
from exmap.retrain.selection import Selection, checked_groups
from exmap.retrain.tuning import Setting, Trial, combinations, tune
from exmap.settings import RuntimeSettings, TrainSettings

__all__ = ["WholeNetwork"]

WHOLE_NETWORK = "whole network"
Start = Literal["initial", "classifier"]
Rate = Annotated[float, Field(gt=0, le=1e38)]
Decay = Annotated[float, Field(ge=0, le=1e38)]


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
    start : {"initial", "classifier"}
        What a run, a bench and :func:`exmap.analyze` hand over as the model: the weights that the classifier's own
        training began with, as in the papers, or the trained classifier (a warm start).
    steps : int, optional
        Gradient steps in place of epochs, exactly so many whatever an epoch shows: learners can be compared at one
        budget. Each shows ``train.batch_size`` samples; where there are fewer, some more than once. The network is
        checked, and the learning rate lowered, as often as `train` has epochs, but at least ten times;
        each such part counts as an epoch in `history_`.
    learning_rate, weight_decay : float, optional
        In place of those of `train`.
    tuned : bool
        Whether every combination of :attr:`GRID` is trained, each as long as one training, and the one kept whose
        worst group of the selection is classified best, as the papers tune theirs. An option that is given is not
        tuned. Needs a selection.

    Attributes
    ----------
    GRID : tuple of mapping of str to float
        Class variable: the options of each training of ``tuned``; those of ``learning_rate`` are multiples of that of
        `train`. An option counts as given where it is not the class's default, so None is the best default of one. By
        default six: the learning rate of `train` and a tenth of it, with weight decays of 1e-4, 1e-2 and 1e-1. Idrissi
        et al. (CLeaR 2022) search 1e-5 to 1e-3 and 1e-4 to 1 for RWG, SUBG and others, over 50 draws.
    history_ : list of list of dict
        For each selection one row per epoch. Set by :meth:`fit` and :meth:`fit_choices`.
    trials_ : list of Trial
        With ``tuned`` what came of each combination. Set by :meth:`fit` and :meth:`fit_choices`.
    notes_ : tuple of str
        What a reader should know of the last fit.
    choice_notes_ : list of tuple of str
        For each selection what is to be known of its choice alone. Set by :meth:`fit_choices`.
    verdict_ : Verdict
        Which classes training makes worse, on the images that the epoch was chosen by. Set by :meth:`fit`.

    Raises
    ------
    SettingsError
        If both `epochs` and `steps` are given, and for an option that does not fit.
    """

    train: TrainSettings = field(default_factory=TrainSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    seed: int = 0
    epochs: PositiveInt | None = None
    harm: Harm = field(default="keep", kw_only=True)
    start: Start = field(default="initial", kw_only=True)
    steps: PositiveInt | None = field(default=None, kw_only=True)
    learning_rate: Rate | None = field(default=None, kw_only=True)
    weight_decay: Decay | None = field(default=None, kw_only=True)
    tuned: bool = field(default=False, kw_only=True)
    notes_: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)
    choice_notes_: list[tuple[str, ...]] = field(default_factory=list, init=False, repr=False, compare=False)

    name: ClassVar[str]
    part: ClassVar[str] = WHOLE_NETWORK
    one_process: ClassVar[bool] = False  # whether its objective must see every batch whole
    fits_groups: ClassVar[bool] = True
    tunes_groups: ClassVar[bool] = True
    GRID: ClassVar[tuple[Setting, ...]] = combinations(learning_rate=(1.0, 0.1), weight_decay=(1e-4, 1e-2, 1e-1))

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise SettingsError(
                f"a learner is given epochs or steps, got epochs={self.epochs} and steps={self.steps} for {self.name}; "
                "leave one of them out"
            )
        LEARNERS.check_made(self)

    @property
    def training(self) -> TrainSettings:
        """`train` with the learner's own number of epochs, or of checks, its learning rate and its weight decay."""
        epochs = self.epochs if self.steps is None else checks_of(self.steps, self.train.epochs)
        own = {"epochs": epochs, "learning_rate": self.learning_rate, "weight_decay": self.weight_decay}
        return self.train.model_copy(update={key: value for key, value in own.items() if value is not None})

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
        SettingsError
            If the learner is to be tuned without a selection.
        """
        trained = self.fit_choices(model, split, groups, [selection] if selection else [], listen=listen)[0]
        self.verdict_ = Verdict()
        if selection is None:
            return trained
        self.notes_ = self.notes_of(0)
        before = collect_outputs(model, selection.split, listen=listen).predicted
        self.verdict_ = self.judged(before, trained, selection, listen=listen)
        self.notes_ = (*filter(None, [self.verdict_.first_line]), *self.notes_)
        return copy.deepcopy(model).eval() if self.verdict_.left_alone else trained

    def judged(
        self, before: IntArray, trained: nn.Module, selection: Selection, *, listen: Listener = silent
    ) -> Verdict:
        """State what training did to the classes of the split that the epoch was chosen by.

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

        With ``tuned`` every combination of :attr:`GRID` is trained once, and each selection chooses one of them, too.

        Parameters
        ----------
        model, split, groups, listen
            As for :meth:`fit`.
        selections : sequence of Selection
            All of one split.
        """
        self.check_given(split, groups, selections)
        self.notes_, self.choice_notes_ = (), []
        self.trials_: list[Trial] = []
        self.begin(model, split, groups, selections, listen)
        if self.tuned:
            return self._tuned(model, split, groups, selections, listen)
        self.history_, models = self._trained(model, split, groups, selections, listen)
        return models

    def notes_of(self, number: int) -> tuple[str, ...]:
        """Return what a reader should know of what one selection of the last training chose."""
        return sum(self.choice_notes_[number : number + 1], self.notes_)

    def check_given(self, split: Split, groups: Groups | None, selections: Sequence[Selection]) -> None:
        """Raise DataError where groups are missing or not those of the split, or selections are of several splits."""
        if self.fits_groups:
            if groups is None:
                raise DataError(f"the learner {self.name} needs groups of the split it trains on, got none; infer them")
            checked_groups(split, groups, "training")
        if any(selection.split is not selections[0].split for selection in selections):
            raise DataError("selections from one training must be of one split; give groups of the same split")

    def begin(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None,
        selections: Sequence[Selection],
        listen: Listener,
    ) -> None:
        """Look at the model and at the images that the epoch is chosen by, once before any training.

        Does nothing by default. Notes are added to ``notes_``.

        Parameters
        ----------
        model, split, groups, selections, listen
            As for :meth:`fit_choices`; the model must stay as it is.
        """

    def _trained(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None,
        selections: Sequence[Selection],
        listen: Listener,
    ) -> tuple[list[list[Row]], list[nn.Module]]:
        """Train a copy once; return for each choice the rows of its epochs, and a model."""
        network = self.wrapped(copy.deepcopy(model))
        objective, training = self.objective(model, split, groups, listen), self.training
        if self.steps is not None:
            objective = InSteps(objective, self.steps, training.epochs, training.batch_size)
        history, chosen = train_choices(
            network,
            split,
            selections[0].split if selections else None,
            training,
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
        return history, models

    def _tuned(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None,
        selections: Sequence[Selection],
        listen: Listener,
    ) -> list[nn.Module]:
        """Train every combination of the grid, and keep for each selection the history and model of the best."""
        if not selections:
            raise SettingsError(
                f"{self.name} is tuned by the worst group of a selection, got tuned=True without one; give a "
                "selection, or leave tuned out"
            )
        notes, own = self.notes_, {key: getattr(self, key) for setting in self.GRID for key in setting}

        def train(setting: Setting, listen: Listener) -> tuple[list[list[Row]], list[nn.Module]]:
            vars(self).update(setting, notes_=notes)
            return self._trained(model, split, groups, selections, listen)

        try:
            self.trials_, best = tune(self._settings(), train, len(selections), listen)
        finally:
            vars(self).update(own)
        self.history_ = [one.history for one in best]
        self.choice_notes_ = [(one.note(self.name, number, self.trials_),) for number, one in enumerate(best)]
        return [one.model for one in best]

    def _settings(self) -> list[Setting]:
        """Return the combinations of the grid, less what was given and so is not tuned, each once."""
        keys = {key for setting in self.GRID for key in setting}
        given = {key for key in keys if getattr(self, key) != getattr(type(self), key, None)}
        found: list[Setting] = []
        for row in self.GRID:
            setting = {key: value for key, value in row.items() if key not in given}
            if "learning_rate" in setting:
                setting["learning_rate"] *= self.train.learning_rate
            if setting not in found:
                found.append(setting)
        return found

    def objective(self, model: nn.Module, split: Split, groups: Groups | None, listen: Listener) -> Objective:
        """Return what is descended; `model` is as given, for learners that first look at what it gets wrong."""
        raise NotImplementedError

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return the network that is trained: the model itself, unless it has company while it trains."""
        return model

    def unwrapped(self, network: nn.Module) -> nn.Module:
        """Return the model that is kept of what :meth:`wrapped` returned."""
        return network
