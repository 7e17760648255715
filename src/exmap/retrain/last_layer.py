"""Deep feature reweighting: retrain the last layer on balanced groups (Kirichenko, Izmailov and Wilson, 2023).

As the ExMap supplement (section 2.3) uses it: features are standardised; the strength of an L1 penalty is tuned on
halves of the retraining set, by the worst *pseudo*-group's accuracy on the other half; heads fitted to 20 balanced
subsamples are averaged. The standardisation is folded into the averaged head, so the result is an ordinary layer.

:class:`ClassBalanced` is the same with the classes as groups, and so the control for DFR: last-layer retraining without
groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from exmap.errors import DataError
from exmap.evaluation import worst_share
from exmap.records import Groups, IntArray, Listener, Progress, silent
from exmap.registry import LEARNERS
from exmap.retrain.balance import balanced_subset, left_out, small_groups
from exmap.retrain.logistic import LogisticFit, LogisticPath
from exmap.retrain.softmax import SoftmaxFit, fit_softmax
from exmap.runtime import generator, worker_threads

if TYPE_CHECKING:
    from torch import nn

    from exmap.data import Split

__all__ = ["DFR", "ClassBalanced", "Head", "check_samples", "halves"]


MOST_ITERATIONS = 500  # of one logistic regression

Solution = LogisticFit | SoftmaxFit


@dataclass(frozen=True)
class Head:
    """A linear last layer, and how it was chosen.

    Attributes
    ----------
    weight : ndarray of float32, shape (K, D)
    bias : ndarray of float32, shape (K,)
    strength : float, optional
        Inverse strength C of the L1 penalty, where the learner has one.
    tuning : mapping of float or str to float
        Mean worst-group accuracy on the held-out halves, by strength or by the text of several hyperparameters.
    notes : tuple of str
        What a reader should know: small groups, fits that did not converge.
    chosen : mapping of str to float
        Hyperparameters the head was fitted with, by name.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    strength: float | None = None
    tuning: Mapping[Any, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    chosen: Mapping[str, float] = field(default_factory=dict)

    def predict(self, features: NDArray[np.floating]) -> IntArray:
        """Return the class of each feature vector, shape (N,)."""
        return np.asarray((features @ self.weight.T + self.bias).argmax(axis=1), dtype=np.int64)


@LEARNERS.register
@dataclass
class DFR:
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
    seed : int

    Attributes
    ----------
    head_ : Head
        Set by :meth:`fit`.
    """

    name: ClassVar[str] = "dfr"
    part: ClassVar[str] = "last layer"
    fits_groups: ClassVar[bool] = True  # whether the fit itself, not only the choice of hyperparameters, takes groups
    tunes_groups: ClassVar[bool] = True  # whether hyperparameters are chosen by the worst of the groups given

    strengths: Sequence[float] = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
    tuning_splits: int = 5
    subsamples: int = 20
    smallest_group: int = 6
    seed: int = 0

    def fit(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups,
        *,
        head: str | None = None,
        listen: Listener = silent,
    ) -> nn.Module:
        """Return a copy of `model` with a last layer that treats the groups alike.

        Parameters
        ----------
        model : torch.nn.Module
            Its logits are a linear map of features; stays as it is.
        split : Split
            The retraining set: images and class labels.
        groups : Groups
            One group per sample of the split.
        head : str, optional
            Name of the layer to retrain, by default the last linear map, found by running the model. Where more than a
            linear map follows the named layer, the model that is returned leaves that out.
        listen : Listener

        Raises
        ------
        DataError
            If no linear map makes the logits and none is named, and what :meth:`fit_head` raises.
        """
        from exmap.model import collect_outputs, find_last_layer, replace_head

        last = find_last_layer(model, split.images.batch(np.arange(min(2, len(split)), dtype=np.int64)), head)
        features = collect_outputs(model, split, head=last, listen=listen).features
        self.head_ = self.fit_head(features, split.labels, groups, n_classes=split.n_classes, listen=listen)
        return replace_head(model, last, self.head_.weight, self.head_.bias)

    def fit_head(
        self,
        features: NDArray[np.floating],
        labels: IntArray,
        groups: Groups,
        *,
        n_classes: int,
        listen: Listener = silent,
    ) -> Head:
        """Fit the head alone.

        Parameters
        ----------
        features : ndarray of float, shape (N, D)
        labels : ndarray of int64, shape (N,), in [0, n_classes)
        groups : Groups
        n_classes : int
        listen : Listener

        Raises
        ------
        DataError
            If the arrays differ in length, features are not finite, or fewer than two classes have a group.
        """
        check_samples(features, labels, groups)
        index = groups.index
        mean = features.mean(axis=0, dtype=np.float64)
        deviation = features.std(axis=0, dtype=np.float64)
        deviation[deviation <= 1e-8 * np.abs(mean)] = 1.0  # a constant feature, up to rounding
        scaled = np.asfortranarray((features - mean) / deviation)
        job = _Job(scaled, labels, index, n_classes, self.smallest_group)
        with worker_threads() as pool:
            tuning = self._tune(job, pool, listen) if len(self.strengths) > 1 else {}
            strength = max(tuning, key=lambda c: tuning[c]) if tuning else self.strengths[0]
            heads = []
            for head in self._heads(job, strength, pool):
                heads.append(head)
                listen(Progress("retrain", len(heads), self.subsamples, "fits"))
        coefficients = np.mean([w for w, _ in heads], axis=0) / deviation
        bias = np.mean([b for _, b in heads], axis=0) - coefficients @ mean
        return Head(
            coefficients.astype(np.float32),
            bias.astype(np.float32),
            strength,
            tuning,
            job.notes(groups),
            {"strength": strength},
        )

    def _heads(self, job: _Job, strength: float, pool: Executor) -> Iterator[tuple[NDArray[np.float64], ...]]:
        """Yield weight and bias per balanced subsample; each fit but the first starts where the first one ended."""

        def fit(number: int, start: Solution | None) -> tuple[NDArray[np.float64], NDArray[np.float64], Solution]:
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


@LEARNERS.register
class ClassBalanced(DFR):
    """Class-balanced last-layer retraining: :class:`DFR` with the classes as groups, for any number of classes.

    LaBonte, Muthukumar and Kumar (NeurIPS 2023) retrain by SGD with class-balanced batches and choose by the worst true
    group; here the procedure is DFR's and the choice is by the worst class, so that nothing but the groups differs.

    Parameters
    ----------
    strengths, tuning_splits, subsamples, smallest_group, seed
        As for :class:`DFR`.
    """

    name: ClassVar[str] = "class_balanced"
    fits_groups: ClassVar[bool] = False
    tunes_groups: ClassVar[bool] = False

    def fit(
        self,
        model: nn.Module,
        split: Split,
        groups: Groups | None = None,
        *,
        head: str | None = None,
        listen: Listener = silent,
    ) -> nn.Module:
        """Return a copy of `model` with a last layer that treats the classes alike; `groups` are ignored."""
        return super().fit(model, split, _classes(split.labels, split.n_classes), head=head, listen=listen)

    def fit_head(
        self,
        features: NDArray[np.floating],
        labels: IntArray,
        groups: Groups | None = None,
        *,
        n_classes: int,
        listen: Listener = silent,
    ) -> Head:
        """Fit the head alone, as :meth:`DFR.fit_head` does; `groups` are ignored."""
        return super().fit_head(features, labels, _classes(labels, n_classes), n_classes=n_classes, listen=listen)


def _classes(labels: IntArray, n_classes: int) -> Groups:
    """Return the classes as groups."""
    return Groups(labels, tuple(f"class {k}" for k in range(n_classes)), "classes", ("class labels",))


@dataclass(frozen=True)
class _Samples:
    """The classes among some samples, and the regression that is fitted to them for a strength."""

    present: IntArray
    fit: Callable[..., Solution]


@dataclass
class _Job:
    """Standardised features and labels, and the L1 logistic regressions fitted to parts of them."""

    features: NDArray[np.float64]
    labels: IntArray
    index: IntArray
    n_classes: int
    smallest_group: int
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
        return _Samples(present, partial(fit_softmax, features, labels, len(present)))

    def fit(
        self, samples: _Samples, strength: float, start: Solution | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], Solution]:
        """Return weight (K, D) and bias (K,), and the solution, where a similar fit may start.

        A class without samples is never predicted.
        """
        if start is not None and np.size(start.bias) != (1 if len(samples.present) == 2 else len(samples.present)):
            start = None
        found = samples.fit(strength, start=start, max_iter=MOST_ITERATIONS)
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

    def notes(self, groups: Groups) -> tuple[str, ...]:
        """Return sentences about small groups, unassigned samples and fits that stopped early."""
        notes = [*small_groups(groups, self.smallest_group), *left_out(groups)]
        if self.stopped_early:
            notes.append(f"{len(self.stopped_early)} logistic regressions stopped at their iteration limit")
        return tuple(notes)


def check_samples(features: NDArray[np.floating], labels: IntArray, groups: Groups) -> None:
    """Refuse what no last layer can be fitted to.

    Raises
    ------
    DataError
        If the arrays differ in length, features are not finite, or fewer than two classes have a group.
    """
    if not len(features) == len(labels) == len(groups):
        raise DataError(
            f"retraining needs one label and one group per feature vector, got {len(features)} vectors, "
            f"{len(labels)} labels and {len(groups)} groups; use the groups of the same split"
        )
    if not np.isfinite(features).all():
        raise DataError("retraining needs finite features, but some are NaN or infinite; check the model's weights")
    if len(np.unique(labels[groups.index >= 0])) < 2:
        raise DataError("retraining needs samples of at least 2 classes in the groups; all but one are unassigned")


def halves(index: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Return the positions of two random halves of the samples that have a group: to fit, and to score."""
    order = rng.permutation(np.flatnonzero(index >= 0))
    return order[: len(order) // 2], order[len(order) // 2 :]
