"""Diverse prototypical ensembles: many last layers of prototypes, each on a balanced subset (To et al., ICML 2025).

A member holds one prototype per class and prefers the class whose prototype points most nearly where the image's
features point; each member learns from a balanced subset of its own, and the *inter-prototype similarity* (their
equation 4), the mean of ``|cos|`` between prototypes of the same class in different members, is penalised, so that
members settle on different features.

The ensemble is kept as one layer. With the similarity ``s * cos(x, p)`` as logits, the mean logits of all members are a
linear map of the features divided by their norm, a positive factor per image, and predict what the linear map predicts.
That is the first departure: the authors average the members' probabilities, of distances between normalised vectors
that are below 2, over which a softmax is nearly linear. Further ones: features are standardised per feature, as for
DFR, not per image; members are trained side by side, not one after another; and where the authors keep each member's
best epoch, the number of steps is chosen for all of them on halves of the retraining set, by the worst group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from exmap.errors import DataError
from exmap.evaluation import worst_share
from exmap.records import Groups, IntArray, Listener, Progress, silent
from exmap.registry import LEARNERS
from exmap.retrain.balance import balanced_subset, left_out, small_groups, smallest_in_parts
from exmap.retrain.head import Head, check_samples, each_halving, scale_of
from exmap.retrain.learner import LastLayer
from exmap.runtime import generator

__all__ = ["DPE"]

Array = NDArray[np.float32]
BATCH = 256  # the authors'
FADING, FADING_SQUARES = 0.9, 0.999  # of Adam's means
TINY = 1e-8


@LEARNERS.register
@dataclass
class DPE(LastLayer):
    """An ensemble of diverse prototypes as one last layer, for any number of classes.

    Parameters
    ----------
    members : int
        Prototypes per class. The authors' 15.
    balance : {"groups", "classes"}
        What each member's subset is balanced by. The authors balance by groups where they are known, else by classes;
        with "classes" groups choose the number of steps alone.
    steps : sequence of int
        Numbers of gradient steps, of batches of up to 256, to choose from. The authors train 20 epochs.
    diversity : float
        What a similarity of 1 between all prototypes of a class costs, beside the cross-entropy.
    temperature : float
        What cosines are multiplied by. The authors' scale of distances is 30.
    learning_rate : float
        Of Adam; prototypes begin with norm 1.
    tuning_splits : int
        Random halvings of the retraining set to choose by; with one number of steps nothing is chosen.
    smallest_group : int
        A smaller group takes part but does not set the balanced size.
    seed, harm
        As for :class:`~exmap.retrain.LastLayer`.

    Attributes
    ----------
    head_ : Head
        Set by :meth:`fit`.
    """

    name: ClassVar[str] = "dpe"

    members: PositiveInt = 15
    balance: Literal["groups", "classes"] = "groups"
    steps: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (10, 30, 100, 300)
    diversity: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 30.0
    learning_rate: PositiveFloat = 0.01
    tuning_splits: PositiveInt = 5
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
        """Fit the ensemble, in single precision.

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
        mean, spread = scale_of(features)
        scaled = np.asarray((features - mean) / spread, dtype=np.float32)
        norms = np.linalg.norm(scaled, axis=1, keepdims=True)
        inputs = scaled / np.maximum(norms, TINY)
        index = groups.index if self.balance == "groups" else np.where(groups.index < 0, -1, labels)
        tuning = self._tune(inputs, labels, index, groups.index, n_classes, listen) if len(self.steps) > 1 else {}
        steps = max(tuning, key=lambda number: tuning[number]) if tuning else self.steps[0]
        weight, present = self._train(inputs, labels, index, n_classes, [steps], "members")[steps]
        listen(Progress("retrain", 1, 1, "fits"))
        weight = weight * (self.temperature / max(float(norms.mean()), TINY)) / spread
        bias = np.where(present, -weight @ mean, -1e9)
        small = small_groups(groups, self.smallest_group) if self.balance == "groups" else ()
        return Head(
            weight.astype(np.float32),
            bias.astype(np.float32),
            tuning={f"steps={number}": score for number, score in tuning.items()},
            notes=(*small, *left_out(groups)),
            chosen={"steps": float(steps)},
        )

    def for_parts(self, head: Head, groups: Groups | None, parts: int) -> DPE:
        """Return the learner with the number of steps that was chosen."""
        lighter = replace(self, steps=(int(head.chosen["steps"]),)) if head.chosen else self
        if groups is None:
            return lighter
        return replace(lighter, smallest_group=smallest_in_parts(groups.counts(), self.smallest_group, parts))

    def _tune(
        self,
        inputs: Array,
        labels: IntArray,
        index: IntArray,
        judged: IntArray,
        n_classes: int,
        listen: Listener,
    ) -> Mapping[int, float]:
        """Return the mean worst-group accuracy on held-out halves, by the number of steps."""
        scores: dict[int, list[float]] = {}
        for number, fitted, held_out in each_halving(labels, judged, self.tuning_splits, self.seed, listen):
            name = f"half {number}"
            made = self._train(inputs[fitted], labels[fitted], index[fitted], n_classes, self.steps, name)
            for steps, (weight, present) in made.items():
                logits = np.where(present, inputs[held_out] @ weight.T.astype(np.float32), -np.inf)
                right = logits.argmax(axis=1) == labels[held_out]
                scores.setdefault(steps, []).append(worst_share(right, judged[held_out]))
        return {steps: float(np.mean(scores[steps])) for steps in self.steps if steps in scores}

    def _train(
        self, inputs: Array, labels: IntArray, index: IntArray, n_classes: int, stops: Sequence[int], name: str
    ) -> dict[int, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """Return the members' mean prototype per class, shape (K, D), and which classes there are, by number of steps.

        All members are trained at once: their prototypes have the shape (members, classes, D).
        """
        rngs = [generator(self.seed, "dpe", name, number) for number in range(self.members)]
        subsets = [balanced_subset(index, rng, smallest_group=self.smallest_group) for rng in rngs]
        classes = np.unique(labels[np.concatenate(subsets)])
        if len(classes) < 2:
            raise DataError(
                f"a balanced subset must hold samples of at least 2 classes, but all hold class {classes[0]} alone; "
                "give groups that do not mix classes, or more samples"
            )
        targets = np.searchsorted(classes, labels)
        shape = (len(classes), inputs.shape[1])
        prototypes = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in rngs])
        prototypes /= np.linalg.norm(prototypes, axis=2, keepdims=True)
        means, squares = np.zeros_like(prototypes), np.zeros_like(prototypes)
        found = {}
        batches = _Batches(inputs, targets, subsets, rngs)
        for step in range(1, max(stops) + 1):
            slope = self._slope(prototypes, *batches.drawn())
            means += (1 - FADING) * (slope - means)
            squares += (1 - FADING_SQUARES) * (slope**2 - squares)
            size = np.sqrt(squares / (1 - FADING_SQUARES**step)) + TINY
            prototypes -= self.learning_rate * means / (1 - FADING**step) / size
            if step in stops:
                weight = np.zeros((n_classes, shape[1]))
                directions = prototypes / np.linalg.norm(prototypes, axis=2, keepdims=True)
                weight[classes] = directions.mean(axis=0, dtype=np.float64)
                found[step] = weight, np.isin(np.arange(n_classes), classes)
        return {stop: found[stop] for stop in stops}

    def _slope(self, prototypes: Array, inputs: Array, targets: IntArray) -> Array:
        """Return the gradient of each member's mean cross-entropy and of the similarity between members.

        Parameters
        ----------
        prototypes : ndarray of float32, shape (M, K, D)
        inputs : ndarray of float32, shape (M, B, D)
            Of norm 1.
        targets : ndarray of int64, shape (M, B)
        """
        norms = np.linalg.norm(prototypes, axis=2, keepdims=True)
        directions = prototypes / norms
        chances = self.temperature * (inputs @ directions.transpose(0, 2, 1))
        np.exp(chances - chances.max(axis=2, keepdims=True), out=chances)
        chances /= chances.sum(axis=2, keepdims=True)
        chances -= np.arange(prototypes.shape[1]) == targets[..., None]
        slope = (self.temperature / inputs.shape[1]) * (chances.transpose(0, 2, 1) @ inputs)
        if len(prototypes) > 1 and self.diversity:
            by_class = directions.transpose(1, 0, 2)
            signs = np.sign(by_class @ by_class.transpose(0, 2, 1))
            np.einsum("kmm->km", signs)[:] = 0
            share = 2 * self.diversity / (len(signs) * len(prototypes) * (len(prototypes) - 1))
            slope += np.float32(share) * (signs @ by_class).transpose(1, 0, 2)
        slope -= (slope * directions).sum(axis=2, keepdims=True) * directions  # along a prototype no cosine changes
        return np.asarray(slope / norms, dtype=np.float32)


class _Batches:
    """What each member sees in a step: its subset, or that many of it at random."""

    def __init__(
        self,
        inputs: Array,
        targets: IntArray,
        subsets: Sequence[IntArray],
        rngs: Sequence[np.random.Generator],
    ) -> None:
        self._inputs, self._targets, self._subsets, self._rngs = inputs, targets, subsets, rngs
        rows = np.stack(subsets)  # all of one size, that of balanced groups
        self._whole = (inputs[rows], targets[rows]) if rows.shape[1] <= BATCH else None

    def drawn(self) -> tuple[Array, IntArray]:
        """Return inputs of shape (M, B, D) and their classes, shape (M, B)."""
        if self._whole is not None:
            return self._whole
        pairs = zip(self._subsets, self._rngs, strict=True)
        rows = np.stack([rng.choice(subset, BATCH, replace=False) for subset, rng in pairs])
        return self._inputs[rows], self._targets[rows]
