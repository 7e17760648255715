from __future__ import annotations

import os
import signal
import time
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


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_task_runs_after_what_it_needs_and_each_once(tmp_path: Path, jobs: int) -> None:
    tasks = [
        Task("c", leave, (tmp_path, "c"), ("a", "b")),
        Task("b", leave, (tmp_path, "b"), ("a",)),
        Task("a", leave, (tmp_path, "a"), title="first"),
    ]
    heard: list[Progress] = []
    assert run(tasks, jobs, heard.append) == {"a": "a", "b": "b", "c": "c"}
    times = [float((tmp_path / name).read_text()) for name in "abc"]
    assert times == sorted(times)
    assert "first: writing" in {progress.task for progress in heard}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_takes_only_those_with_it_that_need_it(tmp_path: Path, jobs: int) -> None:
    tasks = [
        Task("bad", refuse),
        Task("after", leave, (tmp_path, "after"), ("bad",)),
        Task("after that", leave, (tmp_path, "that"), ("after",)),
        Task("other", leave, (tmp_path, "other")),
        Task("bug", stumble),
    ]
    found = run(tasks, jobs)
    assert found.keys() == {"bad", "after", "after that", "other", "bug"}
    said = Failure("too few, at least 2 are needed; add some")
    assert found["bad"] == found["after"] == found["after that"] == said
    assert found["other"] == "other"
    assert found["bug"].reason == "an unforeseen ZeroDivisionError: by zero"
    assert "in stumble" in found["bug"].details
    assert not (tmp_path / "after").exists()


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


def test_several_jobs_are_several_processes() -> None:
    found = run([Task(f"{n}", process) for n in range(4)], 2)
    assert os.getpid() not in found.values()
    assert run([Task("here", process)], 1) == {"here": os.getpid()}
