"""A table for Renumics Spotlight: one Parquet file with the pictures in it, and a layout of the window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from exmap.analysis import Analysis
from exmap.data import batch_slices
from exmap.explain import reduce_heatmaps
from exmap.export.looks import NO_GROUP, ending_of, groups_by_column, pictures, saved, source_files
from exmap.export.pixels import heatmap_colours
from exmap.export.table import cluster_of_each
from exmap.pipeline.disk import write_json
from exmap.records import Groups, IntArray, Listener, Progress

__all__ = ["write_spotlight"]

LARGEST = 256  # pixels, of a side of a picture
VECTOR_SIDE = 8  # of the heatmaps that Spotlight places by their likeness
AT_ONCE = 256


def write_spotlight(analysis: Analysis, folder: Path, listen: Listener) -> None:
    """Write images.parquet, whose types Spotlight reads off, and layout.json.

    Names of classes and groups are dictionaries (categories), pictures are files in the table, and small heatmaps are
    vectors. Where the data are not at hand there are no images.
    """
    explained, plane = analysis.explained, analysis.coordinates.astype(np.float64)
    values, count = explained.maps().values, len(explained)
    clusters, files = cluster_of_each(analysis), source_files(analysis.grouped.images)
    vectors = reduce_heatmaps(values.sum(axis=1, keepdims=True), min(VECTOR_SIDE, *values.shape[2:]))
    groups = groups_by_column(analysis)
    writer: pq.ParquetWriter | None = None
    for part in batch_slices(count, AT_ONCE):
        rows = np.arange(part.start, part.stop, dtype=np.int64)
        columns: dict[str, pa.Array] = {"id": pa.array(explained.ids[part], pa.string())}
        if not analysis.no_images:
            ending = ending_of(analysis.grouped.images.shape)
            columns["image"] = pa.array(
                [saved(each, ending) for each in pictures(analysis, rows, LARGEST)], pa.binary()
            )
        columns["heatmap"] = pa.array([saved(each, "png") for each in heatmap_colours(values[part])], pa.binary())
        columns["class"] = _category(explained.labels[part], explained.class_names)
        columns["predicted"] = _category(explained.predicted[part], explained.class_names)
        columns["correct"] = pa.array(explained.correct[part], pa.bool_())
        columns |= {name: _groups(each, rows) for name, each in groups.items()}
        columns["cluster"] = pa.array(clusters[part], pa.int64(), mask=clusters[part] < 0)
        columns["x"], columns["y"] = (_coordinate(plane[part, axis]) for axis in (0, 1))
        columns["heatmap_vector"] = pa.array(list(vectors[part]), pa.list_(pa.float32()))
        if any(files):
            columns["file"] = pa.array(files[part], pa.string())
        table = pa.table(columns)
        if writer is None:
            writer = pq.ParquetWriter(folder / "images.parquet", table.schema)
        writer.write_table(table)
        listen(Progress("pictures", part.stop, count))
    if writer is not None:
        writer.close()
    write_json(folder / "layout.json", _layout(has_images=not analysis.no_images, groups=list(groups)))


def _category(numbers: IntArray, names: tuple[str, ...]) -> pa.Array:
    index = pa.array(numbers, pa.int32(), mask=numbers < 0)
    return pa.DictionaryArray.from_arrays(index, pa.array(names, pa.string()))


def _groups(groups: Groups, rows: IntArray) -> pa.Array:
    index = groups.index[rows]
    names = (*groups.names, NO_GROUP) if (groups.index < 0).any() else groups.names
    return _category(np.where(index < 0, len(groups.names), index), names)


def _coordinate(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))


def _layout(*, has_images: bool, groups: list[str]) -> dict[str, Any]:
    """Return Spotlight's window: the table over the map, and beside them the chosen images."""
    by = groups[-1] if groups[-1] != "true_group" else groups[-2]
    pictured = ["image", "heatmap"] if has_images else ["heatmap"]
    told = ["class", "predicted", *groups]
    views = [("ImageView", name) for name in pictured] + [("ScalarView", name) for name in told]
    return {
        "orientation": "vertical",
        "children": [
            {
                "kind": "split",
                "orientation": "horizontal",
                "weight": 60,
                "children": [
                    _tab(40, _widget("table", None, visibleColumns=["id", *told, "correct"])),
                    _tab(
                        60,
                        _widget("scatterplot", "Map of the heatmaps", xAxisColumn="x", yAxisColumn="y", colorBy=by),
                        _widget("similaritymap", "Alike heatmaps", placeBy=["heatmap_vector"], colorBy=by),
                        _widget("histogram", "Right and wrong by group", columnKey=by, stackByColumnKey="correct"),
                        _widget("ConfusionMatrix", "Confusion", xColumn="class", yColumn="predicted"),
                    ),
                ],
            },
            _tab(
                40,
                _widget(
                    "inspector",
                    "Chosen images",
                    views=[{"view": kind, "columns": [name], "name": name, "key": name} for kind, name in views],
                    visibleColumns=4,
                ),
            ),
        ],
    }


def _tab(weight: int, *widgets: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "tab", "weight": weight, "children": list(widgets)}


def _widget(kind: str, name: str | None, **config: Any) -> dict[str, Any]:
    return {"kind": "widget", "type": kind, "name": name, "config": config}
