"""The ends of the paper's chain: load a data set, train a classifier, evaluate one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exmap.data import Split, Task, build_task, dataset_names
from exmap.errors import SettingsError, unknown_name
from exmap.evaluation import group_table
from exmap.model import collect_outputs, initial_model
from exmap.model.training import train_model
from exmap.records import Groups, GroupTable, IntArray, Listener, silent
from exmap.runtime import child_seed, generator
from exmap.settings import ImageSettings, Settings, load_settings, preset_names

if TYPE_CHECKING:
    from torch import nn

__all__ = ["evaluate", "load", "train"]

NAMED = 3  # images in a sentence


def load(name: str, *, data_dir: str | Path | None = None, listen: Listener = silent, **changes: Any) -> Task:
    """Load a data set by its own name or a preset's.

    Parameters
    ----------
    name : str
        The name of a data set (``exmap data list`` shows them) or of a preset. ``folder`` and ``table`` are for images
        of your own.
    data_dir : path, optional
        Folder of the data set's files; by default that in the environment variable EXMAP_DATA_DIR.
    listen : Listener
        Called with progress while image files are opened for the first time.
    **changes
        Other settings of the data, such as ``correlation=0.5`` or ``table="labels.csv"``, and of the images, such as
        ``resize=128, crop=112``.

    Examples
    --------
    >>> load("digits").train.class_names
    ('digit 0-4', 'digit 5-9')
    """
    folder = data_dir or os.environ.get("EXMAP_DATA_DIR") or None
    if name in preset_names():
        source: str = name
    elif name in dataset_names():
        source, changes = "digits", {"name": name, **changes}
    else:
        raise SettingsError(unknown_name("data set", name, {*dataset_names(), *preset_names()}))
    sections = {key: "images" if key in ImageSettings.model_fields else "data" for key in changes}
    fields = {f"{sections[key]}__{key}": value for key, value in changes.items()}
    settings = load_settings(source, (), data__dir=folder, **fields)
    return build_task(settings.data, settings.images, listen=listen)


def train(task: Task, settings: Settings | None = None, *, seed: int = 0, listen: Listener = silent) -> nn.Module:
    """Train a classifier by empirical risk minimisation.

    Parameters
    ----------
    task : Task
    settings : Settings, optional
        The sections model, train and runtime are used. By default the preset with the task's name, or else plain
        defaults.
    seed : int
    listen : Listener

    Returns
    -------
    torch.nn.Module
        In evaluation mode, with the weights of the epoch in which the worst class of the validation images was best.
    """
    if settings is None:
        settings = load_settings(task.name) if task.name in preset_names() else Settings()
    model = initial_model(settings.model, task.n_classes, seed=child_seed(seed, "model"))
    train_model(
        model,
        task.train,
        task.val,
        settings.train,
        settings.runtime,
        seed=child_seed(seed, "train"),
        listen=listen,
    )
    return model.eval()


def evaluate(model: nn.Module, split: Split, groups: Groups | None = None, *, seed: int = 0) -> GroupTable:
    """Return the accuracy of a model by group, with counts and bootstrap intervals.

    Parameters
    ----------
    model : torch.nn.Module
        Any classifier: see :func:`exmap.model.logits_of` for what it may return.
    split : Split
    groups : Groups, optional
        Groups of this split to report by; by default its true groups, or its classes where it has none.
    seed : int
        Of the bootstrap.

    Raises
    ------
    DataError
        For a model that does not fit the split, or gives no answer for some of its images; see
        :func:`exmap.model.collect_outputs`. Images whose own pixels are not finite count as wrong, and `notes` says so.
    """
    if groups is not None:
        index, names = groups.index, groups.names
    elif split.truth is not None:
        index, names = split.true_groups().index, split.true_groups().names
    else:
        index, names = split.labels, split.class_names
    predicted = collect_outputs(model, split).predicted
    table = group_table(predicted, split.labels, index, names, rng=generator(seed, "bootstrap"))
    return replace(table, notes=_without_answer(predicted, split))


def _without_answer(predicted: IntArray, split: Split) -> tuple[str, ...]:
    """Return a sentence about the images of which nothing is said, if there are any."""
    rows = np.flatnonzero(predicted < 0)
    if not len(rows):
        return ()
    names = ", ".join(split.ids[row] for row in rows[:NAMED].tolist()) + (", ..." if len(rows) > NAMED else "")
    return (f"{len(rows):,} of {len(split):,} images have pixels that are not finite, and count as wrong: {names}",)
