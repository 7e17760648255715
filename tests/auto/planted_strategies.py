"""A classifier of two strategies, as arrays: what its heatmaps and features would be, with who takes which."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from exmap.records import Explained, Heatmaps, IntArray, Outputs

CORE, SHORTCUT = 1.0, 3.0  # how strongly features show the class, and what usually goes with it


@dataclass(frozen=True)
class Planted:
    """A planted shortcut.

    Attributes
    ----------
    explained : Explained
    strategy : ndarray of int64, shape (N,)
        1 where the shortcut points to another class.
    """

    explained: Explained
    strategy: IntArray


def planted(
    n: int = 240,
    *,
    n_classes: int = 2,
    minority: float = 0.15,
    shape: tuple[int, int, int] = (1, 6, 6),
    reliance: float = 2.0,
    seed: int = 0,
) -> Planted:
    """Plant a shortcut: heatmaps lie in one corner or in the other, features hold the class and its usual companion.

    Parameters
    ----------
    n : int
        Images, in equal shares by class.
    minority : float
        Share of each class whose companion is that of the next class.
    shape : (int, int, int)
        Channels, height and width of a heatmap.
    reliance : float
        Weight of the companion in the logits; that of the class is 1. With 0 there is no shortcut, but heatmaps of two
        kinds.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    strategy = np.zeros(n, dtype=np.int64)
    for label in range(n_classes):
        rows = np.flatnonzero(labels == label)
        strategy[rng.permutation(rows)[: round(minority * len(rows))]] = 1
    companion = (labels + strategy) % n_classes
    hot = np.eye(n_classes)
    core = CORE * hot[labels] + rng.normal(scale=0.3, size=(n, n_classes))
    usual = SHORTCUT * hot[companion] + rng.normal(scale=0.3, size=(n, n_classes))
    channels, height, width = shape
    maps = rng.normal(scale=0.05, size=(n, channels, height, width))
    for row in range(n):
        maps[row, :, : height // 2, : width // 2] += strategy[row] == 0
        maps[row, :, height // 2 :, width // 2 :] += strategy[row] == 1
    maps /= np.abs(maps).max(axis=(1, 2, 3), keepdims=True)
    logits = (core + reliance * usual / SHORTCUT).astype(np.float32)
    features = np.hstack([core, usual]).astype(np.float32)
    names = tuple(f"bar {label}" for label in range(n_classes))
    return Planted(explained_of(labels, maps, features, logits, class_names=names), strategy)


def explained_of(
    labels: IntArray,
    maps: NDArray[np.floating],
    features: NDArray[np.floating],
    logits: NDArray[np.floating],
    *,
    finite: NDArray[np.bool_] | None = None,
    class_names: tuple[str, ...] = ("bar 0", "bar 1"),
) -> Explained:
    """Return a split as a classifier explains it, from arrays."""
    n = len(labels)
    nothing = np.zeros(n, dtype=np.float32)
    return Explained(
        "val",
        tuple(f"{row}.png" for row in range(n)),
        labels,
        class_names,
        Outputs(features.astype(np.float32), logits.astype(np.float32)),
        Heatmaps(
            maps.astype(np.float32),
            labels,
            nothing,
            np.ones(n, dtype=np.bool_) if finite is None else finite,
            np.zeros(n, dtype=np.bool_),
        ),
    )


def predicting(explained: Explained, predicted: IntArray) -> Explained:
    """Return the same images where the classifier says something else of them."""
    logits = np.eye(len(explained.class_names), dtype=np.float32)[predicted]
    return replace(explained, outputs=Outputs(explained.features, logits))


def with_maps(explained: Explained, values: NDArray[np.floating], finite: NDArray[np.bool_] | None = None) -> Explained:
    """Return the same images with other heatmaps."""
    maps = explained.maps()
    kept = maps.finite if finite is None else finite
    return replace(explained, heatmaps=replace(maps, values=values.astype(np.float32), finite=kept))


def with_features(explained: Explained, features: NDArray[np.floating]) -> Explained:
    """Return the same images with other features, and the same predictions."""
    return replace(explained, outputs=Outputs(features.astype(np.float32), explained.outputs.logits))
