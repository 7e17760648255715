"""Pictures of blocks with a property that goes with their class, and a classifier that is known to read what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.data.dataset import ArrayImages, Split
from exmap.exchange import Looks
from exmap.records import Explained, Heatmaps, IntArray, Outputs

SIDE, BLOCK, PATCH, SHIFT = 20, 8, 3, 4
NOISE, DARK, FAINT = 0.02, 0.05, 0.3
PLACES = ((0, 0), (0, SIDE - PATCH), (SIDE - PATCH, 0), (SIDE - PATCH, SIDE - PATCH))


class Reader(nn.Module):
    """Reads the pattern of the block, and the image's tint, its corners, or where the block is; one logit per class."""

    def __init__(self, classes: int, reads: Mapping[str, float], *, enlarged: int = 1) -> None:
        super().__init__()
        self.reads, self.enlarged, known = dict(reads), enlarged, torch.from_numpy(patterns(classes))
        known = known - known.mean(dim=(1, 2), keepdim=True)
        self.object = nn.Parameter((known / known.square().sum(dim=(1, 2), keepdim=True))[:, None])
        self.tints = nn.Parameter(torch.from_numpy(tints(classes)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.enlarged > 1:
            x = nn.functional.avg_pool2d(x, self.enlarged)
        value, classes = x.amax(dim=1, keepdim=True), len(self.object)
        seen = {"object": nn.functional.conv2d(value, self.object).amax(dim=(2, 3))}
        if x.shape[1] == 3:
            away = x.mean(dim=(2, 3)) / value.mean(dim=(2, 3))
            seen["colour"] = -torch.cdist(away, self.tints)
        corners = [x[:, 0, top:, left:][:, :PATCH, :PATCH].mean(dim=(1, 2)) for top, left in PLACES[:classes]]
        if "background" in self.reads:
            seen["background"] = torch.stack(corners, dim=1) / FAINT
        if "place" in self.reads:
            row = (value[:, 0].sum(dim=2) @ torch.arange(value.shape[2]).float()) / value.sum(dim=(1, 2, 3))
            below = (row - (value.shape[2] - 1) / 2) / SHIFT
            seen["place"] = torch.stack([-below, below], dim=1)
        return torch.stack([weight * seen[name] for name, weight in self.reads.items()]).sum(dim=0)


def patterns(classes: int) -> NDArray[np.float32]:
    """Return what the block of each class looks like, in [0.5, 1]."""
    drawn = np.random.default_rng(7).random((classes, BLOCK, BLOCK)) < 0.5
    return np.where(drawn, 1, 0.5).astype(np.float32)


def tints(classes: int) -> NDArray[np.float32]:
    """Return colours around the circle, the largest channel 1."""
    turn = np.arange(classes)[:, None] / classes - np.arange(3) / 3
    shade = 0.5 + 0.5 * np.cos(2 * np.pi * turn)
    return (shade / shade.max(axis=1, keepdims=True)).astype(np.float32)


def pictures(
    labels: IntArray, classes: int, given: Mapping[str, IntArray], rng: np.random.Generator, channels: int = 3
) -> NDArray[np.float32]:
    """Draw blocks, by what is given of each picture: a colour, a faint patch in a corner, a place above or below."""
    found = np.full((len(labels), channels, SIDE, SIDE), DARK, dtype=np.float32)
    known, shades = patterns(classes), tints(classes)
    for row, (image, label) in enumerate(zip(found, labels, strict=True)):
        top, left = rng.integers(5, 8, 2)
        if "place" in given:
            top = 6 + SHIFT * (2 * given["place"][row] - 1)
        shade = shades[given["colour"][row]] if "colour" in given else np.ones(channels, np.float32)
        if "background" in given:
            down, right = PLACES[given["background"][row]]
            image[:, down : down + PATCH, right : right + PATCH] = FAINT
        image[:, top : top + BLOCK, left : left + BLOCK] = known[label] * shade[:, None, None]
    found += NOISE * rng.random((len(labels), 1, SIDE, SIDE), dtype=np.float32)
    return np.clip(found, 0, 1)


@dataclass(frozen=True, eq=False)
class Scene:
    """Pictures with a classifier, and which value of the property each one has."""

    split: Split
    model: nn.Module
    explained: Explained
    values: IntArray

    @property
    def looks(self) -> Looks:
        return Looks.of(self.split, self.model)


def scene(
    prop: str,
    reads: Mapping[str, float] | None = None,
    *,
    correlation: float = 0.9,
    n: int = 240,
    classes: int = 2,
    channels: int = 3,
    unlike: float = 0.0,
    enlarged: int = 1,
    seed: int = 0,
) -> Scene:
    """Draw a scene in which a property goes with the class; by default the classifier reads nothing but that property.

    `unlike` is the share of pictures that show another class than their label says.
    """
    rng = np.random.default_rng(seed)
    labels = (np.arange(n) % classes).astype(np.int64)
    other = (labels + rng.integers(1, classes, n)) % classes
    values = np.where(rng.random(n) < correlation, labels, other)
    shown = np.where(rng.random(n) < unlike, (labels + rng.integers(1, classes, n)) % classes, labels)
    pixels = pictures(shown, classes, {prop: values}, rng, channels)
    if enlarged > 1:
        pixels = np.kron(pixels, np.ones((1, 1, enlarged, enlarged), np.float32))
    model = Reader(classes, {prop: 1.0} if reads is None else reads, enlarged=enlarged)
    return of(pixels, labels, model, values, classes)


def of(pixels: NDArray[np.float32], labels: IntArray, model: nn.Module, values: IntArray, classes: int) -> Scene:
    """Return a scene of these pictures."""
    names, ids = tuple(f"block {k}" for k in range(classes)), tuple(f"{row}.png" for row in range(len(labels)))
    split = Split("val", ArrayImages(pixels), labels, ids, names)
    with torch.no_grad():
        parts = [model(torch.from_numpy(pixels[at : at + 64])).numpy() for at in range(0, len(pixels), 64)]
    logits = np.concatenate(parts)
    return Scene(split, model, explained_of(split, logits), values)


def explained_of(split: Split, logits: NDArray[np.float32]) -> Explained:
    """Return what a classifier says of a split, with heatmaps that say nothing."""
    n = len(split)
    maps = np.random.default_rng(0).normal(size=(n, 1, 6, 6)).astype(np.float32)
    maps /= np.abs(maps).max(axis=(1, 2, 3), keepdims=True)
    nothing = np.zeros(n, dtype=np.float32)
    heatmaps = Heatmaps(maps, split.labels, nothing, np.ones(n, dtype=bool), np.zeros(n, dtype=bool))
    return Explained("val", split.ids, split.labels, split.class_names, Outputs(logits, logits), heatmaps)
