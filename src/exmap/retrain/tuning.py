"""The settings that a learner of the whole network is tuned over, and what came of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from torch import nn

from exmap.errors import NumericalError
from exmap.model.fit import Row
from exmap.records import Listener, Progress

__all__ = ["Best", "Setting", "Trial", "combinations", "tune"]

Setting = Mapping[str, float]


def combinations(**values: Sequence[float]) -> tuple[Setting, ...]:
    """Return every combination of some options' values.

    Examples
    --------
    >>> combinations(learning_rate=(1.0, 0.1), weight_decay=(0.01,))
    ({'learning_rate': 1.0, 'weight_decay': 0.01}, {'learning_rate': 0.1, 'weight_decay': 0.01})
    """
    return tuple(dict(zip(values, each, strict=True)) for each in product(*values.values()))


@dataclass(frozen=True)
class Trial:
    """What came of training with one combination of settings.

    Attributes
    ----------
    setting : mapping of str to float
    worst : tuple of float
        For each selection the accuracy in its worst group, in the epoch that it chooses; NaN where the loss left the
        finite numbers.
    """

    setting: Setting
    worst: tuple[float, ...]


@dataclass(frozen=True)
class Best:
    """What a selection chooses of all trainings.

    Attributes
    ----------
    setting : mapping of str to float
    score : tuple of float
        Accuracy in the worst group, and over all.
    history : list of dict
        One row per epoch.
    model : torch.nn.Module
    """

    setting: Setting
    score: tuple[float, float]
    history: list[Row]
    model: nn.Module

    def note(self, learner: str, number: int, trials: Sequence[Trial]) -> str:
        """Return a sentence about this choice, by the selection of that number."""
        values = ", ".join(f"{key}={value:g}" for key, value in self.setting.items()) or "the settings given"
        failed = sum(math.isnan(trial.worst[number]) for trial in trials)
        lost = f"; the loss of {failed} left the finite numbers" if failed else ""
        return (
            f"{learner} was tuned by the worst group of the held-out images: {values} is the best of {len(trials)} "
            f"trainings, {self.score[0]:.1%} there{lost}"
        )


def tune(
    settings: Sequence[Setting],
    train: Callable[[Setting, Listener], tuple[list[list[Row]], list[nn.Module]]],
    choices: int,
    listen: Listener,
) -> tuple[list[Trial], list[Best]]:
    """Train with each of some settings, and choose one for each selection: the first of those that are best.

    Parameters
    ----------
    settings : sequence of mapping of str to float
    train : callable
        Returns for each selection the rows of the epochs, and a model.
    choices : int
        Number of selections, at least one.
    listen : Listener

    Raises
    ------
    NumericalError
        If the loss leaves the finite numbers with every setting.
    """
    trials: list[Trial] = []
    best: list[Best] = []
    failure: NumericalError | None = None
    for number, setting in enumerate(settings):
        try:
            histories, models = train(setting, partial(_as_part, listen, number, len(settings)))
        except NumericalError as error:
            failure = error
            trials.append(Trial(setting, (math.nan,) * choices))
            continue
        found = [Best(setting, _score(rows), rows, one) for rows, one in zip(histories, models, strict=True)]
        trials.append(Trial(setting, tuple(each.score[0] for each in found)))
        pairs = zip(best or found, found, strict=True)
        best = [new if new.score > old.score else old for old, new in pairs]
    if failure is not None and not best:
        raise failure
    return trials, best


def _score(history: Sequence[Row]) -> tuple[float, float]:
    """Return the accuracy in the worst group, and over all, in the epoch that is kept; -1 of no training at all."""
    kept = [row for row in history if row["kept"]]
    return (kept[-1]["val_worst_class"], kept[-1]["val_mean"]) if kept else (-1.0, -1.0)


def _as_part(listen: Listener, number: int, total: int, progress: Progress) -> None:
    note = f"training {number + 1}/{total}" + f", {progress.note}" * bool(progress.note)
    done = number * progress.total + progress.done
    listen(
        replace(progress, done=done, total=total * progress.total, note=note) if progress.task == "train" else progress
    )
