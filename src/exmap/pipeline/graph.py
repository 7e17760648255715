"""A step is a row: its name, what it needs, the settings it depends on, and how its record is made, saved and loaded.

A step's identity is the digest of its own settings and of the identities of what it needs, so a change reaches what is
made from it and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Protocol

from exmap.data import Task
from exmap.pipeline.disk import digest_of
from exmap.records import Listener
from exmap.runtime import child_seed
from exmap.settings import RuntimeSettings, Settings

__all__ = ["DATA", "STAGES", "Graph", "Step", "Work", "seed_of"]

DATA = "data"  # the step that all others need
STAGES = ("data", "train", "explain", "cluster", "retrain", "evaluate", "report")  # the commands, in order


class Work(Protocol):
    """What a step is made with.

    Attributes
    ----------
    settings : Settings
    folder : Path or None
        Where the step may write; None where nothing is kept.
    runtime : RuntimeSettings
        Where images are explained: perhaps by other processes than train, which makes no difference to heatmaps.
    listen : Listener
    measured : dict
        What is to stand in the step's ``done.json``, to be filled.
    """

    settings: Settings
    folder: Path | None
    runtime: RuntimeSettings
    listen: Listener
    measured: dict[str, Any]

    @property
    def task(self) -> Task:
        """The data: with images where the step reads them, or where they were opened before."""
        ...

    def __getitem__(self, name: str) -> Any:
        """Return the record of another step."""
        ...


def seed_of(work: Work, *names: str | int) -> int:
    """Return the seed of one part of a run."""
    return child_seed(work.settings.seed, *names)


def _no_load(work: Work, folder: Path) -> Any:
    return None


def _no_save(work: Work, record: Any, folder: Path) -> None:
    return None


@dataclass(frozen=True)
class Step:
    """One row of the graph.

    Attributes
    ----------
    name : str
        Also the name of its folder in a run.
    stage : str
        The command that makes it, one of :data:`STAGES`.
    title : str
        What a user reads while it is made.
    make : callable
        Returns the record; a step that writes its files itself returns None, and is then loaded.
    save : callable
        Writes a record into a folder: ``save(work, record, folder)``.
    load : callable
        Returns the record from a folder: ``load(work, folder)``.
    needs : tuple of str
        Steps that are made before.
    asks : tuple of str
        Steps that are made when the step asks for them; they belong to its identity, too.
    settings : mapping
        What it depends on beside its needs, as JSON-able values.
    shared : bool
        Whether all processes of a run make it together; the others are made by the first one.
    images : bool
        Whether it needs images; the others work in a folder that was copied without them.
    looks : bool
        Whether it looks at images where they are at hand; what was made without them is made again once they are.
    """

    name: str
    stage: str
    title: str
    make: Callable[[Work], Any]
    save: Callable[[Work, Any, Path], None] = _no_save
    load: Callable[[Work, Path], Any] = _no_load
    needs: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    images: bool = False
    looks: bool = False


class Graph:
    """Steps by name, in an order in which they can be made.

    Parameters
    ----------
    steps : iterable of Step
        Whatever they need must be among them.
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        given = {step.name: step for step in steps}
        order = TopologicalSorter({name: (*step.needs, *step.asks) for name, step in given.items()})
        self._steps = {name: given[name] for name in order.static_order()}
        self._identities: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> Step:
        return self._steps[name]

    def __contains__(self, name: object) -> bool:
        return name in self._steps

    def __iter__(self) -> Iterator[Step]:
        return iter(self._steps.values())

    def identity(self, name: str) -> dict[str, Any]:
        """Return what a step is made from: its settings, and the digests of what it needs."""
        if name not in self._identities:
            step = self._steps[name]
            needs = {need: self.digest(need) for need in (*step.needs, *step.asks)}
            self._identities[name] = {"settings": dict(step.settings), "needs": needs}
        return self._identities[name]

    def digest(self, name: str) -> str:
        """Return the digest of a step's identity."""
        return digest_of(self.identity(name))

    def until(self, stage: str) -> list[Step]:
        """Return the steps of a stage and of those before it that are not only made when asked for."""
        last = STAGES.index(stage)
        wanted = [step.name for step in self if STAGES.index(step.stage) <= last and not self._only_asked(step.name)]
        needed = self.with_needs(wanted)
        return [step for step in self if step.name in needed]

    def with_needs(self, names: Iterable[str]) -> set[str]:
        """Return the names of steps and of all that they need."""
        found: set[str] = set()
        left = list(names)
        while left:
            name = left.pop()
            if name not in found:
                found.add(name)
                left += self._steps[name].needs
        return found

    def made_from(self, name: str) -> list[Step]:
        """Return the steps that are made from a step, in order."""
        found = {name}
        for step in self:
            if found & {*step.needs, *step.asks}:
                found.add(step.name)
        return [step for step in self if step.name in found - {name}]

    def _only_asked(self, name: str) -> bool:
        """Return whether a step is made only when another step asks for it."""
        users = [step for step in self if name in (*step.needs, *step.asks)]
        return bool(users) and all(name not in step.needs or self._only_asked(step.name) for step in users)
