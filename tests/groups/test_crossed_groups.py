from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exmap.errors import DataError
from exmap.groups.crossed import FEWEST, cross_groups
from exmap.records import Groups


def groups(index: list[int], names: str, source: str = "auto", used: tuple[str, ...] = ("class labels",)) -> Groups:
    """Groups of two classes: capital letters are of class 1."""
    classes = tuple(int(name.isupper()) for name in names)
    return Groups(
        np.array(index),
        tuple(f"class {c} / {n}" for c, n in zip(classes, names, strict=True)),
        source,
        used,
        None,
        classes,
    )


def sizes(found: Groups) -> dict[str, int]:
    return dict(zip(found.names, found.counts().tolist(), strict=True))


def test_a_group_is_parted_by_the_earlier_groups_of_its_images() -> None:
    now = groups([0] * 50 + [1] * 45, "aB")
    then = groups([0] * 30 + [1] * 20 + [2] * 45, "xyZ", used=("true groups",))
    found = cross_groups(now, then)
    assert sizes(found) == {"class 0 / a & x": 30, "class 0 / a & y": 20, "class 1 / B": 45}
    assert (found.classes, found.parts, found.source) == ((0, 0, 1), (0, 1, 0), "auto")
    assert found.labels_used == ("class labels", "true groups")


def test_crossings_that_are_too_small_join_the_smallest_other_one_of_their_group() -> None:
    now = groups([0] * 100, "a")
    then = groups([0] * 60 + [1] * 32 + [2] * 8, "xyz")
    assert sizes(cross_groups(now, then)) == {"class 0 / a & x": 60, "class 0 / a & y or 1 other": 40}


def test_crossings_that_are_large_enough_together_are_pooled() -> None:
    now = groups([0] * 100, "a")
    then = groups([0] * 70 + [1] * 18 + [2] * 12, "xyz")
    assert sizes(cross_groups(now, then)) == {"class 0 / a & x": 70, "class 0 / a & y or 1 other": 30}


def test_a_small_group_stays_whole_and_an_empty_one_empty() -> None:
    now, then = groups([0] * 5 + [2] * 40, "abC"), groups([0, 1, 0, 1, 0] + [0] * 40, "xy")
    assert sizes(cross_groups(now, then)) == {"class 0 / a": 5, "class 0 / b": 0, "class 1 / C": 40}


def test_unassigned_images_stay_so_and_those_of_no_earlier_group_stay_in_their_own() -> None:
    now, then = groups([-1] * 5 + [0] * 50, "a"), groups([0] * 30 + [-1] * 25, "x")
    found = cross_groups(now, then)
    assert (found.index < 0).sum() == 5
    assert sizes(found) == {"class 0 / a & unassigned": 25, "class 0 / a & x": 25}


def test_groups_of_other_images_are_refused() -> None:
    with pytest.raises(DataError, match="crossed with earlier ones of the same images, got 2 and 3; make the earlier"):
        cross_groups(groups([0, 0], "a"), groups([0, 0, 0], "x"))


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 4)), min_size=1, max_size=300))
def test_crossing_parts_groups_and_does_nothing_else(pairs: list[tuple[int, int]]) -> None:
    now, then = groups([a for a, _ in pairs], "abC"), groups([b for _, b in pairs], "vwxYZ")
    found = cross_groups(now, then)
    assert np.array_equal(found.index < 0, now.index < 0)
    assert len(set(found.names)) == len(found.names)
    for number, (name, count) in enumerate(zip(found.names, found.counts(), strict=True)):
        own = now.names.index(name.partition(" & ")[0])
        assert (now.index[found.index == number] == own).all()
        assert found.classes[number] == now.classes[own]
        assert count >= FEWEST or count == now.counts()[own]
