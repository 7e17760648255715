"""Images that lie in files: opened once to see that all are whole, kept decoded where that pays, read by workers.

A decoded image is a square of ``images.resize`` pixels a side, uint8. Everything later is made from that square, so
that a result is the same with the cache and without, and with any number of workers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from exmap.data.cache_folders import allowed, can_hold, half_written, make_room, use
from exmap.data.dataset import Request, batch_slices
from exmap.data.decode import Pixels, centre_crop, decode, random_crop
from exmap.data.reading import (
    REFUSED,
    Files,
    FolderFiles,
    UnfitError,
    Way,
    arrays_by_workers,
    by_workers,
    content_digest,
    facts_of_files,
    files_alone,
    opened_again,
    read_image,
    worker_count,
)
from exmap.errors import DataError
from exmap.records import IntArray, Listener, Progress, silent
from exmap.settings import ImageSettings

__all__ = ["FileImages", "Files", "FolderFiles", "Opened", "Squares", "open_images", "worker_count"]

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation
VERSION = 1  # of the decoder: another makes other caches
ARRAY = "images.npy"
AT_ONCE = 32  # images a worker opens per piece of work


@dataclass(frozen=True)
class Squares:
    """Decoded, and resized to a square of that many pixels a side."""

    side: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels."""
        return self.side, self.side, 3

    @property
    def dtype(self) -> np.dtype[Any]:
        """Bytes."""
        return np.dtype(np.uint8)

    @property
    def key(self) -> Sequence[Any]:
        """The decoder's version and the side."""
        return [VERSION, self.side]

    def make(self, data: bytes, mask: bytes | None, name: str) -> NDArray[Any]:
        """Return the square of an image."""
        return decode(data, self.side, mask)


@dataclass(frozen=True)
class Opened:
    """What opening all images once has shown.

    Attributes
    ----------
    broken : dict of int to str
        Row and reason of each image that cannot be read.
    cache : Path or None
        A file of an array with a row per image, in their order (uint8 squares, of shape (N, side, side, 3)); None where
        images are decoded anew each time.
    digests : tuple of str
        Of the bytes of each image and of its mask; empty for one that is not there.
    digest : str
        SHA-256 over names and digests.
    images_per_second : float
        Of this opening; NaN if it was remembered from an earlier one.
    """

    broken: dict[int, str]
    cache: Path | None
    digests: tuple[str, ...]
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
        for cut in arrays_by_workers(self._cut, list(requests), worker_count(self.settings)):
            yield self._normalised(cut)

    def _cut(self, request: Request) -> Pixels:
        return self.cut(*request)

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
        if self.cache is not None and self.cache.is_file():  # another host may not have it
            decoded: Pixels = np.load(self.cache, mmap_mode="r", allow_pickle=False)
            return decoded[self.rows[indices]]
        return opened_again(Squares(self.settings.resize), self.files, self.names, self.masks, indices)

    def only(self, indices: IntArray) -> FileImages:
        """Return the images at `indices`, without the names of others."""
        names, masks = (tuple(texts[i] for i in indices.tolist()) for texts in (self.names, self.masks))
        files = files_alone(self.files, (*names, *masks))
        rows = self.rows[indices] if len(self.rows) else self.rows
        return replace(self, files=files, names=names, masks=masks, rows=rows)

    def facts(self, indices: IntArray) -> dict[str, list[Any]]:
        """Return what is known of the files at `indices`: see :func:`exmap.data.decode.file_facts`."""
        return facts_of_files(self.files, [self.names[i] for i in indices])

    def _normalised(self, cut: Pixels) -> NDArray[np.float32]:
        images = _unit_range(cut)
        known = IMAGENET if self.settings.normalize == "imagenet" else self.settings.normalize
        if not isinstance(known, str):
            mean, deviation = np.array(known, dtype=np.float32)
            images -= mean[:, None, None]
            images /= deviation[:, None, None]
        return images


def _unit_range(images: Pixels) -> NDArray[np.float32]:
    """Return images with channels first, shape (n, 3, side, side), in [0, 1]; in memory the channels stay last."""
    scaled: NDArray[np.float32] = np.divide(images, np.float32(255), dtype=np.float32)
    return scaled.transpose(0, 3, 1, 2)


class _Openings(Dataset[Any]):
    """Pieces of the rows, opened: the arrays, or zeros with the reason where one cannot be read."""

    def __init__(self, files: Files, names: Sequence[str], masks: Sequence[str], way: Way, keep: bool) -> None:
        self.files, self.names, self.masks, self.way, self.keep = files, names, masks, way, keep

    def __getitem__(self, part: Any) -> tuple[slice, torch.Tensor | None, list[str], dict[int, str]] | UnfitError:
        broken: dict[int, str] = {}
        digests = [""] * (part.stop - part.start)
        arrays = np.zeros((part.stop - part.start, *self.way.shape), dtype=self.way.dtype)
        for row in range(part.start, part.stop):
            try:
                data, mask = read_image(self.files, self.names[row], self.masks[row])
                digests[row - part.start] = content_digest(data, mask)
                arrays[row - part.start] = self.way.make(data, mask, self.names[row])
            except UnfitError as error:
                return error
            except DataError as error:
                broken[row] = str(error)
        return part, torch.from_numpy(arrays) if self.keep else None, digests, broken


def open_images(
    files: Files,
    names: Sequence[str],
    masks: Sequence[str],
    settings: ImageSettings,
    *,
    way: Way | None = None,
    what: str = "images",
    listen: Listener = silent,
) -> Opened:
    """Open every image once, in worker processes, and keep it decoded where that pays.

    What was found is remembered in the cache folder under a digest of the files' names, sizes and times of change, so
    that the same files are not opened again. What they are known by from then on is a digest of their bytes.

    Parameters
    ----------
    files : Files
    names, masks : sequence of str
    settings : ImageSettings
    way : Way, optional
        How; by default as squares of ``images.resize``.
    what : str
        Named in the progress.
    listen : Listener

    Raises
    ------
    UnfitError
        If the images cannot be opened in that way.
    """
    way = way or Squares(settings.resize)
    stamps = [files.stamp(name) for name in names]
    over = [(mask, files.stamp(mask)) if mask else None for mask in masks]
    key = hashlib.sha256(json.dumps([*way.key, repr(files), list(names), stamps, over]).encode()).hexdigest()[:32]
    home = settings.cache_folder / f"{key}-1"  # 1: with the decoded images; they stay in use when the disk fills up
    record = None if settings.cache == "never" else _remembered(home)
    keep = settings.cache != "never" and (
        record is not None or _has_room(settings, len(names) * way.dtype.itemsize * math.prod(way.shape))
    )
    if not keep:
        home = home.with_name(f"{key}-0")
        record = _remembered(home)
    array = home / ARRAY if keep else None
    if record is not None and use(home):
        make_room(home.parent, _limit(settings))
        broken, digests = {int(row): why for row, why in record["broken"].items()}, record["digests"]
        return Opened(broken, array, tuple(digests), _digest(names, digests))
    start = time.monotonic()
    with half_written(home) as part:  # a damaged one is made again
        broken, digests = {}, []
        pieces = list(batch_slices(len(names), AT_ONCE))
        dataset = _Openings(files, names, masks, way, keep)
        with open(part / ARRAY, "wb") if keep else nullcontext() as kept:  # no memory map: a full disk would end it
            if kept is not None:
                header = {"descr": way.dtype.str, "fortran_order": False, "shape": (len(names), *way.shape)}
                np.lib.format.write_array_header_1_0(kept, header)
                kept.truncate(kept.tell() + len(names) * way.dtype.itemsize * math.prod(way.shape))  # others count it
            for made in by_workers(dataset, pieces, min(worker_count(settings), len(pieces))):
                if isinstance(made, UnfitError):
                    raise made
                piece, decoded, contents, found = made
                digests += contents
                broken |= found
                if kept is not None:
                    kept.write(decoded.numpy())
                listen(Progress(f"opening {what}", piece.stop, len(names)))
        if any(REFUSED in why for why in broken.values()):  # by the system, which may change its mind: not remembered
            return Opened(broken, None, tuple(digests), _digest(names, digests))
        where = os.path.abspath(getattr(files, "root", ""))
        record = {"set": what, "source": where, "images": len(names), "broken": broken, "digests": digests}
        (part / "done.json").write_text(json.dumps(record), encoding="utf-8")
        try:
            part.rename(home)
        except OSError:  # another process was first, with the same files
            if _remembered(home) is None:
                raise
    use(home)
    make_room(home.parent, _limit(settings))
    rate = len(names) / max(time.monotonic() - start, 1e-9)
    return Opened(broken, array, tuple(digests), _digest(names, digests), rate)


def _digest(names: Sequence[str], digests: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([list(names), list(digests)]).encode()).hexdigest()


def _remembered(home: Path) -> Any:
    """Return what is noted in a finished folder, or None: its decoded images must be all there, where it keeps some."""
    try:
        record = json.loads((home / "done.json").read_text(encoding="utf-8"))
        count = len(record["digests"])
        whole = (
            isinstance(record["broken"], dict)
            and record["images"] == count
            and all(0 <= int(row) < count for row in record["broken"])
        )
        if home.name.endswith("-1"):
            whole = whole and len(np.load(home / ARRAY, mmap_mode="r", allow_pickle=False)) == count
        return record if whole else None
    except (OSError, ValueError, EOFError, RecursionError, TypeError, KeyError, AttributeError):
        return None


def _limit(settings: ImageSettings) -> float:
    return allowed(settings.cache_folder, settings.cache_limit_gib * 2**30)


def _has_room(settings: ImageSettings, size: int) -> bool:
    """Return whether decoded images of `size` bytes are kept: as set, or if they fit; others make room for them."""
    folder, most = settings.cache_folder, _limit(settings)
    if settings.cache == "auto" and not can_hold(folder, most, size):
        return False
    make_room(folder, most - size)
    return True
