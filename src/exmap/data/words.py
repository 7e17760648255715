"""What a user calls his images, a path or a word, as settings of the data."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from exmap.data.columns import read_table
from exmap.data.decode import SUFFIXES
from exmap.data.huggingface import SAVED, parquet_files
from exmap.errors import DataError
from exmap.settings import DataSettings

__all__ = ["data_settings_of", "second_settings"]

FORMS = (
    "a folder per class, a CSV or Parquet table, a saved Hugging Face data set or hf:FOLDER_OR_ID[:SPLIT], or "
    "WebDataset shards such as shards/*.tar"
)
TABLES = frozenset({".csv", ".tsv", ".parquet", ".pq"})
IMAGE_COLUMNS = ("path", "image", "file_name", "filename", "img_filename", "file", "img")
WHICH = ("name", "id", "dir", "table", "part")  # settings that say which images are meant


def data_settings_of(text: str | Path) -> DataSettings:
    """Return the settings of the images that a user names; what lies in a folder is recognised by its content.

    Parameters
    ----------
    text : str or Path
        A folder per class, a table, a saved Hugging Face data set or ``hf:FOLDER_OR_ID[:SPLIT]``, Parquet files of
        images, or WebDataset shards.

    Returns
    -------
    DataSettings
        Of which ``name``, and of ``id``, ``dir``, ``table``, ``part`` and ``image_column`` what applies, are set.

    Raises
    ------
    DataError
        If there is no such thing.
    """
    word = str(text)
    if word.startswith("hf:"):
        return _hugging_face(word.removeprefix("hf:"))
    if not word.strip():
        raise DataError(f"images are given as {FORMS}, got nothing; name them")
    path = Path(word)
    if not word.isascii() and os.fsencode(word) != word.encode(errors="replace"):
        raise DataError(f"the path of the images must be in UTF-8, got {word!a}; rename the folder")
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() == ".tar" or re.search(r"\.tar$", word):
        return _shards(path)
    if path.suffix.lower() in TABLES and path.is_file():
        if path.suffix.lower() in {".parquet", ".pq"} and _holds_images(path):
            return DataSettings(name="huggingface", dir=path.parent, table=Path(path.name))
        return _table(path, None)
    if path.is_file():
        raise DataError(f"images are given as {FORMS}, got the file {path}; give what lists it, or its folder")
    raise DataError(f"there is no {path}{_close(path)}; images are given as {FORMS}")


def second_settings(settings: DataSettings) -> DataSettings:
    """Return the settings of a second labelled set, ``data.test``: columns and classes are those of the first."""
    if settings.test is None:
        raise DataError("a second labelled set is needed, and none was given; name it with data.test")
    folder = settings.dir if settings.name == "table" and not settings.test.is_absolute() else None
    if folder is not None and (folder / settings.test).is_file():
        return settings.model_copy(update={"table": settings.test, "part": None})
    found = data_settings_of(settings.test)
    changes = {name: getattr(found, name) for name in WHICH}
    if found.name != settings.name or settings.image_column is None:
        changes["image_column"] = found.image_column
    below = settings.dir is not None and settings.test.absolute().is_relative_to(settings.dir.absolute())
    if below and found.name == settings.name == "table":  # paths in it start where those of the first do
        changes |= {"dir": settings.dir, "table": settings.test.absolute()}
    return settings.model_copy(update=changes)


def _hugging_face(word: str) -> DataSettings:
    place, _, part = word.partition(":") if not re.match(r"[A-Za-z]:[\\/]", word) else (word, "", "")
    folder = Path(place).expanduser()
    if not place:
        raise DataError("hf: needs a folder or an id, as hf:FOLDER_OR_ID[:SPLIT], and got none")
    if folder.is_dir():
        return DataSettings(name="huggingface", dir=folder, part=part or None)
    if folder.is_file() and folder.suffix == ".parquet":
        return DataSettings(name="huggingface", dir=folder.parent, table=Path(folder.name), part=part or None)
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place) and not place.startswith("."):
        return DataSettings(name="huggingface", id=place, part=part or None)
    raise DataError(
        f"there is no folder {folder}{_close(folder)}; hf: needs one that save_to_disk has written, or an id"
    )


def _folder(path: Path) -> DataSettings:
    if any((path / name).is_file() for name in SAVED):
        return DataSettings(name="huggingface", dir=path)
    if any(path.glob("*.tar")):
        return DataSettings(name="webdataset", dir=path)
    stored = parquet_files(path)
    if stored and _holds_images(stored[0]):
        return DataSettings(name="huggingface", dir=path)
    folders = [item for item in path.iterdir() if item.is_dir() and not item.name.startswith((".", "__"))]
    tables = [item for item in sorted(path.iterdir()) if item.suffix.lower() in TABLES and item.name[0] != "."]
    if len(tables) == 1:
        found = _table(tables[0], path)
        if len(folders) < 2 or "image_column" in found.model_fields_set:
            return found
    return DataSettings(name="folder", dir=path)


def _table(path: Path, folder: Path | None) -> DataSettings:
    """Return the settings of a table, with the column of its images where the first row names a file in one."""
    place: dict[str, Any] = {"table": path} if folder is None else {"table": Path(path.name), "dir": folder}
    columns, _ = read_table(path)
    usual = [name for name in IMAGE_COLUMNS if name in columns]
    for name in [*usual, *(name for name in columns if name not in usual)]:
        first = columns[name][0] if columns[name] else ""
        if Path(first).suffix.lower() in SUFFIXES and (path.parent / first).is_file():
            return DataSettings(name="table", image_column=name, **place)
    return DataSettings(name="table", **place)


def _shards(path: Path) -> DataSettings:
    found = sorted(path.parent.glob(path.name)) if path.parent.is_dir() else []
    if not found:
        raise DataError(f"there are no shards {path}{_close(path)}; images are given as {FORMS}")
    return DataSettings(name="webdataset", dir=path.parent, table=Path(path.name))


def _holds_images(path: Path) -> bool:
    """Return whether a Parquet file has a column of images, as the library datasets writes them."""
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return False
    kinds = [schema.field(name).type for name in schema.names]
    return any(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 for kind in kinds)


def _close(path: Path) -> str:
    """Return the closest name beside one that is not there."""
    if not path.parent.is_dir():
        return ""
    close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""
