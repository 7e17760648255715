from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from exmap.errors import DataError
from exmap.evaluation import group_agreement


def slow_ari(true: list[int], found: list[int]) -> float:
    """Adjusted Rand index by counting pairs of samples."""
    pairs = list(combinations(range(len(true)), 2))
    same_true = [true[i] == true[j] for i, j in pairs]
    same_found = [found[i] == found[j] for i, j in pairs]
    both = sum(a and b for a, b in zip(same_true, same_found, strict=True))
    expected = sum(same_true) * sum(same_found) / len(pairs)
    return (both - expected) / ((sum(same_true) + sum(same_found)) / 2 - expected)


def slow_nmi(true: list[int], found: list[int]) -> float:
    """Mutual information divided by the mean of the two entropies."""
    n, value, entropies = len(true), 0.0, []
    for a in set(true):
        for b in set(found):
            share = sum(x == a and y == b for x, y in zip(true, found, strict=True)) / n
            if share:
                value += share * np.log(share * n * n / (true.count(a) * found.count(b)))
    for names in (true, found):
        entropies.append(-sum(names.count(a) / n * np.log(names.count(a) / n) for a in set(names)))
    return float(value / np.mean(entropies))


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_computed_inside_each_class_and_averaged(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(60) % 3)
    true = labels * 2 + (rng.random(60) < 0.3)
    found = np.where(rng.random(60) < 0.7, true, rng.integers(-1, 3, 60))
    result = group_agreement(found, true, labels)
    ari, nmi, precision, recall = [], [], [], []
    for label in range(3):
        t, f = true[labels == label].tolist(), found[labels == label].tolist()
        ari.append(slow_ari(t, f))
        nmi.append(slow_nmi(t, f))
        smallest = min(set(t), key=t.count)
        scores = []
        for name in set(f):
            hits = sum(a == smallest and b == name for a, b in zip(t, f, strict=True))
            p, r = hits / f.count(name), hits / t.count(smallest)
            scores.append((2 * p * r / (p + r) if p + r else 0.0, p, r))
        best = max(scores)
        precision.append(best[1])
        recall.append(best[2])
    assert result.ari == pytest.approx(np.mean(ari))
    assert result.nmi == pytest.approx(np.mean(nmi))
    assert result.minority_precision == pytest.approx(np.mean(precision))
    assert result.minority_recall == pytest.approx(np.mean(recall))
    assert [row.ari for row in result.by_class] == pytest.approx(ari)


def test_a_case_by_hand() -> None:
    labels = np.zeros(6, dtype=np.int64)
    true = np.array([0, 0, 0, 0, 1, 1])
    found = np.array([0, 0, 0, 1, 1, 1])
    result = group_agreement(found, true, labels, ("usual", "rare"))
    # Cluster 1 holds both rare samples and one other: precision 2/3, recall 1.
    assert result.minority_precision == pytest.approx(2 / 3)
    assert result.minority_recall == 1.0
    # Pairs together: 7 by truth, 6 by clusters, 4 by both, of 15; by chance 2.8.
    assert result.ari == pytest.approx((4 - 2.8) / (6.5 - 2.8))
    (row,) = result.by_class
    assert (row.label, row.minority, row.minority_count) == (0, "rare", 2)


@pytest.mark.parametrize("seed", range(3))
def test_groups_that_follow_the_truth_agree_perfectly_whatever_their_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(90) % 3
    true = labels * 3 + rng.integers(0, 3, 90)
    result = group_agreement(rng.permutation(9)[true], true, labels)
    assert (result.ari, result.nmi) == (pytest.approx(1), pytest.approx(1))
    assert (result.minority_precision, result.minority_recall) == (1.0, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_a_useless_clustering_scores_near_zero_although_its_purity_is_high(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(3000) % 3
    true = labels * 2 + (rng.random(3000) < 0.05)
    found = rng.integers(0, 2, 3000)
    pairs, counts = np.unique(np.stack([labels * 2 + found, true % 2]), axis=1, return_counts=True)
    purity = sum(counts[pairs[0] == p].max() for p in range(6)) / 3000
    assert purity > 0.93
    result = group_agreement(found, true, labels)
    assert abs(result.ari) < 0.02
    assert result.nmi < 0.02
    assert result.minority_precision < 0.1


def test_a_class_without_splits_is_one_cluster_and_scores_zero() -> None:
    labels = np.zeros(20, dtype=np.int64)
    result = group_agreement(labels, np.repeat([0, 1], [19, 1]), labels)
    assert (result.ari, result.nmi) == (0.0, 0.0)
    assert (result.minority_precision, result.minority_recall) == (0.05, 1.0)


def test_a_class_with_one_true_group_is_skipped() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    true = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    result = group_agreement(np.array([5, 5, 6, 6, 1, 2, 3, 4]), true, labels)
    assert result.ari == 1.0
    assert [row.label for row in result.by_class] == [0]


def test_without_a_class_of_several_true_groups_there_is_no_number() -> None:
    labels = np.array([0, 0, 1, 1, 2])
    result = group_agreement(labels, labels, labels)
    assert np.isnan([result.ari, result.nmi, result.minority_precision, result.minority_recall]).all()
    assert result.by_class == ()


def test_unassigned_samples_count_as_a_group_of_their_own() -> None:
    labels = np.zeros(6, dtype=np.int64)
    result = group_agreement(np.array([0, 0, 0, 0, -1, -1]), np.array([0, 0, 0, 0, 1, 1]), labels)
    assert result.ari == 1.0
    assert result.minority_recall == 1.0


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="got 2 pseudo-groups, 3 true groups and 3 labels"):
        group_agreement(np.zeros(2), np.zeros(3), np.zeros(3))
