"""What a data set says of itself: what it is, what the paper counts in it, where it comes from, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exmap.data.dataset import Task
from exmap.data.fetch import Remote
from exmap.data.idx import download_set, find_set
from exmap.data.table import ImageTable
from exmap.errors import DataError
from exmap.settings import DataSettings

__all__ = ["Counts", "Entry", "folder_of", "idx_folder"]

Counts = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Entry:
    """One data set of the catalogue; exactly one of `arrays` and `images` is given.

    Attributes
    ----------
    about : str
        In one line.
    arrays : callable or None
        Builds the task of a data set that is held in memory.
    images : callable or None
        Reads the table of one that lies in image files.
    counts : dict of str to tuple of int
        What the paper counts in each group, per split; a split that it does not count is left out.
    remotes : tuple of Remote
        Public archives it can be downloaded from.
    idx : tuple of str
        IDX sets it is made of.
    instead : str
        What to get and where to put it, where there is no public archive.
    """

    about: str
    arrays: Callable[[DataSettings], Task] | None = None
    images: Callable[[DataSettings], ImageTable] | None = None
    counts: Counts | None = None
    remotes: tuple[Remote, ...] = ()
    idx: tuple[str, ...] = ()
    instead: str = ""

    @property
    def origin(self) -> str:
        """Where the images come from, in a few words."""
        if self.remotes or self.idx:
            return "download"
        if self.instead:
            return "ask or make"
        return "your files" if self.arrays is None else "the package"


def folder_of(settings: DataSettings) -> Path:
    """Return the folder of a data set's files, or say how to name one."""
    if settings.dir is None:
        raise DataError(f"{settings.name} needs the folder of its files, but none was given; name it with --data-dir")
    return settings.dir


def idx_folder(settings: DataSettings, *names: str) -> Path:
    """Return the folder of IDX sets, after downloading those that it lacks where that is wished."""
    folder = folder_of(settings)
    for name in names if settings.download else ():
        try:
            find_set(folder, name)
        except DataError:
            download_set(folder / name, name)
    return folder
