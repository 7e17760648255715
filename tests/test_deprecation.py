"""Deprecated things work, warn in one sentence that points at the caller, and are removed when they said so."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import exmap
from exmap.deprecation import deprecated, renamed_arguments, warn_deprecated

HERE = Path(__file__).name


def test_a_warning_names_what_since_when_until_when_and_what_instead():
    sentence = "the setting a.b is deprecated since exmap 0.3 and will be removed in exmap 0.5; use a.c"
    with pytest.warns(FutureWarning, match=f"^{re.escape(sentence)}$") as seen:
        warn_deprecated("the setting a.b", since="0.3", removal="0.5", instead="a.c", stacklevel=1)
    assert Path(seen[0].filename).name == HERE


def test_a_deprecated_function_does_what_it_did_and_points_at_its_caller():
    @deprecated(since="0.3", removal="0.5", instead="new()")
    def old(a: int, *, b: int) -> int:
        """Add."""
        return a + b

    with pytest.warns(FutureWarning, match=r"old\(\) is deprecated since exmap 0\.3") as seen:
        assert old(1, b=2) == 3
    assert Path(seen[0].filename).name == HERE
    assert (old.__name__, old.__doc__) == ("old", "Add.")


def test_a_deprecated_class_stays_a_class():
    @deprecated(since="0.3", removal="0.5", instead="New")
    class Old:
        def __init__(self, a: int) -> None:
            self.a = a

    with pytest.warns(FutureWarning, match="Old"):
        made = Old(3)
    assert isinstance(made, Old)
    assert made.a == 3


def test_renamed_arguments_are_taken_by_both_names_but_not_at_once(recwarn: pytest.WarningsRecorder):
    @renamed_arguments(since="0.3", removal="0.5", clusters="n_clusters")
    def fit(n_clusters: int, seed: int = 0) -> tuple[int, int]:
        return n_clusters, seed

    assert fit(2, seed=1) == fit(n_clusters=2, seed=1) == (2, 1)
    assert not recwarn.list
    with pytest.warns(FutureWarning, match=r"the argument 'clusters' of .*fit\(\) is deprecated .* use 'n_clusters'"):
        assert fit(clusters=4) == (4, 0)
    with pytest.raises(TypeError, match="takes 'n_clusters' or its old name 'clusters', not both"):
        fit(n_clusters=4, clusters=4)


def test_nothing_is_kept_beyond_the_version_that_removes_it():
    def number(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", version))

    names = ("deprecated", "renamed_arguments", "warn_deprecated")
    overdue = []
    for path in sorted(Path(exmap.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names:
                given = {key.arg: key.value for key in node.keywords}
                removal = given.get("removal")
                if isinstance(removal, ast.Constant) and number(exmap.__version__) >= number(removal.value):
                    overdue.append(f"{path.name}:{node.lineno}")
    assert overdue == [], "remove these, or state a later version"
