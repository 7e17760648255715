"""See whether a data set is whole: every group of every split counted, every image opened, every file accounted for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from exmap.data.catalog import build_task, entry, read_images
from exmap.data.decode import SUFFIXES
from exmap.data.files import FolderFiles, open_images
from exmap.data.table import SPLITS, ImageTable
from exmap.data.urbancars import BACKGROUND, OBJECT
from exmap.data.waterbirds import MASKS, composed
from exmap.errors import DataError
from exmap.records import Listener, silent
from exmap.settings import DataSettings, ImageSettings

__all__ = ["DataCheck", "GroupCount", "check_data"]


@dataclass(frozen=True)
class GroupCount:
    """How many images of a group a split has; `expected` is None where nobody has stated it."""

    split: str
    group: str
    found: int
    expected: int | None


@dataclass(frozen=True)
class DataCheck:
    """What was found.

    Attributes
    ----------
    name : str
    groups : tuple of GroupCount
        Of all images that are listed, readable or not.
    missing : tuple of str
        Listed, but not there.
    unreadable : mapping of str to str
        There, but no whole image; with the reason.
    extra : tuple of str
        Image files in the folder that nothing lists.
    """

    name: str
    groups: tuple[GroupCount, ...]
    missing: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether all counts are as expected, and every image can be read. Extra files do no harm."""
        counted = all(row.expected is None or row.found == row.expected for row in self.groups)
        return counted and not self.missing and not self.unreadable


def check_data(settings: DataSettings, images: ImageSettings | None = None, *, listen: Listener = silent) -> DataCheck:
    """Check the data set that `settings` name.

    Parameters
    ----------
    settings : DataSettings
    images : ImageSettings, optional
        ``workers`` open the images; nothing is kept.
    listen : Listener

    Raises
    ------
    DataError
        If its tables or its folders cannot be read at all.
    """
    found = entry(settings.name)
    expected = found.counts or {}
    if found.arrays is not None:
        task = build_task(settings)
        counts = {split.name: split.true_groups().counts() for split in (task.train, task.val, task.test)}
        names = task.train.true_groups().names
        return DataCheck(settings.name, _groups(names, counts, expected))
    table = read_images(settings)
    with tempfile.TemporaryDirectory() as folder:
        changed = {"cache": "never", "cache_dir": Path(folder), "resize": 64, "crop": None}
        how = (images or ImageSettings()).model_copy(update=changed)
        masks = table.masks or ("",) * len(table.names)
        broken = open_images(table.files, table.names, masks, how, what=settings.name, listen=listen).broken
    missing = tuple(table.names[row] for row in sorted(broken) if broken[row] == "the file is missing")
    unreadable = {table.names[row]: broken[row] for row in sorted(broken) if table.names[row] not in set(missing)}
    names = table.groups().names
    if isinstance(table.files, FolderFiles) and (made := composed(table.files.root)):
        expected = _stated(made, table)
    return DataCheck(settings.name, _groups(names, table.counts(), expected), missing, unreadable, _extra(table))


def _groups(
    names: tuple[str, ...], counts: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> tuple[GroupCount, ...]:
    rows = []
    for split in SPLITS:
        stated = expected.get(split)
        if stated is not None and len(stated) != len(names):
            raise DataError(
                f"{len(stated)} groups were expected, found {len(names)}: {', '.join(names)}; check the folders"
            )
        for group, name in enumerate(names):
            rows.append(GroupCount(split, name, int(counts[split][group]), None if stated is None else stated[group]))
    return tuple(rows)


def _stated(made: Mapping[str, Any], table: ImageTable) -> dict[str, tuple[int, ...]]:
    """Return what a composed set's manifest counts in each of the table's groups."""
    names = table.groups().names
    kinds = [made["classes"], made["backgrounds"], *([made["objects"]] if made["objects"] else [])]
    ends = (" car", " background", " object") if made["objects"] else ("", "")  # as the readers name them
    shown = [0, *(1 + (BACKGROUND, OBJECT).index(attribute.name) for attribute in table.attributes)]
    stated = {}
    for split, counts in made["counts"].items():
        sums = dict.fromkeys(names, 0)
        for kind, count in zip(product(*kinds), counts.values(), strict=True):
            name = ", ".join(kind[place] + ends[place] for place in shown)
            if name not in sums:
                raise DataError(
                    f"the manifest of {table.name} counts the group {name!r}, but no folder is of that kind"
                )
            sums[name] += count
        stated[split] = tuple(sums.values())
    return stated


def _extra(table: ImageTable) -> tuple[str, ...]:
    if not isinstance(table.files, FolderFiles):
        return ()
    root, listed = table.files.root, set(table.names)
    there = (path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    return tuple(
        sorted(
            p.as_posix()
            for p in there
            if p.as_posix() not in listed and p.parts[0] != MASKS and not any(part[0] == "." for part in p.parts)
        )
    )
