"""What holds of a table of accuracies whatever the groups, and of the interval of each."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from exmap.evaluation import group_table, worst_share

SAMPLES = st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 2), st.integers(0, 2)), max_size=60)


@given(SAMPLES, st.integers(0, 2**32 - 1))
def test_accuracies_lie_in_their_intervals_and_counts_add_up(samples: list[tuple[int, ...]], seed: int) -> None:
    index, labels, predicted = np.array(samples, dtype=np.int64).reshape(-1, 3).T
    names = [f"g{g}" for g in range(5)]
    found = group_table(predicted, labels, index, names, rng=np.random.default_rng(seed))
    filled = found.count > 0
    assert found.count.sum() == (index >= 0).sum()
    for values in (found.accuracy, found.low, found.high):
        assert np.array_equal(np.isnan(values), ~filled)
    low, accuracy, high = (values[filled] for values in (found.low, found.accuracy, found.high))
    ordered = np.stack([np.zeros_like(low), low, accuracy, high, np.ones_like(low)])
    assert (np.diff(ordered, axis=0) >= -1e-12).all()
    if filled.any():
        assert accuracy.min() <= found.mean <= accuracy.max()
        assert found.worst == worst_share(predicted == labels, index) == accuracy.min()
        assert found.accuracy[names.index(found.worst_group)] == found.worst


@given(SAMPLES.filter(len), st.integers(0, 2**32 - 1))
def test_the_order_of_samples_changes_neither_counts_nor_accuracies(samples: list[tuple[int, ...]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.array(samples, dtype=np.int64)
    one, other = (
        group_table(each[:, 1], each[:, 2], each[:, 0], list("abcde"), rng=rng)
        for each in (rows, rng.permutation(rows))
    )
    assert np.array_equal(one.count, other.count)
    np.testing.assert_allclose(one.accuracy, other.accuracy, rtol=1e-12)
