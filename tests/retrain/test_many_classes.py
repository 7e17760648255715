"""Last layers of very many classes: by mini-batches, near the solution, after a word about the time."""

from __future__ import annotations

import numpy as np
import pytest

from exmap.records import Groups, Progress
from exmap.retrain import DFR, ClassBalanced
from exmap.retrain.batches import fit_by_batches, in_words, worth_batches
from exmap.retrain.softmax import SoftmaxFit, fit_softmax

CLASSES, DIMENSIONS = 50, 64
Data = tuple[np.ndarray, np.ndarray]


def drawn(per_class: int, seed: int) -> Data:
    """Draw correlated features of many classes that overlap, not negative, as those behind a ReLU."""
    means = np.random.default_rng(0).normal(size=(CLASSES, DIMENSIONS)) * 0.8
    mixing = np.random.default_rng(1).normal(size=(DIMENSIONS, DIMENSIONS)) / np.sqrt(DIMENSIONS)
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(CLASSES), per_class)
    x = rng.normal(size=(len(labels), DIMENSIONS)) + means[labels]
    return np.maximum(x + x @ mixing, 0), labels


@pytest.fixture(scope="module")
def data() -> tuple[Data, Data]:
    (x, y), (seen, wanted) = drawn(20, 2), drawn(20, 3)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    return ((x - mean) / deviation, y), ((seen - mean) / deviation, wanted)


def objective(fit: SoftmaxFit, data: Data, strength: float) -> float:
    x, y = data
    logits = x @ fit.weight.T + fit.bias
    logits -= logits.max(axis=1, keepdims=True)
    loss = (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]).sum()
    return float(strength * loss + np.abs(fit.weight).sum())


def test_batches_end_near_the_solution_and_are_as_often_right(data: tuple[Data, Data]) -> None:
    (x, y), (seen, wanted) = data
    exact = by_batches = None
    for strength in (0.03, 0.1, 0.3):
        exact = fit_softmax(x, y, CLASSES, strength, start=exact)
        by_batches = fit_by_batches(x, y, CLASSES, strength, rng=np.random.default_rng(0), start=by_batches)
        assert objective(by_batches, data[0], strength) < 1.03 * objective(exact, data[0], strength)
        one, other = ((seen @ fit.weight.T + fit.bias).argmax(axis=1) for fit in (exact, by_batches))
        assert (other == wanted).mean() > (one == wanted).mean() - 0.02
        assert (one == other).mean() > 0.85


def test_the_same_random_numbers_give_the_same_bits(data: tuple[Data, Data]) -> None:
    (x, y), _ = data
    first, second = (fit_by_batches(x, y, CLASSES, 0.1, rng=np.random.default_rng(3), epochs=2) for _ in range(2))
    assert np.array_equal(first.weight, second.weight)


def test_dfr_of_many_classes_says_how_long_it_takes_and_how_it_was_fitted(
    data: tuple[Data, Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    (x, y), (seen, wanted) = data
    groups = Groups(y, tuple(map(str, range(CLASSES))), "own", ())
    options = {"strengths": (0.1, 0.3), "tuning_splits": 1, "subsamples": 2}
    exact = DFR(**options).fit_head(x, y, groups, n_classes=CLASSES)
    assert not exact.notes
    assert DFR(**options).expected_seconds(x, y, groups) == 0
    monkeypatch.setattr("exmap.retrain.batches.MANY_PRODUCTS", 1e5)
    heard: list[Progress] = []
    head = DFR(**options).fit_head(x, y, groups, n_classes=CLASSES, listen=heard.append)
    assert (heard[0].done, heard[0].at_once) == (0, True)
    assert heard[0].note == "all fits take about a minute"
    assert head.notes == ("50 classes: regressions were fitted by mini-batches, to near their solutions",)
    right, other = ((fit.predict(seen) == wanted).mean() for fit in (head, exact))
    assert right > other - 0.02
    assert ClassBalanced(**options).expected_seconds(x, y, None) > 0


def test_few_classes_and_small_fits_are_solved_exactly() -> None:
    assert worth_batches(20_000, 512, 1000)
    assert not worth_batches(1_000_000, 512, 10)
    assert not worth_batches(1000, 512, 100)


@pytest.mark.parametrize(("seconds", "said"), [(1, "a minute"), (130, "2 minutes"), (7200, "2.0 hours")])
def test_times_are_said_in_words(seconds: float, said: str) -> None:
    assert in_words(seconds) == said
