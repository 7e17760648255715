"""Coloured digits, whose colour is the shortcut.

C-MNIST as the ExMap paper uses it (supplement, section 1.1), the same construction on scikit-learn's embedded 8 x 8
digits, and ten digits in ten colours. In the first two the label is whether the digit exceeds 4, and a digit fills the
red channel (s = 0) or the green one (s = 1); the other channels are zero.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exmap.data.dataset import ArrayImages, Attribute, Split, Task, TrueGroups
from exmap.data.entry import Counts, Entry, idx_folder
from exmap.data.idx import find_set, read_pair
from exmap.errors import DataError
from exmap.records import IntArray
from exmap.registry import DATASETS
from exmap.runtime import generator

__all__ = ["cmnist", "cmnist_10", "colour_split", "draw_colours", "embedded_digits"]

CLASS_NAMES = ("digit 0-4", "digit 5-9")
COLOURS = ("red", "green")
DIGITS = tuple(f"digit {d}" for d in range(10))
TEN_COLOURS = {  # name to full brightness of the three channels
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
    "white": (255, 255, 255),
    "orange": (255, 128, 0),
    "purple": (128, 0, 255),
    "grey": (128, 128, 128),
}
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

    Raises
    ------
    DataError
        For a correlation out of its range.
    """
    _check_correlation(correlation, 2)
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
        truth=TrueGroups.cross(labels, CLASS_NAMES, [Attribute("colour", colours, COLOURS)]),
    )


def cmnist(folder: Path, correlation: float = 0.99) -> Task:
    """Build C-MNIST from the four MNIST files.

    Parameters
    ----------
    folder : Path
        Holds the IDX files, gzipped or not.
    correlation : float in [0.5, 1]
        0.99 is the paper's; 0.5 plants no shortcut.

    Returns
    -------
    Task
        50,000 training images, 10,000 for validation (the last of MNIST's training images), 10,000 for testing.

    Raises
    ------
    DataError
        For missing or damaged files.
    """
    parts, digests = _mnist(folder)
    train, val, test = (colour_split(name, *parts[name], correlation) for name in ("train", "val", "test"))
    return Task("cmnist", train, val, test, digests)


def _mnist(folder: Path) -> tuple[dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]], dict[str, str]]:
    """Return MNIST's images and digits by split (validation: the last 10,000 for training), and the files' digests."""
    images, digits, train_digests = read_pair(folder, "train")
    test_images, test_digits, test_digests = read_pair(folder, "t10k")
    if len(images) <= 10_000:
        raise DataError(f"MNIST's training file must hold more than 10,000 images, found {len(images)} in {folder}")
    parts = {
        "train": (images[:-10_000], digits[:-10_000]),
        "val": (images[-10_000:], digits[-10_000:]),
        "test": (test_images, test_digits),
    }
    return parts, {**train_digests, **test_digests}


def draw_shortcut(labels: IntArray, n_values: int, correlation: float, rng: np.random.Generator) -> IntArray:
    """Draw a shortcut's value for each sample: the label's own with the given chance, else evenly one of the others.

    Parameters
    ----------
    labels : ndarray of int64, shape (N,), in [0, n_values)
    n_values : int
    correlation : float in [1 / n_values, 1]
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of int64, shape (N,)

    Raises
    ------
    DataError
        For a correlation out of its range.
    """
    _check_correlation(correlation, n_values)
    other = (labels + rng.integers(1, n_values, size=len(labels))) % n_values
    return np.where(rng.random(len(labels)) < correlation, labels, other)


def _check_correlation(correlation: float, n_values: int) -> None:
    if not 1 / n_values <= correlation <= 1:
        raise DataError(
            f"correlation must lie in [{1 / n_values:.3g}, 1] for a shortcut of {n_values} values, got {correlation}; "
            f"{1 / n_values:.3g} plants none"
        )


def cmnist_10(folder: Path, correlation: float = 0.99) -> Task:
    """Build ten digits in ten colours: ten classes, a hundred groups.

    Each digit has a colour of its own in `correlation` of the training and validation images, and one of the other
    nine otherwise. In the test images colour and digit are independent, so that every group has about 100.

    Parameters
    ----------
    folder : Path
        Holds MNIST's IDX files, gzipped or not.
    correlation : float in [0.1, 1]

    Returns
    -------
    Task
        50,000, 10,000 (the last of MNIST's training images) and 10,000 images.

    Raises
    ------
    DataError
        For missing or damaged files.
    """
    parts, digests = _mnist(folder)
    palette = np.array(list(TEN_COLOURS.values()), dtype=np.uint16)
    splits = {}
    for name, (grey, digit) in parts.items():
        labels = digit.astype(np.int64)
        share = 0.1 if name == "test" else correlation
        colours = draw_shortcut(labels, 10, share, generator(COLOUR_SEED, "cmnist-10", name))
        painted = grey[:, None].astype(np.uint16) * palette[colours][:, :, None, None] // 255
        splits[name] = Split(
            name=name,
            images=ArrayImages(painted.astype(np.uint8)),
            labels=labels,
            ids=tuple(f"{name}/{i:05d}" for i in range(len(grey))),
            class_names=DIGITS,
            truth=TrueGroups.cross(labels, DIGITS, [Attribute("colour", colours, tuple(TEN_COLOURS))]),
        )
    return Task("cmnist-10", splits["train"], splits["val"], splits["test"], digests)


def embedded_digits(correlation: float = 0.9) -> Task:
    """Build coloured digits from scikit-learn's 1,797 handwritten 8 x 8 digits: 897 / 450 / 450 images."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.clip(bunch.images * 16, 0, 255).astype(np.uint8)
    order = np.random.RandomState(0).permutation(len(grey))  # the file is ordered by writer
    cuts = {"train": order[:897], "val": order[897:1347], "test": order[1347:]}
    splits = {name: colour_split(name, grey[rows], bunch.target[rows], correlation) for name, rows in cuts.items()}
    digest = hashlib.sha256(grey.tobytes() + bunch.target.tobytes()).hexdigest()
    return Task("digits", splits["train"], splits["val"], splits["test"], {"sklearn.datasets.load_digits": digest})


# Group counts of ExMap's supplement, Table 1 and section 1; group = class * attributes + attribute.
COUNTS: Counts = {
    "train": (254, 25284, 24231, 231),
    "val": (45, 5013, 4893, 49),
    "test": (48, 5091, 4815, 46),
}


DATASETS.register(
    Entry(
        "digit above 4 or not, in two colours, 99 % (4 groups)",
        arrays=lambda s: cmnist(find_set(idx_folder(s, "mnist"), "mnist"), s.correlation),
        counts=COUNTS,
        idx=("mnist",),
    ),
    name="cmnist",
)
DATASETS.register(
    Entry(
        "ten digits in ten colours, 99 % (100 groups)",
        arrays=lambda s: cmnist_10(find_set(idx_folder(s, "mnist"), "mnist"), s.correlation),
        idx=("mnist",),
    ),
    name="cmnist-10",
)
DATASETS.register(
    Entry("coloured 8 x 8 digits, no files needed (4 groups)", arrays=lambda s: embedded_digits(s.correlation)),
    name="digits",
)
