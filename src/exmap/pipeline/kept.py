"""Read the files of a finished step: each as what it should be, or refused as damaged with the reason.

What lies in a run folder is data. It is never unpickled, is read from regular files alone, and where its size is known,
that is compared before anything is read.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from exmap.errors import RunFolderError
from exmap.pipeline.disk import digest_of_file, mapped, read_json
from exmap.plain_text import textual_path

__all__ = [
    "DamagedError",
    "check_whole",
    "kept_array",
    "kept_arrays",
    "kept_json",
    "kept_table",
    "mapped_arrays",
    "written_files",
]

LARGEST_HEADER = 10_000  # characters, of an array file


class DamagedError(RunFolderError):
    """A file of a finished step that is not what was written; holds the file and the reason."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{self.path} is damaged ({self.why})"


def written_files(folder: Path, *without: str) -> dict[str, list[Any]]:
    """Return size in bytes and SHA-256 of every file below a folder, by its path from there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: [path.stat().st_size, digest_of_file(path)] for name, path in names.items() if name not in without}


def check_whole(folder: Path, files: Mapping[str, Any], *, content: bool = False) -> None:
    """Refuse a folder that lacks one of the files that were written into it, or holds another in its place.

    Parameters
    ----------
    folder : Path
    files : mapping
        As :func:`written_files` returned it.
    content : bool
        Whether what is in the files is compared, too, and not their sizes alone.

    Raises
    ------
    DamagedError
    """
    for name, (size, digest) in files.items():
        path = folder / name
        found = _size(path)
        if found != size:
            raise DamagedError(path, f"it had {size:,} bytes when it was written, and has {found:,}")
        if content and digest_of_file(path) != digest:
            raise DamagedError(path, "its content is not what was written")


def _size(path: Path) -> int:
    """Return the size of a regular file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(path, "it is missing") from None
    if not stat.S_ISREG(found.st_mode):
        raise DamagedError(path, "it is no regular file")
    return found.st_size


def kept_json(path: Path, kind: type = dict) -> Any:
    """Return the mapping, or another `kind` of value, of a JSON file."""
    _size(path)
    value = read_json(path)
    if not isinstance(value, kind):
        raise DamagedError(path, f"it must hold JSON with a {kind.__name__}")
    return value


def kept_arrays(path: Path, **shapes: tuple[int | None, ...] | None) -> dict[str, NDArray[Any]]:
    """Return the arrays of a safetensors file.

    Parameters
    ----------
    path : Path
    **shapes : tuple of int, or None
        Of the arrays that must be there; None stands for any shape, and in a shape for any length.
    """
    _size(path)
    try:
        with textual_path(path) as readable:
            arrays = load_file(readable)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(path, str(error)) from error
    for name, shape in shapes.items():
        if name not in arrays:
            raise DamagedError(path, f"it holds no array {name}")
        _check_shape(path, name, arrays[name].shape, shape)
    return arrays


def mapped_arrays(path: Path, **shapes: tuple[int | None, ...] | None) -> dict[str, NDArray[Any]]:
    """Return float32 arrays of a safetensors file that stay on disk until they are asked for.

    Parameters
    ----------
    path : Path
    **shapes : tuple of int, or None
        As for :func:`kept_arrays`, which reads arrays of other numbers.
    """
    _size(path)
    try:
        with textual_path(path) as readable, safe_open(readable, "numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(path, str(error)) from error
    if any(found.get(name, ("", ()))[0] != "F32" for name in shapes):
        return kept_arrays(path, **shapes)
    with path.open("rb") as opened:  # as the library has found it to be
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    for name, shape in shapes.items():
        _check_shape(path, name, found[name][1], shape)
    return {name: mapped(path, 8 + length + header[name]["data_offsets"][0], found[name][1], "r") for name in shapes}


def kept_array(path: Path, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Return the float array of an npy file as a memory map; None stands for any length."""
    _size(path)
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r", max_header_size=LARGEST_HEADER)
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError) as error:
        raise DamagedError(path, str(error).splitlines()[0]) from error
    if array.dtype.kind != "f":
        raise DamagedError(path, "it must hold one array of floating-point numbers")
    _check_shape(path, "it", array.shape, shape)
    return array


def kept_table(path: Path, rows: int | None = None, columns: Mapping[str, str] | None = None) -> pa.Table:
    """Return a Parquet table.

    Parameters
    ----------
    path : Path
    rows : int, optional
        That it must have.
    columns : mapping of str to str, optional
        Columns that must be there, with the kinds of numbers (NumPy's letters) that they may hold: ``"iu"``. Empty
        allows any.
    """
    _size(path)
    try:
        with path.open("rb") as file:  # the library takes no path that is not UTF-8
            found = pq.ParquetFile(file)
            if rows is not None and found.metadata.num_rows != rows:
                raise DamagedError(path, f"it must have {rows:,} rows, and has {found.metadata.num_rows:,}")
            table = found.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedError(path, str(error).splitlines()[0]) from error
    for name, kinds in (columns or {}).items():
        if name not in table.column_names or table[name].null_count:
            raise DamagedError(path, f"it must have a column {name} without gaps")
        if kinds and table[name].to_numpy().dtype.kind not in kinds:
            raise DamagedError(path, f"its column {name} must not hold {table[name].type}")
    return table


def _check_shape(path: Path, name: str, found: tuple[int, ...], wanted: tuple[int | None, ...] | None) -> None:
    if wanted is None:
        return
    if len(found) != len(wanted) or any(n is not None and n != m for n, m in zip(wanted, found, strict=True)):
        shape = ", ".join("any" if n is None else f"{n:,}" for n in wanted)
        raise DamagedError(path, f"{name} must have the shape ({shape}), and has {found}")
