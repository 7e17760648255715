"""A run that chooses its groups: what it writes, what it leaves alone, and what other settings do to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from exmap.pipeline.looking import open_analysis
from running import (
    KEPT,
    auto_run,
    bring_up,
    changed,
    command,
    copy_run,
    little_choices,
    modification_times,
    redone,
    results_of,
)

METHOD = "auto+dfr"
CHOICE = {"auto", "groups-val-auto", f"fit-{METHOD}"}  # the steps that are there for it alone


@pytest.fixture(autouse=True)
def little() -> Iterator[None]:
    with little_choices():
        yield


@pytest.fixture(scope="session")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return auto_run(tmp_path_factory)


@pytest.fixture
def run(chosen: Path, tmp_path: Path) -> Path:
    return copy_run(chosen, tmp_path / "run")


def worst(results: dict[str, Any], method: str) -> float:
    return float(results["methods"][method]["worst_group_accuracy"])


def test_the_step_writes_the_chosen_groups_and_why(chosen: Path) -> None:
    record = json.loads((chosen / "auto" / "auto.json").read_text())
    assert record["judged_on"] == "held-out halves"
    notes = json.loads((chosen / "groups-val-auto" / "groups.json").read_text())
    assert len(notes["names"]) == record["candidates"][0]["groups"]
    assert notes["source"] == "auto"
    table, cluster = (pq.read_table(chosen / f"groups-val-{name}" / "groups.parquet") for name in ("auto", "exmap"))
    assert table["id"].equals(cluster["id"])
    assert table.num_rows == 450
    for name in ("groups", "judged"):
        assert pq.read_table(chosen / "auto" / name / "groups.parquet")["group"].equals(table["group"])


def test_results_hold_the_choice_and_its_method(chosen: Path) -> None:
    results = results_of(chosen)
    assert results["auto"] == json.loads((chosen / "auto" / "auto.json").read_text())
    row = results["methods"][METHOD]
    assert row["labels_used"]["groups"] == ["class labels"]
    assert row["labels_used"]["tuning"] == ["auto groups"]
    assert len(row["strengths"]) == 2
    assert "auto" in results["group_inference"]
    assert set(results["methods"]) == {"erm", "exmap+dfr", METHOD}
    done = json.loads((chosen / "auto" / "done.json").read_text())
    assert results["seconds"]["cluster"] >= done["seconds"] > 0


def test_the_shortcut_of_the_digits_is_found_and_the_model_repaired_with_it(chosen: Path) -> None:
    results = results_of(chosen)
    assert any(row["found"] for row in results["auto"]["shortcut"].values())
    assert results["auto"]["repaired"] is True
    assert worst(results, METHOD) > worst(results, "erm") + 0.05
    heads = load_file(chosen / f"fit-{METHOD}" / "heads.safetensors")
    model, trained = (load_file(chosen / step / "model.safetensors") for step in ("repaired", "train"))
    assert np.array_equal(model["11.weight"], heads["0.weight"])
    assert not np.array_equal(model["11.weight"], trained["11.weight"])


def test_what_is_finished_is_kept(run: Path) -> None:
    before = modification_times(run)
    assert bring_up(run, until="evaluate") == KEPT[:5]
    assert redone(before, run) == set()


def test_without_the_choice_nothing_is_fitted_again_and_with_it_only_itself(run: Path) -> None:
    before = modification_times(run)
    said = changed(run, "groups.auto=false")
    assert said == [
        *KEPT[:3],
        "retrain, repaired classifier: started",
        "evaluate, description of the groups by exmap: started",
        "evaluate, results: started",
    ]
    assert redone(before, run) == {"repaired", "describe-exmap", "evaluate"}
    results = results_of(run)
    assert "auto" not in results
    assert METHOD not in results["methods"]
    heads = load_file(run / "fit-exmap+dfr" / "heads.safetensors")
    assert np.array_equal(load_file(run / "repaired" / "model.safetensors")["11.weight"], heads["0.weight"])

    (run / "auto" / "done.json").unlink()
    before = modification_times(run)
    assert changed(run, "groups.auto=true", until="cluster")[2] == "cluster, choice of a grouping: started"
    assert redone(before, run) == {"auto"}


def test_where_no_shortcut_is_found_the_model_is_left_alone(run: Path) -> None:
    before = modification_times(run)
    said = changed(run, "auto.level=1e-200")
    assert said[:3] == [*KEPT[:2], "cluster, choice of a grouping: started"]
    assert redone(before, run) == CHOICE | {"repaired", "describe-exmap", "describe-auto", "evaluate"}
    results = results_of(run)
    assert results["auto"]["repaired"] is False
    assert not any(row["found"] for row in results["auto"]["shortcut"].values())
    auto, erm = results["methods"][METHOD], results["methods"]["erm"]
    for key in ("worst_group_accuracy", "mean_accuracy", "weighted_mean_accuracy"):
        assert auto[key] == pytest.approx(erm[key])
    assert {name: row["value"] for name, row in auto["group_accuracy"].items()} == {
        name: row["value"] for name, row in erm["group_accuracy"].items()
    }
    assert auto["strengths"] == [None]
    assert "leaves the model alone" in auto["notes"][0]
    trained, repaired = (load_file(run / step / "model.safetensors") for step in ("train", "repaired"))
    assert all(np.array_equal(values, repaired[name]) for name, values in trained.items())


def test_its_own_commands_and_a_persons_edits_work_beside_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = command(monkeypatch, capsys, "evaluate", run)
    assert said.code == 0, said.err
    assert METHOD in said.out
    there = json.loads((run / "groups-val-exmap" / "done.json").read_text())["identity"]
    names = json.loads((run / "groups-val-exmap" / "groups.json").read_text())["names"]
    edits = run.parent / "edits.yaml"
    tree = {"format": 1, "source": "exmap", "grouping": there, "edits": [{"group": names[0], "name": "mine"}]}
    edits.write_text(yaml.safe_dump(tree))
    before = modification_times(run)
    said = command(monkeypatch, capsys, "retrain", run, "--edits", edits)
    assert said.code == 0, said.err
    assert redone(before, run) == {"groups-val-exmap-edited", "fit-exmap-edited+dfr", "repaired"}
    said = command(monkeypatch, capsys, "evaluate", run)
    assert said.code == 0, said.err
    assert {METHOD, "exmap-edited+dfr", "exmap+dfr"} <= set(results_of(run)["methods"])
    assert {"exmap-edited", "auto", "exmap"} <= set(open_analysis(run).groups)


def test_groups_of_the_training_images_are_judged_by_the_validation_images(run: Path) -> None:
    before = modification_times(run)
    changed(run, "groups.split=train", until="cluster")
    assert redone(before, run) == {"explain-train", "auto", "groups-train-exmap", "groups-train-auto"}
    record = json.loads((run / "auto" / "auto.json").read_text())
    assert record["judged_on"] == "the validation split"
    assert pq.read_table(run / "auto" / "groups" / "groups.parquet").num_rows == 897
    assert pq.read_table(run / "auto" / "judged" / "groups.parquet").num_rows == 450
    assert pq.read_table(run / "groups-train-auto" / "groups.parquet").num_rows == 897
