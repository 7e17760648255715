"""A project that ViRelAy opens: images, heatmaps and clusterings as HDF5, and the YAML file that names them.

The layout is that of ViRelAy's own reader (version 1.0): ``dataset.h5`` and ``attributions.h5`` hold an entry per image
in the same order, ``analysis.h5`` a group per category of images.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exmap.analysis import Analysis
from exmap.data import batch_slices
from exmap.errors import SettingsError
from exmap.export.pixels import as_bytes, enlarged, in_colour
from exmap.export.table import cluster_of_each
from exmap.pipeline.disk import write_json, write_text
from exmap.plain_yaml import dump_yaml
from exmap.records import Groups, IntArray, Listener, Progress

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["write_virelay"]

AT_ONCE = 256
ALL = "all"  # the category of all images; a class has its number


def import_h5py() -> ModuleType:
    """Return h5py.

    Raises
    ------
    SettingsError
        If it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise SettingsError(
            "a project for ViRelAy is written with h5py, which is not installed; install it with pip install "
            "'exmap[virelay]'"
        ) from error
    module: ModuleType = h5py
    return module


def write_virelay(analysis: Analysis, folder: Path, listen: Listener) -> None:
    """Write project.yaml, label_map.json, dataset.h5, attributions.h5 and analysis.h5.

    Parameters
    ----------
    analysis : Analysis
        With its images.
    folder : Path
    listen : Listener

    Raises
    ------
    SettingsError
        If h5py is not installed.
    """
    h5py = import_h5py()
    explained = analysis.explained
    names = explained.class_names
    categories = {ALL: "all images"} | {_category(k, names): name for k, name in enumerate(names)}
    entries = [
        {"index": k, "word_net_id": category, "name": name} for k, (category, name) in enumerate(categories.items(), -1)
    ]
    write_json(folder / "label_map.json", entries)
    _write_images(h5py, analysis, folder, listen)
    with h5py.File(folder / "analysis.h5", "w") as file:
        _write_category(file.create_group(ALL), analysis, np.arange(len(explained)))
        for k in range(len(names)):
            if len(rows := np.flatnonzero(explained.labels == k)):
                _write_category(file.create_group(_category(k, names)), analysis, rows)
    write_text(folder / "project.yaml", dump_yaml({"project": _project(analysis)}))


def _project(analysis: Analysis) -> dict[str, Any]:
    settings, check = analysis.settings, analysis.explained.maps().check
    return {
        "name": f"{analysis.task.name}, seed {settings.seed}",
        "model": settings.model.name,
        "label_map": "label_map.json",
        "dataset": {"name": f"{analysis.task.name} ({analysis.explained.split})", "type": "hdf5", "path": "dataset.h5"},
        "attributions": {
            "attribution_method": check.get("composite") or check.get("explainer") or settings.explain.explainer,
            "attribution_strategy": "true_label" if settings.explain.target == "true" else "predicted_label",
            "sources": ["attributions.h5"],
        },
        "analyses": [{"analysis_method": "exmap", "sources": ["analysis.h5"]}],
    }


def _category(k: int, names: tuple[str, ...]) -> str:
    return f"class-{k:0{len(str(len(names) - 1))}d}"


def _write_images(h5py: ModuleType, analysis: Analysis, folder: Path, listen: Listener) -> None:
    explained, images = analysis.explained, analysis.grouped.images
    count, (_, height, width) = len(explained), images.shape
    shape = (count, 3, height, width)
    maps, labels = explained.maps().values, explained.labels.astype(np.uint16)
    with h5py.File(folder / "dataset.h5", "w") as dataset, h5py.File(folder / "attributions.h5", "w") as attributions:
        dataset["label"] = labels
        attributions["label"] = labels
        attributions["prediction"] = explained.outputs.logits
        pixels = dataset.create_dataset("data", shape, "u1", chunks=(1, *shape[1:]), compression="gzip")
        relevance = attributions.create_dataset(
            "attribution", shape, "f4", chunks=(1, *shape[1:]), compression="gzip", shuffle=True
        )
        for part in batch_slices(count, AT_ONCE):
            rows = np.arange(part.start, part.stop, dtype=np.int64)
            pixels[part] = as_bytes(in_colour(images.pixels(rows)))
            values = enlarged(np.asarray(maps[part]), height, width)
            relevance[part] = values if values.shape[1] == 3 else in_colour(values)
            listen(Progress("images and heatmaps", part.stop, count))


def _write_category(place: Any, analysis: Analysis, rows: IntArray) -> None:
    """Write the images of a category, their place in the plane, and every way they are grouped."""
    plane = np.nan_to_num(analysis.coordinates[rows])
    place["index"] = rows.astype(np.uint32)
    place.create_group("embedding")["heatmaps"] = plane
    clusterings = place.create_group("cluster")
    _write_clustering(clusterings, "exmap clusters", cluster_of_each(analysis)[rows])
    for name, groups in analysis.groups.items():
        _write_clustering(clusterings, f"{name} groups", groups.index[rows], groups)
    if analysis.oracle is not None:
        _write_clustering(clusterings, "true groups", analysis.oracle.index[rows], analysis.oracle)
    _write_clustering(clusterings, "right (0) or wrong (1)", (~analysis.explained.correct[rows]).astype(np.int64))


def _write_clustering(place: Any, name: str, index: IntArray, groups: Groups | None = None) -> None:
    place[name] = index.astype(np.int32)
    if groups is not None:
        place[name].attrs["names"] = list(groups.names)
