"""What every data set keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from exmap.data import Split, Task, build_task
from exmap.data.catalog import entry
from exmap.data.entry import Entry
from exmap.registry import DATASETS
from exmap.settings import DataSettings, ImageSettings
from exmap.testing.common import found, must, path_of

__all__ = ["check_dataset"]


def check_dataset(
    dataset: str | Callable[..., Any], settings: DataSettings | None = None, images: ImageSettings | None = None
) -> None:
    """Check a data set.

    Parameters
    ----------
    dataset : str or callable
        A registered name, a dotted path ``package.module:thing``, or a function that can be imported.
    settings : DataSettings, optional
        Where its files lie, and what else it needs; the name in it is replaced.
    images : ImageSettings, optional
        How image files are read; by default small, without a cache, and in this process.

    Raises
    ------
    AssertionError
        For the first promise that it breaks.
    """
    name = found(DATASETS, dataset)[0] if not isinstance(dataset, Entry) else path_of(dataset)
    one = entry(name)
    what = f"the data set {name}"
    must(one.about and "\n" not in one.about, f"{what} must say in one line what it is about, got {one.about!r}")
    must(
        (one.arrays is None) != (one.images is None),
        f"{what} must be read either from arrays or from image files, and say so by one function",
    )
    settings = (settings or DataSettings()).model_copy(update={"name": name})
    images = images or ImageSettings(resize=16, crop=None, random_crop=None, workers=0, cache="never")
    task, again = (build_task(settings, images) for _ in range(2))
    must(task.digests, f"{what} must give digests of what it was read from: runs are known by them")
    must(task.digests == again.digests, f"{what} must have the same digests each time it is read, but had others")
    _check_ids(what, task)
    for kind, split, other in zip(
        ("train", "val", "test"),
        (task.train, task.val, task.test),
        (again.train, again.val, again.test),
        strict=True,
    ):
        must(split.name == kind, f"the splits of {what} must be named train, val and test, got {split.name!r}")
        must(split.class_names == task.train.class_names, f"all splits of {what} must have the same class names")
        _check_split(f"split {kind} of {what}", split, task, one)
        must(
            np.array_equal(split.labels, other.labels) and split.ids == other.ids,
            f"{what} must be the same each time it is read, but split {kind} is not",
        )


def _check_ids(what: str, task: Task) -> None:
    ids = [name for split in (task.train, task.val, task.test) for name in split.ids]
    must(len(set(ids)) == len(ids), f"{what} must name each image once over all splits, but some names come twice")


def _check_split(what: str, split: Split, task: Task, one: Entry) -> None:
    must(split.labels.dtype == np.int64, f"labels of {what} must be int64, got {split.labels.dtype}")
    must(len(split) == len(split.ids) == len(split.images), f"{what} must have one image, label and id per sample")
    rows = np.array([len(split) - 1, 0])
    batch, shown = split.images.batch(rows), split.images.pixels(rows)
    wanted = (2, *split.images.shape)
    must(batch.shape == shown.shape == wanted, f"images of {what} must have shape {wanted}, got {batch.shape}")
    must(batch.dtype == shown.dtype == np.float32, f"images of {what} must be float32, got {batch.dtype}")
    must(np.isfinite(batch).all(), f"images of {what} must be finite, but some are NaN or infinite")
    must(shown.min() >= 0 and shown.max() <= 1, f"pixels of {what} must lie in [0, 1] for looking at")
    if split.truth is None:
        must(one.counts is None, f"{what} has counts of its groups, so it must have true groups, but has none")
        return
    groups = split.true_groups()
    must(groups.names == task.train.true_groups().names, f"groups of {what} must be named as those of split train")
    must(len(groups.index) == len(split), f"{what} must have one true group per sample")
    for kind, row in (one.counts or {}).items():
        must(len(row) == len(groups.names), f"counts of split {kind} must be one per group, got {len(row)} for {what}")
