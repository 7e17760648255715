"""Can the last layer repair it, and would more images help? Both measured on images the heads were not fitted to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from exmap.auto.shortcut import upper_bound
from exmap.evaluation import worst_share
from exmap.records import Explained, Groups, IntArray
from exmap.results import DataCurvePoint, LastLayerVerdict
from exmap.retrain import DFR
from exmap.retrain.last_layer import halves
from exmap.runtime import generator

__all__ = ["data_curve", "judge_last_layer"]

FEWEST = 8  # images of a group whose accuracy is looked at
SHORT = 0.1  # how far the worst group may stay behind the rest of its class
SHARES = (0.1, 0.2, 0.5, 1.0)  # of the images that heads may be fitted to
DRAWS = 3
STRENGTHS, SUBSAMPLES = (0.3,), 5  # of DFR


def judge_last_layer(
    after: NDArray[np.float64], before: NDArray[np.float64], labels: IntArray, groups: Groups
) -> LastLayerVerdict:
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
    if len(large) < 2:
        why = f"No two groups have {FEWEST} images, so nothing was measured."
        return LastLayerVerdict(last_layer_suffices=None, before=None, after=None, group="", images=0, why=why)

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
    return LastLayerVerdict(
        last_layer_suffices=suffices,
        before=first,
        after=right / images,
        group=groups.names[worst],
        images=images,
        why=why,
    )


def data_curve(
    explained: Explained,
    groups: Groups,
    judged: tuple[Explained, Groups] | None = None,
    *,
    draws: int = DRAWS,
    seed: int,
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

    Returns
    -------
    tuple of DataCurvePoint
        By rising number of images; a share with fewer than two classes is left out.
    """
    points = []
    for share in SHARES:
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
