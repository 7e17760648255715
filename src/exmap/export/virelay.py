"""A project that ViRelAy opens: images, heatmaps and clusterings as HDF5, and the YAML file that names them.

The layout is that of ViRelAy's own reader (version 1.0): ``dataset.h5`` and ``attributions.h5`` hold an entry per image
in the same order, ``analysis.h5`` a group per category of images.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from exmap.data import Split, batch_slices
from exmap.errors import SettingsError
from exmap.export.pixels import as_bytes, enlarged, in_colour
from exmap.finished import FinishedRun
from exmap.records import Groups, IntArray, Listener, Progress
from exmap.store import write_json, write_text

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


def write_virelay(finished: FinishedRun, split: Split, folder: Path, listen: Listener) -> None:
    """Write project.yaml, label_map.json, dataset.h5, attributions.h5 and analysis.h5.

    Parameters
    ----------
    finished : FinishedRun
    split : Split
        The grouped split, with its images.
    folder : Path
    listen : Listener

    Raises
    ------
    SettingsError
        If h5py is not installed.
    """
    h5py = import_h5py()
    names = finished.class_names
    categories = {ALL: "all images"} | {_category(k, names): name for k, name in enumerate(names)}
    entries = [
        {"index": k, "word_net_id": category, "name": name} for k, (category, name) in enumerate(categories.items(), -1)
    ]
    write_json(folder / "label_map.json", entries)
    _write_images(h5py, finished, split, folder, listen)
    with h5py.File(folder / "analysis.h5", "w") as file:
        _write_category(file.create_group(ALL), finished, np.arange(len(finished.ids)))
        for k in range(len(names)):
            if len(rows := np.flatnonzero(finished.labels == k)):
                _write_category(file.create_group(_category(k, names)), finished, rows)
    write_text(folder / "project.yaml", yaml.safe_dump({"project": _project(finished)}, sort_keys=False))


def _project(finished: FinishedRun) -> dict[str, Any]:
    settings = finished.settings
    return {
        "name": f"{settings.data.name}, seed {settings.seed}",
        "model": settings.model.name,
        "label_map": "label_map.json",
        "dataset": {"name": f"{settings.data.name} ({finished.split_name})", "type": "hdf5", "path": "dataset.h5"},
        "attributions": {
            "attribution_method": settings.explain.composite,
            "attribution_strategy": "true_label" if settings.explain.target == "true" else "predicted_label",
            "sources": ["attributions.h5"],
        },
        "analyses": [{"analysis_method": "exmap", "sources": ["analysis.h5"]}],
    }


def _category(k: int, names: tuple[str, ...]) -> str:
    return f"class-{k:0{len(str(len(names) - 1))}d}"


def _write_images(h5py: ModuleType, finished: FinishedRun, split: Split, folder: Path, listen: Listener) -> None:
    count = len(split)
    _, height, width = split.images.shape
    shape = (count, 3, height, width)
    maps, labels = finished.heatmaps.values, finished.labels.astype(np.uint16)
    logits = finished.outputs(finished.split_name).logits
    with h5py.File(folder / "dataset.h5", "w") as images, h5py.File(folder / "attributions.h5", "w") as attributions:
        images["label"] = labels
        attributions["label"] = labels
        attributions["prediction"] = logits
        pixels = images.create_dataset("data", shape, "u1", chunks=(1, *shape[1:]), compression="gzip")
        relevance = attributions.create_dataset(
            "attribution", shape, "f4", chunks=(1, *shape[1:]), compression="gzip", shuffle=True
        )
        for part in batch_slices(count, AT_ONCE):
            rows = np.arange(part.start, part.stop, dtype=np.int64)
            pixels[part] = as_bytes(in_colour(split.images.pixels(rows)))
            found = enlarged(np.asarray(maps[part]), height, width)
            relevance[part] = found if found.shape[1] == 3 else in_colour(found)
            listen(Progress("images and heatmaps", part.stop, count))


def _write_category(place: Any, finished: FinishedRun, rows: IntArray) -> None:
    """Write the images of a category, their place in the plane, and every way they are grouped."""
    plane = np.nan_to_num(finished.coordinates[rows])
    place["index"] = rows.astype(np.uint32)
    place.create_group("embedding")["heatmaps"] = plane
    clusterings = place.create_group("cluster")
    _write_clustering(clusterings, "exmap clusters", finished.clusters[rows])
    grouped = dict(finished.sources) | ({} if finished.oracle is None else {"true groups": finished.oracle})
    for name, groups in grouped.items():
        _write_clustering(clusterings, name if name == "true groups" else f"{name} groups", groups.index[rows], groups)
    wrong = (finished.predicted != finished.labels)[rows].astype(np.int64)
    _write_clustering(clusterings, "right (0) or wrong (1)", wrong)


def _write_clustering(place: Any, name: str, index: IntArray, groups: Groups | None = None) -> None:
    place[name] = index.astype(np.int32)
    if groups is not None:
        place[name].attrs["names"] = list(groups.names)
