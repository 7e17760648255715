from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from exmap.errors import DataError
from exmap.evaluation import group_table
from exmap.records import GroupTable

NAMES = ("a", "b", "empty", "c")


def random_case(seed: int, repeats: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three classes, three filled groups and an empty one; some samples are in no group."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 90))
    labels = rng.integers(0, 3, n)
    predicted = np.where(rng.random((repeats, n)) < 0.7, labels, rng.integers(0, 3, (repeats, n)))
    index = rng.choice([-1, 0, 1, 3], size=n, p=[0.1, 0.6, 0.2, 0.1])
    index[:3] = [0, 1, 3]
    return (predicted if repeats > 1 else predicted[0]), labels, index


def table(predicted: np.ndarray, labels: np.ndarray, index: np.ndarray, **options: object) -> GroupTable:
    return group_table(predicted, labels, index, NAMES, rng=np.random.default_rng(0), **options)


@pytest.mark.parametrize("repeats", [1, 2, 5])
@pytest.mark.parametrize("seed", range(6))
def test_the_table_is_what_loops_over_samples_count(seed: int, repeats: int) -> None:
    predicted, labels, index = random_case(seed, repeats)
    found = table(predicted, labels, index)
    runs = np.atleast_2d(predicted).tolist()
    for group in range(4):
        members = [i for i in range(len(labels)) if index[i] == group]
        hits = [sum(run[i] == labels[i] for run in runs) / repeats for i in members]
        assert found.count[group] == len(members)
        if members:
            assert found.accuracy[group] == pytest.approx(sum(hits) / len(hits))
            assert found.low[group] <= found.accuracy[group] + 1e-9
            assert found.high[group] >= found.accuracy[group] - 1e-9
    filled = [found.accuracy[g] for g in (0, 1, 3)]
    assert found.worst == min(filled)
    assert found.worst_group == NAMES[(0, 1, 3)[int(np.argmin(filled))]]
    kept = [i for i in range(len(labels)) if index[i] >= 0]
    assert found.mean == pytest.approx(np.mean([run[i] == labels[i] for run in runs for i in kept]))


def test_an_empty_group_is_not_a_number_and_never_the_worst() -> None:
    found = table(np.array([0, 1, 1]), np.array([0, 1, 2]), np.array([0, 1, 3]))
    assert np.isnan([found.accuracy[2], found.low[2], found.high[2]]).all()
    assert found.count.tolist() == [1, 1, 0, 1]
    assert (found.worst, found.worst_group) == (0.0, "c")
    perfect = table(np.array([0, 1]), np.array([0, 1]), np.array([0, 1]))
    assert perfect.worst == 1.0
    assert "nan" in str(perfect)


def test_no_group_with_samples_gives_no_number() -> None:
    found = table(np.array([0]), np.array([0]), np.array([-1]))
    assert np.isnan([found.worst, found.mean, found.weighted_mean]).all()
    assert found.worst_group == ""


def test_samples_without_a_group_are_left_out() -> None:
    found = table(np.array([0, 1, 0]), np.array([0, 0, 0]), np.array([0, -1, 0]))
    assert found.accuracy[0] == 1.0
    assert found.mean == 1.0
    assert found.count.sum() == 2


def test_repeats_are_averaged_sample_by_sample() -> None:
    predicted = np.array([[0, 0, 1], [0, 1, 1], [0, 1, 1], [1, 1, 1]])  # right in 3, 1 and 4 of 4 repeats
    found = table(predicted, np.array([0, 0, 1]), np.array([0, 0, 1]))
    assert found.accuracy[:2].tolist() == [0.5, 1.0]
    assert found.count.tolist() == [2, 1, 0, 0]


def test_the_weighted_mean_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 1, 1])
    predicted, index = np.array([0, 1, 1, 1, 1, 0]), np.array([0, 0, 1, 1, 1, 3])
    found = table(predicted, labels, index, train_counts=[60, 30, 500, 10])
    assert found.train_share == pytest.approx(np.array([60, 30, 500, 10]) / 600)
    # The empty group's share is left out: (60 * 1/2 + 30 * 1 + 10 * 0) / 100.
    assert found.weighted_mean == pytest.approx(0.6)
    assert found.mean == pytest.approx(4 / 6)
    assert np.isnan(table(predicted, labels, index).weighted_mean)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_interval_is_that_of_a_brute_force_bootstrap(seed: int, repeats: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros(40, dtype=np.int64)
    predicted = (rng.random((repeats, 40)) < 0.3).astype(np.int64)
    found = table(predicted, labels, labels, bootstrap=4000, confidence=0.9)
    scores = (predicted == 0).mean(axis=0)
    draws = [scores[rng.integers(0, 40, 40)].mean() for _ in range(4000)]
    assert found.low[0] == pytest.approx(np.quantile(draws, 0.05), abs=0.026)  # one sample of 40, both ways
    assert found.high[0] == pytest.approx(np.quantile(draws, 0.95), abs=0.026)


def test_the_interval_shrinks_with_the_number_of_samples() -> None:
    widths = []
    for n in (20, 80, 320, 1280):
        labels = np.zeros(n, dtype=np.int64)
        found = table((np.arange(n) % 4 == 0).astype(np.int64), labels, labels)
        assert found.low[0] < 0.75 < found.high[0]
        widths.append(float(found.high[0] - found.low[0]))
    assert all(2.5 > wide / narrow > 1.6 for wide, narrow in pairwise(widths))
    assert widths[0] == pytest.approx(2 * 1.96 * np.sqrt(0.75 * 0.25 / 20), rel=0.2)


def test_more_confidence_gives_a_wider_interval() -> None:
    predicted, labels, index = random_case(1)
    narrow, wide = (table(predicted, labels, index, confidence=c) for c in (0.5, 0.99))
    assert wide.high[0] - wide.low[0] > narrow.high[0] - narrow.low[0]


def test_a_group_without_variation_has_an_interval_of_one_point() -> None:
    found = table(np.array([0, 0, 0]), np.array([0, 0, 1]), np.array([0, 0, 1]))
    assert (found.low[0], found.high[0]) == (1.0, 1.0)
    assert (found.low[1], found.high[1]) == (0.0, 0.0)


def test_the_same_generator_gives_the_same_table() -> None:
    one, other = (table(*random_case(0)) for _ in range(2))
    assert str(one) == str(other)


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="got 2 predictions, 3 groups and 3 labels"):
        table(np.zeros(2), np.zeros(3), np.zeros(3, dtype=np.int64))


def test_a_group_number_without_a_name_is_refused() -> None:

    with pytest.raises(DataError, match="name"):
        table(np.zeros(2), np.zeros(2), np.array([0, 4]))


def test_training_counts_of_another_length_are_refused() -> None:

    with pytest.raises(DataError, match="train_counts"):
        table(np.zeros(2), np.zeros(2), np.array([0, 1]), train_counts=[1, 2, 3])
