from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from exmap.errors import DataError
from exmap.evaluation import rerun_agreement, within_class_ari

LABELS = np.repeat([0, 1], 100)
INDEX = np.where(LABELS == 0, np.arange(200) % 2, 2)


def test_a_regrouping_that_says_the_same_agrees_fully_and_one_by_chance_not_at_all() -> None:
    rng = np.random.default_rng(0)
    same = rerun_agreement(lambda rows, seed: INDEX[rows], INDEX, LABELS, rng=rng)
    chance = rerun_agreement(
        lambda rows, seed: np.random.default_rng(seed).integers(0, 2, len(rows)), INDEX, LABELS, rng=rng, reruns=40
    )
    assert [run.ari for run in same] == [1.0] * 5
    assert [run.groups for run in same] == [3] * 5
    assert abs(np.mean([run.ari for run in chance])) < 0.05


def test_each_rerun_takes_another_part_and_another_seed() -> None:
    asked: list[tuple[tuple[int, ...], int]] = []

    def regroup(rows: np.ndarray, seed: int) -> np.ndarray:
        asked.append((tuple(rows.tolist()), seed))
        return INDEX[rows]

    found = rerun_agreement(regroup, INDEX, LABELS, rng=np.random.default_rng(0), reruns=3, share=0.8)
    assert {run.images for run in found} == {160}
    assert len({rows for rows, _ in asked}) == len({seed for _, seed in asked}) == 3
    assert all(list(rows) == sorted(set(rows)) for rows, _ in asked)


def test_unassigned_images_are_left_out_and_many_are_capped() -> None:
    index = np.where(np.arange(200) < 50, -1, INDEX)
    seen: list[int] = []

    def regroup(rows: np.ndarray, seed: int) -> np.ndarray:
        seen.extend(rows.tolist())
        return index[rows]

    found = rerun_agreement(regroup, index, LABELS, rng=np.random.default_rng(0), most=60)
    assert min(seen) >= 50
    assert {run.images for run in found} == {60}


def test_without_any_group_there_is_nothing_to_rerun() -> None:
    nothing = np.full(200, -1)
    assert rerun_agreement(lambda rows, seed: rows, nothing, LABELS, rng=np.random.default_rng(0)) == ()


def test_the_index_is_computed_inside_classes_that_either_grouping_splits() -> None:
    other = np.where(LABELS == 1, np.arange(200) % 3, 0)
    halves = [adjusted_rand_score(INDEX[rows], other[rows]) for rows in (LABELS == 0, LABELS == 1)]
    assert within_class_ari(INDEX, other, LABELS) == pytest.approx(np.mean(halves))
    assert within_class_ari(LABELS, LABELS, LABELS) == 1


def test_a_share_out_of_range_and_arrays_of_other_lengths_are_refused() -> None:
    with pytest.raises(DataError, match=r"must lie in \(0, 1\], got 1.2"):
        rerun_agreement(lambda rows, seed: rows, INDEX, LABELS, rng=np.random.default_rng(0), share=1.2)
    with pytest.raises(DataError, match="sample by sample, got 200 and 1 groups and 200 labels"):
        within_class_ari(INDEX, INDEX[:1], LABELS)
