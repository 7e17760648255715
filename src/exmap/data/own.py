"""Your own images: a table that lists them, or a folder per class."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exmap.data.columns import column, read_table
from exmap.data.dataset import Attribute
from exmap.data.decode import SUFFIXES
from exmap.data.entry import Entry
from exmap.data.files import FolderFiles
from exmap.data.junk import LINKED, LOOSE, Junk, is_text
from exmap.data.labels import listed, meaning, read_labels
from exmap.data.one_set import with_classes
from exmap.data.table import SPLITS, ImageTable, relative_name, with_splits
from exmap.errors import DataError
from exmap.plain_text import printable
from exmap.records import IntArray
from exmap.registry import DATASETS
from exmap.settings import DataSettings

__all__ = [
    "SPLIT_NAMES",
    "as_set",
    "attributes_of",
    "filled",
    "image_folder",
    "image_table",
    "same_splits",
    "split_number",
]

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}
SPLIT_NAMES = {**SPLIT_FOLDERS, "0": 0, "1": 1, "2": 2}


def image_table(settings: DataSettings) -> ImageTable:
    """Read a CSV or Parquet table with a row per image.

    Parameters
    ----------
    settings : DataSettings
        ``table`` lies in ``dir``, and paths in it start there; without ``dir`` they start where the table lies.

    Raises
    ------
    DataError
        If the table, one of its columns, or a value is missing; if a path leaves the folder or comes twice.
    """
    if settings.table is None:
        raise DataError("your own images need their table, and none was given; name it with --set data.table=FILE")
    path = settings.table if settings.dir is None else settings.dir / settings.table
    root = path.parent if settings.dir is None else settings.dir
    columns, digest = read_table(path)
    where = str(path)
    paths = column(columns, settings.image_column or "path", path)
    absolute = os.path.abspath(root)
    labels = read_labels(
        filled(column(columns, settings.label_column, path), settings.label_column, where),
        f"column {settings.label_column} of {path.name}",
        classes=settings.classes,
    )
    groups = {name: filled(column(columns, name, path), name, where) for name in settings.group_columns}
    used = {settings.image_column or "path", settings.label_column, settings.split_column or "split", *groups, ""}
    attributes, notes = attributes_of(groups, path.name)
    table = ImageTable(
        name=printable(path.stem),
        files=FolderFiles(root),
        names=tuple(relative_name(text, where, absolute) for text in paths),
        labels=labels.index,
        splits=_splits(columns, settings.split_column, path, len(paths)),
        class_names=labels.names,
        attributes=attributes,
        notes=(*labels.notes, *notes),
        digests={path.name: digest},
        metadata={name: values for name, values in columns.items() if name not in used},
    )
    return as_set(table, settings)


def as_set(table: ImageTable, settings: DataSettings) -> ImageTable:
    """Return a table of a user's own with the classes in order and, unless it is one set, with all splits.

    Raises
    ------
    DataError
        If a label is no class, or splits cannot be drawn.
    """
    table = with_classes(table, settings.classes)
    if settings.one_set:
        return table
    return with_splits(table, settings.val_share, settings.test_share, settings.split_seed)


def attributes_of(groups: Mapping[str, Sequence[str]], where: str) -> tuple[tuple[Attribute, ...], tuple[str, ...]]:
    """Return group columns as spurious attributes, whose values are named after their column; and notes on them."""
    made: list[Attribute] = []
    notes: list[str] = []
    for name, texts in groups.items():
        read = read_labels(texts, f"column {name} of {where}", told="")
        made.append(Attribute(name, read.index, tuple(f"{name} {value}" for value in read.names)))
        notes += read.notes
    return tuple(made), tuple(notes)


def filled(values: Sequence[str], name: str, where: str, first: int = 2) -> Sequence[str]:
    """Return values, all of which must be there.

    Raises
    ------
    DataError
        That names the row of the first one that is not.
    """
    for row, value in enumerate(values, start=first):
        if not value:
            raise DataError(f"column {name} of {where} must have a value for every image, but row {row} is empty")
    return values


def _splits(columns: Any, name: str | None, path: Path, rows: int) -> IntArray:
    if name is None and "split" not in columns:
        return np.full(rows, -1, dtype=np.int64)
    texts = column(columns, name or "split", path)
    return np.array([split_number(text, f"row {row + 2} of {path}") for row, text in enumerate(texts)], dtype=np.int64)


def split_number(text: str, where: str) -> int:
    """Return the number of a split by one of its names; -1 for none.

    Raises
    ------
    DataError
        For another name, with the closest one.
    """
    if not text:
        return -1
    word = str(meaning(text)).lower().removesuffix(".0")  # of 0.0, as pandas writes the numbers of a column with gaps
    if word in SPLIT_NAMES:
        return SPLIT_NAMES[word]
    close = difflib.get_close_matches(text.lower(), SPLIT_NAMES, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise DataError(f"a split must be train, val or test (or 0, 1, 2), got {text!r}{hint} in {where}")


def same_splits(names: Sequence[str]) -> list[str]:
    """Return sentences on several names of one split."""
    by_number: dict[int, list[str]] = {}
    for name in names:
        by_number.setdefault(SPLIT_NAMES.get(name.lower(), -1), []).append(name)
    return [
        f"{' and '.join(same)} are taken together as the split {SPLITS[number]}."
        for number, same in by_number.items()
        if len(same) > 1 and number >= 0
    ]


def image_folder(settings: DataSettings) -> ImageTable:
    """Read a folder with a folder of images per class, or one per split with a folder per class in each.

    Raises
    ------
    DataError
        If there is no such folder, or no images in it.
    """
    root = settings.dir
    if root is None or not root.is_dir():
        raise DataError(f"a folder per class is needed, and {root} is no folder; name it with --data-dir")
    junk = Junk(root)
    below = junk.folders(root)
    tops = _split_folders(below, junk)
    names, classes, splits, notes = [], [], [], []
    for top in tops or [root]:
        kinds = junk.folders(top) if tops else below
        if tops and not kinds:
            junk.pass_over("splits without a folder per class", top)
            notes.append(
                f"The split {top.name} is left out: it holds no folder per class, so that its images have no labels."
            )
        for kind in kinds:
            if not is_text(kind.name):
                raise DataError(f"names of classes must be in UTF-8, but {root} has {kind.name!a}; rename it")
            images = junk.images(kind)
            if not images:
                if not junk.lists("folders of runs", kind):
                    notes.append(f"The folder {kind.relative_to(root).as_posix()} is passed over: it holds no images.")
                junk.pass_over("folders without images", kind)
                continue
            names += [image.relative_to(root).as_posix() for image in images]
            classes += [kind.name] * len(images)
            splits += [SPLIT_NAMES[top.name.lower()] if tops else -1] * len(images)
    if not names:
        raise DataError(_unsorted(root, junk))
    if len(set(classes)) < 2 and (empty := junk.found.get("folders without images")):
        raise DataError(
            f"each class's folder must hold images ({', '.join(sorted(SUFFIXES))}), found none in {root / empty[0]}"
        )
    notes += same_splits([top.name for top in tops])
    if linked := [path for path in junk.found.get(LINKED, ()) if "/" not in path]:
        notes.append(f"Links to folders that are counted already are passed over: {listed(linked)}.")
    name = printable(root.absolute().name)
    labels = read_labels(classes, f"the folders of {name}", classes=settings.classes, order="text")
    table = ImageTable(
        name=name,
        files=FolderFiles(root),
        names=tuple(names),
        labels=labels.index,
        splits=np.array(splits, dtype=np.int64),
        class_names=labels.names,
        ignored=junk.found,
        notes=(*labels.notes, *notes),
    )
    return as_set(table, settings)


def _split_folders(below: Sequence[Path], junk: Junk) -> list[Path]:
    """Return the folders of splits, or none where all are of classes.

    A class may be called like a split: its folder holds images, where a split's holds folders.
    """
    named = [path for path in below if path.name.lower() in SPLIT_FOLDERS]
    others = [path for path in below if path not in named]
    if named and others:
        if not any(Junk(junk.root).folders(path) for path in named):
            return []
        empty = [path for path in others if not Junk(junk.root).images(path)]
        for path in empty:
            junk.pass_over("folders without images", path)
        others = [path for path in others if path not in empty]
    if named and others:
        sets = [path for path in others if Junk(junk.root).folders(path)]
        raise DataError(
            f"{junk.root} must hold a folder per split or a folder per class, but {named[0].name} is a split's name "
            f"and {others[0].name} is not; move one of them{f', or name one set of images: {sets[0]}' if sets else ''}"
        )
    return named


def _unsorted(root: Path, junk: Junk) -> str:
    """Return the sentence for a folder without folders in it."""
    loose = len(junk.found.get(LOOSE, ()))
    if not loose:
        return f"{root} must hold a folder of images per class, found no folder in it"
    return (
        f"{root} must hold a folder of images per class, but found {loose:,} without labels: sort them into "
        "folders, or list them in a table with the columns path and label; where there are none, the classifier's own "
        "predictions in that table still show what it looks at, but not how often it is wrong"
    )


DATASETS.register(
    Entry("your own images: a folder per class, or per split and class", images=image_folder),
    name="folder",
)
DATASETS.register(
    Entry("your own images: a CSV or Parquet table of paths and labels", images=image_table),
    name="table",
)
