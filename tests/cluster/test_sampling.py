"""Samples that stand for all images: in proportion, by the seed alone, and all of few."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from exmap.cluster.sampling import by_turns, sample_images, sample_said, stratified_rows

SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.integers(1, 400), st.integers(1, 12), st.integers(1, 500))
def test_each_stratum_has_its_share_to_within_one_row(seed: int, n: int, kinds: int, most: int) -> None:
    strata = np.random.default_rng(seed).integers(-1, kinds, n)
    rows = stratified_rows(strata, most, np.random.default_rng(seed))
    assert len(rows) == min(n, most)
    assert (np.diff(rows) > 0).all()
    for kind in np.unique(strata):
        share = (strata == kind).sum() * len(rows) / n
        assert abs((strata[rows] == kind).sum() - share) < 1


def test_all_of_few_are_drawn_without_asking_the_generator() -> None:
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert stratified_rows(np.zeros(5, dtype=np.int64), 5, rng).tolist() == [0, 1, 2, 3, 4]
    assert rng.bit_generator.state == before


def test_the_seed_decides_and_every_row_may_be_drawn() -> None:
    strata = np.repeat([0, 1], [900, 100])
    drawn = [stratified_rows(strata, 200, np.random.default_rng(seed)) for seed in range(60)]
    assert np.array_equal(drawn[0], stratified_rows(strata, 200, np.random.default_rng(0)))
    assert not np.array_equal(drawn[0], drawn[1])
    assert len(np.unique(np.concatenate(drawn))) == 1000


def test_images_are_drawn_by_class_and_prediction() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 5000)
    predicted = np.where(rng.random(5000) < 0.1, rng.integers(-1, 3, 5000), labels)
    rows = sample_images(labels, predicted, 500, rng)
    for label in range(3):
        for other in range(-1, 3):
            both = (labels == label) & (predicted == other)
            assert abs(both[rows].sum() - both.sum() / 10) < 1


def slow_turns(cells: np.ndarray, seed: int) -> list[int]:
    order = np.random.default_rng(seed).permutation(len(cells)).tolist()
    turns = [[cells[other] for other in order[:place]].count(cells[row]) for place, row in enumerate(order)]
    return [row for _, row in sorted(zip(turns, order, strict=True), key=lambda pair: pair[0])]


@given(SEEDS, st.integers(1, 60), st.integers(1, 7))
def test_cells_take_turns(seed: int, n: int, kinds: int) -> None:
    cells = np.random.default_rng(seed).integers(-2, kinds, n)
    assert by_turns(cells, np.random.default_rng(seed)).tolist() == slow_turns(cells, seed)


def test_the_sentence_names_both_numbers_and_the_setting() -> None:
    said = sample_said(1000, 2_000_000, "Last layers were fitted", "retrain.most_images")
    assert said.startswith("Last layers were fitted by 1,000 of 2,000,000 images, ")
    assert said.endswith("(retrain.most_images).")
