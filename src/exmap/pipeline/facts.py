"""What a run keeps of its data: labels, ids and true groups, so that all but images can be had without the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from exmap.data import Split, Task
from exmap.data.dataset import TrueGroups
from exmap.data.missing import MissingImages
from exmap.pipeline.disk import save_table, write_json
from exmap.pipeline.kept import kept_json, kept_table

__all__ = ["load_task", "save_task"]


def save_task(task: Task, folder: Path) -> None:
    """Write data.json and a table per split: id, class and true group of each image."""
    splits: dict[str, Any] = {}
    for split in (task.train, task.val) if task.cross_fitted else (task.train, task.val, task.test):
        columns: dict[str, Any] = {"id": list(split.ids), "class": split.labels}
        truth = split.truth
        if truth is not None:
            columns["true_group"] = truth.index
        splits[split.name] = {
            "images": len(split),
            "true_groups": None
            if truth is None
            else {
                "names": truth.names,
                "attributes": truth.attributes,
                "coordinates": None if truth.coordinates is None else truth.coordinates.tolist(),
            },
        }
        save_table(pa.table(columns), folder / f"{split.name}.parquet")
    record = {
        "name": task.name,
        "class_names": task.train.class_names,
        "shape": task.train.images.shape,
        "splits": splits,
        "digests": dict(task.digests),
        "skipped": dict(task.skipped),
        "ignored": {kind: list(names) for kind, names in task.ignored.items()},
        "notes": list(task.notes),
        "cross_fitted": task.cross_fitted,
    }
    write_json(folder / "data.json", record)


def load_task(folder: Path, why: str = "were not opened") -> Task:
    """Return the task without its images; `why` says why they are not there."""
    record = kept_json(folder / "data.json")
    splits = {}
    for name in record["splits"]:
        kept = record["splits"][name]
        numbers = {"id": "", "class": "iu"} | ({} if (known := kept["true_groups"]) is None else {"true_group": "iu"})
        table, truth = kept_table(folder / f"{name}.parquet", kept["images"], numbers), None
        if known is not None:
            places = None if known["coordinates"] is None else np.array(known["coordinates"], dtype=np.int64)
            index = table["true_group"].to_numpy()
            truth = TrueGroups(index, tuple(known["names"]), tuple(known["attributes"]), places)
        splits[name] = Split(
            name,
            MissingImages(kept["images"], tuple(record["shape"]), why),
            table["class"].to_numpy(),
            tuple(table["id"].to_pylist()),
            tuple(record["class_names"]),
            truth,
        )
    one = record.get("cross_fitted", False)  # files of earlier versions do not say
    return Task(
        record["name"],
        splits["train"],
        splits["val"],
        splits["val" if one else "test"],
        digests=record["digests"],
        skipped=record["skipped"],
        ignored=record.get("ignored", {}),
        notes=tuple(record.get("notes", ())),
        cross_fitted=one,
    )
