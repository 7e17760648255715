"""DFR as a scikit-learn estimator: scikit-learn's own checks, and the same numbers as the learner's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from exmap.errors import DataError
from exmap.records import Groups
from exmap.retrain import DFR, DFRClassifier

QUICK: dict[str, Any] = {"strengths": (1.0, 0.3), "tuning_splits": 2, "subsamples": 2}


@parametrize_with_checks([DFRClassifier(**QUICK)])
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def planted(n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that follow the class faintly and an attribute loudly; the groups cross both."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(240) % n_classes)
    other = np.where(rng.random(240) < 0.08, (labels + 1) % n_classes, labels)
    core = 2 * np.eye(n_classes)[labels] + rng.normal(0, 1, (240, n_classes))
    loud = 6 * np.eye(n_classes)[other] + rng.normal(0, 0.3, (240, n_classes))
    return np.concatenate([core, loud], axis=1), labels, labels * n_classes + other


@pytest.mark.parametrize("n_classes", [2, 3])
def test_it_finds_what_the_learner_finds(n_classes: int) -> None:
    features, labels, index = planted(n_classes)
    index[:7] = -1
    names = tuple(map(str, range(n_classes**2)))
    head = DFR(**QUICK, seed=5).fit_head(features, labels, Groups(index, names, "own", ()), n_classes=n_classes)
    found = DFRClassifier(**QUICK, random_state=5).fit(features, labels, groups=index)
    assert np.array_equal(found.predict(features), head.predict(features))
    assert found.strength_ == head.strength
    assert found.tuning_ == head.tuning
    if n_classes == 3:
        assert np.array_equal(found.coef_.astype(np.float32), head.weight)
    logits = features @ head.weight.T + head.bias
    scores = found.decision_function(features)
    wanted = logits[:, 1] - logits[:, 0] if n_classes == 2 else logits
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.predict_proba(features), chances, atol=1e-4)
    assert found.n_features_in_ == 2 * n_classes


def test_without_groups_the_classes_are_balanced_and_with_groups_the_worst_one_gains() -> None:
    features, labels, index = planted(3)
    plain = DFRClassifier(**QUICK, random_state=0).fit(features, labels)
    fair = clone(plain).fit(features, labels, groups=[f"group {i}" for i in index])
    again = DFRClassifier(**QUICK, random_state=0).fit(features, labels, groups=labels)
    assert np.array_equal(plain.coef_, again.coef_)

    def worst(found: DFRClassifier) -> float:
        right = found.predict(features) == labels
        return min(float(right[index == group].mean()) for group in np.unique(index))

    assert worst(fair) > worst(plain) + 0.1


def test_it_serves_in_cross_validation() -> None:
    features, labels, _ = planted(2)
    scores = cross_val_score(DFRClassifier(**QUICK, random_state=0), features, labels, cv=3)
    assert scores.min() > 0.7


def test_groups_that_do_not_fit_are_refused() -> None:
    features, labels, index = planted(2)
    with pytest.raises(DataError) as caught:
        DFRClassifier(**QUICK).fit(features, labels, groups=index[:-1])
    assert str(caught.value) == (
        "there must be one group per sample, got 239 groups for 240 samples; use those of the same samples"
    )
    with pytest.raises(DataError, match="the samples in groups must be of at least 2 classes"):
        DFRClassifier(**QUICK).fit(features, labels, groups=np.where(labels == 0, 0, -1))
