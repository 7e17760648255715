"""Can the last layer repair it, and would more images help? Both measured on images the heads were not fitted to.

Where it cannot, ``auto.repair=auto`` lets :class:`~exmap.retrain.Cheapest` choose among repairs of more than it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom, binom

from exmap.auto.candidates import AUTO
from exmap.evaluation import worst_share
from exmap.records import Explained, Groups, IntArray, Listener, Progress, silent
from exmap.results import DataCurvePoint, LastLayerVerdict
from exmap.retrain import DFR, Cheapest
from exmap.retrain.last_layer import halves
from exmap.runtime import generator

__all__ = ["REPAIRED_BY", "data_curve", "expected_gain", "judge_last_layer"]

REPAIRED_BY = f"{AUTO}+{Cheapest.name}"  # the method that is chosen where the last layer does not suffice
FEWEST = 8  # images of a group whose accuracy is looked at
SHORT = 0.1  # how far the worst group may stay behind the rest of its class
FAR = 0.2  # how far behind a group is that the test should notice
LEVEL, POWER = 0.05, 0.8  # of that test
MOST_NEEDED, LOOK_AHEAD = 300, 20  # images of a group that are looked for
ADDED = 2.0  # images of the mean, that are added to a group where groups are compared
HALVINGS = 1000  # behind the gain
SHARES = (0.1, 0.2, 0.5, 1.0)  # of the images that heads may be fitted to
DRAWS = 3
STRENGTHS, SUBSAMPLES = (0.3,), 5  # of DFR


def judge_last_layer(
    after: NDArray[np.float64], before: NDArray[np.float64], labels: IntArray, groups: Groups, *, seed: int = 0
) -> LastLayerVerdict:
    """State whether the last layer suffices, by margins on images that heads were not fitted to.

    Two kinds of group are told apart: one that is no longer behind the rest of its class, and one that is still 20
    points behind. The test is one-sided, at 95 % over all groups together (Bonferroni). The last layer does not suffice
    if some group fails it and lies more than 10 points behind. Otherwise the least accurate group decides. The last
    layer suffices if that group is too good to be 20 points behind, or has so many images that the test would notice
    20 points in at least 80 % of cases. In what remains, its images are too few to say.

    Parameters
    ----------
    after, before : ndarray of float64, shape (N,)
        Margins; an image is classified right where its margin is positive.
    labels : ndarray of int64, shape (N,)
    groups : Groups
        The chosen groups, of the same images.
    seed : int
        Of the halves behind the gain.
    """
    counts = groups.counts()
    large = np.flatnonzero(counts >= FEWEST)
    if len(large) < 2:
        why = f"No two groups have {FEWEST} images, so nothing was measured."
        return LastLayerVerdict(last_layer_suffices=None, before=None, after=None, group="", images=0, why=why)
    each = [_standing(int(number), after > 0, labels, groups.index) for number in large]
    first = min(float((before[groups.index == number] > 0).mean()) for number in large)
    behind = [standing for standing in each if standing.fails(len(large))]
    if behind:
        worst = min(behind, key=lambda standing: standing.chance)
    else:
        worst = min(each, key=lambda standing: standing.shrunk)
    suffices = False if behind else worst.suffices(len(large))
    needed = worst.images_needed(len(large)) if suffices is None else None
    rows = np.isin(groups.index, large)
    gain, low, high = expected_gain(after[rows] > 0, before[rows] > 0, groups.index[rows], seed=seed)
    why = (
        f"On images that the last layer was not fitted to, its worst group is right in {worst.right} of {worst.images} "
        f"(the classifier as it is: {first:.0%} in its worst) and the rest of the class in {worst.others:.0%}."
    )
    if suffices is None:
        why += f" {worst.images} images cannot tell a group that is no longer behind from one 20 points behind; " + (
            f"{needed} images of this group would be enough."
            if needed
            else "the rest of the class also has too few images."
        )
    elif suffices is False:
        why += (
            " Features that tell the group apart are missing, so more than the last layer should be retrained on "
            "groups of the training images: auto.repair=auto tries that, and keeps the cheapest repair that suffices."
        )
    elif worst.accuracy < worst.others - SHORT:
        why += " Chance alone can explain that difference."
    return LastLayerVerdict(
        last_layer_suffices=suffices,
        before=first,
        after=worst.accuracy,
        group=groups.names[worst.group],
        images=worst.images,
        images_needed=needed,
        gain=gain,
        gain_low=low,
        gain_high=high,
        why=why,
    )


@dataclass(frozen=True)
class _Standing:
    """How a group stands beside the rest of its class, or beside all others where it is its class."""

    group: int
    right: int
    images: int
    others_right: int
    others_images: int

    @property
    def accuracy(self) -> float:
        return self.right / self.images

    @property
    def others(self) -> float:
        return self.others_right / self.others_images

    @property
    def shrunk(self) -> float:
        """Its accuracy with two images like the others, so that a small group is not the worst by chance."""
        return (self.right + ADDED * self.others) / (self.images + ADDED)

    @property
    def chance(self) -> float:
        """The chance of so few right ones in a group that is no longer behind."""
        return float(self._if_level(self.images)[self.right])

    def fails(self, groups: int) -> bool:
        """Return whether it is behind by the test, and by more than 10 points, as one of so many groups."""
        return self.chance <= LEVEL / groups and self.accuracy < self.others - SHORT

    def suffices(self, groups: int) -> bool | None:
        """Return what is said of a group that does not fail: True, or None where its images are too few."""
        too_good = float(binom.sf(self.right - 1, self.images, self._far)) <= LEVEL
        return True if too_good or self.power(self.images, groups) >= POWER else None

    def power(self, images: int, groups: int) -> float:
        """Return the chance that the test notices 20 points, with so many images of the group."""
        failing = np.flatnonzero(self._if_level(images) <= LEVEL / groups)
        return float(binom.cdf(failing[-1], images, self._far)) if len(failing) else 0.0

    def images_needed(self, groups: int) -> int | None:
        """Return from how many images on the test has its power; None if the rest of the class is too small for it.

        Power falls a little from one number to the next wherever the test cannot use the image yet, so some more
        numbers are looked at.
        """
        needed = self.images + 1
        for n in range(needed, MOST_NEEDED):
            if self.power(n, groups) < POWER:
                needed = n + 1
            elif n - needed >= LOOK_AHEAD:
                return needed
        return None

    @property
    def _far(self) -> float:
        return max((self.others_right + 0.5) / (self.others_images + 1) - FAR, 0.0)

    def _if_level(self, images: int) -> NDArray[np.float64]:
        """Return the chances of at most 0, 1, ... right ones, if the group were like the others.

        The others' rate is known only as well as their images say, so it is a beta distribution, of Jeffreys' prior.
        """
        wrong = self.others_images - self.others_right
        return np.cumsum(betabinom.pmf(np.arange(images + 1), images, self.others_right + 0.5, wrong + 0.5))


def _standing(number: int, right: NDArray[np.bool_], labels: IntArray, index: IntArray) -> _Standing:
    """Return how a group stands."""
    members = index == number
    rest = (labels == labels[np.flatnonzero(members)[0]]) & ~members
    others = rest if rest.any() else ~members
    return _Standing(number, int(right[members].sum()), int(members.sum()), int(right[others].sum()), int(others.sum()))


def expected_gain(
    after: NDArray[np.bool_], before: NDArray[np.bool_], index: IntArray, *, seed: int
) -> tuple[float, float, float]:
    """Return what the worst group's accuracy gains, and the ends of its 90 % interval.

    The smallest of many accuracies is small by chance, too. So each group's images are halved at random, many times:
    one half picks the worst group, before and after, and the other half measures it. The gain is the mean over halves.
    Halves differ from the whole as much as the whole differs from the truth, so the middle 90 % of their gains are the
    interval. For that, half an image of each outcome is added to every group (Agresti and Min, 2005), so that a group
    without an error has an interval as well.

    Parameters
    ----------
    after, before : ndarray of bool, shape (N,)
        Whether each image is classified right; both of the same images, so that the gain is a paired one.
    index : ndarray of int64, shape (N,)
        Its group.
    seed : int

    Returns
    -------
    (float, float, float)
        Gain, lower end and upper end, each in [-1, 1].
    """
    rng = generator(seed, "auto", "gain")
    outcomes = 2 * before.astype(np.int64) + after  # 0: wrong twice, 1: repaired, 2: broken, 3: right twice
    numbers = np.unique(index)
    pick, measure = np.zeros((2, HALVINGS, len(numbers), 4))
    for column, number in enumerate(numbers):
        counts = np.bincount(outcomes[index == number], minlength=4)
        pick[:, column] = rng.multivariate_hypergeometric(counts, counts.sum() // 2, size=HALVINGS)
        measure[:, column] = counts - pick[:, column]
    added = rng.binomial(1, 0.5, size=measure.shape) / 2
    picked = _rates(pick, shrunk=True).argmin(axis=2)  # (2, halvings): the worst group before and after
    found = [_change(_rates(half), picked) for half in (measure, measure + added)]
    low, high = np.quantile(found[1], [0.05, 0.95])
    gain = float(found[0].mean())
    return gain, min(float(low), gain), max(float(high), gain)


def _rates(counts: NDArray[np.float64], shrunk: bool = False) -> NDArray[np.float64]:
    """Return the accuracies before and after, shape (2, halvings, groups), of counts of outcomes.

    Shrunk ones have two images of the mean of all groups added, so that small groups are not the worst by chance.
    """
    total = counts.sum(axis=2)
    right = np.stack([counts[..., 2] + counts[..., 3], counts[..., 1] + counts[..., 3]])
    if not shrunk:
        return np.asarray(right / total)
    mean = right.sum(axis=2, keepdims=True) / total.sum(axis=1)[None, :, None]
    return np.asarray((right + ADDED * mean) / (total + ADDED))


def _change(rates: NDArray[np.float64], picked: IntArray) -> NDArray[np.float64]:
    """Return how the worst group's accuracy changes in each halving."""
    before, after = np.take_along_axis(rates, picked[..., None], axis=2)[..., 0]
    return np.asarray(after - before)


def data_curve(
    explained: Explained,
    groups: Groups,
    judged: tuple[Explained, Groups] | None = None,
    *,
    draws: int = DRAWS,
    seed: int,
    listen: Listener = silent,
) -> tuple[DataCurvePoint, ...]:
    """Measure how the repair depends on the number of images, by leaving images out.

    Parameters
    ----------
    explained : Explained
        The split that is retrained on.
    groups : Groups
        The chosen groups of it.
    judged : (Explained, Groups), optional
        Other images that accuracy is measured on. By default at most half of the images are fitted to, and the other
        half is judged.
    draws : int
        Of the images, for each point.
    seed : int
    listen : Listener

    Returns
    -------
    tuple of DataCurvePoint
        By rising number of images; a share with fewer than two classes is left out.
    """
    points: list[DataCurvePoint] = []
    for number, share in enumerate(SHARES):
        listen(Progress("data curve", number, len(SHARES), "sizes"))
        drawn = list(_drawn(explained, groups, judged, share, draws, seed))
        if drawn:
            sizes, smallest, worst = zip(*drawn, strict=True)
            points.append(
                DataCurvePoint(
                    images=sizes[0],
                    smallest_group=float(np.mean(smallest)),
                    worst_group_accuracy=float(np.mean(worst)),
                    spread=float(np.std(worst)),
                )
            )
    listen(Progress("data curve", len(SHARES), len(SHARES), "sizes"))
    return tuple(points)


def _drawn(
    explained: Explained,
    groups: Groups,
    judged: tuple[Explained, Groups] | None,
    share: float,
    draws: int,
    seed: int,
) -> Iterator[tuple[int, int, float]]:
    """Yield, for each draw, how many images were fitted to, those of the smallest group, and the worst accuracy."""
    others, other_groups = judged or (explained, groups)
    for draw in range(draws):
        rng = generator(seed, "curve", draw)  # the same order for every share, so that more images hold the fewer
        if judged is None:
            fitted, scored = halves(groups.index, rng)
        else:
            fitted = rng.permutation(np.flatnonzero(groups.index >= 0))
            scored = np.flatnonzero(other_groups.index >= 0)
        rows = fitted[: max(int(share * len(fitted)), 1)]
        if len(np.unique(explained.labels[rows])) < 2:
            continue
        part = replace(groups, index=groups.index[rows], clusters=None)
        learner = DFR(STRENGTHS, subsamples=SUBSAMPLES, seed=draw)
        head = learner.fit_head(
            explained.features[rows], explained.labels[rows], part, n_classes=len(explained.class_names)
        )
        right = head.predict(others.features[scored]) == others.labels[scored]
        seen = other_groups.index[scored]
        enough = np.isin(seen, np.flatnonzero(np.bincount(seen) >= FEWEST))
        if enough.any():
            smallest = np.bincount(part.index, minlength=len(groups.names)).min()
            yield len(rows), int(smallest), worst_share(right[enough], seen[enough])
