"""A learner of the last layer: logistic regression in which every group weighs the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import PositiveFloat, PositiveInt
from sklearn.linear_model import LogisticRegression

from exmap.records import Groups, Listener, silent
from exmap.retrain import Head, LastLayer, check_samples

__all__ = ["GroupWeighted"]

NEVER = -1e9  # the logit of a class without samples


@dataclass
class GroupWeighted(LastLayer):
    """Logistic regression with sample weights inverse to the size of the group.

    Parameters
    ----------
    strength : float
        Inverse of the L2 penalty, C in scikit-learn.
    max_iter : int
        Of the solver.
    seed : int
        Not drawn from; every learner has one.
    """

    name: ClassVar[str] = "group_weighted"

    strength: PositiveFloat = 1.0
    max_iter: PositiveInt = 1000

    def fit_head(
        self,
        features: Any,
        labels: Any,
        groups: Groups | None,
        *,
        n_classes: int,
        head: Head | None = None,
        listen: Listener = silent,
    ) -> Head:
        """Fit the head to the samples that are in a group."""
        groups = check_samples(features, labels, groups)
        rows = np.flatnonzero(groups.index >= 0)
        mean, deviation = features[rows].mean(axis=0), features[rows].std(axis=0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        sizes = groups.counts()[groups.index[rows]]
        fitted = LogisticRegression(C=self.strength, max_iter=self.max_iter).fit(
            (features[rows] - mean) / deviation, labels[rows], sample_weight=len(rows) / sizes / len(groups.names)
        )
        weight, bias = fitted.coef_, fitted.intercept_
        if len(fitted.classes_) == 2:  # scikit-learn has one decision value for two classes
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        whole, base = np.zeros((n_classes, features.shape[1])), np.full(n_classes, NEVER)
        whole[fitted.classes_] = weight / deviation
        base[fitted.classes_] = bias - whole[fitted.classes_] @ mean
        return Head(whole.astype(np.float32), base.astype(np.float32), chosen={"strength": self.strength})
