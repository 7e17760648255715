"""L1 logistic regression averaged over balanced subsets: the computation of deep feature reweighting, on arrays.

Features are standardised; the strength of the penalty is tuned on halves of the samples, by the worst group's accuracy
on the other half; the heads fitted to balanced subsets are averaged, and the standardisation is folded into them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.errors import DataError
from exmap.evaluation import worst_share
from exmap.records import IntArray, Listener, Progress, silent
from exmap.retrain.balance import balanced_subset
from exmap.retrain.batches import fit_by_batches, in_words, seconds_of_step, steps_of, worth_batches
from exmap.retrain.head import halves, scale_of
from exmap.retrain.logistic import LogisticFit, LogisticPath
from exmap.retrain.softmax import SoftmaxFit, fit_softmax
from exmap.runtime import generator, worker_threads

__all__ = ["MOST_ITERATIONS", "STRENGTHS", "BalancedFit", "BalancedRegression"]

STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
MOST_ITERATIONS = 500  # of one logistic regression

Solution = LogisticFit | SoftmaxFit
Array = NDArray[np.float64]


@dataclass(frozen=True)
class BalancedFit:
    """What was fitted.

    Attributes
    ----------
    weight : ndarray of float64, shape (K, D)
    bias : ndarray of float64, shape (K,)
        A class without samples is never predicted.
    strength : float
    tuning : mapping of float to float
        Mean worst-group accuracy on the held-out halves, by strength; empty where nothing was tuned.
    stopped_early : int
        Regressions that did not converge.
    by_batches : bool
        Whether they were so large that they were done by mini-batches, and end near the solution.
    """

    weight: Array
    bias: Array
    strength: float
    tuning: Mapping[float, float]
    stopped_early: int
    by_batches: bool = False


@dataclass(frozen=True)
class BalancedRegression:
    """How it is fitted; see :class:`~exmap.retrain.DFR` for the parameters."""

    strengths: Sequence[float] = STRENGTHS
    tuning_splits: int = 5
    subsamples: int = 20
    smallest_group: int = 6
    max_iter: int = MOST_ITERATIONS
    seed: int = 0

    def fit(
        self,
        features: NDArray[np.floating],
        labels: IntArray,
        index: IntArray,
        n_classes: int,
        *,
        listen: Listener = silent,
    ) -> BalancedFit:
        """Fit weights and biases.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        labels : ndarray of int64, shape (N,), in [0, n_classes)
        index : ndarray of int64, shape (N,)
            Group of each sample; -1 has no part.
        n_classes : int
        listen : Listener
        """
        scaled, mean, deviation = _standardised(features)
        job = _Job(scaled, labels, index, n_classes, self.max_iter, self.seed)
        if seconds := self.expected_seconds(features, labels, index):
            note = f"all fits take about {in_words(seconds)}"
            listen(Progress("tune", 0, self.tuning_splits, "splits", note, at_once=True))
        with worker_threads() as pool:
            tuning = self._tune(job, pool, listen) if len(self.strengths) > 1 else {}
            strength = max(tuning, key=lambda c: tuning[c]) if tuning else self.strengths[0]
            heads = []
            for head in self._heads(job, strength, pool):
                heads.append(head)
                listen(Progress("retrain", len(heads), self.subsamples, "fits"))
        weight = np.mean([w for w, _ in heads], axis=0) / deviation
        bias = np.mean([b for _, b in heads], axis=0) - weight @ mean
        return BalancedFit(weight, bias, strength, tuning, len(job.stopped_early), job.by_batches)

    def path(
        self, features: NDArray[np.floating], labels: IntArray, index: IntArray, n_classes: int
    ) -> dict[float, tuple[Array, Array]]:
        """Return weight (K, D) and bias (K,) of a fit to one balanced subset, by strength.

        Parameters
        ----------
        features, labels, index, n_classes
            As for :meth:`fit`.
        """
        scaled, mean, deviation = _standardised(features)
        job = _Job(scaled, labels, index, n_classes, self.max_iter, self.seed)
        rng = generator(self.seed, "subsample", 0)
        samples = job.prepare(balanced_subset(index, rng, smallest_group=self.smallest_group))
        start: Solution | None = None
        found = {}
        for strength in sorted(self.strengths):  # from the sparsest, each fit starting where the last one ended
            weight, bias, start = job.fit(samples, strength, start)
            found[strength] = weight / deviation, bias - (weight / deviation) @ mean
        return found

    def expected_seconds(self, features: NDArray[np.floating], labels: IntArray, index: IntArray) -> float:
        """Return how long :meth:`fit` takes, roughly; 0 where that is not worth a word."""
        rows = balanced_subset(index, generator(self.seed, "subsample", 0), smallest_group=self.smallest_group)
        n, n_features, n_classes = len(rows), features.shape[1], len(np.unique(labels[rows]))
        if not worth_batches(n, n_features, n_classes):
            return 0.0
        steps = steps_of(n) + (self.subsamples - 1) * steps_of(n, started=True)
        if len(self.strengths) > 1:
            path = steps_of(n // 2) + (len(self.strengths) - 1) * steps_of(n // 2, started=True)
            steps += self.tuning_splits * path
        return steps * seconds_of_step(n_features, n_classes)

    def _heads(self, job: _Job, strength: float, pool: Executor) -> Iterator[tuple[Array, ...]]:
        """Yield weight and bias per balanced subsample; each fit but the first starts where the first one ended."""

        def fit(number: int, start: Solution | None) -> tuple[Array, Array, Solution]:
            rng = generator(self.seed, "subsample", number)
            rows = balanced_subset(job.index, rng, smallest_group=self.smallest_group)
            return job.fit(job.prepare(rows), strength, start)

        *first, solution = fit(0, None)
        yield tuple(first)
        for weight, bias, _ in pool.map(fit, range(1, self.subsamples), repeat(solution)):
            yield weight, bias

    def _tune(self, job: _Job, pool: Executor, listen: Listener) -> dict[float, float]:
        """Return the mean worst-group accuracy on held-out halves, by strength."""

        def score(number: int) -> dict[float, float]:
            rng = generator(self.seed, "halves", number)
            fitted, held_out = halves(job.index, rng)
            if len(np.unique(job.labels[fitted])) < 2:
                return {}
            rows = fitted[balanced_subset(job.index[fitted], rng, smallest_group=self.smallest_group)]
            samples, features = job.prepare(rows), job.features[held_out]
            start: Solution | None = None
            scores = {}
            for strength in sorted(self.strengths):  # from the sparsest, each fit starting where the last one ended
                weight, bias, start = job.fit(samples, strength, start)
                right = (features @ weight.T + bias).argmax(axis=1) == job.labels[held_out]
                scores[strength] = worst_share(right, job.index[held_out])
            return scores

        found = []
        for scores in pool.map(score, range(self.tuning_splits)):
            found.append(scores)
            listen(Progress("tune", len(found), self.tuning_splits, "splits"))
        return {c: float(np.mean([scores[c] for scores in found if scores])) for c in self.strengths if any(found)}


def _standardised(features: NDArray[np.floating]) -> tuple[Array, Array, Array]:
    """Return standardised features, whole columns lying together, with the mean and the deviation taken out."""
    mean, deviation = scale_of(features)
    return np.asfortranarray((features - mean) / deviation), mean, deviation


@dataclass(frozen=True)
class _Samples:
    """The classes among some samples, and the regression that is fitted to them for a strength."""

    present: IntArray
    fit: Callable[..., Solution]


@dataclass
class _Job:
    """Standardised features and labels, and the L1 logistic regressions fitted to parts of them."""

    features: Array
    labels: IntArray
    index: IntArray
    n_classes: int
    max_iter: int
    seed: int
    by_batches: bool = False
    stopped_early: list[float] = field(default_factory=list)  # strengths of fits that did not converge

    def prepare(self, rows: IntArray) -> _Samples:
        """Return the samples at `rows`, ready for fits of several strengths."""
        present = np.unique(self.labels[rows])
        if len(present) < 2:
            raise DataError(
                "a balanced subset must hold samples of at least 2 classes, but one holds class "
                f"{self.labels[rows[0]]} alone; give groups that do not mix classes, or more samples"
            )
        # Whole columns lie together, for regressions that take few of them.
        features, labels = np.take(self.features.T, rows, axis=1).T, np.searchsorted(present, self.labels[rows])
        if len(present) == 2:
            return _Samples(present, LogisticPath(features, labels == 1).fit)
        if worth_batches(len(rows), features.shape[1], len(present)):
            self.by_batches = True
            return _Samples(present, partial(self._by_batches, features, labels, len(present)))
        return _Samples(present, partial(fit_softmax, features, labels, len(present)))

    def _by_batches(
        self, features: Array, labels: IntArray, n_classes: int, strength: float, *, start: Any, max_iter: int
    ) -> SoftmaxFit:
        return fit_by_batches(features, labels, n_classes, strength, rng=generator(self.seed, "batches"), start=start)

    def fit(self, samples: _Samples, strength: float, start: Solution | None = None) -> tuple[Array, Array, Solution]:
        """Return weight (K, D) and bias (K,), and the solution, where a similar fit may start.

        A class without samples is never predicted.
        """
        if start is not None and np.size(start.bias) != (1 if len(samples.present) == 2 else len(samples.present)):
            start = None
        found = samples.fit(strength, start=start, max_iter=self.max_iter)
        weight = np.zeros((self.n_classes, self.features.shape[1]))
        bias = np.full(self.n_classes, -1e9)
        if isinstance(found, LogisticFit):  # one decision value: half of it for one class, half against the other
            weight[samples.present] = np.array([[-0.5], [0.5]]) * found.weight
            bias[samples.present] = np.array([-0.5, 0.5]) * found.bias
        else:
            weight[samples.present], bias[samples.present] = found.weight, found.bias
        if not found.converged:
            self.stopped_early.append(strength)
        return weight, bias, found
