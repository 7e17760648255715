"""The items of a user's data set, (image, label) or a dict, read one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from exmap.data.arrays import label_of
from exmap.data.dataset import Request
from exmap.data.decode import as_rgb
from exmap.data.preprocess import Preprocess, input_of
from exmap.data.reading import FolderFiles, arrays_by_workers, facts_of_files
from exmap.errors import DataError, ExMapError
from exmap.importing import first_line
from exmap.records import IntArray

__all__ = ["Item", "ItemImages", "image_array", "item_of"]

IMAGE_KEYS = ("pixel_values", "image", "img", "images", "x", "input", "inputs")
LABEL_KEYS = ("label", "labels", "target", "targets", "y", "fine_label", "class")
KEPT = 512 * 2**20  # bytes of images that are kept once they were read
READS = 3  # of the first item: a random transform makes another image of it
NO_LABELS = ", or give the classifier's own predictions as labels to see what it looks at"
PIL_ALONE = "its images are pictures; give the transform that makes the model's input of one as transform="


class Item(NamedTuple):
    """One image and its label, as the data set gives them."""

    image: Any
    label: Any


def item_of(given: Any) -> Item:
    """Return the image and the label of an item of a data set.

    Raises
    ------
    DataError
        If it has no label, or is of no known form.
    """
    if isinstance(given, Mapping):
        image = next((given[key] for key in IMAGE_KEYS if key in given), None)
        label = next((given[key] for key in LABEL_KEYS if key in given), None)
        if image is not None and label is not None:
            return Item(image, label)
        found = ", ".join(map(str, given))
        if image is None:
            raise DataError(
                f"each item must have an image under one of {', '.join(IMAGE_KEYS)}, found {found}; rename a column"
            )
        raise DataError(
            f"each item must have a label under one of {', '.join(LABEL_KEYS)}, found {found}; rename a "
            f"column{NO_LABELS}"
        )
    if isinstance(given, (tuple, list)) and len(given) >= 2:
        return Item(given[0], given[1])
    raise DataError(
        f"each item of a data set must be (image, label) or a dict of them, got {type(given).__name__}; add labels"
        f"{NO_LABELS}"
    )


def image_array(image: Any, preprocess: Preprocess | None, where: str) -> NDArray[np.float32]:
    """Return an image of a data set as the model wants it, float32, shape (C, H, W).

    Raises
    ------
    DataError
        If it is a picture and there is no transform, or the shape is none of an image.
    """
    if preprocess is not None:
        if isinstance(image, Image.Image):
            return preprocess(as_rgb(image))
        if isinstance(image, np.ndarray) and image.dtype == np.uint8:
            last = image if image.ndim == 2 or image.shape[-1] <= 4 else image.transpose(1, 2, 0)
            return preprocess(as_rgb(Image.fromarray(np.squeeze(last))))
        try:
            return input_of(preprocess.function(image), preprocess.about)
        except ExMapError:
            raise
        except Exception as error:  # in the user's code
            raise DataError(f"{preprocess.about} failed on {where} with {first_line(error)}") from error
    if isinstance(image, Image.Image):
        raise DataError(f"{where} of the data set is a picture, and a model takes numbers: {PIL_ALONE}")
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
        found = tuple(image.shape) if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"an image must have shape (C, H, W), but {where} of the data set is {found}")
    image = image[None] if image.ndim == 2 else image
    if image.shape[0] > 4 and image.shape[2] <= 4:
        image = image.transpose(2, 0, 1)
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image, dtype=np.float32) / np.float32(255)
    return input_of(image, where)


@dataclass(frozen=True, eq=False)
class ItemImages:
    """Some of the images of a user's data set, read when they are asked for.

    Attributes
    ----------
    dataset : object
        With ``len`` and items by number.
    rows : ndarray of int64, shape (N,)
        Which of its items.
    preprocess : Preprocess or None
        What is applied to its images; None where the data set does that.
    shown : Preprocess or None
        Whose normalisation is undone for looking.
    size : (int, int, int)
    collate : callable or None
        A loader's, for items of a form that only this understands.
    workers : int
        Reading processes.
    paths : tuple of str
        Where the images lie; () where that is not known.
    """

    dataset: Any
    rows: IntArray
    preprocess: Preprocess | None
    shown: Preprocess | None
    size: tuple[int, int, int]
    collate: Callable[[list[Any]], Any] | None = None
    workers: int = 0
    paths: tuple[str, ...] = ()
    memory: dict[int, NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        dataset: Any,
        rows: IntArray,
        preprocess: Preprocess | None,
        shown: Preprocess | None,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int = 0,
    ) -> ItemImages:
        """Look at the first image of a data set.

        Raises
        ------
        DataError
            If it cannot be read, or is another one each time.
        """
        made = cls(dataset, rows, preprocess, shown, (0, 0, 0), workers=workers)
        try:
            made._array(0)
        except DataError:
            if collate is None:
                raise
            made = replace(made, collate=collate)
        first, *again = [made._array(0) for _ in range(1 + READS)]
        if any(not np.array_equal(first, other) for other in again):
            raise DataError(
                "each image must be the same each time it is read, but the first of the data set is not: give the data "
                "set with the transform of evaluation, that draws nothing at random"
            )
        return replace(made, size=(first.shape[0], first.shape[1], first.shape[2]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        return self.size

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "memory": {}}  # another process reads its own

    def item(self, place: int) -> Item:
        """Return an image and its label, as the data set gives them."""
        image, label = self._item(place)
        return Item(image, label_of(label))

    def array(self, place: int) -> NDArray[np.float32]:
        """Return an image as the model wants it, float32, shape (C, H, W)."""
        found = self.memory.get(place)
        if found is not None:
            return found
        made = self._array(place)
        if made.shape != self.size:
            raise DataError(
                f"all images must have one shape, but {self._where(place)} has {made.shape} and the first {self.size}; "
                "give a transform that resizes and crops"
            )
        if len(self) * made.nbytes <= KEPT:
            self.memory[place] = made
        return made

    def batch(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices`, float32, shape (n, C, H, W)."""
        if not len(indices):
            return np.empty((0, *self.size), dtype=np.float32)
        return np.stack([self.array(int(place)) for place in indices])

    def pixels(self, indices: IntArray) -> NDArray[np.float32]:
        """Return what the model saw, in [0, 1]: see :meth:`exmap.data.preprocess.Preprocess.shown`."""
        return (self.shown or Preprocess(_nothing)).shown(self.batch(indices))

    def stream(self, requests: Iterable[Request]) -> Iterator[NDArray[np.float32]]:
        """Yield the batch of each request, in order."""
        wanted = [indices for indices, _ in requests]
        if not self.workers or len(self) * 4 * int(np.prod(self.size)) <= KEPT:
            yield from map(self.batch, wanted)
            return
        yield from arrays_by_workers(self.batch, wanted, self.workers)

    def facts(self, indices: IntArray) -> dict[str, list[Any]]:
        """Return what is known of the files at `indices`; nothing where they are not known."""
        if not self.paths:
            return {}
        return facts_of_files(FolderFiles(Path()), [self.paths[i] for i in indices])

    def _where(self, place: int) -> str:
        return self.paths[place] if self.paths else f"image {int(self.rows[place])}"

    def _item(self, place: int) -> Item:
        try:
            given = self.dataset[int(self.rows[place])]
            if self.collate is not None:
                image, label = item_of(self.collate([given]))
                return Item(image[0], label[0])
        except ExMapError:
            raise
        except Exception as error:  # in the user's code
            raise DataError(
                f"{self._where(place)} of the data set could not be read ({first_line(error)}); index the data set by "
                "itself to see where"
            ) from error
        return item_of(given)

    def _array(self, place: int) -> NDArray[np.float32]:
        return image_array(self._item(place).image, self.preprocess, self._where(place))


def _nothing(image: Any) -> Any:
    return image
