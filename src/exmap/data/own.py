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
from exmap.data.one_set import with_classes
from exmap.data.table import ImageTable, numbered, relative_name, with_splits
from exmap.errors import DataError
from exmap.records import IntArray
from exmap.registry import DATASETS
from exmap.settings import DataSettings

__all__ = [
    "Junk",
    "SPLIT_NAMES",
    "as_set",
    "attributes_of",
    "filled",
    "image_folder",
    "image_table",
    "split_number",
]

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("val", "valid", "validation", "dev"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", ".ds_store", "ehthumbs.db"})
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
    labels, class_names = numbered(filled(column(columns, settings.label_column, path), settings.label_column, where))
    groups = {name: filled(column(columns, name, path), name, where) for name in settings.group_columns}
    used = {settings.image_column or "path", settings.label_column, settings.split_column or "split", *groups, ""}
    table = ImageTable(
        name=path.stem,
        files=FolderFiles(root),
        names=tuple(relative_name(text, where, absolute) for text in paths),
        labels=labels,
        splits=_splits(columns, settings.split_column, path, len(paths)),
        class_names=class_names,
        attributes=attributes_of(groups),
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


def attributes_of(groups: Mapping[str, Sequence[str]]) -> tuple[Attribute, ...]:
    """Return group columns as spurious attributes, whose values are named after their column, too."""
    made = []
    for name, texts in groups.items():
        values, value_names = numbered(texts)
        made.append(Attribute(name, values, tuple(f"{name} {value}" for value in value_names)))
    return tuple(made)


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
    if text.lower() in SPLIT_NAMES:
        return SPLIT_NAMES[text.lower()]
    close = difflib.get_close_matches(text.lower(), SPLIT_NAMES, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise DataError(f"a split must be train, val or test (or 0, 1, 2), got {text!r}{hint} in {where}")


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
    in_splits = [path for path in below if path.name.lower() in SPLIT_FOLDERS]
    if in_splits and len(in_splits) < len(below):
        odd = next(path for path in below if path not in in_splits)
        raise DataError(
            f"{root} must hold a folder per split or a folder per class, but {in_splits[0].name} is a split's name "
            f"and {odd.name} is not; move one of them"
        )
    names, classes, splits = [], [], []
    for top in in_splits or [root]:
        kinds = junk.folders(top) if in_splits else below
        if in_splits and not kinds:
            raise DataError(f"each split's folder must hold a folder per class, found none in {top}; sort its images")
        for kind in kinds:
            images = junk.images(kind)
            if not images:
                raise DataError(
                    f"each class's folder must hold images ({', '.join(sorted(SUFFIXES))}), found none in {kind}"
                )
            names += [image.relative_to(root).as_posix() for image in images]
            classes += [kind.name] * len(images)
            splits += [SPLIT_FOLDERS[top.name.lower()] if in_splits else -1] * len(images)
    if not names:
        raise DataError(_unsorted(root, junk))
    labels, class_names = numbered(classes)
    table = ImageTable(
        name=root.absolute().name,
        files=FolderFiles(root),
        names=tuple(names),
        labels=labels,
        splits=np.array(splits, dtype=np.int64),
        class_names=class_names,
        ignored=junk.found,
    )
    return as_set(table, settings)


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


LOOSE = "images outside of a class's folder"


class Junk:
    """Looks through folders for images, and lists by kind what else there is.

    Attributes
    ----------
    found : dict of str to list of str
        Paths from the root.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.found: dict[str, list[str]] = {}

    def folders(self, top: Path) -> list[Path]:
        """Return the folders in a folder that may hold images."""
        kept = []
        for path in sorted(top.iterdir()):
            if path.is_dir():
                if not self._is_hidden(path):
                    kept.append(path)
            elif not self._is_no_image(path):
                self._add(LOOSE, path)
        return kept

    def images(self, top: Path) -> list[Path]:
        """Return the images in a folder and those below it."""
        kept = []
        for place, folders, files in os.walk(top):
            here = Path(place)
            folders[:] = [name for name in folders if not self._is_hidden(here / name)]
            kept += [here / name for name in files if not self._is_no_image(here / name)]
        return sorted(kept)

    def _is_hidden(self, path: Path) -> bool:
        return path.name.startswith((".", "__")) and self._add(
            "folders of the system" if path.name == "__MACOSX" else "hidden folders", path
        )

    def _is_no_image(self, path: Path) -> bool:
        if path.name.lower() in SYSTEM_FILES or path.name.startswith("._"):
            return self._add("files of the system", path)
        if path.name.startswith("."):
            return self._add("hidden files", path)
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            return self._add("files that are no images", path)
        return path.stat().st_size == 0 and self._add("empty files", path)

    def _add(self, kind: str, path: Path) -> bool:
        self.found.setdefault(kind, []).append(path.relative_to(self.root).as_posix())
        return True


DATASETS.register(
    Entry("your own images: a folder per class, or per split and class", images=image_folder),
    name="folder",
)
DATASETS.register(
    Entry("your own images: a CSV or Parquet table of paths and labels", images=image_table),
    name="table",
)
