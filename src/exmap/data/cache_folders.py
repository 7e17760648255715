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
from pathlib import Path
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["half_written", "make_room", "use"]

LOCK, DONE = ".lock", "done.json"
FINISHED = re.compile(r"[0-9a-f]{32}-[01]")  # names of the folders that are looked after; others are somebody else's
HALF = re.compile(r"[0-9a-f]{32}-[01]\.(part|new)-[0-9a-f]{8}")
SURELY_LEFT = 24 * 3600  # seconds, after which what has no lock belongs to nobody: earlier versions had none
LOCKED_BY_THEN = 60  # seconds, within which a new folder is locked

_held: dict[Path, int] = {}  # locks on folders that this process uses, until it ends


@contextmanager
def half_written(home: Path) -> Iterator[Path]:
    """Give a folder to write what is to become `home`, by renaming it, and to delete it if it does not.

    What killed processes left beside it is deleted, and so is `home`, if it is there: it is damaged, whoever uses it.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    _delete_left_over(home.parent)
    number = uuid4().hex[:8]
    if (own := _held.pop(home, None)) is not None:
        os.close(own)
    if not _discard(home):  # another process uses it: out of the way, and what it has open stays open
        aside = home.with_name(f"{home.name}.part-{uuid4().hex[:8]}")
        with suppress(FileNotFoundError):  # it was just deleting it
            home.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
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
    try:
        lock = _locked(home, exclusive=False)
    except BlockingIOError:  # it is being deleted
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


def make_room(folder: Path, most: float) -> None:
    """Delete the finished folders that were used the longest ago, beyond so many bytes in all; none that is in use."""
    finished = []
    for home in _entries(folder, FINISHED):
        with suppress(OSError):
            size = sum(file.stat().st_size for file in home.iterdir())
            finished.append(((home / DONE).stat().st_mtime, size, home))
    total = sum(size for _, size, _ in finished)
    for _, size, home in sorted(finished):
        if total <= most:
            return
        if home not in _held and _discard(home):
            total -= size


def _hold(home: Path, lock: int) -> None:
    before = _held.get(home)
    _held[home] = lock
    if before is not None:
        os.close(before)


def _delete_left_over(folder: Path) -> None:
    for part in _entries(folder, HALF):
        with suppress(OSError):
            age, is_new = time.time() - part.stat().st_mtime, ".new-" in part.name
            if age > (LOCKED_BY_THEN if is_new else SURELY_LEFT) or (not is_new and (part / LOCK).exists()):
                _delete(part)


def _discard(home: Path) -> bool:
    """Delete a folder that nobody uses; return whether it is gone."""
    try:
        return not home.exists() or _delete(home)
    except OSError:
        return False


def _delete(folder: Path) -> bool:
    """Delete a folder, unless another process holds it; return whether it is gone."""
    try:
        lock = _locked(folder, exclusive=True)
    except BlockingIOError:
        return False
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)
    return not folder.exists()


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
