"""The graph of ``exmap run``: its sources, its learner with each of them, and what is reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exmap.auto import AUTO
from exmap.data import Task
from exmap.groups import EDITED, ExMapGroups, make_source, needs_of
from exmap.groups.source import TRUE_GROUPS
from exmap.methods import Method, Part, method_with, parse_part
from exmap.pipeline.graph import Graph, split_of
from exmap.pipeline.outcome import add_outcome
from exmap.pipeline.plan import Plan
from exmap.pipeline.plan_fits import add_methods, add_repair, fit_name
from exmap.pipeline.plan_groups import add_groups
from exmap.settings import Settings

__all__ = ["methods_of", "plan_run", "sources_of"]


def sources_of(settings: Settings, task: Task) -> list[Part]:
    """Return the sources of groups of a run, ExMap's first; the oracle is left out where no true groups are known."""
    first = Part(ExMapGroups.name)
    parts = [first, *(part for part in map(parse_part, settings.groups.sources) if part != first)]
    known = split_of(task, settings.groups.split).truth is not None
    wanted = [part for part in parts if known or TRUE_GROUPS not in needs_of(make_source(part, settings))]
    return [*wanted, Part(AUTO)] if settings.groups.auto else wanted


def methods_of(settings: Settings, task: Task) -> list[Method]:
    """Return the methods of a run: its learner with each of its sources, each once."""
    learner = parse_part(settings.retrain.learner)
    methods = {str(method): method for part in sources_of(settings, task) for method in [method_with(learner, part)]}
    return list(methods.values())


def plan_run(settings: Settings, task: Task, inputs: Mapping[str, str], **given: Any) -> Graph:
    """Return the graph of ``exmap run``; what is `given` is for :class:`Plan`."""
    plan = Plan(settings, task, inputs, **given)
    parts = sources_of(settings, task)
    for part in parts:
        add_groups(plan, part, plan.split)
    methods = methods_of(settings, task)
    if settings.edits is not None:
        methods.append(method_with(parse_part(settings.retrain.learner), Part(EDITED)))
    fits = add_methods(plan, methods)
    if settings.groups.auto and settings.auto.repair == "auto":
        chosen = fit_name(method_with(parse_part(settings.retrain.learner), Part(AUTO)))
        fits.append(add_repair(plan, chosen))
    add_outcome(plan, parts, methods, fits)
    return plan.graph()
