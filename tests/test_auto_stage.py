"""A run that chooses its groups: what it writes, what it leaves alone, and what other settings do to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from exmap.finished import open_finished
from exmap.stages import open_run
from safetensors.numpy import load_file

from exmap.settings import change_settings
from running import STAGE_NAMES, bring_up, command, copy_run, modification_times, trained_run

METHOD = "auto+dfr"
CHEAPER = ("groups.sources=[exmap]", "retrain.repeats=2")


def results_of(run: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    return results


def worst(results: dict[str, Any], method: str) -> float:
    return float(results["methods"][method]["worst_group_accuracy"])


def changed(run: Path, *overrides: str, until: str = "report") -> list[str]:
    _, settings = open_run(run)
    return bring_up(run, change_settings(settings, overrides), until=until, change=True)


@pytest.fixture(scope="session")
def auto_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one cheap run of this session with a choice of groups; copy it before changing it."""
    base = tmp_path_factory.getbasetemp()
    folder = base / "auto-run"
    if not folder.exists():
        copy_run(trained_run(base), folder)
        changed(folder, "groups.auto=true", *CHEAPER)
    return folder


@pytest.fixture
def run(auto_run: Path, tmp_path: Path) -> Path:
    return copy_run(auto_run, tmp_path / "run")


def test_the_stage_writes_the_chosen_groups_and_why(auto_run: Path) -> None:
    assert sorted(path.name for path in (auto_run / "auto").iterdir()) == [
        "auto.json",
        "auto.parquet",
        "clusters.json",
        "done.json",
        "identity.json",
    ]
    record = json.loads((auto_run / "auto" / "auto.json").read_text())
    table = pq.read_table(auto_run / "auto" / "auto.parquet")
    cluster = pq.read_table(auto_run / "cluster" / "exmap.parquet")
    assert table["id"].equals(cluster["id"])
    assert table.num_rows == 450
    names = json.loads((auto_run / "auto" / "clusters.json").read_text())["auto"]["names"]
    assert len(names) == record["candidates"][0]["groups"]
    assert record["judged_on"] == "held-out halves"


def test_results_hold_the_choice_and_its_method(auto_run: Path) -> None:
    results = results_of(auto_run)
    assert results["auto"] == json.loads((auto_run / "auto" / "auto.json").read_text())
    row = results["methods"][METHOD]
    assert row["labels_used"]["groups"] == ["class labels"]
    assert row["labels_used"]["tuning"] == ["auto groups"]
    assert len(row["strengths"]) == 2
    assert "auto" in results["group_inference"]
    assert set(results["methods"]) == {"erm", "exmap+dfr", METHOD}
    assert results["seconds"]["auto"] > 0


def test_the_shortcut_of_the_digits_is_found_and_the_model_repaired_with_it(auto_run: Path) -> None:
    results = results_of(auto_run)
    assert any(row["found"] for row in results["auto"]["shortcut"].values())
    assert results["auto"]["repaired"] is True
    assert worst(results, METHOD) > worst(results, "erm") + 0.05
    heads = load_file(auto_run / "retrain" / "auto.safetensors")
    model = load_file(auto_run / "retrain" / "model.safetensors")
    assert np.array_equal(model["fc.weight"], heads["0.weight"])
    assert not np.array_equal(model["fc.weight"], load_file(auto_run / "train" / "model.safetensors")["fc.weight"])


def test_what_is_finished_is_kept(run: Path) -> None:
    names = [*STAGE_NAMES[:3], "auto", *STAGE_NAMES[3:]]
    assert bring_up(run) == [f"{name}: finished before, kept" for name in names]


def test_without_the_choice_its_stage_goes_and_the_clusters_stay(run: Path) -> None:
    before = modification_times(run)
    said = changed(run, "groups.auto=false")
    assert said[:3] == [f"{name}: finished before, kept" for name in STAGE_NAMES[:3]]
    assert said[3] == "retrain: started"
    assert not (run / "auto").exists()
    after = modification_times(run)
    kept = ("train", "explain", "cluster")
    assert {n: t for n, t in after.items() if n.startswith(kept)} == {
        n: t for n, t in before.items() if n.startswith(kept)
    }
    results = results_of(run)
    assert "auto" not in results
    assert METHOD not in results["methods"]
    heads = load_file(run / "retrain" / "exmap.safetensors")
    assert np.array_equal(load_file(run / "retrain" / "model.safetensors")["fc.weight"], heads["0.weight"])


def test_where_no_shortcut_is_found_the_model_is_left_alone(run: Path) -> None:
    said = changed(run, "auto.ratio=1000000")
    assert said[:4] == [
        *(f"{name}: finished before, kept" for name in STAGE_NAMES[:3]),
        "auto: started",
    ]
    results = results_of(run)
    assert results["auto"]["repaired"] is False
    assert not any(row["found"] for row in results["auto"]["shortcut"].values())
    auto, erm = results["methods"][METHOD], results["methods"]["erm"]
    for key in ("worst_group_accuracy", "mean_accuracy", "weighted_mean_accuracy"):
        assert auto[key] == erm[key]
    assert {name: row["value"] for name, row in auto["group_accuracy"].items()} == {
        name: row["value"] for name, row in erm["group_accuracy"].items()
    }
    assert auto["strengths"] == [None]
    assert "leaves the model alone" in auto["notes"][0]
    trained, repaired = (load_file(run / stage / "model.safetensors") for stage in ("train", "retrain"))
    assert all(np.array_equal(values, repaired[name]) for name, values in trained.items())


def test_its_own_commands_and_a_persons_edits_work_beside_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = command(monkeypatch, capsys, "evaluate", run)
    assert said.code == 0, said.err
    assert METHOD in said.out
    there = json.loads((run / "cluster" / "done.json").read_text())["identity"]
    names = json.loads((run / "cluster" / "clusters.json").read_text())["exmap"]["names"]
    edits = run.parent / "edits.yaml"
    tree = {"format": 1, "source": "exmap", "grouping": there, "edits": [{"group": names[0], "name": "mine"}]}
    edits.write_text(yaml.safe_dump(tree))
    said = command(monkeypatch, capsys, "retrain", run, "--edits", edits)
    assert said.code == 0, said.err
    assert "auto: finished before, kept" in said.out
    assert "edit: started" in said.out
    said = command(monkeypatch, capsys, "evaluate", run)
    assert said.code == 0, said.err
    assert {METHOD, "exmap-edited+dfr", "exmap+dfr"} <= set(results_of(run)["methods"])
    assert "exmap-edited" in open_finished(run).sources
    said = command(monkeypatch, capsys, "report", run)
    assert said.code == 0, said.err


def test_groups_of_the_training_images_are_judged_by_the_validation_images(run: Path) -> None:
    changed(run, "groups.split=train", until="evaluate")
    record = results_of(run)["auto"]
    assert record["judged_on"] == "the validation split"
    assert np.load(run / "auto" / "heatmaps.npy", mmap_mode="r").shape == (450, 3, 8, 8)
    assert set(load_file(run / "auto" / "outputs.safetensors")) == {"val.features", "val.logits"}
    explained = pq.read_table(run / "explain" / "heatmaps.parquet").num_rows
    assert pq.read_table(run / "auto" / "auto.parquet").num_rows == explained > 450
