"""What happens to files: cut, emptied, flipped, replaced by others; and values that are well formed, but wrong."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from nasty import NASTY_VALUES, nasty_text
from safetensors.numpy import load, save

__all__ = ["damage_bytes", "damage_file", "silent"]


Change = Callable[[bytes, random.Random], bytes]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))] if data else b""


def _flipped(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 30)) if found else 0):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _head_flipped(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 2, 4)) if found else 0):
        found[rng.randrange(min(64, len(found)))] = rng.randrange(256)
    return bytes(found)


def _zeroed(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + bytes(len(data) - start)  # what a power cut leaves of a file whose length was written first


def _spliced(data: bytes, rng: random.Random) -> bytes:
    if len(data) < 2:
        return data * 2
    one, other = sorted(rng.randrange(len(data)) for _ in range(2))
    return rng.choice((data[:one] + data[other:], data[:other] + data[one:], data + data, data + data[one:other]))


def _wrapped(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    return rng.choice(
        (
            b"\xef\xbb\xbf" + data,
            text.encode("utf-16"),
            text.encode("utf-32"),
            b"\x00" + data,
            data + b"\x00",
            data.replace(b"\n", b"\r\n"),
            b"\x1f\x8b\x08" + data,
            b"PK\x03\x04" + data,
            b"%PDF-1.4\n" + data,
        )
    )


def _other(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        (
            b"",
            b"\n",
            b"{}",
            b"[]",
            b"null",
            b"0",
            b'""',
            b"true",
            b"NaN",
            b"{",
            b"[" * 100_000,
            b'{"format": 99}',
            b"\xff\xfe",
            b"\x80\x04\x95cos\nsystem\n",
            bytes(100),
            rng.randbytes(200),
            b"9" * 10_000,
            b"<html>",
        )
    )


def _tree_changed(tree: Any, rng: random.Random) -> Any:
    """Return a tree with one node replaced, taken out, repeated, or one more."""
    tree = copy.deepcopy(tree)
    nodes: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            nodes.append((node, key))
            walk(value)

    walk(tree)
    if not nodes:
        return rng.choice(NASTY_VALUES)
    parent, key = rng.choice(nodes)
    kind = rng.randrange(5)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.append(parent[key])
    elif kind == 2 and isinstance(parent, dict):
        parent[rng.choice(("extra", "", "__class__", str(key) + "x"))] = rng.choice(NASTY_VALUES)
    elif kind == 3 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = rng.choice((-1, 0, 10**9, parent[key] + 1, str(parent[key]), 1e300, [parent[key]]))
    else:
        parent[key] = rng.choice(NASTY_VALUES)
    return tree


def _json_changed(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(_tree_changed(json.loads(data), rng)).encode("utf-8", "surrogatepass")


def _yaml_changed(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        lines = data.decode().splitlines()
        place = rng.randrange(len(lines))
        key = lines[place].split(":")[0]
        lines[place] = rng.choice((f"{key}: {nasty_text(rng)}", f"{lines[place]}\n{lines[place]}", nasty_text(rng), ""))
        return "\n".join(lines).encode("utf-8", "surrogateescape")
    return yaml.safe_dump(_tree_changed(yaml.safe_load(data), rng)).encode("utf-8", "surrogateescape")


def _array_changed(array: Any, rng: random.Random) -> Any:
    """Return another array of numbers: fewer rows, more, another shape, another kind, values that are none."""
    kind = rng.randrange(9)
    if kind == 0:
        return array[: len(array) // 2] if array.ndim else array
    if kind == 1:
        return np.concatenate([array, array]) if array.ndim else array[None]
    if kind == 2:
        return array.astype(rng.choice(("float64", "int32", "uint8", "bool", "complex64", "float16")))
    if kind == 3:
        return array.reshape(-1)
    if kind == 4:
        return array[None]
    if kind == 5:
        return array[:0] if array.ndim else array
    if kind == 6 and array.dtype.kind == "f" and array.size:
        array = array.copy()
        array.flat[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, -np.inf))
        return array
    if kind == 7 and array.ndim > 1:
        return array[:, : max(1, array.shape[1] // 2)]
    return np.full_like(array, np.nan if array.dtype.kind == "f" else -1)


def _npy_changed(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.15:
        pickled = io.BytesIO()
        np.save(pickled, np.array([{"a": print}, None], dtype=object), allow_pickle=True)
        return pickled.getvalue()
    kept = io.BytesIO()
    np.save(kept, _array_changed(np.load(io.BytesIO(data)), rng))
    return kept.getvalue()


def _tensors_changed(data: bytes, rng: random.Random) -> bytes:
    arrays = load(data)
    name = rng.choice(sorted(arrays))
    kind = rng.randrange(5)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[name + "x"] = arrays.pop(name)
    else:
        changed = np.ascontiguousarray(_array_changed(arrays[name], rng))
        arrays[name] = changed if changed.dtype.kind != "c" else changed.real.copy()
    return save(arrays)


def _table_changed(data: bytes, rng: random.Random) -> bytes:

    table = pd.read_parquet(io.BytesIO(data))
    column = rng.choice(list(table.columns))
    kind = rng.randrange(8)
    if kind == 0:
        table = table.iloc[: len(table) // 2]
    elif kind == 1:
        table = pd.concat([table, table], ignore_index=True)
    elif kind == 2:
        table = table.drop(columns=column)
    elif kind == 3:
        table[column] = None
    elif kind == 4:
        table[column] = "x"
    elif kind == 5:
        table[column] = [float("nan")] * len(table)
    elif kind == 6:
        table[column] = [rng.choice((-5, 10**6, 99)) for _ in range(len(table))]
    else:
        table = table.iloc[:0]
    kept = io.BytesIO()
    table.to_parquet(kept)
    return kept.getvalue()


ANY: tuple[Change, ...] = (_cut, _flipped, _head_flipped, _zeroed, _spliced, _wrapped, _other)


BY_KIND: dict[str, Change] = {
    ".json": _json_changed,
    ".yaml": _yaml_changed,
    ".npy": _npy_changed,
    ".safetensors": _tensors_changed,
    ".parquet": _table_changed,
}


SILENT = (
    _flipped,
    _head_flipped,
    _json_changed,
    _yaml_changed,
    _tensors_changed,
    _npy_changed,
    _table_changed,
    _spliced,
)


def silent(how: str) -> bool:
    """Say whether a damage may leave a file that is well formed, with other values that nobody can know to be wrong."""
    return how in {change.__name__.strip("_") for change in SILENT}


def damage_bytes(data: bytes, suffix: str, rng: random.Random) -> tuple[bytes, str]:
    """Return other bytes in the place of a file's, and how they came about."""
    special = BY_KIND.get(suffix)
    change = special if special is not None and rng.random() < 0.5 else rng.choice(ANY)
    try:
        return change(data, rng), change.__name__.strip("_")
    except (
        ValueError,
        TypeError,
        RecursionError,
        OverflowError,
        KeyError,
    ):  # what is damaged twice is no longer of its kind
        return _cut(data, rng), "cut"


def damage_file(path: Path, rng: random.Random) -> str:
    """Do something to a file in its place, and return what."""
    if rng.random() < 0.75:
        data, how = damage_bytes(path.read_bytes(), path.suffix, rng)
        path.unlink()  # it may be a link to a file that others use
        path.write_bytes(data)
        return how
    path.unlink()
    how = rng.choice(("deleted", "folder", "dangling", "loop", "fifo", "device", "another"))
    if how == "folder":
        path.mkdir()
    elif how == "dangling":
        path.symlink_to("nowhere")
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "device":
        path.symlink_to("/dev/zero")
    elif how == "another":
        others = [item for item in path.parent.parent.rglob("*") if item.is_file() and item.stat().st_size]
        if others:
            shutil.copyfile(rng.choice(sorted(others)), path)
    return how
