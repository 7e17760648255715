"""What do predictions follow? A randomised experiment: properties are exchanged between images.

An image that is classified right receives a property (its colours, its background, its place) of two other images: one
that the classifier takes for another class, and one that it takes for the image's own class. Everything else stays as
it is. How much further the first moves the margin towards the other class than the second, as a share of the image's
own margin, is what the property is worth to the classifier.

Null hypothesis, for each property and class: giving images of the class the property of an image that the classifier
takes for another class moves their margin, on average, at most a fifth of itself further than giving them that of an
image it takes for their own. Donors are drawn at random, so the comparison is that of a randomised trial: nothing about
which images are hard can confound it. Where an attribute says nothing of the class, both donors are exchangeable and
the effect is zero, whatever the classifier.

A property that predictions follow also *votes*: what it adds to each class's logit in images of other objects. Votes
take no label. Images whose property votes for another class than their own go against the shortcut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from exmap.auto.intervene import Intervention
from exmap.auto.looks import Looks, Pixels
from exmap.records import Explained, IntArray, Listener, Progress, silent
from exmap.results import DoubtfulLabels, PropertyReliance
from exmap.runtime import generator

__all__ = ["PROPERTIES", "Exchanges", "measure_exchanges"]

Exchange = Callable[[Pixels, Pixels], Pixels]

LEVEL = 0.05  # of a reliance
WORTH = 0.2  # share of the margin that a property must move
PAIRS, MOST_PAIRS = 100, 600  # of each class; in all
FEWEST = 20  # images of a class that are classified right, to receive; fewer are no strategy
GIVING = 8  # images that are taken for a class, to give
MOST_CLASSES = 30  # that are tested: those of the most errors
VOTES, FEWEST_VOTES = 4, 2  # receivers of each image's property
MOST_VOTES = 12_000
FEATHER = 0.03  # width of the edge between what is kept and what is exchanged, as a share of the image's side
ELSEWHERE = 0.1  # share of the image's side
DARK = 0.05  # brightness below which a pixel has hardly any colour


@dataclass(frozen=True, eq=False)
class Exchanges:
    """What was measured.

    Attributes
    ----------
    reliances : tuple of PropertyReliance
        By property and class.
    votes : mapping of str to ndarray of float32, shape (N, K)
        Of each property that some class relies on; NaN for images that were not asked.
    reactions : mapping of str to Intervention
        By class: what the images that go against its property do when they get the property of the others.
    warnings : tuple of str
        Of :mod:`exmap.auto.warning`, a sentence each.
    mislabelled : tuple of DoubtfulLabels, or None
        Of :mod:`exmap.auto.mislabelled`, with pixels; None where nobody looked.
    """

    reliances: tuple[PropertyReliance, ...] = ()
    votes: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    reactions: dict[str, Intervention] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    mislabelled: tuple[DoubtfulLabels, ...] | None = None

    @property
    def measured(self) -> bool:
        """Whether there was anything to exchange."""
        return bool(self.reliances)

    def rows(self, rows: IntArray) -> Exchanges:
        """Return the same with the votes of some of the images."""
        return replace(self, votes={name: votes[rows] for name, votes in self.votes.items()})

    def of(self, class_name: str) -> list[PropertyReliance]:
        """Return what was measured of a class, by property."""
        return [each for each in self.reliances if each.class_name == class_name]

    def against(self, prop: str, labels: IntArray) -> IntArray:
        """Return 1 for each image whose property votes for another class than its own, 0 for others, -1 unasked."""
        votes = self.votes[prop]
        known = np.isfinite(votes).all(axis=1)
        voted = np.where(known, np.nan_to_num(votes).argmax(axis=1) != labels, -1)
        return np.asarray(voted, dtype=np.int64)


def exchange_colour(receivers: Pixels, donors: Pixels) -> Pixels:
    """Give images the tint of others: each pixel's brightness stays, and a grey image keeps a grey tint."""
    value = receivers.max(axis=1, keepdims=True)
    tint = ((receivers + DARK) / (value + DARK)) * ((_tint(donors) + DARK) / (_tint(receivers) + DARK))
    return np.asarray(np.clip(value * tint / tint.max(axis=1, keepdims=True), 0, 1), dtype=np.float32)


def exchange_background(receivers: Pixels, donors: Pixels) -> Pixels:
    """Give images the background of others, wherever neither has its object, with soft edges."""
    kept = (_object(receivers) | _object(donors)).astype(np.float32)
    height, width = kept.shape[1:]
    soft = ndimage.gaussian_filter(kept, (0, FEATHER * height, FEATHER * width), mode="nearest")
    weight = np.clip(1.5 * soft, 0, 1)[:, None]
    return np.asarray(receivers * weight + donors * (1 - weight), dtype=np.float32)


def exchange_place(receivers: Pixels, donors: Pixels) -> Pixels:
    """Move what is in images to where it is in others; what becomes empty takes the border's median colour.

    An object is elsewhere only if its centre is more than a tenth of the image's side away: less is a matter of shape.
    """
    shifts = np.round(_centre(donors) - _centre(receivers)).astype(np.int64)
    near = np.abs(shifts).max(axis=1) <= ELSEWHERE * max(receivers.shape[2:])
    shifts[near] = 0
    moved = np.broadcast_to(_border(receivers), receivers.shape).copy()
    height, width = receivers.shape[2:]
    for row, (down, right) in enumerate(shifts):
        top, bottom = max(0, down), min(height, height + down)
        left, end = max(0, right), min(width, width + right)
        moved[row, :, top:bottom, left:end] = receivers[row, :, top - down : bottom - down, left - right : end - right]
    return moved


PROPERTIES: dict[str, Exchange] = {
    "colour": exchange_colour,
    "background": exchange_background,
    "place": exchange_place,
}


def measure_exchanges(looks: Looks, explained: Explained, *, seed: int, listen: Listener = silent) -> Exchanges:
    """Exchange every property, and let those that predictions follow vote.

    Parameters
    ----------
    looks : Looks
        The images of the explained split, and the classifier.
    explained : Explained
        Labels and logits of the same N images.
    seed : int
    listen : Listener

    Returns
    -------
    Exchanges
        Without reliances where no class has twenty images that are classified right, or all are taken for one class.
    """
    trial = _Trial.of(explained, seed)
    if trial is None:
        return Exchanges()
    reliances: list[PropertyReliance] = []
    votes: dict[str, NDArray[np.float32]] = {}
    tests = len(PROPERTIES) * len(np.unique(explained.labels[trial.receivers]))
    for number, (name, exchange) in enumerate(PROPERTIES.items()):
        listen(Progress("exchange", number, len(PROPERTIES), "properties", name))
        found = list(trial.reliances(looks, name, exchange, tests))
        reliances += found
        if any(each.relied_on for each in found):
            votes[name] = _votes(looks, explained, exchange, seed)
    listen(Progress("exchange", len(PROPERTIES), len(PROPERTIES), "properties", "done"))
    return Exchanges(tuple(reliances), votes)


@dataclass(frozen=True, eq=False)
class _Trial:
    """Who receives of whom: rows of images, shape (pairs,)."""

    explained: Explained
    receivers: IntArray
    others: IntArray
    mates: IntArray

    @classmethod
    def of(cls, explained: Explained, seed: int) -> _Trial | None:
        rng, predicted, labels = generator(seed, "exchange"), explained.outputs.predicted, explained.labels
        called = {
            c: rows
            for c in np.unique(predicted[predicted >= 0])
            if len(rows := np.flatnonzero(predicted == c)) >= GIVING
        }
        right = {c: rows[labels[rows] == c] for c, rows in called.items()}
        right = {c: rows for c, rows in right.items() if len(rows) >= FEWEST}
        if len(called) < 2 or not right:
            return None
        errors = {c: float(np.mean(predicted[labels == c] != c)) for c in right}
        tested = sorted(sorted(right, key=lambda c: -errors[c])[:MOST_CLASSES])
        pairs = max(FEWEST, min(PAIRS, MOST_PAIRS // len(tested)))
        drawn: list[tuple[IntArray, IntArray, IntArray]] = []
        for c in tested:
            rows = rng.permutation(right[c])
            rows = np.resize(rows, pairs) if len(rows) < pairs else rows[:pairs]
            elsewhere = [other for other in called if other != c]
            giving = [called[elsewhere[n]] for n in rng.integers(len(elsewhere), size=pairs)]
            others = np.array([rng.choice(rows) for rows in giving], dtype=np.int64)
            drawn.append((rows, others, rng.choice(called[c], size=pairs)))
        return cls(explained, *(np.concatenate(part) for part in zip(*drawn, strict=True)))

    def reliances(self, looks: Looks, name: str, exchange: Exchange, tests: int) -> Iterator[PropertyReliance]:
        """Yield what each class's images do with the property of others."""
        labels, predicted = self.explained.labels[self.receivers], self.explained.outputs.predicted[self.others]
        pairs = np.arange(len(labels))
        given = [_asked(looks, exchange, self.receivers, donors) for donors in (self.others, self.mates)]
        towards = [logits[pairs, predicted] - logits[pairs, labels] for logits in given]
        own = self.explained.outputs.logits[self.receivers]
        margin = (own[pairs, labels] - own[pairs, predicted]).astype(np.float64)
        turned = [logits.argmax(axis=1) == predicted for logits in given]
        for c in np.unique(labels):
            rows = labels == c
            moved = (towards[0][rows] - towards[1][rows]) / max(float(margin[rows].mean()), 1e-12)
            yield _reliance(
                name,
                self.explained.class_names[c],
                moved,
                turned[0][rows],
                turned[1][rows],
                self.receivers[rows],
                tests,
            )


def _reliance(
    name: str,
    class_name: str,
    moved: NDArray[np.float64],
    turned: NDArray[np.bool_],
    control: NDArray[np.bool_],
    receivers: IntArray,
    tests: int,
) -> PropertyReliance:
    """Test one property of one class; an image that received several times counts once, with its mean."""
    _, inverse = np.unique(receivers, return_inverse=True)
    each = np.bincount(inverse, weights=moved) / np.bincount(inverse)
    mean, p_value, low = float(each.mean()), 1.0, float(each.mean())
    if float(each.std()) > 1e-9:
        p_value = float(stats.ttest_1samp(each, WORTH, alternative="greater").pvalue)
        low = float(stats.t.ppf(0.05, len(each) - 1, mean, each.std(ddof=1) / np.sqrt(len(each))))
    elif mean > WORTH:
        p_value = 0.0
    p_value = min(1.0, p_value * tests)
    return PropertyReliance(
        property=name,
        class_name=class_name,
        pairs=len(moved),
        moved=mean,
        moved_low=low,
        turned=float(turned.mean()),
        turned_control=float(control.mean()),
        p_value=p_value,
        relied_on=p_value <= LEVEL,
        why=f"Given the {name} of images that are taken for another class, {turned.mean():.0%} of the {len(moved)} "
        f"images of {class_name} turn to that class, and their margins fall by {mean:.0%} more than with the {name} of "
        f"images that are taken for {class_name}, where {control.mean():.0%} turn.",
    )


def _votes(looks: Looks, explained: Explained, exchange: Exchange, seed: int) -> NDArray[np.float32]:
    """Return what each image's property adds to the logits of images of other objects, shape (N, K)."""
    rng, n, labels = generator(seed, "exchange", "votes"), len(explained), explained.labels
    right = [np.flatnonzero(explained.correct & (labels == c)) for c in range(len(explained.class_names))]
    usable = [c for c, rows in enumerate(right) if len(rows) >= FEWEST]
    times = int(np.clip(MOST_VOTES // n, FEWEST_VOTES, VOTES))
    donors = np.sort(rng.permutation(n)[: MOST_VOTES // times]).astype(np.int64)
    donors = donors[explained.outputs.predicted[donors] >= 0]  # others have no logits, nor has what they give
    total = np.zeros((len(donors), len(explained.class_names)))
    for _ in range(times):
        classes = rng.choice(usable, len(donors))
        receivers = np.array([rng.choice(right[c]) for c in classes], dtype=np.int64)
        added = _asked(looks, exchange, receivers, donors) - explained.outputs.logits[receivers]
        added = added - added.mean(axis=1, keepdims=True)
        for c in usable:  # what any donor does to receivers of this class says nothing of the donor
            rows = classes == c
            added[rows] -= added[rows].mean(axis=0) if rows.any() else 0
        total += added / times
    votes = np.full((n, total.shape[1]), np.nan, dtype=np.float32)
    votes[donors] = total
    return votes


def _asked(looks: Looks, exchange: Exchange, receivers: IntArray, donors: IntArray) -> NDArray[np.float32]:
    """Return the logits of receivers with the donors' property, in parts that fit the memory."""
    parts = range(0, len(receivers), looks.at_once)
    return np.concatenate(
        [
            looks.logits(
                exchange(looks.pixels(receivers[s : s + looks.at_once]), looks.pixels(donors[s : s + looks.at_once]))
            )
            for s in parts
        ]
    )


def _tint(images: Pixels) -> Pixels:
    """Return the mean colour of each image, weighted by brightness, over its largest channel: shape (n, C, 1, 1)."""
    weight = images.max(axis=1, keepdims=True)
    mean = (images * weight).sum(axis=(2, 3), keepdims=True) / (weight.sum(axis=(2, 3), keepdims=True) + 1e-6)
    return np.asarray(mean / (mean.max(axis=1, keepdims=True) + 1e-6), dtype=np.float32)


def _border(images: Pixels) -> Pixels:
    """Return the median colour of each image's outermost pixels, shape (n, C, 1, 1)."""
    edges = (images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1])
    return np.asarray(np.median(np.concatenate(edges, axis=2), axis=2)[:, :, None, None], dtype=np.float32)


def _object(images: Pixels) -> NDArray[np.bool_]:
    """Return where each image's object is, shape (n, H, W): the largest connected part that stands out of the border.

    What stands out is parted from the rest by the threshold of Otsu (1979), and the part widened by a pixel.
    """
    distance = np.abs(images - _border(images)).max(axis=1)
    stands_out = distance > _otsu(distance.reshape(len(distance), -1))[:, None, None]
    found = np.zeros_like(stands_out)
    for row, (mask, weight) in enumerate(zip(stands_out, distance, strict=True)):
        parts, number = ndimage.label(mask, np.ones((3, 3)))
        if number:
            mass = np.bincount(parts.ravel(), weights=weight.ravel())
            mass[0] = 0
            found[row] = parts == mass.argmax()
    return np.asarray(ndimage.binary_dilation(found, np.ones((1, 3, 3))))


def _otsu(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the threshold of each row that parts its values into the two most different kinds."""
    ordered = np.sort(values, axis=1).astype(np.float64)
    below, n = np.cumsum(ordered, axis=1)[:, :-1], ordered.shape[1]
    count = np.arange(1, n)[None]
    apart = below / count - (ordered.sum(axis=1, keepdims=True) - below) / (n - count)
    best = (count * (n - count) * apart**2).argmax(axis=1)
    rows = np.arange(len(ordered))
    return np.asarray((ordered[rows, best] + ordered[rows, best + 1]) / 2)


def _centre(images: Pixels) -> NDArray[np.float64]:
    """Return where the middle of what stands out of the border is, (row, column) in pixels, shape (n, 2)."""
    away = np.abs(images - _border(images)).mean(axis=1).astype(np.float64)
    away[away <= 0.5 * away.max(axis=(1, 2), keepdims=True)] = 0
    total = away.sum(axis=(1, 2)) + 1e-9
    rows, columns = np.mgrid[: away.shape[1], : away.shape[2]]
    return np.stack([(away * rows).sum(axis=(1, 2)) / total, (away * columns).sum(axis=(1, 2)) / total], axis=1)
