"""The protocol every data set fits: images, labels, ids; true groups aside.

A step that learns or groups receives images, labels and ids. The true groups of a split sit behind
:meth:`Split.true_groups`, which only evaluation, and the baselines that say "oracle", may call; a test of the
project's own source keeps it so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exmap.errors import DataError
from exmap.records import IntArray

__all__ = [
    "ArrayImages",
    "Attribute",
    "Images",
    "Request",
    "SomeImages",
    "Split",
    "Task",
    "TrueGroups",
    "array_split",
    "batch_slices",
]


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
        """Return the images at `indices`; what lies outside [0, 1] is stretched to it, each image by itself."""
        batch = self.batch(indices)
        low, high = (f(batch, axis=(1, 2, 3), keepdims=True, initial=i) for f, i in ((np.min, 0), (np.max, 1)))
        stretched: NDArray[np.float32] = (batch - low) / (high - low)
        return stretched

    def stream(self, requests: Iterable[Request]) -> Iterator[NDArray[np.float32]]:
        """Yield the batch of each request; arrays are given as they are, without random crops."""
        return (self.batch(indices) for indices, _ in requests)


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


@dataclass(frozen=True)
class Attribute:
    """A spurious attribute: its name, its value for each sample (int64, shape (N,)), and the names of its values."""

    name: str
    values: IntArray
    value_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TrueGroups:
    """The true group of each sample: for evaluation, and for baselines that say "oracle" in their name.

    Attributes
    ----------
    index : ndarray of int64, shape (N,), in [0, G)
    names : tuple of str
        One per group.
    attributes : tuple of str
        Names of the A spurious attributes that groups are made of; empty where that is not known.
    coordinates : ndarray of int64, shape (G, 1 + A), or None
        Class and attribute values of each group.
    """

    index: IntArray
    names: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    coordinates: IntArray | None = None

    @classmethod
    def cross(cls, labels: IntArray, class_names: Sequence[str], attributes: Sequence[Attribute]) -> TrueGroups:
        """Cross the class with every attribute: group = class * n_attributes + attribute, and so on for more.

        Examples
        --------
        >>> colour = Attribute("colour", np.array([0, 1]), ("red", "green"))
        >>> groups = TrueGroups.cross(np.array([0, 1]), ["cat", "dog"], [colour])
        >>> groups.names, groups.index
        (('cat, red', 'cat, green', 'dog, red', 'dog, green'), array([0, 3]))
        """
        shape = (len(class_names), *(len(attribute.value_names) for attribute in attributes))
        coordinates = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=1).astype(np.int64)
        texts = (class_names, *(attribute.value_names for attribute in attributes))
        names = tuple(", ".join(text[i] for text, i in zip(texts, row, strict=True)) for row in coordinates)
        index = np.ravel_multi_index((labels, *(attribute.values for attribute in attributes)), shape)
        return cls(index.astype(np.int64), names, tuple(attribute.name for attribute in attributes), coordinates)

    def counts(self) -> IntArray:
        """Return the number of samples in each true group, shape (G,)."""
        return np.bincount(self.index, minlength=len(self.names)).astype(np.int64)


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One split of a task.

    Attributes
    ----------
    name : str
        ``train``, ``val`` or ``test``.
    images : Images
    labels : ndarray of int64, shape (N,), in [0, K)
    ids : tuple of str
        Unique within the split.
    class_names : tuple of str
        One per class.
    """

    name: str
    images: Images
    labels: IntArray
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    truth: TrueGroups | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.labels) == len(self.ids):
            raise DataError(
                f"split {self.name} must have one label and id per image, got {len(self.images)} images, "
                f"{len(self.labels)} labels, {len(self.ids)} ids"
            )
        if self.truth is not None and (
            len(self.truth.index) != len(self.labels)
            or not set(np.unique(self.truth.index)) <= set(range(len(self.truth.names)))
        ):
            raise DataError(
                f"split {self.name} must have one true group per image, numbered from 0 and named, got "
                f"{len(self.truth.index)} for {len(self.labels)} images and {len(self.truth.names)} names"
            )
        if len(set(self.ids)) != len(self.ids):
            raise DataError(f"split {self.name} must have unique ids; {len(self.ids) - len(set(self.ids))} repeat")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise DataError(
                f"labels of split {self.name} must lie in [0, {len(self.class_names) - 1}], got "
                f"{self.labels.min()} to {self.labels.max()}; name every class"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.images.shape))
        return f"Split({self.name}, {len(self):,} images of {shape}, {self.n_classes} classes)"

    def rows(self, rows: IntArray) -> Split:
        """Return some of the images, with their labels, ids and true groups."""
        truth = None if self.truth is None else replace(self.truth, index=self.truth.index[rows])
        ids = tuple(self.ids[row] for row in rows.tolist())
        return replace(self, images=SomeImages(self.images, rows), labels=self.labels[rows], ids=ids, truth=truth)

    def first_images(self) -> NDArray[np.float32]:
        """Return the first two images, or the only one, as the model wants them: to run it once and look at it."""
        return self.images.batch(np.arange(min(2, len(self)), dtype=np.int64))

    def batches(self, size: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield (slice of the split, images) in order, each image once."""
        parts = list(batch_slices(len(self), size))
        rows = ((np.arange(part.start, part.stop, dtype=np.int64), None) for part in parts)
        yield from zip(parts, self.images.stream(rows), strict=True)

    def true_groups(self) -> TrueGroups:
        """Return the true groups, for evaluation only.

        Raises
        ------
        DataError
            If the data set has none.
        """
        if self.truth is None:
            raise DataError(f"split {self.name} has no true groups; evaluate by class, or name its group columns")
        return self.truth


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """Train, validation and test split of one data set, and where they come from.

    Attributes
    ----------
    name : str
    train, val, test : Split
    digests : mapping of str to str
        SHA-256 of the files, or of the list of files, that it was read from.
    skipped : mapping of str to str
        Images that were left out, with the reason.
    reading : mapping of str to Any
        How image files are read: how many, whether decoded ones are kept, and images per second when first opened.
    """

    name: str
    train: Split
    val: Split
    test: Split
    digests: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return self.train.n_classes

    def __repr__(self) -> str:
        splits = ", ".join(f"{split.name} {len(split):,}" for split in (self.train, self.val, self.test))
        return f"Task({self.name}, {self.n_classes} classes; images: {splits})"

    def split(self, name: str) -> Split:
        """Return a split by its name: ``train``, ``val`` or ``test``."""
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def check(self) -> None:
        """Raise DataError unless every split has at least two samples of every class."""
        for split in (self.train, self.val, self.test):
            counts = np.bincount(split.labels, minlength=split.n_classes)
            for name, count in zip(split.class_names, counts, strict=True):
                if count < 2:
                    raise DataError(
                        f"each class needs at least 2 samples in each split, but class {name!r} has {count} in split "
                        f"{split.name}; add samples or leave the class out"
                    )


def batch_slices(total: int, size: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `size` that cover ``range(total)``."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def array_split(
    images: NDArray[np.uint8] | NDArray[np.floating],
    labels: ArrayLike,
    *,
    name: str = "val",
    class_names: Sequence[str] | None = None,
    true_groups: ArrayLike | None = None,
    group_names: Sequence[str] | None = None,
) -> Split:
    """Make a split from arrays of your own.

    Parameters
    ----------
    images : ndarray, shape (N, C, H, W)
        uint8 in [0, 255], or floating point as your model wants it.
    labels : array-like of int, shape (N,)
    name : str
        Also the stem of the ids.
    class_names : sequence of str, optional
        By default the class numbers.
    true_groups : array-like of int, shape (N,), optional
        For evaluation only.
    group_names : sequence of str, optional
        One per true group.

    Examples
    --------
    >>> split = array_split(np.zeros((2, 3, 8, 8), dtype=np.uint8), [0, 1])
    >>> split.ids
    ('val/0', 'val/1')
    """
    y = np.asarray(labels, dtype=np.int64)
    classes = tuple(map(str, range(int(y.max(initial=-1)) + 1)) if class_names is None else class_names)
    truth = None
    if true_groups is not None:
        index = np.asarray(true_groups, dtype=np.int64)
        numbered = [f"group {g}" for g in range(int(index.max(initial=-1)) + 1)]
        names = tuple(numbered if group_names is None else group_names)
        truth = TrueGroups(index, names)
    return Split(name, ArrayImages(images), y, tuple(f"{name}/{i}" for i in range(len(y))), classes, truth)
