"""One labelled set that a classifier was not trained on: all of it is judged, and another may be kept to measure on.

Nothing is trained, so there is no training split to speak of: it is the same images, without their true groups.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import numpy as np

from exmap.data.dataset import Task
from exmap.data.labels import listed, meaning, named_again
from exmap.data.preprocess import Preprocess
from exmap.data.table import SPLITS, ImageTable, OpenedTable, unused_classes
from exmap.errors import DataError
from exmap.records import IntArray, Listener, Progress, silent
from exmap.settings import DataSettings, ImageSettings

__all__ = ["LEAST", "chosen_part", "labelled_set", "one_set_task", "with_classes"]

LEAST = 10  # images of a class: with fewer, neither parts of it nor a repair can be judged
NAMED = 5  # classes, labels or duplicates that a sentence names
PARTS = {"validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


def one_set_task(
    table: ImageTable,
    second: ImageTable | None,
    settings: DataSettings,
    images: ImageSettings,
    *,
    preprocess: Preprocess | None = None,
    listen: Listener = silent,
) -> Task:
    """Make a task of one labelled set, and perhaps of a second one to measure on.

    Parameters
    ----------
    table : ImageTable
        All of it, or the part that the settings name, is the validation split, and without true groups the training
        split.
    second : ImageTable, optional
        The test split; without it the task is cross-fitted, and the test split is the validation split itself.
    settings : DataSettings
    images : ImageSettings
    preprocess : Preprocess, optional
    listen : Listener

    Raises
    ------
    DataError
        If the set names several splits, is too small, has labels that are no classes, or shares all of its images with
        the second one.
    """
    table = labelled_set(table, settings)
    if second is not None:
        second = with_classes(second, settings.classes or table.class_names)
        table = _without_duplicates(table, second, listen)
        _check_size(table)
    opened = OpenedTable.of(table, images, preprocess=preprocess, listen=listen)
    val = opened.split("val", np.arange(len(table.names)))
    about = opened.about()
    test = val
    if second is not None:
        others = OpenedTable.of(second, images, preprocess=preprocess, listen=listen)
        test = others.split("test", np.arange(len(second.names)))
        if test.images.shape != val.images.shape:
            raise DataError(
                f"images of both sets must have one size, got {val.images.shape} in {table.name} and "
                f"{test.images.shape} in {second.name}; let the transform resize and crop"
            )
        more = others.about()
        about["digests"] |= {f"test {name}": digest for name, digest in more["digests"].items() if name != "transform"}
        about["skipped"] |= {f"test: {name}": why for name, why in more["skipped"].items()}
        about["ignored"] = {**table.ignored, **{f"test: {kind}": paths for kind, paths in second.ignored.items()}}
    about["notes"] += unused_classes(table.class_names, val.labels)
    return Task(table.name, replace(val, name="train", truth=None), val, test, cross_fitted=second is None, **about)


def labelled_set(table: ImageTable, settings: DataSettings) -> ImageTable:
    """Return the images that are judged, in the classes of the classifier; none is opened.

    Raises
    ------
    DataError
        As of :func:`one_set_task`.
    """
    table = with_classes(chosen_part(table, settings), settings.classes)
    _check_size(table)
    return table


def chosen_part(table: ImageTable, settings: DataSettings) -> ImageTable:
    """Return the rows of the split that ``data.part`` names, or the whole of a table that names at most one split.

    Raises
    ------
    DataError
        If the table names several splits and none was chosen, or if it has none of the chosen name.
    """
    there = [name for number, name in enumerate(SPLITS) if (table.splits == number).any()]
    wanted = settings.part
    if wanted is None or (settings.name == "huggingface" and not there):  # which has taken the split, whatever its name
        if len(there) > 1:
            best = "test" if "test" in there else there[-1]
            raise DataError(
                f"one labelled set is needed that the classifier was not trained on, but {table.name} has the splits "
                f"{', '.join(there)}; give one of them, {_how(settings, best)}"
            )
        return replace(table, splits=np.full(len(table.names), -1, dtype=np.int64))
    name = PARTS.get(wanted.lower(), wanted.lower())
    if name not in there:
        said = f"it has {', '.join(there)}" if there else "it has no splits; leave the name out"
        raise DataError(f"{table.name} has no split {wanted!r}; {said}")
    rows = np.flatnonzero(table.splits == SPLITS.index(name))
    return table.take(rows)


def _how(settings: DataSettings, best: str) -> str:
    folder = settings.dir
    if settings.name == "folder" and folder is not None:
        named = [
            path.name for path in sorted(folder.iterdir()) if PARTS.get(path.name.lower(), path.name.lower()) == best
        ]
        return f"such as {folder / (named[0] if named else best)}"
    return f"by --set data.part={best}"


def with_classes(table: ImageTable, classes: Sequence[str]) -> ImageTable:
    """Return a table whose classes are those of a classifier, in the order of its outputs.

    Labels that are numbers, where the classes are not, are positions among the classes.

    Raises
    ------
    DataError
        If a label is no class, with the closest one; if a class is named twice.
    """
    if not classes or tuple(classes) == table.class_names:
        return table
    if (again := named_again(classes)) is not None:
        raise DataError(f"each class must be named once, but data.classes names {again!r} again; leave it out")
    position = {name: n for n, name in enumerate(classes)}
    by_meaning = {meaning(name): n for n, name in enumerate(classes)}
    if len(by_meaning) == len(position):  # 0 and 0.0, true and True
        position |= {name: by_meaning[meaning(name)] for name in table.class_names if meaning(name) in by_meaning}
    if not any(name in position for name in table.class_names):
        numbers: dict[Decimal | str, int] = {Decimal(n): n for n in range(len(classes))}
        found = {name: numbers.get(meaning(name), -1) for name in table.class_names}
        position = found if min(found.values()) >= 0 else position
    strange = [name for name in table.class_names if name not in position]
    if strange:
        count = int(np.isin(table.labels, [table.class_names.index(name) for name in strange]).sum())
        close = difflib.get_close_matches(strange[0], list(classes), n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise DataError(
            f"every label must be a class of the classifier, but {listed(strange)}{hint} of {table.name} "
            f"({count:,} {'image' if count == 1 else 'images'}) is none of {listed(classes)}; rename it, leave its "
            "images out, or name the classes in the order of the outputs with --classes "
            "or --set 'data.classes=[...]'"
        )
    labels = np.array([position[name] for name in table.class_names], dtype=np.int64)[table.labels]
    return replace(table, labels=labels, class_names=tuple(classes))


def _check_size(table: ImageTable) -> None:
    counts = np.bincount(table.labels, minlength=len(table.class_names))
    used = [name for name, count in zip(table.class_names, counts, strict=True) if count]
    if len(used) < 2:
        raise DataError(
            f"{table.name} must have images of 2 or more classes, found only {listed(used)}; add images of another"
        )
    for name, count in zip(table.class_names, counts, strict=True):
        if 0 < count < LEAST:
            raise DataError(
                f"each class needs at least {LEAST} images to be judged, but {name!r} of {table.name} has {count}; add "
                "images (a few hundred of a class show a minority of 5 %), or leave the class out"
            )


def _without_duplicates(table: ImageTable, second: ImageTable, listen: Listener) -> ImageTable:
    """Return a table without the images that the second one has, too, byte for byte."""
    mine, theirs = _candidates(table, second)
    total = len(mine) + len(theirs)
    digests: dict[str, int] = {}
    for done, row in enumerate(theirs.tolist(), start=1):
        digests.setdefault(_digest(second, row), row)
        listen(Progress("comparing the two sets", done, total))
    twice = []
    for done, row in enumerate(mine.tolist(), start=len(theirs) + 1):
        digest = _digest(table, row)
        if digest and digest in digests:
            twice.append((row, digests[digest]))
        listen(Progress("comparing the two sets", done, total))
    if not twice:
        return table
    named = [f"{table.names[row]} = {second.names[other]}" for row, other in twice[:NAMED]]
    more = f" and {len(twice) - NAMED:,} more" if len(twice) > NAMED else ""
    if len(twice) == len(table.names):
        raise DataError(
            f"the second set must hold other images, but all {len(twice):,} of {table.name} are also in {second.name} "
            f"({', '.join(named)}{more}); give only one set, or another second one"
        )
    note = (
        f"{len(twice):,} of {len(table.names):,} images of {table.name} are in {second.name}, too, byte for byte "
        f"({', '.join(named)}{more}): they were left out of the first, and are measured on."
    )
    gone = {row for row, _ in twice}
    kept = np.array([row for row in range(len(table.names)) if row not in gone], dtype=np.int64)
    return replace(table.take(kept), notes=(*table.notes, note))


def _candidates(table: ImageTable, second: ImageTable) -> tuple[IntArray, IntArray]:
    """Return the rows of both tables that may have an equal in the other: files of one size, where sizes are known."""
    sizes: list[dict[int, list[int]]] = []
    for one in (table, second):
        by_size: dict[int, list[int]] = defaultdict(list)
        for row, name in enumerate(one.names):
            by_size[one.files.stamp(name)[0]].append(row)
        sizes.append(by_size)
    if not all(getattr(one.files, "own_sizes", False) for one in (table, second)):
        return np.arange(len(table.names)), np.arange(len(second.names))
    both = set(sizes[0]) & set(sizes[1])
    first, other = (np.array(sorted(row for size in both for row in one[size]), dtype=np.int64) for one in sizes)
    return first, other


def _digest(table: ImageTable, row: int) -> str:
    try:
        return hashlib.sha256(table.files.read(table.names[row])).hexdigest()
    except OSError:  # it is named when it is opened
        return ""
