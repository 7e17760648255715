"""Your own images: a table that lists them, a folder per class, or a Hugging Face data set saved to disk."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from exmap.data.columns import column, read_table
from exmap.data.dataset import Attribute
from exmap.data.decode import SUFFIXES
from exmap.data.entry import Entry
from exmap.data.files import FolderFiles
from exmap.data.table import ImageTable, numbered, relative_name, with_splits
from exmap.errors import DataError
from exmap.records import IntArray
from exmap.registry import DATASETS
from exmap.settings import DataSettings

__all__ = ["image_folder", "image_table", "saved_dataset"]

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("val", "valid", "validation", "dev"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}
WHOLE = "all"  # the name of a saved data set without splits
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
    labels, class_names = numbered(_filled(column(columns, settings.label_column, path), settings.label_column, where))
    groups = {name: _filled(column(columns, name, path), name, where) for name in settings.group_columns}
    table = ImageTable(
        name=path.stem,
        files=FolderFiles(root),
        names=tuple(relative_name(text, where, absolute) for text in paths),
        labels=labels,
        splits=_splits(columns, settings.split_column, path, len(paths)),
        class_names=class_names,
        attributes=_attributes(groups),
        digests={path.name: digest},
    )
    return with_splits(table, settings.val_share, settings.test_share, settings.split_seed)


def _attributes(groups: Mapping[str, Sequence[str]]) -> tuple[Attribute, ...]:
    """Return group columns as spurious attributes, whose values are named after their column, too."""
    made = []
    for name, texts in groups.items():
        values, value_names = numbered(texts)
        made.append(Attribute(name, values, tuple(f"{name} {value}" for value in value_names)))
    return tuple(made)


def _filled(values: Sequence[str], name: str, where: str, first: int = 2) -> Sequence[str]:
    for row, value in enumerate(values, start=first):
        if not value:
            raise DataError(f"column {name} of {where} must have a value for every image, but row {row} is empty")
    return values


def _splits(columns: Any, name: str | None, path: Path, rows: int) -> IntArray:
    if name is None and "split" not in columns:
        return np.full(rows, -1, dtype=np.int64)
    texts = column(columns, name or "split", path)
    return np.array([_split_number(text, f"row {row + 2} of {path}") for row, text in enumerate(texts)], dtype=np.int64)


def _split_number(text: str, where: str) -> int:
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
    below = _folders(root)
    in_splits = [path for path in below if path.name.lower() in SPLIT_FOLDERS]
    if in_splits and len(in_splits) < len(below):
        odd = next(path for path in below if path not in in_splits)
        raise DataError(
            f"{root} must hold a folder per split or a folder per class, but {in_splits[0].name} is a split's name "
            f"and {odd.name} is not; move one of them"
        )
    names, classes, splits = [], [], []
    for top in in_splits or [root]:
        kinds = _folders(top)
        if in_splits and not kinds:
            raise DataError(f"each split's folder must hold a folder per class, found none in {top}; sort its images")
        for kind in kinds:
            images = sorted(path for path in kind.rglob("*") if _is_image(path, kind))
            if not images:
                raise DataError(
                    f"each class's folder must hold images ({', '.join(sorted(SUFFIXES))}), found none in {kind}"
                )
            names += [image.relative_to(root).as_posix() for image in images]
            classes += [kind.name] * len(images)
            splits += [SPLIT_FOLDERS[top.name.lower()] if in_splits else -1] * len(images)
    if not names:
        raise DataError(f"{root} must hold a folder of images per class, found no folder in it")
    labels, class_names = numbered(classes)
    table = ImageTable(
        name=root.absolute().name,
        files=FolderFiles(root),
        names=tuple(names),
        labels=labels,
        splits=np.array(splits, dtype=np.int64),
        class_names=class_names,
    )
    return with_splits(table, settings.val_share, settings.test_share, settings.split_seed)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _is_image(path: Path, below: Path) -> bool:
    hidden = any(part[0] == "." for part in path.relative_to(below).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


@dataclass(frozen=True)
class SavedFiles:
    """The images of a Hugging Face data set: names are ``split/row``."""

    root: Path
    image_column: str
    parts: dict[str, Any]

    def read(self, name: str) -> bytes:
        """Return the bytes of an image as they were stored."""
        split, row = name.rsplit("/", 1)
        image = self.parts[split][int(row)][self.image_column]
        if image is None or (image["bytes"] is None and not image["path"]):
            raise FileNotFoundError(2, "the row holds no image", name)
        data = image["bytes"] if image["bytes"] is not None else (self.root / image["path"]).read_bytes()
        return bytes(data)

    def stamp(self, name: str) -> tuple[int, int]:
        """Return total size and latest change of the folder's files, the same for every image."""
        return self._stamp

    @cached_property
    def _stamp(self) -> tuple[int, int]:
        found = [os.stat(path) for path in sorted(self.root.rglob("*.arrow"))]
        return sum(f.st_size for f in found), max((f.st_mtime_ns for f in found), default=0)


def saved_dataset(settings: DataSettings) -> ImageTable:
    """Read what ``datasets.Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` has written.

    Raises
    ------
    DataError
        If the library is not installed, the folder is not such a data set, or a column is missing.
    """
    root, parts = _saved_parts(settings.dir)
    from datasets import Image

    image_column = settings.image_column or "image"
    names: list[str] = []
    labels: list[str] = []
    splits: list[int] = []
    groups: dict[str, list[str]] = {name: [] for name in settings.group_columns}
    kept = {}
    for part, rows in parts.items():
        for wanted in (image_column, settings.label_column, *settings.group_columns):
            column({name: [] for name in rows.column_names}, wanted, root)
        if not isinstance(rows.features[image_column], Image):
            raise DataError(f"column {image_column} of {root} must hold images, found {rows.features[image_column]}")
        kept[part] = rows.cast_column(image_column, Image(decode=False)).select_columns([image_column])
        names += [f"{part}/{i:06d}" for i in range(len(rows))]
        where = f"{root} ({part})"
        for name, values in ((settings.label_column, labels), *groups.items()):
            values += _filled(_texts(rows, name, root), name, where, first=0)
        wanted = settings.split_column or "split"
        if part != WHOLE:
            splits += [_split_number(part, str(root))] * len(rows)
        elif settings.split_column is None and wanted not in rows.column_names:
            splits += [-1] * len(rows)
        else:
            column({name: [] for name in rows.column_names}, wanted, root)
            texts = _texts(rows, wanted, root)
            splits += [_split_number(text, f"row {i} of {root}") for i, text in enumerate(texts)]
    numbers, class_names = numbered(labels)
    table = ImageTable(
        name=root.absolute().name,
        files=SavedFiles(root, image_column, kept),
        names=tuple(names),
        labels=numbers,
        splits=np.array(splits, dtype=np.int64),
        class_names=class_names,
        attributes=_attributes(groups),
    )
    return with_splits(table, settings.val_share, settings.test_share, settings.split_seed)


def _saved_parts(root: Path | None) -> tuple[Path, dict[str, Any]]:
    """Return the data sets of a saved folder by the names of their splits; :data:`WHOLE` for one that has none."""
    try:
        from datasets import Dataset, DatasetDict, load_from_disk
    except ImportError as error:
        raise DataError(
            "Hugging Face data sets need the library datasets, which is not installed; pip install 'exmap[huggingface]'"
        ) from error
    if root is None or not any((root / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        raise DataError(
            f"{root} must be a folder that save_to_disk has written (with dataset_info.json or dataset_dict.json); "
            "name one with --data-dir"
        )
    try:
        loaded: Dataset | DatasetDict = load_from_disk(str(root))
    except Exception as error:  # the library raises many kinds for a damaged folder
        raise DataError(f"{root} cannot be read as a saved data set: {error}; save it again") from error
    return root, dict(loaded.items()) if isinstance(loaded, DatasetDict) else {WHOLE: loaded}


def _texts(rows: Any, name: str, root: Path) -> Sequence[str]:
    """Return a column as text, empty where a value is missing; the numbers of a ``ClassLabel`` become its names."""
    from datasets import ClassLabel, Value

    feature, values = rows.features[name], rows[name]
    if isinstance(feature, ClassLabel):
        return ["" if v is None or v < 0 else feature.int2str(v) for v in values]
    if not isinstance(feature, Value):
        raise DataError(f"column {name} of {root} must hold text or numbers, found {feature}")
    return ["" if v is None or v != v else str(v).strip() for v in values]


DATASETS.register(
    Entry("your own images: a folder per class, or per split and class", images=image_folder),
    name="folder",
)
DATASETS.register(
    Entry("your own images: a Hugging Face data set saved to disk", images=saved_dataset),
    name="huggingface",
)
DATASETS.register(
    Entry("your own images: a CSV or Parquet table of paths and labels", images=image_table),
    name="table",
)
