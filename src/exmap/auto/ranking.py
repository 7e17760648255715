"""Which candidate is best, which ones may be chosen at all, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score

from exmap.auto.candidates import Candidate
from exmap.auto.reliance import Judges
from exmap.groups import ErrorSetGroups
from exmap.records import Explained, IntArray
from exmap.runtime import generator

__all__ = ["Ranking", "rank"]

RESTATES = 0.5  # adjusted mutual information with the errors from which a grouping of features restates them
SAME = 0.9  # adjusted mutual information within classes from which two groupings count as one


@dataclass(frozen=True, eq=False)
class Ranking:
    """How candidates rank.

    Attributes
    ----------
    reliance : ndarray of float64, shape (candidates,)
        Mean reliance of each one's head on the groups of all others; 0 is best.
    as_is : float
        That of the classifier as it is.
    eligible : ndarray of bool, shape (candidates,)
        Which of them may be chosen.
    like_best : ndarray of float64, shape (candidates,)
        Adjusted mutual information with the best one, within classes.
    order : ndarray of int64, shape (candidates,)
        Those that may be chosen first, by rising reliance.
    confidence : float in [0, 1]
        Share of bootstrap samples in which the best one, or one almost the same, is best.
    """

    reliance: NDArray[np.float64]
    as_is: float
    eligible: NDArray[np.bool_]
    like_best: NDArray[np.float64]
    order: IntArray
    confidence: float

    @property
    def best(self) -> int:
        """The candidate that is chosen."""
        return int(self.order[0])

    @property
    def runner_up(self) -> int | None:
        """The best candidate that is not almost the same as the chosen one; None where there is none."""
        return next((int(n) for n in self.order if self.eligible[n] and self.like_best[n] < SAME), None)


def rank(
    candidates: Sequence[Candidate],
    judged: Explained,
    margins: NDArray[np.float64],
    own: NDArray[np.float64],
    *,
    draws: int,
    seed: int,
) -> Ranking:
    """Rank candidates.

    Parameters
    ----------
    candidates : sequence of Candidate
        Groupings of the judged images.
    judged : Explained
    margins : ndarray of float64, shape (candidates, N)
        Of the judged images, by each candidate's head.
    own : ndarray of float64, shape (N,)
        Of the classifier as it is.
    draws : int
        Bootstrap samples.
    seed : int
    """
    judges, labels = Judges(candidates, judged.labels), judged.labels
    errors = ErrorSetGroups().infer(judged, seed=seed).index
    eligible = np.array([_eligible(candidate, errors, labels) for candidate in candidates])
    found = judges.reliance(margins)
    order = np.lexsort((found, ~eligible))
    best = candidates[order[0]].groups.index
    like_best = np.array([_alike(best, candidate.groups.index, labels) for candidate in candidates])
    rng = generator(seed, "auto", "bootstrap")
    drawn = [np.where(eligible, judges.reliance(margins, rng), np.inf) for _ in range(draws)]
    wins = [bool(like_best[int(np.argmin(values))] >= SAME) for values in drawn]
    return Ranking(found, float(judges.reliance(own[None])[0]), eligible, like_best, order, float(np.mean(wins)))


def _eligible(candidate: Candidate, errors: IntArray, labels: IntArray) -> bool:
    """Return whether a grouping may be chosen: not the errors, and not features that restate them."""
    if candidate.representation != "features":
        return candidate.representation != "errors"
    return _alike(candidate.groups.index, errors, labels) < RESTATES


def _alike(first: IntArray, second: IntArray, labels: IntArray) -> float:
    """Return the adjusted mutual information of two groupings within classes, the mean over classes."""
    values = [
        adjusted_mutual_info_score(first[labels == label], second[labels == label]) for label in np.unique(labels)
    ]
    return float(np.mean(values))
