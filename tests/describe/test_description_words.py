"""The sentence says what a person would see, and never why."""

from __future__ import annotations

from typing import Any

import pytest

from exmap.describe.words import followed, is_against, overlaps, picked, sentence
from exmap.results import AutoRecord, ClassFinding, ConstantPatch, Difference, PropertyReliance, RelevancePlace


def difference(name: str, words: str, effect: float = 0.8, topic: str = "", **other: Any) -> Difference:
    given: dict[str, Any] = {
        "kind": "pixels",
        "group": 1.0,
        "others": 0.0,
        "unit": "",
        "effect_low": -1.0,
        "effect_high": 1.0,
        "p_value": 0.001,
        "matters": True,
    }
    return Difference(name=name, topic=topic or name, words=words, effect=effect, **(given | other))


def patch(where: str = "upper left corner", *, lacking: bool = False) -> ConstantPatch:
    shares = (0.02, 0.9) if lacking else (0.83, 0.0)
    return ConstantPatch(
        where=where,
        looks="black",
        top=0,
        left=0,
        bottom=0.2,
        right=0.2,
        lacking=lacking,
        share=shares[0],
        share_others=shares[1],
        relevance=0.4,
        p_value=0.001,
    )


def place(where: str = "upper left corner", *, apart: bool = True) -> RelevancePlace:
    return RelevancePlace(
        where=where, area=0.11, share=0.5, share_others=0.1, apart=apart, area_80=0.1, area_80_others=0.2
    )


def record(
    *relied: tuple[str, float], found: str = "", chosen: str = "classes", class_name: str = "coat"
) -> AutoRecord:
    reliances = tuple(
        PropertyReliance(
            property=name,
            class_name=class_name,
            pairs=10,
            moved=moved,
            moved_low=0.1,
            turned=0.5,
            turned_control=0.0,
            p_value=0.001,
            relied_on=moved > 0.2,
        )
        for name, moved in relied
    )
    finding = ClassFinding.nothing(False, "").changed(found=bool(found), property=found)
    return AutoRecord(
        chosen=chosen,
        runner_up=None,
        confidence=None,
        judged_on=None,
        reliance=None,
        candidates=(),
        shortcut={class_name: finding},
        repair=None,
        data_curve=(),
        exchanges=reliances,
        repaired=bool(found),
        why="",
        remarks=(),
    )


def said(**parts: Any) -> str:
    return sentence("coat", 20, 80, **parts).replace("\u00a0", " ")


def test_a_patch_where_the_classifier_looks() -> None:
    blue = difference("blue", "are bluer")
    assert said(relevance=place(), patch=patch(), differences=[blue]) == (
        "In these images of “coat” the classifier looks at the upper left corner, where 83 % of them have the same "
        "black patch (none of the others); they are bluer than the others."
    )


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (
            {"patch": patch()},
            "83 % of these images of “coat” have the same black patch at the upper left corner (none of the others).",
        ),
        (
            {"patch": patch(lacking=True)},
            "2 % of these images of “coat” have the black patch at the upper left corner that 90 % of the others have.",
        ),
        (
            {"relevance": place("centre")},
            "In these images of “coat” the classifier looks at the centre more than in the others (50 % of the "
            "relevance against 10 %).",
        ),
        (
            {
                "relevance": place(apart=False),
                "differences": [difference("a", "are bluer"), difference("b", "are sharper")],
            },
            "These images of “coat” are bluer and sharper than the others.",
        ),
        (
            {
                "differences": [
                    difference("a", "have a bluer background"),
                    difference("b", "have a smoother background"),
                    difference("c", "are darker"),
                ]
            },
            "These images of “coat” have a bluer and smoother background and are darker than the others.",
        ),
        (
            {"differences": [difference("colour", "are mostly green", value="green", group=0.97, others=0.0)]},
            "97 % of these images of “coat” are mostly green (none of the others).",
        ),
        (
            {
                "differences": [
                    difference("camera", "less often have the camera “A”", -0.9, value="A", group=0, others=0.9)
                ]
            },
            "None of these images of “coat” have the camera “A” (90 % of the others).",
        ),
        ({}, "Nothing that was measured sets these images of “coat” apart from the others of their class."),
        (
            {"pixels": False},
            "Without the images nothing that was measured sets these images of “coat” apart from the others of their "
            "class.",
        ),
        (
            {"follows": "colour", "against": True, "differences": [difference("a", "are bluer")]},
            "Predictions for “coat” follow the colour, which speaks for another class in these images; they are bluer "
            "than the others.",
        ),
        (
            {"follows": "place"},
            "Predictions for “coat” follow the place of what is shown; nothing that was measured sets these images "
            "apart from the others of their class.",
        ),
    ],
)
def test_one_sentence_is_made_of_what_is_known(parts: dict[str, Any], expected: str) -> None:
    assert said(**parts) == expected


def test_a_group_that_is_its_class_or_has_no_images() -> None:
    assert sentence("coat", 20, 0, relevance=place("centre", apart=False)) == (
        "All images of “coat” are in this group, and the classifier looks mostly at the centre."
    )
    assert sentence("coat", 0, 20) == "No image is in this group."
    assert sentence("", 5, 5, differences=[difference("a", "are bluer")]) == "These images are bluer than the others."


def test_no_cause_is_claimed() -> None:
    text = said(
        follows="colour", against=True, relevance=place(), patch=patch(), differences=[difference("a", "are bluer")]
    )
    assert not any(word in text for word in ("because", "cause", "due to", "shortcut", "therefore"))


def test_one_difference_of_each_topic_is_named_the_strongest_first() -> None:
    rows = [
        difference("brightness", "are brighter", 0.5, "light"),
        difference("blue", "are bluer", 0.9, "colour"),
        difference("background blue", "have a bluer background", 0.95, "colour"),
        difference("faint", "are sharper", 0.4, "texture"),
        difference("unclear", "are paler", 0.9, "saturation", matters=False),
        difference("area", "are looked at in a smaller area", 0.9, "relevance"),
    ]
    assert [each.name for each in picked(rows)] == ["background blue", "brightness"]


def test_what_predictions_follow_is_named_first() -> None:
    rows = [
        difference("sharpness", "are sharper", 0.9, "texture"),
        difference("blue", "are bluer", 0.5, "colour"),
        difference("background detail", "have a smoother background", 0.6, "texture"),
    ]
    assert picked(rows, "colour")[0].name == "blue"
    assert picked(rows, "background")[0].name == "background detail"
    assert picked(rows)[0].name == "sharpness"


def test_what_one_sees_goes_before_facts_of_files() -> None:
    rows = [
        difference("bytes", "are larger files", 0.9, "file", kind="file"),
        difference("detail", "have more detail", 0.8, "texture"),
    ]
    assert [each.name for each in picked(rows)] == ["detail", "bytes"]


def test_a_share_goes_before_a_comparison_about_as_clear() -> None:
    rows = [
        difference("blue", "are bluer", 0.9, "colour"),
        difference("colour", "are mostly blue", 0.85, "colour", value="blue"),
    ]
    assert [each.name for each in picked(rows)] == ["colour"]


def test_up_and_left_are_one_place() -> None:
    rows = [
        difference("place across", "have their subject further left", -0.9, "place"),
        difference("place down", "have their subject further up", -0.8, "place"),
    ]
    assert [each.words for each in picked(rows)] == ["have their subject further up and to the left"]
    assert [each.words for each in picked(rows[:1])] == ["have their subject further left"]


def test_what_is_followed_is_the_shortcut_or_what_moves_most() -> None:
    assert followed(record(("colour", 0.5), ("place", 0.9)), "coat") == "place"
    assert followed(record(("colour", 0.5), ("place", 0.9), found="colour"), "coat") == "colour"
    assert followed(record(("colour", 0.1)), "coat") == ""
    assert followed(record(("colour", 0.5)), "dress") == ""
    assert followed(None, "coat") == ""


def test_only_groups_of_an_exchange_speak_for_a_class() -> None:
    given = record(("colour", 0.5), chosen="exchange[property=colour]")
    assert [is_against(given, "coat", part) for part in (0, 1)] == [False, True]
    assert is_against(given, "dress", 1) is None
    assert is_against(record(("colour", 0.5)), "coat", 1) is None
    assert is_against(None, "coat", 1) is None


@pytest.mark.parametrize(
    ("where", "corner", "expected"),
    [
        ("upper left corner", "upper left corner", True),
        ("left edge", "upper left corner", True),
        ("border", "upper left corner", True),
        ("centre", "upper left corner", False),
        ("right edge", "upper left corner", False),
        ("border", "centre", False),
    ],
)
def test_a_patch_lies_where_relevance_does(where: str, corner: str, expected: bool) -> None:
    assert overlaps(place(where), patch(corner)) is expected
