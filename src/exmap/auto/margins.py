"""Margins of images by last layers that were not fitted to them: what candidates are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from exmap.auto.effort import Effort
from exmap.records import Explained, Groups, IntArray, Listener, Progress
from exmap.retrain import DFR
from exmap.runtime import generator
from exmap.threads import usable_cores

__all__ = ["Images", "all_margins", "held_out_margins", "margins_of", "other_margins"]

WORTH_PROCESSES = 1_000_000  # numbers in the features; below, fits are quicker than processes start


@dataclass(frozen=True, eq=False)
class Images:
    """What last layers are fitted to, or judged by: arrays alone, which processes share.

    Attributes
    ----------
    features : ndarray of float, shape (N, D)
    labels : ndarray of int64, shape (N,)
    n_classes : int
    """

    features: NDArray[np.floating]
    labels: IntArray
    n_classes: int

    @classmethod
    def of(cls, explained: Explained) -> Images:
        """Return those of an explained split."""
        return cls(explained.features, explained.labels, len(explained.class_names))

    def rows(self, rows: IntArray) -> Images:
        """Return some of them."""
        return Images(self.features[rows], self.labels[rows], self.n_classes)


def margins_of(logits: NDArray[np.floating], labels: IntArray) -> NDArray[np.float64]:
    """Return how far each sample's own logit lies above the largest other one, shape (N,)."""
    rows, values = np.arange(len(labels)), np.array(logits, dtype=np.float64)
    own = values[rows, labels]
    values[rows, labels] = -np.inf
    return np.asarray(own - values.max(axis=1))


def all_margins(
    candidates: Sequence[tuple[str, Groups]],
    fitted: Images,
    judged: Images | None,
    *,
    effort: Effort,
    seed: int,
    listen: Listener,
) -> NDArray[np.float64]:
    """Return the margins of every candidate's last layers on images they were not fitted to.

    Parameters
    ----------
    candidates : sequence of (str, Groups)
        Name and groups of the images that are fitted to.
    fitted : Images
    judged : Images or None
        None judges one half of the fitted images by what is fitted to the other.
    effort : Effort
    seed : int
    listen : Listener

    Returns
    -------
    ndarray of float64, shape (candidates, N)
    """
    workers = usable_cores() if fitted.features.size > WORTH_PROCESSES else 1
    fits = Parallel(workers, return_as="generator")(
        delayed(held_out_margins)(fitted, groups, effort=effort, seed=seed)
        if judged is None
        else delayed(other_margins)(fitted, groups, judged, effort=effort)
        for _, groups in candidates
    )
    rows = []
    for (name, _), found in zip(candidates, fits, strict=True):
        rows.append(found)
        listen(Progress("candidates", len(rows), len(candidates), "heads", name))
    return np.array(rows)


def held_out_margins(images: Images, groups: Groups, *, effort: Effort, seed: int) -> NDArray[np.float64]:
    """Return every image's margin by heads fitted to the half it does not lie in, the mean over halvings, shape (N,).

    The halves depend on the seed alone, so that all groupings are compared over the same ones. A head's scale says
    nothing of it, so margins are divided by their mean size before halvings are averaged.
    """
    n = len(images.labels)
    repeats, total = effort.halvings(n), np.zeros(n)
    for number in range(repeats):
        side = generator(seed, "auto", "halves", number).permutation(n) % 2
        for part in (0, 1):
            rows, others = np.flatnonzero(side != part), np.flatnonzero(side == part)
            total[others] += _fitted_margins(images, groups, rows, images.rows(others), effort)
    return total / repeats


def other_margins(images: Images, groups: Groups, judged: Images, *, effort: Effort) -> NDArray[np.float64]:
    """Return the margins of other images by heads fitted to all of one split, the mean over fits, shape (N,)."""
    rows = np.arange(len(images.labels))
    fits = [_fitted_margins(images, groups, rows, judged, effort, seed) for seed in range(effort.refits)]
    return np.asarray(np.mean(fits, axis=0))


def _fitted_margins(
    images: Images, groups: Groups, rows: IntArray, judged: Images, effort: Effort, seed: int = 0
) -> NDArray[np.float64]:
    """Return the margins of judged images by a head fitted to some of the others, divided by their mean size."""
    learner = DFR(effort.strengths, tuning_splits=effort.tuning_splits, subsamples=effort.subsamples, seed=seed)
    fitted, part = images.rows(rows), replace(groups, index=groups.index[rows], clusters=None)
    head = learner.fit_head(fitted.features, fitted.labels, part, n_classes=images.n_classes)
    found = margins_of(judged.features @ head.weight.T + head.bias, judged.labels)
    return np.asarray(found / max(float(np.abs(found).mean()), 1e-12))
