from __future__ import annotations

import numpy as np
import pytest

from exmap.errors import DataError
from exmap.retrain import balanced_subset
from exmap.retrain.balance import balanced_size


def slow_size(index: list[int], smallest_group: int) -> int:
    sizes = [index.count(group) for group in set(index) if group >= 0]
    large = [size for size in sizes if size >= smallest_group]
    return min(large) if large else min(sizes)


@pytest.mark.parametrize("seed", range(25))
def test_every_group_takes_part_with_the_balanced_size_or_all_it_has(seed: int) -> None:
    rng = np.random.default_rng(seed)
    smallest = int(rng.integers(1, 12))
    index = rng.choice([-1, 0, 1, 3, 4], size=int(rng.integers(5, 90)), p=[0.1, 0.5, 0.25, 0.1, 0.05])  # 2 is empty
    index[:2] = [0, 1]
    rows = balanced_subset(index, np.random.default_rng(seed), smallest_group=smallest)
    size = slow_size(index.tolist(), smallest)
    assert balanced_size(np.bincount(index[index >= 0]), smallest) == size
    assert len(set(rows.tolist())) == len(rows)
    assert (index[rows] >= 0).all()
    drawn = index[rows].tolist()
    for group in set(index.tolist()) - {-1}:
        assert drawn.count(group) == min(size, index.tolist().count(group))


@pytest.mark.parametrize("seed", range(5))
def test_the_subset_is_what_a_loop_over_groups_draws(seed: int) -> None:
    index = np.random.default_rng(seed).integers(-1, 3, 60)
    rng, wanted = np.random.default_rng(99), []
    for group in sorted(set(index.tolist()) - {-1}):
        members = np.array([i for i, g in enumerate(index.tolist()) if g == group])
        wanted += rng.permutation(members)[: slow_size(index.tolist(), 6)].tolist()
    assert balanced_subset(index, np.random.default_rng(99)).tolist() == wanted


def test_a_small_group_takes_part_with_all_but_does_not_set_the_size() -> None:
    index = np.repeat([0, 1, 2], [40, 10, 3])
    rows = balanced_subset(index, np.random.default_rng(0))
    assert np.bincount(index[rows]).tolist() == [10, 10, 3]
    assert sorted(rows[index[rows] == 2]) == [50, 51, 52]
    assert np.bincount(index[balanced_subset(index, np.random.default_rng(0), smallest_group=3)]).tolist() == [3, 3, 3]


def test_where_every_group_is_small_the_smallest_sets_the_size() -> None:
    index = np.repeat([0, 1, 2], [5, 2, 4])
    assert np.bincount(index[balanced_subset(index, np.random.default_rng(0))]).tolist() == [2, 2, 2]


def test_the_draw_depends_on_the_generator_alone() -> None:
    index = np.repeat([0, 1], [50, 10])
    one, same, other = (balanced_subset(index, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_all_members_are_drawn_in_the_long_run() -> None:
    index, rng = np.repeat([0, 1], [30, 8]), np.random.default_rng(0)
    seen = np.concatenate([balanced_subset(index, rng) for _ in range(60)])
    assert set(seen.tolist()) == set(range(38))


@pytest.mark.parametrize("index", [np.array([-1, -1, -1]), np.array([], dtype=np.int64)])
def test_nothing_assigned_is_refused(index: np.ndarray) -> None:
    with pytest.raises(DataError, match="at least one group with samples, got none; every sample is unassigned"):
        balanced_subset(index, np.random.default_rng(0))
