"""Your own images: a Hugging Face data set, saved to disk, as Parquet files, or by its id where there is a network."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from exmap.data.columns import column, files_like
from exmap.data.entry import Entry
from exmap.data.labels import Labels, listed, read_labels
from exmap.data.own import SPLIT_NAMES, as_set, attributes_of, filled, same_splits, split_number
from exmap.data.regular import read_regular
from exmap.data.table import ImageTable
from exmap.errors import DataError, shown
from exmap.importing import first_line
from exmap.plain_text import printable
from exmap.registry import DATASETS
from exmap.settings import DataSettings

__all__ = ["WHOLE", "SavedFiles", "parquet_files", "saved_dataset"]

NO_LABEL = "-1"
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
        return bytes(image["bytes"]) if image["bytes"] is not None else read_regular(self.root / image["path"])

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
    notes: list[str] = []
    if settings.one_set and settings.part is not None:
        parts = {WHOLE: parts[_part(parts, settings.part, root)]}
    elif len(parts) == 1 and (settings.one_set or next(iter(parts)).lower() not in SPLIT_NAMES):
        parts = {WHOLE: next(iter(parts.values()))}
    else:
        parts = _known_splits(parts, root, notes)
    first = next(iter(parts.values()))
    image_column = settings.image_column or _only(first, _image_kinds(), "image")
    label_column = _label_column(first, settings.label_column)
    labelled = _labelled(parts, label_column, root, notes)
    first = next(iter(labelled.values()))[0]
    names: list[str] = []
    labels: list[str] = []
    splits: list[int] = []
    groups: dict[str, list[str]] = {name: [] for name in settings.group_columns}
    used = {image_column, label_column, settings.split_column or "split", *groups}
    metadata: dict[str, list[str]] = {
        name: [] for name in first.column_names if name not in used and _is_plain(first.features[name])
    }
    kept = {}
    for part, (rows, chosen, texts) in labelled.items():
        for wanted in (image_column, *settings.group_columns):
            column({name: [] for name in rows.column_names}, wanted, root)
        kept[part] = _images(rows, image_column, root)
        names += [f"{part}/{i:06d}" for i in chosen]
        where = f"{root} ({part})"
        labels += filled(texts, label_column, where, first=0)
        for name, values in groups.items():
            values += filled(_chosen(_texts(rows, name, root), chosen), name, where, first=0)
        for name, values in metadata.items():
            known = _texts(rows, name, root) if name in rows.column_names else [""] * len(rows)
            values += _chosen(known, chosen)
        splits += _chosen(_splits(part, rows, settings, root), chosen)
    title = printable(settings.id or root.absolute().name)
    read = _read_labels(labels, [rows.features[label_column] for rows, *_ in labelled.values()], title, settings)
    attributes, more = attributes_of(groups, title)
    table = ImageTable(
        name=title,
        files=SavedFiles(root, image_column, kept),
        names=tuple(names),
        labels=read.index,
        splits=np.array(splits, dtype=np.int64),
        class_names=read.names,
        attributes=attributes,
        metadata=metadata,
        notes=(*notes, *read.notes, *more),
    )
    return as_set(table, settings)


def _known_splits(parts: dict[str, Any], root: Path, notes: list[str]) -> dict[str, Any]:
    """Return the parts that are training, validation and test images by their names, and note what is left out."""
    known = {name: rows for name, rows in parts.items() if name == WHOLE or name.lower() in SPLIT_NAMES}
    if not known:
        raise DataError(
            f"{root} must have splits that are called train, validation and test, found {listed(tuple(parts))}; "
            "name one of them with --set data.part=NAME and data.one_set=true, or rename them"
        )
    others = [name for name in parts if name not in known]
    if others:
        close = difflib.get_close_matches(others[0].lower(), SPLIT_NAMES, n=1, cutoff=0.75)
        hint = f"; is {others[0]!r} meant as {close[0]!r}" if close and close[0] not in known else ""
        notes.append(
            f"Splits that are neither training, validation nor test images are left out: {listed(others)}{hint}."
        )
    notes += same_splits(tuple(known))
    return known


def _labelled(
    parts: dict[str, Any], name: str, root: Path, notes: list[str]
) -> dict[str, tuple[Any, list[int], list[str]]]:
    """Return by part what it holds, which of its rows have a label, and their labels.

    A part without any, whose labels are hidden, is left out.
    """
    found: dict[str, tuple[Any, list[int], list[str]]] = {}
    hidden = []
    for part, rows in parts.items():
        if name not in rows.column_names:
            if len(parts) == 1 or not any(name in other.column_names for other in parts.values()):
                column({name: [] for name in rows.column_names}, name, root)
            hidden.append(part)
            continue
        texts = _texts(rows, name, root)
        by_number = _order(rows.features[name]) is not None
        if len(parts) > 1 and all(text in ("", NO_LABEL) for text in texts):
            hidden.append(part)
            continue
        chosen = [row for row, text in enumerate(texts) if text or not by_number]
        if len(chosen) < len(rows):
            notes.append(
                f"{len(rows) - len(chosen):,} of {len(rows):,} images of {part} have no label (-1) and are left out."
            )
        found[part] = rows, chosen, _chosen(texts, chosen)
    if hidden:
        notes.append(f"Splits without labels, whose labels are hidden, are left out: {listed(hidden)}.")
    if not any(chosen for _, chosen, _ in found.values()):
        raise DataError(f"the images of {root} must have labels, but column {name} holds none; name another column")
    return found


def _chosen(values: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return list(values) if len(rows) == len(values) else [values[row] for row in rows]


def _read_labels(texts: Sequence[str], features: Sequence[Any], title: str, settings: DataSettings) -> Labels:
    """Return the labels, in the order of the ``ClassLabel`` with all of its names, where there is one."""
    orders = [_order(feature) for feature in features]
    if any(order is None for order in orders):
        return read_labels(texts, f"column {settings.label_column} of {title}", classes=settings.classes)
    names = tuple(dict.fromkeys(name for order in orders if order is not None for name in order))
    position = {name: number for number, name in enumerate(names)}
    return Labels(np.array([position[text] for text in texts], dtype=np.int64), names)


def _images(rows: Any, name: str, root: Path) -> Any:
    """Return a column of images as it is stored: bytes, or the path of a file."""
    from datasets import Image

    feature = rows.features[name]
    if not isinstance(feature, (Image, dict)) and getattr(feature, "dtype", "") not in ("binary", "large_binary"):
        raise DataError(f"column {name} of {root} must hold images, found {feature}")
    try:
        return rows.cast_column(name, Image(decode=False)).select_columns([name])
    except Exception as error:  # the library raises many kinds for columns of another form
        raise DataError(f"column {name} of {root} must hold images, found {shown(feature)}") from error


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
        return files_like(root, str(pattern))
    return files_like(root, "*.parquet") or files_like(root / "data", "*.parquet")


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


def _image_kinds() -> Callable[[Any], bool]:
    """Return what tells a column of images: the library's own kind, or bytes and path as this stores them."""
    from datasets import Image

    return lambda feature: isinstance(feature, Image) or (isinstance(feature, dict) and "bytes" in feature)


def _only(rows: Any, kind: Callable[[Any], bool], usual: str) -> str:
    """Return the usual name of a column, or that of the only column of a kind."""
    found = [name for name, feature in rows.features.items() if kind(feature)]
    return found[0] if len(found) == 1 and usual not in rows.column_names else usual


def _label_column(rows: Any, wanted: str) -> str:
    from datasets import ClassLabel

    if wanted != DataSettings.model_fields["label_column"].default:
        return wanted
    return _only(rows, lambda feature: isinstance(feature, ClassLabel), wanted)


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
        strange = next((v for v in values if v is not None and v >= len(feature.names)), None)
        if strange is not None:
            raise DataError(
                f"column {name} of {root} must hold the numbers of its {len(feature.names)} classes, from 0 on, got "
                f"{strange}; save the data set again with all names"
            )
        return ["" if v is None or v < 0 else feature.names[v] for v in values]
    if not isinstance(feature, Value):
        raise DataError(f"column {name} of {root} must hold text or numbers, found {feature}")
    try:
        texts = [v.decode() if isinstance(v, bytes) else v for v in values]
    except UnicodeDecodeError as error:
        raise DataError(f"column {name} of {root} must hold text or numbers, found bytes that are no text") from error
    return ["" if v is None or v != v else str(v).strip() for v in texts]


DATASETS.register(
    Entry("your own images: a Hugging Face data set, saved to disk or by its id", images=saved_dataset),
    name="huggingface",
)
