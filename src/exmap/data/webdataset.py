"""Your own images: WebDataset shards, tar files that hold an image and its label under one key.

Nothing is unpacked: images are read from their places in the shards. Labels are text or JSON; nothing is unpickled.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from exmap.data.columns import files_like
from exmap.data.decode import SUFFIXES
from exmap.data.entry import Entry, folder_of
from exmap.data.junk import is_text
from exmap.data.labels import read_labels
from exmap.data.own import SPLIT_NAMES, as_set, attributes_of
from exmap.data.regular import open_regular
from exmap.data.table import ImageTable
from exmap.errors import DataError
from exmap.plain_text import printable
from exmap.registry import DATASETS
from exmap.settings import DataSettings

__all__ = ["TarFiles", "web_dataset"]

LABELS = ("cls", "label", "json", "txt")  # endings that may hold a label, the surest first
MOST_BYTES = 1 << 20  # of a label or of JSON
FIELDS = ("label", "cls", "class")  # of JSON


@dataclass(frozen=True)
class TarFiles:
    """Images in tar files: names are ``shard/key.ending``."""

    own_sizes: ClassVar[bool] = True
    root: Path
    places: Mapping[str, tuple[str, int, int]] = field(repr=False)  # shard, offset and size of each name

    def read(self, name: str) -> bytes:
        """Return the bytes of an image."""
        if name not in self.places:
            raise FileNotFoundError(2, "there is no such image", name)
        shard, offset, size = self.places[name]
        with open_regular(self.root / shard) as file:
            file.seek(offset)
            return file.read(size)

    def only(self, names: Sequence[str]) -> TarFiles:
        """Return the files of some names, without the places of the others."""
        return TarFiles(self.root, {name: self.places[name] for name in names if name in self.places})

    def stamp(self, name: str) -> tuple[int, int]:
        """Return the size of an image and the time of change of its shard."""
        shard, _, size = self.places.get(name, ("", 0, -1))
        try:
            return size, (self.root / shard).stat().st_mtime_ns
        except OSError:
            return -1, 0


@dataclass
class _Sample:
    """What lies under one key: the places of its images by ending, and the texts beside them."""

    images: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def web_dataset(settings: DataSettings) -> ImageTable:
    """Read the tar files of a folder: those that ``data.table`` names, such as ``val-*.tar``, or all.

    The label of ``KEY.jpg`` is ``KEY.cls`` or ``KEY.txt``, or a field of ``KEY.json`` (``data.label_column``); other
    plain fields are metadata, or groups where ``data.group_columns`` names them. Shards whose names all start with that
    of a split, such as ``train-0001.tar``, are divided by it.

    Raises
    ------
    DataError
        If there are no shards, one cannot be read, or an image has no label.
    """
    root = folder_of(settings)
    pattern = "*.tar" if settings.table is None else str(settings.table)
    shards = files_like(root, pattern)
    if not shards:
        raise DataError(f"WebDataset shards are tar files, and there is no {pattern} in {root}; name their --data-dir")
    names: list[str] = []
    labels: list[str] = []
    splits: list[int] = []
    records: list[dict[str, str]] = []
    places: dict[str, tuple[str, int, int]] = {}
    ignored: dict[str, list[str]] = {}
    starts = [SPLIT_NAMES.get(re.split(r"[^A-Za-z]", path.name, maxsplit=1)[0].lower(), -1) for path in shards]
    for shard, start in zip(shards, starts, strict=True):
        for key, sample in _samples(shard, ignored).items():
            where = f"{key} in {shard}"
            if not sample.images:
                ignored.setdefault("keys without an image", []).append(f"{shard.name}/{key}")
                continue
            ending = _ending(sample, settings.image_column, where)
            place = sample.images[ending]
            name = f"{shard.name}/{key}.{ending}"
            if place[2] == 0:
                ignored.setdefault("empty files", []).append(name)
                continue
            label, record = _label(sample, settings.label_column, where)
            places[name] = place
            names.append(name)
            labels.append(label)
            records.append(record)
            splits.append(start if min(starts) >= 0 else -1)
    if not names:
        raise DataError(f"{root} holds no images in {pattern}; an image must lie beside its label as KEY.jpg, KEY.cls")
    read = read_labels(labels, f"the labels of {root.name}", classes=settings.classes)
    groups = {name: _column(records, name, root) for name in settings.group_columns}
    others = dict.fromkeys(name for record in records for name in record if name not in groups)
    attributes, notes = attributes_of(groups, root.name)
    table = ImageTable(
        name=printable(root.absolute().name),
        files=TarFiles(root, places),
        names=tuple(names),
        labels=read.index,
        splits=np.array(splits, dtype=np.int64),
        class_names=read.names,
        attributes=attributes,
        notes=(*read.notes, *notes),
        metadata={name: [record.get(name, "") for record in records] for name in others},
        ignored=ignored,
    )
    return as_set(table, settings)


def _samples(shard: Path, ignored: dict[str, list[str]]) -> dict[str, _Sample]:
    """Return what lies in a shard, by key: all up to the first dot of a file's name."""
    found: dict[str, _Sample] = {}
    try:
        with (
            open_regular(shard) as file,
            open_regular(shard) as tar,
            tarfile.open(fileobj=tar, mode="r:") as opened,
        ):
            for member in opened:
                if member.isdir():
                    continue
                if not is_text(member.name):
                    kind = "images whose names are not in UTF-8"
                    ignored.setdefault(kind, []).append(f"{shard.name}/{printable(member.name)}")
                    continue
                key, ending = _parted(member.name)
                if not member.isreg() or member.issparse() or key is None:
                    kind = "hidden files" if member.isreg() else "links and other entries that are no files"
                    ignored.setdefault(kind, []).append(f"{shard.name}/{member.name}")
                    continue
                sample = found.setdefault(key, _Sample())
                if f".{ending}" in SUFFIXES:
                    sample.images[ending] = (shard.name, member.offset_data, member.size)
                elif ending in LABELS:
                    if member.size > MOST_BYTES:
                        raise DataError(
                            f"a label must be short, but {member.name} in {shard} has {member.size:,} bytes"
                        )
                    file.seek(member.offset_data)
                    sample.texts[ending] = file.read(member.size).decode("utf-8").strip()
                else:
                    ignored.setdefault("files that are neither images nor labels", []).append(
                        f"{shard.name}/{member.name}"
                    )
            file.seek(opened.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # the library takes a cut header for the end
                raise tarfile.ReadError("its end is missing")
    except UnicodeDecodeError as error:
        raise DataError(f"the labels of {shard} must be text, but one is not ({error}); write class names") from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{shard} must be a whole tar file that is not compressed, but it cannot be read ({error}); copy or "
            "pack it again"
        ) from error
    return found


def _parted(name: str) -> tuple[str | None, str]:
    """Return key and ending of a file in a shard; no key for hidden files and those without an ending."""
    path, _, last = name.removeprefix("./").rpartition("/")
    stem, dot, ending = last.partition(".")
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.split("/") if part)
    if not stem or not dot or hidden:
        return None, ""
    return (f"{path}/{stem}" if path else stem), ending.lower()


def _ending(sample: _Sample, wanted: str | None, where: str) -> str:
    if wanted is not None:
        if wanted.lower() not in sample.images:
            raise DataError(f"{where} has no image with the ending {wanted}, but {', '.join(sample.images)}")
        return wanted.lower()
    if len(sample.images) > 1:
        raise DataError(
            f"{where} has several images ({', '.join(sample.images)}); name the ending of those to take with --set "
            "data.image_column=ENDING"
        )
    return next(iter(sample.images))


def _label(sample: _Sample, wanted: str, where: str) -> tuple[str, dict[str, str]]:
    """Return the label of an image, and the other plain fields of its JSON."""
    record: Any = {}
    if "json" in sample.texts:
        try:
            record = json.loads(sample.texts["json"])
        except (ValueError, RecursionError) as error:
            raise DataError(f"the JSON of {where} cannot be read: {error}") from error
    fields = record if isinstance(record, dict) else {"label": record}
    plain = {str(name): _text(value) for name, value in fields.items() if isinstance(value, (str, int, float, bool))}
    own = next((name for name in (wanted, *FIELDS) if plain.get(name)), None)
    text = next((sample.texts[ending] for ending in ("cls", "label") if sample.texts.get(ending)), None)
    if text is None:
        text = plain[own] if own is not None else sample.texts.get("txt", "")
    if not text or "\n" in text:
        raise DataError(
            f"every image must have a label, but {where} has none of one line; write KEY.cls, or the field "
            f"{wanted} of KEY.json, beside it"
        )
    return text, {name: value for name, value in plain.items() if name != own}


def _text(value: Any) -> str:
    text = "" if value != value else str(value).strip()
    return text if is_text(text) else printable(text)  # half of a pair of surrogates


def _column(records: list[dict[str, str]], name: str, root: Path) -> list[str]:
    for record in records:
        if not record.get(name):
            raise DataError(f"the JSON of every image of {root} must have the field {name}, but one has not")
    return [record[name] for record in records]


DATASETS.register(Entry("your own images: WebDataset shards", images=web_dataset), name="webdataset")
