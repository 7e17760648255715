"""What a bench computes: the steps of one graph per data set and seed, and a cell per method.

The cells of one data set and seed share a run folder, whose steps are those of ``exmap run``, so it can be opened with
the other commands. A fit makes every cell that differs in its choice alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from exmap.analysis import Fit, reported_groups
from exmap.bench.grid import Cell
from exmap.data import Task, build_task
from exmap.groups import ClassGroups, needs_of
from exmap.groups.source import make_source, sees_truth
from exmap.methods import ERM, Method, Part
from exmap.model import save_weights
from exmap.pipeline.checks import check_before_work
from exmap.pipeline.disk import digest_of, digest_of_file, read_json, save_arrays, slug, write_json
from exmap.pipeline.graph import Graph
from exmap.pipeline.looking import opened_run
from exmap.pipeline.outcome import agreement_with_truth, labels_of, labels_used, measure_on_test
from exmap.pipeline.plan import TEST, TRAIN, Plan, explained_name
from exmap.pipeline.plan_fits import add_methods, fit_name
from exmap.pipeline.plan_groups import CHOICE, add_groups, groups_name
from exmap.pipeline.provenance import identity_part, options_in_use
from exmap.pipeline.runner import Runner
from exmap.pipeline.runs import open_run
from exmap.precision import with_kept_precision
from exmap.records import Listener
from exmap.registry import LEARNERS
from exmap.results import read_cell
from exmap.settings import Settings, dump_settings, parse_settings

__all__ = ["CellPlace", "begin_run", "bench_graph", "forget_data", "make_steps", "measure_cells"]

SHARED_NEEDS = {"reference": "reference", "twins": "twins", "choice": CHOICE}  # steps that only some sources need


@dataclass(frozen=True)
class CellPlace:
    """Where the results of a cell lie.

    Attributes
    ----------
    folder : Path
        Of the bench.
    cell : Cell
    """

    folder: Path
    cell: Cell

    @property
    def path(self) -> Path:
        """The JSON file; the file of what was classified right stands beside it."""
        return self.folder / "cells" / self.cell.dataset / f"{slug(str(self.cell.method))}-seed{self.cell.seed}.json"

    @cached_property
    def identity(self) -> str:
        """What the cell depends on beside the images: the settings of its run, starting weights, and the method."""
        settings, method = self.cell.settings, self.cell.method
        weights = settings.model.weights
        learner = method.learner.name
        return digest_of(
            {
                "settings": identity_part(settings),
                "method": str(method),
                "weights": None if weights is None else digest_of_file(weights),
                "options": {} if learner == ERM else options_in_use(LEARNERS, learner, settings.retrain.options),
            }
        )

    def read(self) -> dict[str, Any] | None:
        """Return the finished cell, or None if there is none or it was made otherwise."""
        found = read_json(self.path)
        whole = isinstance(found, dict) and found.get("identity") == self.identity and found.get("status") == "done"
        if not whole or not self.path.with_suffix(".safetensors").is_file():
            return None
        return read_cell(found, where=self.path).to_json()

    def write(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write the JSON file, and return what stands in it."""
        cell = self.cell
        head = {"format": 1, "dataset": cell.dataset, "method": str(cell.method), "seed": cell.seed}
        written = read_cell({**head, **result, "identity": self.identity}).to_json()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, written)
        return written


def bench_graph(settings: Settings, task: Task | None, methods: list[Method]) -> Graph:
    """Return the graph of the methods of one data set and seed; without a task to see what needs what."""
    plan = Plan(settings, task, {} if task is None else dict(task.digests))
    for method in methods:
        for part, split in method.groupings(settings.groups.split):
            add_groups(plan, part, split)
    add_methods(plan, methods)
    return plan.graph()


@lru_cache(maxsize=1)  # a worker keeps the data set that it opened last
def _opened(settings: str) -> Task:
    tree = parse_settings(json.loads(settings))
    return build_task(tree.data, tree.images)


def _runner(folder: Path, settings: Settings, methods: list[Method], listen: Listener) -> Runner:
    data = {name: value for name, value in dump_settings(settings).items() if name in ("data", "images")}
    task, (run, before) = _opened(json.dumps(data)), opened_run(folder)
    settings = with_kept_precision(settings, before)
    runner = Runner(settings, bench_graph(settings, task, methods), lambda: task, run, listen=listen)
    runner.use(task)
    return runner


def forget_data() -> None:
    """Let go of the data set that this process opened last, so that the next bench sees changed files."""
    _opened.cache_clear()


def begin_run(folder: Path, settings: Settings, *, listen: Listener) -> None:
    """Make the run folder, and its classifier, heatmaps and test outputs."""
    open_run(folder, settings, change=(folder / "settings.yaml").is_file())  # steps say what they are made from
    runner = _runner(folder, settings, [], listen)
    if not runner.is_finished(TRAIN):
        check_before_work(runner.settings, runner.task(images=True), rehearse=settings.train.epochs > 0)
    runner.bring_up(runner.graph)


def make_steps(folder: Path, settings: Settings, methods: list[Method], names: list[str], *, listen: Listener) -> None:
    """Make some steps of a run that are not finished."""
    runner = _runner(folder, settings, methods, listen)
    runner.bring_up([runner.graph[name] for name in names])


def measure_cells(
    folder: Path, run_folder: Path, cells: tuple[Cell, ...], keep_models: bool, *, listen: Listener
) -> list[dict[str, Any]]:
    """Fit a learner once, choose from it by every cell's selection, and write the cells.

    Parameters
    ----------
    folder : Path
        Of the bench.
    run_folder : Path
    cells : tuple of Cell
        They differ in their selection alone.
    keep_models : bool
        Whether the weights are kept too (of a last layer's first repeat).
    """
    methods = [cell.method for cell in cells]
    runner = _runner(run_folder, cells[0].settings, methods, listen)
    results = []
    for cell in cells:
        place, method = CellPlace(folder, cell), cell.method
        if method.learner.name == ERM:
            fit = Fit(runner.record(TEST).predicted[None])
        else:
            fit = runner.record(fit_name(method))[str(method)]
        if keep_models:
            path = folder / "models" / cell.dataset / place.path.with_suffix(".safetensors").name
            path.parent.mkdir(parents=True, exist_ok=True)
            save_weights(fit.repaired(runner.record(TRAIN), runner.task(images=True).val), path)
        results.append(_measured(runner, place, fit))
    return results


def _measured(runner: Runner, place: CellPlace, fit: Fit) -> dict[str, Any]:
    """Write a cell: what was classified right first, then what was measured."""
    cell, task = place.cell, runner.task(images=True)
    method, settings, test = cell.method, cell.settings, task.test
    index, _ = reported_groups(test)
    place.path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"correct": (fit.predicted == test.labels).astype(np.uint8), "group": index}
    save_arrays(arrays, place.path.with_suffix(".safetensors"))
    result = measure_on_test(task, settings, fit.predicted, str(method)).changed(
        labels_used=_labels_used(settings, task, method), **_notes(runner, method, fit)
    )
    more: dict[str, Any] = {}
    shared, own = [TRAIN, TEST, explained_name(settings.groups.split)], []
    part, used = next(iter(method.groupings(settings.groups.split)), (None, ""))
    if part is not None and part.name == ClassGroups.name and method.source is None:
        part = None  # a choice by classes says nothing of groups
    if part is not None:
        groups, split = runner.record(groups_name(part, used)), task.split(used)
        more["n_clusters"] = [fit["n_clusters"] for fit in groups.clusters.notes] if groups.clusters else []
        more["groups_of"] = used
        if (agreement := agreement_with_truth(groups, split)) is not None:
            more["group_inference"] = agreement.to_json()
        shared.append(explained_name(used))
        needs = [SHARED_NEEDS[name] for name in needs_of(make_source(part, settings)) if name in SHARED_NEEDS]
        own = [groups_name(part, used), *needs]
    more["seconds"] = {
        "shared": _seconds(runner, shared),
        "groups": _seconds(runner, own),
        "fit": fit.seconds,
    }
    return place.write({"status": "done", **result.to_json(), **more})


def _seconds(runner: Runner, steps: list[str]) -> float:
    assert runner.run is not None
    spent = [float((runner.run.record(name) or {}).get("seconds", 0.0)) for name in dict.fromkeys(steps)]
    return round(sum(spent), 3)


def _notes(runner: Runner, method: Method, fit: Fit) -> dict[str, Any]:
    """Return how a fit was chosen, and what a reader should know of it."""
    if method.learner.name == ERM:
        return {}
    if fit.left_alone and not fit.first_line:
        remarks = runner.record(CHOICE).record.remarks if method.source == Part("auto") else ()
        return {"notes": ("the classifier is left as it is", *remarks)}
    said = {"notes": fit.notes, "harm": fit.harm, "first_line": fit.first_line}
    if fit.heads:
        return {"chosen": tuple(dict(head.chosen) for head in fit.heads), **said}
    return {"epoch": fit.epoch, **said}


def _labels_used(settings: Settings, task: Task, method: Method) -> dict[str, tuple[str, ...]]:
    def named(part: Part | None) -> tuple[str, ...]:
        return labels_of(part, oracle=part is not None and sees_truth(part, settings))

    used = labels_used(settings, task)
    chosen = used.pop("epoch_selection") if method.learner.name == ERM else named(method.selection)
    used.pop("epoch_selection", None)
    return {"training": used["training"], "fitting": named(method.source), "selection": chosen, **used}
