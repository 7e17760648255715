"""Helpers for tests of whole runs: the command line in and out of this process, and finished runs to copy."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from exmap import precision
from exmap.auto import Effort, choose_groups
from exmap.cli import main
from exmap.pipeline.graph import STAGES
from exmap.pipeline.kept import written_files
from exmap.pipeline.runs import open_run, run_until
from exmap.records import silent
from exmap.settings import Settings, change_settings, load_settings
from sharing import shared
from trees import waterbirds_tree

# A small network that learns the shortcut of the coloured digits in about a second, and little of what comes after.
CHEAP = (
    "model.name=tiny",
    "train.epochs=2",
    "train.learning_rate=0.05",
    "retrain.repeats=2",
    "retrain.subsamples=2",
    "retrain.tuning_splits=1",
    "retrain.strengths=[1, 0.1]",
    "evaluate.bootstrap=20",
)
SOURCES = ["classes", "error_set", "exmap", "george", "oracle", "random"]
STAGE_NAMES = list(STAGES[1:])  # the commands; each says of itself what it keeps
KEPT = [f"{name}: finished before, kept" for name in STAGE_NAMES]

LITTLE = Effort(  # of a choice among groupings: one halving of a handful
    sizes=1,
    clusterings=("gap=relative", "n_clusters=4"),
    fewest_halvings=1,
    most_halvings=1,
    refits=1,
    draws=20,
    curve_draws=2,
    strengths=(0.3,),
    tuning_splits=1,
    subsamples=2,
)

LONGEST = 600  # seconds that a process of its own may take; of what is no hang
PROGRESS = re.compile(r".* [\d,]+/[\d,]+ \w+, ")  # the lines that long work writes where there is no screen

PLAIN = """
import signal
from exmap.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and all they start
main()
"""


# Commands


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code and both streams."""

    code: int
    out: str
    err: str

    def is_one_sentence(self) -> bool:
        """Say whether the error stream holds one line of exmap's own beside those of progress, and no traceback."""
        lines = [line for line in self.err.splitlines() if line and not PROGRESS.match(line)]
        return len(lines) == 1 and lines[0].startswith("exmap: ") and "Traceback" not in self.out + self.err

    def refused(self) -> bool:
        """Say whether the command was refused in one sentence."""
        return self.code == 2 and self.is_one_sentence()

    def steps(self) -> list[str]:
        """Return what was said of stages and their steps."""
        return [line for line in self.out.splitlines() if line.split(":")[0].split(",")[0] in STAGES]


Give = Callable[..., Said]


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str | Path) -> Said:
    """Give a command in this process, through the same ``main`` as the installed script."""
    monkeypatch.setattr(sys, "argv", ["exmap", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main()
    streams = capsys.readouterr()
    return Said(int(left.value.code or 0), streams.out, streams.err)


def start_process(*words: str | Path) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", PLAIN, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_process(*words: str | Path) -> Said:
    """Give a command in a process of its own, and wait for its end."""
    process = start_process(*words)
    out, err = process.communicate(timeout=LONGEST)
    return Said(process.returncode, out, err)


def as_options(*overrides: str) -> list[str]:
    """Return overrides as the words of a command."""
    return [word for item in overrides for word in ("--set", item)]


# Runs


def cheap_settings(*overrides: str) -> Settings:
    """Return settings of a run over the coloured digits that takes seconds."""
    return load_settings("digits", [*CHEAP, *overrides])


def bring_up(
    folder: Path,
    settings: Settings | None = None,
    *,
    until: str = "report",
    change: bool = False,
    look: bool = True,
    listen: Any = silent,
) -> list[str]:
    """Bring a run up to date in this process, and return what was said of each step."""
    lines: list[str] = []
    run, settings = open_run(folder, settings, change=change)
    run_until(run, settings, until=until, look=look, listen=listen, say=lines.append)
    return [line for line in lines if not line.startswith("runtime: ")]  # what the machine is found to do


def changed(folder: Path, *overrides: str, until: str = "evaluate", look: bool = False) -> list[str]:
    """Give a run other settings as a stage's command does, and return what was said of each step."""
    _, settings = open_run(folder)
    return bring_up(folder, change_settings(settings, overrides), until=until, change=True, look=look)


@contextmanager
def little_choices() -> Iterator[None]:
    """Let runs choose among a handful of groupings, with :data:`LITTLE` effort."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exmap.pipeline.plan_groups.choose_groups", partial(choose_groups, effort=LITTLE))
        yield


def finished_run(factory: pytest.TempPathFactory) -> Path:
    """Return the one finished run of this session, whose classifier took the shortcut; copy it before changing it."""

    def make(folder: Path) -> None:
        with float32():
            bring_up(folder, cheap_settings())

    return shared(factory, "finished-run", make)


@contextmanager
def float32() -> Iterator[None]:
    """Train in float32 on processors of all kinds, while ``runtime.precision`` stays ``auto``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "_instructions", str)
        yield


def auto_run(factory: pytest.TempPathFactory) -> Path:
    """Return that run with a choice of groups, evaluated, of ExMap's groups alone; copy it before changing it."""
    finished = finished_run(factory)

    def make(folder: Path) -> None:
        copy_run(finished, folder)
        with little_choices():
            changed(folder, "groups.auto=true", "groups.sources=[exmap]")

    return shared(factory, "auto-run", make)


def moved_run(factory: pytest.TempPathFactory) -> Path:
    """Return a run, grouped but not retrained, whose image files moved to ``data`` beside it since; copy it first."""

    def make(folder: Path) -> None:
        tree = waterbirds_tree(folder / "waterbirds", {0: (30, 8, 8, 30), 1: (12, 7, 7, 12), 2: (6, 6, 6, 6)})
        settings = load_settings("waterbirds", [*SMALL, f"images.cache_dir={folder / 'cache'}"], data__dir=str(tree))
        bring_up(folder / "run", settings, until="cluster")
        tree.rename(folder / "data")

    return shared(factory, "moved-run", make) / "run"


SMALL = (  # of a run over small image files
    "model={name: tiny}",
    "images={resize: 20, crop: 16, workers: 0, cache: never}",
    "train={epochs: 1, batch_size: 16}",
    "explain={size: 8, batch_size: 32}",
    "retrain={repeats: 1, subsamples: 2, tuning_splits: 1, strengths: [1]}",
    "evaluate.bootstrap=20",
    "runtime.precision=32-true",
)


def copy_run(folder: Path, place: Path) -> Path:
    """Copy a run folder, with the times of its files."""
    return Path(shutil.copytree(folder, place))


# What a run left


def results_of(folder: Path) -> dict[str, Any]:
    """Return what stands in results.json."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    """Return results without what another run of the same settings need not repeat."""
    return {
        key: value for key, value in results.items() if key not in ("seconds", "images_per_second", "peak_memory_mib")
    }


def modification_times(folder: Path) -> dict[str, int]:
    """Return the time of each file of the finished steps."""
    files = (path for place in folder.iterdir() if place.is_dir() for path in place.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def redone(before: dict[str, int], folder: Path) -> set[str]:
    """Return the steps of a folder that hold a file which was not there `before`, at that time."""
    return {name.split("/")[0] for name, time in modification_times(folder).items() if before.get(name) != time}


def steps_of(methods: Iterable[str]) -> set[str]:
    """Return the names of the steps that fit methods."""
    return {f"fit-{method}" for method in methods}


def rewrite(path: Path, record: Any) -> None:
    """Write another record into a finished step, as if the step had made it."""
    path.write_text(json.dumps(record))
    done = path.parent / "done.json"
    marker = json.loads(done.read_text())
    done.write_text(json.dumps({**marker, "files": written_files(path.parent, done.name)}))
