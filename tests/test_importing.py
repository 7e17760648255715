from __future__ import annotations

import sys
from pathlib import Path

import pytest

from exmap.errors import DataError, SettingsError
from exmap.importing import called, is_word, object_at, package, source_of

SOURCE = """
import beside
count = []
count.append(1)
class Group:
    def inner():
        return beside.value
def build(n_classes=2, width=3):
    return n_classes, width
def sized(side):
    return side
def lazy():
    import later
    return later.value
def broken():
    raise KeyError("gone")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("beside", "later", "own_thing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "own_thing.py").write_text(SOURCE)
    (tmp_path / "beside.py").write_text("value = 7\n")
    (tmp_path / "later.py").write_text("value = 8\n")
    return tmp_path


def test_a_file_is_run_once_and_finds_what_lies_beside_it(own: Path) -> None:
    path = list(sys.path)
    build, inner = object_at("own_thing.py:build"), object_at("own_thing.py:Group.inner")
    assert (build(), inner()) == ((2, 3), 7)
    assert object_at(f"{own}/own_thing.py:count") == [1]
    assert object_at("own_thing:build")() == (2, 3)
    assert sys.path == path


def test_a_changed_file_is_run_again(own: Path) -> None:
    first = object_at("own_thing.py:build")
    (own / "own_thing.py").write_text(SOURCE.replace("width=3", "width=40"))
    assert (first(), object_at("own_thing.py:build")()) == ((2, 3), (2, 40))


def test_a_function_is_called_with_what_it_takes_and_may_import_then(own: Path) -> None:
    build = object_at("own_thing.py:build")
    assert called(build, "own_thing.py:build", given={"n_classes": 5, "other": 1}) == (5, 3)
    assert called(object_at("own_thing.py:sized"), "own_thing.py:sized", given={"side": 2}) == 2
    assert called(object_at("own_thing.py:lazy"), "own_thing.py:lazy") == 8
    assert called("ready", "x:y", whole=(str,)) == "ready"


@pytest.mark.parametrize(
    ("word", "error", "said"),
    [
        ("own_thing", SettingsError, "a thing is given as PACKAGE.MODULE:NAME or FILE.py:NAME, got 'own_thing'"),
        ("gone.py:build", SettingsError, "the file gone.py of gone.py:build does not exist; give an existing Python"),
        ("own_thing.py:biuld", SettingsError, "unknown function 'biuld' (did you mean 'build'?); it must be in own_th"),
        (
            "no_such_mod.a:x",
            SettingsError,
            "there is no module 'no_such_mod' to import for no_such_mod.a:x; a thing is",
        ),
        ("beside:value.real.x", SettingsError, "unknown function 'x'"),
    ],
)
def test_what_is_not_there_is_one_sentence(own: Path, word: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        object_at(word, what="a thing")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_what_fails_is_one_sentence(own: Path) -> None:
    with pytest.raises(DataError, match=r"^own_thing.py:broken failed with KeyError: 'gone'; run it by itself to see"):
        called(object_at("own_thing.py:broken"), "own_thing.py:broken")
    with pytest.raises(SettingsError, match="that returns a model, but it needs side; write a function that fills"):
        called(object_at("own_thing.py:sized"), "own_thing.py:sized")
    with pytest.raises(
        SettingsError, match=r"no_such_lib is not installed; install it with pip install 'exmap\[onnx\]'"
    ):
        package("no_such_lib", extra="onnx")


def test_the_source_of_a_word_is_a_digest_of_its_file(own: Path) -> None:
    object_at("own_thing:build")
    assert source_of("own_thing:build") == source_of("own_thing.py:build")
    assert len(source_of("own_thing:build")) == 64
    (own / "own_thing.py").write_text("x = 1")
    assert source_of("own_thing.py:x") != source_of("no_such:x") == ""


def test_words_have_two_forms() -> None:
    assert [is_word(text) for text in ("a.b:c", "a b/c.py:d.e", "a:", "photos", "timm:a-b", "hf:./x")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip
