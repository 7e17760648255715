"""What the cache of opened and decoded images holds, and how it is emptied."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exmap.data.cache_folders import DONE, Kept, delete, delete_left_over, finished
from exmap.errors import SettingsError, unknown_name

__all__ = ["CachedSet", "cached_sets", "clear_cache"]

DAY = 24 * 3600  # seconds


@dataclass(frozen=True)
class CachedSet:
    """Images that were opened once, and what is kept of them.

    Attributes
    ----------
    name, source : str
        The data set, and the folder that it was read from; empty where an earlier version of exmap kept it.
    images : int
    decoded : bool
        Whether decoded images are kept; otherwise only what opening them has shown.
    size : int
        On disk, in bytes.
    used : float
        When it was last used, in seconds since 1970.
    in_use : bool
        Whether a living process uses it.
    path : Path
        Its folder in the cache.
    """

    name: str
    source: str
    images: int
    decoded: bool
    size: int
    used: float
    in_use: bool
    path: Path

    @property
    def days_unused(self) -> float:
        """How long ago it was last used, in days."""
        return (time.time() - self.used) / DAY


def cached_sets(folder: Path) -> list[CachedSet]:
    """Return the sets in a cache folder, the last used first; none where there is no such folder."""
    return [_read(kept) for kept in reversed(finished(folder))]


def clear_cache(
    folder: Path, names: Collection[str] = (), *, older_than: float = 0.0
) -> tuple[list[CachedSet], list[CachedSet]]:
    """Delete sets that nobody uses, and what killed processes left.

    Parameters
    ----------
    folder : Path
    names : collection of str
        Of data sets; all, if it is empty.
    older_than : float
        Days since the last use.

    Returns
    -------
    deleted, left : list of CachedSet
        Those that are gone, and those that are in use or that the system did not let go.

    Raises
    ------
    SettingsError
        If the cache holds no set of a name.
    """
    held = cached_sets(folder)
    known = {one.name for one in held} - {""}
    for name in names:
        if name not in known:
            none = f"the cache in {folder} holds no named set, so {name!r} cannot be deleted; leave the name out"
            raise SettingsError(unknown_name("set in the cache", name, known) if known else none)
    chosen = [one for one in held if (not names or one.name in names) and one.days_unused >= older_than]
    gone = {one.path for one in chosen if not one.in_use and delete(one.path)}
    delete_left_over(folder)
    return [one for one in chosen if one.path in gone], [one for one in chosen if one.path not in gone]


def _read(kept: Kept) -> CachedSet:
    about: Any = None
    with suppress(OSError, ValueError, RecursionError):
        about = json.loads((kept.path / DONE).read_text(encoding="utf-8"))
    about = about if isinstance(about, dict) else {}
    name, source, images = (about.get(key) for key in ("set", "source", "images"))
    return CachedSet(
        name=name if isinstance(name, str) else "",
        source=source if isinstance(source, str) else "",
        images=images if isinstance(images, int) else 0,
        decoded=kept.path.name.endswith("-1"),
        size=kept.size,
        used=kept.used,
        in_use=kept.in_use,
        path=kept.path,
    )
