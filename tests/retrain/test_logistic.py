from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from exmap.retrain import logistic
from exmap.retrain.logistic import LogisticFit, LogisticPath

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)


def planted(n: int, d: int, seed: int, *, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated, standardised features, of which a few tell two uneven classes apart."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.3
    positive[:2] = True, False
    x = rng.normal(size=(n, d)) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)) / np.sqrt(d))
    x[:, : max(1, d // 5)] += positive[:, None] / noise
    return (x - x.mean(axis=0)) / x.std(axis=0), positive


def objective(fit: LogisticFit, x: np.ndarray, positive: np.ndarray, strength: float) -> float:
    margin = x @ fit.weight + fit.bias
    loss = np.logaddexp(0, np.where(positive, -margin, margin)).sum()
    return float(strength * loss + np.abs(fit.weight).sum() + abs(fit.bias))


def violation(fit: LogisticFit, x: np.ndarray, positive: np.ndarray, strength: float) -> float:
    """How far the fit is from optimal, written from the conditions: a slope of the penalty's 1, or at most that."""
    chance = 1 / (1 + np.exp(-(x @ fit.weight + fit.bias)))
    worst = 0.0
    for column, weight in zip([*x.T, np.ones(len(x))], [*fit.weight, fit.bias], strict=True):
        slope = strength * float(((chance - positive) * column).sum())
        worst = max(worst, abs(slope + np.sign(weight)) if weight else abs(slope) - 1)
    return worst


@pytest.mark.parametrize(("n", "d"), [(400, 20), (60, 200), (200, 200), (40, 1), (4, 30)])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_minimum_is_that_of_liblinear(n: int, d: int, strength: float) -> None:
    x, positive = planted(n, d, seed=n + d)
    ours = LogisticPath(x, positive).fit(strength, tolerance=1e-6)
    assert ours.converged
    assert violation(ours, x, positive, strength) <= 1e-6 + 1e-9
    slow = LogisticRegression(l1_ratio=1, C=strength, solver="liblinear", tol=1e-9, max_iter=100_000, random_state=0)
    slow.fit(x, positive)
    theirs = LogisticFit(slow.coef_[0], float(slow.intercept_[0]), True)
    assert objective(ours, x, positive, strength) <= objective(theirs, x, positive, strength) * (1 + 1e-9)
    assert ours.weight == pytest.approx(theirs.weight, abs=2e-3)
    assert ours.bias == pytest.approx(theirs.bias, abs=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_a_path_ends_where_fits_from_zero_end(seed: int) -> None:
    x, positive = planted(150, 60, seed)
    path = LogisticPath(x, positive)
    start = None
    for strength in STRENGTHS:
        start = path.fit(strength, start=start, tolerance=1e-6)
        alone = path.fit(strength, tolerance=1e-6)
        assert start.converged
        assert start.weight == pytest.approx(alone.weight, abs=1e-5)
    backwards = path.fit(STRENGTHS[0], start=start, tolerance=1e-6)
    assert backwards.weight == pytest.approx(path.fit(STRENGTHS[0], tolerance=1e-6).weight, abs=1e-5)


def test_the_default_tolerance_is_kept() -> None:
    x, positive = planted(300, 80, seed=1)
    start = None
    for strength in STRENGTHS:
        start = LogisticPath(x, positive).fit(strength, start=start)
        assert start.converged
        assert violation(start, x, positive, strength) <= 1e-3 + 1e-12


def test_repeated_and_empty_columns_are_borne() -> None:
    x, positive = planted(100, 10, seed=2)
    wide = np.hstack([x, x, -x, np.zeros((100, 3))])
    for strength in STRENGTHS:
        once, many = LogisticPath(x, positive).fit(strength), LogisticPath(wide, positive).fit(strength)
        assert many.converged
        assert not many.weight[-3:].any()
        folded = many.weight[:10] + many.weight[10:20] - many.weight[20:30]
        assert folded == pytest.approx(once.weight, abs=5e-3)


@pytest.mark.parametrize(("n", "d", "apart"), [(400, 300, 1e-3), (400, 300, 1e-4)])
def test_columns_that_are_alike_up_to_single_precision_are_borne(n: int, d: int, apart: float) -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(n) < 0.4
    x = rng.normal(size=(n, 1)) + positive[:, None] + apart * rng.normal(size=(n, d))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    fit = LogisticPath(x, positive).fit(1.0)
    assert fit.converged
    assert violation(fit, x, positive, 1.0) <= 1e-3 + 1e-12


def test_classes_that_a_feature_parts_have_finite_weights() -> None:
    x = np.concatenate([np.full(50, -1.0), np.full(50, 1.0)])[:, None] * np.ones(3)
    fit = LogisticPath(x, np.arange(100) >= 50).fit(100.0)
    assert fit.converged
    assert np.isfinite(fit.weight).all()
    assert fit.weight.sum() > 5


def test_a_fit_that_is_stopped_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    x, positive = planted(200, 50, seed=3)
    monkeypatch.setattr(logistic, "MOST_STEPS", 1)
    assert not LogisticPath(x, positive).fit(10.0, max_iter=1).converged
    assert LogisticPath(x, positive).fit(10.0).converged


def test_the_order_of_samples_and_single_precision_change_nothing_but_rounding() -> None:
    x, positive = planted(120, 40, seed=4)
    order = np.random.default_rng(0).permutation(120)
    fit = LogisticPath(x, positive).fit(1.0, tolerance=1e-6)
    assert LogisticPath(x[order], positive[order]).fit(1.0, tolerance=1e-6).weight == pytest.approx(
        fit.weight, abs=1e-6
    )
    single = LogisticPath(x.astype(np.float32), positive).fit(1.0, tolerance=1e-6)
    assert single.weight == pytest.approx(fit.weight, abs=1e-4)
