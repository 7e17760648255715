"""What stages leave for each other: records as files in a stage's folder, and back (``docs/run-folder.md``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file

from exmap.data import Split
from exmap.records import Groups, Heatmaps, IntArray, Outputs
from exmap.retrain import Head
from exmap.store import array_file, read_json, save_arrays

__all__ = [
    "HEATMAP_FILES",
    "heatmap_file",
    "read_groups",
    "read_heads",
    "read_heatmaps",
    "read_outputs",
    "write_groups",
    "write_heads",
    "write_heatmaps",
    "write_outputs",
]

HEATMAP_FILES = ("heatmaps.npy", "heatmaps.parquet", "channels.npy")
CHECK = b"exmap.check"  # key in the metadata of heatmaps.parquet


def write_outputs(outputs: Mapping[str, Outputs], folder: Path) -> None:
    """Write outputs.safetensors: features and logits by the name of the split."""
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, found in outputs.items():
        arrays |= {f"{name}.features": found.features, f"{name}.logits": found.logits}
    save_arrays(arrays, folder / "outputs.safetensors")


def read_outputs(folder: Path, split: str) -> Outputs:
    """Return the outputs of a split by its name."""
    arrays = load_file(folder / "outputs.safetensors")
    return Outputs(arrays[f"{split}.features"], arrays[f"{split}.logits"])


def heatmap_file(folder: Path) -> Callable[[tuple[int, ...]], NDArray[np.float32]]:
    """Return what makes heatmaps.npy, mapped into memory, once its shape is known."""
    return lambda shape: array_file(folder / "heatmaps.npy", shape)


def write_heatmaps(maps: Heatmaps, ids: tuple[str, ...], folder: Path) -> None:
    """Finish heatmaps.npy, and write heatmaps.parquet, a row per image, and channels.npy where there are channels."""
    if isinstance(maps.values, np.memmap):
        maps.values.flush()
    columns = {
        "id": list(ids),
        "target": maps.target,
        "conservation_error": maps.conservation_error,
        "finite": maps.finite,
        "zero": maps.zero,
    }
    if maps.input_share is not None:
        columns["input_share"] = maps.input_share
    if maps.channels is not None:
        np.save(folder / "channels.npy", maps.channels, allow_pickle=False)
    table = pa.table(columns).replace_schema_metadata({CHECK: json.dumps(dict(maps.check)).encode()})
    pq.write_table(table, folder / "heatmaps.parquet")


def read_heatmaps(folder: Path) -> Heatmaps:
    """Return the heatmaps; their values stay on disk until they are asked for.

    Folders of older versions have no input shares, channels or check.
    """
    table, channels = pq.read_table(folder / "heatmaps.parquet"), folder / "channels.npy"
    check = (table.schema.metadata or {}).get(CHECK, b"{}")
    return Heatmaps(
        np.load(folder / "heatmaps.npy", mmap_mode="r", allow_pickle=False),
        target=table["target"].to_numpy(),
        conservation_error=table["conservation_error"].to_numpy(),
        finite=table["finite"].to_numpy(),
        zero=table["zero"].to_numpy(),
        input_share=table["input_share"].to_numpy() if "input_share" in table.column_names else None,
        channels=np.load(channels, mmap_mode="r", allow_pickle=False) if channels.is_file() else None,
        check=json.loads(check),
    )


def write_groups(groups: Groups, split: Split, predicted: IntArray, folder: Path) -> dict[str, Any]:
    """Write SOURCE.parquet, a row per image, and return what clusters.json says of the source."""
    clusters = groups.clusters.labels if groups.clusters else np.full(len(groups), -1, dtype=np.int64)
    table = {
        "id": list(split.ids),
        "class": split.labels,
        "cluster": clusters,
        "group": groups.index,
        "group_name": [groups.names[g] if g >= 0 else "unassigned" for g in groups.index],
        "predicted": predicted,
        "correct": predicted == split.labels,
    }
    pq.write_table(pa.table(table), folder / f"{groups.source}.parquet")
    return {
        "names": groups.names,
        "counts": groups.counts().tolist(),
        "labels_used": groups.labels_used,
        "scope": groups.clusters.scope if groups.clusters else None,
        "fits": groups.clusters.notes if groups.clusters else (),
    }


def read_groups(folder: Path, source: str) -> Groups:
    """Return the groups of a source by its name; the clustering behind them is not kept."""
    notes = read_json(folder / "clusters.json")[source]
    index = pq.read_table(folder / f"{source}.parquet", columns=["group"])["group"].to_numpy()
    return Groups(index, tuple(notes["names"]), source, tuple(notes["labels_used"]))


def write_heads(heads: list[Head], path: Path) -> None:
    """Write the weights and biases of several heads as safetensors."""
    arrays = {f"{i}.{key}": getattr(head, key) for i, head in enumerate(heads) for key in ("weight", "bias")}
    save_arrays(arrays, path)


def read_heads(path: Path) -> list[Head]:
    """Return the heads; how they were chosen stands in heads.json."""
    arrays = load_file(path)
    return [Head(arrays[f"{i}.weight"], arrays[f"{i}.bias"], 0.0) for i in range(len(arrays) // 2)]
