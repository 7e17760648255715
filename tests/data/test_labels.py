from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exmap.data.labels import meaning, read_labels
from exmap.errors import DataError


def refused(texts: list[str], **changes: object) -> str:
    with pytest.raises(DataError) as caught:
        read_labels(texts, "labels", **changes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["10", "9", "-1", "10"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["--1", "2"], ("--1", "2")),
        (["-", "1"], ("-", "1")),
        (["1.5", "10"], ("1.5", "10")),
        (["9" * 5000, "1"], ("1", "9" * 5000)),
        (["true", "false"], ("false", "true")),
        (["TRUE", "false"], ("false", "TRUE")),
        (["007", "008"], ("007", "008")),
        (["1e999999999", "1"], ("1", "1e999999999")),
    ],
)
def test_distinct_texts_are_in_the_order_of_numbers_if_all_are(texts: list[str], names: tuple[str]) -> None:
    read = read_labels(texts, "labels")
    assert read.names == names
    assert [read.names[i] for i in read.index] == texts
    assert read.notes == ()


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["10.0", "0.0", "1.0"], ("0", "1", "10")),
        (["1", "1.0", "01", "+1", "2"], ("1", "2")),
        (["-0.0", "0", "1e1"], ("0", "10")),
        (["True", "true", "FALSE", "False"], ("false", "true")),
        (["Yes", "no", "YES"], ("no", "yes")),
        (["a  b", "a b", "c"], ("a b", "c")),
        ([unicodedata.normalize("NFD", "é"), "é", "x"], ("x", "é")),
    ],
)
def test_spellings_that_surely_mean_the_same_are_one_class(texts: list[str], names: tuple[str]) -> None:
    read = read_labels(texts, "labels")
    assert read.names == names
    assert [meaning(read.names[i]) for i in read.index] == [meaning(text) for text in texts]
    assert bool(read.notes) == (len(set(texts)) > len(names))


def test_what_was_taken_for_one_class_is_said() -> None:
    assert read_labels(["True", "true", "False"], "column label of a.csv").notes == (
        "Spellings in column label of a.csv that mean the same are taken for one: 'True', 'true' as 'true'.",
    )


def test_words_that_differ_in_case_are_refused_unless_all_of_them_are_classes() -> None:
    assert refused(["Cat", "cat", "dog"]) == (
        "labels must write each name in one way, but 'Cat' and 'cat' differ only in case; write one of them, or name "
        "all of them in data.classes if they are several"
    )
    assert refused(["Cat", "cat"], classes=("cat",)).startswith("labels must write each name in one way")
    assert refused(["Cat", "cat"], told="").endswith("; write one of them")
    assert read_labels(["a", "A"], "letters", classes=("a", "A", "b")).names == ("A", "a")


@pytest.mark.parametrize("texts", [["True", "1", "0"], ["yes", "true"], ["no", "0.0", "1"]])
def test_truth_values_in_two_systems_are_refused(texts: list[str]) -> None:
    assert "which may or may not mean the same" in refused(texts)


@pytest.mark.parametrize("missing", ["nan", "NaN", "None", "null", "<NA>", "inf"])
def test_a_missing_value_among_numbers_is_no_class(missing: str) -> None:
    assert refused(["0", "1", missing]) == (
        f"labels must have a value for every image, but {missing!r} stands among numbers; fill it in, or leave these "
        "images out"
    )
    assert read_labels([missing, "scratch"], "labels").names == tuple(sorted([missing, "scratch"]))


def test_minus_one_beside_other_numbers_is_a_class_of_which_one_is_told() -> None:
    assert "-1 in labels is taken for a class" in read_labels(["-1", "0", "1"], "labels").notes[0]
    assert read_labels(["-1", "1"], "labels").notes == ()


def test_folders_are_in_the_order_of_text_and_that_is_said() -> None:
    read = read_labels(["0", "1", "10", "2"], "the folders of pets", order="text")
    assert read.names == ("0", "1", "10", "2")
    assert read.notes == (
        "The classes of the folders of pets are in the order of their names as text, as other libraries read folders "
        "(0, 1, 10, 2); data.classes gives another.",
    )
    assert read_labels(["1", "0"], "folders", order="text").notes == ()


SPELLINGS = st.sampled_from(["0", "1", "1.0", "01", "2", "10", "-1", "true", "True", "no", "cat", "Cat", "dog", "nan"])


@given(st.lists(SPELLINGS, min_size=1, max_size=8), st.sampled_from(["number", "text"]))
def test_a_class_is_what_its_spellings_mean_or_the_labels_are_refused(texts: list[str], order: str) -> None:
    try:
        read = read_labels(texts, "labels", order=order)  # type: ignore[arg-type]
    except DataError:
        return
    means = [meaning(text) for text in texts]
    same = np.equal.outer(read.index, read.index)
    assert same.tolist() == [[a == b for b in means] for a in means]
    assert len(set(map(str.casefold, read.names))) == len(read.names) == len(set(means))
