"""Waterbirds (Sagawa et al., 2020), and every set that comes as a ``metadata.csv`` of the same columns.

``metadata.csv`` has ``img_id, img_filename, y, split, place, place_filename``: the class is waterbird or landbird, the
spurious attribute is the place, the split is 0, 1 or 2. In FG-Only (as in MaskTune and ExMap) the background of the
*test* images is removed with CUB's segmentation masks, which lie in ``segmentations`` beside the images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exmap.data.columns import column, read_table, table_root
from exmap.data.dataset import Attribute
from exmap.data.entry import Counts, Entry, folder_of
from exmap.data.fetch import Remote
from exmap.data.files import FolderFiles
from exmap.data.regular import read_regular
from exmap.data.table import ImageTable, relative_name
from exmap.errors import DataError
from exmap.records import IntArray
from exmap.registry import DATASETS

__all__ = ["composed", "metadata_table", "waterbirds"]

MASKS = "segmentations"


def _numbers(texts: Sequence[str], names: Sequence[str], what: str, path: Path) -> IntArray:
    """Return the values of a column that may be 0, 1, ... up to the number of names."""
    allowed = {str(number): number for number in range(len(names))}
    for row, text in enumerate(texts):
        if text not in allowed:
            raise DataError(
                f"column {what} of {path} must hold {' or '.join(f'{n} ({m})' for n, m in enumerate(names))}, got "
                f"{text!r} in row {row + 2}"
            )
    return np.array([allowed[text] for text in texts], dtype=np.int64)


def metadata_table(
    name: str, folder: Path, class_names: Sequence[str], attribute: str, value_names: Sequence[str], images: str = "."
) -> ImageTable:
    """Read a folder with a ``metadata.csv``.

    Parameters
    ----------
    name : str
    folder : Path
        Holds ``metadata.csv``, itself or one level down.
    class_names, value_names : sequence of str
        What the numbers in columns ``y`` and ``place`` mean.
    attribute : str
        Name of the spurious attribute in column ``place``.
    images : str
        Where the images lie, from the table; the table's own folder where that is not there.

    Raises
    ------
    DataError
        For a missing column, a number without a meaning, or a path outside the folder.
    """
    root = table_root(folder, "metadata.csv")
    path = root / "metadata.csv"
    columns, digest = read_table(path)
    below = root / images if (root / images).is_dir() else root
    names = tuple(relative_name(text, str(path)) for text in column(columns, "img_filename", path))
    return ImageTable(
        name=name,
        files=FolderFiles(below),
        names=names,
        labels=_numbers(column(columns, "y", path), class_names, "y", path),
        splits=_numbers(column(columns, "split", path), ("train", "val", "test"), "split", path),
        class_names=tuple(class_names),
        attributes=(
            Attribute(
                attribute, _numbers(column(columns, "place", path), value_names, "place", path), tuple(value_names)
            ),
        ),
        digests={"metadata.csv": digest},
    )


def composed(root: Path) -> dict[str, Any] | None:
    """Return the manifest of a set that :mod:`exmap.data.compose` has made, or None for an original one."""
    try:
        manifest = json.loads(read_regular(root / "manifest.json").decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or not {"layout", "classes", "counts"} <= manifest.keys():
        return None
    names = [manifest["classes"], *(manifest.get(key) or [] for key in ("backgrounds", "objects"))]
    plain = all(isinstance(one, list) and all(isinstance(name, str) for name in one) for one in names)
    return manifest if plain and isinstance(manifest["counts"], dict) else None


def waterbirds(folder: Path, *, foreground_only: bool = False) -> ImageTable:
    """Read Waterbirds as its tarball is unpacked, or what :mod:`exmap.data.compose` has made in its layout.

    Parameters
    ----------
    folder : Path
        Holds ``metadata.csv``, itself or one level down.
    foreground_only : bool
        Whether test images get CUB's mask, from ``segmentations`` beside the images or beside their folder.

    Raises
    ------
    DataError
        As :func:`metadata_table`, or if masks are wanted and there is no folder of them.
    """
    name = "waterbirds-fg" if foreground_only else "waterbirds"
    made = composed(table_root(folder, "metadata.csv")) or {}
    classes, places = made.get("classes", ("landbird", "waterbird")), made.get("backgrounds", ("land", "water"))
    table = metadata_table(name, folder, classes, "background", places)
    if not foreground_only:
        return table
    assert isinstance(table.files, FolderFiles)
    root = table.files.root
    above = "" if (root / MASKS).is_dir() else "../"
    if not (root / above / MASKS).is_dir():
        raise DataError(
            f"Waterbirds (FG-Only) needs CUB's masks in {root / MASKS}, and there is no such folder; unpack CUB's "
            "segmentations.tgz there (exmap data prepare waterbirds-fg does)"
        )
    masks = tuple(
        f"{above}{MASKS}/{Path(image).with_suffix('.png').as_posix()}" if split == 2 else ""
        for image, split in zip(table.names, table.splits, strict=True)
    )
    return ImageTable(**{**vars(table), "masks": masks})


ARCHIVE = Remote(
    "https://nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz",
    "waterbird_complete95_forest2water2.tar.gz",
)
MASKS_ARCHIVE = Remote(
    "https://data.caltech.edu/records/w9d68-gec53/files/segmentations.tgz?download=1",
    "segmentations.tgz",
    md5="4d47ba1228eae64f2fa547c47bc65255",
    size=39_272_883,
)
# Group counts of ExMap's supplement, Table 1 and section 1; group = class * attributes + attribute.
COUNTS: Counts = {
    "train": (3498, 184, 56, 1057),
    "val": (467, 466, 133, 133),
    "test": (2255, 2255, 642, 642),
}


DATASETS.register(
    Entry(
        "landbird or waterbird; shortcut: background (4 groups)",
        images=lambda s: waterbirds(folder_of(s)),
        counts=COUNTS,
        remotes=(ARCHIVE,),
    ),
    name="waterbirds",
)
DATASETS.register(
    Entry(
        "Waterbirds whose test images have lost their background (4 groups)",
        images=lambda s: waterbirds(folder_of(s), foreground_only=True),
        counts=COUNTS,
        remotes=(ARCHIVE, MASKS_ARCHIVE),
    ),
    name="waterbirds-fg",
)
