"""Waterbirds (Sagawa et al., 2020), and every set that comes as a ``metadata.csv`` of the same columns.

``metadata.csv`` has ``img_id, img_filename, y, split, place, place_filename``: the class is waterbird or landbird, the
spurious attribute is the place, the split is 0, 1 or 2. In FG-Only (as in MaskTune and ExMap) the background of the
*test* images is removed with CUB's segmentation masks, which lie in ``segmentations`` beside the images.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exmap.data.dataset import Attribute
from exmap.data.files import FolderFiles
from exmap.data.table import ImageTable, relative_name
from exmap.errors import DataError, unknown_name
from exmap.records import IntArray

__all__ = ["column", "composed", "metadata_table", "read_table", "table_root", "waterbirds"]

MASKS = "segmentations"


def read_table(path: Path) -> tuple[Mapping[str, list[str]], str]:
    """Read a CSV or Parquet file as columns of text, and its SHA-256.

    Raises
    ------
    DataError
        If it is not there or cannot be parsed.
    """
    try:
        stored = path.read_bytes()
        names, values = (_parquet if path.suffix.lower() in {".parquet", ".pq"} else _csv)(stored, path)
    except FileNotFoundError as error:
        raise DataError(f"the table {path} does not exist; give a CSV or Parquet file") from error
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise DataError(f"{path} must be a CSV or Parquet file, but it cannot be read: {error}") from error
    columns = dict(zip(names, values, strict=True))
    if len(columns) < len(names):
        again = next(name for number, name in enumerate(names) if name in names[:number])
        raise DataError(f"the columns of {path} must have names of their own, but {again!r} comes twice; rename one")
    return columns, hashlib.sha256(stored).hexdigest()


def _csv(stored: bytes, path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the names and values of a CSV file's columns."""
    lines = csv.reader(io.StringIO(stored.decode("utf-8-sig"), newline=""), strict=True)
    head, *rows = [[text.strip() for text in row] for row in lines if row] or [[]]
    if not head:
        raise DataError(f"the table {path} must name its columns in its first row, but it is empty")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(head):
            raise DataError(
                f"each row of {path} must have a value for each of its {len(head)} columns, but row {number} has "
                f"{len(row)}; put values with commas in quotes"
            )
    return head, [list(values) for values in zip(*rows, strict=True)] if rows else [[] for _ in head]


def _parquet(stored: bytes, path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the names and values of a Parquet file's columns."""
    table = pq.ParquetFile(pa.BufferReader(stored)).read()
    columns = []
    for name, values in zip(table.column_names, table.columns, strict=True):
        try:
            if pa.types.is_floating(values.type):  # a missing number, as pandas writes it
                values = pc.if_else(pc.is_nan(values), None, values)
            texts = pc.cast(values, pa.string()).to_pylist()
        except pa.ArrowException as error:
            raise DataError(f"column {name} of {path} must hold text or numbers, found {values.type}") from error
        columns.append(["" if text is None else text.strip() for text in texts])
    return table.column_names, columns


def column(columns: Mapping[str, list[str]], name: str, path: Path) -> list[str]:
    """Return a column of a table.

    Raises
    ------
    DataError
        If it is not there, with the closest name.
    """
    if name not in columns:
        raise DataError(unknown_name("column", name, columns) + f"; the table is {path}")
    return columns[name]


def _numbers(texts: Sequence[str], names: Sequence[str], what: str, path: Path) -> IntArray:
    """Return the values of a column that may be 0, 1, ... up to the number of names."""
    allowed = {str(number): number for number in range(len(names))}
    for row, text in enumerate(texts):
        if text not in allowed:
            raise DataError(
                f"column {what} of {path} must hold {' or '.join(f'{n} ({m})' for n, m in enumerate(names))}, got "
                f"{text!r} in row {row + 2}"
            )
    return np.array([allowed[text] for text in texts], dtype=np.int64)


def table_root(folder: Path, *places: str) -> Path:
    """Return the first of `folder` and folders below it that holds any of the files named in `places`.

    Raises
    ------
    DataError
        If none does.
    """
    if folder.is_dir():
        for root in (folder, *sorted(item for item in folder.iterdir() if item.is_dir())):
            if any((root / place).is_file() for place in places):
                return root
    raise DataError(f"{folder} must hold {' or '.join(places)}, itself or in a folder below it, but it does not")


def metadata_table(
    name: str, folder: Path, class_names: Sequence[str], attribute: str, value_names: Sequence[str], images: str = "."
) -> ImageTable:
    """Read a folder with a ``metadata.csv``.

    Parameters
    ----------
    name : str
    folder : Path
        Holds ``metadata.csv``, itself or one level down.
    class_names, value_names : sequence of str
        What the numbers in columns ``y`` and ``place`` mean.
    attribute : str
        Name of the spurious attribute in column ``place``.
    images : str
        Where the images lie, from the table; the table's own folder where that is not there.

    Raises
    ------
    DataError
        For a missing column, a number without a meaning, or a path outside the folder.
    """
    root = table_root(folder, "metadata.csv")
    path = root / "metadata.csv"
    columns, digest = read_table(path)
    below = root / images if (root / images).is_dir() else root
    names = tuple(relative_name(text, str(path)) for text in column(columns, "img_filename", path))
    return ImageTable(
        name=name,
        files=FolderFiles(below),
        names=names,
        labels=_numbers(column(columns, "y", path), class_names, "y", path),
        splits=_numbers(column(columns, "split", path), ("train", "val", "test"), "split", path),
        class_names=tuple(class_names),
        attributes=(
            Attribute(
                attribute, _numbers(column(columns, "place", path), value_names, "place", path), tuple(value_names)
            ),
        ),
        digests={"metadata.csv": digest},
    )


def composed(root: Path) -> dict[str, Any] | None:
    """Return the manifest of a set that :mod:`exmap.data.compose` has made, or None for an original one."""
    try:
        manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and {"layout", "classes", "counts"} <= manifest.keys() else None


def waterbirds(folder: Path, *, foreground_only: bool = False) -> ImageTable:
    """Read Waterbirds as its tarball is unpacked, or what :mod:`exmap.data.compose` has made in its layout.

    Parameters
    ----------
    folder : Path
        Holds ``metadata.csv``, itself or one level down.
    foreground_only : bool
        Whether test images get CUB's mask, from ``segmentations`` beside the images or beside their folder.

    Raises
    ------
    DataError
        As :func:`metadata_table`, or if masks are wanted and there is no folder of them.
    """
    name = "waterbirds-fg" if foreground_only else "waterbirds"
    made = composed(table_root(folder, "metadata.csv")) or {}
    classes, places = made.get("classes", ("landbird", "waterbird")), made.get("backgrounds", ("land", "water"))
    table = metadata_table(name, folder, classes, "background", places)
    if not foreground_only:
        return table
    assert isinstance(table.files, FolderFiles)
    root = table.files.root
    above = "" if (root / MASKS).is_dir() else "../"
    if not (root / above / MASKS).is_dir():
        raise DataError(
            f"Waterbirds (FG-Only) needs CUB's masks in {root / MASKS}, and there is no such folder; unpack CUB's "
            "segmentations.tgz there (exmap data prepare waterbirds-fg does)"
        )
    masks = tuple(
        f"{above}{MASKS}/{Path(image).with_suffix('.png').as_posix()}" if split == 2 else ""
        for image, split in zip(table.names, table.splits, strict=True)
    )
    return ImageTable(**{**vars(table), "masks": masks})
