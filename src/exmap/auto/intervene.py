"""Does a property of a group's images cause its errors? Properties are exchanged, and the classifier is asked again.

A group that is worse than the rest of its class may be fooled by a shortcut, or may hold hard images. An experiment
tells which. Three properties are exchanged, each of which leaves much of the object as it is: the *colours*, the
*border* and the *place*. Each is exchanged in two directions:

1. Images of the group receive the property of *class-mates*: images of their class outside the group that are
   classified right. Victims of a shortcut recover.
2. Class-mates receive the property of the group's images. They become victims.

Both are measured by the margin, how far the logit of the right class lies above the largest other one, and compared
with *matched images*: those of the rest of the class whose margins are the most like the group's. A property counts as
far as the group moves more than they do in both directions; the smaller of the two is its *reaction*. A permutation of
group and matched images gives a p-value of the largest reaction.

Heatmaps give the group, not what is exchanged: the region of largest relevance holds parts of the object as well, and
its removal restores hard images as often as victims of a shortcut. A shortcut that none of the three properties holds,
such as a mark in the middle of the image, is not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from exmap.auto.margins import margins_of
from exmap.data import Images
from exmap.errors import DataError
from exmap.records import Explained, IntArray
from exmap.results.part import Part, Share
from exmap.runtime import generator

__all__ = ["Intervention", "Predict", "intervene"]

Pixels = NDArray[np.float32]
Numbers = NDArray[np.float64]
Pair = tuple[float, float]
Predict = Callable[[Pixels], NDArray[np.floating]]
Exchange = Callable[[Pixels, Pixels], Pixels]

MOST, FEWEST = 64, 4  # images of the group, and as many matched ones
HOSTS = 8  # fewest class-mates
PARTNERS = 2  # class-mates that each image exchanges with, in each direction
PERMUTATIONS = 999
EFFECT = 0.5  # smallest reaction that counts, in standard deviations of the class's margins
EDGE = 0.15  # the border's width, as a share of the shorter side


class Intervention(Part):
    """What an exchange of properties between a group and the rest of its class does to the classifier.

    Pairs are of the group and of the matched images. Margins are in standard deviations of the class's margins.
    """

    reacts: bool | None = Field(
        None,
        description="Whether the group reacts more than matched images: the p-value is at most the level, and the "
        "effect at least 0.5; null where it was not tested, like all that may be.",
    )
    p_value: Share | None = Field(
        None,
        description="Chance of a reaction as large if group and matched images were alike, corrected for the number "
        "of properties.",
    )
    effect: float | None = Field(None, description="The largest reaction.")
    exchanged: str = Field("", description="Its property: colours, border or place.")
    images: int = Field(ge=0, description="Images of the group that were used.")
    matched: int = Field(ge=0, description="Images of the rest of the class that are about as hard.")
    mates: int = Field(ge=0, description="Class-mates that are classified right, and not matched.")
    margin_gap: float | None = Field(
        None, description="Mean margin of the group less that of the matched images; far below 0, none were as hard."
    )
    gained: Pair | None = Field(None, description="Mean margin gained with the property of class-mates.")
    lost: Pair | None = Field(None, description="Mean margin that class-mates lose with their property.")
    restored: tuple[Share | None, Share | None] | None = Field(
        None,
        description="Share of wrong images that are right with the property of class-mates; null if none is wrong.",
    )
    spoiled: tuple[Share, Share] | None = Field(None, description="Share of class-mates that are wrong with theirs.")
    why: str = Field(description="What was found, in words.")


@dataclass(frozen=True)
class _Judge:
    predict: Predict
    images: Images
    label: int
    n_classes: int

    def margins(self, pixels: Pixels) -> Numbers:
        logits, wanted = np.asarray(self.predict(np.ascontiguousarray(pixels))), (len(pixels), self.n_classes)
        if logits.shape != wanted or not np.isfinite(logits).all():
            got = f"shape {logits.shape}" if logits.shape != wanted else "NaN or infinity"
            raise DataError(f"predict must return finite logits of shape {wanted}, got {got}; give the explained model")
        return margins_of(logits, np.full(len(pixels), self.label))


def intervene(
    predict: Predict, images: Images, explained: Explained, group: IntArray, *, seed: int = 0, level: float = 0.05
) -> Intervention:
    """Exchange properties between a suspected group and the rest of its class, and compare with images as hard.

    At most 64 images of the group and 64 matched ones are used, and the classifier sees at most 1,536 images.

    Parameters
    ----------
    predict : callable
        From images, float32, shape (n, C, H, W), to logits, shape (n, K): the classifier that was explained.
    images : Images
        Those of the explained split.
    explained : Explained
        Labels and logits of these N images; heatmaps are not needed.
    group : ndarray of int64, shape (n,)
        Rows of the suspected group, images of one class. It should be whole: victims of a shortcut that are left out
        are as hard, so they are matched, and hide the reaction.
    seed : int
        Of the images that are drawn, and of the permutations.
    level : float in (0, 1)
        Largest p-value at which the group reacts.

    Returns
    -------
    Intervention
        With nulls and a reason where the group or the rest of its class is too small.

    Raises
    ------
    DataError
        If the group is empty, repeats an image or is not of one class, the images are not the explained ones, or
        `predict` does not return finite logits of the same classes.
    """
    _check(images, explained, group)
    label, rng = int(explained.labels[group[0]]), generator(seed, "auto", "intervene")
    members = np.flatnonzero(explained.labels == label)
    margins = margins_of(explained.outputs.logits, explained.labels)
    rest = np.setdiff1d(members, group)
    rows = rng.permutation(np.sort(group))[:MOST]
    matched = _match(margins, rows, rest)
    others = np.setdiff1d(rest, matched)
    mates = others[margins[others] > 0]
    if min(len(rows), len(matched)) < FEWEST or len(mates) < HOSTS:
        return _nothing(len(rows), len(matched), len(mates))

    judge = _Judge(predict, images, label, len(explained.class_names))
    scale = max(float(margins[members].std()), 1e-9)
    both, n = np.concatenate([rows, matched]), len(rows)
    found = {name: _exchange(judge, change, both, mates, margins, rng) for name, change in PROPERTIES.items()}
    scores = np.stack([np.stack([gain, loss], axis=1) / scale for gain, loss, _, _ in found.values()], axis=1)
    reactions, p_value = _test(scores, n, rng)
    best = int(np.argmax(reactions))
    name, (_, _, right, spoiled) = list(found.items())[best]
    means = np.array([part[:, best].mean(axis=0) for part in (scores[:n], scores[n:])])
    effect = float((means[0] - means[1]).min())
    wrong, arms = margins[both] <= 0, (slice(n), slice(n, None))
    shares = [float(right[arm][wrong[arm]].mean()) if wrong[arm].any() else None for arm in arms]
    fooled = float(spoiled[:n].mean()), float(spoiled[n:].mean())
    reacts = p_value <= level and effect >= EFFECT
    return Intervention(
        reacts=reacts,
        p_value=p_value,
        effect=effect,
        exchanged=name,
        images=n,
        matched=len(matched),
        mates=len(mates),
        margin_gap=float(margins[rows].mean() - margins[matched].mean()) / scale,
        gained=(float(means[0, 0]), float(means[1, 0])),
        lost=(float(means[0, 1]), float(means[1, 1])),
        restored=(shares[0], shares[1]),
        spoiled=fooled,
        why=_why(reacts, p_value <= level, name, effect, fooled, shares[0], int(wrong[:n].sum())),
    )


def _check(images: Images, explained: Explained, group: IntArray) -> None:
    if len(images) != len(explained):
        raise DataError(f"images must be the {len(explained):,} explained ones, got {len(images):,}; give their split")
    if group.ndim != 1 or not len(group) or not 0 <= group.min() <= group.max() < len(explained):
        raise DataError(f"group must hold rows in [0, {len(explained) - 1}], got shape {group.shape}; give some images")
    if len(np.unique(group)) < len(group):
        raise DataError("group must hold each image once, but some repeat; give np.unique(group)")
    if len(classes := np.unique(explained.labels[group])) > 1:
        names = ", ".join(explained.class_names[label] for label in classes)
        raise DataError(f"group must be of one class, got {names}; give the images of one of them")


def _match(margins: Numbers, rows: IntArray, rest: IntArray) -> IntArray:
    """Return for each row, in order, the remaining one of the nearest margin: at most half of the rest."""
    pool, found = rest.copy(), []
    for row in rows[: len(rest) // 2]:
        nearest = int(np.argmin(np.abs(margins[pool] - margins[row])))
        found.append(pool[nearest])
        pool = np.delete(pool, nearest)
    return np.array(found, dtype=np.int64)


def _exchange(
    judge: _Judge, change: Exchange, rows: IntArray, mates: IntArray, margins: Numbers, rng: np.random.Generator
) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Return by image, shape (n,): margin it gains, margin class-mates lose, share right, share of mates wrong."""
    gain, loss, right, spoiled = np.zeros((4, len(rows)))
    for part in np.array_split(np.arange(len(rows)), -(-len(rows) // MOST)):
        own = judge.images.batch(rows[part])
        for _ in range(PARTNERS):
            giver, host = rng.choice(mates, (2, len(part)))
            repaired = judge.margins(change(own, judge.images.batch(giver)))
            damaged = judge.margins(change(judge.images.batch(host), own))
            gain[part] += repaired - margins[rows[part]]
            loss[part] += margins[host] - damaged
            right[part] += repaired > 0
            spoiled[part] += damaged <= 0
    return gain / PARTNERS, loss / PARTNERS, right / PARTNERS, spoiled / PARTNERS


def _test(scores: Numbers, n: int, rng: np.random.Generator) -> tuple[Numbers, float]:
    """Compare the first n images with the others, given shape (N, properties, directions).

    Returns the reaction of each property, the smaller of both directions' Welch statistics, and the p-value of the
    largest one, from permutations of the images.
    """
    values = scores.reshape(len(scores), -1)
    first = np.zeros((PERMUTATIONS + 1, len(scores)))
    first[0, :n] = 1
    for draw in first[1:]:
        draw[rng.permutation(len(scores))[:n]] = 1
    means, errors = [], []
    for side in (first, 1 - first):
        count = side.sum(axis=1, keepdims=True)
        mean = side @ values / count
        means.append(mean)
        errors.append(np.maximum(side @ values**2 / count - mean**2, 0) / (count - 1))
    welch = (means[0] - means[1]) / np.sqrt(errors[0] + errors[1] + 1e-9)
    reactions = welch.reshape(len(first), *scores.shape[1:]).min(axis=2)
    largest = reactions.max(axis=1)
    return reactions[0], float(np.mean(largest >= largest[0] - 1e-9))


def _with_colours(own: Pixels, other: Pixels) -> Pixels:
    """Draw the images' brightness in the mean and standard deviation that each channel has in the others."""
    grey = own.mean(axis=1, keepdims=True)
    mean, spread = (f(grey, axis=(2, 3), keepdims=True) for f in (np.mean, np.std))
    wanted, wide = (f(other, axis=(2, 3), keepdims=True) for f in (np.mean, np.std))
    return np.asarray(wanted + wide * (grey - mean) / np.maximum(spread, 1e-6), dtype=np.float32)


def _with_border(own: Pixels, other: Pixels) -> Pixels:
    """Take the border's pixels from the others."""
    height, width = own.shape[2:]
    edge = min(max(1, round(EDGE * min(height, width))), (min(height, width) - 1) // 2)
    changed = other.copy()
    inner = np.s_[:, :, edge : height - edge, edge : width - edge]
    changed[inner] = own[inner]
    return changed


def _with_place(own: Pixels, other: Pixels) -> Pixels:
    """Shift the images until their centres are those of the others; what leaves one side enters at the other."""
    shifts = np.round(_centres(other) - _centres(own)).astype(int).tolist()
    return np.stack([np.roll(image, shift, axis=(1, 2)) for image, shift in zip(own, shifts, strict=True)])


def _centres(pixels: Pixels) -> Numbers:
    """Return the centre (row, column) of what differs from each channel's median, shape (n, 2)."""
    weight = np.abs(pixels - np.median(pixels, axis=(2, 3), keepdims=True)).sum(axis=1, dtype=np.float64) + 1e-9
    total = np.einsum("nyx,ayx->na", weight, np.indices(weight.shape[1:], dtype=np.float64))
    return np.asarray(total / weight.sum(axis=(1, 2))[:, None])


PROPERTIES: dict[str, Exchange] = {"colours": _with_colours, "border": _with_border, "place": _with_place}


def _nothing(images: int, matched: int, mates: int) -> Intervention:
    why = (
        f"The group has {images} images, {matched} of the rest of its class can be matched, and {mates} others are "
        f"classified right; an experiment needs {FEWEST}, {FEWEST} and {HOSTS}."
    )
    return Intervention(images=images, matched=matched, mates=mates, why=why)


def _why(reacts: bool, likely: bool, name: str, effect: float, fooled: Pair, right: float | None, wrong: int) -> str:
    if not likely:
        return (
            "The colours, border and place of its images move the classifier no more than those of equally hard images "
            "do: the images are hard, or another property fools the classifier."
        )
    if not reacts:
        return (
            f"The exchange of {name} moves the classifier more for its images than for equally hard ones, but only by "
            f"{effect:.2f} standard deviations of margins: too little to count as a shortcut."
        )
    back = "" if right is None else f"; with a class-mate's {name}, {right:.0%} of its {wrong} wrong images are right"
    return (
        f"With the {name} of its images, {fooled[0]:.0%} of class-mates are classified wrong, with that of equally "
        f"hard images {fooled[1]:.0%}{back}."
    )
