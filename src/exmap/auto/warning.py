"""A warning of shortcuts that nothing goes against: no image is classified wrong by them, so no errors give them away.

Where a tint, a mark or a place goes with the class in every image, a classifier that looks at nothing else is right
all the same. So each family of simple properties (:mod:`exmap.auto.properties`) is asked two other things. *Does the
property alone tell the class*, nearly as well as the classifier does? *Do predictions follow it*, where images are
given that of an image of another class and keep the rest? As a control they are given that of one of their own class.

The null hypothesis of a family: at most half of the images that are given its property of an image of another class
are predicted as that class where the control is not. The p-value is that of an exact binomial test, times the number of
families (Bonferroni). A warning needs a p-value of at most the level, and a property that tells the class; the latter
only takes warnings away. Whether a property *is* the class, only who knows the task can say. What is exchanged:

=======================  ===========================================================================================
colour                   the mean colour of what is bright; how bright each pixel is stays
brightness               the histogram of grey values
sharpness, orientation   all above 0.12 cycles per pixel: stripes and other texture, but also the finest outlines
border, background       the pixels of the outer seventh; a background is not exchanged where it shows in the middle
layout                   the place of the centre of what differs from the border; not its size
constant places          the pixels of places that hardly vary within a class but differ between classes
=======================  ===========================================================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.stats import binom, rankdata

from exmap.auto.properties import Floats, Properties, averaged, rim
from exmap.errors import DataError
from exmap.records.base import IntArray, check_same_length
from exmap.runtime import child_seed, generator

__all__ = ["EXCHANGES", "PLACES", "PropertyFinding", "property_warnings"]

PLACES = "constant places"
FEWEST = 8  # images of a class that are classified right
NEARLY, LEAST = 0.9, 0.9  # of what the classifier's accuracy is above chance, and of all, that a property must reach
FOLLOWED = 0.5  # largest share of images that may follow a property beyond the control without a warning
FITTED = 5000  # images at most that are looked at
EXPLAINED = 0.9  # share of a constant place's variance that lies between classes
GRID = 14  # places on a side
OUTER = np.pad(np.zeros((GRID - 4, GRID - 4), dtype=bool), 2, constant_values=True)
FINE = 0.12  # cycles per pixel, above which an image is its texture
BATCH = 32
WORDS = {"orientation": "the texture", "layout": "the place of things", PLACES: "places that are constant in a class"}
Pixels = Callable[[IntArray], Floats]
Predict = Callable[[Floats], IntArray]
Exchange = Callable[[Floats, Floats], Floats]  # images to keep and images to take from, to changed images


@dataclass(frozen=True)
class PropertyFinding:
    """What is found of one family of properties.

    Attributes
    ----------
    family : str
    accuracy, low, high : float in [0, 1]
        Balanced accuracy with which the property alone tells the class, and its 95 % interval.
    classifier, chance : float in [0, 1]
        The classifier's balanced accuracy on the same images, and that of a guess.
    followed, control : float in [0, 1], or None
        Share predicted as the other class of the images that were given the property of one of that class, or of one
        of their own. None where nothing was exchanged, because the property does not tell the class.
    images : int
        How many were given another's property.
    p_value : float in [0, 1]
        Corrected for the number of families; 1 where nothing was exchanged.
    relevance, area : float in [0, 1], or None
        Of the constant places alone: their share of the absolute relevance, None without heatmaps, and of the image.
    warned : bool
    why : str
    """

    family: str
    accuracy: float
    low: float
    high: float
    classifier: float
    chance: float
    followed: float | None
    control: float | None
    images: int
    p_value: float
    relevance: float | None
    area: float | None
    warned: bool
    why: str


def property_warnings(
    properties: Properties,
    labels: IntArray,
    predicted: IntArray,
    *,
    pixels: Pixels,
    predict: Predict,
    heatmaps: NDArray[np.floating] | None = None,
    images: int = 240,
    level: float = 0.05,
    seed: int = 0,
) -> list[PropertyFinding]:
    """Ask of each family whether it tells the class, and whether predictions follow it.

    Parameters
    ----------
    properties : Properties
        Of N images that the classifier was not trained on.
    labels, predicted : ndarray of int64, shape (N,)
    pixels : callable
        Takes row numbers, returns pixels as one looks at them: float32 in [0, 1], shape (n, C, H, W).
    predict : callable
        Takes such pixels, returns predicted classes, int64, shape (n,).
    heatmaps : ndarray of float, shape (N, C, h, w), optional
        Signed relevance; its share in constant places is told beside them.
    images : int
        How many are given another's property, as many of each class as can be.
    level : float
        Corrected p-value up to which is warned.
    seed : int

    Returns
    -------
    list of PropertyFinding
        Of each family, and of the constant places; deterministic.

    Raises
    ------
    DataError
        If the arrays are not of one length, or `predict` does not say of the pixels what `predicted` says.
    """
    check_same_length("a warning", properties=properties, labels=labels, predicted=predicted)
    used = np.sort(generator(seed, "warning", "used").permutation(len(labels))[:FITTED])
    labels, predicted, properties = labels[used], predicted[used], properties.rows(used)
    rows, donors, twins = _drawn(labels, predicted, images, seed)
    said = [predict(pixels(used[part])) == predicted[part] for part in _parts(rows)]
    if said and np.concatenate(said).mean() < 0.9:
        raise DataError("predict must say of the pixels what predicted says; let it normalise them as the model wants")
    places, constant = _constant_places(labels, lambda part: pixels(used[part]))
    matrices = {name: properties.standardised(name) for name in EXCHANGES} | {PLACES: constant}
    told = {name: _told(matrix, labels, seed) for name, matrix in matrices.items()}
    shares, _ = _by_class(predicted == labels, labels)
    classifier, chance = float(shares.mean()), 1 / len(shares)
    enough = max(chance + NEARLY * (classifier - chance), LEAST)
    asked = [name for name, (accuracy, _, _) in told.items() if len(rows) and accuracy >= enough]
    exchanges: dict[str, Exchange] = {**EXCHANGES, PLACES: partial(_inside, places)}
    answers: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in asked}
    for part in _parts(np.arange(len(rows))) if asked else ():
        kept, others, own = (pixels(used[which[part]]) for which in (rows, donors, twins))
        for name in asked:
            made = [predict(exchanges[name](kept, given)) == labels[donors[part]] for given in (others, own)]
            answers[name].append(np.stack(made))
    found = []
    for name, (accuracy, low, high) in told.items():
        both = np.concatenate(answers.get(name, [np.zeros((2, 0), dtype=bool)]), axis=1)
        count, beyond = both.shape[1], int((both[0] & ~both[1]).sum())
        p_value = min(1.0, len(told) * float(binom.sf(beyond - 1, count, FOLLOWED)))
        followed, control = (float(each.mean()) if count else None for each in both)
        area = float(places.mean()) if name == PLACES else None
        relevance = None if area is None or heatmaps is None else _share_in(places, heatmaps[used])
        values = (accuracy, low, high, classifier, chance, followed, control, count, p_value, relevance, area)
        finding = PropertyFinding(name, *values, warned=p_value <= level, why="")
        found.append(replace(finding, why=_why(finding)))
    return found


def _why(finding: PropertyFinding) -> str:
    if finding.area == 0:
        return "No place in the images is constant within each class and differs between classes."
    what = WORDS.get(finding.family, f"the {finding.family}")
    told = f"The class can be told from {what} alone in {finding.accuracy:.0%} of the images"
    if finding.followed is None:
        return f"{told}, and by the classifier in {finding.classifier:.0%}; what the prediction follows was not asked."
    if finding.relevance is not None:
        told += f" ({finding.area:.0%} of each, with {finding.relevance:.0%} of the relevance)"
    return (
        f"{told}, {'and' if finding.warned else 'but'} the prediction follows it in {finding.followed:.0%} of the "
        f"images that were given that of another class; given that of their own, in {finding.control:.0%}."
    )


def _drawn(labels: IntArray, predicted: IntArray, images: int, seed: int) -> tuple[IntArray, ...]:
    """Draw images that are classified right, and for each one of another class and another one of its own."""
    rng = generator(seed, "warning", "exchange")
    right = [np.flatnonzero((labels == label) & (predicted == label)) for label in np.unique(labels)]
    right = [rows for rows in right if len(rows) >= FEWEST]
    drawn: list[tuple[int, int, int]] = []
    for number, own in enumerate(right if len(right) > 1 else []):
        for row in rng.permutation(own)[: -(-images // len(right))]:
            other = right[(number + rng.integers(1, len(right))) % len(right)]
            drawn.append((row, rng.choice(other), rng.choice(own[own != row])))
    return tuple(np.array(drawn, dtype=np.int64).reshape(-1, 3).T)


def _parts(rows: IntArray) -> list[IntArray]:
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


def _by_class(right: NDArray[np.bool_], labels: IntArray) -> tuple[NDArray[np.float64], IntArray]:
    """Return the share of each class's images that is told right, and how many it has; classes without any left out."""
    classes, counts = np.unique(labels, return_counts=True)
    return np.array([right[labels == label].mean() for label in classes]), counts


def _told(matrix: Floats, labels: IntArray, seed: int) -> tuple[float, float, float]:
    """Return the balanced accuracy of a logistic regression on images it was not fitted to, with a 95 % interval.

    The interval is that of a mean over classes, of whose rates each has a beta distribution (Jeffreys' prior).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    classes, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, classes[counts > 1])
    if (counts > 1).sum() < 2:
        return 1 / len(classes), 0.0, 1.0
    own, folds = labels[kept], int(min(5, *counts[counts > 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it stopped after 200 steps
        model = LogisticRegression(class_weight="balanced", max_iter=200)
        cut = StratifiedKFold(folds, shuffle=True, random_state=child_seed(seed, "warning", "folds"))
        right = cross_val_predict(model, matrix[kept] * np.sqrt(matrix.shape[1]), own, cv=cut) == own
    shares, counts = _by_class(right, own)
    hits, misses = shares * counts, (1 - shares) * counts
    drawn = generator(seed, "warning", "interval").beta(hits + 0.5, misses + 0.5, (2000, len(counts)))
    found, (low, high) = float(shares.mean()), np.quantile(drawn.mean(axis=1), [0.025, 0.975]).tolist()
    return found, min(found, low), max(found, high)


def _constant_places(labels: IntArray, pixels: Pixels) -> tuple[NDArray[np.bool_], Floats]:
    """Return the places, (14, 14), and the images' colours there, scaled, (N, d), with d = 1 where there are none."""
    small = np.concatenate([averaged(pixels(part), GRID, GRID) for part in _parts(np.arange(len(labels)))])
    classes, index = np.unique(labels, return_inverse=True)
    means = np.stack([small[labels == label].mean(axis=0) for label in classes])
    within, total = np.square(small - means[index]).mean(axis=(0, 1)), small.var(axis=0).mean(axis=0)
    places: NDArray[np.bool_] = (total > 1e-3) & (within < (1 - EXPLAINED) * total)
    colours = small[:, :, places].reshape(len(small), -1) if places.any() else np.zeros((len(small), 1))
    colours = colours - colours.mean(axis=0)
    return places, (colours / max(float(np.linalg.norm(colours, axis=1).mean()), 1e-6)).astype(np.float32)


def _share_in(places: NDArray[np.bool_], heatmaps: NDArray[np.floating]) -> float:
    """Return the share of absolute relevance that lies in some places, the mean over images that have any."""
    sizes = averaged(np.abs(heatmaps.astype(np.float32)).sum(axis=1), *places.shape)
    total = sizes.sum(axis=(1, 2))
    return float((sizes[total > 0][:, places].sum(axis=1) / total[total > 0]).mean()) if total.any() else 0.0


def _inside(places: NDArray[np.bool_], kept: Floats, given: Floats) -> Floats:
    """Return images with the other's pixels in some places; these, (14, 14), cover the image evenly."""
    down, across = (np.arange(size) * GRID // size for size in kept.shape[2:])
    return np.where(places[down][:, across], given, kept)


def _colour(kept: Floats, given: Floats) -> Floats:
    tops = [images.max(axis=1, keepdims=True) for images in (kept, given)]
    sums = [images.sum(axis=(2, 3), keepdims=True) for images in (kept, given, *tops)]
    casts = [sums[n] / np.maximum(sums[n + 2], 1e-6) for n in (0, 1)]
    return np.asarray(np.clip(kept / np.maximum(tops[0], 1e-6) - casts[0] + casts[1], 0, 1) * tops[0], kept.dtype)


def _brightness(kept: Floats, given: Floats) -> Floats:
    old, wanted = (images.mean(axis=1).reshape(len(images), -1) for images in (kept, given))
    ranks = np.rint(rankdata(old, axis=1) - 1).astype(np.int64)  # pixels of one grey value have one rank
    change = (np.take_along_axis(np.sort(wanted, axis=1), ranks, axis=1) - old).reshape(kept[:, :1].shape)
    return np.asarray(np.clip(kept + change, 0, 1), kept.dtype)


def _texture(kept: Floats, given: Floats) -> Floats:
    cycles = np.hypot(*np.meshgrid(*(fft.fftfreq(size) for size in kept.shape[2:]), indexing="ij"))
    mixed = np.where(cycles > FINE, fft.fft2(given), fft.fft2(kept))
    return np.asarray(np.clip(fft.ifft2(mixed).real, 0, 1), kept.dtype)


def _layout(kept: Floats, given: Floats) -> Floats:
    arounds = [np.median(images[:, :, rim(*images.shape[2:])], axis=2)[:, :, None, None] for images in (kept, given)]
    weights = [np.abs(each - around).mean(axis=1) + 1e-9 for each, around in zip((kept, given), arounds, strict=True)]
    old, new = (np.array([ndimage.center_of_mass(each) for each in weight]) for weight in weights)
    steps = np.pad(np.rint(new - old), ((0, 0), (1, 0)))
    moved = [ndimage.shift(each, step, order=0) for each, step in zip(kept - arounds[0], steps, strict=True)]
    return np.asarray(np.stack(moved) + arounds[0], dtype=np.float32)


EXCHANGES: Mapping[str, Exchange] = {
    "colour": _colour,
    "brightness": _brightness,
    "sharpness": _texture,
    "orientation": _texture,
    "border": partial(_inside, OUTER),
    "layout": _layout,
    "background": partial(_inside, OUTER),
}
