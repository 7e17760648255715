"""Repair a classifier round by round: repair it, explain again what came of that, and find what is left.

After the open question of the ExMap paper (section 6) of several shortcuts: a repair of one may lead a classifier to
the next one (Li et al., "A Whac-A-Mole dilemma", CVPR 2023). Each round is an ordinary run with a choice of groups,
whose classifier is the one that the round before left. Its chosen groups are crossed with those of the rounds before
(:mod:`exmap.groups.crossed`), so that what was repaired stays repaired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from exmap.analysis import Fit
from exmap.auto import AUTO, AutoChoice
from exmap.errors import SettingsError
from exmap.groups.crossed import cross_groups
from exmap.methods import Part
from exmap.model import collect_outputs
from exmap.model.named import needs_gradient_free
from exmap.pipeline.chain import Chain
from exmap.pipeline.disk import write_json
from exmap.pipeline.outcome import EVALUATE, REPORT
from exmap.pipeline.plan import explained_name
from exmap.pipeline.plan_fits import REPAIR, REPAIRED
from exmap.pipeline.plan_groups import CHOICE, groups_name
from exmap.pipeline.runner import Runner, Say
from exmap.pipeline.runs import finish, open_run, runner_of
from exmap.pipeline.store import SETTINGS, RunFolder, sole_writer
from exmap.records import Explained, Groups, Listener, silent
from exmap.results import Results, Round, Rounds
from exmap.results.rounds import found_in, why_stopped
from exmap.runtime import launched
from exmap.settings import Settings, change_settings, parse_settings

__all__ = ["RoundMade", "chosen_groups_of", "round_of", "run_rounds"]

LATER_SOURCES = ["exmap"]  # others are compared in the first round


@dataclass(frozen=True)
class RoundMade:
    """What a round leaves.

    Attributes
    ----------
    record : Round
    choice : AutoChoice
    judged : Groups or None
        Of the held-out images: groups that a shortcut was found in, crossed with those of the rounds before; None where
        none was found so far.
    model : torch.nn.Module
        The repaired classifier; the one that the round found, where it was left as it is.
    """

    record: Round
    choice: AutoChoice
    judged: Groups | None
    model: nn.Module

    @property
    def is_last(self) -> bool:
        """Whether a further round would find the same."""
        return why_stopped(self.choice.record, self.record.left_alone) is not None


def run_rounds(folder: Path, settings: Settings, rounds: int, *, listen: Listener = silent, say: Say) -> Rounds:
    """Repair a run's classifier round by round, until no shortcut is found or so many rounds are made.

    The first round is the run itself, each later one a run folder ``round-2``, ``round-3`` ... in it. What is finished
    is kept, so that an interrupted command continues, and one with more rounds goes on.

    Parameters
    ----------
    folder : Path
    settings : Settings
        Of the first round; a grouping is chosen whether they say so or not.
    rounds : int
        At most.
    listen : Listener
    say : callable
        Is told in one line what happens to each step.

    Returns
    -------
    Rounds
        Also written as ``rounds.json``. The classifier that the last round left is in that round's ``repaired``.

    Raises
    ------
    SettingsError
        Where processes were launched from outside, or the model cannot start from weights of its own again.
    """
    _check(settings)
    wanted, made = change_settings(settings, groups__auto=True), list[RoundMade]()
    for number in range(1, rounds + 1):
        place = folder if number == 1 else folder / f"round-{number}"
        with nullcontext() if number == 1 else sole_writer(place):
            say(f"round {number} of at most {rounds}: {place}")
            run, opened = open_run(place, wanted) if number == 1 else _open_later(place, wanted)
            runner = runner_of(run, opened, look=True, runtime=None, listen=listen, say=say)
            finish(runner, run, REPORT)
            made.append(round_of(runner, made[-1] if made else None, listen=listen))
        if made[-1].is_last:
            break
        wanted = _next(opened if number == 1 else wanted, place)
    record = Rounds.of(
        (each.record for each in made),
        made[-1].choice.record,
        dataset=settings.data.name,
        seed=settings.seed,
        asked=rounds,
    )
    write_json(folder / Rounds.file_name, record.to_json())
    return record


def _check(settings: Settings) -> None:
    """Refuse what cannot be done in rounds, before any work."""
    if launched():
        raise SettingsError(
            "rounds are made by one command, but these processes were launched from outside; start exmap by itself, "
            "with --devices for several processes on this host"
        )
    if needs_gradient_free(settings.model) or (settings.model.outputs and settings.model.weights is None):
        raise SettingsError(
            f"a later round starts from the weights that the one before left, which {settings.model.name} cannot "
            f"{'with model.outputs' if settings.model.outputs else 'take from a file'}; leave --rounds out, or name "
            "the architecture and give its weights by model.weights"
        )


def _open_later(place: Path, wanted: Settings) -> tuple[RunFolder, Settings]:
    """Open the run folder of a later round, whose settings follow from the first; a person's edits in it are kept."""
    if not (place / SETTINGS).is_file():
        return open_run(place, wanted)
    kept = RunFolder(place).settings()
    edits = None if kept is None else parse_settings(kept).edits
    return open_run(place, wanted.model_copy(update={"edits": edits}), change=True)


def _next(settings: Settings, before: Path) -> Settings:
    """Return the settings of the round after one in a folder."""
    return change_settings(
        settings.model_copy(update={"edits": None}),
        model__weights=str((before / REPAIRED / "model.safetensors").absolute()),
        model__trained=True,
        model__pretrained=False,
        model__outputs=[],
        groups__earlier=str(before.absolute()),
        groups__sources=LATER_SOURCES,
    )


def round_of(runner: Runner, last: RoundMade | None, *, listen: Listener = silent) -> RoundMade:
    """Return what came of a round whose steps are made.

    Parameters
    ----------
    runner : Runner
        Of a :class:`~exmap.pipeline.chain.Chain` that chooses its groups.
    last : RoundMade or None
        The round before.
    listen : Listener
    """
    chain = runner.graph
    assert isinstance(chain, Chain)
    choice: AutoChoice = runner.record(CHOICE)
    results: Results = runner.record(EVALUATE)
    judged: Explained = runner.record(explained_name("val"))
    method, fit = _repair(runner, chain)
    found, given = found_in(choice.record), chosen_groups_of(runner)
    groups = _judged_by(given.get("val"), choice.judged, last) if found else last.judged if last else None
    fitted_to = given.get("val" if fit.network is None else "train", runner.record(chain.groups[AUTO]))
    before, worst = _worst(judged.correct, groups)
    after = None
    if groups is not None and not fit.left_alone:
        if fit.network is None:
            predicted = fit.heads[0].predict(judged.outputs.features)
        else:
            predicted = collect_outputs(fit.network, runner.task(images=True).val, listen=listen).predicted
        after, _ = _worst(predicted == judged.labels, groups)
    was, now = results.methods["erm"], None if fit.left_alone else results.methods[method]
    record = Round(
        number=1 if last is None else last.record.number + 1,
        folder="" if last is None or runner.run is None else runner.run.path.name,
        found=found,
        chosen=choice.record.chosen,
        groups=int((fitted_to.counts() > 0).sum()) if found else 0,
        crossed=bool(found) and "earlier" in chain[chain.groups[AUTO]].settings,
        worst_group=worst,
        before=before,
        after=after,
        fitted=fit.network is None and not fit.left_alone and chain.explained == explained_name("val"),
        method="" if fit.left_alone else method,
        left_alone=fit.left_alone,
        first_line=fit.first_line,
        test_worst_before=was.worst_group_accuracy,
        test_mean_before=was.mean_accuracy,
        test_worst_after=math.nan if now is None else now.worst_group_accuracy,
        test_mean_after=math.nan if now is None else now.mean_accuracy,
    )
    return RoundMade(record, choice, groups, runner.record(REPAIRED))


def chosen_groups_of(runner: Runner) -> Mapping[str, Groups]:
    """Return the chosen groups that were made of each split."""
    steps = {split: groups_name(Part(AUTO), split) for split in ("train", "val")}
    return {
        split: runner.record(step) for split, step in steps.items() if step in runner.graph and runner.is_finished(step)
    }


def _repair(runner: Runner, chain: Chain) -> tuple[str, Fit]:
    """Return the method that repaired a run's classifier, and its fit: first what was chosen among several."""
    if REPAIR in chain[REPAIRED].needs:
        chosen: Mapping[str, Fit] = runner.record(REPAIR)
        if chosen:
            return next(iter(chosen.items()))
    method = chain[REPAIRED].settings["method"]
    fits = (runner.record(step) for step in chain.fits if runner.is_finished(step))
    return method, next(found[method] for found in fits if method in found)


def _judged_by(made: Groups | None, chosen: Groups, last: RoundMade | None) -> Groups:
    """Return the groups of held-out images that a round is judged by, crossed with those of the rounds before."""
    if made is not None:
        return made
    return chosen if last is None or last.judged is None else cross_groups(chosen, last.judged)


def _worst(correct: NDArray[np.bool_], groups: Groups | None) -> tuple[float | None, str]:
    """Return the accuracy in the worst group, and its name; None where no image is in a group."""
    counts = np.zeros(0) if groups is None else groups.counts()
    if groups is None or not counts.any():
        return None, ""
    rows = groups.index >= 0
    right = np.bincount(groups.index[rows], weights=correct[rows], minlength=len(counts))
    accuracy = np.divide(right, counts, out=np.full(len(counts), np.inf), where=counts > 0)
    worst = int(accuracy.argmin())
    return float(accuracy[worst]), groups.names[worst]
