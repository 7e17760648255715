"""A table of image files: one row per image with its label, its split and its spurious attributes.

Every data set that lies in files is read into this one form, and from it into a task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from exmap.data.dataset import Attribute, Images, Split, Task, TrueGroups
from exmap.data.duplicates import copies_of, duplicate_notes
from exmap.data.files import FileImages, Files, Opened, open_images
from exmap.data.inputs import InputImages, Inputs, open_inputs
from exmap.data.junk import is_text
from exmap.data.labels import listed
from exmap.data.preprocess import Preprocess
from exmap.data.reading import may_pass
from exmap.errors import DataError
from exmap.records import IntArray, Listener, silent
from exmap.runtime import generator
from exmap.settings import ImageSettings

__all__ = [
    "SPLITS",
    "ImageTable",
    "OpenedTable",
    "broken_images",
    "relative_name",
    "task_from_table",
    "unused_classes",
    "with_splits",
]

SPLITS = ("train", "val", "test")
NAMED, FEW = 20, 5  # unreadable images that an error names, and a note
MOST_GROUPS = 10_000  # an attribute with a value per image is none


@dataclass(frozen=True)
class ImageTable:
    """One row per image.

    Attributes
    ----------
    name : str
        Of the data set.
    files : Files
        Where the bytes come from.
    names : tuple of str
        The images, unique; for files the path below the root.
    labels : ndarray of int64, shape (N,), in [0, K)
    splits : ndarray of int64, shape (N,)
        Position in :data:`SPLITS`; -1 where the data name none.
    class_names : tuple of str
    attributes : tuple of Attribute
        For evaluation only.
    masks : tuple of str
        One per image, empty where there is none; () for no masks at all.
    digests : mapping of str to str
        SHA-256 of the files that hold the table.
    metadata : mapping of str to sequence of str
        Other columns, a text per image, empty where there is none: to describe groups with.
    ignored : mapping of str to sequence of str
        What lies beside the images, by kind.
    notes : tuple of str
        Sentences on what was done about the data.
    """

    name: str
    files: Files
    names: tuple[str, ...]
    labels: IntArray
    splits: IntArray
    class_names: tuple[str, ...]
    attributes: tuple[Attribute, ...] = ()
    masks: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ignored: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError(f"{self.name} must list images, found none; give a folder or table that holds some")
        seen: set[str] = set()
        for name in self.names:
            if name in seen:
                raise DataError(f"each image must be listed once, but {self.name} lists {name} again; leave one out")
            seen.add(name)
        _check_names(self.name, (*self.names, *self.class_names))
        if len(self.class_names) < 2:
            raise DataError(f"{self.name} must have 2 or more classes, found only {self.class_names[0]!r}; add another")
        groups = math.prod([len(self.class_names), *(len(a.value_names) for a in self.attributes)])
        if groups > MOST_GROUPS:
            raise DataError(
                f"classes and attributes of {self.name} must make at most {MOST_GROUPS:,} groups, got {groups:,}; name "
                "attributes of few values"
            )

    def take(self, rows: IntArray) -> ImageTable:
        """Return the table of some rows."""
        return replace(
            self,
            names=tuple(self.names[i] for i in rows),
            labels=self.labels[rows],
            splits=self.splits[rows],
            attributes=tuple(replace(a, values=a.values[rows]) for a in self.attributes),
            masks=tuple(self.masks[i] for i in rows) if self.masks else (),
            metadata={name: [values[i] for i in rows] for name, values in self.metadata.items()},
        )

    def groups(self) -> TrueGroups:
        """Return class crossed with every attribute."""
        return TrueGroups.cross(self.labels, self.class_names, self.attributes)

    def counts(self) -> dict[str, IntArray]:
        """Return, per split, the number of images in each group."""
        groups = self.groups()
        return {
            split: np.bincount(groups.index[self.splits == number], minlength=len(groups.names)).astype(np.int64)
            for number, split in enumerate(SPLITS)
        }


def _check_names(where: str, names: Sequence[str]) -> None:
    """Refuse names that cannot be written into a file: those that a file system keeps in another coding."""
    for name in names:
        if not is_text(name):
            raise DataError(
                f"names of images and classes must be in UTF-8, but {where} has {name!a}; rename it, for example by "
                "convmv"
            )


def relative_name(text: str, where: str, root: str = "") -> str:
    """Return a path as it stands in a table, checked to lie below the root.

    Raises
    ------
    DataError
        For an empty path, an absolute one (or with a drive) that does not start with `root`, or one with ``..`` in it.
    """
    path, above = (PurePosixPath(name.replace("\\", "/")) for name in (text, root))
    if root and path.is_relative_to(above):
        path = path.relative_to(above)
    outside = path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", str(path))
    if not text.strip() or outside or "\0" in text:
        raise DataError(
            f"an image's path must lie below the data set's folder, got {text!r} in {where}; write it relative to the "
            "folder"
        )
    return str(path)


def with_splits(table: ImageTable, val_share: float, test_share: float, seed: int) -> ImageTable:
    """Fill in the splits that a table lacks, class by class: the same seed makes the same ones.

    A table without any split is divided in three. Where only validation or test images are missing, they are taken
    from the training images.

    Raises
    ------
    DataError
        If only some of the rows have a split, if there are no training images, or if a class is too small.
    """
    present = [bool((table.splits == number).any()) for number in range(3)]
    none = table.splits < 0
    if none.any() and not none.all():
        raise DataError(
            f"either every image of {table.name} must have a split or none, but {int(none.sum())} of "
            f"{len(none)} have none; fill the column, or leave it out"
        )
    if all(present):
        return table
    if not none.all() and not present[0]:
        raise DataError(f"{table.name} must hold training images, but its splits name none; call them train")
    shares = [0.0 if present[1] else val_share, 0.0 if present[2] else test_share]
    if sum(shares) >= 1:
        raise DataError(
            f"data.val_share and data.test_share must leave something to train on, got {val_share} and {test_share}"
        )
    splits = np.zeros_like(table.splits) if none.all() else table.splits.copy()
    rng = generator(seed, "splits")
    for label, name in enumerate(table.class_names):
        rows = rng.permutation(np.flatnonzero((table.labels == label) & (splits == 0)))
        if not (table.labels == label).any():  # an output of a classifier that no label uses
            continue
        sizes = [max(2, round(share * len(rows))) if share else 0 for share in shares]
        if len(rows) - sum(sizes) < 2:
            raise DataError(
                f"each class needs at least 2 images in each split, but class {name!r} of {table.name} has "
                f"{len(rows)} to share out; add images or leave the class out"
            )
        splits[rows[: sizes[0]]] = 1
        splits[rows[sizes[0] : sum(sizes)]] = 2
    return replace(table, splits=splits)


def broken_images(broken: Mapping[int, str], names: Sequence[str], most: int = NAMED) -> list[str]:
    """Return one phrase per unreadable image, the first `most` of them, and how many more there are."""
    said = [f"{names[row]} ({why})" for row, why in sorted(broken.items())[:most]]
    return said + ([f"and {len(broken) - most} more"] if len(broken) > most else [])


def task_from_table(
    table: ImageTable, settings: ImageSettings, *, preprocess: Preprocess | None = None, listen: Listener = silent
) -> Task:
    """Open every image of a table once and make a task of it.

    Parameters
    ----------
    table : ImageTable
        With a split for every row.
    settings : ImageSettings
        ``on_error`` decides what unreadable images lead to.
    preprocess : Preprocess, optional
        What makes a model's input of an image; by default squares, as the settings say.
    listen : Listener

    Returns
    -------
    Task

    Raises
    ------
    DataError
        That names the unreadable images, unless they are to be skipped.
    """
    whole = OpenedTable.of(table, settings, preprocess=preprocess, listen=listen)
    train, val, test = (whole.split(name, np.flatnonzero(table.splits == number)) for number, name in enumerate(SPLITS))
    about = whole.about()
    about["notes"] += unused_classes(table.class_names, np.concatenate([part.labels for part in (train, val, test)]))
    return Task(table.name, train, val, test, **about)


def unused_classes(class_names: Sequence[str], labels: IntArray) -> tuple[str, ...]:
    """Return a sentence on the classes that no image has, if there are such: outputs of a classifier all the same."""
    unused = [name for k, name in enumerate(class_names) if not (labels == k).any()]
    what = f"{len(unused):,} {'class' if len(unused) == 1 else 'classes'}"
    return (f"{what} of the classifier without images: {listed(unused)}.",) if unused else ()


@dataclass(frozen=True)
class OpenedTable:
    """A table whose images were all opened once.

    Attributes
    ----------
    table : ImageTable
    settings : ImageSettings
    opened : Opened
    way : Inputs or None
        How a preprocessing makes inputs of the images.
    """

    table: ImageTable
    settings: ImageSettings
    opened: Opened
    way: Inputs | None

    @classmethod
    def of(
        cls, table: ImageTable, settings: ImageSettings, *, preprocess: Preprocess | None, listen: Listener
    ) -> OpenedTable:
        """Open the images of a table; see :func:`task_from_table`."""
        masks, way = table.masks or ("",) * len(table.names), None
        if preprocess is None:
            opened = open_images(table.files, table.names, masks, settings, what=table.name, listen=listen)
        else:
            opened, way = open_inputs(
                table.files, table.names, masks, settings, preprocess, what=table.name, listen=listen
            )
        passing = any(map(may_pass, opened.broken.values()))
        if opened.broken and (settings.on_error == "stop" or passing or len(opened.broken) == len(table.names)):
            remedy = "Mend them or take them out, or leave them out with --set images.on_error=skip"
            if passing:
                remedy = "This may be temporary: check their disk and rerun the same command"
            raise DataError(
                f"{len(opened.broken)} of {len(table.names)} images of {table.name} cannot be read: "
                f"{'; '.join(broken_images(opened.broken, table.names))}. {remedy}"
            )
        return cls(table, settings, opened, way)

    def split(self, name: str, rows: IntArray) -> Split:
        """Return a split of those of some rows whose images can be read."""
        table, cache = self.table, self.opened.cache
        rows = np.array([row for row in rows.tolist() if row not in self.opened.broken], dtype=np.int64)
        names, masks = (
            tuple(texts[i] for i in rows) if texts else ("",) * len(rows) for texts in (table.names, table.masks)
        )
        images: Images
        if self.way is None:
            images = FileImages(table.files, names, masks, self.settings, cache, rows)
        else:
            images = InputImages(table.files, names, masks, self.settings, self.way, cache, rows)
        truth = table.groups() if table.attributes else None
        return Split(
            name=name,
            images=images,
            labels=table.labels[rows],
            ids=names,
            class_names=table.class_names,
            truth=None if truth is None else replace(truth, index=truth.index[rows]),
            metadata={column: [values[i] for i in rows] for column, values in table.metadata.items()},
        )

    def about(self) -> dict[str, Any]:
        """Return the fields of a task that say where its images come from."""
        table, broken = self.table, self.opened.broken
        transform = {"transform": self.way.preprocess.source} if self.way and self.way.preprocess.source else {}
        copies = copies_of(["" if row in broken else digest for row, digest in enumerate(self.opened.digests)])
        splits = [SPLITS[number] if number >= 0 else "" for number in table.splits]
        left_out: tuple[str, ...] = ()
        if broken:
            left_out = (
                f"{len(broken):,} of {len(table.names):,} images cannot be read and are left out: "
                f"{'; '.join(broken_images(broken, table.names, FEW))}.",
            )
        return {
            "digests": {**table.digests, **transform, "images": self.opened.digest},
            "skipped": {table.names[row]: why for row, why in sorted(broken.items())},
            "reading": _reading(table, self.opened, sum(len(rows) - 1 for rows in copies)),
            "ignored": table.ignored,
            "notes": (
                *table.notes,
                *left_out,
                *duplicate_notes(copies, table.names, table.labels, table.class_names, splits),
            ),
        }


def _reading(table: ImageTable, opened: Opened, copies: int) -> dict[str, Any]:
    return {
        "images": len(table.names),
        **({"copies": copies} if copies else {}),
        "kept_decoded": opened.cache is not None,
        "images_per_second_when_opened": round(opened.images_per_second, 1),
    }
