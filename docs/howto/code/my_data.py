"""A data set: discs and squares, whose usual colour is the shortcut."""

from __future__ import annotations

import numpy as np

from exmap import DATASETS, Task, array_split
from exmap.data.entry import Entry
from exmap.settings import DataSettings

SIDE, SIZES = 16, {"train": 600, "val": 300, "test": 300}


def shapes(settings: DataSettings) -> Task:
    """Draw all three splits; ``data.correlation`` is the share of images in the usual colour of their class."""
    rng = np.random.default_rng(settings.split_seed)
    splits = [_split(name, rng, 0.5 if name == "test" else settings.correlation) for name in SIZES]
    return Task("shapes", *splits, digests={"shapes": f"seed {settings.split_seed}, {settings.correlation}"})


def _split(name, rng, correlation):
    labels = rng.permutation(np.arange(SIZES[name]) % 2)
    colours = np.where(rng.random(len(labels)) < correlation, labels, 1 - labels)  # 0 red, 1 green
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2 + 0.5
    drawn = np.stack([np.hypot(rows, columns) < 5, np.maximum(abs(rows), abs(columns)) < 4.5])[labels]
    images = rng.normal(0.2, 0.05, (len(labels), 3, SIDE, SIDE))
    images[np.arange(len(labels)), colours] += 0.6 * drawn
    return array_split(
        images.clip(0, 1).astype(np.float32),
        labels,
        name=name,
        class_names=["disc", "square"],
        true_groups=2 * labels + colours,  # for evaluation alone
        group_names=["disc, red", "disc, green", "square, red", "square, green"],
    )


ENTRY = Entry("discs and squares with a usual colour", arrays=shapes)
DATASETS.register(ENTRY, name="shapes")
