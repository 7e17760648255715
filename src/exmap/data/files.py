"""Images that lie in files: opened once to see that all are whole, kept decoded where that pays, read by workers.

A decoded image is a square of ``images.resize`` pixels a side, uint8. Everything later is made from that square, so
that a result is the same with the cache and without, and with any number of workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from exmap.data.dataset import Request, batch_slices
from exmap.data.decode import Pixels, centre_crop, decode, random_crop
from exmap.errors import DataError
from exmap.records import IntArray, Listener, Progress, silent
from exmap.settings import ImageSettings

__all__ = ["FileImages", "Files", "FolderFiles", "Opened", "open_images", "worker_count"]

MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)  # of ImageNet
DEVIATION = np.array([0.229, 0.224, 0.225], dtype=np.float32)
VERSION = 1  # of the decoder: another makes other caches
ARRAY = "images.npy"
REFUSED = "cannot be read ("
AT_ONCE = 32  # images a worker opens per piece of work


class Files(Protocol):
    """Where the bytes of images come from."""

    def read(self, name: str) -> bytes:
        """Return the bytes of a file; raise OSError if it is not there."""
        ...

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and time of change of a file; a missing one has (-1, 0)."""
        ...


@dataclass(frozen=True)
class FolderFiles:
    """Files below a folder, by their path from there."""

    root: Path

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        return (self.root / name).read_bytes()

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size in bytes and time of change in nanoseconds."""
        try:
            found = (self.root / name).stat()
        except OSError:
            return -1, 0
        return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Opened:
    """What opening all images once has shown.

    Attributes
    ----------
    broken : dict of int to str
        Row and reason of each image that cannot be read.
    cache : Path or None
        A uint8 array file of shape (N, side, side, 3), in the order of the rows; None where images are decoded anew
        each time.
    digest : str
        SHA-256 over the names and sizes of the files.
    images_per_second : float
        Of this opening; NaN if it was remembered from an earlier one.
    """

    broken: dict[int, str]
    cache: Path | None
    digest: str
    images_per_second: float = float("nan")


@dataclass(frozen=True)
class FileImages:
    """Some of the images of a set, in the form the model wants.

    Attributes
    ----------
    files : Files
    names, masks : tuple of str
        One per image; a mask is empty where there is none.
    settings : ImageSettings
    cache : Path or None
        As in :class:`Opened`.
    rows : ndarray of int64, shape (N,)
        Row of each image in the cache.
    """

    files: Files
    names: tuple[str, ...]
    masks: tuple[str, ...]
    settings: ImageSettings
    cache: Path | None = None
    rows: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        side = self.settings.side
        return 3, side, side

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` without random changes, float32, shape (n, 3, side, side)."""
        return self._normalised(self.cut(indices, None))

    def pixels(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` as one looks at them: values in [0, 1]."""
        return _unit_range(self.cut(indices, None))

    def stream(self, requests: Iterable[Request]) -> Iterator[NDArray[np.float32]]:
        """Yield the batch of each request, in order, made by worker processes ahead of their use."""
        wanted = list(requests)
        workers = min(worker_count(self.settings), len(wanted))
        for cut in _by_workers(_Cuts(self), wanted, workers):
            if isinstance(cut, Exception):
                raise cut
            yield self._normalised(cut.numpy())

    def cut(self, indices: IntArray, seed: int | None) -> Pixels:
        """Return the crops at `indices`, uint8, shape (n, side, side, 3): central ones, or random ones by `seed`."""
        whole = self._whole(indices)
        area = self.settings.random_crop
        if seed is None or area is None:
            cut = centre_crop(whole, self.settings.side)
            if seed is not None and self.settings.flip:
                flipped = np.random.default_rng(seed).random(len(cut)) < 0.5
                cut = np.where(flipped[:, None, None, None], cut[:, :, ::-1], cut)
            return np.ascontiguousarray(cut)
        rngs = np.random.default_rng(seed).spawn(len(whole))
        side, flip = self.settings.side, self.settings.flip
        return np.stack([random_crop(image, side, area, flip, rng) for image, rng in zip(whole, rngs, strict=True)])

    def _whole(self, indices: IntArray) -> Pixels:
        if self.cache is not None:
            decoded: Pixels = np.load(self.cache, mmap_mode="r", allow_pickle=False)
            return decoded[self.rows[indices]]
        side = self.settings.resize
        whole = np.empty((len(indices), side, side, 3), dtype=np.uint8)
        for place, i in enumerate(indices):
            try:
                whole[place] = _open(self.files, self.names[i], self.masks[i], side)
            except DataError as error:
                raise DataError(
                    f"{self.names[i]} can no longer be read ({error}); put it back and give the same command again"
                ) from error
        return whole

    def _normalised(self, cut: Pixels) -> NDArray[np.float32]:
        images = _unit_range(cut)
        if self.settings.normalize == "imagenet":
            images -= MEAN[:, None, None]
            images /= DEVIATION[:, None, None]
        return images


def _unit_range(images: Pixels) -> NDArray[np.float32]:
    """Return images with channels first, shape (n, 3, side, side), in [0, 1]; in memory the channels stay last."""
    scaled: NDArray[np.float32] = np.divide(images, np.float32(255), dtype=np.float32)
    return scaled.transpose(0, 3, 1, 2)


def _open(files: Files, name: str, mask: str, side: int) -> Pixels:
    """Return one decoded image.

    Raises
    ------
    DataError
        With the reason alone, if it cannot be read.
    """
    data = _read(files, name, "the file")
    over = _read(files, mask, f"its mask {mask}") if mask else None
    return decode(data, side, over)


def _read(files: Files, name: str, what: str) -> bytes:
    try:
        return files.read(name)
    except FileNotFoundError as error:
        raise DataError(f"{what} is missing") from error
    except OSError as error:
        raise DataError(f"{what} {REFUSED}{error.strerror or error})") from error


def worker_count(settings: ImageSettings) -> int:
    """Return the number of reading processes: that of the settings, or one per core but one, from 1 to 8.

    Where several processes compute on this host, each has its share of the cores.
    """
    if settings.workers is not None:
        return settings.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(cores // processes - 1, 1), 8)


class _Cuts(Dataset[torch.Tensor | Exception]):
    """Crops; an error is handed over as it is, for what raises it in a worker adds a traceback to its sentence."""

    def __init__(self, images: FileImages) -> None:
        self.images = images

    def __getitem__(self, request: Any) -> torch.Tensor | Exception:
        try:
            return torch.from_numpy(self.images.cut(*request))
        except (DataError, OSError) as error:
            return error


class _Openings(Dataset[Any]):
    """Pieces of the rows, opened: the decoded images, or zeros with the reason where one cannot be read."""

    def __init__(self, files: Files, names: Sequence[str], masks: Sequence[str], side: int, keep: bool) -> None:
        self.files, self.names, self.masks, self.side, self.keep = files, names, masks, side, keep

    def __getitem__(self, part: Any) -> tuple[slice, torch.Tensor | None, dict[int, str]]:
        broken: dict[int, str] = {}
        images = np.zeros((part.stop - part.start, self.side, self.side, 3), dtype=np.uint8)
        for row in range(part.start, part.stop):
            try:
                images[row - part.start] = _open(self.files, self.names[row], self.masks[row], self.side)
            except DataError as error:
                broken[row] = str(error)
        return part, torch.from_numpy(images) if self.keep else None, broken


def _by_workers(dataset: Dataset[Any], keys: Sequence[Any], workers: int) -> Iterator[Any]:
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


def open_images(
    files: Files,
    names: Sequence[str],
    masks: Sequence[str],
    settings: ImageSettings,
    *,
    what: str = "images",
    listen: Listener = silent,
) -> Opened:
    """Open every image once, in worker processes, and keep it decoded where that pays.

    What was found is remembered in the cache folder under a digest of the files' names, sizes and times of change, so
    that the same files are not opened again.

    Parameters
    ----------
    files : Files
    names, masks : sequence of str
    settings : ImageSettings
    what : str
        Named in the progress.
    listen : Listener
    """
    side = settings.resize
    stamps = [files.stamp(name) for name in names]
    digest = hashlib.sha256(json.dumps([list(names), [size for size, _ in stamps]]).encode()).hexdigest()
    over = [(mask, files.stamp(mask)) if mask else None for mask in masks]
    key = hashlib.sha256(json.dumps([VERSION, side, repr(files), digest, stamps, over]).encode()).hexdigest()[:32]
    home = settings.cache_folder / f"{key}-1"  # 1: with the decoded images; they stay in use when the disk fills up
    keep = settings.cache != "never" and (
        _remembered(home) is not None or _keeps(settings, len(names) * side * side * 3)
    )
    home = home if keep else home.with_name(f"{key}-0")
    array = home / ARRAY if keep else None
    record = _remembered(home)
    if record is not None:
        return Opened({int(row): why for row, why in record["broken"].items()}, array, digest)
    part = home.with_name(f"{home.name}.part-{uuid4().hex[:8]}")
    try:
        home.rename(part)  # a damaged one is made again
    except FileNotFoundError:
        part.mkdir(parents=True)
    start = time.monotonic()
    try:
        broken: dict[int, str] = {}
        pieces = list(batch_slices(len(names), AT_ONCE))
        dataset = _Openings(files, names, masks, side, keep)
        with open(part / ARRAY, "wb") if keep else nullcontext() as kept:  # no memory map: a full disk would end it
            if kept is not None:
                shape = (len(names), side, side, 3)
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(kept, header)
            for piece, decoded, found in _by_workers(dataset, pieces, min(worker_count(settings), len(pieces))):
                broken |= found
                if kept is not None:
                    kept.write(decoded.numpy())
                listen(Progress(f"opening {what}", piece.stop, len(names)))
        if any(REFUSED in why for why in broken.values()):  # by the system, which may change its mind: not remembered
            return Opened(broken, None, digest)
        (part / "done.json").write_text(json.dumps({"images": len(names), "broken": broken}), encoding="utf-8")
        try:
            part.rename(home)
        except OSError:  # another process was first, with the same files
            if _remembered(home) is None:
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Opened(broken, array, digest, len(names) / max(time.monotonic() - start, 1e-9))


def _remembered(home: Path) -> Any:
    """Return what is noted in a finished folder, or None: its decoded images must be all there, where it keeps some."""
    try:
        record = json.loads((home / "done.json").read_text(encoding="utf-8"))
        if home.name.endswith("-1"):
            np.load(home / ARRAY, mmap_mode="r", allow_pickle=False)
        return record if isinstance(record, dict) and "broken" in record else None
    except (OSError, ValueError, EOFError):
        return None


def _keeps(settings: ImageSettings, size: int) -> bool:
    """Return whether decoded images of `size` bytes are kept: as set, or if that leaves half of the free disk."""
    if settings.cache != "auto":
        return settings.cache == "always"
    folder = settings.cache_folder
    while not folder.exists():
        folder = folder.parent
    return size <= min(settings.cache_limit_gib * 2**30, shutil.disk_usage(folder).free / 2)
