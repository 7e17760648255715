"""Environments inferred from a reference classifier, crossed with the class: EIIL, and the cross-mistakes of XRM.

EIIL (Creager, Jacobsen and Zemel, ICML 2021) looks for the two environments between which a classifier is least
invariant. Each sample belongs to the first with a probability of its own, and these maximise the IRM penalty of both:
the squared gradient of the mean cross-entropy with respect to a factor of 1 before the logits. A sample's part of that
gradient is ``sum_k (p_k - [y = k]) z_k``: negative where the classifier is right and sure, positive where it is wrong.
Everything is therefore closed form, and one pass over N numbers a step.

XRM (Pezeshki et al., ICML 2024) trains twin networks (:mod:`exmap.model.twins`) and splits by their cross-mistakes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from exmap.errors import DataError, NumericalError
from exmap.groups.assign import by_size, crossed_groups
from exmap.groups.controls import MISTAKES
from exmap.records import Explained, FloatArray, Groups, IntArray
from exmap.registry import SOURCES
from exmap.runtime import generator

__all__ = ["EIILGroups", "XRMGroups", "invariance_gap", "scale_gradients"]

ENVIRONMENTS = ("environment 0", "environment 1")


@SOURCES.register
@dataclass(frozen=True)
class EIILGroups:
    """The environments of EIIL, crossed with the class; environment 0 is the larger one.

    Parameters
    ----------
    steps : int
        Of Adam, all samples at once; the authors' default.
    learning_rate : float
        The authors' default.
    """

    steps: int = 10_000
    learning_rate: float = 1e-3
    name: ClassVar[str] = "eiil"
    needs: ClassVar[tuple[str, ...]] = ("reference",)

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        """Return the groups; where all samples of a class are in one environment, it is one group.

        Raises
        ------
        DataError
            If there is not one row of logits per sample.
        NumericalError
            If logits are not finite.
        """
        logits, wanted = explained.given["reference"].logits, (len(explained), len(explained.class_names))
        if logits.shape != wanted:
            raise DataError(
                f"the eiil source needs logits of shape {wanted}, one row per sample, got {logits.shape}; collect "
                "outputs of the same split"
            )
        gradients = scale_gradients(logits, explained.labels)
        first = (self._soft(gradients, generator(seed, self.name)) > 0).astype(np.int64)
        return crossed_groups(
            explained.labels, by_size(first), explained.class_names, source=self.name, part_names=ENVIRONMENTS
        )

    def _soft(self, gradients: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the logit of each sample's probability to be in the first environment, after Adam's steps."""
        assigned = rng.standard_normal(len(gradients))
        mean, square = np.zeros_like(assigned), np.zeros_like(assigned)
        for step in range(1, self.steps + 1):
            _, ascent = invariance_gap(assigned, gradients)
            mean += 0.1 * (ascent - mean)
            square += 0.001 * (ascent**2 - square)
            assigned += self.learning_rate / (1 - 0.9**step) * mean / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        return assigned


@SOURCES.register
@dataclass(frozen=True)
class XRMGroups:
    """Each class split into cross-mistakes and the rest."""

    name: ClassVar[str] = "xrm"
    needs: ClassVar[tuple[str, ...]] = ("twins",)

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        """Return the groups; a class without cross-mistakes is one group.

        Raises
        ------
        DataError
            If there is not one prediction per sample.
        """
        predicted: IntArray = explained.given["twins"]
        if len(predicted) != len(explained):
            raise DataError(
                f"the xrm source needs one prediction per sample, got {len(predicted)} for {len(explained)} samples; "
                "use the twins' predictions for the same split"
            )
        wrong = (predicted != explained.labels).astype(np.int64)
        return crossed_groups(explained.labels, wrong, explained.class_names, source=self.name, part_names=MISTAKES)


def scale_gradients(logits: FloatArray, labels: IntArray) -> NDArray[np.float64]:
    """Return the derivative of each sample's cross-entropy with respect to a factor of 1 before its logits.

    Parameters
    ----------
    logits : ndarray of float, shape (N, K)
    labels : ndarray of int64, shape (N,)

    Returns
    -------
    ndarray of float64, shape (N,)

    Raises
    ------
    NumericalError
        If logits are not finite.

    Examples
    --------
    >>> scale_gradients(np.array([[0.0, 0.0], [9.0, -9.0], [9.0, -9.0]]), np.array([0, 0, 1])).round(3) + 0
    array([ 0., 0., 18.])
    """
    if broken := int((~np.isfinite(logits).all(axis=1)).sum()):
        raise NumericalError(
            f"environments need finite logits, but those of {broken} of {len(logits)} samples are NaN or infinite; "
            "check the model's weights"
        )
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    chances = np.exp(shifted)
    chances /= chances.sum(axis=1, keepdims=True)
    return np.asarray((chances * shifted).sum(axis=1) - shifted[np.arange(len(labels)), labels])


def invariance_gap(assigned: NDArray[np.float64], gradients: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Return the mean IRM penalty of two soft environments, and its derivative with respect to their logits.

    Parameters
    ----------
    assigned : ndarray of float64, shape (N,)
        Logit of the probability that a sample is in the first environment.
    gradients : ndarray of float64, shape (N,)
        From :func:`scale_gradients`.

    Returns
    -------
    penalty : float
        ``((mean of q * gradient)^2 + (mean of (1 - q) * gradient)^2) / 2``.
    derivative : ndarray of float64, shape (N,)
    """
    chance = expit(assigned)
    first = float(chance @ gradients) / len(gradients)
    second = float(gradients.mean()) - first
    derivative = (first - second) / len(gradients) * gradients * chance * (1 - chance)
    return (first**2 + second**2) / 2, derivative
