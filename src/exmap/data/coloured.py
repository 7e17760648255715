"""Digits in two colours: the label is whether the digit exceeds 4, the colour is the shortcut.

C-MNIST as the ExMap paper uses it (supplement, section 1.1), and the same construction on scikit-learn's embedded
8 x 8 digits. A digit fills the red channel (s = 0) or the green one (s = 1); the other channels are zero.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exmap.data.dataset import ArrayImages, Split, Task, TrueGroups
from exmap.data.idx import download_mnist, read_pair
from exmap.errors import DataError
from exmap.records import IntArray

__all__ = ["cmnist", "colour_split", "draw_colours", "embedded_digits"]

CLASS_NAMES = ("digit 0-4", "digit 5-9")
GROUP_NAMES = tuple(f"{label}, {colour}" for label in CLASS_NAMES for colour in ("red", "green"))
COLOUR_SEED = 0  # fixed by the data set's definition: this seed gives the paper's group counts


def draw_colours(labels: IntArray, correlation: float) -> IntArray:
    """Draw each sample's colour: 0 red, 1 green.

    Each split takes a fresh ``RandomState(0)`` and draws all of class 0 first, then all of class 1; with a
    correlation of 0.99 that gives exactly the group counts of the paper's Table 1.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,), 0 or 1
    correlation : float in [0.5, 1]
        Chance that class 0 is green and class 1 is red.
    """
    rng = np.random.RandomState(COLOUR_SEED)
    colours = np.zeros(len(labels), dtype=np.int64)
    for label, chance_of_green in ((0, correlation), (1, 1 - correlation)):
        members = labels == label
        colours[members] = rng.binomial(1, chance_of_green, size=int(members.sum()))
    return colours


def colour_split(name: str, grey: NDArray[np.uint8], digits: NDArray[np.integer], correlation: float) -> Split:
    """Colour grey digit images, shape (N, H, W), and label them by whether the digit exceeds 4."""
    labels = (digits > 4).astype(np.int64)
    colours = draw_colours(labels, correlation)
    images = np.zeros((len(grey), 3, *grey.shape[1:]), dtype=np.uint8)
    images[np.arange(len(grey)), colours] = grey
    return Split(
        name=name,
        images=ArrayImages(images),
        labels=labels,
        ids=tuple(f"{name}/{i:05d}" for i in range(len(grey))),
        class_names=CLASS_NAMES,
        truth=TrueGroups(labels * 2 + colours, GROUP_NAMES),
    )


def cmnist(folder: Path | None, correlation: float = 0.99, download: bool = False) -> Task:
    """Build C-MNIST from the four MNIST files.

    Parameters
    ----------
    folder : Path
        Holds the IDX files, gzipped or not.
    correlation : float in [0.5, 1]
        0.99 is the paper's; 0.5 plants no shortcut.
    download : bool
        Fetch missing files into `folder` first.

    Returns
    -------
    Task
        50,000 training images, 10,000 for validation (the last of MNIST's training images), 10,000 for testing.

    Raises
    ------
    DataError
        For missing or damaged files.
    """
    if folder is None:
        raise DataError(
            "C-MNIST needs the folder of MNIST's four IDX files, and none was given; name it with --data-dir"
        )
    if download:
        download_mnist(folder)
    images, digits, train_digests = read_pair(folder, "train")
    test_images, test_digits, test_digests = read_pair(folder, "t10k")
    if len(images) <= 10_000:
        raise DataError(f"MNIST's training file must hold more than 10,000 images, found {len(images)} in {folder}")
    return Task(
        name="cmnist",
        train=colour_split("train", images[:-10_000], digits[:-10_000], correlation),
        val=colour_split("val", images[-10_000:], digits[-10_000:], correlation),
        test=colour_split("test", test_images, test_digits, correlation),
        digests={**train_digests, **test_digests},
    )


def embedded_digits(correlation: float = 0.9) -> Task:
    """Build coloured digits from scikit-learn's 1,797 handwritten 8 x 8 digits: 897 / 450 / 450 images."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.clip(bunch.images * 16, 0, 255).astype(np.uint8)
    order = np.random.RandomState(0).permutation(len(grey))  # the file is ordered by writer
    cuts = {"train": order[:897], "val": order[897:1347], "test": order[1347:]}
    splits = {name: colour_split(name, grey[rows], bunch.target[rows], correlation) for name, rows in cuts.items()}
    digest = hashlib.sha256(grey.tobytes() + bunch.target.tobytes()).hexdigest()
    return Task(name="digits", digests={"sklearn.datasets.load_digits": digest}, **splits)
