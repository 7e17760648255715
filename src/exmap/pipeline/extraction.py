"""Compute a split shard by shard, keep each shard that is finished, and join them to what a single process computes.

Finished shards are Parquet files, a row per image, that appear under their names when they are whole. What is begun
again takes those that belong to the same model and settings, and computes the others.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from exmap.data import Split
from exmap.engine import Engine, Job, Shard, shards_of
from exmap.explain.heatmaps import Allocate, AllocateOutputs
from exmap.pipeline.disk import read_json, save_table, write_json
from exmap.records import Explained, Heatmaps, Listener, Outputs, Progress, silent
from exmap.settings import RuntimeSettings

__all__ = ["ShardFolder", "compute_split", "in_shards", "load_shard", "save_shard"]

ABOUT = b"exmap.shard"  # key in the metadata of a shard
MAPPED = ("features", "logits", "heatmap")  # that may lie on disk
LISTS = ("features", "logits", "channels", "heatmap")  # columns of fixed-size lists


def in_shards(runtime: RuntimeSettings) -> bool:
    """Return whether splits are computed shard by shard; several processes of one job share out batches instead."""
    return runtime.engine != "local" or (runtime.shard_images is not None and runtime.processes == 1)


def compute_split(
    engine: Engine,
    job: Job,
    split: Split,
    *,
    size: int | None = None,
    folder: Path | None = None,
    allocate: Allocate | None = None,
    allocate_outputs: AllocateOutputs | None = None,
    save: Callable[[Explained], None] | None = None,
    listen: Listener = silent,
) -> Explained:
    """Return what a job computes of a split: the same as a single process, whatever workers come and go.

    Parameters
    ----------
    engine : Engine
    job : Job
    split : Split
    size : int, optional
        Images in a shard; see :func:`exmap.engine.shards_of`.
    folder : Path, optional
        Where finished shards are kept until all are; without one they stay in memory.
    allocate : callable, optional
        Returns the float32 array of the given shape that heatmaps are written to, for example a memory map.
    allocate_outputs : callable, optional
        Returns those that features and logits are written to, of their shapes.
    save : callable, optional
        Keeps the whole, before the shards are deleted.
    listen : Listener

    Raises
    ------
    ExMapError
        What the engine raises; finished shards are kept.
    """
    kept: ShardFolder | _Memory = _Memory() if folder is None else ShardFolder(folder)
    at_once = kept.begin(job.key, job.at_once, size)
    job = Job(job.model, job.settings, at_once, job.explainer)
    shards = shards_of(split, at_once, size)
    left = [shard for shard in shards if not kept.has(shard)]
    what = "features" if job.settings is None else "heatmaps"
    done = len(split) - sum(map(len, left))
    with closing(engine.compute(job, split, left)) as results:  # what breaks off ends its workers
        for shard, made in results:
            kept.put(shard, made)
            done += len(shard)
            listen(Progress(f"{what} ({split.name})", done, len(split)))
    parts = ((shard, kept.get(shard, split)) for shard in shards)
    whole = _joined(split, parts, allocate or _zeros, allocate_outputs or _empty)
    if save is not None:
        save(whole)
    kept.end()
    return whole


class ShardFolder:
    """Finished shards as files: ``00003-of-00025.parquet``.

    Parameters
    ----------
    path : Path
    """

    PLAN = "plan.json"

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, key: str, at_once: int, size: int | None) -> int:
        """Keep what belongs to the same job, and return the number of images in a batch that its shards have."""
        plan = read_json(self.path / self.PLAN)
        if isinstance(plan, dict) and plan.get("key") == key and plan.get("size") == size:
            return int(plan["at_once"])
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        write_json(self.path / self.PLAN, {"key": key, "at_once": at_once, "size": size})
        return at_once

    def place(self, shard: Shard) -> Path:
        """Return the file of a shard."""
        return self.path / f"{shard.number:05d}-of-{shard.of:05d}.parquet"

    def has(self, shard: Shard) -> bool:
        """Return whether a shard is finished and whole."""
        try:
            with self.place(shard).open("rb") as file:
                return bool(pq.ParquetFile(file).metadata.num_rows == len(shard))
        except (OSError, pa.ArrowException):
            return False

    def put(self, shard: Shard, made: Explained) -> None:
        """Keep a finished shard."""
        save_shard(made, self.place(shard))

    def get(self, shard: Shard, split: Split) -> Explained:
        """Return a finished shard."""
        return load_shard(self.place(shard), split)

    def end(self) -> None:
        """Delete the shards, which were joined."""
        shutil.rmtree(self.path)


class _Memory:
    """Finished shards in memory."""

    def __init__(self) -> None:
        self.made: dict[int, Explained] = {}

    def begin(self, key: str, at_once: int, size: int | None) -> int:
        """Return the number of images in a batch."""
        return at_once

    def has(self, shard: Shard) -> bool:
        """Return whether a shard is finished."""
        return shard.number in self.made

    def put(self, shard: Shard, made: Explained) -> None:
        """Keep a finished shard."""
        self.made[shard.number] = made

    def get(self, shard: Shard, split: Split) -> Explained:
        """Return a finished shard, and hold it no longer."""
        return self.made.pop(shard.number)

    def end(self) -> None:
        """Do nothing: no shard is left."""


def save_shard(made: Explained, path: Path) -> None:
    """Write a Parquet file that appears under its name when it is whole.

    Its columns are ``id``, ``label`` and ``predicted``; ``features`` and ``logits`` as lists of fixed size; and where
    images were explained ``heatmap`` (flat: channels, then rows), ``channels`` where an inner layer's were kept, and
    one column for each further field of :class:`~exmap.records.Heatmaps`.
    """
    columns = {"id": pa.array(made.ids), "label": pa.array(made.labels), "predicted": pa.array(made.predicted)}
    about: dict[str, Any] = {"split": made.split, "class_names": list(made.class_names)}
    for name, values in _arrays_of(made).items():
        if name in LISTS:
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
        else:
            columns[name] = pa.array(values)
    if made.heatmaps is not None:
        about |= {"heatmap": list(made.heatmaps.values.shape[1:]), "check": dict(made.heatmaps.check)}
    part = path.with_name(path.name + ".part")
    save_table(pa.table(columns).replace_schema_metadata({ABOUT: json.dumps(about).encode()}), part)
    os.replace(part, path)


def load_shard(path: Path, split: Split) -> Explained:
    """Return a shard of a split from its file."""
    with path.open("rb") as file:
        table = pq.ParquetFile(file).read()
    about = json.loads((table.schema.metadata or {})[ABOUT])
    arrays: dict[str, NDArray[Any]] = {}
    for name in table.column_names[3:]:
        column = table[name].combine_chunks()
        if name in LISTS:
            width = column.type.list_size
            arrays[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), width)
        else:
            arrays[name] = column.to_numpy(zero_copy_only=False)
    if "heatmap" in arrays:
        arrays["heatmap"] = arrays["heatmap"].reshape(-1, *about["heatmap"])
    ids, labels = tuple(table["id"].to_pylist()), table["label"].to_numpy()
    return _explained(split, ids, labels, arrays, about.get("check", {}))


def _joined(
    split: Split,
    parts: Iterable[tuple[Shard, Explained]],
    allocate: Allocate,
    allocate_outputs: AllocateOutputs,
) -> Explained:
    """Return all shards of a split as one; what is allocated on disk is in memory no more than a shard at a time."""
    arrays: dict[str, NDArray[Any]] = {}
    check: dict[str, Any] = {}
    for shard, made in parts:
        found = _arrays_of(made)
        if shard.number == 0:
            check = {} if made.heatmaps is None else made.heatmaps.check
            shapes = {name: (len(split), *values.shape[1:]) for name, values in found.items()}
            arrays = {name: np.empty(shapes[name], dtype=found[name].dtype) for name in found if name not in MAPPED}
            if "heatmap" in found:
                arrays["heatmap"] = allocate(shapes["heatmap"])
            arrays["features"], arrays["logits"] = allocate_outputs(shapes["features"], shapes["logits"])
        for name, values in found.items():
            arrays[name][shard.start : shard.stop] = values
    if not arrays:
        none = np.zeros((0, max(1, split.n_classes)), dtype=np.float32)
        return Explained(split.name, split.ids, split.labels, split.class_names, Outputs(none, none))
    return _explained(split, split.ids, split.labels, arrays, check)


def _arrays_of(made: Explained) -> dict[str, NDArray[Any]]:
    """Return all that was computed of images, an array with a row per image each."""
    arrays: dict[str, NDArray[Any]] = {"features": made.outputs.features, "logits": made.outputs.logits}
    maps = made.heatmaps
    if maps is None:
        return arrays
    more: dict[str, NDArray[Any] | None] = {
        "heatmap": maps.values,
        "target": maps.target,
        "conservation_error": maps.conservation_error,
        "finite": maps.finite,
        "zero": maps.zero,
        "input_share": maps.input_share,
        "channels": maps.channels,
    }
    return arrays | {name: values for name, values in more.items() if values is not None}


def _explained(
    split: Split,
    ids: tuple[str, ...],
    labels: NDArray[np.int64],
    arrays: dict[str, NDArray[Any]],
    check: dict[str, Any],
) -> Explained:
    """Return the record of such arrays."""
    rest = dict(arrays)
    outputs = Outputs(rest.pop("features"), rest.pop("logits"))
    maps = Heatmaps(rest.pop("heatmap"), **rest, check=check) if "heatmap" in rest else None
    return Explained(split.name, ids, labels, split.class_names, outputs, maps)


def _zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.zeros(shape, dtype=np.float32)


def _empty(features: tuple[int, ...], logits: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return np.empty(features, dtype=np.float32), np.empty(logits, dtype=np.float32)
