"""Synthetic images with a known shortcut and any number of classes, for tests, examples and controls.

The class is a bar at one of K angles, drawn in grey with noise, so that it can be learned but not for free; the
shortcut is a bright coloured patch in a corner that agrees with the class in a chosen share of the samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from exmap.data.dataset import ArrayImages, Split, Task, TrueGroups
from exmap.errors import DataError

__all__ = ["planted_shortcut"]


def planted_shortcut(
    n_classes: int = 2,
    sizes: tuple[int, int, int] = (600, 300, 300),
    correlation: float = 0.9,
    side: int = 16,
    noise: float = 0.15,
    seed: int = 0,
) -> Task:
    """Make a task whose shortcut is known.

    Parameters
    ----------
    n_classes : int, at least 2
        Also the number of values of the spurious attribute.
    sizes : tuple of 3 int
        Samples for training, validation and testing.
    correlation : float in [1 / n_classes, 1]
        Share of samples whose attribute equals their class; the rest is spread evenly. The test split is balanced.
    side : int, at least 8
        Height and width in pixels.
    noise : float
        Standard deviation of the pixel noise; images lie in [0, 1].
    seed : int
        Of this data set's own generator.

    Returns
    -------
    Task
        With true groups ``class * n_classes + attribute``.

    Examples
    --------
    >>> task = planted_shortcut(n_classes=3, sizes=(90, 30, 30))
    >>> task.train.images.shape, task.n_classes, len(task.test)
    ((3, 16, 16), 3, 30)
    """
    if n_classes < 2:
        raise DataError(f"a planted task needs at least 2 classes, got {n_classes}")
    if side < 8:
        raise DataError(f"a planted task needs a side of at least 8 pixels, got {side}")
    if not 1 / n_classes <= correlation <= 1:
        raise DataError(f"correlation must lie in [{1 / n_classes:.3g}, 1] for {n_classes} classes, got {correlation}")
    rng = np.random.default_rng(seed)
    parts = zip(("train", "val", "test"), sizes, (correlation, correlation, 1 / n_classes), strict=True)
    train, val, test = (_split(name, size, n_classes, share, side, noise, rng) for name, size, share in parts)
    return Task("planted", train, val, test)


def _split(
    name: str, size: int, k: int, correlation: float, side: int, noise: float, rng: np.random.Generator
) -> Split:
    labels = rng.permutation(np.arange(size) % k).astype(np.int64)
    other = (labels + rng.integers(1, k, size)) % k
    attributes = np.where(rng.random(size) < correlation, labels, other)
    images = rng.normal(0, noise, (size, 3, side, side))
    images += 0.5 * _bars(np.pi * labels / k + rng.normal(0, 0.1, size), side)[:, None]
    patch = side // 4
    colours = _colours(k)[attributes]
    images[:, :, :patch, :patch] = colours[:, :, None, None]
    classes = tuple(f"bar {c}" for c in range(k))
    names = tuple(f"bar {c}, patch {a}" for c in range(k) for a in range(k))
    return Split(
        name,
        ArrayImages(np.clip(images, 0, 1).astype(np.float32)),
        labels,
        tuple(f"{name}/{i}" for i in range(size)),
        classes,
        TrueGroups(labels * k + attributes, names),
    )


def _bars(angles: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Draw a bar through the centre at each angle, shape (N, side, side), values 0 or 1."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    across = np.abs(x * np.sin(angles)[:, None, None] - y * np.cos(angles)[:, None, None])
    inside = np.hypot(x, y) < side * 0.45
    bars: NDArray[np.float64] = ((across < side / 12) & inside).astype(np.float64)
    return bars


def _colours(k: int) -> NDArray[np.float64]:
    """Return k colours around the colour circle, shape (k, 3), values in [0, 1]."""
    hue: NDArray[np.float64] = 2 * np.pi * np.arange(k)[:, None] / k
    colours: NDArray[np.float64] = 0.5 + 0.5 * np.cos(hue - 2 * np.pi * np.arange(3) / 3)
    return colours
