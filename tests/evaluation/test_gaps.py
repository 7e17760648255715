from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from exmap.errors import DataError
from exmap.evaluation import shortcut_gaps
from exmap.records import GroupTable


def table(accuracy: list[float], count: list[int], train: list[int]) -> GroupTable:
    names = tuple(f"group {i}" for i in range(len(count)))
    values = np.where(np.array(count) > 0, accuracy, np.nan)
    share = np.array(train) / sum(train)
    return GroupTable(names, values, np.array(count), values, values, share)


def gaps(shape: tuple[int, ...], accuracy: list[float], count: list[int], train: list[int]) -> dict[str, float]:
    coordinates = np.array(list(product(*map(range, shape))), dtype=np.int64)
    attributes = ("background", "object", "weather")[: len(shape) - 1]
    return shortcut_gaps(table(accuracy, count, train), coordinates, attributes, np.array(train))


# class 0 usually has background 0 and object 0, class 1 the others
URBANCARS = [3610, 190, 190, 10, 10, 190, 190, 3610]


def test_two_shortcuts_have_three_gaps() -> None:
    accuracy = [1.0, 0.9, 0.6, 0.2, 0.4, 0.8, 0.7, 0.98]
    found = gaps((2, 2, 2), accuracy, [250] * 8, URBANCARS)
    usual = (3610 * 1.0 + 190 * 0.9 + 190 * 0.6 + 10 * 0.2 + 10 * 0.4 + 190 * 0.8 + 190 * 0.7 + 3610 * 0.98) / 8000
    assert found == pytest.approx(
        {
            "background": (0.6 + 0.8) / 2 - usual,
            "object": (0.9 + 0.7) / 2 - usual,
            "background + object": (0.2 + 0.4) / 2 - usual,
        }
    )
    assert list(found) == ["background", "object", "background + object"]


def test_groups_of_a_gap_count_by_their_test_images() -> None:
    accuracy = [1.0, 0.9, 0.6, 0.2, 0.4, 0.8, 0.7, 0.98]
    found = gaps((2, 2, 2), accuracy, [250, 250, 300, 250, 250, 100, 250, 250], URBANCARS)
    even = gaps((2, 2, 2), accuracy, [250] * 8, URBANCARS)
    assert found["background"] - even["background"] == pytest.approx((300 * 0.6 + 100 * 0.8) / 400 - 0.7)
    assert found["object"] == pytest.approx(even["object"])


def test_three_classes_have_a_common_value_each() -> None:
    train = [80, 10, 10, 5, 5, 90, 10, 70, 20]  # common: 0, 2, 1
    accuracy = [0.9, 0.3, 0.5, 0.1, 0.2, 1.0, 0.4, 0.8, 0.6]
    found = gaps((3, 3), accuracy, [10, 10, 20, 10, 10, 10, 10, 10, 30], train)
    usual = sum(a * n for a, n in zip(accuracy, train, strict=True)) / 300
    uncommon = (10 * 0.3 + 20 * 0.5 + 10 * 0.1 + 10 * 0.2 + 10 * 0.4 + 30 * 0.6) / 90
    assert found == pytest.approx({"background": uncommon - usual})


def test_a_gap_without_test_images_is_not_a_number() -> None:
    found = gaps((2, 2, 2), [0.5] * 8, [9, 9, 9, 0, 0, 9, 9, 9], URBANCARS)
    assert math.isnan(found["background + object"])
    assert found["background"] == pytest.approx(0)
    assert found["object"] == pytest.approx(0)


def test_an_empty_group_takes_no_part_in_a_gap() -> None:
    found = gaps((2, 2, 2), [1.0, 1.0, 0.6, 1.0, 1.0, 0.8, 1.0, 1.0], [9, 9, 9, 9, 9, 0, 9, 9], URBANCARS)
    usual = 1 - 0.4 * 190 / (8000 - 190)
    assert found["background"] == pytest.approx(0.6 - usual)


def test_an_attribute_of_one_value_has_no_gap() -> None:
    found = gaps((2, 1), [0.5, 0.7], [9, 9], [30, 10])
    assert list(found) == ["background"]
    assert math.isnan(found["background"])


def test_no_attributes_have_no_gaps() -> None:
    assert gaps((2,), [0.5, 0.7], [9, 9], [30, 10]) == {}


def test_three_shortcuts_have_seven_gaps() -> None:
    train = [90 if len(set(row)) == 1 else 1 for row in product(range(2), repeat=4)]
    accuracy = [1 - 0.1 * sum(value != row[0] for value in row) for row in product(range(2), repeat=4)]
    found = gaps((2, 2, 2, 2), accuracy, [10] * 16, train)
    usual = found["background"] - 0.9
    assert found["background + object + weather"] - usual == pytest.approx(0.7)
    assert found["background + weather"] - usual == pytest.approx(0.8)
    assert len(found) == 7


@pytest.mark.parametrize("seed", range(5))
def test_gaps_are_what_a_loop_over_groups_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, 2, 3)
    rows = list(product(*map(range, shape)))
    accuracy, count = rng.random(18).tolist(), rng.integers(0, 5, 18).tolist()
    train = rng.permutation(18 * 3)[:18].tolist()  # no two alike
    found = gaps(shape, accuracy, count, train)
    common = {
        (label, place): max(
            range(shape[place]),
            key=lambda value, at=(label, place): sum(
                n for row, n in zip(rows, train, strict=True) if (row[0], row[at[1]]) == (at[0], value)
            ),
        )
        for label in range(3)
        for place in (1, 2)
    }
    filled = [i for i in range(18) if count[i]]
    usual = sum(accuracy[i] * train[i] for i in filled) / sum(train[i] for i in filled)
    for name, wanted in (("background", {1}), ("object", {2}), ("background + object", {1, 2})):
        members = [i for i in filled if {p for p in (1, 2) if rows[i][p] != common[rows[i][0], p]} == wanted]
        hits = sum(accuracy[i] * count[i] for i in members)
        total = sum(count[i] for i in members)
        assert found[name] == pytest.approx(hits / total - usual if total else math.nan, nan_ok=True)


def test_coordinates_and_counts_that_do_not_fit_the_table_are_refused() -> None:
    groups = table([0.5] * 4, [9] * 4, [1] * 4)
    with pytest.raises(DataError) as caught:
        shortcut_gaps(groups, np.zeros((4, 2), dtype=np.int64), ("a", "b"), np.ones(4, dtype=np.int64))
    assert str(caught.value) == (
        "gaps need one row of 3 coordinates and one training count per group, got (4, 2) and 4 for 4 groups"
    )
    with pytest.raises(DataError, match=r"got \(4, 2\) and 3 for 4 groups$"):
        shortcut_gaps(groups, np.zeros((4, 2), dtype=np.int64), ("a",), np.ones(3, dtype=np.int64))
