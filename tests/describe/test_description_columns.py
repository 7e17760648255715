"""Metadata and facts of files become numbers and texts that can be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exmap.describe.columns import file_columns, given_columns
from exmap.errors import DataError


def one(values: list[Any]) -> Any:
    columns, remarks = given_columns({"column": values}, len(values))
    assert len(columns) + len(remarks) == 1
    return columns[0] if columns else remarks[0]


def test_numbers_are_numbers_also_as_texts() -> None:
    column = one(["1.5", "2", "", None, "7e2", 3, 4, 5, 6])
    assert np.array_equal(column.numbers, [1.5, 2, np.nan, np.nan, 700, 3, 4, 5, 6], equal_nan=True)
    assert (column.more, column.less) == ("have a higher column", "have a lower column")


def test_few_numbers_are_kinds() -> None:
    column = one([1, 2, 3, 2, 1, 3, 2, 2, None])
    assert column.numbers is None
    assert list(column.texts) == ["1", "2", "3", "2", "1", "3", "2", "2", ""]


@pytest.mark.parametrize(
    "values", [["0", "1", "1"], [True, False, True], ["no", "yes", ""], [0.0, 1.0, 1.0], [-1, 1, 1]]
)
def test_yes_and_no_are_said_as_marks(values: list[Any]) -> None:
    column = one(values * 3)
    assert column.more == "are marked column"
    assert column.of in ("1", "True", "yes", "1.0")


@pytest.mark.parametrize(
    "values",
    [
        [f"image-{i}" for i in range(30)],
        list(range(30)),
        ["all"] * 30,
        [None] * 30,
        [float("nan")] * 30,
    ],
    ids=["names", "numbers of images", "one value", "nothing", "nan"],
)
def test_what_says_nothing_of_a_group_is_left_out_with_a_word(values: list[Any]) -> None:
    assert "left out" in one(values)


def test_a_column_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match="one value per image, got 2 of place for 3 images"):
        given_columns({"place": [1, 2]}, 3)


def test_shape_and_compression_follow_from_sizes() -> None:
    facts = {"bytes": [1000, 2000, None], "width": [100, 100, 100], "height": [50, 100, 0], "format": ["JPEG"] * 3}
    columns = {column.name: column for column in file_columns(facts, 3)}
    assert set(columns) == {"bytes", "width", "height", "aspect", "bits per pixel"}
    assert np.array_equal(columns["aspect"].numbers, [2, 1, np.nan], equal_nan=True)
    assert columns["bits per pixel"].numbers[:2] == pytest.approx([1.6, 1.6])
    assert np.isnan(columns["bytes"].numbers[2])


def test_cameras_are_kinds_of_files() -> None:
    (column,) = file_columns({"camera": ["A", "B", "A", "", "B"]}, 5)
    assert (column.kind, column.more.format("A")) == ("file", "have the camera “A”")


def test_no_facts_are_no_columns() -> None:
    assert file_columns(None, 3) == []
    assert given_columns(None, 3) == ([], [])
