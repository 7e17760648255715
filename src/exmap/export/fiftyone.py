"""A data set for FiftyOne: the folder that ``fo.Dataset.from_dir(dataset_type=fo.types.FiftyOneDataset)`` opens.

The layout is that of FiftyOne's own exporter since 1.0: ``metadata.json`` holds the data set's document with the
types of its fields, ``samples.json`` a document per image, ``data`` the images and ``fields`` the files that labels
refer to. FiftyOne is not needed to write it; later versions bring the documents up to date as they open them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from exmap.analysis import Analysis
from exmap.data import batch_slices
from exmap.export.looks import NO_GROUP, ending_of, groups_by_column, pictures, saved, source_files
from exmap.export.table import cluster_of_each
from exmap.pipeline.disk import write_json
from exmap.records import Listener, Progress

__all__ = ["write_fiftyone"]

VERSION = "1.0.0"  # of the documents
LARGEST = 512  # pixels, of a side of an image
AT_ONCE = 256
MAPS = {"relevance_for": ("#b2182b", 1.0), "relevance_against": ("#2166ac", -1.0)}  # colour, and sign
FULL = 255  # of a map: its largest relevance

FIELDS = "fiftyone.core.fields."
CLASSIFICATION, HEATMAP = "fiftyone.core.labels.Classification", "fiftyone.core.labels.Heatmap"
METADATA = "fiftyone.core.metadata.ImageMetadata"


def write_fiftyone(analysis: Analysis, folder: Path, listen: Listener) -> None:
    """Write metadata.json, samples.json, ``data`` and, for each sign of the relevance, ``fields/NAME``.

    Parameters
    ----------
    analysis : Analysis
        With its images.
    folder : Path
    listen : Listener
    """
    count = len(analysis.explained)
    digits, ending = len(str(max(count - 1, 0))), ending_of(analysis.grouped.images.shape)
    names = [f"{row:0{digits}d}" for row in range(count)]
    files = source_files(analysis.grouped.images)
    for name in ("data", *(f"fields/{name}" for name in MAPS)):
        (folder / name).mkdir(parents=True)
    with open(folder / "samples.json", "w", encoding="utf-8") as out:
        out.write('{"samples": [')
        for row, sample in enumerate(_samples(analysis, names, ending, files)):
            out.write(("\n" if row == 0 else ",\n") + json.dumps(sample, allow_nan=False))
        out.write("\n]}\n")
    write_json(folder / "metadata.json", _dataset(analysis, has_files=all(files)))
    values = analysis.explained.maps().values
    for part in batch_slices(count, AT_ONCE):
        rows = np.arange(part.start, part.stop, dtype=np.int64)
        for name, picture in zip(names[part], pictures(analysis, rows, LARGEST), strict=True):
            (folder / "data" / f"{name}.{ending}").write_bytes(saved(picture, ending))
        for field, (_, sign) in MAPS.items():
            for name, shades in zip(names[part], _shades(np.asarray(values[part]), sign), strict=True):
                Image.fromarray(shades).save(folder / "fields" / field / f"{name}.png")
        listen(Progress("pictures", part.stop, count))


def _shades(maps: NDArray[np.float32], sign: float) -> NDArray[np.uint8]:
    """Return the relevance of one sign, shape (n, h, w): 255 is the map's largest of both signs, 0 is see-through."""
    total = maps.sum(axis=1, dtype=np.float32)
    peak = np.abs(total).max(axis=(1, 2), keepdims=True, initial=0)
    return np.asarray(np.rint(FULL * np.clip(sign * total / np.where(peak > 0, peak, 1), 0, 1)), dtype=np.uint8)


def _samples(
    analysis: Analysis, names: Sequence[str], ending: str, files: Sequence[str | None]
) -> Iterator[dict[str, Any]]:
    """Yield the document of each image, in order."""
    explained, plane, clusters = analysis.explained, analysis.coordinates.astype(float), cluster_of_each(analysis)
    groups, sure = groups_by_column(analysis), _probabilities(explained.outputs.logits)
    order = np.random.default_rng(0).random(len(explained))  # FiftyOne draws samples by this
    predicted, correct = explained.predicted_names, explained.correct
    for row, name in enumerate(names):
        right = bool(correct[row])
        in_group = {
            column: each.names[g] if (g := each.index[row]) >= 0 else NO_GROUP for column, each in groups.items()
        }
        sample: dict[str, Any] = {
            "_id": _identity(analysis, name),
            "_media_type": "image",
            "_rand": float(order[row]),
            "filepath": f"data/{name}.{ending}",
            "tags": list(dict.fromkeys([in_group["group"], *([] if right else ["wrong"])])),
            "metadata": None,
            "image_id": explained.ids[row],
            "source": files[row],
            "ground_truth": _label(analysis, f"{name}/truth", explained.class_names[explained.labels[row]]),
            "prediction": {
                **_label(analysis, f"{name}/prediction", predicted[row]),
                "confidence": float(sure[row]),
            },
            "correct": right,
            "cluster": int(clusters[row]) if clusters[row] >= 0 else None,
            "x": _number(plane[row, 0]),
            "y": _number(plane[row, 1]),
        }
        sample |= {column: _label(analysis, f"{name}/{column}", group) for column, group in in_group.items()}
        for field in MAPS:
            sample[field] = {
                "_id": _identity(analysis, f"{name}/{field}"),
                "_cls": "Heatmap",
                "tags": [],
                "map_path": f"fields/{field}/{name}.png",
                "range": [0.0, float(FULL)],
            }
        yield sample


def _probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probability of the predicted class, shape (N,)."""
    above = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(1 / above.sum(axis=1))


def _identity(analysis: Analysis, name: str) -> dict[str, str]:
    """Return an identity of FiftyOne's, the same for the same thing of the same grouping."""
    return {"$oid": hashlib.sha256(f"{analysis.grouping}/{analysis.explained.split}/{name}".encode()).hexdigest()[:24]}


def _label(analysis: Analysis, name: str, label: str) -> dict[str, Any]:
    return {"_id": _identity(analysis, name), "_cls": "Classification", "tags": [], "label": label}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _dataset(analysis: Analysis, *, has_files: bool) -> dict[str, Any]:
    """Return the document of the data set: what its fields are, and how they are shown."""
    explained, groups = analysis.explained, groups_by_column(analysis)
    titles = {"group": "exmap's group", "chosen_group": "the group that auto chose", "true_group": "the true group"}
    titles["edited_group"] = "the group after a person's edits"
    media = ["filepath", *(["source"] if has_files else [])]
    fields = [
        _field("id", "ObjectIdField", db_field="_id"),
        _field("_dataset_id", "ObjectIdField"),
        _field("created_at", "DateTimeField", read_only=True),
        _field("last_modified_at", "DateTimeField", read_only=True),
        _field("tags", "ListField", subfield=f"{FIELDS}StringField"),
        _field("metadata", embedded=METADATA, fields=_METADATA),
        _field("_rand", "FloatField"),
        _field("_media_type", "StringField"),
        _field("filepath", "StringField", about="the image as the classifier saw it"),
        _field("image_id", "StringField", about="exmap's id of the image"),
        _field("source", "StringField", about="the image's own file"),
        _field("ground_truth", embedded=CLASSIFICATION, fields=_CLASSIFICATION),
        _field("prediction", embedded=CLASSIFICATION, fields=_CLASSIFICATION),
        _field("correct", "BooleanField"),
        _field("cluster", "IntField"),
        _field("x", "FloatField", about="place on the map of the heatmaps"),
        _field("y", "FloatField", about="place on the map of the heatmaps"),
        *(_field(name, embedded=CLASSIFICATION, fields=_CLASSIFICATION, about=titles[name]) for name in groups),
        *(_field(name, embedded=HEATMAP, fields=_HEATMAP, about=f"{name} the explained class") for name in MAPS),
    ]
    return {
        "_id": _identity(analysis, "data set"),
        "name": "exmap",
        "slug": "exmap",
        "version": VERSION,
        "persistent": False,
        "media_type": "image",
        "sample_collection_name": f"samples.{_identity(analysis, 'data set')['$oid']}",
        "group_media_types": {},
        "tags": [],
        "info": {"made_by": "exmap", "data": analysis.task.name, "split": explained.split, "groups": analysis.grouping},
        "app_config": {
            "media_fields": media,
            "grid_media_field": "filepath",
            "modal_media_field": "filepath",
            "plugins": {},
            "color_scheme": {
                "color_by": "field",
                "fields": [{"path": name, "fieldColor": colour} for name, (colour, _) in MAPS.items()],
            },
        },
        "classes": {name: list(explained.class_names) for name in ("ground_truth", "prediction")},
        "default_classes": list(explained.class_names),
        "mask_targets": {},
        "default_mask_targets": {},
        "skeletons": {},
        "sample_fields": fields,
    }


def _field(
    name: str,
    kind: str = "EmbeddedDocumentField",
    *,
    embedded: str | None = None,
    subfield: str | None = None,
    fields: Sequence[dict[str, Any]] = (),
    db_field: str | None = None,
    about: str | None = None,
    read_only: bool = False,
) -> dict[str, Any]:
    return {
        "name": name,
        "ftype": FIELDS + kind,
        "embedded_doc_type": embedded,
        "subfield": subfield,
        "fields": list(fields),
        "db_field": db_field or name,
        "description": about,
        "info": None,
        "read_only": read_only,
    }


_LABEL = [_field("id", "ObjectIdField", db_field="_id"), _field("tags", "ListField", subfield=f"{FIELDS}StringField")]
_CLASSIFICATION = [
    *_LABEL,
    _field("label", "StringField"),
    _field("confidence", "FloatField"),
    _field("logits", "VectorField"),
]
_HEATMAP = [
    *_LABEL,
    _field("map", "ArrayField"),
    _field("map_path", "StringField"),
    _field("range", "ListField", subfield=f"{FIELDS}FloatField"),
]
_METADATA = [
    _field("size_bytes", "IntField"),
    _field("mime_type", "StringField"),
    *(_field(name, "IntField") for name in ("width", "height", "num_channels")),
]
