"""Whether the last layer suffices, and what more images would give: hand cases, and which images are measured on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted_strategies import Planted, explained_of, planted

from exmap.auto import data_curve, judge_last_layer
from exmap.records import Groups
from exmap.results import LastLayerVerdict

Part = tuple[int, int]  # images of a group, and how many are right


def judged(
    *parts: Part, before: tuple[int, ...] | None = None, labels: tuple[int, ...] | None = None
) -> LastLayerVerdict:
    """Judge groups of one class each, or of those given."""

    def margins(right: tuple[int, ...]) -> np.ndarray:
        return np.concatenate(
            [np.repeat([0.5, -0.5], [good, size - good]) for (size, _), good in zip(parts, right, strict=True)]
        )

    sizes = [size for size, _ in parts]
    index = np.repeat(np.arange(len(parts)), sizes)
    truth = np.repeat(labels or (0,) * len(parts), sizes)
    groups = Groups(index, tuple("abcdef"[: len(parts)]), "auto", ())
    after = tuple(right for _, right in parts)
    return judge_last_layer(margins(after), margins(before or after), truth, groups)


def test_a_worst_group_near_the_rest_of_its_class_needs_no_more() -> None:
    found = judged((100, 96), (20, 18), before=(100, 5))
    assert found.last_layer_suffices is True
    assert (found.group, found.images) == ("b", 20)
    assert (found.before, found.after) == (0.25, 0.9)
    assert "right in 18 of 20 (the classifier as it is: 25% in its worst) and the rest of the class in 96%" in found.why


def test_a_worst_group_far_behind_the_rest_of_its_class_lacks_features() -> None:
    found = judged((100, 96), (40, 10))
    assert found.last_layer_suffices is False
    assert "the whole network should be retrained" in found.why
    assert "subg" in found.why


def test_few_images_that_are_behind_say_nothing() -> None:
    found = judged((100, 96), (8, 6))
    assert found.last_layer_suffices is None
    assert "so few images cannot say" in found.why
    assert found.after == 0.75


def test_the_rest_is_that_of_the_class_alone() -> None:
    # The worst group of a hard class is no worse than the rest of that class, whatever the other class's accuracy.
    found = judged((100, 62), (40, 24), (100, 100), labels=(0, 0, 1))
    assert found.last_layer_suffices is True
    assert "the rest of the class in 62%" in found.why


def test_a_class_of_one_group_is_compared_with_all_others() -> None:
    found = judged((60, 20), (60, 60), labels=(0, 1))
    assert found.last_layer_suffices is False
    assert found.group == "a"
    assert "the rest of the class in 100%" in found.why


def test_groups_too_small_to_look_at_have_no_say() -> None:
    found = judged((100, 96), (50, 48), (7, 0))
    assert found.last_layer_suffices is True
    assert found.group in ("a", "b")
    nothing = judged((100, 96), (7, 0))
    assert nothing.last_layer_suffices is None
    assert nothing.why == "No two groups have 8 images, so nothing was measured."
    assert (nothing.before, nothing.after, nothing.group, nothing.images) == (None, None, "", 0)


def test_a_margin_of_nothing_is_not_right_and_images_without_a_group_are_in_none() -> None:
    index = np.repeat([0, 1, -1], [10, 10, 10])
    margins = np.where(index == 1, 0.0, 1.0)
    found = judge_last_layer(margins, margins, np.zeros(30, dtype=int), Groups(index, ("a", "b"), "auto", ()))
    assert (found.group, found.images, found.after) == ("b", 10, 0)


# The curve


@pytest.fixture(scope="module")
def known() -> Planted:
    return planted(n=200, minority=0.25)


@pytest.fixture(scope="module")
def groups(known: Planted) -> Groups:
    return Groups(known.explained.labels * 2 + known.strategy, ("a", "b", "c", "d"), "auto", ())


def test_the_curve_rises_to_half_of_the_images_where_the_others_are_judged(known: Planted, groups: Groups) -> None:
    points = data_curve(known.explained, groups, seed=0)
    assert [point.images for point in points] == [10, 20, 50, 100]
    assert [point.smallest_group for point in points] == sorted(point.smallest_group for point in points)
    assert points[-1].smallest_group == pytest.approx(12.5, abs=4)  # half of 25
    assert points[-1].worst_group_accuracy > 0.85
    assert all(0 <= point.worst_group_accuracy <= 1 and 0 <= point.spread <= 0.5 for point in points)
    again = data_curve(known.explained, groups, seed=0)
    assert again == points
    one_draw = data_curve(known.explained, groups, draws=1, seed=0)
    assert [(point.images, point.spread) for point in one_draw] == [(10, 0), (20, 0), (50, 0), (100, 0)]


def test_other_images_are_judged_where_there_are_such(known: Planted, groups: Groups) -> None:
    other = planted(n=120, minority=0.25, seed=9)
    judge = Groups(other.explained.labels * 2 + other.strategy, groups.names, "auto", ())
    points = data_curve(known.explained, groups, (other.explained, judge), seed=0)
    assert [point.images for point in points] == [20, 40, 100, 200]
    assert points[-1].worst_group_accuracy > 0.85
    swapped = replace(other.explained, labels=1 - other.explained.labels)
    wrong = data_curve(known.explained, groups, (swapped, judge), seed=0)
    assert wrong[-1].worst_group_accuracy < 0.15


def test_images_without_a_group_are_neither_fitted_to_nor_judged(known: Planted, groups: Groups) -> None:
    index = groups.index.copy()
    index[:40] = -1
    part = replace(groups, index=index)
    points = data_curve(known.explained, part, seed=0)
    assert points[-1].images == 80
    other = data_curve(known.explained, part, (known.explained, part), seed=0)
    assert other[-1].images == 160


def test_groups_too_small_to_measure_leave_no_points() -> None:
    known = planted(n=20)
    each = Groups(np.arange(20), tuple(map(str, range(20))), "auto", ())
    assert data_curve(known.explained, each, seed=0) == ()


def test_a_share_of_one_class_is_left_out() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [36, 4])
    features = (labels[:, None] + 0.1 * rng.normal(size=(40, 3))).astype(np.float32)
    explained = explained_of(labels, np.zeros((40, 1, 1, 1)), features, np.eye(2)[labels])
    points = data_curve(explained, Groups(labels, ("a", "b"), "auto", ()), seed=0)
    # 2 of 20 images are mostly of one class; 20 are of both.
    assert [point.images for point in points][-1] == 20
    assert all(point.worst_group_accuracy > 0.9 for point in points)
