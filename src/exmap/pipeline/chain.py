"""The graph of ``exmap run``: its sources, its learner with each of them, and what is reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from exmap.auto import AUTO
from exmap.data import Task
from exmap.groups import EDITED, ExMapGroups, make_source, needs_of
from exmap.groups.source import sees_truth
from exmap.methods import Method, Part, method_with, parse_part
from exmap.pipeline.graph import Graph, Step
from exmap.pipeline.outcome import add_outcome
from exmap.pipeline.plan import Plan
from exmap.pipeline.plan_fits import add_methods, add_repair, add_repaired, fit_name
from exmap.pipeline.plan_groups import add_edited, add_groups
from exmap.settings import Settings

__all__ = ["Chain", "methods_of", "plan_run", "sources_of", "trained_apart", "trains_networks"]


def sources_of(settings: Settings, task: Task) -> list[Part]:
    """Return the sources of groups of a run, ExMap's first; the oracle is left out where no true groups are known."""
    first = Part(ExMapGroups.name)
    parts = [first, *(part for part in map(parse_part, settings.groups.sources) if part != first)]
    known = task.split(settings.groups.split).truth is not None
    wanted = [part for part in parts if known or not sees_truth(part, settings)]
    return [*wanted, Part(AUTO)] if settings.groups.auto else wanted


def methods_of(settings: Settings, task: Task) -> list[Method]:
    """Return the methods of a run: its learner with each of its sources, each once."""
    learner = parse_part(settings.retrain.learner)
    methods = {str(method): method for part in sources_of(settings, task) for method in [method_with(learner, part)]}
    return list(methods.values())


def trains_networks(part: Part, settings: Settings) -> bool:
    """Return whether a source of groups trains networks of its own."""
    return bool({"reference", "twins"} & {*needs_of(make_source(part, settings))})


def trained_apart(settings: Settings) -> str:
    """Return what of a run trains networks beside its classifier, in one process alone; empty where nothing does."""
    learner = parse_part(settings.retrain.learner)
    if method_with(learner, Part(ExMapGroups.name)).whole_network:
        return f"retrain.learner={learner.name}"
    for part in map(parse_part, settings.groups.sources):
        if trains_networks(part, settings):
            return f"the source {part}"
    return "auto.repair=auto" if settings.groups.auto and settings.auto.repair == "auto" else ""


class Chain(Graph):
    """The graph of a run, and which of its steps hold what.

    Parameters
    ----------
    steps : iterable of Step
    explained : str
        The step that explains the grouped split.
    groups : mapping of str to str
        The steps that infer groups of that split, by source.
    fits : sequence of str
        The steps that fit methods.
    """

    def __init__(self, steps: Iterable[Step], explained: str, groups: Mapping[str, str], fits: Sequence[str]) -> None:
        super().__init__(steps)
        self.explained, self.groups, self.fits = explained, dict(groups), tuple(fits)

    @property
    def grouping(self) -> str:
        """Identity of ExMap's groups: what edits of them refer to."""
        return self.digest(self.groups[ExMapGroups.name])


def plan_run(settings: Settings, task: Task, inputs: Mapping[str, str], **given: Any) -> Chain:
    """Return the graph of ``exmap run``; what is `given` is for :class:`Plan`."""
    plan = Plan(settings, task, inputs, **given)
    learner, methods = parse_part(settings.retrain.learner), methods_of(settings, task)
    groups = {str(part): add_groups(plan, part, plan.split) for part in sources_of(settings, task)}
    last = Part(AUTO) if settings.groups.auto else Part(ExMapGroups.name)
    if settings.edits is not None:
        last = Part(EDITED)
        groups[EDITED] = add_edited(plan)
    repaired = method_with(learner, last)
    methods = list({str(method): method for method in (*methods, repaired)}.values())
    fits = add_methods(plan, methods)
    repair = None
    if settings.groups.auto and settings.auto.repair == "auto" and not repaired.whole_network:
        repair = add_repair(plan, fit_name(method_with(learner, Part(AUTO))))
        fits.append(repair)
    add_repaired(plan, fit_name(repaired), repaired, repair if last == Part(AUTO) else None)
    add_outcome(plan, groups, methods, fits)
    return Chain(plan.steps.values(), plan.explained, groups, fits)
