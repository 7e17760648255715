"""Images that are not at hand: everything else about a split still can be had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from exmap.data.dataset import Request, Split
from exmap.errors import DataError
from exmap.records import IntArray

__all__ = ["MissingImages", "first_images_or_noise"]


@dataclass(frozen=True)
class MissingImages:
    """Images that are not at hand.

    Attributes
    ----------
    count : int
    shape : (int, int, int)
        Channels, height and width in pixels.
    why : str
        The middle of the sentence that is said where one asks for them.
    """

    count: int
    shape: tuple[int, int, int]
    why: str = "were not opened"

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: IntArray) -> NDArray[np.float32]:
        """Refuse."""
        self._refuse()

    def pixels(self, indices: IntArray) -> NDArray[np.float32]:
        """Refuse."""
        self._refuse()

    def stream(self, requests: Iterable[Request]) -> Iterator[NDArray[np.float32]]:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise DataError(f"images are needed here, but they {self.why}; say where they are with --data-dir")


def first_images_or_noise(split: Split) -> NDArray[np.float32]:
    """Return the first two images of a split, or noise of their shape where they are not at hand.

    To run a model once, so that its operations are seen.
    """
    if isinstance(split.images, MissingImages):
        return np.random.default_rng(0).random((min(2, len(split)), *split.images.shape), dtype=np.float32)
    return split.first_images()
