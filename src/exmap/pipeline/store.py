"""The run folder: one directory per finished step, written beside its place and renamed into it last.

A step's directory is called ``STEP.part`` while it is written. It gets its ``done.json`` when everything else is in it,
and is then renamed to ``STEP``. So a directory without ``done.json`` was interrupted, and is never taken for finished.
``identity.json`` in it says from which settings and inputs it was made; a step whose identity changed is made again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from exmap.errors import RunFolderError
from exmap.pipeline.disk import digest_of, no_nan, read_json, write_json, write_text

__all__ = [
    "FORMAT",
    "RunFolder",
    "StepFolder",
    "holds_others",
    "move_into_place",
    "sole_writer",
]

FORMAT = 2  # of the run folder as a whole; a reader refuses a later one
LOCK = ".lock"  # held by the process that writes into the folder; the system lets go of it when that ends

Identity = Mapping[str, Any]


def peak_memory_mib() -> float:
    """Return the largest resident size this process, or any of its finished children, has had, in MiB.

    NaN on systems that do not tell.
    """
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / unit


class StepFolder:
    """The directory of a step while it is written, and what was measured of its making, for ``done.json``."""

    def __init__(self, path: Path, resumed: bool) -> None:
        self.path = path
        self.resumed = resumed
        self.measured: dict[str, float] = {}


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Let this process alone write into a folder, which is made if it is not there.

    For a whole command, whose steps may be written by processes of its own. What a killed process held is free.

    Raises
    ------
    RunFolderError
        If another process is at work there.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        yield  # whoever opens it says what is wrong
        return
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunFolderError(
            f"one command at a time may write into {folder}, and another is at work there; wait until it has ended, or "
            "choose another folder"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()


def holds_others(folder: Path, *known: str) -> bool:
    """Say whether a directory holds anything but a lock and the files of these names."""
    return any(item.name not in (LOCK, *known) for item in folder.iterdir())


class RunFolder:
    """A directory that holds one run.

    Parameters
    ----------
    path : Path
        Made if it does not exist.

    Raises
    ------
    RunFolderError
        If the path is a file, holds something else, or was written by a later version.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"a run folder must be a directory, but {path} is a file; choose another --out")
        marker = path / "settings.yaml"
        if not marker.is_file():
            if not create:
                raise RunFolderError(
                    f"{path} is not a run folder: it holds no settings.yaml; start one with exmap run PRESET --out DIR"
                )
            if path.is_dir() and holds_others(path, "settings.yaml.part"):
                raise RunFolderError(
                    f"a run folder must be new, empty or an earlier run, but {path} holds other files; choose another "
                    "--out"
                )
            try:
                path.mkdir(parents=True, exist_ok=True)
            except NotADirectoryError as error:
                raise RunFolderError(f"a run folder must lie in a directory, but {path} is below a file") from error
        elif (found := self._read_settings().get("format")) != FORMAT:
            raise RunFolderError(
                f"{path} must be of run-folder format {FORMAT}, found {found!r}; look at it with the version of exmap "
                "it was made with, or run it again with another --out"
            )

    def settings(self) -> dict[str, Any] | None:
        """Return the settings the folder was made with, or None for a new one."""
        if not (self.path / "settings.yaml").is_file():
            return None
        settings: dict[str, Any] = self._read_settings()["settings"]
        return settings

    def _read_settings(self) -> dict[str, Any]:
        marker = self.path / "settings.yaml"
        try:
            tree = yaml.safe_load(marker.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError):
            tree = None
        if not isinstance(tree, dict) or ("settings" not in tree and tree.get("format") == FORMAT):
            raise RunFolderError(
                f"{marker} must hold the format and the settings of a run, but it cannot be read as such; choose "
                "another --out"
            )
        return tree

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings of the run."""
        tree = {"format": FORMAT, "settings": dict(settings)}
        write_text(self.path / "settings.yaml", yaml.safe_dump(tree, sort_keys=False))

    def folder(self, name: str) -> Path:
        """Return the directory of a finished step."""
        return self.path / name

    def record(self, name: str) -> dict[str, Any] | None:
        """Return what ``done.json`` says of a step, or None if the step is not finished."""
        part, place = self.path / f"{name}.part", self.path / name
        if read_json(part / "done.json") is not None:  # stopped between the marker and the rename
            move_into_place(part, place)
        record: dict[str, Any] | None = read_json(place / "done.json")
        return record

    def discard(self, name: str) -> None:
        """Delete what a finished step left, because what it was made from is no longer so."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def is_finished(self, name: str, identity: Identity) -> bool:
        """Return whether a step is finished and was made from `identity`."""
        record = self.record(name)
        return record is not None and record["identity"] == digest_of(identity)

    @contextmanager
    def begin(self, name: str, identity: Identity) -> Iterator[StepFolder]:
        """Give a directory to write a step into, and put it into its place when the block ends well.

        What an interrupted attempt with the same identity left is kept there for the block to continue from.
        """
        path = self.path / f"{name}.part"
        resumed = read_json(path / "identity.json") == json.loads(json.dumps(no_nan(identity)))
        if not resumed:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            write_json(path / "identity.json", identity)
        (path / "done.json").unlink(missing_ok=True)
        before = _seconds_spent(path)
        start = time.time()
        write_json(path / "attempt.json", {"seconds_before": before, "started": start})
        part = StepFolder(path, resumed)
        yield part
        (path / "attempt.json").unlink()
        seconds = time.time() - start + before
        write_json(
            path / "done.json",
            {
                "format": FORMAT,
                "identity": digest_of(identity),
                "seconds": round(seconds, 3),
                "peak_memory_mib": round(peak_memory_mib(), 1),
                **part.measured,
            },
        )
        move_into_place(path, self.path / name)


def _seconds_spent(part: Path) -> float:
    """Return the seconds that interrupted attempts at a step spent, until the last file they wrote."""
    attempt = read_json(part / "attempt.json")
    if attempt is None:
        return 0.0
    last = max(file.stat().st_mtime for file in part.iterdir())
    return float(attempt["seconds_before"] + max(0.0, last - attempt["started"]))


def move_into_place(part: Path, place: Path) -> None:
    """Rename a finished directory into its place, moving away what was there."""
    old = place.with_name(place.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(part, place)
    shutil.rmtree(old, ignore_errors=True)
