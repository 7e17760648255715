"""Helpers for tests of whole runs: the command line in and out of this process, and one cheap finished run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exmap.cli import main
from exmap.config import Settings, load_settings
from exmap.records import silent
from exmap.stages import open_run, run_stages
from trees import waterbirds_tree

CHEAP = (
    "train.epochs=1",
    "retrain.repeats=2",
    "retrain.subsamples=3",
    "retrain.tuning_splits=2",
    "model.stem=imagenet",
)
STAGE_NAMES = ["train", "explain", "cluster", "retrain", "evaluate", "report"]

PROGRESS = re.compile(r".* [\d,]+/[\d,]+ \w+, ")  # the lines that long work writes where there is no screen

PLAIN = """
import signal
from exmap.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and all they start
main()
"""

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv = ["exmap", *sys.argv[2:]]
from exmap.cli import main
main()
"""


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


def cheap_settings(*overrides: str) -> Settings:
    return load_settings("digits", [*CHEAP, *overrides])


def as_options(*overrides: str) -> list[str]:
    return [word for item in overrides for word in ("--set", item)]


def bring_up(
    folder: Path, settings: Settings | None = None, *, until: str = "report", change: bool = False, listen: Any = silent
) -> list[str]:
    """Run the stages in this process and return what was said of each."""
    lines: list[str] = []
    run, settings = open_run(folder, settings, change=change)
    run_stages(run, settings, until=until, listen=listen, say=lines.append)
    return lines


def trained_run(base: Path) -> Path:
    """Return a finished run whose classifier is well above chance, however training rounds; made once in a session."""
    folder = base / "trained-run"
    if not (folder / "results.json").exists():
        bring_up(folder, cheap_settings("train.epochs=6", "model.stem=3x3"))
    return folder


def finished_run(base: Path) -> Path:
    """Return the one cheap finished run of this session, made on first use; copy it before changing it."""
    folder = base / "finished-run"
    if not (folder / "results.json").exists():
        bring_up(folder, cheap_settings())
    return folder


def copy_run(folder: Path, place: Path) -> Path:
    """Copy a run folder; large files, which are only ever replaced as a whole, are linked."""

    def copy(source: str, target: str) -> None:
        (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)

    return Path(shutil.copytree(folder, place, copy_function=copy))


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str | Path) -> Said:
    """Give a command in this process, through the same ``main`` as the installed script."""
    monkeypatch.setattr(sys, "argv", ["exmap", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main()
    streams = capsys.readouterr()
    return Said(int(left.value.code or 0), streams.out, streams.err)


def start_process(*words: str | Path, file_limit: int | None = None) -> subprocess.Popen[str]:
    """Start a command in a process of its own, with a largest file size if one is given (a full disk)."""
    start = ["-c", PLAIN] if file_limit is None else ["-c", LIMITED, str(file_limit)]
    return subprocess.Popen(
        [sys.executable, *start, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_process(*words: str | Path, file_limit: int | None = None) -> Said:
    """Give a command in a process of its own, and wait for its end."""
    process = start_process(*words, file_limit=file_limit)
    out, err = process.communicate(timeout=120)
    return Said(process.returncode, out, err)


def modification_times(folder: Path) -> dict[str, int]:
    """Return the time of each file of the finished stages."""
    files = (path for name in STAGE_NAMES for path in (folder / name).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in results.items() if key not in ("seconds", "images_per_second", "peak_memory_mib")
    }


def moved_run(base: Path) -> Path:
    """Return the one run, grouped but not retrained, whose image files moved to ``moved-data`` since; copy it first."""
    folder, data = base / "moved-run", base / "moved-data"
    if not data.exists():
        tree = waterbirds_tree(base / "waterbirds", {0: (30, 8, 8, 30), 1: (12, 7, 7, 12), 2: (6, 6, 6, 6)})
        images = f"images={{resize: 20, crop: 16, workers: 0, cache: never, cache_dir: {base / 'cache'}}}"
        small = (
            "model={name: resnet18, stem: imagenet}",
            "train={epochs: 1, batch_size: 16}",
            "runtime.precision=32-true",
        )
        settings = load_settings(
            "waterbirds", [images, *small, "explain={size: 8, batch_size: 32}"], data__dir=str(tree)
        )
        bring_up(folder, settings, until="cluster")
        tree.rename(data)
    return folder
