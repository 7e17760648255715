"""Deep feature reweighting: retrain the last layer on group-balanced samples (Kirichenko et al., 2023).

As the ExMap supplement (section 2.3) uses it: features are standardised; the strength of an L1 penalty is tuned on
halves of the retraining set, by the worst *pseudo*-group's accuracy on the other half; heads fitted to 20 balanced
subsamples are averaged. The standardisation is folded into the averaged head, so the result is an ordinary layer.

:class:`ClassBalanced` is the same with the classes as groups, and so the control for DFR: last-layer retraining without
groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from exmap.records import Groups, IntArray, Listener, silent
from exmap.registry import LEARNERS
from exmap.retrain.balance import left_out, small_groups, smallest_in_parts
from exmap.retrain.balanced import MOST_ITERATIONS, STRENGTHS, BalancedRegression
from exmap.retrain.head import Head, check_samples, halves
from exmap.retrain.learner import LastLayer

__all__ = ["DFR", "ClassBalanced", "Head", "check_samples", "halves"]


@LEARNERS.register
@dataclass
class DFR(LastLayer):
    """Last-layer retraining on balanced groups, for any number of classes.

    Parameters
    ----------
    strengths : sequence of float
        Values of C to choose from; smaller is sparser.
    tuning_splits : int
        Random halvings of the retraining set to choose by; with one strength nothing is tuned.
    subsamples : int
        Balanced subsets whose heads are averaged.
    smallest_group : int
        A smaller group takes part but does not set the balanced size.
    seed, harm
        As for :class:`~exmap.retrain.LastLayer`.

    Attributes
    ----------
    head_ : Head
        Set by :meth:`fit`.
    """

    name: ClassVar[str] = "dfr"

    strengths: Annotated[Sequence[PositiveFloat], Field(min_length=1)] = STRENGTHS
    tuning_splits: PositiveInt = 5
    subsamples: PositiveInt = 20
    smallest_group: PositiveInt = 6

    def fit_head(
        self,
        features: NDArray[np.floating],
        labels: IntArray,
        groups: Groups | None,
        *,
        n_classes: int,
        head: Head | None = None,
        listen: Listener = silent,
    ) -> Head:
        """Fit the head alone.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        labels : ndarray of int64, shape (N,), in [0, n_classes)
        groups : Groups
        n_classes : int
        head : Head, optional
            Not looked at.
        listen : Listener

        Raises
        ------
        DataError
            If there are no groups, the arrays differ in length, features are not finite, or fewer than two classes have
            a group.
        """
        groups = check_samples(features, labels, groups)
        made = self._regression().fit(features, labels, groups.index, n_classes, listen=listen)
        notes = [*small_groups(groups, self.smallest_group), *left_out(groups)]
        if made.by_batches:
            notes.append(f"{n_classes:,} classes: regressions were fitted by mini-batches, to near their solutions")
        if made.stopped_early:
            notes.append(f"{made.stopped_early} logistic regressions stopped at their iteration limit")
        return Head(
            made.weight.astype(np.float32),
            made.bias.astype(np.float32),
            made.strength,
            made.tuning,
            tuple(notes),
            {"strength": made.strength},
        )

    def _regression(self) -> BalancedRegression:
        return BalancedRegression(
            self.strengths, self.tuning_splits, self.subsamples, self.smallest_group, MOST_ITERATIONS, self.seed
        )

    def expected_seconds(self, features: NDArray[np.floating], labels: IntArray, groups: Groups | None) -> float:
        """Return how long :meth:`fit_head` takes, roughly; 0 where that is not worth a word."""
        return 0.0 if groups is None else self._regression().expected_seconds(features, labels, groups.index)

    def for_parts(self, head: Head, groups: Groups | None, parts: int) -> DFR:
        """Return the learner with the strength that was chosen and a share of the subsamples.

        The same groups set the balanced size as before, though each has lost a part of its samples.
        """
        strengths = self.strengths if head.strength is None else (head.strength,)
        lighter = replace(self, strengths=strengths, subsamples=max(1, self.subsamples // parts))
        if groups is None:
            return lighter
        return replace(lighter, smallest_group=smallest_in_parts(groups.counts(), self.smallest_group, parts))


@LEARNERS.register
@dataclass
class ClassBalanced(DFR):
    """Class-balanced last-layer retraining: :class:`DFR` with the classes as groups, for any number of classes.

    LaBonte, Muthukumar and Kumar (NeurIPS 2023) retrain by SGD with class-balanced batches and choose by the worst true
    group; here the procedure is DFR's and the choice is by the worst class, so that nothing but the groups differs.

    Parameters
    ----------
    strengths, tuning_splits, subsamples, smallest_group, seed, harm
        As for :class:`DFR`.
    """

    name: ClassVar[str] = "class_balanced"
    fits_groups: ClassVar[bool] = False
    tunes_groups: ClassVar[bool] = False

    def fit_head(
        self,
        features: NDArray[np.floating],
        labels: IntArray,
        groups: Groups | None = None,
        *,
        n_classes: int,
        head: Head | None = None,
        listen: Listener = silent,
    ) -> Head:
        """Fit the head alone, as :meth:`DFR.fit_head` does; `groups` are ignored."""
        names = tuple(f"class {k}" for k in range(n_classes))
        classes = Groups(labels, names, "classes", ("class labels",))
        return super().fit_head(features, labels, classes, n_classes=n_classes, listen=listen)

    def expected_seconds(self, features: NDArray[np.floating], labels: IntArray, groups: Groups | None) -> float:
        """Return how long :meth:`fit_head` takes, roughly; 0 where that is not worth a word."""
        return self._regression().expected_seconds(features, labels, labels)
