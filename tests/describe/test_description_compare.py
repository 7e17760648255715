"""How two sets of images are compared: by rank, by share, and corrected for how often."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from exmap.describe.columns import Column
from exmap.describe.compare import Found, as_difference, compare_numbers, compare_texts


def texts(*values: str) -> np.ndarray:
    return np.array(values, dtype=object)


def test_the_effect_is_how_often_one_is_larger_less_how_often_it_is_smaller() -> None:
    rng = np.random.default_rng(0)
    group, others = rng.integers(0, 8, 30).astype(float), rng.integers(2, 9, 50).astype(float)
    found = compare_numbers(group, others)
    assert found is not None
    above = (group[:, None] > others).mean() - (group[:, None] < others).mean()
    assert found.effect == pytest.approx(above)
    assert found.low < found.effect < found.high
    assert (found.group, found.others) == (np.median(group), np.median(others))


def test_the_interval_holds_the_effect_in_95_of_100_draws() -> None:
    rng = np.random.default_rng(0)
    truth = 0.521  # of two normal distributions one standard deviation apart: 2 Phi(1 / sqrt(2)) - 1
    inside = 0
    for _ in range(300):
        found = compare_numbers(rng.normal(1, 1, 40), rng.normal(0, 1, 90))
        assert found is not None
        inside += found.low <= truth <= found.high
    assert 0.91 <= inside / 300 <= 0.99


def test_sets_that_do_not_overlap_still_have_an_interval() -> None:
    found = compare_numbers(np.arange(5.0) + 10, np.arange(6.0))
    assert found is not None
    assert found.effect == 1
    assert 0.5 < found.low < 1


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("ties", [False, True])
def test_the_p_value_is_that_of_mann_and_whitney(shift: float, ties: bool) -> None:
    rng = np.random.default_rng(3)
    group, others = rng.normal(shift, 1, 25), rng.normal(0, 1, 70)
    if ties:
        group, others = np.round(group), np.round(others)
    found = compare_numbers(group, others)
    assert found is not None
    assert found.p_value == pytest.approx(stats.mannwhitneyu(group, others, method="asymptotic").pvalue, rel=1e-9)


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0, 1.0], [np.nan, 1.0, 2.0, np.nan]])
def test_nothing_is_compared_that_is_one_value_or_hardly_known(values: list[float]) -> None:
    assert compare_numbers(np.array(values), np.ones(5)) is None


def test_values_that_are_not_known_are_left_out() -> None:
    group, others = np.array([3.0, 4, 5, 6]), np.array([1.0, 2, 3, 4])
    with_gaps = compare_numbers(np.append(group, np.nan), np.append(others, [np.nan, np.inf]))
    assert with_gaps == compare_numbers(group, others)


def test_of_texts_the_value_is_named_whose_share_differs_most() -> None:
    found = compare_texts(texts(*"aaaaaaab"), texts(*"abbbbbcc"))
    assert found is not None
    assert (found.value, found.group, found.others) == ("a", 0.875, 0.125)
    assert found.effect == pytest.approx(0.75)
    assert found.cramers_v is not None
    assert 0.5 < found.cramers_v <= 1
    assert found.low < 0.75 < found.high


def test_what_is_missing_is_named_where_nothing_takes_its_place() -> None:
    found = compare_texts(texts(*"abcdefgh"), texts(*"zzzzzzab"))
    assert found is not None
    assert (found.value, found.effect) == ("z", pytest.approx(-0.75))


def test_of_yes_and_no_the_share_of_yes_is_said() -> None:
    found = compare_texts(texts(*"0000001"), texts(*"1111110"), of="1")
    assert found is not None
    assert (found.value, found.group) == ("1", pytest.approx(1 / 7))


def test_rare_values_of_many_are_one() -> None:
    rng = np.random.default_rng(0)
    group, others = (np.array([f"v{i}" for i in rng.integers(0, 90, 400)], dtype=object) for _ in range(2))
    found = compare_texts(group, others)
    assert found is not None
    assert found.p_value > 0.001
    assert abs(found.effect) < 0.05


def test_independent_texts_have_no_association() -> None:
    rng = np.random.default_rng(1)
    p_values, sizes = [], []
    for _ in range(100):
        group, others = (rng.choice(["a", "b", "c"], 60).astype(object) for _ in range(2))
        found = compare_texts(group, others)
        assert found is not None
        assert found.cramers_v is not None
        p_values.append(found.p_value)
        sizes.append(found.cramers_v)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.12
    assert np.median(sizes) < 0.1


@pytest.mark.parametrize(
    ("p_value", "effect", "tests", "matters"),
    [(1e-4, 0.5, 10, True), (1e-4, 0.5, 1000, False), (1e-9, 0.2, 10, False), (1e-4, -0.5, 10, True)],
)
def test_only_clear_and_large_differences_matter(p_value: float, effect: float, tests: int, matters: bool) -> None:
    column = Column("brightness", "pixels", "light", "are brighter", "are darker")
    found = as_difference(column, Found(0.5, 0.4, effect, -1.0, 1.0, p_value), tests)
    assert found.matters is matters
    assert found.p_value == pytest.approx(p_value * tests)
    assert found.words == ("are brighter" if effect > 0 else "are darker")
