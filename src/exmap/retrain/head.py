"""A linear last layer as a record, and what every learner of one does with its samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.errors import DataError
from exmap.records import Groups, IntArray, Listener, Progress, predicted_class
from exmap.runtime import generator

__all__ = ["Head", "check_own_head", "check_samples", "each_halving", "finite_part", "halves", "scale_of"]

NAMED = 3  # images in a sentence
AT_ONCE = 2**17  # feature vectors that are classified at once


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
        """Return the class of each feature vector, shape (N,), which may lie on disk; -1 where that is not finite."""
        if len(features) <= AT_ONCE:
            return predicted_class(features @ self.weight.T + self.bias)
        parts = [self.predict(features[start : start + AT_ONCE]) for start in range(0, len(features), AT_ONCE)]
        return np.concatenate(parts)


def check_samples(features: NDArray[np.floating], labels: IntArray, groups: Groups | None) -> Groups:
    """Return the groups, or refuse what no last layer can be fitted to.

    Raises
    ------
    DataError
        If there are no groups, the arrays differ in length, features are not finite, or fewer than two classes have a
        group.
    """
    if groups is None:
        raise DataError("retraining needs the groups of the split it is done on, got none; infer them")
    if not len(features) == len(labels) == len(groups):
        raise DataError(
            f"retraining needs one label and one group per feature vector, got {len(features)} vectors, "
            f"{len(labels)} labels and {len(groups)} groups; use the groups of the same split"
        )
    if not np.isfinite(features).all():
        raise DataError("retraining needs finite features, but some are NaN or infinite; check the model's weights")
    if len(np.unique(labels[groups.index >= 0])) < 2:
        raise DataError("retraining needs samples of at least 2 classes in the groups; all but one are unassigned")
    return groups


def finite_part(
    features: NDArray[np.floating], labels: IntArray, groups: Groups | None, ids: Sequence[str] = ()
) -> tuple[NDArray[np.floating], IntArray, Groups | None, tuple[str, ...]]:
    """Return the samples whose features are finite, with a sentence about the others, if there are any.

    Parameters
    ----------
    features : ndarray of float, shape (N, D)
    labels : ndarray of int64, shape (N,)
    groups : Groups or None
    ids : sequence of str
        What the samples are called.

    Raises
    ------
    DataError
        If none is finite.
    """
    finite = np.isfinite(features).all(axis=1)
    others = np.flatnonzero(~finite)
    if not len(others) or len(labels) != len(finite) or (groups is not None and len(groups) != len(finite)):
        return features, labels, groups, ()  # arrays that do not belong together are refused by check_samples
    if not finite.any():
        raise DataError("retraining needs finite features, but all are NaN or infinite; check the model's weights")
    named = ", ".join(ids[row] if len(ids) else f"row {row}" for row in others[:NAMED])
    more = f" and {len(others) - NAMED:,} more" if len(others) > NAMED else ""
    images = "image was" if len(others) == 1 else "images were"
    note = f"{len(others):,} {images} left out, because features hold NaN or infinity: {named}{more}"
    if groups is not None:
        groups = replace(groups, index=groups.index[finite], clusters=None)
    return features[finite], labels[finite], groups, (note,)


def halves(index: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Return the positions of two random halves of the samples that have a group: to fit, and to score."""
    order = rng.permutation(np.flatnonzero(index >= 0))
    return order[: len(order) // 2], order[len(order) // 2 :]


def each_halving(
    labels: IntArray, index: IntArray, splits: int, seed: int, listen: Listener
) -> Iterator[tuple[int, IntArray, IntArray]]:
    """Yield the number of each random halving to choose by, and its halves; one that holds a class alone is left out.

    Parameters
    ----------
    labels, index : ndarray of int64, shape (N,)
        Classes and groups; a group of -1 has no part.
    splits : int
        How many halvings are drawn.
    seed : int
    listen : Listener
        Is told of each when what is done with it is done.
    """
    for number in range(splits):
        fitted, held_out = halves(index, generator(seed, "halves", number))
        if len(np.unique(labels[fitted])) >= 2:
            yield number, fitted, held_out
            listen(Progress("tune", number + 1, splits, "splits"))


def scale_of(features: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each feature, shape (D,); 1 for one that is constant up to rounding."""
    mean = features.mean(axis=0, dtype=np.float64)
    deviation = features.std(axis=0, dtype=np.float64)
    deviation[deviation <= 1e-8 * np.abs(mean)] = 1.0
    return mean, deviation


def check_own_head(head: Head | None, shape: tuple[int, int], *, wants: str, missing: str) -> Head:
    """Return the classifier's own last layer, or refuse to do without it, or with one of another shape.

    Parameters
    ----------
    head : Head or None
    shape : tuple of int
        Of its weight: classes, features.
    wants, missing : str
        How the sentences begin that say what the learner needs, and that it is not there.
    """
    if head is None:
        raise DataError(
            f"{missing}: no head was given, or more than a linear map follows the layer; use DFR, or a model that ends "
            "in a linear layer"
        )
    if head.weight.shape != shape:
        raise DataError(
            f"{wants} ERM's head, whose weight must have shape {shape}, got {head.weight.shape}; give the head that "
            "belongs to these features"
        )
    return head
