"""Images in files as a model's own preprocessing, or a function of the user's, makes inputs of them.

The inputs are kept on disk like decoded squares are: as bytes where that gives back every bit, else as they are.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.data.dataset import Request
from exmap.data.decode import decode_whole
from exmap.data.files import Opened, open_images
from exmap.data.preprocess import Preprocess
from exmap.data.reading import (
    Files,
    UnfitError,
    arrays_by_workers,
    facts_of_files,
    files_alone,
    opened_again,
    read_image,
    worker_count,
)
from exmap.errors import DataError
from exmap.records import IntArray, Listener, silent
from exmap.settings import ImageSettings

__all__ = ["InputImages", "Inputs", "open_inputs"]

VERSION = 1
LOOKED_AT = 8  # images by which the way of keeping is chosen, and what was kept is compared
READS = 3  # of the first image: a function that draws random numbers makes another input of it


@dataclass(frozen=True)
class Inputs:
    """Decoded whole, and made a model's input by a function.

    Attributes
    ----------
    preprocess : Preprocess
    size : (int, int, int)
        Channels, height and width of every input.
    exact : bool
        Whether bytes say all of an input, so that it is kept as those.
    """

    preprocess: Preprocess
    size: tuple[int, int, int]
    exact: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width."""
        return self.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Bytes where these are exact."""
        return np.dtype(np.uint8 if self.exact else np.float32)

    @property
    def key(self) -> Sequence[Any]:
        """What the function makes of a few images."""
        return ["inputs", VERSION, self.preprocess.fingerprint, *self.size, self.exact]

    def make(self, data: bytes, mask: bytes | None, name: str) -> NDArray[Any]:
        """Return the input of an image, as it is kept."""
        made = self.preprocess(decode_whole(data, mask))
        if made.shape != self.size:
            found, first = (" x ".join(map(str, shape)) for shape in (made.shape, self.size))
            raise UnfitError(
                f"{self.preprocess.about} must make inputs of one size, but made {found} of {name} and {first} of "
                "images before it; let it resize and crop"
            )
        if not self.exact:
            return made
        kept = self.bytes_of(made)
        if not np.array_equal(self.restored(kept[None])[0], made):
            raise _InexactError
        return kept

    def bytes_of(self, made: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the bytes that are closest to an input before its normalisation."""
        mean, std = self._normalisation()
        closest: NDArray[np.uint8] = np.clip(np.rint((made * std + mean) * 255), 0, 255).astype(np.uint8)
        return closest

    def restored(self, kept: NDArray[Any]) -> NDArray[np.float32]:
        """Return inputs, shape (n, C, H, W), of what is kept of them."""
        if not self.exact:
            return np.asarray(kept, dtype=np.float32)
        mean, std = self._normalisation()
        whole: NDArray[np.float32] = np.divide(kept, np.float32(255), dtype=np.float32)
        whole -= mean
        whole /= std
        return whole

    def _normalisation(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        known = self.preprocess
        mean, std = known.mean or (0.0,) * self.size[0], known.std or (1.0,) * self.size[0]
        return tuple(np.array(v, dtype=np.float32)[:, None, None] for v in (mean, std))  # type: ignore[return-value]


class _InexactError(UnfitError):
    """Bytes do not say all of some input."""

    def __init__(self) -> None:
        super().__init__("bytes do not say all of an input")


@dataclass(frozen=True)
class InputImages:
    """Some of the images of a set, as a preprocessing makes inputs of them; none is changed at random.

    Attributes
    ----------
    files : Files
    names, masks : tuple of str
        One per image; a mask is empty where there is none.
    settings : ImageSettings
    way : Inputs
    cache : Path or None
        Of all inputs, as they are kept.
    rows : ndarray of int64, shape (N,)
        Row of each image in the cache.
    """

    files: Files
    names: tuple[str, ...]
    masks: tuple[str, ...]
    settings: ImageSettings
    way: Inputs
    cache: Path | None
    rows: IntArray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        return self.way.size

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the inputs at `indices`, float32, shape (n, C, H, W)."""
        return self.way.restored(self.kept(indices))

    def pixels(self, indices: IntArray) -> NDArray[np.float32]:
        """Return what the model saw, in [0, 1]: see :meth:`exmap.data.preprocess.Preprocess.shown`."""
        return self.way.preprocess.shown(self.batch(indices))

    def stream(self, requests: Iterable[Request]) -> Iterator[NDArray[np.float32]]:
        """Yield the batch of each request, in order, made by worker processes ahead of their use."""
        wanted = [indices for indices, _ in requests]
        for kept in arrays_by_workers(self.kept, wanted, _workers(self.settings, self.way)):
            yield self.way.restored(kept)

    def facts(self, indices: IntArray) -> dict[str, list[Any]]:
        """Return what is known of the files at `indices`: see :func:`exmap.data.decode.file_facts`."""
        return facts_of_files(self.files, [self.names[i] for i in indices])

    def only(self, indices: IntArray) -> InputImages:
        """Return the images at `indices`, without the names of others."""
        names, masks = (tuple(texts[i] for i in indices.tolist()) for texts in (self.names, self.masks))
        files = files_alone(self.files, (*names, *masks))
        return replace(self, files=files, names=names, masks=masks, rows=self.rows[indices])

    def kept(self, indices: IntArray) -> NDArray[Any]:
        """Return the inputs at `indices` as they are kept."""
        if self.cache is not None and self.cache.is_file():  # another host may not have it
            array: NDArray[Any] = np.load(self.cache, mmap_mode="r", allow_pickle=False)
            return array[self.rows[indices]]
        return opened_again(self.way, self.files, self.names, self.masks, indices)


def open_inputs(
    files: Files,
    names: Sequence[str],
    masks: Sequence[str],
    settings: ImageSettings,
    preprocess: Preprocess,
    *,
    what: str = "images",
    listen: Listener = silent,
) -> tuple[Opened, Inputs]:
    """Open every image once, make a model's input of it, and keep these where that pays.

    Parameters
    ----------
    files, names, masks, settings, what, listen
        As in :func:`exmap.data.files.open_images`.
    preprocess : Preprocess

    Returns
    -------
    opened : Opened
    way : Inputs

    Raises
    ------
    UnfitError
        If the function fails on the first image that can be decoded, is random, or makes inputs of several sizes.
    """
    way = _way(files, names, masks, preprocess)
    settings = settings.model_copy(update={"workers": _workers(settings, way)})
    if settings.cache == "never":
        way = replace(way, exact=False)

    def opened(way: Inputs) -> Opened:
        return open_images(files, names, masks, settings, way=way, what=what, listen=listen)

    try:
        found = opened(way)
    except _InexactError:
        way = replace(way, exact=False)
        found = opened(way)
    if found.cache is not None and not _is_still_so(found, way, files, names, masks):
        (found.cache.parent / "done.json").unlink(missing_ok=True)  # made by another function of the same name
        found = opened(way)
    return found, way


def _way(files: Files, names: Sequence[str], masks: Sequence[str], preprocess: Preprocess) -> Inputs:
    """Return how images are opened, as the first of them that can be decoded show."""
    made: list[NDArray[np.float32]] = []
    places = np.unique(np.linspace(0, len(names) - 1, LOOKED_AT).astype(np.int64)).tolist()
    for row in [*places, *range(len(names))]:
        try:
            picture = decode_whole(*read_image(files, names[row], masks[row]))
        except DataError:
            continue
        try:
            made.append(preprocess(picture))
            again = [preprocess(picture) for _ in range(READS)] if len(made) == 1 else []
        except DataError as error:
            if made:
                continue
            raise UnfitError(f"{error}; the image was {names[row]}") from error
        if any(not np.array_equal(made[0], other) for other in again):
            raise UnfitError(
                f"{preprocess.about} must make the same input of an image each time, but it made others of "
                f"{names[row]}; leave out what it draws at random, as for evaluation"
            )
        if len(made) == LOOKED_AT or row == places[-1]:
            break
    if not made:  # none can be decoded, as the opening will say
        return Inputs(preprocess, (3, 1, 1))
    size = made[0].shape
    way = Inputs(preprocess, (size[0], size[1], size[2]), exact=True)
    same = [one for one in made if one.shape == size]
    exact = preprocess.mean is None or len(preprocess.mean) == size[0]
    exact = exact and all(np.array_equal(way.restored(way.bytes_of(one)[None])[0], one) for one in same)
    return replace(way, exact=bool(exact))


def _workers(settings: ImageSettings, way: Inputs) -> int:
    """Return the number of reading processes: none where the function cannot be sent to them."""
    if multiprocessing.get_start_method() != "fork":
        try:
            pickle.dumps(way.preprocess)
        except Exception:  # whatever the user's objects raise
            return 0
    return worker_count(settings)


def _is_still_so(found: Opened, way: Inputs, files: Files, names: Sequence[str], masks: Sequence[str]) -> bool:
    """Return whether a few inputs are what was kept of them."""
    whole = [row for row in range(len(names)) if row not in found.broken]
    if not whole or found.cache is None:
        return True
    places = np.unique(np.linspace(0, len(whole) - 1, LOOKED_AT).astype(np.int64))
    rows = np.array([whole[place] for place in places.tolist()], dtype=np.int64)
    kept = np.load(found.cache, mmap_mode="r", allow_pickle=False)[rows]
    return bool(np.array_equal(kept, opened_again(way, files, names, masks, rows)))
