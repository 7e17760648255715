"""The same graph without a folder: a classifier that is given, explained on images that are at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exmap.analysis import Analysis
from exmap.data import Task
from exmap.errors import SettingsError
from exmap.groups import EDITED
from exmap.methods import Part
from exmap.pipeline.chain import methods_of, plan_run, sources_of
from exmap.pipeline.graph import DATA
from exmap.pipeline.outcome import EVALUATE, TRUST, analysis_of
from exmap.pipeline.plan import TRAIN, explained_name
from exmap.pipeline.plan_groups import groups_name
from exmap.pipeline.provenance import made_by, manifest
from exmap.pipeline.runner import Runner, StepWork
from exmap.records import Listener
from exmap.settings import Settings

if TYPE_CHECKING:
    from torch import nn

__all__ = ["analyze_in_memory"]


def analyze_in_memory(
    model: nn.Module,
    task: Task,
    settings: Settings,
    *,
    explainer: Any = None,
    clusterer: Any = None,
    whole_networks: bool = True,
    listen: Listener,
) -> Analysis:
    """Run all steps but the report on a classifier that is given.

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
    listen : Listener
    """
    if not whole_networks and any(method.whole_network for method in methods_of(settings, task)):
        raise SettingsError(
            f"the learner {settings.retrain.learner} trains the whole network and needs the images the model was "
            "trained on; give train=, or a learner of the last layer such as dfr"
        )
    graph = plan_run(settings, task, dict(task.digests), explainer=explainer, clusterer=clusterer, start=model)
    runner = Runner(settings, graph, lambda: task, records={DATA: task, TRAIN: model.eval()}, listen=listen)
    runner.use(task)
    results = runner.record(EVALUATE)
    split = settings.groups.split
    parts = {str(part): groups_name(part, split) for part in sources_of(settings, task)}
    edited = groups_name(Part(EDITED), split)
    if settings.edits is not None:
        parts[EDITED] = edited
    return analysis_of(
        settings,
        StepWork(runner, images=True),
        parts,
        [
            name
            for name in runner.records
            if name in graph and graph[name].stage == "retrain" and name not in parts.values()
        ],
        explained=explained_name(split),
        made_by=made_by(manifest(settings, task)),
        grouping="",
        results=results,
        trust=runner.record(TRUST),
    )
