"""Open what a run left: as an analysis, as a classifier, or to write its report again."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from torch import nn

from exmap.analysis import Analysis
from exmap.data import Task
from exmap.data.missing import MissingImages
from exmap.errors import DataError, RunFolderError, SettingsError
from exmap.pipeline.chain import Chain, plan_run
from exmap.pipeline.disk import read_json, write_json
from exmap.pipeline.facts import load_task
from exmap.pipeline.gather import gathered
from exmap.pipeline.graph import DATA, Graph
from exmap.pipeline.kept import kept_json
from exmap.pipeline.opening import open_task
from exmap.pipeline.outcome import EVALUATE, REPORT
from exmap.pipeline.plan import TRAIN, Plan
from exmap.pipeline.provenance import MANIFEST, identity_part, made_by
from exmap.pipeline.runner import Runner, Say, StepWork, seconds_by_stage
from exmap.pipeline.store import RunFolder
from exmap.records import Listener, silent
from exmap.results import Results
from exmap.settings import Settings, change_settings, parse_settings
from exmap.trusted import looking_only

__all__ = [
    "gather_run",
    "no_task",
    "open_analysis",
    "opened_run",
    "publish",
    "recorded_chain",
    "recorded_task",
    "report_run",
    "trained_classifier",
]


def recorded_task(run: RunFolder, settings: Settings) -> tuple[Task, dict[str, str]] | None:
    """Return the task that a run recorded, without images, and its inputs' digests; None if it is of other settings."""
    if run.record(DATA) is None:
        return None
    made_from = run.identity(DATA)["settings"]
    tree = identity_part(settings)
    now = json.loads(json.dumps({name: tree[name] for name in ("data", "images")}))
    if {name: made_from.get(name) for name in now} != now:
        return None
    with run.reading(DATA) as folder:
        return load_task(folder), dict(made_from["inputs"])


def recorded_chain(run: RunFolder, settings: Settings) -> Chain | None:
    """Return the graph of a run, of what it recorded of its data alone."""
    recorded = recorded_task(run, settings)
    return None if recorded is None else plan_run(settings, *recorded)


def no_task(why: str) -> Task:
    """Refuse to open the data, because they `why`."""
    raise DataError(f"images are needed here, but they {why}")


def gather_run(work: StepWork, runner: Runner, chain: Chain, run: RunFolder) -> Analysis:
    """Return all that a run has made as an analysis."""
    return gathered(
        work,
        runner,
        chain,
        made_by=made_by(read_json(run.path / MANIFEST)),
        results=_with_times(runner, run) if runner.is_finished(EVALUATE) else None,
        grouping=chain.grouping,
    )


def _with_times(runner: Runner, run: RunFolder) -> Results:
    results: Results = runner.record(EVALUATE)
    return results.changed(**seconds_by_stage(run, runner.graph))


def publish(run: RunFolder, graph: Graph) -> Results:
    """Write results.json at the top of the run folder: what evaluation found, with times and memory."""
    with run.reading(EVALUATE) as folder:
        path = folder / "results.json"
        results = Results.from_json(kept_json(path), where=path).changed(**seconds_by_stage(run, graph))
    write_json(run.path / "results.json", results.to_json())
    return results


def trained_classifier(
    path: Path, *, data_dir: Path | None = None, listen: Listener = silent
) -> tuple[nn.Module, Task]:
    """Return the classifier that a run trained, in evaluation mode, and the run's data with their images.

    Raises
    ------
    RunFolderError
        If there is no run, or it is not trained.
    """
    run, settings = opened_run(path)
    if run.record(TRAIN) is None:
        raise RunFolderError(f"{path} holds no trained classifier; train it with exmap train {path}")
    settings = change_settings(settings, data__dir=data_dir)
    task = open_task(settings, listen=listen)
    plan = Plan(settings, task, dict(task.digests))
    if not run.is_finished(TRAIN, plan.graph().identity(TRAIN)):
        raise RunFolderError(
            f"{path} holds a classifier that was trained with other settings or data; train it again with exmap train "
            f"{path}, or name the folder of its data with --data-dir"
        )
    with run.reading(TRAIN) as folder:
        return plan.network(folder), task


def opened_run(path: Path) -> tuple[RunFolder, Settings]:
    """Return an earlier run and its own settings."""
    run = RunFolder(path)
    kept = run.settings()
    assert kept is not None
    return run, parse_settings(kept)


def _finished_runner(run: RunFolder, settings: Settings, until: str, data_dir: Path | None, listen: Listener) -> Runner:
    """Return a runner of a run whose steps as far as a stage are finished, with images where they are at hand.

    Raises
    ------
    RunFolderError
        If a step is missing, or was made from what has been replaced since.
    """
    finish = f"bring it up to date with: exmap evaluate {run.path}"
    if run.record(DATA) is None:
        raise RunFolderError(f"{run.path} is not finished: its step data is missing; {finish}")
    recorded = recorded_task(run, settings)
    if recorded is None:
        raise RunFolderError(f"{run.path} is not finished: its settings name other data than it read; {finish}")
    why, task = "", None
    try:
        task = open_task(change_settings(settings, data__dir=data_dir), listen=listen)
        if dict(task.digests) != recorded[1]:
            why, task = "are not those that the run was made from", None
    except (DataError, SettingsError, OSError) as error:
        why = f"cannot be read ({error})"
    graph = plan_run(settings, *recorded)
    runner = Runner(settings, graph, partial(no_task, why), run, listen=listen)
    with run.reading(DATA) as folder:
        runner.use(task or load_task(folder, why))
    runner.gather = partial(gather_run, runner=runner, chain=graph, run=run)
    for step in graph.until(until):
        if not runner.is_finished(step.name):
            missing = "is missing" if run.record(step.name) is None else "was made with other settings since"
            raise RunFolderError(f"{run.path} is not finished: its step {step.name} {missing}; {finish}")
    return runner


def open_analysis(
    path: Path | str, *, data_dir: Path | str | None = None, trust: bool = False, listen: Listener = silent
) -> Analysis:
    """Open a run folder whose groups are made; nothing in it is changed, and nothing that it names is executed.

    Parameters
    ----------
    path : Path or str
    data_dir : Path or str, optional
        Where the data lie now; by default where the run found them. Without them the analysis has no images.
    trust : bool
        Whether a file of Python that the run names, or another function of somebody's own, may be executed, where the
        classifier or its images are asked for: the run is yours.
    listen : Listener

    Raises
    ------
    RunFolderError
        If there is no run, if its groups are not finished, or if they are of another classifier than the one there.
    SettingsError
        If the groups need something of somebody's own, and it is not trusted.
    """
    with looking_only(trust=trust):
        run, settings = opened_run(Path(path))
        runner = _finished_runner(run, settings, "cluster", None if data_dir is None else Path(data_dir), listen)
        assert runner.gather is not None
        return runner.gather(StepWork(runner, images=False))


def report_run(
    run: RunFolder, settings: Settings, *, trust: bool = False, listen: Listener = silent, say: Say
) -> Results:
    """Write the report of an evaluated run again; nothing is trained, and where images are not at hand it has none.

    Raises
    ------
    RunFolderError
        If the run is not finished, or its settings were changed since.
    SettingsError
        If it needs something of somebody's own, and `trust` does not allow it as in :func:`open_analysis`.
    """
    picture = run.folder(REPORT) / "strategies.png"
    kept = picture.read_bytes() if picture.is_file() else None
    with looking_only(trust=trust):
        runner = _finished_runner(run, settings, EVALUATE, settings.data.dir, listen)
        runner.say = say
        task = runner.task(images=False)
        if isinstance(task.val.images, MissingImages):
            say(f"report: without pictures, because the images {task.val.images.why}")
        runner.make_again(REPORT)
    if kept is not None and not picture.is_file():
        picture.write_bytes(kept)
    return publish(run, runner.graph)
