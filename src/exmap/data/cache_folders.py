"""The folders of the cache: written beside their place, in use or not, and never more of them than was allowed.

A process that writes or uses a folder holds a lock on the file ``.lock`` in it, which the system lets go of when the
process ends, however it does. So what a killed process left half written is told from what another is writing now, and
a folder in use from one that may go to make room.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Kept", "allowed", "can_hold", "delete", "delete_left_over", "finished", "half_written", "make_room", "use"]

LOCK, DONE = ".lock", "done.json"
FINISHED = re.compile(r"[0-9a-f]{32}-[01]")  # names of the folders that are looked after; others are somebody else's
HALF = re.compile(r"[0-9a-f]{32}-[01]\.(part|new)-[0-9a-f]{8}")
SURELY_LEFT = 24 * 3600  # seconds, after which what has no lock belongs to nobody: earlier versions had none
LOCKED_BY_THEN = 60  # seconds, within which a new folder is locked
LOOKED_AT = 5.0, 0.01  # seconds for which a lock is tried again, and between: another may only be looking

_held: dict[Path, int] = {}  # locks on folders that this process uses, until it ends


@dataclass(frozen=True)
class Kept:
    """A finished folder.

    Attributes
    ----------
    path : Path
    size : int
        Of its files, in bytes.
    used : float
        When it was last used, in seconds since 1970.
    in_use : bool
        Whether a living process uses it; always False where there are no locks.
    """

    path: Path
    size: int
    used: float
    in_use: bool


@contextmanager
def half_written(home: Path) -> Iterator[Path]:
    """Give a folder to write what is to become `home`, by renaming it, and to delete it if it does not.

    What killed processes left beside it is deleted, and so is `home`, if it is there: it is damaged, whoever uses it.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    delete_left_over(home.parent)
    number = uuid4().hex[:8]
    if (own := _held.pop(home, None)) is not None:
        os.close(own)
    if not delete(home):  # another process uses it: out of the way, and what it has open stays open
        with suppress(FileNotFoundError):  # it was just deleting it
            shutil.rmtree(_aside(home), ignore_errors=True)
    new, part = (home.with_name(f"{home.name}.{kind}-{number}") for kind in ("new", "part"))
    new.mkdir()
    lock = _locked(new, exclusive=True)
    try:
        new.rename(part)  # under the name that others look for it is locked
        yield part
        if lock is not None and not part.exists():  # it has become home
            fcntl.flock(lock, fcntl.LOCK_SH)
            _hold(home, lock)
            lock = None
    finally:
        for left in (new, part):
            shutil.rmtree(left, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def use(home: Path) -> bool:
    """Keep a finished folder from being deleted as long as this process lives; return False if it is gone."""
    if home in _held:
        return home.is_dir()
    lock = None
    end = time.monotonic() + LOOKED_AT[0]
    while home.is_dir() and time.monotonic() < end:  # until it is deleted, or whoever looked at it has done so
        try:
            lock = _locked(home, exclusive=False)
            break
        except BlockingIOError:
            time.sleep(LOOKED_AT[1])
    else:
        return False
    if lock is not None:
        with suppress(OSError):
            if os.path.samestat(os.fstat(lock), (home / LOCK).stat()):
                _hold(home, lock)
                with suppress(OSError):
                    os.utime(home / DONE)
                return True
        os.close(lock)
    return home.is_dir()


def finished(folder: Path) -> list[Kept]:
    """Return the finished folders; the one that was used the longest ago comes first."""
    found = []
    for home in _entries(folder, FINISHED):
        with suppress(OSError):
            used = (home / DONE).stat().st_mtime
            found.append(Kept(home, _size(home), used, _in_use(home)))
    return sorted(found, key=lambda kept: (kept.used, kept.size, kept.path))


def allowed(folder: Path, most: float) -> float:
    """Return how many bytes all folders may take: at most half of what would be free on the disk without them."""
    disk = folder
    while not disk.exists():
        disk = disk.parent
    taken = sum(_size(home) for home in _entries(folder, FINISHED))
    return min(most, (shutil.disk_usage(disk).free + taken) / 2)


def can_hold(folder: Path, most: float, size: int) -> bool:
    """Return whether images of `size` bytes fit beside decoded images in use, and those that are being written."""
    delete_left_over(folder)
    others = sum(kept.size for kept in finished(folder) if kept.in_use and kept.path.name.endswith("-1"))
    return size + others + sum(map(_size, _entries(folder, HALF))) <= most


def make_room(folder: Path, most: float) -> None:
    """Delete the finished folders that were used the longest ago, beyond so many bytes in all; none that is in use."""
    kept = finished(folder)
    total = sum(one.size for one in kept)
    for one in kept:
        if total <= most:
            return
        if one.path not in _held and delete(one.path):
            total -= one.size


def _hold(home: Path, lock: int) -> None:
    before = _held.get(home)
    _held[home] = lock
    if before is not None:
        os.close(before)


def delete_left_over(folder: Path) -> None:
    """Delete what killed processes left half written or half deleted."""
    for part in _entries(folder, HALF):
        with suppress(OSError):
            age, is_new = time.time() - part.stat().st_mtime, ".new-" in part.name
            if age > (LOCKED_BY_THEN if is_new else SURELY_LEFT) or (not is_new and (part / LOCK).exists()):
                _delete(part)


def delete(home: Path) -> bool:
    """Delete a folder that nobody uses; return whether it is gone."""
    try:
        return not home.exists() or _delete(home)
    except OSError:
        return False


def _delete(folder: Path) -> bool:
    """Delete a folder, unless somebody holds it; return whether it is gone."""
    try:
        lock = _locked(folder, exclusive=True)
    except BlockingIOError:
        return False
    try:
        shutil.rmtree(_aside(folder), ignore_errors=True)  # no process takes what is half deleted for finished
    finally:
        if lock is not None:
            os.close(lock)
    return not folder.exists()


def _aside(folder: Path) -> Path:
    """Rename a folder to what is half written, and return where it lies now."""
    aside = folder.with_name(f"{folder.name.split('.')[0]}.part-{uuid4().hex[:8]}")
    return folder.rename(aside)


def _in_use(home: Path) -> bool:
    if home in _held:
        return True
    try:
        lock = _locked(home, exclusive=True)
    except BlockingIOError:
        return True
    if lock is not None:
        os.close(lock)
    return False


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files; 0 if it is gone."""
    with suppress(OSError):
        return sum(file.stat().st_size for file in folder.iterdir())
    return 0


def _locked(folder: Path, *, exclusive: bool) -> int | None:
    """Return a lock on a folder; None where there are no locks: on Windows, and on disks without.

    Raises
    ------
    BlockingIOError
        If another process holds it.
    """
    if fcntl is None:
        return None
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    try:
        fcntl.flock(lock, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise
    except OSError:
        os.close(lock)
        return None
    return lock


def _entries(folder: Path, names: re.Pattern[str]) -> list[Path]:
    with suppress(OSError):
        return [path for path in folder.iterdir() if names.fullmatch(path.name) and not path.is_symlink()]
    return []
