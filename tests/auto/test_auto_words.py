"""What is said of a choice: sentences made of its record alone."""

from __future__ import annotations

from typing import Any

import pytest

from exmap.auto import words
from exmap.results import AutoRecord, ClassFinding, DataCurvePoint, LastLayerVerdict


def finding(found: bool | None) -> ClassFinding:
    return ClassFinding.nothing(found, "why")


def record_of(**changes: Any) -> AutoRecord:
    fields: dict[str, Any] = {
        "chosen": "exmap[size=3]",
        "runner_up": "classes",
        "confidence": 0.8,
        "judged_on": "held-out halves",
        "reliance": None,
        "candidates": (),
        "shortcut": {"cat": finding(True), "dog": finding(False)},
        "repair": None,
        "data_curve": (),
        "repaired": True,
        "why": "It was chosen.",
        "remarks": (),
    }
    return AutoRecord(**(fields | changes))


def test_the_verdict_names_the_classes() -> None:
    said = words.verdict(record_of())
    assert said == (
        "A shortcut was found in class cat (1 of 2 classes); the classifier was retrained on the chosen groups."
    )
    many = record_of(shortcut={str(n): finding(True) for n in range(9)})
    assert "class 0, class 1, class 2, class 3, class 4 and 4 more (9 of 9 classes)" in words.verdict(many)


@pytest.mark.parametrize(
    ("repaired", "said"), [(False, "the classifier is left as it is."), (True, "auto.only_if_found is false.")]
)
def test_the_verdict_says_what_was_done_without_a_shortcut(repaired: bool, said: str) -> None:
    verdict = words.verdict(record_of(shortcut={"cat": finding(False)}, repaired=repaired))
    assert verdict.startswith("No shortcut was found; ")
    assert verdict.endswith(said)


def test_of_a_choice_that_was_not_made_only_the_reason_is_said() -> None:
    nothing = record_of(
        chosen=None, runner_up=None, confidence=None, why="Too few.", remarks=("Too few.",), repaired=False
    )
    assert words.verdict(nothing) == "Too few."
    assert words.confidence(nothing) == words.last_layer(nothing) == words.more_images(nothing) == ""
    assert words.remarks(nothing) == []
    assert words.remarks(record_of(remarks=("It is uncertain.",))) == ["It is uncertain."]


def test_confidence_says_what_it_means_and_names_the_runner_up_where_there_is_one() -> None:
    assert words.confidence(record_of()) == (
        "Confidence 80%: the chance that the chosen grouping is within 2 points of the best one, in accuracy of the "
        "worst group. The runner-up is classes."
    )
    assert words.confidence(record_of(runner_up=None)).endswith(" No other grouping may be chosen.")


@pytest.mark.parametrize(
    ("suffices", "said"), [(True, "is enough. "), (False, "is not enough. "), (None, "is enough cannot be said. ")]
)
def test_whether_the_last_layer_is_enough(suffices: bool | None, said: str) -> None:
    repair = LastLayerVerdict(last_layer_suffices=suffices, before=0.5, after=0.9, group="a", images=9, why="So it is.")
    assert f"{said}So it is." in words.last_layer(record_of(repair=repair))


@pytest.mark.parametrize(
    ("gain", "low", "high", "repaired", "said"),
    [
        (
            0.58,
            0.46,
            0.68,
            True,
            "Expect the worst chosen group to go from 12% to about 70% (90% interval 58% to 80%).",
        ),
        (0.58, 0.46, 0.68, False, "Retraining it would take the worst chosen group from 12% to about 70% ("),
        (
            0.02,
            -0.2,
            0.95,
            True,
            "No clear change is to be expected in the worst chosen group: from 12% to about 14% (",
        ),
        (0.02, -0.2, 0.95, True, "(90% interval 0% to 100%)."),
        (-0.08, -0.1, -0.01, True, "to go from 12% to about 4% (90% interval 2% to 11%)."),
    ],
)
def test_what_to_expect_of_the_worst_group(gain: float, low: float, high: float, repaired: bool, said: str) -> None:
    repair = LastLayerVerdict(
        last_layer_suffices=True,
        before=0.12,
        after=0.7,
        group="a",
        images=9,
        gain=gain,
        gain_low=low,
        gain_high=high,
        why="So it is.",
    )
    text = words.last_layer(record_of(repair=repair, repaired=repaired))
    assert text.startswith("Retraining the last layer is enough. So it is. ")
    assert said in text


def test_records_without_a_gain_say_nothing_of_one() -> None:
    repair = LastLayerVerdict(last_layer_suffices=True, before=0.5, after=0.9, group="a", images=9, why="So it is.")
    assert words.last_layer(record_of(repair=repair)) == "Retraining the last layer is enough. So it is."


def curve(*worst: float, spread: float = 0.01) -> tuple[DataCurvePoint, ...]:
    return tuple(
        DataCurvePoint(images=100 * 2**n, smallest_group=5, worst_group_accuracy=value, spread=spread)
        for n, value in enumerate(worst)
    )


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (curve(0.5, 0.6, 0.7), "From 200 to 400 images the worst chosen group goes from 60% to 70% right, more than"),
        (curve(0.6, 0.7, spread=0.2), "no more than draws differ"),
        (curve(0.6, 0.605, spread=0), "no more than draws differ"),  # less than a point is no gain
        (curve(0.7, 0.6), "no more than draws differ"),
    ],
)
def test_whether_more_images_would_help(points: tuple[DataCurvePoint, ...], said: str) -> None:
    assert said in words.more_images(record_of(data_curve=points))


def test_one_point_says_nothing_of_more_images() -> None:
    assert words.more_images(record_of(data_curve=curve(0.7))) == ""
