"""NeuronTune: leave out the features that misclassified images are full of (Zheng, Ye and Zhang, ICML 2025).

Where a classifier follows a shortcut, the images of a class that it gets wrong show what led it astray. For each class
and each feature, the *spuriousness score* is the median magnitude of the feature among the images of the class that the
classifier gets wrong, less that among those it gets right (their equation 2). Features whose score is above a threshold
for some class are set to zero, and the last layer is retrained on class-balanced samples.

Departures: the authors retrain by SGD from ERM's head on training images and choose the epoch by the sum of all
absolute scores, with the threshold 0; here the layer is fitted as DFR fits it, with the classes as groups, and the
threshold, in standard deviations of the feature, is chosen on halves of the retraining set by the worst group. The
paper's threshold is among the choices. Zeroed features have no weight in the layer that is kept, so it is an ordinary
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat

from exmap.records import Groups, IntArray
from exmap.registry import LEARNERS
from exmap.retrain.edited import Edit, EditedFeatures, Samples
from exmap.retrain.head import Head, check_own_head

__all__ = ["NeuronTune", "spuriousness"]


@LEARNERS.register
@dataclass
class NeuronTune(EditedFeatures):
    """Last-layer retraining without the features that ERM's errors show, for any number of classes.

    Parameters
    ----------
    strengths : sequence of float
        Values of C to choose from; smaller is sparser.
    tuning_splits : int
        Random halvings of the retraining set to choose by; with one threshold and one strength nothing is tuned.
    subsamples : int
        Class-balanced subsets whose heads are averaged.
    smallest_group : int
        A smaller class takes part but does not set the balanced size.
    thresholds : sequence of float
        How far a feature's score must be above zero to be left out, in standard deviations of the feature, to choose
        from. The authors' is 0.
    seed, harm
        As for :class:`~exmap.retrain.LastLayer`.

    Attributes
    ----------
    head_ : Head
        Set by :meth:`fit`.

    Notes
    -----
    A threshold that would leave no feature leaves all. The fit needs no groups; thresholds and strengths are chosen by
    the worst of them.
    """

    name: ClassVar[str] = "neurontune"
    fits_groups: ClassVar[bool] = False
    amount: ClassVar[str] = "threshold"

    thresholds: Annotated[Sequence[NonNegativeFloat], Field(min_length=1)] = (0.0, 0.25, 0.5, 1.0, 2.0)

    def amounts(self) -> Sequence[float]:
        """Return the thresholds."""
        return self.thresholds

    def with_amount(self, amount: float) -> NeuronTune:
        """Return the learner with one threshold."""
        return replace(self, thresholds=(amount,))

    def balanced_by(self, labels: IntArray, index: IntArray) -> IntArray:
        """Return the classes: groups have no part in the fit."""
        return labels

    def edits(self, samples: Samples) -> list[Edit]:
        """Return which features each threshold leaves."""
        scores = spuriousness(samples.features, samples.labels, samples.wrong)
        spread = samples.features.std(axis=0, dtype=np.float64)
        none = np.zeros((len(spread), 0))
        masks = [~(scores > threshold * spread).any(axis=0) for threshold in self.thresholds]
        masks = [kept if kept.any() else np.ones_like(kept) for kept in masks]
        edits = {kept.tobytes(): Edit(kept, none, none) for kept in masks}
        return [edits[kept.tobytes()] for kept in masks]

    def notes(self, edit: Edit, samples: Samples, groups: Groups) -> list[str]:
        """Return sentences about features left out, and about classes that tell nothing of them."""
        notes = [f"{int((~edit.kept).sum())} of {len(edit.kept)} features were set to zero"]
        right = [k for k in np.unique(samples.labels) if not samples.wrong[samples.labels == k].any()]
        if right:
            numbers = ", ".join(map(str, right[:5])) + ", ..." * (len(right) > 5)
            which, it = ("classes", "them") if len(right) > 1 else ("class", "it")
            notes.append(
                f"the classifier gets no image of {which} {numbers} wrong, so nothing is learned of features from {it}"
            )
        return notes

    def check_head(self, head: Head | None, shape: tuple[int, int]) -> None:
        """Raise DataError without ERM's head, whose errors are looked at, and for one for other features or classes."""
        missing = "NeuronTune looks at what the last layer gets wrong, and there is none"
        check_own_head(head, shape, wants="NeuronTune needs", missing=missing)


def spuriousness(features: NDArray[np.floating], labels: IntArray, wrong: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return by how much more misclassified images of each class show of each feature than the others.

    Parameters
    ----------
    features : ndarray of float, shape (N, D)
    labels : ndarray of int64, shape (N,)
    wrong : ndarray of bool, shape (N,)

    Returns
    -------
    ndarray of float64, shape (K, D)
        For the K classes among the labels, in ascending order: median magnitude among those that are wrong less that
        among those that are right; 0 for a class that has only one of them.

    Examples
    --------
    >>> x = np.array([[1.0, 5.0], [2.0, -5.0], [3.0, 0.0]])
    >>> spuriousness(x, np.array([0, 0, 0]), np.array([False, True, True]))
    array([[ 1.5, -2.5]])
    """
    sizes = np.abs(features, dtype=np.float64)
    scores = np.zeros((len(np.unique(labels)), features.shape[1]))
    for row, label in zip(scores, np.unique(labels), strict=True):
        own = labels == label
        if wrong[own].any() and not wrong[own].all():
            row[:] = np.median(sizes[own & wrong], axis=0) - np.median(sizes[own & ~wrong], axis=0)
    return scores
