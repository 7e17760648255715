"""Automatic feature reweighting: retrain the last layer on what ERM gets wrong (Qiu et al., ICML 2023).

The fit needs no groups. A sample weighs ``exp(-gamma * p) / count of its class``, with p the probability that ERM's
own head gives its class; from that head, full-batch gradient descent minimises the weighted cross-entropy plus
``lambda * |change|^2`` over weights and biases. As in the authors' code (github.com/AndPotap/afr), features stay as
they are and the norm of each gradient is limited. They choose gamma, lambda and the step to stop at by the worst group
of a validation set; here gamma and lambda are chosen on halves of the retraining set, as DFR's strength is, and the
number of steps is fixed.

The changes of all classes sum to zero after every step, because the gradients do. The last class is therefore never
computed, which halves the work where there are two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from exmap.errors import NumericalError
from exmap.evaluation import worst_share
from exmap.records import FloatArray, Groups, IntArray, Listener, Progress, silent
from exmap.registry import LEARNERS
from exmap.retrain.head import Head, check_own_head, check_samples, each_halving
from exmap.retrain.learner import LastLayer

__all__ = ["AFR", "sample_weights"]


@LEARNERS.register
@dataclass
class AFR(LastLayer):
    """Last-layer retraining on samples weighted by ERM's errors, for any number of classes.

    Parameters
    ----------
    gammas : sequence of float
        How much ERM's errors weigh, to choose from; 0 weighs the classes alone. The authors search 33 values in
        [4, 20] for Waterbirds and 10 in [1, 3] for CelebA; the default thins both out.
    lambdas : sequence of float
        Penalties of the squared distance from ERM's head, to choose from. Theirs are 0 to 0.3 and 0.001 to 0.1.
    steps : int
        Of gradient descent; theirs are 500 and 1000.
    learning_rate : float
        Theirs are 0.01 and 0.02.
    largest_gradient : float
        A gradient of larger norm is scaled down to it.
    tuning_splits : int
        Random halvings of the retraining set to choose by; with one gamma and one lambda nothing is tuned.
    seed, harm
        As for :class:`~exmap.retrain.LastLayer`.

    Attributes
    ----------
    head_ : Head
        Set by :meth:`fit`.
    """

    name: ClassVar[str] = "afr"
    fits_groups: ClassVar[bool] = False

    gammas: Annotated[Sequence[NonNegativeFloat], Field(min_length=1)] = (1.0, 2.0, 3.0, 4.0, 8.0, 12.0, 16.0, 20.0)
    lambdas: Annotated[Sequence[NonNegativeFloat], Field(min_length=1)] = (0.0, 0.01, 0.1, 0.3)
    steps: NonNegativeInt = 500
    learning_rate: PositiveFloat = 0.01
    largest_gradient: PositiveFloat = 1.0
    tuning_splits: PositiveInt = 5

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
        """Fit the head alone, in the precision of the features.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        labels : ndarray of int64, shape (N,), in [0, n_classes)
        groups : Groups
            To choose gamma and lambda by; an unassigned sample takes part in the fit, not in the choice.
        n_classes : int
        head : Head
            ERM's; without one there is nothing to start from.
        listen : Listener

        Raises
        ------
        DataError
            If there are no groups, the arrays differ in length, features are not finite, fewer than two classes have a
            group, or the head is missing or one for other features or classes.
        NumericalError
            If gradient descent leaves the finite numbers.
        """
        groups = check_samples(features, labels, groups)
        missing = "AFR starts from the last layer's own weights, and there are none"
        head = check_own_head(head, (n_classes, features.shape[1]), wants="AFR starts from", missing=missing)
        inputs = np.concatenate([features, np.ones((len(features), 1), dtype=features.dtype)], axis=1)
        job = _Job(inputs, labels, (features @ head.weight.T + head.bias).astype(features.dtype))
        grid = list(product(self.gammas, self.lambdas))
        tuning = self._tune(job, groups.index, grid, listen) if len(grid) > 1 else {}
        gamma, penalty = max(grid, key=lambda pair: tuning[_text(*pair)]) if tuning else grid[0]
        change = self._descend(job, [(gamma, penalty)])[:, :, 0]
        listen(Progress("retrain", 1, 1, "fits"))
        notes = []
        if tuning and (unassigned := int((groups.index < 0).sum())):
            notes.append(f"{unassigned} samples are in no group and had no part in choosing gamma and lambda")
        return Head(
            (head.weight + change[:, :-1]).astype(np.float32),
            (head.bias + change[:, -1]).astype(np.float32),
            tuning=tuning,
            notes=tuple(notes),
            chosen={"gamma": gamma, "lambda": penalty},
        )

    def for_parts(self, head: Head, groups: Groups | None, parts: int) -> AFR:
        """Return the learner with the gamma and the lambda that were chosen."""
        if not head.chosen:
            return self
        return replace(self, gammas=(head.chosen["gamma"],), lambdas=(head.chosen["lambda"],))

    def _tune(
        self, job: _Job, index: IntArray, grid: Sequence[tuple[float, float]], listen: Listener
    ) -> dict[str, float]:
        """Return the mean worst-group accuracy on held-out halves, by the text of gamma and lambda."""
        scores = []
        for _, fitted, held_out in each_halving(job.labels, index, self.tuning_splits, self.seed, listen):
            change = self._descend(job.part(fitted), grid)
            right = job.part(held_out).logits_after(change).argmax(axis=0) == job.labels[held_out, None]
            scores.append([worst_share(column, index[held_out]) for column in right.T])
        means = np.mean(scores, axis=0).tolist() if scores else []
        return {_text(*pair): mean for pair, mean in zip(grid, means, strict=False)}

    def _descend(self, job: _Job, grid: Sequence[tuple[float, float]]) -> FloatArray:
        """Return the change of ERM's weights, with the biases as the last column, for each gamma and lambda.

        One matrix product per class and step serves all of them; the result has shape (K, D + 1, G).
        """
        kind, n_classes = job.inputs.dtype, job.logits.shape[1]
        gammas, lambdas = (np.array(values, dtype=kind) for values in zip(*grid, strict=True))
        weights = sample_weights(_softmax(job.logits.T)[job.labels, np.arange(len(job.labels))], job.labels, gammas)
        wanted = (np.arange(n_classes)[:, None] == job.labels)[..., None]
        change = np.zeros((n_classes, job.inputs.shape[1], len(grid)), dtype=kind)
        with np.errstate(all="ignore"):  # the result is looked at
            for _ in range(self.steps):
                slope = (_softmax(job.logits_after(change)) - wanted)[:-1] * weights
                gradient = _with_last(job.inputs.T @ slope) + 2 * lambdas * change
                norm = np.sqrt(np.einsum("kdg,kdg->g", gradient, gradient))
                change -= (
                    self.learning_rate * self.largest_gradient / np.maximum(norm, self.largest_gradient) * gradient
                )
        if not (np.abs(change) < np.finfo(np.float32).max).all():  # NaN is not less either
            raise NumericalError(
                f"AFR's gradient descent left the finite numbers with learning_rate={self.learning_rate:g}; lower it"
            )
        return change


@dataclass
class _Job:
    """Features with a last column of ones, labels, and the logits of ERM's head."""

    inputs: FloatArray
    labels: IntArray
    logits: FloatArray

    def part(self, rows: IntArray) -> _Job:
        """Return the samples at `rows` alone."""
        return _Job(self.inputs[rows], self.labels[rows], self.logits[rows])

    def logits_after(self, change: FloatArray) -> FloatArray:
        """Return the logits of ERM's head with each of G changes, shape (K, N, G)."""
        return np.asarray(_with_last(self.inputs @ change[:-1]) + self.logits.T[..., None])


def sample_weights(chance: ArrayLike, labels: IntArray, gammas: ArrayLike) -> FloatArray:
    """Return how much each sample counts, for each gamma.

    Parameters
    ----------
    chance : array-like of float, shape (N,)
        Probability that ERM gives the sample's own class.
    labels : ndarray of int64, shape (N,)
    gammas : array-like of float, shape (G,)

    Returns
    -------
    ndarray of float, shape (N, G)
        Each column sums to 1.

    Examples
    --------
    >>> sample_weights([0.9, 0.9, 0.9, 0.1], np.array([0, 0, 0, 1]), [0.0]).ravel()
    array([0.16666667, 0.16666667, 0.16666667, 0.5       ])
    """
    chance, gammas = np.asarray(chance), np.asarray(gammas)
    weights = np.exp(-np.outer(chance - chance.min(), gammas)) / np.bincount(labels)[labels, None]
    return np.asarray(weights / weights.sum(axis=0), dtype=np.result_type(chance, gammas))


def _softmax(logits: FloatArray) -> FloatArray:
    """Return the probabilities over the first axis."""
    chances: FloatArray = np.exp(logits - logits.max(axis=0))
    chances /= chances.sum(axis=0)
    return chances


def _with_last(most: FloatArray) -> FloatArray:
    """Append, along the first axis, what makes the sum over it zero: the part of the last class."""
    return np.concatenate([most, -most.sum(axis=0, keepdims=True)])


def _text(gamma: float, penalty: float) -> str:
    return f"gamma={gamma:g}, lambda={penalty:g}"
