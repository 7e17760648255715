"""Names, entry points and dotted paths; options and what is said of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field

from exmap.errors import SettingsError
from exmap.registry import CLUSTERERS, LEARNERS, MODELS, REQUIRED, Option, Registry


@dataclass
class Square:
    name: ClassVar[str] = "square"

    side: float = 1.0
    sizes: Annotated[Sequence[int], Field(min_length=1)] = (1, 2)
    seed: int = 0


class Cloud:
    def __init__(self, seed: int, points, copy=True, *, model_name: str = "x") -> None:  # type: ignore[no-untyped-def]
        self.seed, self.points, self.copy, self.model_name = seed, points, copy, model_name


class Still:
    name = "still"


def shapes() -> Registry:
    made = Registry("shape", "exmap.shapes", "exmap.settings", given=("seed",))
    made.register(Square)
    made.register(Cloud, name="cloud")
    made.register(Still)
    return made


def refusal(registry: Registry, name: str, **options: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        registry.build(name, options)
    return str(caught.value)


def test_a_thing_is_registered_under_its_own_name_or_a_given_one() -> None:
    registry = shapes()
    assert registry.names() == ["cloud", "square", "still"]
    assert registry.get("square") is registry["square"] is Square
    assert "cloud" in registry
    assert list(registry) == registry.names()
    assert registry.items()[0] == ("cloud", Cloud)

    @registry.register
    def line() -> int:
        return 1

    @registry.register(name="other line")
    def another() -> int:
        return 2

    assert registry.build("line") == 1
    assert registry.build("other line") == 2


def test_a_second_thing_of_one_name_is_refused() -> None:
    registry = shapes()
    registry.register(Square)  # again: nothing new
    with pytest.raises(SettingsError) as caught:
        registry.register(Cloud, name="square")
    assert str(caught.value) == (
        f"a shape must have a name of its own, but {__name__}:Square and {__name__}:Cloud are both 'square'; rename "
        "one of them"
    )
    assert registry.get("square") is Square


def test_a_thing_without_a_name_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"a shape needs a name, but .*Cloud.* has none; register it with name="):
        shapes().register(Cloud)


def test_options_are_what_the_constructor_takes_and_the_pipeline_does_not_give() -> None:
    registry = shapes()
    assert list(registry.options("square")) == ["side", "sizes"]
    assert registry.options("square")["side"] == Option(float, 1.0) == (float, 1.0)
    assert registry.options("cloud") == {
        "points": (Any, REQUIRED),
        "copy": (Any, True),
        "model_name": (str, "x"),
    }
    assert registry.options("still") == {}


def test_options_are_converted_and_what_is_not_taken_is_not_given() -> None:
    made = shapes().build("square", {"side": "2", "sizes": [3, 4]}, seed=7, train="nothing")
    assert made == Square(2.0, (3, 4), 7)
    cloud = shapes().build("cloud", {"points": None, "copy": False, "model_name": "y"}, seed=7)
    assert (cloud.seed, cloud.points, cloud.copy, cloud.model_name) == (7, None, False, "y")


def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    registry = shapes()
    assert refusal(registry, "sqare") == (
        "unknown shape 'sqare' (did you mean 'square'?); choose one of: cloud, square, still"
    )
    assert refusal(registry, "square", sied=1) == (
        "unknown option of the shape square 'sied' (did you mean 'side'?); choose one of: side, sizes"
    )
    assert refusal(registry, "square", seed=1).startswith("unknown option of the shape square 'seed'")
    assert refusal(registry, "square", side="long") == (
        "option side of the shape square: input should be a valid number, unable to parse string as a number, got "
        "'long'"
    )
    assert refusal(registry, "square", sizes=[1, "x"]).startswith("option sizes.1 of the shape square: input should be")
    assert refusal(registry, "square", sizes=[]).startswith("option sizes of the shape square: ")
    assert refusal(registry, "still", side=1) == "the shape still has no options, got 'side'; leave it out"
    assert refusal(registry, "cloud") == "the shape cloud needs the option points, and it was not given; set it"


def test_a_dotted_path_needs_no_name() -> None:
    assert shapes().get(f"{__name__}:Square.name") == "square"
    assert shapes().get("fractions:Fraction").__name__ == "Fraction"
    assert refusal(shapes(), "fractions:Fracton").startswith(
        "unknown shape 'Fracton' (did you mean 'Fraction'?); it must be in fractions"
    )
    assert refusal(shapes(), "no_such_package:Thing") == (
        "there is no module 'no_such_package' to import for no_such_package:Thing; the shape is given as "
        "PACKAGE.MODULE:NAME or FILE.py:NAME"
    )
    assert (
        refusal(shapes(), "string:digits") == "the shape string:digits must be a class or a function, got '0123456789'"
    )


@pytest.mark.parametrize("word", ["own_shapes:Circle", "own_shapes.py:Circle"])
def test_what_lies_in_the_present_folder_is_found(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXMAP_MODULES", "{}")
    monkeypatch.delitem(sys.modules, "own_shapes", raising=False)
    (tmp_path / "own_shapes.py").write_text("class Circle:\n    ...\n")
    before = list(sys.path)
    assert shapes().build(word).__class__.__name__ == "Circle"
    assert sys.path == before
    assert str(tmp_path) in os.environ["EXMAP_MODULES"]  # spawned processes find it there
    (tmp_path / "broken_shapes.py").write_text("1 / 0\n")
    assert refusal(shapes(), word.replace("own", "broken")).count("ZeroDivisionError") == 1


def installed(folder: Path, package: str, module: str, *points: str) -> None:
    """Make what an installed package consists of."""
    (folder / f"{package}.py").write_text(module)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[exmap.shapes]", *points]) + "\n")


def test_entry_points_of_other_packages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(tmp_path, "round_shapes", "class Circle: ...", "circle = round_shapes:Circle", "square = round_shapes:C")
    registry = shapes()
    assert registry.names() == ["circle", "cloud", "square", "still"]
    assert "round_shapes" not in sys.modules
    assert registry.get("circle").__name__ == "Circle"
    assert registry.get("square") is Square  # ours come first


def test_a_broken_package_is_only_a_matter_for_those_who_ask_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    installed(tmp_path, "broken_shapes", "import no_such_package", "circle = broken_shapes:Circle")
    registry = shapes()
    assert "circle" in registry.names()
    assert [name for name, _ in registry.items()] == ["cloud", "square", "still"]
    assert refusal(registry, "circle") == (
        "the shape 'circle' comes from broken_shapes (entry point circle = broken_shapes:Circle) and cannot be "
        "imported (ModuleNotFoundError: No module named 'no_such_package'); repair or uninstall that package"
    )


def test_one_name_from_two_packages_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for package in ("first_shapes", "second_shapes"):
        installed(tmp_path, package, "class Circle: ...", f"circle = {package}:Circle")
    said = refusal(shapes(), "circle")
    assert said.startswith("the shape 'circle' must come from one package, but ")
    assert "first_shapes (entry point circle = first_shapes:Circle)" in said
    assert said.endswith("uninstall all but one of them, or give package.module:Thing")


def test_our_own_things_are_there_at_the_first_look() -> None:
    code = """
import sys
from exmap.registry import CLUSTERERS, LEARNERS
from exmap.settings import load_settings
assert load_settings("digits").retrain.learner == "dfr"
assert not {"torch", "sklearn"} & set(sys.modules)
assert "kmeans" in CLUSTERERS.names() and "torch" not in sys.modules
assert load_settings("digits", ["retrain.subsamples=3"]).retrain.options == {"subsamples": 3}
assert "dfr" in LEARNERS.names()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_registries_name_what_was_there_before() -> None:
    assert {"kmeans", "spectral", "umap_kmeans"} <= set(CLUSTERERS.names())
    assert {"resnet18", "resnet34", "resnet50", "tiny"} <= set(MODELS.names())
    assert {"strengths", "tuning_splits", "subsamples", "smallest_group", "harm"} == set(LEARNERS.options("dfr"))
