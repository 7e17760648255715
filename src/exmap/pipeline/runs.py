"""Open a run folder and bring it up to date as far as a stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from exmap.data import Task
from exmap.data.missing import MissingImages
from exmap.errors import DataError, RunFolderError, SettingsError, unknown_name
from exmap.explain import composite_names
from exmap.groups import ExMapGroups, check_channels, check_george, edit_groups, make_source
from exmap.homes import cache_remark
from exmap.methods import Part, parse_part
from exmap.pipeline.chain import Chain, plan_run, trained_apart
from exmap.pipeline.checks import check_before_work
from exmap.pipeline.disk import differences, write_json
from exmap.pipeline.graph import DATA
from exmap.pipeline.looking import gather_run, no_task, opened_run, publish, recorded_chain, recorded_task
from exmap.pipeline.opening import open_task
from exmap.pipeline.outcome import EVALUATE, REPORT
from exmap.pipeline.plan import TRAIN
from exmap.pipeline.plan_groups import groups_name
from exmap.pipeline.provenance import MANIFEST, identity_part, manifest, setting, without_places
from exmap.pipeline.runner import Runner, Say, assist
from exmap.pipeline.store import RunFolder
from exmap.precision import choose_precision, precision_remark, with_kept_precision
from exmap.records import Listener, silent
from exmap.registry import CLUSTERERS, DATASETS, EXPLAINERS, LEARNERS, MODELS
from exmap.results import Results, Rounds
from exmap.runtime import ProcessGroup, launched, launched_runtime
from exmap.settings import (
    RuntimeSettings,
    Settings,
    check_own_options,
    dump_settings,
    load_edits,
    parse_settings,
)

__all__ = ["assist_run", "finish", "open_run", "run_until", "runner_of", "with_edits"]

BEHIND_GROUPS = ("seed", "data", "images", "model", "train", "runtime", "explain", "cluster", "groups.split")


# Opening


def open_run(path: Path, settings: Settings | None = None, *, change: bool = False) -> tuple[RunFolder, Settings]:
    """Open a run folder for settings, or with its own.

    Parameters
    ----------
    path : Path
    settings : Settings, optional
        None reads the folder's own.
    change : bool
        Whether the folder may be given other settings than it was made with; steps they concern are then redone.

    Raises
    ------
    RunFolderError
        If there is no run there, or one made with other settings.
    """
    if settings is None:
        return opened_run(path)
    run = RunFolder(path, create=not change)
    kept = run.settings()
    if not change and not _is_begun(path):  # what failed before its work began may be given other settings
        kept = None
    _check_names(settings)
    before = None if kept is None else parse_settings(kept)
    settings = with_kept_precision(settings, before)
    if before is not None and change:
        _check_edits(run, before, settings)
        if (recorded := recorded_task(run, settings)) is not None:  # a folder keeps no settings that cannot be
            check_before_work(settings, recorded[0], rehearse=settings.explain != before.explain)
    if before is not None and not change:
        if settings.edits is None:  # they are of the run, not of what it was started with
            settings = settings.model_copy(update={"edits": before.edits})
        if before.groups.auto:  # likewise
            settings = settings.model_copy(update={"groups": settings.groups.model_copy(update={"auto": True})})
        known = dump_settings(before)  # with the defaults of settings that are newer than the folder
        if found := differences(_compared(known), _compared(dump_settings(settings))):
            raise RunFolderError(
                f"{path} holds a run made with other settings: {'; '.join(found)}; choose another --out, or change "
                "this run with one of its stages, for example exmap cluster RUN_DIR --set cluster.method=kmeans"
            )
    run.write_settings(dump_settings(settings))
    return run, settings


def _is_begun(path: Path) -> bool:
    """Return whether a run folder holds more than what was read of the data."""
    return path.is_dir() and any(item.is_dir() and item.name.partition(".")[0] != DATA for item in path.iterdir())


def _compared(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same of a run that is started again."""
    return {**without_places(tree), "groups": {k: v for k, v in tree["groups"].items() if k != "auto"}}


def _check_names(settings: Settings) -> None:
    """Refuse unknown names before any work is done."""
    check_own_options(settings)
    DATASETS.get(settings.data.name)
    MODELS.get(settings.model.name)
    LEARNERS.get(parse_part(settings.retrain.learner).name)
    for clustering in (settings.cluster, settings.groups.george):
        CLUSTERERS.get(clustering.method)
    explain = settings.explain
    EXPLAINERS.get(explain.explainer)
    composites = ["auto", *composite_names()]
    if explain.composite not in composites:
        raise SettingsError(unknown_name("composite", explain.composite, composites))
    check_george(settings.groups.george)
    check_channels(settings.cluster, explain)
    for text in settings.groups.sources:
        make_source(parse_part(text), settings)
    if ExMapGroups.name not in settings.groups.sources:
        raise SettingsError(f"groups.sources must contain exmap, got {', '.join(settings.groups.sources)}; add it")


def _check_edits(run: RunFolder, before: Settings, wanted: Settings) -> None:
    """Refuse settings that change the groups under a person's edits."""
    if wanted.edits is None:
        return
    step = groups_name(Part(ExMapGroups.name), before.groups.split)
    old, new = ({name: setting(identity_part(each), name) for name in BEHIND_GROUPS} for each in (before, wanted))
    if (found := differences(old, new)) and run.record(step) is not None:
        raise RunFolderError(
            f"edits belong to the groups they were made for, but other settings make other groups: "
            f"{'; '.join(found)}; also remove the edits with --set edits=null"
        )


def with_edits(run: RunFolder, settings: Settings, path: Path) -> Settings:
    """Return the settings of a run with a person's edits of its groups, from a file.

    Raises
    ------
    SettingsError
        If the file is no file of edits, or cannot be applied to the groups.
    RunFolderError
        If the groups are not there, or are not those that were edited.
    """
    step = groups_name(Part(ExMapGroups.name), settings.groups.split)
    edits, record = load_edits(path), run.record(step)
    if record is None:
        raise RunFolderError(f"{run.path} has no groups that could be edited; make them with exmap cluster {run.path}")
    chain = recorded_chain(run, settings)
    if chain is None or record["identity"] != chain.grouping:
        raise RunFolderError(
            f"the groups of {run.path} are not those that its settings make here, with this version of exmap; bring it "
            f"up to date with exmap evaluate {run.path}, look at the groups again and edit them"
        )
    if edits.grouping != record["identity"]:
        raise RunFolderError(
            f"{path} holds edits of other groups than those of {run.path}, which were made since or elsewhere; look at "
            "the groups again and edit them"
        )
    runner = Runner(settings, chain, partial(no_task, "are not needed here"), run)
    try:
        edit_groups(runner.record(step), edits, runner.record(chain.explained) if edits.of_images else None)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    return settings.model_copy(update={"edits": edits})


class _Source:
    """Opens the data of a run once, and says how quickly that went."""

    def __init__(self, settings: Settings, group: ProcessGroup | None, listen: Listener, say: Say) -> None:
        self.settings, self.group, self.listen, self.say = settings, group, listen, say
        self._task: Task | None = None

    def __call__(self) -> Task:
        """Return the task with its images."""
        if self._task is None:

            def read() -> Task:
                return open_task(self.settings, listen=self.listen)

            self._task = read() if self.group is None else self.group.first_of_each_host(read)
            _say_reading(self._task, self.settings, self.say)
        return self._task


def _say_reading(task: Task, settings: Settings, say: Say) -> None:
    """State how quickly image files were opened, where they just were, and what was done about the data."""
    rate = task.reading.get("images_per_second_when_opened", math.nan)
    if not math.isnan(rate):
        kept = "kept decoded" if task.reading["kept_decoded"] else "not kept decoded"
        say(f"data: {task.reading['images']:,} images opened, {rate:,.0f}/s, {kept}")
        if task.reading["kept_decoded"] and settings.images.cache_dir is None and (remark := cache_remark()):
            say(f"data: {remark}")
    for note in task.notes:
        say(f"data: {note}")


# Running


def run_until(
    run: RunFolder,
    settings: Settings,
    *,
    until: str = "report",
    look: bool = True,
    runtime: RuntimeSettings | None = None,
    listen: Listener = silent,
    say: Say,
) -> Results | None:
    """Bring a run up to date as far as a stage: skip what is finished, make what is missing or was made otherwise.

    Of processes that were launched together this is for the first one; the others call :func:`assist_run`.

    Parameters
    ----------
    run : RunFolder
    settings : Settings
    until : str
        The last stage.
    look : bool
        Whether the data are looked at even where nothing that is missing needs images: changed data are then noticed.
    runtime : RuntimeSettings, optional
        Where images are explained; by default where the classifier is trained.
    listen : Listener
    say : callable
        Is told in one line what happens to each step.

    Returns
    -------
    Results or None
        The results, once the run is evaluated.
    """
    return finish(runner_of(run, settings, look=look, runtime=runtime, listen=listen, say=say), run, until)


def finish(runner: Runner, run: RunFolder, until: str) -> Results | None:
    """Bring a planned run up to date as far as a stage; see :func:`run_until`."""
    kept = run.record(EVALUATE)
    if kept is not None and kept["identity"] != runner.graph.digest(EVALUATE):
        first = run.path.parent if run.path.name.startswith("round-") else run.path
        (first / Rounds.file_name).unlink(missing_ok=True)  # it tells of the results as they were
    runner.bring_up(runner.graph.until(until))
    results = publish(run, runner.graph) if until in (EVALUATE, REPORT) else None
    if until == REPORT:
        run.check(REPORT)
        run.tidy()
    if runner.group is not None:
        runner.group.share(None)
    return results


def runner_of(
    run: RunFolder,
    settings: Settings,
    *,
    look: bool,
    runtime: RuntimeSettings | None,
    listen: Listener,
    say: Say,
) -> Runner:
    """Meet the processes that were launched with this one, read the data where that is needed, and plan.

    The arguments are those of :func:`run_until`.
    """
    runtime = launched_runtime(runtime or settings.runtime)
    if launched() and (apart := trained_apart(settings)):
        raise SettingsError(
            f"{apart} trains networks in processes that it starts itself, but these were launched from outside; start "
            "exmap by itself with --devices, or leave that method out"
        )
    if launched() and runtime.engine != "local":
        raise SettingsError(
            f"runtime.engine={runtime.engine} starts its own workers, but these processes were launched from outside; "
            "start exmap by itself, or set runtime.engine=local"
        )
    group = ProcessGroup(runtime) if launched() else None
    if group is not None:  # with the edits and the choice of groups of the folder, which the command may not name
        group.share(dump_settings(_decided(settings)))
    source = _Source(settings, group, listen, say)
    recorded = None if look or group is not None else recorded_task(run, settings)
    if recorded is None:
        task = source()
        recorded = (task, dict(task.digests))
    chain = plan_run(settings, *recorded)
    _check_grouping(run, settings, chain)

    def opened() -> Task:
        task = source()
        if dict(task.digests) != recorded[1]:
            raise DataError(
                f"the data found are not those that {run.path} was made from; name their folder with --data-dir, or "
                f"repeat the run with exmap train {run.path}"
            )
        write_json(run.path / MANIFEST, manifest(settings, task))
        return task

    runner = Runner(settings, chain, opened, run, runtime, group, listen=listen, say=say)
    runner.gather = partial(gather_run, runner=runner, chain=chain, run=run)
    if not isinstance(recorded[0].val.images, MissingImages):
        runner.use(recorded[0])
        write_json(run.path / MANIFEST, manifest(settings, recorded[0]))
        if not runner.is_finished(TRAIN):
            check_before_work(settings, recorded[0], rehearse=settings.train.epochs > 0)
            if settings.train.epochs and not settings.model.trained:
                remark = precision_remark(settings.runtime)
                say(f"train: {remark}" if remark else f"runtime: training in {choose_precision(settings.runtime)}")
    return runner


def _decided(settings: Settings) -> Settings:
    """Return settings with the precision that this process would train in, so that all others do, too."""
    runtime = settings.runtime.model_copy(update={"precision": choose_precision(settings.runtime).precision})
    return settings.model_copy(update={"runtime": runtime})


def _check_grouping(run: RunFolder, settings: Settings, chain: Chain) -> None:
    """Refuse edits of groups that would now be others."""
    edits = settings.edits
    if edits is not None and chain.grouping != edits.grouping:
        raise RunFolderError(
            f"the edits of {run.path} belong to groups that would now be different, because their inputs changed "
            f"({edits.grouping[:8]} edited, {chain.grouping[:8]} here); remove the edits with --set edits=null"
        )


def assist_run(path: Path, settings: Settings, *, runtime: RuntimeSettings | None = None) -> None:
    """Do the share of a process that was launched with others, until the first one has brought the run up to date.

    Parameters
    ----------
    path : Path
        The run folder, the same one for all processes, on every host.
    settings, runtime
        As for :func:`run_until`.

    Raises
    ------
    ProcessError
        If another process ends before the work is done.
    """
    runtime = launched_runtime(runtime or settings.runtime)
    group = ProcessGroup(runtime)
    settings = parse_settings(group.share())
    task = _Source(settings, group, silent, lambda _: None)()
    graph = plan_run(settings, task, dict(task.digests))
    runner = Runner(settings, graph, lambda: task, RunFolder(path), runtime, group)
    runner.use(task)
    assist(path, runner)
