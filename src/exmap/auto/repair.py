"""Can the last layer repair it, and would more images help? Both measured on images the heads were not fitted to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.auto.shortcut import upper_bound
from exmap.evaluation import worst_share
from exmap.groups import Evidence
from exmap.records import Groups, IntArray
from exmap.retrain import DFR
from exmap.retrain.last_layer import halves
from exmap.runtime import generator

__all__ = ["DataPoint", "LastLayer", "data_curve", "judge_last_layer"]

FEWEST = 8  # images of a group whose accuracy is looked at
SHORT = 0.1  # how far the worst group may stay behind the rest of its class
SHARES = (0.1, 0.2, 0.5, 1.0)  # of the images that heads may be fitted to
DRAWS = 3
QUICK = {"strengths": (0.3,), "subsamples": 5}


@dataclass(frozen=True)
class LastLayer:
    """Whether retraining the last layer is enough.

    Attributes
    ----------
    last_layer_suffices : bool or None
        True where the worst group stays behind the rest of its class by at most 10 points; False where it stays behind
        by more even at the upper end of its accuracy's interval; None where its images are too few to say.
    before, after : float
        Accuracy of the worst group with the classifier as it is, and with a last layer retrained on other images.
    group : str
        The worst one afterwards.
    images : int
        In it.
    why : str
        In one sentence; where the last layer does not suffice, with what would.
    """

    last_layer_suffices: bool | None
    before: float
    after: float
    group: str
    images: int
    why: str

    def as_record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class DataPoint:
    """What so many images would have given.

    Attributes
    ----------
    images : int
        That heads were fitted to.
    smallest_group : int
        Images of its smallest group, on average.
    worst_group_accuracy : float
        Over the chosen groups, on other images; the mean over draws.
    spread : float
        Standard deviation over draws.
    """

    images: int
    smallest_group: float
    worst_group_accuracy: float
    spread: float

    def as_record(self) -> dict[str, float]:
        """Return it as plain values."""
        return asdict(self)


def judge_last_layer(
    after: NDArray[np.float64], before: NDArray[np.float64], labels: IntArray, groups: Groups
) -> LastLayer:
    """Compare the worst group's accuracy before and after, by margins on images that heads were not fitted to.

    Parameters
    ----------
    after, before : ndarray of float64, shape (N,)
        Margins; an image is classified right where its margin is positive.
    labels : ndarray of int64, shape (N,)
    groups : Groups
        The chosen groups, of the same images.
    """
    counts = groups.counts()
    large = np.flatnonzero(counts >= FEWEST)
    nan = float("nan")
    if len(large) < 2:
        return LastLayer(None, nan, nan, "", 0, f"No two groups have {FEWEST} images, so nothing was measured.")

    def share(margins: NDArray[np.float64], members: NDArray[np.bool_]) -> float:
        return float((margins[members] > 0).mean())

    accuracy = [share(after, groups.index == number) for number in large]
    worst = int(large[int(np.argmin(accuracy))])
    members = groups.index == worst
    rest = (labels == labels[np.flatnonzero(members)[0]]) & ~members
    others = share(after, rest) if rest.any() else share(after, ~members)
    first = min(share(before, groups.index == number) for number in large)
    right, images = int((after[members] > 0).sum()), int(members.sum())
    suffices = True if right / images >= others - SHORT else None
    if suffices is None and upper_bound(right, images) < others - SHORT:
        suffices = False
    why = (
        f"On images that the last layer was not fitted to, its worst group is right in {right} of {images} "
        f"(the classifier as it is: {first:.0%} in its worst) and the rest of the class in {others:.0%}."
    )
    if suffices is None:
        why += " That is worse, but so few images cannot say whether the features are at fault."
    if suffices is False:
        why += (
            " Features that tell the group apart are missing, so the whole network should be retrained on groups of "
            "the training images: exmap[...]+subg or exmap[...]+group_dro with exmap bench."
        )
    return LastLayer(suffices, first, right / images, groups.names[worst], images, why)


def data_curve(
    evidence: Evidence, judge: Evidence, groups: Groups, judged: Groups, *, held_out: bool, seed: int
) -> tuple[DataPoint, ...]:
    """Measure how the repair depends on the number of images, by leaving images out.

    Parameters
    ----------
    evidence : Evidence
        Of the split that is retrained on, with features.
    judge : Evidence
        Of the images that accuracy is measured on.
    groups, judged : Groups
        The chosen groups of either.
    held_out : bool
        Whether both are the same images: then half of them are fitted to at most, and the other half is judged.
    seed : int

    Returns
    -------
    tuple of DataPoint
        By rising number of images; a share with fewer than two classes is left out.
    """
    features, others = evidence.features, judge.features
    assert features is not None
    assert others is not None
    n_classes, points = len(evidence.class_names), []
    for share in SHARES:
        sizes, smallest, worst = [], [], []
        for draw in range(DRAWS):
            rng = generator(seed, "curve", draw)  # the same order for every share, so that more images hold the fewer
            if held_out:
                fitted, scored = halves(groups.index, rng)
            else:
                fitted = rng.permutation(np.flatnonzero(groups.index >= 0))
                scored = np.flatnonzero(judged.index >= 0)
            rows = fitted[: max(int(share * len(fitted)), 1)]
            counts = np.bincount(groups.index[rows], minlength=len(groups.names))
            if len(np.unique(evidence.labels[rows])) < 2:
                continue
            part = Groups(groups.index[rows], groups.names, groups.source, groups.labels_used)
            head = DFR(**QUICK, seed=draw).fit_head(features[rows], evidence.labels[rows], part, n_classes=n_classes)  # type: ignore[arg-type]
            right = head.predict(others[scored]) == judge.labels[scored]
            seen = judged.index[scored]
            enough = np.isin(seen, np.flatnonzero(np.bincount(seen) >= FEWEST))
            if enough.any():
                worst.append(worst_share(right[enough], seen[enough]))
                sizes.append(len(rows))
                smallest.append(int(counts.min()))
        if worst:
            points.append(DataPoint(sizes[0], float(np.mean(smallest)), float(np.mean(worst)), float(np.std(worst))))
    return tuple(points)
