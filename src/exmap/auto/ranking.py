"""Which candidate is best, which ones may be chosen at all, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
NEAR = 0.02  # of worst-group accuracy, that a choice which is right may lose
FEWEST = 8  # images of a group whose accuracy is looked at


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
        Those that may be chosen first: verified ones, then the others, each by rising reliance.
    confidence : float in [0, 1]
        Chance that the choice is right. 80 % means right in 80 % of such choices, where *right* means: in worst-group
        accuracy, the chosen grouping is within 2 points of the best one that may be chosen. It is an estimate:
        groupings that were made of the same heatmaps stand in for the true groups.
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
    verified: Sequence[str] = (),
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
    verified : sequence of str
        Names of the groupings that an experiment found a shortcut in: where they may be chosen they come first.
    draws : int
        Bootstrap samples.
    seed : int
    """
    judges, labels = Judges(candidates, judged.labels), judged.labels
    errors = ErrorSetGroups().infer(judged, seed=seed).index
    eligible = np.array([_eligible(candidate, errors, labels) for candidate in candidates])
    found = judges.reliance(margins)
    first = np.array([candidate.name in verified for candidate in candidates])
    order = np.lexsort((found, ~first, ~eligible))
    best = candidates[order[0]].groups.index
    like_best = np.array([_alike(best, candidate.groups.index, labels) for candidate in candidates])
    right = margins > 0
    lost = [_lost(right[n], right[order[0]], candidate.groups.index) for n, candidate in enumerate(candidates)]
    near = (like_best >= SAME) | (np.array(lost) <= NEAR)
    rng = generator(seed, "auto", "bootstrap")
    confidence = _confidence(candidates, labels, margins, eligible, near, draws=draws, rng=rng)
    return Ranking(found, float(judges.reliance(own[None])[0]), eligible, like_best, order, confidence)


def _confidence(
    candidates: Sequence[Candidate],
    labels: IntArray,
    margins: NDArray[np.float64],
    eligible: NDArray[np.bool_],
    near: NDArray[np.bool_],
    *,
    draws: int,
    rng: np.random.Generator,
) -> float:
    """Return the chance that the choice is right.

    Each draw ranks the candidates anew, on a bootstrap sample of the images and by a random half of the judges of each
    representation. The choice is right in a draw whose winner is `near` it. Judges of one representation err together,
    so a representation counts as one witness, however many judges and draws there are. The share of draws is that of
    the witnesses, and Laplace's rule of succession makes a chance of it: with three of them, at most 80 %.
    """
    witnesses = len({candidate.representation for candidate in candidates if candidate.judges})
    right = 0
    for _ in range(draws):
        part = Judges(_half_of_judges(candidates, rng), labels)
        right += bool(near[np.argmin(np.where(eligible, part.reliance(margins, rng), np.inf))])
    return (witnesses * right / draws + 1) / (witnesses + 2)


def _half_of_judges(candidates: Sequence[Candidate], rng: np.random.Generator) -> list[Candidate]:
    """Return the candidates, of which a random half of each representation's judges judge no longer; one stays."""
    drawn = list(candidates)
    for kind in sorted({candidate.representation for candidate in candidates if candidate.judges}):
        members = [n for n, candidate in enumerate(candidates) if candidate.representation == kind]
        for n in rng.permutation(members)[(len(members) + 1) // 2 :]:
            drawn[n] = replace(candidates[n], representation="left out")
    return drawn


def _lost(right: NDArray[np.bool_], chosen: NDArray[np.bool_], index: IntArray) -> float:
    """Return what the choice loses if these groups are the true ones: of their worst accuracy, beside their own head.

    0 where no group is large enough.
    """
    large = np.flatnonzero(np.bincount(index[index >= 0]) >= FEWEST)
    if not len(large):
        return 0.0
    own, other = (min(float(each[index == group].mean()) for group in large) for each in (right, chosen))
    return own - other


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
