"""A flat table: a row per image, with pictures beside it, for FiftyOne, Renumics Spotlight and pandas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from exmap.analysis import Analysis
from exmap.data import batch_slices
from exmap.export.pixels import as_bytes, enlarged, heatmap_colours, in_colour
from exmap.groups import EDITED
from exmap.pipeline.disk import save_table
from exmap.records import Groups, IntArray, Listener, Progress

__all__ = ["cluster_of_each", "write_table"]

THUMBNAIL = 128  # largest side in pixels
AT_ONCE = 256


def write_table(analysis: Analysis, folder: Path, listen: Listener) -> None:
    """Write images.parquet, and ``thumbnails`` and ``heatmaps``: a PNG file per image, named by its row.

    Where the data are not at hand there are no thumbnails; where the heatmap is not finite there are no coordinates.
    """
    explained, truth, edited = analysis.explained, analysis.oracle, analysis.groups.get(EDITED)
    count, names = len(explained), explained.class_names
    digits = len(str(max(count - 1, 0)))
    files = [f"{row:0{digits}d}.png" for row in range(count)]
    _write_pictures(analysis, folder, files, listen)
    plane = analysis.coordinates.astype(np.float64)
    clusters = cluster_of_each(analysis)
    columns: dict[str, pa.Array] = {
        "id": pa.array(explained.ids, pa.string()),
        "split": pa.array([explained.split] * count, pa.string()),
        "class": pa.array(explained.labels, pa.int64()),
        "class_name": pa.array([names[k] for k in explained.labels], pa.string()),
        "predicted": pa.array(explained.predicted, pa.int64()),
        "predicted_name": pa.array(explained.predicted_names, pa.string()),
        "correct": pa.array(explained.correct, pa.bool_()),
        "cluster": pa.array(clusters, pa.int64(), mask=clusters < 0),
        "group": _names(analysis.pseudo_groups),
        "edited_group": pa.nulls(count, pa.string()) if edited is None else _names(edited),
        "true_group": pa.nulls(count, pa.string()) if truth is None else _names(truth),
        "thumbnail": pa.array([None if analysis.no_images else f"thumbnails/{file}" for file in files], pa.string()),
        "heatmap": pa.array([f"heatmaps/{file}" for file in files], pa.string()),
        "heatmap_finite": pa.array(explained.maps().finite, pa.bool_()),
        "x": _coordinate(plane[:, 0]),
        "y": _coordinate(plane[:, 1]),
    }
    save_table(pa.table(columns), folder / "images.parquet")


def cluster_of_each(analysis: Analysis) -> IntArray:
    """Return the cluster of each image, -1 for none, shape (N,)."""
    clusters = analysis.pseudo_groups.clusters
    return np.full(len(analysis.explained), -1, dtype=np.int64) if clusters is None else clusters.labels


def _write_pictures(analysis: Analysis, folder: Path, files: list[str], listen: Listener) -> None:
    images, values = analysis.grouped.images, analysis.explained.maps().values
    (folder / "heatmaps").mkdir()
    if not analysis.no_images:
        (folder / "thumbnails").mkdir()
    for part in batch_slices(len(files), AT_ONCE):
        rows = np.arange(part.start, part.stop, dtype=np.int64)
        maps = np.asarray(values[part])
        if not analysis.no_images:
            maps = enlarged(maps, *images.shape[1:])  # a map that was reduced to a square has its image's shape
            pixels = as_bytes(in_colour(images.pixels(rows))).transpose(0, 2, 3, 1)
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
