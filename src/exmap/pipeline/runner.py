"""Make what is missing of a graph: skip what is finished, redo what its settings changed, keep the rest in memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from exmap.analysis import Analysis
from exmap.cluster.sharing import shared_out
from exmap.data import Task
from exmap.data.missing import MissingImages
from exmap.engine import engine_of
from exmap.errors import DataError, SettingsError
from exmap.pipeline.graph import DATA, Graph, Step
from exmap.pipeline.store import RunFolder, StepFolder
from exmap.records import Listener, silent
from exmap.results import TrainedOn
from exmap.runtime import ProcessGroup
from exmap.settings import RuntimeSettings, Settings
from exmap.threads import choose_threads, computing_threads

__all__ = ["Runner", "StepWork"]

Say = Callable[[str], None]


def _say_nothing(_: str) -> None:
    """Ignore the message."""


@dataclass
class Runner:
    """Makes the steps of a graph and keeps their records.

    Parameters
    ----------
    settings : Settings
    graph : Graph
    open_task : callable
        Returns the task with its images; called once, when a step needs images.
    run : RunFolder, optional
        Where records are kept. Without one they stay in memory.
    runtime : RuntimeSettings, optional
        Where images are explained; by default where the classifier is trained.
    group : ProcessGroup, optional
        The processes that were launched with this one.
    records : dict
        Records that are given, by step.
    listen : Listener
    say : callable
        Is told in one line what happens to each step.
    gather : callable, optional
        Returns an analysis of what a work's records are.
    """

    settings: Settings
    graph: Graph
    open_task: Callable[[], Task]
    run: RunFolder | None = None
    runtime: RuntimeSettings | None = None
    group: ProcessGroup | None = None
    records: dict[str, Any] = field(default_factory=dict)
    listen: Listener = silent
    say: Say = _say_nothing
    gather: Callable[[StepWork], Analysis] | None = None
    _task: Task | None = None
    _threads: int | None = None

    def task(self, *, images: bool = False, looks: bool = False) -> Task:
        """Return the task, with its images if they are needed, or looked at and at hand, or were opened before."""
        if self._task is None and (images or looks):
            try:
                self._task = self.open_task()
            except (DataError, SettingsError, OSError):
                if images:
                    raise
        if self._task is not None:
            return self._task
        task: Task = self.record(DATA)
        return task

    def use(self, task: Task) -> None:
        """Take a task whose images are open."""
        self._task = task

    def is_finished(self, name: str) -> bool:
        """Return whether a step need not be made."""
        if name in self.records:
            return True
        if self.run is None or not self.run.is_finished(name, self.graph.identity(name)):
            return False
        if not (self.graph[name].looks and self._has_images()):
            return True
        return (self.run.record(name) or {}).get("with_images") is not False

    def _has_images(self) -> bool:
        """Return whether images were opened."""
        return self._task is not None and not isinstance(self._task.val.images, MissingImages)

    def bring_up(self, steps: Iterable[Step]) -> None:
        """Make what is missing of some steps, which come in an order in which they can be made."""
        by_stage: dict[str, list[Step]] = {}
        for step in steps:
            by_stage.setdefault(step.stage, []).append(step)
        for stage, of_stage in by_stage.items():
            if all(self.is_finished(step.name) for step in of_stage):
                if stage != DATA:
                    self.say(f"{stage}: finished before, kept")
                continue
            for step in of_stage:
                if not self.is_finished(step.name):
                    self._make(step)

    def make_again(self, name: str) -> None:
        """Make a step whether it is finished or not."""
        self._make(self.graph[name])

    def record(self, name: str) -> Any:
        """Return the record of a step, which is made if it is missing."""
        if name not in self.records:
            if not self.is_finished(name):
                self._make(self.graph[name])
            if name not in self.records and self.run is not None:
                step = self.graph[name]
                with self.run.reading(name) as folder:
                    self.records[name] = step.load(StepWork(self), folder)
        return self.records[name]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Let steps take the threads that were chosen when the first one was made, and the engine of the settings."""
        if self._threads is None:
            chosen = choose_threads(self.settings.runtime)
            self._threads = chosen.number
            self.say(f"runtime: {chosen}")
        with computing_threads(self._threads), shared_out(self._map_blocks, self.listen):
            yield

    def _map_blocks(
        self, function: Callable[[Any, Any], Any], shared: Any, blocks: Sequence[Any]
    ) -> Generator[Any, None, None]:
        """Map a function over blocks on the engine of the settings, which is made only once there are some."""
        engine = engine_of(self.runtime or self.settings.runtime, move=False)
        return engine.map_blocks(function, shared, blocks)

    def _make(self, step: Step) -> None:
        for need in step.needs:
            if not self.is_finished(need):
                self._make(self.graph[need])
        images = step.images or step.name == DATA
        if self.run is None:
            with self.working():
                self.records[step.name] = step.make(StepWork(self, images=images))
            return
        self.records.pop(step.name, None)
        (self.run.path / "results.json").unlink(missing_ok=True)
        with self.run.begin(step.name, self.graph.identity(step.name)) as part:
            if step.name != DATA:
                said = "continued" if part.resumed else "started"
                self.say(f"{step.stage}: {said}" if step.title == step.stage else f"{step.stage}, {step.title}: {said}")
            if self.group is not None and step.shared:
                self.group.share(step.name)
            work = StepWork(self, images=images, looks=step.looks, part=part)
            with self.working():
                record = step.make(work)
            if step.looks:
                part.measured["with_images"] = self._has_images()
            if record is not None:
                step.save(work, record, part.path)
                self.records[step.name] = record
        for later in self.graph.made_from(step.name):
            if not self.is_finished(later.name):
                self.run.discard(later.name)  # made from what has just been replaced


class StepWork:
    """What a step is made with; see :class:`exmap.pipeline.graph.Work`.

    Parameters
    ----------
    runner : Runner
    images, looks : bool
        Whether images are needed, or looked at where they are at hand.
    part : StepFolder, optional
        Where the step's files go.
    """

    def __init__(
        self, runner: Runner, *, images: bool = False, looks: bool = False, part: StepFolder | None = None
    ) -> None:
        self._runner, self._images, self._looks = runner, images, looks
        self.settings, self.listen = runner.settings, runner.listen
        self.runtime = runner.runtime or runner.settings.runtime
        self.folder: Path | None = None if part is None else part.path
        self.measured: dict[str, Any] = {} if part is None else part.measured

    @property
    def task(self) -> Task:
        """The data: with images where the step reads them, or where they were opened before."""
        return self._runner.task(images=self._images, looks=self._looks)

    def __getitem__(self, name: str) -> Any:
        """Return the record of another step."""
        return self._runner.record(name)

    def analysis(self) -> Analysis:
        """Return all that was made as an analysis."""
        assert self._runner.gather is not None
        return self._runner.gather(self)


def assist(path: Path, runner: Runner) -> None:
    """Do the share of a process that was launched with others, until the first one has brought the run up to date."""
    assert runner.group is not None
    while (name := runner.group.share()) is not None:
        step = runner.graph[name]
        with runner.working():
            step.make(StepWork(runner, images=step.images, part=StepFolder(path / f"{name}.part", resumed=False)))


def seconds_by_stage(run: RunFolder, graph: Graph) -> Mapping[str, Any]:
    """Return what results.json says of time and memory: sums over the steps of each stage."""
    records = {step.name: run.record(step.name) or {} for step in graph}
    seconds: dict[str, float] = {}
    speed: dict[str, float] = {}
    for step in graph:
        record = records[step.name]
        if record.get("seconds") is not None:
            seconds[step.stage] = round(seconds.get(step.stage, 0.0) + record["seconds"], 3)
        if "images_per_second" in record:
            speed.setdefault(step.stage, record["images_per_second"])
    return {
        "seconds": {**seconds, "total": round(sum(seconds.values()), 3)},
        "images_per_second": speed,
        "peak_memory_mib": max((record.get("peak_memory_mib") or 0.0 for record in records.values()), default=0.0),
        "trained_on": next(filter(None, map(_trained_on, records.values())), None),
    }


def _trained_on(record: Mapping[str, Any]) -> TrainedOn | None:
    """Return what a step's record says of training; None where it says nothing, or not in that form."""
    try:
        return TrainedOn.model_validate(record.get("trained_on"))
    except ValidationError:
        return None
