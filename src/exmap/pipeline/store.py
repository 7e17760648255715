"""The run folder: one directory per finished step, written beside its place and renamed into it last.

A step's directory is called ``STEP.part`` while it is written. It gets its ``done.json`` when everything else is in it,
and is then renamed to ``STEP``. So a directory without ``done.json`` was interrupted, and is never taken for finished.
``identity.json`` in it says from which settings and inputs it was made; a step whose identity changed is made again.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from exmap.errors import RunFolderError

__all__ = [
    "FORMAT",
    "RunFolder",
    "StepFolder",
    "array_file",
    "differences",
    "digest_of",
    "digest_of_file",
    "holds_others",
    "move_into_place",
    "read_json",
    "save_arrays",
    "slug",
    "sole_writer",
    "write_json",
    "write_text",
]

FORMAT = 2  # of the run folder as a whole; a reader refuses a later one
LOCK = ".lock"  # held by the process that writes into the folder; the system lets go of it when that ends

Identity = Mapping[str, Any]


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears under its name only when it is whole."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted sections as given and NaN as null, whole or not at all."""
    write_text(path, json.dumps(_no_nan(value), indent=2, allow_nan=False) + "\n")


def _no_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`, or None if the file is missing or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(_no_nan(value), sort_keys=True).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, or that of nothing where there is no file."""
    if not path.is_file():
        return hashlib.sha256(b"").hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def slug(text: str) -> str:
    """Return a name for files: readable, and another one for another text.

    Examples
    --------
    >>> slug("exmap+dfr")
    'exmap+dfr'
    >>> slug("exmap[size=7]+dfr")
    'exmap_size=7_+dfr-3035'
    """
    plain = re.sub(r"[^A-Za-z0-9+@=.,_-]", "_", text)
    return plain if plain == text and len(text) <= 80 else f"{plain[:80]}-{digest_of(text)[:4]}"


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Return the dotted names at which two nested mappings differ, with both values.

    Examples
    --------
    >>> differences({"seed": 0, "data": {"name": "digits"}}, {"seed": 1, "data": {"name": "digits"}})
    ['seed (0 there, 1 here)']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [item for key in keys for item in differences(old.get(key), new.get(key), f"{prefix}.{key}".strip("."))]
    return [] if old == new else [f"{prefix} ({old!r} there, {new!r} here)"]


def save_arrays(arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Write named arrays as safetensors.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    try:
        save_file(dict(arrays), path)
    except SafetensorError as error:  # the library wraps the system's error; give back what a caller can catch
        raise OSError(f"{path} could not be written: {error}") from error


def array_file(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Make a float32 array file of zeros, mapped into memory, with its space reserved on disk.

    Without the reservation a full disk would not be an error but a fault while writing to the map. What is assigned to
    rows of the array goes to the file and does not stay in this process's memory.

    Raises
    ------
    OSError
        If the space is not there.
    """
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return mapped.view(_Written)


class _Written(np.memmap[Any, np.dtype[np.float32]]):
    """A mapped array whose pages leave this process once they are assigned to: the system writes them to the file."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        file = getattr(self.base, "base", None)
        if isinstance(file, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            file.madvise(mmap.MADV_DONTNEED)


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

    @property
    def name(self) -> str:
        """Name of the step."""
        return self.path.stem


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
        resumed = read_json(path / "identity.json") == json.loads(json.dumps(_no_nan(identity)))
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
