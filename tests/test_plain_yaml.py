"""The one reader of YAML: what it reads, what it refuses and where, and that it reads what the writer writes."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exmap.errors import RunFolderError, SettingsError
from exmap.plain_yaml import LARGEST_FILE, dump_yaml, parse_yaml, read_yaml

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
WORDS = st.sampled_from(
    ["1e-3", "007", "on", "~", "", "2020-01-01", "1:30", "<<", "=", "\x85", "\udcff", "- a", "#", "nan"]
)
TREES = st.recursive(LEAVES | WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | WORDS, inner))
MANY = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("[yes, Off, TRUE, null]", [True, False, True, None]),
        ("[1, -2, 0x1F, 0b11, 1_000, +5]", [1, -2, 31, 3, 1000, 5]),
        ("[1e-3, 1., .5, 1e5, 1.5e+3, 1_0.5]", [0.001, 1.0, 0.5, 100000.0, 1500.0, 10.5]),
        (
            "[2026-13-45, 2020-01-01, 12:30, 007, 0o7, '7', =, 1.2.3]",
            ["2026-13-45", "2020-01-01", "12:30", "007", "0o7", "7", "=", "1.2.3"],
        ),
        (
            "x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: *x",
            {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}, "z": {"a": 1, "b": 2}},
        ),
        ("\ufeffa: é", {"a": "é"}),
        ('"\\udcff"', "\udcff"),  # a byte of a file's name
    ],
)
def test_values_are_plain(text: str, value: Any) -> None:
    found = parse_yaml(text, "the text")
    assert found == value
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "in line 2, column 11 the key 'c' stands for the second time; leave one"),
        ("a: 1\n'a': 2", "in line 2, column 1 the key 'a' stands for the second time"),
        ("<<: {a: 1}\n<<: {b: 1}", "in line 2, column 1 the key '<<' stands for the second time"),
        (
            "a: !!int x",
            "in line 1, column 4 there is the tag 'tag:yaml.org,2002:int', and values are plain; leave it out",
        ),
        ("!!python/object/apply:os.system [id]", "in line 1, column 1 there is the tag "),
        ("[" * 1500, "in line 1, column 42 there are more than 40 lists or mappings inside each other"),
        ("[\n" * 1500, "there are more than 40 lists or mappings inside each other"),
        ("".join(f"{' ' * n}a:\n" for n in range(1500)), "there are more than 40 lists or mappings inside each other"),
        ("- " * 1500, "there are more than 40 lists or mappings inside each other"),
        ("9" * 5000, "in line 1, column 1 there is a number of 5,000 characters; write a shorter one"),
        ("1." + "9" * 5000, "there is a number of 5,002 characters"),
        (MANY, "there are more than 200,000 values"),
        ("a: &a [*a]", "in line 1, column 8 *a names nothing that ends before it; write the value out"),
        ("1: 2", "in line 1, column 1 a key must be text, got 1; put it in quotes"),
        ("on: 2", "a key must be text, got True"),
        ("? [a]\n: 1", "a key must be text, got ['a']"),
        ("a: 1\n---\nb: 2", "in line 2, column 1 a second document begins; leave one"),
        ("a: \x00", "in line 1, column 4 there is a character that YAML does not allow, U+0000; take it away"),
        ("a: \x1b[31m", "is a character that YAML does not allow, U+001B"),
        ("a: \ud800", "is a character that YAML does not allow, U+D800"),
        ('"\\ud800"', "there is text with a character that no text may have"),
        ('"\\0"', "there is text with a character that no text may have"),
        ('"\\UFFFFFFFF"', "it cannot be parsed: "),
        ("a: [1", "it cannot be parsed: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
        ("a: b: c", "in line 1, column 5 it cannot be parsed: mapping values are not allowed here"),
        ("%YAML 9.9\n---\n1", "in line 1, column 1 it cannot be parsed: "),
    ],
)
def test_what_is_more_or_less_than_plain_values_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_yaml(text, "the text")
    assert str(caught.value).startswith("the text must be plain YAML, but ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(TREES)
def test_whatever_is_written_is_read_back(tree: Any) -> None:
    assert repr(parse_yaml(dump_yaml(tree), "what was written")) == repr(tree)


@given(st.text("ab:-{}[]&*!|>'\"%@#\\, \n\t0123.e<~?", max_size=30) | st.text(max_size=20))
def test_any_text_is_read_or_refused_in_one_sentence(text: str) -> None:
    with suppress(SettingsError):
        value = parse_yaml(text, "the text")
        assert repr(parse_yaml(dump_yaml(value), "what was written")) == repr(value)


def refusal(path: Path) -> str:
    with pytest.raises(RunFolderError) as caught:
        read_yaml(path, "the file", RunFolderError)
    return str(caught.value)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: caf\xc3\xa9\r\n")
    assert read_yaml(path, "the file") == {"a": 1, "b": "café"}
    path.write_text("# nothing\n")
    assert read_yaml(path, "the file") == {}
    path.write_text("- 1\n")
    assert refusal(path) == "the file must hold a mapping of settings, got a list"
    path.write_bytes("a: 1".encode("utf-16"))
    assert refusal(path).startswith(
        "the file must be a YAML file in UTF-8, but in line 1, column 1 there cannot be read"
    )
    path.write_bytes(b"a: 1\nb: \xff")
    assert "in line 2, column 4 there cannot be read as text; save it as UTF-8" in refusal(path)
    path.write_bytes(b"#" * (LARGEST_FILE + 1))
    assert refusal(path) == "the file must be a YAML file of at most 2 MiB, but it is larger; give another"
    assert refusal(tmp_path) == "the file must be a file with YAML, but it is none; give another"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes by name")
def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "it is none" in refusal(tmp_path / "pipe")
    assert "it is none" in refusal(Path("/dev/zero"))


def test_ten_thousand_open_brackets_are_refused_at_once() -> None:
    start = time.process_time()
    for bracket in ("[", "{", "[{a: "):
        with pytest.raises(SettingsError):
            parse_yaml(bracket * 10_000, "the text")
    assert time.process_time() - start < 2
