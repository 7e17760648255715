"""What a user's data set says of its items beside them: labels, class names, files, other columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset, TensorDataset

from exmap.data.arrays import label_of
from exmap.data.items import IMAGE_KEYS, LABEL_KEYS
from exmap.data.preprocess import Preprocess
from exmap.errors import DataError
from exmap.records import IntArray

__all__ = [
    "class_names_of",
    "column_labels",
    "known_labels",
    "own_transform",
    "paths_of",
    "plain_columns",
    "short_paths",
]


def own_transform(dataset: Any) -> Preprocess | None:
    """Return the transform that a data set applies itself, to know its normalisation."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    transform = getattr(dataset, "transform", None)
    return Preprocess.of(transform) if callable(transform) else None


def known_labels(dataset: Any, rows: IntArray) -> list[Any] | None:
    """Return the labels that a data set holds beside its images, so that these need not be read."""
    if isinstance(dataset, Subset):
        return known_labels(dataset.dataset, np.asarray(dataset.indices, dtype=np.int64)[rows])
    if isinstance(dataset, TensorDataset):
        held: Any = dataset.tensors[1] if len(dataset.tensors) > 1 else None
    else:
        held = next((v for v in (getattr(dataset, a, None) for a in ("targets", "labels", "y")) if v is not None), None)
    try:
        if held is None or len(held) != len(dataset):
            return None
        return [label_of(held[row]) for row in rows.tolist()]
    except (DataError, TypeError, KeyError, IndexError):
        return None


def class_names_of(dataset: Any) -> tuple[str, ...] | None:
    """Return what a data set calls its classes."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    found = getattr(dataset, "classes", None)
    if hasattr(dataset, "features") and (column := _label_column(dataset)) is not None:
        found = getattr(dataset.features[column], "names", None)
    if not isinstance(found, (list, tuple)) or not found:
        return None
    names = tuple(str(one[0] if isinstance(one, (list, tuple)) and one else one) for one in found)
    return names if len(set(names)) == len(names) else tuple(f"{name} ({n})" for n, name in enumerate(names))


def paths_of(dataset: Any) -> Sequence[str] | None:
    """Return the files of a data set such as torchvision's ``ImageFolder``."""
    if isinstance(dataset, Subset):
        paths = paths_of(dataset.dataset)
        return None if paths is None else [paths[int(i)] for i in dataset.indices]
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, (list, tuple)) or len(samples) != len(dataset):
        return None
    found = [one[0] if isinstance(one, (list, tuple)) and one else None for one in samples]
    return [str(path) for path in found] if all(isinstance(path, (str, Path)) for path in found) else None


def short_paths(paths: Sequence[str]) -> tuple[str, ...]:
    """Return paths from the folder that all of them lie in."""
    folders = [Path(path).parent.parts for path in paths]
    common = 0
    while all(len(parts) > common and parts[common] == folders[0][common] for parts in folders):
        common += 1
    return tuple(Path(*Path(path).parts[common:]).as_posix() for path in paths)


def _label_column(dataset: Any) -> str | None:
    labels = [name for name, feature in dataset.features.items() if hasattr(feature, "names")]
    usual = [name for name in LABEL_KEYS if name in dataset.features]
    return (usual or (labels if len(labels) == 1 else []) or [None])[0]


def column_labels(dataset: Any, rows: IntArray) -> list[Any] | None:
    """Return the label column of a Hugging Face data set, without a look at its images."""
    column = _label_column(dataset)
    if column is None:
        return None
    values = dataset.select_columns([column]).with_format(None)[column]
    return [label_of(values[row]) for row in rows.tolist()]


def plain_columns(dataset: Any, rows: IntArray) -> dict[str, list[str]]:
    """Return the other plain columns of a Hugging Face data set as texts."""
    label = _label_column(dataset)
    found = {}
    for name, feature in dataset.features.items():
        dtype = getattr(feature, "dtype", "")
        if name in (label, *IMAGE_KEYS) or not isinstance(dtype, str) or "binary" in dtype:
            continue
        if not (hasattr(feature, "names") or type(feature).__name__ == "Value"):
            continue
        values = dataset.select_columns([name]).with_format(None)[name]
        words = feature.int2str if hasattr(feature, "int2str") else str
        found[name] = ["" if values[row] is None else str(words(values[row])) for row in rows.tolist()]
    return found
