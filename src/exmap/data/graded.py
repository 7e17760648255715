"""Shortcuts of graded strength on digits or garments, and the same images without any: to test what finds shortcuts.

One shortcut at a time: the figure's colour, a bright patch at the border, faint stripes behind the figure, or where the
figure stands. Each has a value for every class, so that there may be two to ten classes. Another seed is another data
set: it draws other images and other values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from exmap.data.coloured import CLASS_NAMES, DIGITS, TEN_COLOURS, draw_shortcut
from exmap.data.dataset import ArrayImages, Attribute, Split, Task, TrueGroups
from exmap.data.entry import Entry, idx_folder
from exmap.data.idx import find_set, read_pair
from exmap.errors import DataError
from exmap.records import IntArray
from exmap.registry import DATASETS
from exmap.runtime import generator
from exmap.settings import GradedSettings

__all__ = ["draw_figures", "graded"]

GARMENTS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
PULLOVER, COAT = 2, 4
SIDE, PATCH, SHRUNK = 28, 4, 20  # pixels
FAINT, WAVELENGTH = 0.3, 5  # of the stripes: brightness of the brightest, and pixels from one to the next

Grey = NDArray[np.uint8]


def graded(folder: Path, settings: GradedSettings, correlation: float, *, seed: int = 0) -> Task:
    """Build digits or garments with a shortcut of the given strength, or without any.

    Parameters
    ----------
    folder : Path
        Where :func:`exmap.data.idx.find_set` finds the IDX set.
    settings : GradedSettings
    correlation : float in [1 / classes, 1]
        Share of the training and validation images in which the shortcut agrees with the class; the others have one of
        the other values, evenly. In the test images class and shortcut are independent. No matter without a shortcut.
    seed : int
        Of the images that are drawn, none twice, and of the shortcut's values. Another correlation leaves the images as
        they are, and a weaker one only adds to those that disagree.

    Returns
    -------
    Task
        Images of shape (3, 28, 28). Training and validation images come from the set's training file, test images from
        its test file. Without a shortcut there are no true groups.

    Raises
    ------
    DataError
        For missing, damaged or too small files, or a correlation out of its range.
    """
    place = find_set(folder, settings.base)
    key = ("graded", settings.base, settings.shortcut, settings.classes)
    sizes = {"train": settings.train, "val": settings.val, "test": settings.test}
    splits: dict[str, Split] = {}
    digests: dict[str, str] = {}
    for stem, names in (("train", ("train", "val")), ("t10k", ("test",))):
        grey, kinds, found = read_pair(place, stem, SIDE)
        digests |= {f"{settings.base}/{file}": digest for file, digest in found.items()}
        labels, class_names = _labels(kinds.astype(np.int64), settings)
        rows = generator(seed, *key, stem).permutation(np.flatnonzero(labels >= 0))
        if stem == "train" and settings.imbalance > 1:
            rows = _unbalanced(rows, labels[rows], settings, generator(seed, *key, stem, "imbalance"))
        asked = [sizes[name] for name in names]
        if sum(asked) > len(rows):
            raise DataError(
                f"graded needs {sum(asked):,} images of its {settings.classes} classes in the {stem} files of "
                f"{place}, found {len(rows):,}; lower {' or '.join(f'data.graded.{name}' for name in names)}"
            )
        for name, drawn in zip(names, np.split(rows[: sum(asked)], np.cumsum(asked)[:-1]), strict=True):
            share = correlation if name != "test" else 1 / settings.classes
            rng = generator(seed, *key, name, "shortcut")
            given = shown = labels[drawn]
            if name != "test" and settings.label_noise > 0:
                noise = generator(seed, *key, name, "noise")
                given = _mislabelled(shown, settings.classes, settings.label_noise, noise)
            splits[name] = _split(name, grey[drawn], shown, given, class_names, settings.shortcut, share, rng)
    return Task("graded", splits["train"], splits["val"], splits["test"], digests)


def _labels(kinds: IntArray, settings: GradedSettings) -> tuple[IntArray, tuple[str, ...]]:
    """Return the class of each picture of a file, -1 for one that is not shown, and the names of the classes."""
    if settings.classes == 2 and settings.base == "mnist":
        return (kinds > 4).astype(np.int64), CLASS_NAMES
    chosen = (PULLOVER, COAT) if settings.classes == 2 else tuple(range(settings.classes))
    labels = np.full(len(kinds), -1, dtype=np.int64)
    for label, kind in enumerate(chosen):
        labels[kinds == kind] = label
    names = DIGITS if settings.base == "mnist" else GARMENTS
    return labels, tuple(names[kind] for kind in chosen)


def _unbalanced(rows: IntArray, labels: IntArray, settings: GradedSettings, rng: np.random.Generator) -> IntArray:
    """Return some of the rows: all of the first class, and the fewer of each other one the later it comes."""
    share = settings.imbalance ** (-labels / (settings.classes - 1))
    return rows[rng.random(len(rows)) < share]


def _mislabelled(labels: IntArray, n_classes: int, share: float, rng: np.random.Generator) -> IntArray:
    """Return labels of which a share is changed to one of the others."""
    wrong = rng.random(len(labels)) < share
    return np.where(wrong, (labels + rng.integers(1, n_classes, len(labels))) % n_classes, labels)


def _split(
    name: str,
    grey: Grey,
    shown: IntArray,
    labels: IntArray,
    class_names: tuple[str, ...],
    shortcut: str,
    correlation: float,
    rng: np.random.Generator,
) -> Split:
    n_values, truth = len(class_names), None
    values = np.zeros(len(labels), dtype=np.int64)
    if shortcut != "none":
        values = draw_shortcut(shown, n_values, correlation, rng)
        attribute = Attribute(shortcut, values, _value_names(shortcut, n_values))
        truth = TrueGroups.cross(labels, class_names, [attribute])
    return Split(
        name=name,
        images=ArrayImages(draw_figures(grey, shortcut, values, n_values, rng)),
        labels=labels,
        ids=tuple(f"{name}/{i:05d}" for i in range(len(labels))),
        class_names=class_names,
        truth=truth,
    )


def _value_names(shortcut: str, n_values: int) -> tuple[str, ...]:
    if shortcut == "colour":
        return tuple(TEN_COLOURS)[:n_values]
    if shortcut == "texture":
        return tuple(f"stripes at {180 * value / n_values:.0f} degrees" for value in range(n_values))
    return tuple(f"{shortcut} {value}" for value in range(n_values))


def draw_figures(grey: Grey, shortcut: str, values: IntArray, n_values: int, rng: np.random.Generator) -> Grey:
    """Draw grey figures, each with its value of a shortcut.

    Parameters
    ----------
    grey : ndarray of uint8, shape (N, 28, 28)
    shortcut : "none", "colour", "patch", "texture" or "position"
    values : ndarray of int64, shape (N,), in [0, n_values)
    n_values : int in [2, 10]
        Number of colours, places at the border, or angles of the stripes.
    rng : numpy.random.Generator
        Of what says nothing of the value: how far the stripes are shifted.

    Returns
    -------
    ndarray of uint8, shape (N, 3, 28, 28)
    """
    if shortcut == "colour":
        palette = np.array(list(TEN_COLOURS.values()), dtype=np.uint16)
        tinted = grey[:, None].astype(np.uint16) * palette[values][:, :, None, None] // 255
        return tinted.astype(np.uint8)
    if shortcut == "texture":
        thing = grey / np.float32(255)
        drawn = np.round(255 * (thing + (1 - thing) * _stripes(values, n_values, rng))).astype(np.uint8)
    elif shortcut == "patch":
        drawn = grey.copy()
        for value, (top, left) in enumerate(_places(n_values, SIDE - PATCH)):
            drawn[values == value, top : top + PATCH, left : left + PATCH] = 255
    elif shortcut == "position":
        drawn = np.zeros_like(grey)
        for value, (top, left) in enumerate(_places(n_values, SIDE - SHRUNK)):
            rows = values == value
            drawn[rows, top : top + SHRUNK, left : left + SHRUNK] = _shrink(grey[rows])
    else:
        drawn = grey
    return np.repeat(drawn[:, None], 3, axis=1)


def _places(number: int, side: int) -> list[tuple[int, int]]:
    """Return places (row, column) evenly along the border of a square of `side` steps, from a corner on."""
    places = []
    for place in range(number):
        edge, along = divmod(round(4 * side * place / number), side)
        places.append([(0, along), (along, side), (side, side - along), (side - along, 0)][edge])
    return places


def _stripes(values: IntArray, n_values: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw stripes at each sample's angle, shifted at random: shape (N, 28, 28), values in [0, 0.3]."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    angle = (np.pi * values / n_values).astype(np.float32)[:, None, None]
    shift = rng.random(len(values), dtype=np.float32)[:, None, None]
    across = (x * np.sin(angle) + y * np.cos(angle)) / np.float32(WAVELENGTH)
    wave: NDArray[np.float32] = np.float32(FAINT / 2) * (1 + np.sin(np.float32(2 * np.pi) * (across + shift)))
    return wave


def _shrink(grey: Grey) -> Grey:
    """Return pictures of 28 pixels in 20, shape (N, 20, 20)."""
    small = np.empty((len(grey), SHRUNK, SHRUNK), dtype=np.uint8)
    for row, picture in enumerate(grey):
        small[row] = np.asarray(Image.fromarray(picture).resize((SHRUNK, SHRUNK), Image.Resampling.BILINEAR))
    return small


DATASETS.register(
    Entry(
        "digits or garments with one shortcut of any strength, or none: for tests of what finds shortcuts",
        arrays=lambda s: graded(idx_folder(s, s.graded.base), s.graded, s.correlation, seed=s.split_seed),
        idx=("mnist", "fashion-mnist"),
    ),
    name="graded",
)
