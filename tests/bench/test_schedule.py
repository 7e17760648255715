from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exmap.bench.schedule import Failure, Task, run_tasks
from exmap.errors import DataError
from exmap.records import Listener, Progress, silent


def leave(folder: Path, name: str, *, listen: Listener) -> str:
    listen(Progress("writing", 1, 1, "files"))
    (folder / name).write_text(f"{time.monotonic()}")
    return name


def refuse(*, listen: Listener) -> None:
    raise DataError("too few, at least 2 are needed; add some")


def stumble(*, listen: Listener) -> None:
    raise ZeroDivisionError("by zero")


def die(folder: Path, *, listen: Listener) -> None:
    (folder / "dying").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def outlive(folder: Path, *, listen: Listener) -> str:
    while not (folder / "dying").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    return "outlived"


def process(*, listen: Listener) -> int:
    return os.getpid()


def run(tasks: list[Task], jobs: int, listen: Listener = silent) -> dict[str, Any]:
    found: dict[str, Any] = {}
    run_tasks(tasks, jobs=jobs, listen=listen, threads=1, finished=lambda task, out: found.update({task.key: out}))
    return found


@dataclass(frozen=True)
class Ran:
    """What came of all tasks that are not killed: their outcomes, their progress, and what they wrote."""

    jobs: int
    found: dict[str, Any]
    heard: list[Progress]
    folder: Path

    def wrote(self, name: str) -> float:
        return float((self.folder / name).read_text())


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(1, id="in this process"),
        pytest.param(2, id="in two processes", marks=pytest.mark.long),  # which import all that a bench needs
    ],
)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder, heard = tmp_path_factory.mktemp("tasks"), []
    tasks = [
        Task("c", leave, (folder, "c"), ("a", "b")),
        Task("b", leave, (folder, "b"), ("a",)),
        Task("a", leave, (folder, "a"), title="first"),
        Task("bad", refuse),
        Task("after", leave, (folder, "after"), ("bad",)),
        Task("after that", leave, (folder, "that"), ("after",)),
        Task("other", leave, (folder, "other")),
        Task("bug", stumble),
        *(Task(f"process {n}", process) for n in range(3)),
    ]
    return Ran(request.param, run(tasks, request.param, heard.append), heard, folder)


def test_a_task_runs_after_what_it_needs_and_each_once(ran: Ran) -> None:
    assert [ran.found[name] for name in "abc"] == ["a", "b", "c"]
    times = [ran.wrote(name) for name in "abc"]
    assert times == sorted(times)
    assert "first: writing" in {progress.task for progress in ran.heard}


def test_a_failure_takes_only_those_with_it_that_need_it(ran: Ran) -> None:
    assert len(ran.found) == 11
    said = Failure("too few, at least 2 are needed; add some")
    assert ran.found["bad"] == ran.found["after"] == ran.found["after that"] == said
    assert ran.found["other"] == "other"
    assert ran.found["bug"].reason == "an unforeseen ZeroDivisionError: by zero"
    assert "in stumble" in ran.found["bug"].details
    assert not (ran.folder / "after").exists()


def test_one_job_is_this_process_and_several_are_others(ran: Ran) -> None:
    processes = {ran.found[f"process {n}"] for n in range(3)}
    assert (os.getpid() in processes) == (ran.jobs == 1)


@pytest.mark.long
def test_a_process_that_dies_ends_its_task_and_not_the_grid(tmp_path: Path) -> None:
    tasks = [
        Task("dies", die, (tmp_path,)),
        Task("needs it", process, (), ("dies",)),
        Task("beside", outlive, (tmp_path,)),
    ]
    tasks += [Task(f"later {n}", process) for n in range(3)]
    found = run(tasks, 2)
    assert found.keys() == {task.key for task in tasks}
    assert "a worker process died" in found["dies"].reason
    assert found["needs it"] == found["dies"]
    assert found["beside"] == "outlived"
    assert all(isinstance(found[f"later {n}"], int) for n in range(3))
