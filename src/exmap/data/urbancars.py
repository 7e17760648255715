"""UrbanCars (Li et al., "A Whac-A-Mole dilemma", CVPR 2023): a car, a background and a co-occurring object.

The tree is ``bg-0.95_co_occur_obj-0.95/{train,val}`` and ``bg-0.5_co_occur_obj-0.5/test``, in each the folders
``obj-{urban,country}_bg-{urban,country}_co_occur_obj-{urban,country}``, whose names are the labels.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from exmap.data.dataset import Attribute
from exmap.data.decode import SUFFIXES
from exmap.data.entry import Counts, Entry, folder_of
from exmap.data.files import FolderFiles
from exmap.data.table import SPLITS, ImageTable
from exmap.errors import DataError
from exmap.records import IntArray
from exmap.registry import DATASETS

__all__ = ["urbancars"]

CORRELATION = re.compile(r"bg-[\d.]+_co_occur_obj-[\d.]+")
KIND = re.compile(r"obj-(.+)_bg-(.+)_co_occur_obj-(.+)")
BACKGROUND, OBJECT = "background", "co-occurring object"


def urbancars(folder: Path, shortcuts: tuple[str, ...] = (BACKGROUND, OBJECT)) -> ImageTable:
    """Read UrbanCars' tree, or what :mod:`exmap.data.compose` has made in its layout.

    Parameters
    ----------
    folder : Path
        Holds the ``bg-..._co_occur_obj-...`` folders, itself or in ``urbancars``.
    shortcuts : tuple of str
        Which attributes make groups: both, or one for the single-shortcut variants, which merge over the other.

    Raises
    ------
    DataError
        If the tree is not there, or a folder's name cannot be read.
    """
    root = next((r for r in (folder, folder / "urbancars") if any(_correlations(r))), None)
    if root is None:
        raise DataError(
            f"{folder} must hold UrbanCars' folders, such as bg-0.95_co_occur_obj-0.95/train, itself or in urbancars, "
            "but it does not"
        )
    names, kinds, splits = [], [], []
    for place in _correlations(root):
        for number, split in enumerate(SPLITS):
            for sub in sorted(p for p in (place / split).glob("*") if p.is_dir() and p.name[0] != "."):
                found = KIND.fullmatch(sub.name)
                if not found:
                    raise DataError(
                        f"folders of UrbanCars must be named obj-KIND_bg-KIND_co_occur_obj-KIND, found {sub}; rename "
                        "or move it"
                    )
                for file in sorted(p for p in sub.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "."):
                    names.append(file.relative_to(root).as_posix())
                    kinds.append(found.groups())
                    splits.append(number)
    if not names:
        raise DataError(f"{root} must hold images in its folders, found none; unpack UrbanCars there")
    values = []
    allowed = []
    for part in zip(*kinds, strict=True):
        order = sorted(set(part), key=lambda kind: (kind != "urban", kind))  # urban is 0, as in the authors' code
        values.append(np.array([order.index(kind) for kind in part], dtype=np.int64))
        allowed.append(tuple(order))
    attributes = {
        BACKGROUND: Attribute(BACKGROUND, values[1], tuple(f"{kind} background" for kind in allowed[1])),
        OBJECT: Attribute(OBJECT, values[2], tuple(f"{kind} object" for kind in allowed[2])),
    }
    suffixes: dict[tuple[str, ...], str] = {(BACKGROUND,): "-bg", (OBJECT,): "-coobj"}
    labels: IntArray = values[0]
    return ImageTable(
        name=f"urbancars{suffixes.get(shortcuts, '')}",
        files=FolderFiles(root),
        names=tuple(names),
        labels=labels,
        splits=np.array(splits, dtype=np.int64),
        class_names=tuple(f"{kind} car" for kind in allowed[0]),
        attributes=tuple(attributes[name] for name in shortcuts),
    )


def _correlations(root: Path) -> list[Path]:
    return sorted(p for p in root.glob("bg-*") if p.is_dir() and CORRELATION.fullmatch(p.name))


# 4,000 training images a class, each shortcut right in 95 %; validation as stated; the test split is balanced.
COUNTS: Counts = {
    "train": (3610, 190, 190, 10, 10, 190, 190, 3610),
    "val": (451, 23, 23, 1, 1, 23, 23, 451),
}
INSTEAD = (
    'UrbanCars is not public: ask its authors (Li et al., "A Whac-A-Mole dilemma", CVPR 2023) or make it again with '
    "their generator, and give the folder that holds bg-0.95_co_occur_obj-0.95 and bg-0.5_co_occur_obj-0.5; exmap data "
    "compose --layout urbancars makes a set of the same kind from your own cut-outs"
)


def _merged(counts: Counts, keep: int) -> Counts:
    """Return the counts of a single-shortcut variant: groups merged over the other shortcut."""
    pairs = {0: ((0, 1), (2, 3), (4, 5), (6, 7)), 1: ((0, 2), (1, 3), (4, 6), (5, 7))}[keep]
    return {split: tuple(row[a] + row[b] for a, b in pairs) for split, row in counts.items()}


DATASETS.register(
    Entry(
        "urban or country car; shortcuts: background and co-occurring object (8 groups)",
        images=lambda s: urbancars(folder_of(s)),
        counts=COUNTS,
        instead=INSTEAD,
    ),
    name="urbancars",
)
DATASETS.register(
    Entry(
        "UrbanCars with the background as the only shortcut (4 groups)",
        images=lambda s: urbancars(folder_of(s), (BACKGROUND,)),
        counts=_merged(COUNTS, 0),
        instead=INSTEAD,
    ),
    name="urbancars-bg",
)
DATASETS.register(
    Entry(
        "UrbanCars with the co-occurring object as the only shortcut (4 groups)",
        images=lambda s: urbancars(folder_of(s), (OBJECT,)),
        counts=_merged(COUNTS, 1),
        instead=INSTEAD,
    ),
    name="urbancars-coobj",
)
