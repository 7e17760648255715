"""Tables as users and data sets keep them: CSV and Parquet read as columns of text."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exmap.errors import DataError, unknown_name

__all__ = ["column", "read_table", "table_root"]


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
