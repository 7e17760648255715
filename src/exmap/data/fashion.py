"""Garments with one to three shortcuts beside them: small images, real photographs, no download beyond two IDX sets.

Dominoes: a digit 0 or 1 above a dress or a coat (after Shah et al., "The pitfalls of simplicity bias", 2020, who
stack MNIST and Fashion-MNIST). Two shortcuts: a sneaker or a boot on one of two coloured textures, with a digit 0 or 1
above it; each shortcut agrees with the class in 95 % of the images, independently: a stand-in for UrbanCars (Li et
al., "A Whac-A-Mole dilemma", 2023), with its eight groups. Three shortcuts: the same pictures in a coloured frame,
which agrees with the class in as many of them; sixteen groups. In all, the test split is balanced over all groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exmap.data.coloured import draw_shortcut
from exmap.data.dataset import ArrayImages, Attribute, Split, Task, TrueGroups
from exmap.data.entry import Entry, idx_folder
from exmap.data.idx import find_set, read_pair
from exmap.errors import DataError
from exmap.records import IntArray
from exmap.registry import DATASETS
from exmap.runtime import generator

__all__ = ["dominoes", "three_shortcuts", "two_shortcuts"]

SEED = 0  # of the data sets' definition, not of a run
HELD_OUT = 1_000  # of each kind of picture among the training images, for validation
DIGITS = ("digit 0", "digit 1")
TEXTURES = ("rust stripes", "teal checks")
FRAMES = ("violet frame", "gold frame")
FRAME_COLOURS = ((0.5, 0.25, 0.8), (0.9, 0.75, 0.15))
FRAME_WIDTH = 2  # pixels
SIDE = 28

Grey = NDArray[np.uint8]


def dominoes(folder: Path, correlation: float = 0.95) -> Task:
    """Build dominoes: a digit (0 or 1, the shortcut) above a garment (dress or coat, the class).

    Parameters
    ----------
    folder : Path
        Where :func:`exmap.data.idx.find_set` finds both IDX sets.
    correlation : float in [0.5, 1]
        Share of the training and validation images in which dress goes with 0 and coat with 1.

    Returns
    -------
    Task
        About 10,000, 2,000 and 2,000 images of shape (3, 56, 28).

    Raises
    ------
    DataError
        For missing, damaged or too small files.
    """
    splits: dict[str, Split] = {}
    pools, digests = _pools(folder, (3, 4))
    for name, garments, digits in pools:
        labels = _labels(garments)
        rng = generator(SEED, "dominoes", name)
        digit = draw_shortcut(labels, 2, correlation if name != "test" else 0.5, rng)
        stacked = np.concatenate([_pick(digits, digit, rng), np.concatenate(garments)], axis=1)
        images = np.repeat(stacked[:, None], 3, axis=1)
        splits[name] = _split(name, images, labels, ("dress", "coat"), [Attribute("digit", digit, DIGITS)])
    return Task("dominoes", splits["train"], splits["val"], splits["test"], digests)


def two_shortcuts(folder: Path, correlation: float = 0.95) -> Task:
    """Build two shortcuts: a sneaker or a boot (the class), a coloured texture behind it, a digit 0 or 1 above it.

    Parameters
    ----------
    folder : Path
        Where :func:`exmap.data.idx.find_set` finds both IDX sets.
    correlation : float in [0.5, 1]
        Share of the training and validation images in which each shortcut agrees with the class, independently.

    Returns
    -------
    Task
        About 10,000, 2,000 and 2,000 images of shape (3, 56, 28), in eight groups.

    Raises
    ------
    DataError
        For missing, damaged or too small files.
    """
    return _sneakers_and_boots("two-shortcuts", folder, correlation, framed=False)


def three_shortcuts(folder: Path, correlation: float = 0.95) -> Task:
    """Build three shortcuts: the pictures of :func:`two_shortcuts`, in a frame of one of two colours.

    Parameters
    ----------
    folder : Path
        Where :func:`exmap.data.idx.find_set` finds both IDX sets.
    correlation : float in [0.5, 1]
        Share of the training and validation images in which each shortcut agrees with the class, independently.

    Returns
    -------
    Task
        About 10,000, 2,000 and 2,000 images of shape (3, 56, 28), in sixteen groups. Where all three shortcuts are
        wrong at once there is about one training image, or none.

    Raises
    ------
    DataError
        For missing, damaged or too small files.
    """
    return _sneakers_and_boots("three-shortcuts", folder, correlation, framed=True)


def _sneakers_and_boots(task: str, folder: Path, correlation: float, *, framed: bool) -> Task:
    """Build the pictures of two shortcuts, if asked with a third one around them; what lies inside is the same."""
    splits: dict[str, Split] = {}
    pools, digests = _pools(folder, (7, 9))
    for name, garments, digits in pools:
        labels = _labels(garments)
        rng = generator(SEED, "two-shortcuts", name)
        share = correlation if name != "test" else 0.5
        texture, digit = (draw_shortcut(labels, 2, share, rng) for _ in range(2))
        stacked = np.concatenate([_pick(digits, digit, rng), np.concatenate(garments)], axis=1)
        things = stacked[:, None] / np.float32(255)
        behind = _textures(texture, rng)
        images = np.round(255 * (things + (1 - things) * behind)).astype(np.uint8)
        attributes = [Attribute("background", texture, TEXTURES), Attribute("co-occurring object", digit, DIGITS)]
        if framed:
            own = generator(SEED, "three-shortcuts", name)
            frame = draw_shortcut(labels, 2, share, own)
            images = _with_frame(images, frame, own)
            attributes.append(Attribute("frame", frame, FRAMES))
        splits[name] = _split(name, images, labels, ("sneaker", "boot"), attributes)
    return Task(task, splits["train"], splits["val"], splits["test"], digests)


def _pools(
    folder: Path, garments: tuple[int, int]
) -> tuple[list[tuple[str, tuple[Grey, Grey], tuple[Grey, Grey]]], dict[str, str]]:
    """Return, per split, the pictures of two garments and of digits 0 and 1; and the digests of what was read."""
    pools = []
    digests: dict[str, str] = {}
    kinds: dict[str, list[tuple[Grey, Grey]]] = {}
    for source, wanted in (("fashion-mnist", garments), ("mnist", (0, 1))):
        place = find_set(folder, source)
        kinds[source] = []
        for stem in ("train", "t10k"):
            images, labels, found = read_pair(place, stem, SIDE)
            digests |= {f"{source}/{name}": digest for name, digest in found.items()}
            first, second = (images[labels == kind] for kind in wanted)
            kinds[source].append((first, second))
            if (fewest := min(len(first), len(second))) <= (HELD_OUT if stem == "train" else 0):
                raise DataError(
                    f"{place} must hold more than {HELD_OUT:,} training images of kinds {wanted[0]} and {wanted[1]} "
                    f"each and some to test on, found {fewest:,} in {stem}; give the original IDX files"
                )
    for name, file, part in (
        ("train", 0, slice(None, -HELD_OUT)),
        ("val", 0, slice(-HELD_OUT, None)),
        ("test", 1, slice(None)),
    ):
        one, two = ((pair[0][part], pair[1][part]) for pair in (kinds["fashion-mnist"][file], kinds["mnist"][file]))
        pools.append((name, one, two))
    return pools, digests


def _labels(garments: tuple[Grey, Grey]) -> IntArray:
    return np.repeat(np.arange(2, dtype=np.int64), [len(kind) for kind in garments])


def _pick(kinds: tuple[Grey, Grey], wanted: IntArray, rng: np.random.Generator) -> Grey:
    """Return a picture of the wanted kind for each sample; none comes again before all of its kind have come."""
    picked = np.empty((len(wanted), *kinds[0].shape[1:]), dtype=np.uint8)
    for value, pictures in enumerate(kinds):
        rows = np.flatnonzero(wanted == value)
        picked[rows] = pictures[np.resize(rng.permutation(len(pictures)), len(rows))]
    return picked


def _textures(kind: IntArray, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw stripes or checks for each sample, at a random offset: shape (N, 3, 56, 28), values in [0, 0.6]."""
    y, x = np.mgrid[: 2 * SIDE, :SIDE]
    offset = rng.integers(0, 8, size=(len(kind), 2, 1, 1))
    stripes = (x + y + offset[:, 0]) % 8 < 4
    checks = ((x + offset[:, 0]) // 4 + (y + offset[:, 1]) // 4) % 2 == 0
    pattern = np.where(kind[:, None, None] == 0, stripes, checks)
    hue = np.array([[0.55, 0.25, 0.1], [0.1, 0.4, 0.45]], dtype=np.float32)[kind]
    noise = rng.standard_normal(pattern.shape, dtype=np.float32)
    light = np.float32(0.55) + np.float32(0.45) * pattern + np.float32(0.05) * noise
    drawn: NDArray[np.float32] = np.clip(hue[:, :, None, None] * light[:, None], 0, np.float32(0.6))
    return drawn


def _with_frame(images: Grey, kind: IntArray, rng: np.random.Generator) -> Grey:
    """Return the pictures in a violet or a golden frame of a random brightness."""
    light = rng.uniform(0.7, 1.0, size=(len(kind), 1, 1))
    colour = np.array(FRAME_COLOURS)[kind][:, :, None] * light
    inside = np.zeros(images.shape[2:], dtype=np.bool_)
    inside[FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH] = True
    return np.where(inside, images, np.round(255 * colour)[..., None].astype(np.uint8))


def _split(
    name: str, images: Grey, labels: IntArray, class_names: tuple[str, str], attributes: Sequence[Attribute]
) -> Split:
    return Split(
        name=name,
        images=ArrayImages(images),
        labels=labels,
        ids=tuple(f"{name}/{i:05d}" for i in range(len(labels))),
        class_names=class_names,
        truth=TrueGroups.cross(labels, class_names, attributes),
    )


DATASETS.register(
    Entry(
        "dress or coat below a digit 0 or 1, 95 % (4 groups)",
        arrays=lambda s: dominoes(idx_folder(s, "mnist", "fashion-mnist"), s.correlation),
        idx=("mnist", "fashion-mnist"),
    ),
    name="dominoes",
)
DATASETS.register(
    Entry(
        "sneaker or boot; shortcuts: coloured texture and digit, 95 % each (8 groups)",
        arrays=lambda s: two_shortcuts(idx_folder(s, "mnist", "fashion-mnist"), s.correlation),
        idx=("mnist", "fashion-mnist"),
    ),
    name="two-shortcuts",
)
DATASETS.register(
    Entry(
        "sneaker or boot; shortcuts: coloured texture, digit and frame, 95 % each (16 groups)",
        arrays=lambda s: three_shortcuts(idx_folder(s, "mnist", "fashion-mnist"), s.correlation),
        idx=("mnist", "fashion-mnist"),
    ),
    name="three-shortcuts",
)
