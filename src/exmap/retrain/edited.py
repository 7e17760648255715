"""Last layers fitted to features that a linear edit has changed first, and folded back into one layer.

A learner says which edits are possible, from the mildest choice to the boldest; the edit and the strength of the L1
penalty are chosen together on halves of the retraining set, by the worst group of the other half, and the layer is
fitted as DFR fits it (:mod:`exmap.retrain.balanced`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from exmap.evaluation import worst_share
from exmap.records import Groups, IntArray, Listener, Progress, silent
from exmap.retrain.balance import smallest_in_parts
from exmap.retrain.balanced import BalancedRegression
from exmap.retrain.batches import in_words
from exmap.retrain.head import Head, check_samples, each_halving
from exmap.retrain.learner import LastLayer

__all__ = ["Edit", "EditedFeatures", "Samples"]

LOST = 1e-6  # of a feature's spread: what an edit leaves of it below that is rounding


@dataclass(frozen=True)
class Edit:
    """A linear change of features: ``x - left @ (right.T @ x)``, and zero where `kept` is False.

    Attributes
    ----------
    kept : ndarray of bool, shape (D,)
    left, right : ndarray of float64, shape (D, R)
    """

    kept: NDArray[np.bool_]
    left: NDArray[np.float64]
    right: NDArray[np.float64]

    def applied(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return edited features, shape (N, D)."""
        edited = features - (features @ self.right) @ self.left.T
        return np.asarray(np.where(self.kept, edited, 0.0), dtype=np.float64)

    def folded(self, weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weight, shape (K, D), that does to features what `weight` does to edited ones."""
        weight = np.where(self.kept, weight, 0.0)
        return np.asarray(weight - (weight @ self.left) @ self.right.T, dtype=np.float64)

    def without_rounding(self, features: NDArray[np.floating]) -> Edit:
        """Return the edit with zero for features of which no more than rounding is left."""
        spread = features.std(axis=0, dtype=np.float64)
        return replace(self, kept=self.kept & (self.applied(features).std(axis=0) > LOST * spread))


@dataclass(frozen=True)
class Samples:
    """What edits are found on.

    Attributes
    ----------
    features : ndarray of float, shape (N, D)
    labels, index : ndarray of int64, shape (N,)
        Classes and groups; a group of -1 is unassigned.
    wrong : ndarray of bool, shape (N,)
        What the classifier's own head gets wrong; all False without one.
    """

    features: NDArray[np.floating]
    labels: IntArray
    index: IntArray
    wrong: NDArray[np.bool_]

    def part(self, rows: IntArray) -> Samples:
        """Return the samples at `rows` alone."""
        return Samples(self.features[rows], self.labels[rows], self.index[rows], self.wrong[rows])


@dataclass
class EditedFeatures(LastLayer):
    """Base of learners that edit the features before they fit a last layer to them."""

    strengths: Annotated[Sequence[PositiveFloat], Field(min_length=1)] = (1.0, 0.3, 0.1, 0.03)
    tuning_splits: PositiveInt = 5
    subsamples: PositiveInt = 20
    smallest_group: PositiveInt = 6

    amount: ClassVar[str]  # what the choices between edits are called

    def amounts(self) -> Sequence[float]:
        """Return the choices between edits."""
        raise NotImplementedError

    def with_amount(self, amount: float) -> Self:
        """Return the learner without a choice between edits."""
        raise NotImplementedError

    def edits(self, samples: Samples) -> list[Edit]:
        """Return the edit for each of the amounts; where two would do the same, the same object."""
        raise NotImplementedError

    def balanced_by(self, labels: IntArray, index: IntArray) -> IntArray:
        """Return what the fit balances: the groups, or the classes."""
        return index

    def check_head(self, head: Head | None, shape: tuple[int, int]) -> None:
        """Raise DataError for a head that edits cannot be found with; `shape` is (classes, features)."""

    def notes(self, edit: Edit, samples: Samples, groups: Groups) -> list[str]:
        """Return sentences about the fit that was made."""
        return []

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
            The classifier's own, for learners that look at its errors.
        listen : Listener

        Raises
        ------
        DataError
            If there are no groups, the arrays differ in length, features are not finite, or fewer than two classes have
            a group; and what the learner's edits need.
        """
        self.check_head(head, (n_classes, features.shape[1]))
        groups = check_samples(features, labels, groups)
        wrong = np.zeros(len(labels), dtype=bool) if head is None else head.predict(features) != labels
        samples = Samples(features, labels, groups.index, wrong)
        grid = list(product(self.amounts(), self.strengths))
        if seconds := self.expected_seconds(features, labels, groups):
            note = f"all fits take about {in_words(seconds)}"
            listen(Progress("tune", 0, self.tuning_splits, "splits", note, at_once=True))
        tuning = self._tune(samples, n_classes, listen) if len(grid) > 1 else {}
        amount, strength = max(grid, key=lambda pair: tuning[pair]) if tuning else grid[0]
        edit = self.with_amount(amount).edits(samples)[0].without_rounding(features)
        made = self._regression((strength,), self.subsamples).fit(
            edit.applied(features), labels, self.balanced_by(labels, groups.index), n_classes, listen=_fits(listen)
        )
        notes = self.notes(edit, samples, groups)
        if made.stopped_early:
            notes.append(f"{made.stopped_early} logistic regressions stopped at their iteration limit")
        return Head(
            edit.folded(made.weight).astype(np.float32),
            made.bias.astype(np.float32),
            strength,
            {f"{self.amount}={a:g}, strength={s:g}": score for (a, s), score in tuning.items()},
            tuple(notes),
            {self.amount: amount, "strength": strength},
        )

    def expected_seconds(self, features: NDArray[np.floating], labels: IntArray, groups: Groups | None) -> float:
        """Return how long :meth:`fit_head` takes, roughly; 0 where that is not worth a word."""
        if groups is None:
            return 0.0
        grid = len(self.amounts()) * len(self.strengths)
        fits = self.subsamples + (self.tuning_splits * grid / 2 if grid > 1 else 0)
        balanced = self.balanced_by(labels, groups.index)
        return fits * self._regression(self.strengths[:1], 1).expected_seconds(features, labels, balanced)

    def for_parts(self, head: Head, groups: Groups | None, parts: int) -> Self:
        """Return the learner with what was chosen and a share of the subsamples."""
        lighter = replace(self, subsamples=max(1, self.subsamples // parts))
        if head.chosen:
            lighter = replace(lighter, strengths=(head.chosen["strength"],)).with_amount(head.chosen[self.amount])
        if groups is None:
            return lighter
        return replace(lighter, smallest_group=smallest_in_parts(groups.counts(), self.smallest_group, parts))

    def _regression(self, strengths: Sequence[float], subsamples: int) -> BalancedRegression:
        return BalancedRegression(strengths, 1, subsamples, self.smallest_group, seed=self.seed)

    def _tune(self, samples: Samples, n_classes: int, listen: Listener) -> Mapping[tuple[float, float], float]:
        """Return the mean worst-group accuracy on held-out halves, by amount and strength."""
        scores: dict[tuple[float, float], list[float]] = {}
        halvings = each_halving(samples.labels, samples.index, self.tuning_splits, self.seed, listen)
        for _, fitted, held_out in halvings:
            half = samples.part(fitted)
            balanced = self.balanced_by(half.labels, half.index)
            edits = self.edits(half)
            others = samples.part(held_out)
            shares = {
                number: self._shares(edit, half, balanced, others, n_classes)
                for number, edit in {id(edit): edit for edit in edits}.items()
            }
            for amount, edit in zip(self.amounts(), edits, strict=True):
                for strength, share in shares[id(edit)].items():
                    scores.setdefault((amount, strength), []).append(share)
        return {pair: float(np.mean(found)) for pair, found in scores.items()}

    def _shares(
        self, edit: Edit, half: Samples, balanced: IntArray, others: Samples, n_classes: int
    ) -> dict[float, float]:
        """Return the worst group's accuracy among others after fits to one half, by strength."""
        edit = edit.without_rounding(half.features)
        edited, seen = edit.applied(half.features), edit.applied(others.features)
        shares = {}
        path = self._regression(self.strengths, 1).path(edited, half.labels, balanced, n_classes)
        for strength, (weight, bias) in path.items():
            right = (seen @ weight.T + bias).argmax(axis=1) == others.labels
            shares[strength] = worst_share(right, others.index)
        return shares


def _fits(listen: Listener) -> Listener:
    """Return a listener that hears of the fits alone: what they take is said before, for all of them."""
    return lambda progress: listen(progress) if progress.task == "retrain" else None
