"""A classifier of two strategies, as arrays: what its heatmaps and features would be, with who takes which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exmap.groups import Evidence
from exmap.records import IntArray

CORE, SHORTCUT = 1.0, 3.0  # how strongly features show the class, and what usually goes with it


@dataclass(frozen=True)
class Planted:
    """Evidence of a planted shortcut.

    Attributes
    ----------
    evidence : Evidence
    shape : (int, int, int)
        Of a heatmap.
    logits : ndarray of float32, shape (N, K)
    strategy : ndarray of int64, shape (N,)
        1 where the shortcut points to another class.
    """

    evidence: Evidence
    shape: tuple[int, int, int]
    logits: NDArray[np.float32]
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
    evidence = Evidence(
        labels=labels,
        predicted=logits.argmax(axis=1),
        class_names=tuple(f"bar {label}" for label in range(n_classes)),
        heatmaps=maps.reshape(n, -1).astype(np.float32),
        usable=np.ones(n, dtype=np.bool_),
        features=np.hstack([core, usual]).astype(np.float32),
    )
    return Planted(evidence, shape, logits, strategy)
