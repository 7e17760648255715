"""Run a grid: plan its tasks, run them in parallel, and keep the tables up to date."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from exmap.bench import work
from exmap.bench.grid import Bench, Cell
from exmap.bench.schedule import Failure, Outcome, Task, run_tasks
from exmap.bench.tables import Row, cells_to_csv, summarise, to_csv
from exmap.bench.typeset import to_latex, to_markdown
from exmap.bench.work import CellPlace
from exmap.errors import RunFolderError
from exmap.evaluation import Difference, worst_group_difference
from exmap.methods import ERM, Method, parse_method
from exmap.pipeline.disk import slug, write_text
from exmap.pipeline.plan_fits import fit_name
from exmap.pipeline.store import holds_others
from exmap.plain_yaml import dump_yaml
from exmap.records import Listener, Progress, silent
from exmap.report import bench_figure
from exmap.runtime import generator
from exmap.settings import change_settings
from exmap.threads import usable_cores

__all__ = ["default_jobs", "run_bench"]

MOST_JOBS = 4  # by default: each worker holds a data set and a network
MARKER = "bench.yaml"  # what makes a folder that of a bench


def default_jobs(cells: list[Cell]) -> int:
    """Return how many processes pay: one per core on a CPU, one where an accelerator does the work."""
    import torch

    on_cpu = all(cell.settings.runtime.accelerator == "cpu" for cell in cells)
    if not on_cpu and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        return 1
    return min(MOST_JOBS, usable_cores())


def run_bench(
    bench: Bench,
    cells: list[Cell],
    folder: Path,
    *,
    jobs: int,
    keep_models: bool = False,
    listen: Listener = silent,
    say: Callable[[str], None],
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Run what is not finished of a grid, and write its tables.

    Parameters
    ----------
    bench : Bench
    cells : list of Cell
        Of :func:`exmap.bench.grid.plan`.
    folder : Path
        Where everything is kept; what an earlier run of the same grid finished there is kept.
    jobs : int
        Worker processes.
    keep_models : bool
        Whether the weights of every method are kept in ``models/``.
    listen : Listener
    say : callable
        Is told in one line of every cell as it is finished.

    Returns
    -------
    rows : list of Row
        Of the table.
    cells : list of dict
        Every cell, those that failed with their reason.

    Raises
    ------
    RunFolderError
        If the folder holds something else.
    """
    _open(folder, bench)
    work.forget_data()
    places = {_key(cell): CellPlace(folder, cell) for cell in cells}
    done = {key: found for key, place in places.items() if (found := place.read()) is not None}
    if done:
        say(f"{len(done)} of {len(cells)} cells were finished before, and are kept")
    missing = [cell for cell in cells if _key(cell) not in done]
    cores = usable_cores()
    tasks, fits = _tasks(folder, missing, keep_models=keep_models, readers=max(0, cores // jobs - 1))

    def table() -> list[dict[str, Any]]:
        shown = [_labelled(done[_key(cell)], bench) for cell in cells if _key(cell) in done]
        write_text(folder / "cells.csv", cells_to_csv(shown))
        return shown

    def finished(task: Task, outcome: Outcome) -> None:
        concerned = fits.get(task.key, ())
        if isinstance(outcome, Failure):
            for cell in concerned:
                result = {"status": "failed", "reason": outcome.reason, "details": outcome.details}
                done[_key(cell)] = places[_key(cell)].write(result)
                say(f"{cell.dataset}, seed {cell.seed}: {cell.method} failed: {outcome.reason}")
        elif concerned:
            for cell, result in zip(concerned, outcome, strict=True):
                done[_key(cell)] = result
                worst, mean = (100 * result[key] for key in ("worst_group_accuracy", "mean_accuracy"))
                say(
                    f"{cell.dataset}, seed {cell.seed}: {cell.method} {worst:.1f} / {mean:.1f} "
                    f"({result['seconds']['fit']:.0f} s)"
                )
        else:
            say(f"{task.key.replace(' |', ':')} ready")
        if concerned:
            table()
            listen(Progress("cells", len(done), len(cells), "cells"))

    threads = max(1, usable_cores(physical=True) // jobs)
    run_tasks(tasks, jobs=jobs, listen=listen, finished=finished, threads=threads)
    shown = table()
    rows = _write_tables(folder, bench, cells, shown)
    return rows, shown


def _key(cell: Cell) -> tuple[str, int, str]:
    return cell.dataset, cell.seed, str(cell.method)


def _labelled(result: dict[str, Any], bench: Bench) -> dict[str, Any]:
    return {**result, "label": bench.labels.get(result["method"])}


def _open(folder: Path, bench: Bench) -> None:
    """Make the folder of a bench, or check that it is one."""
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"a bench needs a directory, but {folder} is a file; choose another --out")
    if folder.is_dir() and holds_others(folder) and not (folder / MARKER).is_file():
        raise RunFolderError(
            f"a bench needs a new or empty folder or its own, but {folder} holds other files; choose another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MARKER, dump_yaml({"format": 1, **bench.model_dump(mode="json")}))


def _tasks(
    folder: Path, cells: list[Cell], *, keep_models: bool, readers: int
) -> tuple[list[Task], dict[str, tuple[Cell, ...]]]:
    """Return the tasks that make the cells, and the cells of each fit by the key of its task."""
    together: dict[tuple[str, int, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        method = replace(cell.method, selection=None) if cell.method.whole_network else cell.method  # one fit for all
        settings = cell.settings
        if settings.images.workers is None:
            settings = change_settings(settings, images__workers=readers)
        together[cell.dataset, cell.seed, str(method)].append(replace(cell, settings=settings))
    of_run: dict[tuple[str, int], list[Method]] = defaultdict(list)
    for (dataset, seed, _), fitted in together.items():
        of_run[dataset, seed] += [cell.method for cell in fitted]
    runs: dict[tuple[str, int], _Run] = {}
    fits = {}
    for (dataset, seed, fit), fitted in together.items():
        if (dataset, seed) not in runs:
            runs[dataset, seed] = _Run(folder, fitted[0], of_run[dataset, seed])
        run = runs[dataset, seed]
        fits[run.fit(folder, fit, tuple(fitted), keep_models)] = tuple(fitted)
    return [task for run in runs.values() for task in run.tasks.values()], fits


class _Run:
    """The tasks of one data set and seed, each once however many cells share it.

    Parameters
    ----------
    folder : Path
        Of the bench.
    first : Cell
    methods : list of Method
        All of this data set and seed.
    """

    def __init__(self, folder: Path, first: Cell, methods: list[Method]) -> None:
        self.settings = first.settings
        self.title = f"{first.dataset} {first.seed}"
        self.folder = folder / "runs" / f"{first.dataset}-seed{first.seed}"
        self.tasks: dict[str, Task] = {}
        self.base = self._add("classifier and heatmaps", work.begin_run, self.folder, self.settings)
        self.graph = work.bench_graph(self.settings, None, methods)
        self.begun = {step.name for step in work.bench_graph(self.settings, None, [])}

    def _add(self, name: str, function: Any, *arguments: Any, needs: Iterable[str] = ()) -> str:
        key = f"{self.title} | {name}"
        self.tasks.setdefault(key, Task(key, function, arguments, tuple(dict.fromkeys(needs)), self.title))
        return key

    def _step(self, name: str, methods: list[Method]) -> str:
        """Return the task that makes a step of some methods, after those that it needs."""
        if name in self.begun:
            return self.base
        step = self.graph[name]
        needs = [self.base, *(self._step(need, methods) for need in step.needs)]
        return self._add(step.title, work.make_steps, self.folder, self.settings, methods, [name], needs=needs)

    def fit(self, folder: Path, name: str, cells: tuple[Cell, ...], keep_models: bool) -> str:
        """Add a fit and all that it needs."""
        needs = [self.base]
        if cells[0].method.learner.name != ERM:
            methods = [cell.method for cell in cells]
            needs += [self._step(need, methods) for need in self.graph[fit_name(methods[0])].needs]
        return self._add(f"fit of {name}", work.measure_cells, folder, self.folder, cells, keep_models, needs=needs)


def _write_tables(folder: Path, bench: Bench, cells: list[Cell], shown: list[dict[str, Any]]) -> list[Row]:
    """Write table.csv, table.md, table.tex, and a figure per data set."""
    reference = str(parse_method(bench.reference))
    methods = defaultdict(set)
    for result in shown:
        if result["status"] == "done":
            methods[result["dataset"]].add(result["method"])
    references = {name: reference if reference in found else ERM for name, found in methods.items()}
    rows = summarise(shown, _comparisons(folder, cells, references))
    write_text(folder / "table.csv", to_csv(rows))
    write_text(folder / "table.md", to_markdown(rows, reference=references))
    write_text(folder / "table.tex", to_latex(rows, reference=references))
    for dataset in methods:
        own = [row for row in rows if row.dataset == dataset and row.seeds]
        seeds = sorted({seed for row in own for seed in row.seeds})
        worst = np.array([[row.worst_by_seed.get(seed) for seed in seeds] for row in own], dtype=np.float64)
        mean = np.array([[row.mean_by_seed.get(seed) for seed in seeds] for row in own], dtype=np.float64)
        oracles = np.array([row.oracle for row in own])
        figure = bench_figure(dataset, [row.shown for row in own], worst, mean, oracles)
        figure.savefig(folder / f"figure-{slug(dataset)}.png", dpi=130)
    return rows


def _comparisons(folder: Path, cells: list[Cell], references: Mapping[str, str]) -> dict[tuple[str, str], Difference]:
    """Compare every method with its data set's reference, over the seeds that both have finished."""
    found: dict[tuple[str, str], dict[int, CellPlace]] = defaultdict(dict)
    for cell in cells:
        place = CellPlace(folder, cell)
        if place.read() is not None:
            found[cell.dataset, str(cell.method)][cell.seed] = place
    compared = {}
    for (dataset, method), places in found.items():
        against = found.get((dataset, references.get(dataset, "")), {})
        seeds = sorted(set(places) & set(against))
        if not seeds or method == references[dataset]:
            continue
        arrays = [[load_file(p[seed].path.with_suffix(".safetensors")) for seed in seeds] for p in (places, against)]
        first, second = ([array["correct"].astype(np.bool_) for array in side] for side in arrays)
        rng = generator(0, "comparison", dataset, method)
        compared[dataset, method] = worst_group_difference(first, second, arrays[0][0]["group"], rng=rng)
    return compared
