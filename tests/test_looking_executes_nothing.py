"""Reading settings and looking at a run execute nothing of what they name; work does, and --trust lets looking."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest

import exmap
from exmap.errors import NotTrustedError, SettingsError
from exmap.importing import object_at
from exmap.model import build_model
from exmap.pipeline.opening import open_task
from exmap.pipeline.runs import open_run
from exmap.pipeline.store import RunFolder
from exmap.registry import CLUSTERERS
from exmap.settings import (
    Settings,
    change_settings,
    describe_settings,
    dump_settings,
    load_settings,
    parse_settings,
)
from exmap.settings.loading import _changed
from exmap.trusted import looking_only
from running import CHEAP, Give, bring_up, command, copy_run

OWN = """
from pathlib import Path
from torch import nn
Path(__file__).with_name("executed").touch()
def build(n_classes, *, width: int = 4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, n_classes))
class Learner: part = "last layer"
"""
REFUSED = "code that a run names is not executed where it is only looked at; if the run is yours, add --trust"
TINY = ("model={name: 'own.py:build', width: 4}", "train.epochs=1", "groups.sources=[exmap]", "retrain.repeats=1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of Python and a finished run of the classifier in it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        bring_up(folder / "run", load_settings("digits", [*CHEAP, *TINY]))
    assert (folder / "executed").exists()
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the present folder, in which Python looks for modules as ``python -m`` does."""
    shutil.copy(made / "own.py", tmp_path)
    copy_run(made / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.delitem(sys.modules, "own", raising=False)
    return tmp_path


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Give:
    return partial(command, monkeypatch, capsys)


@pytest.mark.parametrize(
    "text",
    [
        "model: {name: own.py:build, width: 5}",
        "model: {name: own:build, width: 5}",
        "retrain: {learner: own.py:Learner, strengths: [1]}",
        "retrain: {learner: own:Learner, strengths: [1]}",
        "explain: {explainer: own:Learner, patch: 4}",
        "cluster: {method: own:Learner, k: 4}",
        "preset: cmnist-10\nretrain: {learner: own:Learner}",
    ],
)
def test_settings_are_read_and_shown_without_an_import(text: str, here: Path, give: Give) -> None:
    (here / "s.yaml").write_text(text)
    said = give("settings", "s.yaml")
    assert said.code == 0, said.err
    settings = change_settings(load_settings("s.yaml"), ["seed=3"])
    describe_settings(settings)
    assert not (here / "executed").exists()
    assert "own" not in sys.modules


def test_looking_at_a_run_of_such_a_classifier_executes_nothing(here: Path, give: Give) -> None:
    for words in (["report", "run"], ["export", "run", "--to", "parquet"], ["figures", "run", "--only", "comparison"]):
        said = give(*words)
        assert said.code == 0, said.err
    assert "comparison: left out, the run names 'own.py:build', and " + REFUSED in said.out
    said = give("check-model", "run")
    assert said.refused()
    assert REFUSED in said.err
    path = list(sys.path)
    analysis = exmap.open_analysis(Path("run"))
    with pytest.raises(NotTrustedError, match=r"trust=True in Python"):
        analysis.network()
    assert sys.path == path
    assert not (here / "executed").exists()
    exmap.open_analysis(Path("run"), trust=True).network()
    assert (here / "executed").exists()


def test_with_trust_it_is_executed(here: Path, give: Give) -> None:
    assert give("figures", "run", "--only", "comparison", "--trust").code == 0
    assert Path("run/figures/comparison.png").exists()
    assert (here / "executed").exists()


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("retrain.learner=own:Learner", "own:Learner"),
        ("retrain.learner=own.py:Learner", "own.py:Learner"),
        ("explain.explainer=own:Learner", "own:Learner"),
        ("cluster.method=own:Learner", "own:Learner"),
        ("groups.sources=[exmap, 'own:Learner']", "own:Learner"),
        ("groups.sources=[exmap, 'subprocess:run[args=touch executed,shell=true]']", "subprocess:run"),
        ("groups.sources=[exmap, 'exmap.pipeline.disk:write_text[path=executed,text=x]']", "exmap.pipeline.disk:write"),
    ],
)
def test_a_run_that_cannot_be_planned_without_is_refused(override: str, word: str, here: Path, give: Give) -> None:
    tree = dump_settings(change_settings(open_run(Path("run"))[1], [override]))
    RunFolder(Path("run")).write_settings(tree)
    for words in (["report", "run"], ["figures", "run"], ["export", "run", "--to", "parquet"]):
        said = give(*words)
        assert said.refused(), said
        assert f"the run names '{word}" in said.err
        assert REFUSED in said.err
    assert not (here / "executed").exists()


def test_images_that_need_such_code_are_left_out(here: Path, give: Give) -> None:
    with looking_only(), pytest.raises(NotTrustedError, match=r"own\.py:prepare"):
        open_task(load_settings("digits", ["images.transform=own.py:prepare"]))
    with looking_only(), pytest.raises(NotTrustedError, match=r"own\.py:build"):
        open_task(load_settings("digits", ["images.transform=model", "model.name=own.py:build"]))
    assert not (here / "executed").exists()


def test_installed_packages_are_imported_and_what_is_registered_is_made(here: Path) -> None:
    with looking_only():
        assert object_at("collections:OrderedDict").__name__ == "OrderedDict"
        assert CLUSTERERS.get("sklearn.cluster:HDBSCAN").__name__ == "HDBSCAN"
        assert CLUSTERERS.build("kmeans", {"n_clusters": 2}).n_clusters == 2
        for word in ("__main__:x", "own:build", "own.py:build", "no_such:x"):
            with pytest.raises(NotTrustedError):
                object_at(word)
        with pytest.raises(NotTrustedError):
            CLUSTERERS.build("sklearn.cluster:HDBSCAN")
    assert object_at("own.py:build")
    (row,) = [row for row in describe_settings(_hdbscan()) if row.name == "cluster.min_samples"]
    assert (row.value, row.owner) == (4, "sklearn.cluster._hdbscan.hdbscan.HDBSCAN")


def _hdbscan() -> Settings:
    return load_settings("digits", ["cluster.method=sklearn.cluster:HDBSCAN", "cluster.min_samples=4"])


def test_work_executes_it(here: Path, give: Give) -> None:
    said = give("train", "run", "--set", "train.epochs=2")
    assert said.code == 0, said.err
    assert (here / "executed").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model={name: 'own.py:build', widht: 4}"], "setting model: unknown option of the model own.py:build 'widht'"),
        (["model={name: 'own.py:build', width: x}"], "setting model: option width of the model own.py:build: "),
        (["cluster={method: 'sklearn.cluster:HDBSCAN', min_sample: 4}"], "setting cluster: unknown option of the clus"),
        (["groups.george={method: 'sklearn.cluster:HDBSCAN', x: 4}"], "setting groups.george: unknown option of the "),
        (["retrain={learner: 'exmap.retrain:SUBG', x: 4}"], "setting retrain: unknown option of the learner exmap.ret"),
    ],
)
def test_a_wrong_option_is_refused_before_data_are_read(
    overrides: list[str], said: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings("digits", [*CHEAP, "data.name=folder", "data.dir=nowhere", *overrides])
    with pytest.raises(SettingsError) as caught:
        open_run(here / "new", settings)
    assert str(caught.value).startswith(said)
    if settings.model.name != "tiny":
        with pytest.raises(SettingsError, match="option"):
            build_model(settings.model, 2, seed=0)


def test_a_word_inherits_no_options(here: Path) -> None:
    assert load_settings("cmnist-10", ["retrain.learner=own.py:Learner"]).retrain.options == {}
    assert load_settings("cmnist-10", ["retrain.learner=own.py:Learner", "retrain.x=1"]).retrain.options == {"x": 1}
    assert not (here / "executed").exists()


def test_mappings_that_are_no_sections_are_left_as_they_are() -> None:
    edits = {"format": 1, "source": "exmap", "grouping": "x", "edits": [], "relabel": {"3": "1"}}
    settings = load_settings("digits", [f"edits={json.dumps(edits)}"])
    assert settings.edits is not None
    assert change_settings(settings, ["seed=4"]).edits == settings.edits
    assert change_settings(settings, ["edits.relabel={'3': '0'}"]).edits.relabel == {"3": "0"}  # type: ignore[union-attr]


def test_a_mapping_in_a_lists_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^setting edits\.edits: "):
        parse_settings({"edits": {"format": 1, "source": "exmap", "grouping": "x", "edits": {"a": {}}}})
    before = {"groups": {"sources": {"a": 1}}, "images": {"normalize": {"a": 1}}, "data": {"classes": {"a": {}}}}
    with pytest.raises(SettingsError, match=r"^setting "):
        _changed(before, ["seed=1"], {})
