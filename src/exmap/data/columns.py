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

from exmap.data.regular import read_regular
from exmap.errors import DataError, shown, unknown_name

__all__ = ["Columns", "column", "files_like", "read_table", "table_root"]


class Columns(dict[str, list[str]]):
    """The columns of a table as text; `odd` are those that hold neither text nor numbers, with what they hold."""

    odd: Mapping[str, str]


def read_table(path: Path) -> tuple[Columns, str]:
    """Read a CSV or Parquet file as columns of text, and its SHA-256.

    Columns are separated by commas, in a file that ends in ``.tsv`` by tabs.

    Raises
    ------
    DataError
        If it is not there, no regular file, or cannot be parsed.
    """
    try:
        stored = read_regular(path)
        names, values, odd = (_parquet if path.suffix.lower() in {".parquet", ".pq"} else _csv)(stored, path)
    except FileNotFoundError as error:
        raise DataError(f"the table {path} does not exist; give a CSV or Parquet file") from error
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise DataError(
            f"{path} must be a CSV or Parquet file, but it cannot be read: {error}; save it as CSV in UTF-8, or "
            "as Parquet"
        ) from error
    every = [*names, *odd]
    if len(set(every)) < len(every):
        again = next(name for number, name in enumerate(every) if name in every[:number])
        raise DataError(f"the columns of {path} must have names of their own, but {again!r} comes twice; rename one")
    columns = Columns(zip(names, values, strict=True))
    columns.odd = odd
    return columns, hashlib.sha256(stored).hexdigest()


def _csv(stored: bytes, path: Path) -> tuple[list[str], list[list[str]], dict[str, str]]:
    """Return the names and values of a CSV file's columns."""
    text = io.StringIO(stored.decode("utf-8-sig"), newline="")
    lines = csv.reader(text, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    head, *rows = [[text.strip() for text in row] for row in lines if row] or [[]]
    if not head:
        raise DataError(f"the table {path} must name its columns in its first row, but it is empty")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(head):
            raise DataError(
                f"each row of {path} must have a value for each of its {len(head)} columns, but row {number} has "
                f"{len(row)}; put values with commas in quotes"
            )
    return head, [list(values) for values in zip(*rows, strict=True)] if rows else [[] for _ in head], {}


def _parquet(stored: bytes, path: Path) -> tuple[list[str], list[list[str]], dict[str, str]]:
    """Return the names and values of a Parquet file's columns; and the kinds of those without text or numbers."""
    table = pq.ParquetFile(pa.BufferReader(stored)).read()
    names, columns, odd = [], [], {}
    for name, values in zip(table.column_names, table.columns, strict=True):
        try:
            if pa.types.is_floating(values.type):  # a missing number, as pandas writes it
                values = pc.if_else(pc.is_nan(values), None, values)
            texts = pc.cast(values, pa.string()).to_pylist()
        except pa.ArrowException:
            odd[name] = str(values.type)
            continue
        names.append(name)
        columns.append(["" if text is None else text.strip() for text in texts])
    return names, columns, odd


def column(columns: Mapping[str, list[str]], name: str, path: Path) -> list[str]:
    """Return a column of a table.

    Raises
    ------
    DataError
        If it is not there, with the closest name.
    """
    if name in (odd := getattr(columns, "odd", {})):
        raise DataError(f"column {name} of {path} must hold text or numbers, found {shown(odd[name])}")
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


def files_like(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder by a name or a pattern such as ``val-*.tar``, sorted.

    Raises
    ------
    DataError
        For a pattern that leads out of the folder, or is none.
    """
    if not folder.is_dir():
        return []
    parts = Path(pattern).parts
    if not parts or ".." in parts or Path(pattern).is_absolute():
        raise DataError(f"files of {folder} must be named by a pattern below it, such as val-*, got {pattern!r}")
    return sorted(path for path in folder.glob(pattern) if path.is_file())
