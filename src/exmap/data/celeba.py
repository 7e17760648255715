"""CelebA (Liu et al., 2015) for hair colour: the class is ``Blond_Hair``, the spurious attribute is ``Male``.

Two layouts are read: the official text files ``list_attr_celeba.txt`` and ``list_eval_partition.txt`` (also as the CSV
files of the same stem that circulate), and ``metadata.csv`` with ``img_filename, y, split, place``. The images lie in
``img_align_celeba``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from exmap.data.columns import column, read_table, table_root
from exmap.data.dataset import Attribute
from exmap.data.entry import Counts, Entry, folder_of
from exmap.data.files import FolderFiles
from exmap.data.regular import read_regular
from exmap.data.table import ImageTable, relative_name
from exmap.data.waterbirds import metadata_table
from exmap.errors import DataError, unknown_name
from exmap.registry import DATASETS

__all__ = ["celeba"]

CLASSES, ATTRIBUTE, VALUES = ("not blond", "blond"), "gender", ("female", "male")
IMAGES = "img_align_celeba"
PLACES = ("", "Anno", "Eval")  # of the official text files


def celeba(folder: Path) -> ImageTable:
    """Read CelebA in either layout.

    Parameters
    ----------
    folder : Path
        Holds the tables, itself or one level down.

    Raises
    ------
    DataError
        If a table is missing or damaged, or the two list different images.
    """
    attributes, partition = "list_attr_celeba", "list_eval_partition"
    names = [f"{place}/{attributes}.{kind}".strip("/") for place in PLACES for kind in ("txt", "csv")]
    root = table_root(folder, "metadata.csv", *names)
    if (root / "metadata.csv").is_file():
        return metadata_table("celeba", root, CLASSES, ATTRIBUTE, VALUES, images=IMAGES)
    found = {stem: _find(root, stem) for stem in (attributes, partition)}
    blond, male, first = _columns(found[attributes], "Blond_Hair", "Male")
    splits, _, second = _columns(found[partition], "partition")
    if odd := blond.keys() ^ splits.keys():
        raise DataError(
            f"{found[partition]} must give a split for each image of {found[attributes]}, and no others, but "
            f"{len(odd)} are in only one of them, the first {min(odd)}; fetch both again"
        )
    images = list(blond)
    where = str(found[attributes])
    below = root / IMAGES
    if (below / IMAGES).is_dir():  # some archives have the folder twice
        below = below / IMAGES
    return ImageTable(
        name="celeba",
        files=FolderFiles(below if below.is_dir() else root),
        names=tuple(relative_name(name, where) for name in images),
        labels=np.array([_binary(blond[name], name, where) for name in images], dtype=np.int64),
        splits=np.array([_split(splits[name], name, found[partition]) for name in images], dtype=np.int64),
        class_names=CLASSES,
        attributes=(
            Attribute(
                ATTRIBUTE, np.array([_binary(male[name], name, where) for name in images], dtype=np.int64), VALUES
            ),
        ),
        digests={found[attributes].name: first, found[partition].name: second},
    )


def _find(root: Path, stem: str) -> Path:
    for place in PLACES:
        for kind in ("txt", "csv"):
            if (path := root / place / f"{stem}.{kind}").is_file():
                return path
    raise DataError(
        f"{root} must hold {stem}.txt (or .csv), also in Anno or Eval, but it does not; fetch it from CelebA"
    )


def _columns(path: Path, first: str, second: str | None = None) -> tuple[dict[str, str], dict[str, str], str]:
    """Return one or two columns by image, and the file's SHA-256."""
    if path.suffix == ".csv":
        columns, digest = read_table(path)
        images = column(columns, "image_id", path)
        pairs = [column(columns, name, path) if name else images for name in (first, second)]
        return _once(images, pairs[0], path), _once(images, pairs[1], path), digest
    stored = read_regular(path)
    try:
        lines = [line.split() for line in stored.decode("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} must be CelebA's text file, but it is not text: {error}") from error
    places = [1, 1]
    if second is not None:  # the number of images, the names of the attributes, then a row for each image
        names = lines[1] if len(lines) > 1 else []
        for name in (first, second):
            if name not in names:
                raise DataError(unknown_name("attribute", name, names) + f"; the table is {path}")
        places = [1 + names.index(name) for name in (first, second)]
        stated, lines = lines[0][0], lines[2:]
        if stated != str(len(lines)):
            raise DataError(f"{path} must hold {stated} rows by its first line, found {len(lines)}; fetch it again")
    for row in lines:
        if len(row) <= max(places):
            raise DataError(f"{path} must give {max(places)} values or more for each image, got {' '.join(row)!r}")
    one, two = (_once([row[0] for row in lines], [row[place] for row in lines], path) for place in places)
    return one, two, hashlib.sha256(stored).hexdigest()


def _once(images: Sequence[str], values: Sequence[str], path: Path) -> dict[str, str]:
    found = dict(zip(images, values, strict=True))
    if len(found) < len(images):
        again = next(name for name, times in Counter(images).items() if times > 1)
        raise DataError(f"{path} must list each image once, but lists {again} again; fetch it again")
    return found


def _binary(text: str, name: str, where: str) -> int:
    if text not in ("-1", "0", "1"):
        raise DataError(f"an attribute of {where} must be 1 or -1, got {text!r} for {name}")
    return int(text == "1")


def _split(text: str, name: str, path: Path) -> int:
    if text not in ("0", "1", "2"):
        raise DataError(f"the partition in {path} must be 0, 1 or 2, got {text!r} for {name}")
    return int(text)


# Group counts of ExMap's supplement, Table 1 and section 1; group = class * attributes + attribute.
COUNTS: Counts = {
    "train": (71629, 66874, 22880, 1387),
    "val": (8535, 8276, 2874, 182),
    "test": (9767, 7535, 2480, 180),
}
INSTEAD = (
    "CelebA's download is limited by a quota: get img_align_celeba.zip, list_attr_celeba.txt and "
    "list_eval_partition.txt from the project's page (mmlab.ie.cuhk.edu.hk/projects/CelebA.html), put all three into "
    "one folder, and give that folder with --source"
)


DATASETS.register(
    Entry(
        "blond hair or not; shortcut: gender (4 groups)",
        images=lambda s: celeba(folder_of(s)),
        counts=COUNTS,
        instead=INSTEAD,
    ),
    name="celeba",
)
