"""Run the same graph in memory, on a classifier and images that the caller gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from exmap.analysis import Analysis
from exmap.data import Task
from exmap.errors import SettingsError
from exmap.pipeline.chain import plan_run, sources_of, trained_apart, trains_networks
from exmap.pipeline.gather import gathered
from exmap.pipeline.graph import DATA
from exmap.pipeline.outcome import EVALUATE, described_name
from exmap.pipeline.plan import TRAIN
from exmap.pipeline.provenance import made_by, manifest
from exmap.pipeline.runner import Runner, StepWork
from exmap.records import Groups, Listener
from exmap.results import Results
from exmap.settings import Settings

if TYPE_CHECKING:
    from torch import nn

__all__ = ["analysis_and_runner", "analyze_in_memory"]


def analyze_in_memory(model: nn.Module, task: Task, settings: Settings, **given: Any) -> Analysis:
    """Run all steps but the report on a classifier that is given; the arguments are of :func:`analysis_and_runner`."""
    return analysis_and_runner(model, task, settings, **given)[0]


def analysis_and_runner(
    model: nn.Module,
    task: Task,
    settings: Settings,
    *,
    explainer: Any = None,
    clusterer: Any = None,
    whole_networks: bool = True,
    earlier: Mapping[str, Groups] | None = None,
    listen: Listener,
) -> tuple[Analysis, Runner]:
    """Run all steps but the report on a classifier that is given, and return their records, too.

    Parameters
    ----------
    model : torch.nn.Module
        Stays as it is.
    task : Task
    settings : Settings
    explainer, clusterer : object, optional
        In the place of those that the settings name.
    whole_networks : bool
        Whether the task has the images that a whole network can be trained on.
    earlier : mapping of str to Groups, optional
        The chosen groups of the round before, by split.
    listen : Listener
    """
    if beyond := [part for part in sources_of(settings, task) if trains_networks(part, settings)]:
        raise SettingsError(
            f"the source {beyond[0]} trains its own classifiers and does not work with one that is given; "
            "leave it out, or use it in exmap run or exmap bench"
        )
    if not whole_networks and (trains := trained_apart(settings)):
        raise SettingsError(
            f"{trains} trains whole networks and needs the images that the model was trained on; give train=, or "
            "choose another learner"
        )
    given = {"explainer": explainer, "clusterer": clusterer, "start": model, "earlier": earlier}
    chain = plan_run(settings, task, dict(task.digests), **given)
    runner = Runner(settings, chain, lambda: task, records={DATA: task, TRAIN: model}, listen=listen)
    runner.use(task)
    results: Results = runner.record(EVALUATE)
    for name in map(described_name, chain.groups):
        if name in chain:
            runner.record(name)
    work = StepWork(runner, images=True)
    made = made_by(manifest(settings, task))
    analysis = gathered(work, runner, chain, made_by=made, results=results, grouping="")
    return replace(analysis, explainer=explainer), runner
