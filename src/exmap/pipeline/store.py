"""The run folder: one directory per finished step, written beside its place and renamed into it last.

A step's directory is called ``STEP.part`` while it is written. It gets its ``done.json`` when everything else is in it,
and is then renamed to ``STEP``. So a directory without ``done.json`` was interrupted, and is never taken for finished.
``identity.json`` in it says from which settings and inputs it was made; a step whose identity changed is made again.
``done.json`` holds the size and the digest of every other file, so that none is taken for what it no longer is.
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

from exmap.errors import ExMapError, RunFolderError
from exmap.pipeline.disk import digest_of, no_nan, read_json, write_json, write_text
from exmap.pipeline.kept import DamagedError, check_whole, kept_json, written_files
from exmap.plain_yaml import dump_yaml, read_yaml

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
SETTINGS, OLD = "settings.yaml", ".old"
DONE, IDENTITY, ATTEMPT = "done.json", "identity.json", "attempt.json"
MEASURED = ("seconds", "peak_memory_mib", "images_per_second")  # numbers in done.json, or null

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
        self.measured: dict[str, Any] = {}


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
            f"only one command at a time may write into {folder}, and another is running; wait until it has ended, or "
            "choose another folder"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()


def holds_others(folder: Path, *known: str) -> bool:
    """State whether a directory holds anything but a lock and the files of these names."""
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
        marker = path / SETTINGS
        if not marker.is_file():
            if not create:
                raise RunFolderError(
                    f"{path} is not a run folder: it holds no settings.yaml; start one with exmap run PRESET --out DIR"
                )
            if path.is_dir() and holds_others(path, f"{SETTINGS}.part"):
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
                f"{path} must be of run-folder format {FORMAT}, found {found!r}; open it with the version of exmap "
                "that made it, or run it again with another --out"
            )

    def settings(self) -> dict[str, Any] | None:
        """Return the settings the folder was made with, or None for a new one."""
        if not (self.path / SETTINGS).is_file():
            return None
        settings: dict[str, Any] = self._read_settings()["settings"]
        return settings

    def _read_settings(self) -> dict[str, Any]:
        marker = self.path / SETTINGS
        tree = read_yaml(marker, str(marker), RunFolderError)
        if tree.get("format") == FORMAT and not isinstance(tree.get("settings"), dict):
            raise RunFolderError(
                f"{marker} must hold the format and the settings of a run, but it holds no settings; choose another "
                "--out"
            )
        return tree

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings of the run."""
        write_text(self.path / SETTINGS, dump_yaml({"format": FORMAT, "settings": dict(settings)}))

    def folder(self, name: str) -> Path:
        """Return the directory of a finished step."""
        return self.path / name

    def record(self, name: str) -> dict[str, Any] | None:
        """Return what ``done.json`` says of a step, or None if the step is not finished."""
        part, place = self.path / f"{name}.part", self.path / name
        if _marker(part) is not None:  # stopped between the marker and the rename
            move_into_place(part, place)
        record = _marker(place)
        if record is not None and os.path.lexists(old := self.path / f"{name}{OLD}"):  # or right after the rename
            _remove(old)
        return record

    def discard(self, name: str) -> None:
        """Delete what a finished step left, because what it was made from is no longer so."""
        _remove(self.path / name)

    def tidy(self) -> None:
        """Delete what interrupted attempts left of steps that are no longer asked for; for the sole writer alone."""
        for part in self.path.glob("*.part"):
            if (part / IDENTITY).is_file():
                _remove(part)

    def is_finished(self, name: str, identity: Identity) -> bool:
        """Return whether a step is finished and was made from `identity`.

        Raises
        ------
        RunFolderError
            If it is, and one of its files is missing or has another size.
        """
        record = self.record(name)
        if record is None or record["identity"] != digest_of(identity):
            return False
        with self._said(name):
            check_whole(self.path / name, record["files"])
        return True

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """Give the directory of a finished step, for its files to be read: the one way to open what was made.

        Raises
        ------
        RunFolderError
            If a file is not what was written, or the block cannot read it as what it should be.
        """
        folder, files = self.path / name, (self.record(name) or {"files": {}})["files"]
        with self._said(name):
            check_whole(folder, files, content=True)
            try:
                yield folder
            except (_DamagedStepError, DamagedError, OSError, MemoryError):
                raise
            except ExMapError as error:
                if files:  # which are what was written: the error is that of another thing, such as the user's model
                    raise
                raise DamagedError(folder, str(error)) from error
            except Exception as error:  # what was written elsewhere can be wrong in any way
                raise DamagedError(folder, f"its files do not fit together: {type(error).__name__} {error}") from error

    def check(self, name: str) -> None:
        """Refuse a finished step whose files are not what was written."""
        with self.reading(name):
            pass

    @contextmanager
    def _said(self, name: str) -> Iterator[None]:
        try:
            yield
        except DamagedError as error:
            raise _DamagedStepError(f"{error}; delete {self.path / name} and run the command again") from error

    def identity(self, name: str) -> dict[str, Any]:
        """Return what a finished step was made from."""
        with self.reading(name) as folder:
            identity: dict[str, Any] = kept_json(folder / IDENTITY)
            return {"settings": dict(identity["settings"]), "needs": dict(identity["needs"])}

    @contextmanager
    def begin(self, name: str, identity: Identity) -> Iterator[StepFolder]:
        """Give a directory to write a step into, and put it into its place when the block ends well.

        What an interrupted attempt with the same identity left is kept there for the block to continue from.
        """
        path = self.path / f"{name}.part"
        resumed = read_json(path / IDENTITY) == json.loads(json.dumps(no_nan(identity)))
        if not resumed:
            _remove(path)
            path.mkdir(parents=True)
            write_json(path / IDENTITY, identity)
        for half in path.rglob("*.part"):  # files that were being written
            _remove(half)
        (path / DONE).unlink(missing_ok=True)
        before = _seconds_spent(path)
        start = time.time()
        write_json(path / ATTEMPT, {"seconds_before": before, "started": start})
        part = StepFolder(path, resumed)
        yield part
        (path / ATTEMPT).unlink()
        seconds = time.time() - start + before
        write_json(
            path / DONE,
            {
                "format": FORMAT,
                "identity": digest_of(identity),
                "seconds": round(seconds, 3),
                "peak_memory_mib": round(peak_memory_mib(), 1),
                **part.measured,
                "files": written_files(path, DONE),
            },
        )
        move_into_place(path, self.path / name)


class _DamagedStepError(RunFolderError):
    """A step that cannot be opened, said with what to do."""


def _marker(folder: Path) -> dict[str, Any] | None:
    """Return what ``done.json`` in a step's folder holds, or None where it is missing or not whole."""
    record = read_json(folder / DONE)
    if not isinstance(record, dict) or not isinstance(record.get("identity"), str):
        return None
    measured = (record.get(name, 0.0) for name in MEASURED)
    files = record.get("files", {})  # markers of earlier versions name none
    whole = all(isinstance(each, int | float | None) for each in measured) and isinstance(files, dict)
    if not whole or not all(isinstance(each, list) and list(map(type, each)) == [int, str] for each in files.values()):
        return None
    return {**record, "files": files}


def _seconds_spent(part: Path) -> float:
    """Return the seconds that interrupted attempts at a step spent, until the last file they wrote."""
    attempt = read_json(part / ATTEMPT)
    last = max(file.stat().st_mtime for file in part.iterdir())
    try:
        return float(attempt["seconds_before"] + max(0.0, last - attempt["started"]))
    except (KeyError, TypeError):  # there was none, or its file is not whole
        return 0.0


def move_into_place(part: Path, place: Path) -> None:
    """Rename a finished directory into its place, moving away what was there."""
    old = place.with_name(place.name + OLD)
    _remove(old)
    if os.path.lexists(place):
        os.replace(place, old)
    os.replace(part, place)
    _remove(old)


def _remove(path: Path) -> None:
    """Delete a directory with all in it, or whatever else is in its place; a link alone, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
