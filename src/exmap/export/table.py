"""A flat table: a row per image, with pictures beside it, for FiftyOne, Renumics Spotlight and pandas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from exmap.data import batch_slices
from exmap.export.pixels import as_bytes, enlarged, heatmap_colours, in_colour
from exmap.finished import FinishedRun
from exmap.records import Groups, Listener, Progress

__all__ = ["write_table"]

THUMBNAIL = 128  # largest side in pixels
AT_ONCE = 256


def write_table(finished: FinishedRun, folder: Path, listen: Listener) -> None:
    """Write images.parquet, and ``thumbnails`` and ``heatmaps``: a PNG file per image, named by its row.

    Where the data are not at hand there are no thumbnails; where the heatmap is not finite there are no coordinates.
    """
    count = len(finished.ids)
    digits = len(str(max(count - 1, 0)))
    files = [f"{row:0{digits}d}.png" for row in range(count)]
    _write_pictures(finished, folder, files, listen)
    plane = finished.coordinates.astype(np.float64)
    maps, truth = finished.heatmaps, finished.oracle
    there = "grouped" in finished.splits
    edited = finished.sources.get("exmap-edited")
    columns: dict[str, pa.Array] = {
        "id": pa.array(finished.ids, pa.string()),
        "split": pa.array([finished.split_name] * count, pa.string()),
        "class": pa.array(finished.labels, pa.int64()),
        "class_name": pa.array([finished.class_names[k] for k in finished.labels], pa.string()),
        "predicted": pa.array(finished.predicted, pa.int64()),
        "predicted_name": pa.array([finished.class_names[k] for k in finished.predicted], pa.string()),
        "correct": pa.array(finished.predicted == finished.labels, pa.bool_()),
        "cluster": pa.array(finished.clusters, pa.int64(), mask=finished.clusters < 0),
        "group": _names(finished.groups),
        "edited_group": pa.nulls(count, pa.string()) if edited is None else _names(edited),
        "true_group": pa.nulls(count, pa.string()) if truth is None else _names(truth),
        "thumbnail": pa.array([f"thumbnails/{file}" if there else None for file in files], pa.string()),
        "heatmap": pa.array([f"heatmaps/{file}" for file in files], pa.string()),
        "heatmap_finite": pa.array(maps.finite, pa.bool_()),
        "x": _coordinate(plane[:, 0]),
        "y": _coordinate(plane[:, 1]),
    }
    pq.write_table(pa.table(columns), folder / "images.parquet")


def _write_pictures(finished: FinishedRun, folder: Path, files: list[str], listen: Listener) -> None:
    split = finished.splits.get("grouped")
    (folder / "heatmaps").mkdir()
    if split is not None:
        (folder / "thumbnails").mkdir()
    for part in batch_slices(len(files), AT_ONCE):
        rows = np.arange(part.start, part.stop, dtype=np.int64)
        maps = np.asarray(finished.heatmaps.values[part])
        if split is not None:
            maps = enlarged(maps, *split.images.shape[1:])  # a map that was reduced to a square has its image's shape
            pixels = as_bytes(in_colour(split.images.pixels(rows))).transpose(0, 2, 3, 1)
            _save(pixels, files[part], folder / "thumbnails")
        _save(heatmap_colours(maps), files[part], folder / "heatmaps")
        listen(Progress("pictures", part.stop, len(files)))


def _save(pictures: NDArray[np.uint8], names: list[str], folder: Path) -> None:
    for name, pixels in zip(names, pictures, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        picture.thumbnail((THUMBNAIL, THUMBNAIL))  # smaller ones stay as they are
        picture.save(folder / name)


def _names(groups: Groups) -> pa.Array:
    return pa.array([groups.names[g] if g >= 0 else None for g in groups.index], pa.string())


def _coordinate(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))
