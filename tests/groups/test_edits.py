"""What a person makes of groups, against cases worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from exmap.errors import SettingsError
from exmap.groups import crossed_groups, edit_groups, edited_labels
from exmap.records import Explained, Groups, Outputs
from exmap.settings import Edits, load_edits

A0, A1, A2, B0, B1 = NAMES = ("a / cluster 0", "a / cluster 1", "a / cluster 2", "b / cluster 0", "b / cluster 1")
INDEX = np.array([0, 0, 0, 1, 1, 2, 2, 3, 4, -1, 4])  # sizes 3, 2, 2, 1, 2, and one unassigned
GROUPS = Groups(INDEX, NAMES, "exmap", ("class labels",), classes=(0, 0, 0, 1, 1), parts=(0, 1, 2, 0, 1))
LABELS = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1])  # the unassigned image is of class b
IMAGES = Explained(
    "val",
    tuple(f"{row}.png" for row in range(11)),
    LABELS,
    ("a", "b"),
    Outputs(np.zeros((11, 1), dtype=np.float32), np.zeros((11, 2), dtype=np.float32)),
    None,
)


def edited(*edits: dict[str, Any], selections: Sequence[dict[str, Any]] = ()) -> Groups:
    tree = {"format": 1, "source": "exmap", "grouping": "g", "edits": edits, "selections": selections}
    return edit_groups(GROUPS, Edits.model_validate(tree), IMAGES if selections else None)


def merge(group: str, into: str, **more: Any) -> dict[str, Any]:
    return {"group": group, "merge_into": into, **more}


def mark(group: str) -> dict[str, Any]:
    return {"group": group, "not_a_shortcut": True}


def test_without_edits_the_groups_are_the_same_under_a_name_of_their_own() -> None:
    found = edited()
    np.testing.assert_array_equal(found.index, INDEX)
    assert (found.names, found.classes) == (NAMES, GROUPS.classes)
    assert found.source == "exmap-edited"
    assert found.labels_used == ("class labels", "a person's edits")


@pytest.mark.parametrize(
    ("edits", "index", "names"),
    [
        pytest.param([{"group": A1, "name": " green "}], INDEX, (A0, "green", A2, B0, B1), id="a new name"),
        pytest.param(
            [{"group": A0, "name": A1}, {"group": A1, "name": A0}],
            INDEX,
            (A1, A0, A2, B0, B1),
            id="names change places",
        ),
        pytest.param([merge(A0, A1)], [0, 0, 0, 0, 0, 1, 1, 2, 3, -1, 3], (A1, A2, B0, B1), id="a merge"),
        pytest.param([merge(A2, A0)], [0, 0, 0, 1, 1, 0, 0, 2, 3, -1, 3], (A0, A1, B0, B1), id="a merge to the front"),
        pytest.param(
            [merge(A0, A1), merge(A1, A2)], [0, 0, 0, 0, 0, 0, 0, 1, 2, -1, 2], (A2, B0, B1), id="a chain of merges"
        ),
        pytest.param(
            [merge(A0, A2, name="gone"), {"group": A2, "name": "kept"}],
            [1, 1, 1, 0, 0, 1, 1, 2, 3, -1, 3],
            (A1, "kept", B0, B1),
            id="the name of a merged group goes with it",
        ),
        pytest.param([mark(A1)], [0, 0, 0, 0, 0, 1, 1, 2, 3, -1, 3], (A0, A2, B0, B1), id="the largest is unmarked"),
        pytest.param([mark(A0)], [0, 0, 0, 0, 0, 1, 1, 2, 3, -1, 3], (A1, A2, B0, B1), id="the first of equal sizes"),
        pytest.param([mark(A0), mark(A1)], [0, 0, 0, 0, 0, 0, 0, 1, 2, -1, 2], (A2, B0, B1), id="two marked"),
        pytest.param(
            [mark(B1)], [0, 0, 0, 1, 1, 2, 2, 3, 3, -1, 3], (A0, A1, A2, B0), id="another class is not looked at"
        ),
        pytest.param(
            [merge(A2, A1), mark(A0)],
            [0, 0, 0, 0, 0, 0, 0, 1, 2, -1, 2],
            (A1, B0, B1),
            id="sizes are those after the merges",
        ),
        pytest.param(
            [merge(A0, A1), mark(A1)],
            [0, 0, 0, 0, 0, 0, 0, 1, 2, -1, 2],
            (A2, B0, B1),
            id="a mark takes along what was merged",
        ),
        pytest.param(
            [merge(A0, A1, name="green", not_a_shortcut=True)],
            [0, 0, 0, 0, 0, 1, 1, 2, 3, -1, 3],
            (A1, A2, B0, B1),
            id="a merge comes before a mark",
        ),
        pytest.param(
            [merge(A0, A2, not_a_shortcut=True), merge(A1, A2, not_a_shortcut=True)],
            [0, 0, 0, 0, 0, 0, 0, 1, 2, -1, 2],
            (A2, B0, B1),
            id="what is merged away need not be unmarked",
        ),
    ],
)
def test_edits_give_what_was_worked_out_by_hand(edits: list[dict[str, Any]], index: Any, names: Any) -> None:
    before = INDEX.copy()
    found = edited(*edits)
    np.testing.assert_array_equal(found.index, index)
    assert found.names == names
    np.testing.assert_array_equal(INDEX, before)


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ([mark("a / cluster 9")], "unknown group 'a / cluster 9' (did you mean 'a / cluster"),
        ([merge(A0, "a / clutser 1")], "did you mean 'a / cluster 1'"),
        ([merge(A0, B0)], "within a class only"),
        ([merge(A0, A1), merge(A1, B1)], "'a / cluster 1' goes into 'b / cluster 1'"),
        ([merge(A0, A0)], "a / cluster 0 -> a / cluster 0"),
        ([merge(A0, A1), merge(A1, A2), merge(A2, A1)], "they go round"),
        ([mark(B0), mark(B1)], "at least one group of a class must stay, but all of that of 'b / cluster 0'"),
        ([merge(B0, B1), mark(B1)], "all of that of 'b / cluster 1' are marked"),
        ([{"group": A0, "name": A1}], "'a / cluster 1' is given twice"),
        ([{"group": A0, "name": "x"}, {"group": B0, "name": "x"}], "'x' is given twice"),
    ],
)
def test_edits_that_cannot_be_applied_are_refused_in_one_sentence(edits: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        edited(*edits)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def select(name: str, rows: str = "", *images: str) -> dict[str, Any]:
    return {"name": name, "rows": rows, "images": images}


@pytest.mark.parametrize(
    ("edits", "selections", "index", "names"),
    [
        pytest.param(
            [], [select("s", "0, 3")], [5, 0, 0, 5, 1, 2, 2, 3, 4, -1, 4], (*NAMES, "s"), id="of two groups of a class"
        ),
        pytest.param(
            [], [select("s", "", "0.png", "3.png")], [5, 0, 0, 5, 1, 2, 2, 3, 4, -1, 4], (*NAMES, "s"), id="by ids"
        ),
        pytest.param(
            [], [select("s", "1-2,1", "1.png")], [0, 5, 5, 1, 1, 2, 2, 3, 4, -1, 4], (*NAMES, "s"), id="named twice"
        ),
        pytest.param(
            [],
            [select("s", "6-7")],
            [0, 0, 0, 1, 1, 2, 4, 5, 3, -1, 3],
            (A0, A1, A2, B1, "class a / s", "class b / s"),
            id="of two classes: a group in each, and what is empty goes",
        ),
        pytest.param(
            [], [select("s", "9")], [0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 4], (*NAMES, "s"), id="what was in no group"
        ),
        pytest.param(
            [merge(A0, A1), {"group": A1, "name": "m"}],
            [select("s", "0,3"), select("t", "10")],
            [4, 0, 0, 4, 0, 1, 1, 2, 3, -1, 5],
            ("m", A2, B0, B1, "s", "t"),
            id="before a merge",
        ),
        pytest.param(
            [merge(A0, A1)], [select("s", "3-4")], [0, 0, 0, 4, 4, 1, 1, 2, 3, -1, 3], (A1, A2, B0, B1, "s"),
            id="all of what others are merged into",
        ),
        pytest.param(
            [mark(A2)],
            [select("s", "0-1")],
            [4, 4, 0, 1, 1, 1, 1, 2, 3, -1, 3],
            (A0, A1, B0, B1, "s"),
            id="a mark goes by what is left of the groups, not to the selection",
        ),
        pytest.param(
            [mark(B0), mark(B1)], [select("s", "8")], [0, 0, 0, 1, 1, 2, 2, 3, 4, -1, 3], (A0, A1, A2, B0, "s"),
            id="all are marked: one group beside the selection",
        ),
    ],
)  # fmt: skip
def test_selected_images_are_a_group_of_their_own(
    edits: list[dict[str, Any]], selections: list[dict[str, Any]], index: list[int], names: tuple[str, ...]
) -> None:
    found = edited(*edits, selections=selections)
    np.testing.assert_array_equal(found.index, index)
    assert found.names == names
    for number, label in enumerate(found.classes):
        assert set(LABELS[found.index == number]) == {label}


@pytest.mark.parametrize(
    ("edits", "selections", "said"),
    [
        ([], [select("s", "3-11")], "have rows 0 to 10, but selection 's' has row 11"),
        ([], [select("s", "999999999999")], "has row 999999999999"),
        ([], [select("s", "", "1.pn")], "'1.pn' is none (did you mean '1.png'?)"),
        ([], [select("s", "0-3"), select("t", "3-5")], "'3.png' is in 's' and in 't'"),
        ([], [select("s", "0"), select("s", "1")], "'s' is given twice"),
        ([], [select(A0, "0")], "'a / cluster 0' is given twice"),
        ([mark(A0), mark(A1), mark(A2)], [select("s", "8")], "at least one group of a class must stay"),
    ],
)
def test_selections_that_cannot_be_applied_are_refused_in_one_sentence(
    edits: list[dict[str, Any]], selections: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        edited(*edits, selections=selections)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


SPLITS = st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 3)), min_size=1, max_size=40)
CHOICES = st.lists(st.tuples(st.integers(0, 11), st.none() | st.integers(0, 11), st.booleans()), max_size=6)


@given(SPLITS, CHOICES)
def test_edited_groups_are_a_partition_that_never_mixes_classes(
    pairs: list[tuple[int, int]], choices: list[tuple[int, int | None, bool]]
) -> None:
    labels, parts = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    groups = crossed_groups(labels, parts, ("a", "b", "c"), source="exmap")
    assume(groups.names)
    drawn = {}
    for place, other, marked in choices:
        name = groups.names[place % len(groups.names)]
        into = None if other is None else groups.names[other % len(groups.names)]
        drawn[name] = {"group": name, "merge_into": into, "not_a_shortcut": marked}
    edits = Edits.model_validate({"format": 1, "source": "exmap", "grouping": "g", "edits": [*drawn.values()]})
    try:
        found = edit_groups(groups, edits)
    except SettingsError:  # across classes, in a circle, or nothing left of a class
        assume(False)
    assert np.array_equal(found.index < 0, groups.index < 0)
    assert found.counts().sum() == groups.counts().sum()
    assert (found.counts() > 0).all()
    assert len(set(found.names)) == len(found.names) == len(found.classes)
    assert set(found.classes) == set(groups.classes)  # no class loses all its groups
    for number, label in enumerate(found.classes):
        assert set(labels[found.index == number]) == {label}
    for number in range(len(groups.names)):  # groups move as a whole
        assert len(set(found.index[groups.index == number])) == 1


HEAD = "format: 1\nsource: exmap\ngrouping: abc\n"


def test_a_file_of_edits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "edits.yaml"
    path.write_text(HEAD + "edits:\n  - group: a / cluster 0\n    name: grün\n    not_a_shortcut: true\n", "utf-8")
    (edit,) = load_edits(path).edits
    assert (edit.group, edit.name, edit.merge_into, edit.not_a_shortcut) == (A0, "grün", None, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist"),
        ("[]", "mapping"),
        ("a: [", "cannot be parsed"),
        (HEAD, "edits: field required"),
        (HEAD.replace("1", "2") + "edits: []", "format: input should be 1, got 2"),
        (HEAD.replace("exmap", "george") + "edits: []", "source: input should be 'exmap', got 'george'"),
        (HEAD + "edit: []", "field required"),
        (HEAD + "edits: [{group: a, merge_to: b}]", "did you mean 'edits.0.merge_into'"),
        (HEAD + "edits: [{group: a, name: 7}]", "edits.0.name: input should be a valid string, got 7"),
        (HEAD + "edits: [{group: a, name: ' '}]", "not blank"),
        (HEAD + 'edits: [{group: a, name: "a\\nb"}]', "printable"),
        (HEAD + "edits: [{group: a, name: unassigned}]", "not unassigned"),
        (HEAD + "edits: [{group: a}, {group: a}]", "'a' is listed 2 times"),
        (HEAD + "edits: [{name: a}]", "edits.0.group: field required"),
        (HEAD + "edits: []\nselections: [{name: a}]", "selection 'a' must have rows or images"),
        (HEAD + "edits: []\nselections: [{name: a, rows: 1-}]", "as in '3, 5-9, 14', but '1-' is none"),
        (HEAD + "edits: []\nselections: [{name: a, rows: '1,,2'}]", "but '' is none"),
        (HEAD + "edits: []\nselections: [{name: a, rows: 5-3}]", "but '5-3' is none"),
        (HEAD + "edits: []\nselections: [{name: unassigned, rows: '1'}]", "not unassigned"),
        (HEAD + "edits: []\nselections: [{name: a, row: '1'}]", "did you mean 'selections.0.rows'"),
    ],
)
def test_a_file_that_holds_no_edits_is_refused_in_one_sentence(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "edits.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_edits(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def corrected(*edits: dict[str, Any], **more: Any) -> Groups:
    tree = {"format": 1, "source": "exmap", "grouping": "g", "edits": edits, **more}
    return edit_groups(GROUPS, Edits.model_validate(tree), IMAGES)


def test_images_that_are_left_out_are_in_no_group() -> None:
    found = corrected(leave_out=["0.png", "9.png", "7.png"])
    np.testing.assert_array_equal(found.index, [-1, 0, 0, 1, 1, 2, 2, -1, 3, -1, 3])
    assert found.names == (A0, A1, A2, B1)  # the only image of a group went
    assert found.labels_used == ("class labels", "a person's edits")


def test_an_image_whose_label_is_corrected_joins_the_largest_group_of_its_class() -> None:
    np.testing.assert_array_equal(corrected(relabel={"0.png": "b"}).index, [4, 0, 0, 1, 1, 2, 2, 3, 4, -1, 4])
    np.testing.assert_array_equal(corrected(relabel={"9.png": "a"}).index, [0, 0, 0, 1, 1, 2, 2, 3, 4, 0, 4])
    merged = corrected(merge(A0, A1), relabel={"7.png": "a", "0.png": "a"})  # the second says what its label says
    np.testing.assert_array_equal(merged.index, [0, 0, 0, 0, 0, 1, 1, 0, 2, -1, 2])


def test_a_selection_takes_a_corrected_image_under_its_new_class() -> None:
    found = corrected(relabel={"0.png": "b"}, selections=[{"name": "mine", "images": ["0.png", "1.png"]}])
    assert found.names[-2:] == ("class a / mine", "class b / mine")
    assert [found.names[g] for g in found.index[:2]] == ["class b / mine", "class a / mine"]


def test_a_class_without_a_group_gets_one() -> None:
    only = Groups(np.array([0, 0, -1]), ("a / cluster 0",), "exmap", (), classes=(0,), parts=(0,))
    three = IMAGES.rows(np.array([0, 1, 8]))
    edits = Edits.model_validate(
        {"format": 1, "source": "exmap", "grouping": "g", "edits": [], "relabel": {"0.png": "b", "1.png": "b"}}
    )
    found = edit_groups(only, edits, three)
    assert (found.index.tolist(), found.names, found.classes) == ([0, 0, -1], ("class b",), (1,))
    np.testing.assert_array_equal(edited_labels(edits, three.ids, three.labels, three.class_names), [1, 1, 1])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"relabel": {"o.png": "b"}}, r"relabel must hold ids of images of the val split, but 'o.png' is none \(did"),
        ({"relabel": {"0.png": "c"}}, "class"),
        ({"leave_out": ["o.png"]}, "leave_out must hold ids"),
        ({"leave_out": ["0.png"], "selections": [{"name": "x", "rows": "0"}]}, "'0.png' is both"),
    ],
)
def test_edits_of_images_that_cannot_be_made_are_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        corrected(**more)


def test_an_image_is_not_relabelled_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "edits.yaml"
    path.write_text("format: 1\nsource: exmap\ngrouping: g\nedits: []\nrelabel: {a: b}\nleave_out: [a]\n")
    with pytest.raises(SettingsError, match="'a' is both"):
        load_edits(path)
    path.write_text("format: 1\nsource: exmap\ngrouping: g\nedits: []\nrelabel: {a: b}\nleave_out: [c]\n")
    edits = load_edits(path)
    assert edits.of_images
    assert Edits.model_validate(edits.model_dump(mode="json")) == edits


def test_edits_of_images_need_these() -> None:
    edits = Edits.model_validate({"format": 1, "source": "exmap", "grouping": "g", "edits": [], "leave_out": ["0.png"]})
    with pytest.raises(SettingsError, match="pass explained"):
        edit_groups(GROUPS, edits)
