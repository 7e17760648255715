"""The cheapest repair that suffices: repairs are tried in order of cost, and judged by the worst pseudo-group.

The last layer is often enough (Kirichenko et al., ICLR 2023; Rosenfeld et al., 2022), and where it is not, nothing but
images tells what is. So a last layer, a little more than it, and whole networks are fitted with the same groups, each
as its own class says. All are measured on the held-out images alike, by cross-fitting on two halves in which every
group is spread evenly: a last layer is fitted to one half and measured on the other, and the epoch of a network is
chosen by one half and measured on the other, both ways round, from one training. So no fit and no epoch is measured on
what it was chosen by; only which properties are exchanged is asked of all held-out images. A last layer is measured
with half of the images that it is given in the end, and may do a little better with all.

Kept is the first in the order whose worst pseudo-group is within noise of the best one's: the lower end of the 90 %
interval of the difference, from a bootstrap over images inside each group (the same images for both), is not above 0.
Where that one would leave the classifier as it is, because it makes a class worse, it is set aside and another one is
chosen in the same way among the rest. A repair is no longer tried once one before it that makes no class worse is
within noise of a perfect one, which changes no choice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from exmap.data import Split
from exmap.errors import DataError, NumericalError, SettingsError
from exmap.evaluation import Difference, worst_group_difference
from exmap.methods import Part, parse_part
from exmap.model import collect_outputs, find_last_layer
from exmap.records import Groups, IntArray, Listener, Progress, silent
from exmap.registry import LEARNERS
from exmap.results import RepairTrial, repairs_in_words
from exmap.retrain.balance import parts_of
from exmap.retrain.harm import Verdict
from exmap.retrain.head import Head
from exmap.retrain.learner import LAST_LAYER, own_head
from exmap.retrain.selection import Selection
from exmap.retrain.whole_network import Start, WholeNetwork
from exmap.runtime import child_seed, generator

__all__ = ["Cheapest"]

FEWEST = 8  # images of a group whose accuracy is looked at, where some group has as many
FORWARD = 1 / 3  # of the work of a training step


@LEARNERS.register
@dataclass
class Cheapest(WholeNetwork):
    """Try several repairs, and keep the cheapest whose worst pseudo-group is within noise of the best one's.

    Parameters
    ----------
    train, runtime, seed, epochs, harm, steps, learning_rate, weight_decay, tuned
        As for :class:`~exmap.retrain.WholeNetwork`; every repair is given those that are set and that it takes. What is
        not set is as the repair's own class has it.
    repairs : str
        Learners with their options, joined by ``|``, the cheapest first: ``dfr|rwg[epochs=3]``. One that cannot be
        fitted, for example because the classifier has no linear last layer, is passed over, and a note says why.
        Last layers are fitted to the images of the selection.
    start : "classifier"
        All repairs begin with the model they are given, and last layers with its features: the trained classifier.

    Attributes
    ----------
    tried_ : list of tuple of RepairTrial
        For each selection what came of each repair. Set by :meth:`fit` and :meth:`fit_choices`.
    heads_ : list of (Head or None)
        For each selection the last layer, where that is all that was retrained. Set likewise.

    Notes
    -----
    Without a selection nothing can be judged: the first repair that can be fitted is fitted to the split.
    """

    name: ClassVar[str] = "cheapest"

    repairs: str = "dfr|lp_ft|exchange|rwg"
    start: Start = field(default="classifier", kw_only=True)
    tried_: list[tuple[RepairTrial, ...]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start != "classifier":
            raise SettingsError(
                f"the repairs of {self.name} begin with the trained classifier, got start={self.start}; leave start out"
            )
        parts = [*map(parse_part, filter(None, (text.strip() for text in self.repairs.split("|"))))]
        if not parts or len(set(parts)) < len(parts) or any(part.name == self.name for part in parts):
            raise SettingsError(
                f"the repairs of {self.name} must be one learner or more, each once and none of them {self.name}, got "
                f"{self.repairs!r}; write, for example, dfr|rwg"
            )
        for part in parts:
            LEARNERS.check_options(part.name, dict(part.options))
        self._parts = parts

    def fit_choices(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None,
        selections: Sequence[Selection],
        *,
        listen: Listener = silent,
    ) -> list[nn.Module]:
        """Try the repairs, and keep one for each selection.

        Parameters
        ----------
        model, split, groups, selections, listen
            As for :class:`~exmap.retrain.WholeNetwork`.

        Raises
        ------
        DataError
            If groups are missing or not those of the split, or the reason why the last repair cannot be fitted if none
            can.
        """
        self.check_given(split, groups, selections)
        assert groups is not None
        if not selections:
            return [self._first(model, split, groups, listen)]
        before = collect_outputs(model, selections[0].split, listen=listen).predicted
        judges = [_Judge(selection, before, self.seed) for selection in selections]
        tried: list[_Tried] = []
        passed: dict[str, Exception | None] = {}
        for part in self._parts:
            if all(any(judge.perfect(each.right[n]) for each in _harmless(tried, n)) for n, judge in enumerate(judges)):
                passed[str(part)] = None
                continue
            try:
                tried.append(self._try(part, model, split, groups, judges, listen))
            except (DataError, NumericalError) as error:
                passed[str(part)] = error
        if not tried:
            raise next(error for error in reversed(passed.values()) if error is not None)
        return self._keep(judges, tried, passed)

    def judged(
        self, before: IntArray, trained: nn.Module, selection: Selection, *, listen: Listener = silent
    ) -> Verdict:
        """State what the repair did to the classes, as was found when it was tried."""
        found = next((verdict for network, verdict in self._verdicts if network is trained), None)
        return found if found is not None else super().judged(before, trained, selection, listen=listen)

    def _learner(self, part: Part) -> Any:
        """Return one of the learners, with what was set for all of them."""
        known, kind = LEARNERS.options(part.name), LEARNERS.get(part.name)
        if not (isinstance(kind, type) and issubclass(kind, WholeNetwork)):
            known = {"harm": known["harm"]} if "harm" in known else {}  # others mean something else by these names
        common = {each.name: (getattr(self, each.name), each.default) for each in fields_of(WholeNetwork)}
        given = {key: value for key, (value, default) in common.items() if key in known and value != default}
        seed = child_seed(self.seed, self.name, str(part))
        return LEARNERS.build(part.name, given | dict(part.options), seed=seed, train=self.train, runtime=self.runtime)

    def _first(self, model: nn.Module, split: Split, groups: Groups, listen: Listener) -> nn.Module:
        """Return what the first repair makes of the model that can be fitted."""
        for number, part in enumerate(self._parts, start=1):
            learner = self._learner(part)
            try:
                fitted: nn.Module = learner.fit(model, split, groups, listen=listen)
            except (DataError, NumericalError):
                if number == len(self._parts):
                    raise
                continue
            why = "there was no selection to judge it by"
            self.tried_ = [(RepairTrial.not_measured(str(part), why, kept=True),)]
            self.history_, self.heads_ = [[]], [getattr(learner, "head_", None)]
            harm = filter(None, [learner.verdict_.first_line])
            self.notes_ = (f"nothing was given to choose a repair by, so {part} was taken", *harm, *_notes(learner))
            self.choice_notes_ = [()]
            self._verdicts = [(fitted, learner.verdict_)]
            return fitted
        raise AssertionError("there is at least one repair")

    def _try(
        self, part: Part, model: nn.Module, split: Split, groups: Groups, judges: Sequence[_Judge], listen: Listener
    ) -> _Tried:
        """Fit one repair for every selection, and measure it on the halves."""
        begin, shown, learner = time.perf_counter(), _Shown(listen), self._learner(part)
        if learner.part == LAST_LAYER:
            repair = _last_layers(str(part), learner, model, judges, shown)
            work = FORWARD * len(judges[0].selection.split)
        else:
            repair = _networks(str(part), learner, model, split, groups, judges, shown)
            work = shown.images or math.nan  # processes that were spawned count for themselves
        training = len(split) * self.train.epochs
        repair.seconds = round(time.perf_counter() - begin, 3)
        repair.trainings = work / training if training else math.nan
        if learner.part != LAST_LAYER:
            pairs = zip(judges, repair.networks, strict=True)
            repair.verdicts = [
                WholeNetwork.judged(self, judge.before, network, judge.selection, listen=listen)
                for judge, network in pairs
            ]
        return repair

    def _keep(
        self, judges: Sequence[_Judge], tried: Sequence[_Tried], passed: dict[str, Exception | None]
    ) -> list[nn.Module]:
        """Choose for each selection, and say what was found."""
        networks = []
        self.notes_, self.choice_notes_ = (), []
        self.tried_, self.history_, self.heads_, self._verdicts = [], [], [], []
        for number, judge in enumerate(judges):
            kept = judge.chosen(tried, number)
            trials = {repair.text: judge.trial(repair, kept, number) for repair in tried}
            trials |= {name: RepairTrial.not_measured(name, _why(error)) for name, error in passed.items()}
            self.tried_.append(tuple(trials[str(part)] for part in self._parts))
            self.history_.append(kept.histories[number])
            self.heads_.append(kept.heads[number])
            networks.append(kept.networks[number])
            self._verdicts.append((networks[-1], kept.verdicts[number]))
            self.choice_notes_.append((repairs_in_words(self.tried_[-1]), *kept.notes[number]))
        return networks


@dataclass
class _Tried:
    """What came of one repair, for each selection."""

    text: str
    networks: list[nn.Module]
    right: list[NDArray[np.bool_]]  # which held-out images are right, by what the other half made
    heads: list[Head | None]
    verdicts: list[Verdict]  # on what it does to the classes
    histories: list[list[Any]]
    notes: list[tuple[str, ...]]
    seconds: float = math.nan
    trainings: float = math.nan


class _Judge:
    """The held-out images of a selection, in two halves, and what they say of repairs.

    Parameters
    ----------
    selection : Selection
    before : ndarray of int64, shape (N,)
        What the classifier says of these images.
    seed : int
    """

    def __init__(self, selection: Selection, before: IntArray, seed: int) -> None:
        self.selection, self.before, self.seed = selection, before, seed
        labels, groups = selection.split.labels, selection.groups
        assigned = np.flatnonzero(groups.index >= 0)
        some = replace(groups, index=groups.index[assigned], clusters=None)
        rng = generator(seed, "repairs", "halves")
        self.halves = [assigned[rows] for rows in parts_of(labels[assigned], some, 2, rng)]
        large = np.flatnonzero(groups.counts() >= FEWEST)
        self.index = np.where(np.isin(groups.index, large), groups.index, -1) if len(large) else groups.index

    def of_half(self, number: int) -> Selection:
        """Return the selection by one half alone; the other is unassigned."""
        groups = self.selection.groups
        index = np.full_like(groups.index, -1)
        index[self.halves[number]] = groups.index[self.halves[number]]
        return Selection(self.selection.split, replace(groups, index=index, clusters=None))

    def compare(self, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Difference:
        """Return the first in the worst group less the second, with its 90 % interval."""
        rng = generator(self.seed, "repairs", "bootstrap")
        return worst_group_difference([first], [second], self.index, rng=rng, confidence=0.9)

    def perfect(self, right: NDArray[np.bool_]) -> bool:
        """Return whether a repair is within noise of a perfect one."""
        return self.compare(np.ones_like(right), right).low <= 0

    def chosen(self, tried: Sequence[_Tried], number: int) -> _Tried:
        """Return the first that is within noise of the best and makes no class worse; if all do, without regard to it.

        Parameters
        ----------
        tried : sequence of _Tried
        number : int
            Of this selection.
        """
        left = list(tried)
        while left:
            found = self.cheapest(left, number)
            if not found.verdicts[number].left_alone:
                return found
            left = [each for each in left if each is not found]
        return self.cheapest(tried, number)

    def cheapest(self, tried: Sequence[_Tried], number: int) -> _Tried:
        """Return the first that is within noise of the best."""
        nothing = np.zeros_like(tried[0].right[number])
        best = max(tried, key=lambda each: self.compare(each.right[number], nothing).value).right[number]
        return next(each for each in tried if self.compare(best, each.right[number]).low <= 0)

    def trial(self, repair: _Tried, kept: _Tried, number: int) -> RepairTrial:
        """Return the record of a repair."""
        right = repair.right[number]
        own, gain = self.compare(right, np.zeros_like(right)), self.compare(right, kept.right[number])
        return RepairTrial(
            name=repair.text,
            worst=own.value,
            low=own.low,
            high=own.high,
            gain=gain.value,
            gain_low=gain.low,
            gain_high=gain.high,
            seconds=repair.seconds,
            trainings=repair.trainings,
            kept=repair is kept,
            harm=repair.verdicts[number].left_alone,
        )


@dataclass
class _Shown:
    """Passes progress on, and counts the images that trainings show."""

    listen: Listener
    images: int = 0
    last: int = 0

    def __call__(self, progress: Progress) -> None:
        """Count, and pass on."""
        if progress.task == "train":
            self.images += progress.done - (self.last if progress.done > self.last else 0)
            self.last = progress.done
        self.listen(progress)


def _last_layers(text: str, learner: Any, model: nn.Module, judges: Sequence[_Judge], listen: Listener) -> _Tried:
    """Fit last layers to the held-out images: one to all that are in a group, and one to each half for the other."""
    held = judges[0].selection.split
    last = find_last_layer(model, held.first_images())
    own, features = own_head(last), collect_outputs(model, held, head=last, listen=listen).features
    finite = np.asarray(np.isfinite(features).all(axis=1))
    made = _Tried(text, [], [], [], [], [], [])
    for judge in judges:
        groups = judge.selection.groups
        right = np.zeros(len(held), dtype=np.bool_)
        for fitted, others in (judge.halves, judge.halves[::-1]):
            rows = fitted[finite[fitted]]
            part = replace(groups, index=groups.index[rows], clusters=None)
            head = learner.fit_head(
                features[rows], held.labels[rows], part, n_classes=held.n_classes, head=own, listen=listen
            )
            seen = others[finite[others]]
            right[seen] = head.predict(features[seen]) == held.labels[seen]
        made.networks.append(learner.fit(model, held, groups, listen=listen))
        made.right.append(right)
        made.heads.append(learner.head_)
        made.verdicts.append(learner.verdict_)
        made.histories.append([])
        made.notes.append(_notes(learner))
    return made


def _networks(
    text: str,
    learner: Any,
    model: nn.Module,
    split: Split,
    groups: Groups,
    judges: Sequence[_Judge],
    listen: Listener,
) -> _Tried:
    """Train once, and choose an epoch by all held-out images and by each half of them."""
    wanted = [each for judge in judges for each in (judge.selection, judge.of_half(0), judge.of_half(1))]
    networks = learner.fit_choices(model, split, groups, wanted, listen=listen)
    held = judges[0].selection.split
    made = _Tried(text, [], [], [], [], [], [])
    for number, judge in enumerate(judges):
        right = np.zeros(len(held), dtype=np.bool_)
        for half, network in enumerate(networks[3 * number + 1 : 3 * number + 3]):
            rows = judge.halves[1 - half]
            right[rows] = collect_outputs(network, held.rows(rows), listen=listen).predicted == held.labels[rows]
        made.networks.append(networks[3 * number])
        made.right.append(right)
        made.heads.append(None)
        made.histories.append(list(learner.history_[3 * number]))
        made.notes.append(learner.notes_of(3 * number) if isinstance(learner, WholeNetwork) else _notes(learner))
    return made


def _harmless(tried: Sequence[_Tried], number: int) -> list[_Tried]:
    """Return the repairs that do not leave the classifier as it is, by the selection of that number."""
    return [each for each in tried if not each.verdicts[number].left_alone]


def _notes(learner: Any) -> tuple[str, ...]:
    """Return what a learner says of its last fit, but for what it does to the classes, which is said by the verdict."""
    if learner.part != LAST_LAYER:
        return tuple(learner.notes_)
    return tuple(note for note in learner.head_.notes if note != learner.verdict_.first_line)


def _why(error: Exception | None) -> str:
    return "a cheaper one is within noise of a perfect one" if error is None else str(error)
