"""How image files are read: where their bytes come from, what is made of them, and the processes that do it."""

from __future__ import annotations

import errno
import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from exmap.data.decode import FACTS, file_facts
from exmap.data.regular import IrregularError, read_regular
from exmap.errors import DataError
from exmap.records import IntArray
from exmap.runtime import processes_here
from exmap.settings import ImageSettings
from exmap.threads import usable_cores

__all__ = [
    "REFUSED",
    "Files",
    "FolderFiles",
    "UnfitError",
    "Way",
    "arrays_by_workers",
    "by_workers",
    "content_digest",
    "facts_of_files",
    "files_alone",
    "may_pass",
    "opened_again",
    "read_image",
    "worker_count",
]

REFUSED = "cannot be read ("
LASTING = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EINVAL)


class Files(Protocol):
    """Where the bytes of images come from."""

    def read(self, name: str) -> bytes:
        """Return the bytes of a file; raise OSError if it is not there."""
        ...

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and time of change of a file, by which it is known again; a missing one has (-1, 0)."""
        ...


@dataclass(frozen=True)
class FolderFiles:
    """Files below a folder, by their path from there."""

    own_sizes: ClassVar[bool] = True  # the size of a stamp is that of the image
    root: Path

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        return read_regular(self.root / name)

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size in bytes, and time of change in nanoseconds: the later of its content's and its entry's."""
        try:
            found = (self.root / name).stat()
        except OSError:
            return -1, 0
        return found.st_size, max(found.st_mtime_ns, found.st_ctime_ns)  # a copy may keep the time of the original


class Way(Protocol):
    """How an image file becomes an array that can be kept; all arrays have one shape and type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each array."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its numbers."""
        ...

    @property
    def key(self) -> Sequence[Any]:
        """Plain values that differ wherever the arrays may."""
        ...

    def make(self, data: bytes, mask: bytes | None, name: str) -> NDArray[Any]:
        """Return the array of an image by the bytes of its file and of its mask.

        Raises
        ------
        DataError
            With the reason alone, if it cannot be decoded.
        UnfitError
            If no image is to be opened in this way.
        """
        ...


class UnfitError(DataError):
    """What is wrong with more than one image: a sentence of its own."""


def opened_again(way: Way, files: Files, names: Sequence[str], masks: Sequence[str], indices: IntArray) -> NDArray[Any]:
    """Return the arrays of the images at `indices`, which all could be opened before.

    Raises
    ------
    DataError
        If one no longer can.
    """
    arrays = np.empty((len(indices), *way.shape), dtype=way.dtype)
    for place, i in enumerate(indices):
        try:
            arrays[place] = way.make(*read_image(files, names[i], masks[i]), names[i])
        except DataError as error:
            raise DataError(
                f"{names[i]} can no longer be read ({error}); restore it and rerun the same command"
            ) from error
    return arrays


def facts_of_files(files: Files, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return a list per fact with a value per file; see :func:`exmap.data.decode.file_facts`."""
    found = []
    for name in names:
        try:
            found.append(file_facts(files.read(name)))
        except OSError:
            found.append(dict.fromkeys(FACTS))
    return {fact: [one[fact] for one in found] for fact in FACTS}


def files_alone(files: Files, names: Sequence[str]) -> Files:
    """Return what reads some files, without the places of others where it holds such."""
    alone = getattr(files, "only", None)
    found: Files = files if alone is None else alone(names)
    return found


def read_image(files: Files, name: str, mask: str) -> tuple[bytes, bytes | None]:
    """Return the bytes of an image and of its mask.

    Raises
    ------
    DataError
        With the reason alone, if they cannot be read.
    """
    return _read(files, name, "the file"), _read(files, mask, f"its mask {mask}") if mask else None


def _read(files: Files, name: str, what: str) -> bytes:
    try:
        return files.read(name)
    except FileNotFoundError as error:
        raise DataError(f"{what} is missing") from error
    except IrregularError as error:
        raise DataError(f"{what} is none: {error}") from error
    except OSError as error:
        raise DataError(f"{what} {REFUSED}{error.strerror or error})") from error


def content_digest(data: bytes, mask: bytes | None) -> str:
    """Return what tells the bytes of an image, and of its mask, from all others."""
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return digest if mask is None else f"{digest}-{hashlib.blake2b(mask, digest_size=16).hexdigest()}"


def may_pass(why: str) -> bool:
    """Return whether what an image cannot be read for may be gone the next time: a disk or a network that fails."""
    return REFUSED in why and not any(os.strerror(code) in why for code in LASTING)


def worker_count(settings: ImageSettings) -> int:
    """Return the number of reading processes: that of the settings, or one per core but one, from 1 to 8.

    Where several processes compute on this host, each has its share of the cores.
    """
    if settings.workers is not None:
        return settings.workers
    return min(max(usable_cores() // processes_here() - 1, 1), 8)


class _Arrays(Dataset[torch.Tensor | Exception]):
    """Arrays; an error is handed over as it is, for what raises it in a worker adds a traceback to its sentence."""

    def __init__(self, make: Callable[[Any], NDArray[Any]]) -> None:
        self.make = make

    def __getitem__(self, key: Any) -> torch.Tensor | Exception:
        try:
            return torch.from_numpy(self.make(key))
        except (DataError, OSError) as error:
            return error


def arrays_by_workers(make: Callable[[Any], NDArray[Any]], keys: Sequence[Any], workers: int) -> Iterator[NDArray[Any]]:
    """Yield the array that is made of each key, in order, by that many processes (0: by this one) ahead of its use."""
    for made in by_workers(_Arrays(make), keys, min(workers, len(keys))):
        if isinstance(made, Exception):
            raise made
        yield made.numpy()


def by_workers(dataset: Dataset[Any], keys: Sequence[Any], workers: int) -> Iterator[Any]:
    """Yield ``dataset[key]`` for each key, in order, from that many processes (0: from this one)."""
    with warnings.catch_warnings():  # more processes than cores are the user's own choice
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = DataLoader(
            dataset,
            sampler=keys,
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_one_thread,
            generator=torch.Generator().manual_seed(0),  # else the loader draws from torch's global one
        )
        results = iter(loader)
    try:
        yield from results
    except (RuntimeError, OSError, EOFError) as error:  # the latter: what a dead one has left cannot be fetched
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        with suppress(RuntimeError):
            time.sleep(0.5)  # torch tells of the death by a signal as well: let it come here, and not in other code
        raise DataError(
            f"a process that reads images has died, possibly out of memory ({error}); take fewer with "
            "--set images.workers=1, or none with --set images.workers=0"
        ) from error


def _as_it_is(item: Any) -> Any:
    return item


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
