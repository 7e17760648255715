"""The protocol every data set fits: images, labels, ids; true groups aside.

A step that learns or groups receives images, labels and ids. The true groups of a split sit behind
:meth:`Split.true_groups`, which only evaluation, and the baselines that say "oracle", may call; a test of the
project's own source keeps it so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.data.arrays import label_index, pixel_array, pixel_notes
from exmap.data.images import ArrayImages, Images, Request, SomeImages, facts_of
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
    "facts_of",
]

LOOKED_AT = 64  # of the first images, some of which may not be finite


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
    truth : TrueGroups or None
    metadata : mapping of str to sequence
        Other columns of the user's table, a value per image: to describe groups with, never to make them.
    notes : tuple of str
        Sentences on how the images and labels were understood.
    """

    name: str
    images: Images
    labels: IntArray
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    truth: TrueGroups | None = field(default=None, repr=False)
    metadata: Mapping[str, Sequence[Any]] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)

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
        for column, values in self.metadata.items():
            if len(values) != len(self.labels):
                raise DataError(
                    f"metadata of split {self.name} must have a value per image, but column {column} has {len(values)} "
                    f"for {len(self.labels)} images"
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
        """Return some of the images, with their labels, ids, true groups and metadata."""
        truth = None if self.truth is None else replace(self.truth, index=self.truth.index[rows])
        places = rows.tolist()
        return replace(
            self,
            images=SomeImages(self.images, rows),
            labels=self.labels[rows],
            ids=tuple(self.ids[row] for row in places),
            truth=truth,
            metadata={name: [values[row] for row in places] for name, values in self.metadata.items()},
        )

    def first_rows(self) -> IntArray:
        """Return which images are looked at first: two, or the only one, whose pixels are finite where there are such.

        A few are read; where none of them is finite, they are the first.
        """
        return self._first()[0]

    def first_images(self) -> NDArray[np.float32]:
        """Return the images at :meth:`first_rows` as the model wants them: to run it once and look at it."""
        return self._first()[1]

    def _first(self) -> tuple[IntArray, NDArray[np.float32]]:
        """Return the rows of the first images and these, each read once."""
        rows = np.arange(min(2, len(self)), dtype=np.int64)
        images = self.images.batch(rows)
        if np.isfinite(images).all():
            return rows, images
        few = self.images.batch(np.arange(min(LOOKED_AT, len(self)), dtype=np.int64))
        finite = np.flatnonzero(np.isfinite(few).all(axis=(1, 2, 3)))[:2]
        return (finite, few[finite]) if len(finite) else (rows, images)

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
    ignored : mapping of str to sequence of str
        What lies beside the images and is none of them, by kind: hidden files, text, empty files.
    notes : tuple of str
        Sentences on what was done about the data: duplicates left out, classes without images.
    cross_fitted : bool
        Whether the test split is the validation split itself, so that what is fitted to some of its images must be
        measured on the others.
    """

    name: str
    train: Split
    val: Split
    test: Split
    digests: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)
    ignored: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    cross_fitted: bool = False

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
        """Raise DataError unless every split has at least two samples of every class that any of them has.

        A class that none of them has is an output of the classifier that no label uses.
        """
        splits = (self.train, self.val, self.test)
        counted = [np.bincount(split.labels, minlength=split.n_classes) for split in splits]
        used = np.sum(counted, axis=0) > 0
        if used.sum() < 2:
            found = ", ".join(repr(name) for name, one in zip(self.train.class_names, used, strict=True) if one)
            raise DataError(f"2 or more classes must have images, found images of {found or 'none'}; add another class")
        for split, counts in zip(splits, counted, strict=True):
            for name, count, one in zip(split.class_names, counts, used, strict=True):
                if count < 2 and one:
                    raise DataError(
                        f"each class needs at least 2 samples in each split, but class {name!r} has {count} in split "
                        f"{split.name}; add samples or leave the class out"
                    )


def batch_slices(total: int, size: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `size` that cover ``range(total)``."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def array_split(
    images: Any,
    labels: Any,
    *,
    name: str = "val",
    class_names: Sequence[str] | None = None,
    true_groups: Any = None,
    group_names: Sequence[str] | None = None,
) -> Split:
    """Make a split from arrays of your own.

    Parameters
    ----------
    images : array-like or Tensor, shape (N, C, H, W)
        uint8 in [0, 255], or floating point as your model wants it; other integers are refused. Also (N, H, W, C) where
        only that has 1 to 4 channels, and (N, H, W) of grey images.
    labels : array-like, shape (N,)
        Numbers of classes from 0 on, or their names.
    name : str
        Also the stem of the ids.
    class_names : sequence of str, optional
        By default the class numbers, or the names as they are sorted.
    true_groups : array-like of int, shape (N,), optional
        For evaluation only.
    group_names : sequence of str, optional
        One per true group.

    Raises
    ------
    DataError
        For images or labels that are not surely understood: see :mod:`exmap.data.arrays`.

    Examples
    --------
    >>> split = array_split(np.zeros((2, 3, 8, 8), dtype=np.uint8), [0, 1])
    >>> split.ids
    ('val/0', 'val/1')
    """
    pixels = pixel_array(images)
    classes, y, notes = label_index(labels, class_names)
    if len(y) != len(pixels):
        raise DataError(f"there must be one label per image, got {len(y)} for {len(pixels)} images")
    truth = None
    if true_groups is not None:
        names, index, more = label_index(true_groups, group_names, "true_groups")
        notes += more
        numbered = group_names is None and all(name.isdecimal() for name in names)
        truth = TrueGroups(index, tuple(f"group {name}" for name in names) if numbered else names)
    ids = tuple(f"{name}/{i}" for i in range(len(y)))
    return Split(name, ArrayImages(pixels), y, ids, classes, truth, notes=(*notes, *pixel_notes(pixels)))
