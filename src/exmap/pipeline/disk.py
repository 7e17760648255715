"""Files that appear under their names only when they are whole: text, JSON, arrays; and digests."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from exmap.errors import not_written

__all__ = [
    "array_file",
    "arrays_file",
    "differences",
    "digest_of",
    "digest_of_file",
    "mapped",
    "no_nan",
    "read_json",
    "save_arrays",
    "save_table",
    "slug",
    "write_json",
    "write_text",
]


def write_text(path: Path, text: str) -> None:
    r"""Write a text file that appears under its name only when it is whole; what is no text becomes ``\udcff``."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", errors="backslashreplace")  # a name of a file may be no text
    os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN becomes null, and the bytes of names that are no text stand written out."""
    write_text(path, json.dumps(_readable(no_nan(value)), indent=2, allow_nan=False) + "\n")


def no_nan(value: Any) -> Any:
    """Return a JSON-able value with NaN as None."""
    if isinstance(value, Mapping):
        return {str(key): no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [no_nan(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value


def _readable(value: Any) -> Any:
    """Return a JSON-able value in which all text can be encoded."""
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`, or None if the file is missing, no regular file, or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(no_nan(value), sort_keys=True).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, or that of nothing where there is no file."""
    if not path.is_file():
        return hashlib.sha256(b"").hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def slug(text: str) -> str:
    """Return a name for files: readable, and another one for another text.

    Examples
    --------
    >>> slug("exmap+dfr")
    'exmap+dfr'
    >>> slug("exmap[size=7]+dfr")
    'exmap_size=7_+dfr-3035fae6'
    """
    plain = re.sub(r"[^A-Za-z0-9+@=.,_-]", "_", text)
    usual = plain == text and len(text) <= 80 and text.strip(".")
    return plain if usual else f"{plain[:80].strip('.')}-{digest_of(text)[:8]}"


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Return the dotted names at which two nested mappings differ, with both values.

    Examples
    --------
    >>> differences({"seed": 0, "data": {"name": "digits"}}, {"seed": 1, "data": {"name": "digits"}})
    ['seed (0 there, 1 here)']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [item for key in keys for item in differences(old.get(key), new.get(key), f"{prefix}.{key}".strip("."))]
    return [] if old == new else [f"{prefix} ({old!r} there, {new!r} here)"]


def save_arrays(arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Write named arrays as safetensors.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    try:
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)
    except SafetensorError as error:
        raise not_written(path, error) from error


def save_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet table."""
    with path.open("wb") as file:  # the library takes no path that is not UTF-8
        pq.write_table(table, file)


def array_file(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Make a float32 array file of zeros, mapped into memory, with its space reserved on disk.

    Without the reservation a full disk would not be an error but a fault while writing to the map. What is assigned to
    rows of the array goes to the file and does not stay in this process's memory.

    Raises
    ------
    OSError
        If the space is not there.
    """
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    _reserve(path)
    return mapped.view(_Written)


def arrays_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Make a safetensors file of named float32 arrays of zeros, mapped into memory as by :func:`array_file`.

    It is the file that :func:`save_arrays` would write.

    Raises
    ------
    OSError
        If the space is not there.
    """
    about: dict[str, Any] = {}
    end = 0
    for name, shape in sorted(shapes.items()):
        start, end = end, end + math.prod(shape) * np.dtype(np.float32).itemsize
        about[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(about, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    first = 8 + len(header)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(first + end)
    _reserve(path)
    return {
        name: mapped(path, first + about[name]["data_offsets"][0], shape, "r+").view(_Written)
        for name, shape in shapes.items()
    }


def mapped(path: Path, offset: int, shape: tuple[int, ...], mode: Literal["r", "r+"]) -> NDArray[np.float32]:
    """Return a float32 array that lies in a file from a byte on, mapped into memory."""
    if not math.prod(shape):  # nothing can be mapped
        return np.zeros(shape, dtype=np.float32)
    return np.memmap(path, dtype=np.float32, mode=mode, offset=offset, shape=shape)


def _reserve(path: Path) -> None:
    """Reserve the space of a file on disk."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


class _Written(np.memmap[Any, np.dtype[np.float32]]):
    """A mapped array whose pages leave this process once they are assigned to: the system writes them to the file."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        file = getattr(self.base, "base", None)
        if isinstance(file, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            file.madvise(mmap.MADV_DONTNEED)
