"""Repair a classifier of your own round by round, until no shortcut is found in what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exmap.analysis import Analysis
from exmap.api.analyzing import prepare
from exmap.errors import SettingsError
from exmap.pipeline.memory import analysis_and_runner
from exmap.pipeline.rounds import RoundMade, chosen_groups_of, round_of
from exmap.results import Rounds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from exmap.records import Groups

__all__ = ["RepairedInRounds", "analyze_in_rounds"]


@dataclass(frozen=True, eq=False, repr=False)
class RepairedInRounds:
    """What came of repairing a classifier round by round.

    Attributes
    ----------
    analyses : tuple of Analysis
        One per round: of the classifier that the round before left, the first of the one that was given.
    record : Rounds
        What was found in each round, what its repair gave, and why there were no more.
    model : torch.nn.Module
        The classifier that the last round left.
    """

    analyses: tuple[Analysis, ...]
    record: Rounds
    model: nn.Module

    def __repr__(self) -> str:
        return f"RepairedInRounds({self.record.why})"


def analyze_in_rounds(model: nn.Module, images: Any, *, rounds: int = 3, **given: Any) -> RepairedInRounds:
    """Repair a classifier, explain the repaired one and repair what is left, until no shortcut is found.

    Each round is an :func:`exmap.analyze` of the classifier that the previous round left. Its chosen groups are crossed
    with those of earlier rounds, so that what was repaired stays repaired.

    Parameters
    ----------
    model : torch.nn.Module
        Stays as it is.
    images : Split, Task, data set, DataLoader, or (images, labels)
    rounds : int, at least 1
        The largest number of rounds.
    **given
        The other arguments of :func:`exmap.analyze`. A grouping is chosen in every round (``auto``).

    Returns
    -------
    RepairedInRounds

    Raises
    ------
    SettingsError
        For fewer than one round, and whatever :func:`exmap.analyze` raises.

    Examples
    --------
    >>> found = exmap.analyze_in_rounds(model, dataset, rounds=3)  # doctest: +SKIP
    >>> print(found.record.why)  # doctest: +SKIP
    >>> fixed = found.model  # doctest: +SKIP
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise SettingsError(f"rounds must be a whole number of at least 1, got {rounds!r}; give, for example, rounds=3")
    prepared = prepare(model, images, **{**given, "auto": True})
    earlier: Mapping[str, Groups] | None = None
    analyses: list[Analysis] = []
    made: list[RoundMade] = []
    network = prepared.model
    for _ in range(rounds):
        analysis, runner = analysis_and_runner(
            network, prepared.task, prepared.settings, earlier=earlier, **prepared.given
        )
        analyses.append(analysis)
        made.append(round_of(runner, made[-1] if made else None, listen=prepared.given["listen"]))
        network, earlier = made[-1].model, chosen_groups_of(runner)
        if made[-1].is_last:
            break
    record = Rounds.of(
        (each.record for each in made),
        made[-1].choice.record,
        dataset=prepared.task.name,
        seed=prepared.settings.seed,
        asked=rounds,
    )
    return RepairedInRounds(tuple(analyses), record, network)
