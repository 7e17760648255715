"""Whether the last layer suffices, and what more images would give: hand cases, and which images are measured on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted_strategies import Planted, explained_of, planted

from exmap.auto import data_curve, judge_last_layer
from exmap.auto.repair import expected_gain
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
    groups = Groups(index, tuple(chr(ord("a") + n) for n in range(len(parts))), "auto", ())
    after = tuple(right for _, right in parts)
    return judge_last_layer(margins(after), margins(before or after), truth, groups)


def test_a_worst_group_near_the_rest_of_its_class_needs_no_more() -> None:
    found = judged((100, 96), (30, 27), before=(100, 6))
    assert found.last_layer_suffices is True
    assert (found.group, found.images, found.images_needed) == ("b", 30, None)
    assert (found.before, found.after) == (0.2, 0.9)
    assert found.why.endswith(
        "right in 27 of 30 (the classifier as it is: 20% in its worst) and the rest of the class in 96%."
    )


def test_a_worst_group_far_behind_the_rest_of_its_class_lacks_features() -> None:
    found = judged((100, 96), (40, 10))
    assert found.last_layer_suffices is False
    assert "more than the last layer should be retrained" in found.why
    assert "auto.repair=auto" in found.why


def test_too_few_images_say_nothing_but_how_many_would_do() -> None:
    found = judged((100, 96), (8, 6))
    assert found.last_layer_suffices is None
    assert found.after == 0.75
    assert found.why.endswith(
        "8 images cannot tell a group that is no longer behind from one 20 points behind; "
        f"{found.images_needed} images of this group would be enough."
    )
    assert 15 < found.images_needed < 30
    # With as many images the answer is never null, however many of them are right.
    size = found.images_needed
    for right in range(size + 1):
        assert judged((100, 96), (size, right)).last_layer_suffices is not None
    # One fewer leaves it open at some number.
    assert None in {judged((100, 96), (size - 1, right)).last_layer_suffices for right in range(size - 6, size)}


def test_few_images_say_something_where_it_is_clear() -> None:
    failed = judged((100, 96), (8, 1))
    assert (failed.last_layer_suffices, failed.images_needed) == (False, None)
    # 14 of 14 are too many for a group that is right in 76 % of cases (a chance of 2 %), though not 14 times 96 %.
    good = judged((100, 96), (14, 14))
    assert (good.last_layer_suffices, good.images_needed) == (True, None)
    assert judged((1000, 960), (8, 8), (8, 8)).last_layer_suffices is True  # the worst group is the large one
    assert judged((1000, 960), (12, 11)).last_layer_suffices is None  # a chance of 18 %


def test_more_than_ten_points_may_be_chance() -> None:
    assert judged((1000, 600), (100, 45)).last_layer_suffices is False
    found = judged((1000, 600), (60, 29))
    assert found.last_layer_suffices is True
    assert found.why.endswith("Chance alone can explain that difference.")


def test_many_groups_are_not_behind_by_chance() -> None:
    # Of two groups, the worst at 77 % is behind; of 31 groups, one as bad is there by chance.
    assert judged((1000, 960), (22, 17)).last_layer_suffices is False
    assert judged((1000, 960), (22, 17), *[(22, 21)] * 40).last_layer_suffices is not False


def test_a_large_group_that_is_behind_is_not_hidden_by_a_small_one() -> None:
    found = judged((1000, 960), (60, 40), (8, 5))
    assert (found.last_layer_suffices, found.group, found.images) == (False, "b", 60)


def test_no_number_of_images_helps_where_the_rest_is_too_small() -> None:
    found = judged((8, 8), (8, 5))
    assert (found.last_layer_suffices, found.images_needed) == (None, None)
    assert found.why.endswith("the rest of the class also has too few images.")


# The gain


def test_the_gain_is_what_the_worst_group_gains() -> None:
    found = judged((200, 190), (40, 30), before=(200, 8))
    assert found.gain == pytest.approx(30 / 40 - 8 / 40, abs=0.01)
    assert -1 <= found.gain_low < found.gain < found.gain_high <= 1
    # 1.645 standard errors of a difference of 0.55, were both accuracies independent of each other: 0.15; here the
    # images that were right stay right.
    assert 0.08 < found.gain - found.gain_low < 0.17
    assert judged((200, 190), (40, 30), before=(200, 8)) == found
    wide = judged((200, 190), (10, 7), before=(200, 2))
    assert wide.gain_high - wide.gain_low > 1.5 * (found.gain_high - found.gain_low)


def test_a_gain_without_an_error_has_an_interval_too() -> None:
    found = judged((100, 100), (20, 20), before=(100, 0))
    assert found.gain == 1
    assert 0.8 < found.gain_low < 0.99
    assert found.gain_high == 1


def two_draws(rng: np.random.Generator, before: np.ndarray, after: np.ndarray, index: np.ndarray) -> list[np.ndarray]:
    return [rng.random(len(index)) < accuracy[index] for accuracy in (after, before)]


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    index = np.repeat([0, 1, 2, 3], [200, 20, 200, 30])
    before, after = np.array([0.95, 0.2, 0.95, 0.5]), np.array([0.95, 0.7, 0.95, 0.9])
    rng = np.random.default_rng(0)
    found = [expected_gain(*two_draws(rng, before, after, index), index, seed=n) for n in range(150)]
    held = np.mean([low <= 0.5 <= high for _, low, high in found])
    assert 0.82 <= held <= 0.97
    assert np.mean([gain for gain, _, _ in found]) == pytest.approx(0.5, abs=0.05)


def test_the_smallest_of_many_accuracies_does_not_bias_the_gain() -> None:
    index = np.repeat(np.arange(8), [200, 20, 20, 20, 200, 20, 20, 20])
    before, after = np.full(8, 0.85), np.full(8, 0.95)
    rng = np.random.default_rng(1)
    gains, naive = [], []
    for n in range(100):
        right, was = two_draws(rng, before, after, index)
        gains.append(expected_gain(right, was, index, seed=n)[0])
        worst = [min(each[index == group].mean() for group in range(8)) for each in (right, was)]
        naive.append(worst[0] - worst[1])
    assert np.mean(gains) == pytest.approx(0.1, abs=0.02)
    assert np.mean(naive) > 0.12


def test_earlier_records_have_no_gain() -> None:
    old = {"last_layer_suffices": True, "before": 0.5, "after": 0.9, "group": "a", "images": 20, "why": "So it is."}
    found = LastLayerVerdict.from_json(old)
    assert (found.images_needed, found.gain, found.gain_low, found.gain_high) == (None, None, None, None)
    assert found.to_json() == old


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
    assert (nothing.images_needed, nothing.gain, nothing.gain_low, nothing.gain_high) == (None, None, None, None)


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
