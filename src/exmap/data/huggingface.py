"""Your own images: a Hugging Face data set, saved to disk, as Parquet files, or by its id where there is a network."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from exmap.data.columns import column
from exmap.data.entry import Entry
from exmap.data.own import SPLIT_NAMES, as_set, attributes_of, filled, split_number
from exmap.data.table import ImageTable, numbered
from exmap.errors import DataError
from exmap.importing import first_line
from exmap.registry import DATASETS
from exmap.settings import DataSettings

__all__ = ["WHOLE", "SavedFiles", "parquet_files", "saved_dataset"]

WHOLE = "all"  # the name of a data set without splits
SAVED = ("dataset_dict.json", "dataset_info.json")
INSTALL = "Hugging Face data sets need the library datasets, which is not installed; pip install 'exmap[huggingface]'"


@dataclass(frozen=True)
class SavedFiles:
    """The images of a Hugging Face data set: names are ``split/row``."""

    root: Path
    image_column: str
    parts: dict[str, Any]

    def read(self, name: str) -> bytes:
        """Return the bytes of an image as they were stored."""
        split, row = name.rsplit("/", 1)
        image = self.parts[split][int(row)][self.image_column]
        if image is None or (image["bytes"] is None and not image["path"]):
            raise FileNotFoundError(2, "the row holds no image", name)
        data = image["bytes"] if image["bytes"] is not None else (self.root / image["path"]).read_bytes()
        return bytes(data)

    def stamp(self, name: str) -> tuple[int, int]:
        """Return total size and latest change of the folder's files, the same for every image."""
        return self._stamp

    @cached_property
    def _stamp(self) -> tuple[int, int]:
        found = [os.stat(path) for end in ("arrow", "parquet") for path in sorted(self.root.rglob(f"*.{end}"))]
        if not found:  # by an id: known by the library's own fingerprints
            known = "".join(str(getattr(rows, "_fingerprint", "")) for rows in self.parts.values())
            return sum(map(len, self.parts.values())), int(hashlib.sha256(known.encode()).hexdigest()[:12], 16)
        return sum(f.st_size for f in found), max((f.st_mtime_ns for f in found), default=0)


def saved_dataset(settings: DataSettings) -> ImageTable:
    """Read what ``save_to_disk`` or ``to_parquet`` has written, or what ``load_dataset`` finds by an id.

    Raises
    ------
    DataError
        If the library is not installed, the folder is not such a data set, or a column is missing.
    """
    root, parts = _parts(settings)
    if settings.one_set and settings.part is not None:
        parts = {WHOLE: parts[_part(parts, settings.part, root)]}
    elif len(parts) == 1 and settings.one_set:
        parts = {WHOLE: next(iter(parts.values()))}
    from datasets import Image

    first = next(iter(parts.values()))
    image_column = settings.image_column or _only(first, Image, "image")
    label_column = _label_column(first, settings.label_column)
    names: list[str] = []
    labels: list[str] = []
    splits: list[int] = []
    groups: dict[str, list[str]] = {name: [] for name in settings.group_columns}
    used = {image_column, label_column, settings.split_column or "split", *groups}
    metadata: dict[str, list[str]] = {
        name: [] for name in first.column_names if name not in used and _is_plain(first.features[name])
    }
    kept = {}
    for part, rows in parts.items():
        for wanted in (image_column, label_column, *settings.group_columns, *metadata):
            column({name: [] for name in rows.column_names}, wanted, root)
        if not isinstance(rows.features[image_column], Image):
            raise DataError(f"column {image_column} of {root} must hold images, found {rows.features[image_column]}")
        kept[part] = rows.cast_column(image_column, Image(decode=False)).select_columns([image_column])
        names += [f"{part}/{i:06d}" for i in range(len(rows))]
        where = f"{root} ({part})"
        for name, values in ((label_column, labels), *groups.items()):
            values += filled(_texts(rows, name, root), name, where, first=0)
        for name, values in metadata.items():
            values += _texts(rows, name, root)
        splits += _splits(part, rows, settings, root)
    numbers, class_names = numbered(labels)
    if (order := _order(first.features[label_column])) is not None:
        used_names = [name for name in order if settings.one_set or name in class_names]
        numbers = np.array([used_names.index(name) for name in class_names], dtype=np.int64)[numbers]
        class_names = tuple(used_names)
    table = ImageTable(
        name=settings.id or root.absolute().name,
        files=SavedFiles(root, image_column, kept),
        names=tuple(names),
        labels=numbers,
        splits=np.array(splits, dtype=np.int64),
        class_names=class_names,
        attributes=attributes_of(groups),
        metadata=metadata,
    )
    return as_set(table, settings)


def _splits(part: str, rows: Any, settings: DataSettings, root: Path) -> list[int]:
    wanted = settings.split_column or "split"
    if part != WHOLE:
        return [split_number(part, str(root))] * len(rows)
    if settings.split_column is None and (wanted not in rows.column_names or settings.part is not None):
        return [-1] * len(rows)
    column({name: [] for name in rows.column_names}, wanted, root)
    return [split_number(text, f"row {i} of {root}") for i, text in enumerate(_texts(rows, wanted, root))]


def _parts(settings: DataSettings) -> tuple[Path, dict[str, Any]]:
    """Return data sets by the names of their splits; :data:`WHOLE` for one that has none."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(INSTALL) from error
    root, library_progress = settings.dir, datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        if settings.id is not None:
            return Path(settings.id), _of_hub(datasets, settings.id)
        files = [] if root is None or _is_saved(root) else parquet_files(root, settings.table)
        if root is None or not (files or _is_saved(root)):
            raise DataError(
                f"{root} must be a folder that save_to_disk has written (with dataset_info.json or dataset_dict.json), "
                "or hold Parquet files of images; name one with --data-dir"
            )
        try:
            loaded = _of_parquet(datasets, files) if files else datasets.load_from_disk(str(root))
        except Exception as error:  # the library raises many kinds for a damaged folder
            raise DataError(f"{root} cannot be read as a saved data set: {error}; save it again") from error
    finally:
        if library_progress:
            datasets.utils.logging.enable_progress_bar()
    return root, dict(loaded.items()) if isinstance(loaded, dict) else {WHOLE: loaded}


def _is_saved(root: Path) -> bool:
    return any((root / name).is_file() for name in SAVED)


def _of_hub(datasets: Any, name: str) -> dict[str, Any]:
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # whatever the library says
        raise DataError(
            f"the data set {name} could not be loaded from the Hugging Face hub ({first_line(error)}); check its name "
            "and the network, or give a folder that save_to_disk has written"
        ) from error
    return dict(loaded.items()) if isinstance(loaded, dict) else {WHOLE: loaded}


def parquet_files(root: Path, pattern: Path | None = None) -> list[Path]:
    """Return the Parquet files of a folder: those of a name or pattern, or else all in it or in its folder ``data``."""
    if pattern is not None:
        return sorted(root.glob(str(pattern)))
    return sorted(root.glob("*.parquet")) or sorted((root / "data").glob("*.parquet"))


def _of_parquet(datasets: Any, files: Sequence[Path]) -> Any:
    """Return the data sets of Parquet files, by the split that starts their names, where all have one."""
    by_split: dict[str, list[str]] = {}
    for path in files:
        start = re.split(r"[^A-Za-z]", path.name, maxsplit=1)[0].lower()
        by_split.setdefault(start if start in SPLIT_NAMES else WHOLE, []).append(str(path))
    if WHOLE in by_split:
        return datasets.Dataset.from_parquet([str(path) for path in files])
    names = sorted(by_split, key=lambda name: (SPLIT_NAMES[name], name))
    return {name: datasets.Dataset.from_parquet(by_split[name]) for name in names}


def _part(parts: dict[str, Any], wanted: str, root: Path) -> str:
    """Return the name of a part by one of its split's names."""
    if wanted in parts:
        return wanted
    same = [name for name in parts if SPLIT_NAMES.get(name.lower(), name) == SPLIT_NAMES.get(wanted.lower(), wanted)]
    if not same:
        said = "no splits" if set(parts) == {WHOLE} else f"the splits {', '.join(parts)}"
        raise DataError(f"{root} has no split {wanted!r}, but {said}; name one of them, or none")
    return same[0]


def _only(rows: Any, kind: type, usual: str) -> str:
    """Return the usual name of a column, or that of the only column of a kind."""
    found = [name for name, feature in rows.features.items() if isinstance(feature, kind)]
    return found[0] if len(found) == 1 and usual not in rows.column_names else usual


def _label_column(rows: Any, wanted: str) -> str:
    from datasets import ClassLabel

    return _only(rows, ClassLabel, wanted) if wanted == DataSettings.model_fields["label_column"].default else wanted


def _order(feature: Any) -> list[str] | None:
    """Return the names of a ``ClassLabel`` in its order."""
    from datasets import ClassLabel

    return list(feature.names) if isinstance(feature, ClassLabel) else None


def _is_plain(feature: Any) -> bool:
    from datasets import ClassLabel, Value

    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and "binary" not in feature.dtype)


def _texts(rows: Any, name: str, root: Path) -> Sequence[str]:
    """Return a column as text, empty where a value is missing; the numbers of a ``ClassLabel`` become its names."""
    from datasets import ClassLabel, Value

    feature, values = rows.features[name], rows[name]
    if isinstance(feature, ClassLabel):
        return ["" if v is None or v < 0 else feature.int2str(v) for v in values]
    if not isinstance(feature, Value):
        raise DataError(f"column {name} of {root} must hold text or numbers, found {feature}")
    return ["" if v is None or v != v else str(v).strip() for v in values]


DATASETS.register(
    Entry("your own images: a Hugging Face data set, saved to disk or by its id", images=saved_dataset),
    name="huggingface",
)
