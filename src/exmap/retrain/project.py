"""Project the directions of strategies out of the features: P-ClArC (Anders et al., Information Fusion 2022).

The direction of a strategy is the difference between the means of a class's groups. P-ClArC removes what features hold
along it, so that groups no longer differ there; as the layer that follows is fitted again, the constant that the paper
puts in its place makes no difference. Along the plain difference that is the paper's orthogonal projection. With the
within-group covariance (shrunken, Ledoit and Wolf 2004) it is removed as far as the linear discriminant sees it, which
is the least change that makes the group means equal (LEACE, Belrose et al., NeurIPS 2023; pattern and filter in Pahde
et al., 2022). Classes keep what tells them apart: differences are taken inside each class alone.

Departures: directions are those of the penultimate features; several strategies are removed at once, as the leading
singular vectors of all differences, every group alike; how many, with the strength of the L1 penalty, is chosen on
halves of the retraining set by the worst group. A group-balanced regression as DFR's is fitted after, and the
projection is folded into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt
from sklearn.covariance import ledoit_wolf

from exmap.records import Groups, IntArray
from exmap.registry import LEARNERS
from exmap.retrain.balance import left_out, small_groups
from exmap.retrain.edited import Edit, EditedFeatures, Samples
from exmap.retrain.head import scale_of

__all__ = ["Project", "group_differences"]

NEGLIGIBLE = 1e-6  # of the largest singular value: below it there is no direction


@LEARNERS.register
@dataclass
class Project(EditedFeatures):
    """Last-layer retraining after the directions of strategies are projected out, for any number of classes.

    Parameters
    ----------
    strengths : sequence of float
        Values of C to choose from; smaller is sparser.
    tuning_splits : int
        Random halvings of the retraining set to choose by; with one number and one strength nothing is tuned.
    subsamples : int
        Group-balanced subsets whose heads are averaged.
    smallest_group : int
        A smaller group takes part but does not set the balanced size, and gives no direction.
    directions : sequence of int
        How many leading directions are projected out, to choose from; 0 is DFR. Where there are fewer, it is all.
    covariance : {"shrunken", "none"}
        Whether directions are removed as the linear discriminant sees them, or by an orthogonal projection of the
        standardised features.
    seed, harm
        As for :class:`~exmap.retrain.LastLayer`.

    Attributes
    ----------
    head_ : Head
        Set by :meth:`fit`.
    """

    name: ClassVar[str] = "project"
    amount: ClassVar[str] = "directions"

    directions: Annotated[Sequence[NonNegativeInt], Field(min_length=1)] = (1, 2, 4, 8, 16)
    covariance: Literal["shrunken", "none"] = "shrunken"

    def amounts(self) -> Sequence[float]:
        """Return the numbers of directions."""
        return self.directions

    def with_amount(self, amount: float) -> Project:
        """Return the learner with one number of directions."""
        return replace(self, directions=(int(amount),))

    def edits(self, samples: Samples) -> list[Edit]:
        """Return the projection for each number of directions."""
        _, spread = scale_of(samples.features)
        scaled = samples.features / spread
        differences, rest = group_differences(scaled, samples.labels, samples.index, self.smallest_group)
        whitening, back = self._whitening(rest)
        sizes, vectors = np.linalg.svd(differences @ whitening, full_matrices=False)[1:]
        vectors = vectors[sizes > NEGLIGIBLE * max(sizes.max(initial=0.0), 1e-12)].T
        left, right = (back @ vectors) * spread[:, None], (whitening @ vectors) / spread[:, None]
        kept = np.ones(len(spread), dtype=bool)
        numbers = [min(number, left.shape[1]) for number in self.directions]
        edits = {number: Edit(kept, left[:, :number], right[:, :number]) for number in numbers}
        return [edits[number] for number in numbers]

    def notes(self, edit: Edit, samples: Samples, groups: Groups) -> list[str]:
        """Return sentences about directions and groups."""
        number = edit.left.shape[1]
        said = f"{number} direction{'s' * (number != 1)} of {len(edit.kept)} features projected out"
        if not number and 0 not in self.directions:
            said = "no class has two groups of enough samples to tell a direction by, so nothing was projected out"
        return [said, *small_groups(groups, self.smallest_group), *left_out(groups)]

    def _whitening(self, rest: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the square root of the inverse within-group covariance, and that of the covariance."""
        size = rest.shape[1]
        if self.covariance == "none" or len(rest) < 2 or not rest.any():
            return np.eye(size), np.eye(size)
        values, vectors = np.linalg.eigh(ledoit_wolf(rest, assume_centered=True)[0])
        roots = np.sqrt(np.maximum(values, NEGLIGIBLE * values.max()))
        return (vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T


def group_differences(
    features: NDArray[np.float64], labels: IntArray, index: IntArray, smallest_group: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how the means of groups differ inside their classes, and what is left of the features without them.

    Parameters
    ----------
    features : ndarray of float64, shape (N, D)
    labels, index : ndarray of int64, shape (N,)
        Classes and groups; a group of -1 has no part. A group of several classes is one in each of them.
    smallest_group : int
        A smaller one has no part.

    Returns
    -------
    ndarray of float64, shape (G, D)
        The mean of each group less the mean of the means of its class.
    ndarray of float64, shape (M, D)
        The M samples in these groups less their group's mean.

    Examples
    --------
    >>> x = np.array([[0.0], [0.0], [4.0], [4.0]])
    >>> group_differences(x, np.array([0, 0, 0, 0]), np.array([0, 0, 1, 1]), 1)[0].ravel()
    array([-2.,  2.])
    """
    differences, rest = [np.empty((0, features.shape[1]))], [np.empty((0, features.shape[1]))]
    for label in np.unique(labels):
        own = labels == label
        parts = [features[own & (index == group)] for group in np.unique(index[own & (index >= 0)])]
        parts = [part for part in parts if len(part) >= smallest_group]
        means = np.array([part.mean(axis=0) for part in parts])
        rest += [part - mean for part, mean in zip(parts, means, strict=True)]
        if len(parts) > 1:
            differences.append(means - means.mean(axis=0))
    return np.concatenate(differences), np.concatenate(rest)
