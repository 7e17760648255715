"""Images that are read a batch at a time: what a model is given, and what one looks at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from exmap.data.arrays import check_pixels
from exmap.errors import DataError
from exmap.records import IntArray

__all__ = ["ArrayImages", "Images", "Request", "SomeImages", "facts_of", "taken_alone"]

Request = tuple[IntArray, int | None]  # the images of a batch, and the seed of random crops, None for none


class Images(Protocol):
    """Images that are read a batch at a time."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` as the model wants them: float32, shape (n, C, H, W)."""
        ...

    def pixels(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` as one looks at them: float32 in [0, 1], shape (n, C, H, W)."""
        ...

    def stream(self, requests: Iterable[Request]) -> Iterator[NDArray[np.float32]]:
        """Yield the batch of each request in order; they may be made ahead by other processes."""
        ...


@dataclass(frozen=True)
class ArrayImages:
    """Images held as an array: uint8 in [0, 255], read as [0, 1], or floating point, read as it is."""

    array: NDArray[np.uint8] | NDArray[np.floating]

    def __post_init__(self) -> None:
        if self.array.ndim != 4:
            raise DataError(f"images must have shape (N, C, H, W), got {self.array.shape}")
        check_pixels(self.array)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        _, c, h, w = self.array.shape
        return c, h, w

    def __len__(self) -> int:
        return len(self.array)

    def batch(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices`, float32, shape (n, C, H, W)."""
        batch = self.array[indices]
        scale = 255 if batch.dtype == np.uint8 else 1
        return np.asarray(batch, dtype=np.float32) / np.float32(scale)

    def pixels(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices`; what lies outside [0, 1] is stretched to it, each image by itself.

        Pixels that are not finite are black.
        """
        batch = np.nan_to_num(self.batch(indices), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = (f(batch, axis=(1, 2, 3), keepdims=True, initial=i) for f, i in ((np.min, 0), (np.max, 1)))
        stretched: NDArray[np.float32] = (batch - low) / (high - low)
        return stretched

    def stream(self, requests: Iterable[Request]) -> Iterator[NDArray[np.float32]]:
        """Yield the batch of each request; arrays are given as they are, without random crops."""
        return (self.batch(indices) for indices, _ in requests)

    def only(self, indices: IntArray) -> ArrayImages:
        """Return the images at `indices`, with no other image in memory."""
        return ArrayImages(self.array[indices])


@dataclass(frozen=True)
class SomeImages:
    """Some of other images, read as those are."""

    images: Images
    chosen: IntArray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        return self.images.shape

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` of these as the model wants them."""
        return self.images.batch(self.chosen[indices])

    def pixels(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` of these as one looks at them."""
        return self.images.pixels(self.chosen[indices])

    def stream(self, requests: Iterable[Request]) -> Iterator[NDArray[np.float32]]:
        """Yield the batch of each request in order."""
        return self.images.stream((self.chosen[indices], seed) for indices, seed in requests)

    def facts(self, indices: IntArray) -> dict[str, list[Any]]:
        """Return what is known of the files at `indices` of these; nothing where they are no files."""
        known: dict[str, list[Any]] = facts_of(self.images, self.chosen[indices])
        return known

    def only(self, indices: IntArray) -> Images:
        """Return the images at `indices` of these, and nothing of the others where that can be had."""
        return taken_alone(self.images, self.chosen[indices])


def facts_of(images: Images, indices: IntArray) -> dict[str, list[Any]]:
    """Return what is known of the files of images, a list per fact with a value per image; nothing if they are none."""
    read = getattr(images, "facts", None)
    found: dict[str, list[Any]] = {} if read is None else read(indices)
    return found


def taken_alone(images: Images, indices: IntArray) -> Images:
    """Return some images without the others, so that little is sent where they are sent to another process.

    Images that have no method ``only(indices)`` are sent whole.
    """
    alone = getattr(images, "only", None)
    found: Images = SomeImages(images, indices) if alone is None else alone(indices)
    return found
