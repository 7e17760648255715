"""A case of the whole program: a command in a folder of its own, and how it is judged."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forked import Said, forked, fresh, without_drawing
from judging import faults_of_numbers, faults_of_saying
from materials import Materials

__all__ = ["Case", "Maker", "checked_run", "try_case"]


LIMIT = 240.0  # seconds, a quarter of them of the processor: a hundred times what a case takes


@dataclass
class Case:
    """A command to be judged.

    Attributes
    ----------
    what : str
        In words, for the list of faults.
    words : list
        What stands after ``exmap``.
    environment : mapping
        Variables beside the usual ones; None takes one away.
    check : callable, optional
        Given what was said, returns further faults.
    fresh : bool
        Whether a new interpreter is needed.
    before : callable, optional
        Called in the command's process.
    """

    what: str
    words: list[Any]
    environment: Mapping[str, str | None] = field(default_factory=dict)
    check: Callable[[Said], list[str]] | None = None
    fresh: bool = False
    before: Callable[[], object] | None = None


Maker = Callable[[random.Random, Path, Materials], Case]


def try_case(case: Case, place: Path) -> tuple[Said, list[str]]:
    """Give the command of a case, and return what it said and what was wrong with it."""
    environment = dict(os.environ)
    for key, value in case.environment.items():
        environment.pop(key, None)
        if value is not None:
            environment[key] = value

    def before() -> None:
        if case.words[:1] == ["run"]:  # pictures are drawn where a case is one of `report`, or of `figures`
            without_drawing()
        if case.before is not None:
            case.before()

    if case.fresh:
        said = fresh(case.words, folder=place, environment=environment, seconds=LIMIT)
    else:
        said = forked(case.words, folder=place, environment=environment, seconds=LIMIT, before=before)
    faults = faults_of_saying(said, [os.fsdecode(word) for word in case.words])
    if case.check is not None and not faults:
        faults += case.check(said)
    return said, faults


def checked_run(run: Path, said: Said) -> list[str]:
    return faults_of_numbers(run) if said.code == 0 and (run / "results.json").exists() else []
