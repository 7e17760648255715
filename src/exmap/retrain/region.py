"""Where a shortcut is: the parts of the image that relevance gathers in, less those that hold the object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from exmap.data import Split
from exmap.data.dataset import ArrayImages, batch_slices
from exmap.exchange import Region, Scale
from exmap.exchange.properties import FEATHER, otsu
from exmap.explain import compute_heatmaps
from exmap.model import collect_outputs
from exmap.model.running import images_at_once, model_device
from exmap.records import FloatArray, Groups, IntArray, Listener, silent
from exmap.runtime import generator
from exmap.settings import ExplainSettings

__all__ = ["ShortcutRegion", "labels_stay", "shortcut_region"]

IMAGES, MOST_IMAGES = 64, 1_000  # that are explained: of a class; in all
PARTS = 6  # of the image that are looked at, those of the most relevance
FITTED, PAIRS = 1_200, 400  # images that a last layer is fitted to; pairs that exchange
LEVEL = 0.05


@dataclass(frozen=True)
class ShortcutRegion:
    """What can be exchanged of the image without making labels wrong.

    Attributes
    ----------
    region : Region or None
        None where no part is left.
    parts, left_out : int
        Connected parts of the image that relevance gathers in, and those of them that may hold what images are
        labelled by.
    """

    region: Region | None
    parts: int
    left_out: int

    @property
    def missing(self) -> str:
        """Why there is no region, as the beginning of a sentence; empty where there is one."""
        if not self.parts:
            return "relevance gathers nowhere in the image"
        return "" if self.region is not None else "where relevance gathers may be what images are labelled by"

    @property
    def note(self) -> str:
        """What a reader should know of it, a sentence without a full stop; empty where there is nothing to say."""
        if self.missing:
            return f"{self.missing}, so no region was exchanged"
        if not self.left_out:
            return ""
        return (
            f"of the {self.parts} parts of the image that relevance gathers in, {self.left_out} that may hold what "
            "images are labelled by were not exchanged"
        )


def shortcut_region(
    model: nn.Module, split: Split, groups: Groups, *, seed: int, listen: Listener = silent
) -> ShortcutRegion:
    """Return where the heatmaps say that the shortcut is, the same part of the image for all classes.

    The largest group of each class is the one that a shortcut leads right. Its mean relevance, absolute and each
    image's summing to 1, is smoothed, and what is largest of any class parted from the rest by the threshold of Otsu
    (1979). A region for each class would tell the class by its edges. Connected parts are left out unless labels are
    seen to stay right when they are exchanged (:func:`labels_stay`).

    Parameters
    ----------
    model : torch.nn.Module
        Explained by the default explainer (:func:`exmap.explain.compute_heatmaps`).
    split : Split
    groups : Groups
        One group per sample of the split.
    seed : int
    listen : Listener

    Raises
    ------
    DataError, NumericalError
        If the model cannot be explained.
    """
    found = _relevance(model, split, groups, seed, listen)
    numbered, number = ndimage.label(found > otsu(found.reshape(1, -1))[0], np.ones((3, 3)))
    mass = ndimage.sum_labels(found, numbered, np.arange(1, number + 1))
    parts = [Region(numbered == 1 + part) for part in np.argsort(-mass, kind="stable")[:PARTS]]
    stay = labels_stay(model, split, groups, parts, seed=seed)
    kept = [part.inside for part, stays in zip(parts, stay, strict=True) if stays]
    region = Region(np.logical_or.reduce(kept)) if kept else None
    return ShortcutRegion(region, len(parts), len(parts) - len(kept))


def _relevance(model: nn.Module, split: Split, groups: Groups, seed: int, listen: Listener) -> FloatArray:
    """Return the largest mean relevance of any class's largest group, smoothed, shape (H, W)."""
    rng, labels = generator(seed, "region"), split.labels
    assigned = groups.index >= 0
    classes = np.unique(labels[assigned])
    most = max(1, min(IMAGES, MOST_IMAGES // len(classes)))
    drawn: list[IntArray] = []
    for label in classes:
        members = assigned & (labels == label)
        largest = np.bincount(groups.index[members]).argmax()
        drawn.append(rng.permutation(np.flatnonzero(members & (groups.index == largest)))[:most])
    rows = split.rows(np.concatenate(drawn))
    maps = compute_heatmaps(model, rows, ExplainSettings(layer="none"), listen=listen).values
    strength = np.abs(maps).sum(axis=1, dtype=np.float64)
    strength /= np.maximum(strength.sum(axis=(1, 2), keepdims=True), 1e-12)
    height, width = strength.shape[1:]
    means = [part.mean(axis=0) for part in np.split(strength, np.cumsum([len(part) for part in drawn])[:-1])]
    smoothed = [ndimage.gaussian_filter(mean, (FEATHER * height, FEATHER * width)) for mean in means]
    return np.asarray(np.max(smoothed, axis=0))


def labels_stay(model: nn.Module, split: Split, groups: Groups, regions: Sequence[Region], *, seed: int) -> list[bool]:
    """Say of each region whether labels are seen to stay right when it is exchanged: it does not hold the object.

    A last layer that is fitted to features of as many images of every group does not follow what the groups part, so it
    is asked, not the classifier's own, which sees the shortcut alone where that is strong. Other images, receivers and
    donors drawn in the same way, then exchange the region. Null hypothesis: of those that are taken for the receiver's
    class or for the donor's, at most half are taken for the receiver's. What shortcut is left in that last layer does
    not reject it, since in groups drawn equally often it says nothing of either label; nor do features that tell
    nothing of the object.

    Parameters
    ----------
    model : torch.nn.Module
    split : Split
    groups : Groups
        One group per sample of the split.
    regions : sequence of Region
    seed : int
    """
    rng, labels, scale = generator(seed, "region", "label"), split.labels, Scale.read(split)
    rows = rng.permutation(np.flatnonzero(groups.index >= 0))
    fitted = _drawn(rows[::2], groups, FITTED, rng)
    receivers, donors = (_drawn(rows[1::2] if len(rows) > 1 else rows, groups, 2 * PAIRS, rng) for _ in range(2))
    unlike = np.flatnonzero(labels[receivers] != labels[donors])[:PAIRS]
    receivers, donors = receivers[unlike], donors[unlike]
    if not len(unlike) or len(np.unique(labels[fitted])) < 2:
        return [False for _ in regions]

    def features(given: Sequence[Region], some: IntArray, others: IntArray) -> NDArray[np.float32]:
        found = []
        for part in batch_slices(len(some), images_at_once(split, model_device(model))):
            shown = scale.pixels(some[part])
            for region in given:
                shown = region(shown, scale.pixels(others[part]))
            ids = tuple(str(number) for number in range(len(shown)))
            images = Split(split.name, ArrayImages(scale.wanted(shown)), labels[some[part]], ids, split.class_names)
            found.append(collect_outputs(model, images).features)
        return np.concatenate(found)

    reader = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    reader.fit(features((), fitted, fitted), labels[fitted])
    verdicts = []
    for region in regions:
        predicted = reader.predict(features((region,), receivers, donors))
        stayed, followed = (int((predicted == labels[rows]).sum()) for rows in (receivers, donors))
        beyond = stayed > followed and stats.binomtest(stayed, stayed + followed, 0.5, "greater").pvalue <= LEVEL
        verdicts.append(bool(beyond))
    return verdicts


def _drawn(rows: IntArray, groups: Groups, times: int, rng: np.random.Generator) -> IntArray:
    """Draw rows with replacement, every group among them equally often."""
    index = groups.index[rows]
    counts = np.bincount(index)
    return rng.choice(rows, times, p=1 / (counts[index] * np.count_nonzero(counts)))
