from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from exmap.records import IntArray
from exmap.retrain.softmax import SoftmaxFit, fit_softmax

Data = tuple[NDArray[np.float64], IntArray]


def blobs(n_classes: int, n: int = 150, d: int = 8, seed: int = 0) -> Data:
    """Overlapping classes in correlated, standardised features, of which only the first half tells them apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    centres = np.zeros((n_classes, d))
    centres[:, : d // 2] = rng.normal(size=(n_classes, d // 2))
    x = centres[labels] + rng.normal(size=(n, d)) @ (np.eye(d) + 0.3)
    return (x - x.mean(axis=0)) / x.std(axis=0), labels.astype(np.int64)


def objective(fit: SoftmaxFit, data: Data, strength: float) -> float:
    x, y = data
    logits = x @ fit.weight.T + fit.bias
    entropy = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
    return float(strength * entropy.sum() + np.abs(fit.weight).sum())


@pytest.mark.parametrize("strength", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_the_minimum_is_scikit_learns(n_classes: int, strength: float) -> None:
    data = blobs(n_classes)
    fit = fit_softmax(*data, n_classes, strength)
    assert fit.converged
    slow = LogisticRegression(l1_ratio=1, C=strength, solver="saga", max_iter=20_000, tol=1e-8, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slow.fit(*data)
    coefficients, intercepts = slow.coef_, slow.intercept_
    if n_classes == 2:  # one decision value; shared out, its penalty is the same
        coefficients, intercepts = np.array([[-0.5], [0.5]]) * coefficients, np.array([-0.5, 0.5]) * intercepts
    theirs = SoftmaxFit(coefficients, intercepts, True)
    ours, reached = objective(fit, data, strength), objective(theirs, data, strength)
    assert ours <= reached * (1 + 1e-5)
    if strength > 0.01:  # where every weight is zero, saga stops before its intercepts are right
        assert ours == pytest.approx(reached, rel=1e-5)
    if n_classes > 2 and strength > 0.01:
        assert np.abs(fit.weight - coefficients).max() < 2e-2 * max(np.abs(coefficients).max(), 0.05)


def test_a_start_elsewhere_leads_to_the_same_place_and_a_near_one_sooner() -> None:
    data = blobs(4)
    cold = fit_softmax(*data, 4, 0.3)
    near = fit_softmax(*data, 4, 0.1)
    warm = fit_softmax(*data, 4, 0.3, start=near)
    assert objective(warm, data, 0.3) == pytest.approx(objective(cold, data, 0.3), rel=1e-6)
    few = fit_softmax(*data, 4, 0.3, start=cold, max_iter=2)
    assert objective(few, data, 0.3) == pytest.approx(objective(cold, data, 0.3), rel=1e-6)
    assert not fit_softmax(*data, 4, 0.3, max_iter=2).converged


def test_weights_that_do_not_help_are_exactly_zero() -> None:
    fit = fit_softmax(*blobs(3, d=20), 3, 0.05)
    assert 0 < (fit.weight != 0).sum() < fit.weight.size / 2
    assert (fit_softmax(*blobs(3), 3, 1e-6).weight == 0).all()


def test_the_optimality_conditions_hold() -> None:
    x, y = blobs(3)
    fit = fit_softmax(x, y, 3, 0.2)
    logits = x @ fit.weight.T + fit.bias
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    slope = 0.2 * (chances - np.eye(3)[y]).T @ x
    assert np.abs(slope[fit.weight == 0]).max() <= 1 + 1e-2
    assert np.allclose(slope[fit.weight != 0], -np.sign(fit.weight[fit.weight != 0]), atol=1e-2)
    assert np.allclose((chances - np.eye(3)[y]).sum(axis=0), 0, atol=1e-2)


def test_very_large_features_do_not_overflow() -> None:
    x, y = blobs(3)
    fit = fit_softmax(1e4 * x, y, 3, 1.0)
    assert np.isfinite(fit.weight).all()
