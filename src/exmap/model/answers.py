"""Whether a classifier's outputs stand for the classes that the labels name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

from exmap.data import Split
from exmap.errors import DataError
from exmap.model.backbone import collect_outputs
from exmap.records import IntArray, Listener, silent
from exmap.runtime import generator

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ClassOrder", "check_class_order", "class_order"]

LOOKED_AT = 500  # images
BETTER, GOOD = 0.3, 0.75  # how much more, and how often, another order must be right
NAMED = 12  # classes in an error


@dataclass(frozen=True)
class ClassOrder:
    """How often a classifier is right, and with which order of its classes it would be right most often.

    Attributes
    ----------
    images : int
    accuracy, best : float in [0, 1]
        With the order as it is, and with the best one.
    order : tuple of int
        The class that each output stands for in the best order, shape (K,).
    """

    images: int
    accuracy: float
    best: float
    order: tuple[int, ...]

    @property
    def is_wrong(self) -> bool:
        """Whether the classifier is right no more often than by chance, and far more often with another order."""
        chance = 1 / len(self.order)
        by_chance = chance + 2 * math.sqrt(chance * (1 - chance) / self.images)
        return self.accuracy <= by_chance and self.best >= max(GOOD, self.accuracy + BETTER)

    def in_words(self, class_names: Sequence[str]) -> str:
        """Return how often the classifier is right, and with which order of its classes it would be far more often."""
        names = [class_names[number] for number in self.order]
        said = ",".join(names[:NAMED]) + (",..." if len(names) > NAMED else "")
        return (
            f"the classifier is right on {self.accuracy:.0%} of {self.images:,} images, no more than by chance, but "
            f"would be on {self.best:.0%} with its classes in the order {said}"
        )


def class_order(predicted: IntArray, labels: IntArray, n_classes: int) -> ClassOrder:
    """Compare predictions with labels under the order of the classes that suits them best.

    Parameters
    ----------
    predicted : ndarray of int64, shape (N,), in [-1, n_classes)
        -1 where nothing is predicted: never right.
    labels : ndarray of int64, shape (N,), in [0, n_classes)
    n_classes : int

    Examples
    --------
    >>> class_order(np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1]), 2).order
    (1, 0)
    """
    counts = np.zeros((n_classes, n_classes), dtype=np.int64)
    known = predicted >= 0
    np.add.at(counts, (predicted[known], labels[known]), 1)
    outputs, classes = linear_sum_assignment(counts, maximize=True)
    return ClassOrder(
        len(labels),
        float(np.trace(counts) / len(labels)),
        float(counts[outputs, classes].sum() / len(labels)),
        tuple(int(each) for each in classes),
    )


def check_class_order(
    model: nn.Module, split: Split, *, how: str, chosen: bool = False, seed: int = 0, listen: Listener = silent
) -> ClassOrder:
    """Refuse a classifier that is right no more often than by chance, and would be with its classes in another order.

    Parameters
    ----------
    model : torch.nn.Module
    split : Split
    how : str
        How the order of the classes is given, for the error.
    chosen : bool
        Whether the user chose the order, which is then not refused.
    seed : int
        Of the images that are looked at.
    listen : Listener

    Raises
    ------
    DataError
        That names the order.
    """
    rows = generator(seed, "class order").permutation(len(split))[:LOOKED_AT]
    some = split.rows(np.sort(rows))
    found = class_order(collect_outputs(model, some, listen=listen).predicted, some.labels, split.n_classes)
    if found.is_wrong and not chosen:
        raise DataError(
            f"{found.in_words(split.class_names)}; give {how} in that order, or in the order they have if it is right"
        )
    return found
