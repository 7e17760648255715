"""Features with a planted shortcut, a head that relies on it, and the worst group, for the tests of last layers."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from exmap.records import Groups
from exmap.retrain import Head

Features = tuple[np.ndarray, np.ndarray, Groups]


def planted_features(n_classes: int = 2, *, n: int = 600, seed: int = 0, minority: float = 0.06) -> Features:
    """Return a weak trace of the class, a loud one of the attribute, and noise; group = class * classes + attribute."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    other = (labels + rng.integers(1, n_classes, n)) % n_classes
    attributes = np.where(rng.random(n) < minority, other, labels)
    core = 1.5 * np.eye(n_classes)[labels] + rng.normal(0, 0.5, (n, n_classes))
    loud = 4.0 * np.eye(n_classes)[attributes] + rng.normal(0, 0.4, (n, n_classes))
    features = np.concatenate([core, loud, rng.normal(1, 1, (n, 6))], axis=1).astype(np.float32)
    names = tuple(f"class {y}, attribute {a}" for y in range(n_classes) for a in range(n_classes))
    return features, labels, Groups(labels * n_classes + attributes, names, "test", ())


def misled_head(n_classes: int = 2, seed: int = 100) -> Head:
    """Return a head fitted to other samples without regard to groups."""
    features, labels, _ = planted_features(n_classes, seed=seed)
    fitted = LogisticRegression(C=0.02).fit(features, labels)
    weight, bias = fitted.coef_, fitted.intercept_
    if n_classes == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Head(weight.astype(np.float32), bias.astype(np.float32))


def worst(head: Head, features: np.ndarray, labels: np.ndarray, groups: Groups) -> float:
    right = head.predict(features) == labels
    return min(float(right[groups.index == g].mean()) for g in np.unique(groups.index))


def classes_alone(labels: np.ndarray) -> Groups:
    return Groups(labels, tuple(map(str, range(labels.max() + 1))), "classes", ())
