"""A person's edits of a run's groups, end to end: retrained on, evaluated beside the others, refused when stale."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from exmap.finished import open_finished
from running import STAGE_NAMES, Said, command, copy_run, finished_run, modification_times, without_times

Give = Callable[..., Said]
KEPT = [f"{name}: finished before, kept" for name in STAGE_NAMES]
EDITED = "exmap-edited"


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Give:
    monkeypatch.delenv("EXMAP_DATA_DIR", raising=False)
    return lambda *words: command(monkeypatch, capsys, *words)


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return copy_run(finished_run(tmp_path_factory.getbasetemp()), tmp_path / "run")


def names_of(run: Path) -> list[str]:
    names: list[str] = json.loads((run / "cluster" / "clusters.json").read_text())["exmap"]["names"]
    return names


def write_edits(run: Path, *edits: dict[str, Any], grouping: str | None = None) -> Path:
    there = json.loads((run / "cluster" / "done.json").read_text())["identity"]
    tree = {"format": 1, "source": "exmap", "grouping": grouping or there, "edits": list(edits)}
    path = run.parent / "edits.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def results_of(run: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    return results


def said_of_stages(said: Said) -> list[str]:
    return [line for line in said.out.splitlines() if ": " in line and line.split(":")[0] in (*STAGE_NAMES, "edit")]


def test_edited_groups_are_retrained_on_and_stand_beside_the_first_ones(give: Give, run: Path) -> None:
    before, results, names = modification_times(run), results_of(run), names_of(run)
    left = [name for name in names if name.startswith(names[0].partition(" / ")[0])]
    edits = write_edits(run, {"group": left[0], "merge_into": left[1]}, {"group": left[1], "name": "all of them"})
    said = give("retrain", run, "--edits", edits)
    assert said.code == 0, said.err
    assert said_of_stages(said) == [*KEPT[:4], "edit: started"]
    after = modification_times(run)
    assert {n: t for n, t in after.items() if n.split("/")[0] in STAGE_NAMES[:4]} == {
        n: t for n, t in before.items() if n.split("/")[0] in STAGE_NAMES[:4]
    }
    first = pq.read_table(run / "cluster" / "exmap.parquet")
    table = pq.read_table(run / "edit" / f"{EDITED}.parquet")
    assert table["id"].equals(first["id"])
    wanted = ["all of them" if name in left else name for name in first["group_name"].to_pylist()]
    assert table["group_name"].to_pylist() == wanted
    edited = open_finished(run).sources[EDITED]
    assert [edited.names[g] for g in edited.index] == wanted
    kept = yaml.safe_load((run / "settings.yaml").read_text())["settings"]["edits"]
    assert [edit["name"] for edit in kept["edits"]] == [None, "all of them"]

    said = give("evaluate", run)
    assert said_of_stages(said) == [*KEPT[:4], "edit: finished before, kept", "evaluate: started"]
    assert "exmap-edited+dfr" in said.out
    found = results_of(run)
    row = found["methods"].pop(f"{EDITED}+dfr")
    assert row["labels_used"]["groups"] == ["class labels", "a person's edits"]
    assert row["labels_used"]["tuning"] == ["exmap-edited groups"]
    assert found["group_inference"].pop(EDITED)["groups"]["all of them"] == wanted.count("all of them")
    assert without_times(found) == without_times(results)
    heads = load_file(run / "edit" / f"{EDITED}.safetensors")
    model = load_file(run / "edit" / "model.safetensors")
    assert np.array_equal(model["fc.weight"], heads["0.weight"])


def test_the_same_edits_again_redo_nothing_and_other_ones_only_themselves(give: Give, run: Path) -> None:
    name = names_of(run)[0]
    edits = write_edits(run, {"group": name, "name": "one"})
    assert give("retrain", run, "--edits", edits).code == 0
    assert said_of_stages(give("retrain", run, "--edits", edits))[-1] == "edit: finished before, kept"
    assert said_of_stages(give("run", "digits", "--out", run)) == []  # other settings than the cheap ones: refused
    edits = write_edits(run, {"group": name, "name": "other"})
    assert said_of_stages(give("retrain", run, "--edits", edits)) == [*KEPT[:4], "edit: started"]
    assert set(pq.read_table(run / "edit" / f"{EDITED}.parquet")["group_name"].to_pylist()) == {
        "other",
        *names_of(run)[1:],
    }


def test_edits_that_only_name_groups_give_the_heads_of_the_first_groups(give: Give, run: Path) -> None:
    edits = write_edits(run, *({"group": name, "name": f"group {i}"} for i, name in enumerate(names_of(run))))
    assert give("retrain", run, "--edits", edits).code == 0
    first = load_file(run / "retrain" / "exmap.safetensors")
    again = load_file(run / "edit" / f"{EDITED}.safetensors")
    assert all(np.array_equal(first[key], again[key]) for key in first)


def test_edits_taken_away_take_their_results_along(give: Give, run: Path) -> None:
    results = results_of(run)
    edits = write_edits(run, {"group": names_of(run)[0], "name": "one"})
    assert give("retrain", run, "--edits", edits).code == 0
    assert give("evaluate", run).code == 0
    assert give("evaluate", run, "--set", "edits=null").code == 0
    assert without_times(results_of(run)) == without_times(results)
    assert not (run / "edit").exists()


def test_a_run_whose_groups_were_edited_is_continued_by_the_command_that_started_it(give: Give, run: Path) -> None:
    settings = yaml.safe_load((run / "settings.yaml").read_text())["settings"]
    (run.parent / "cheap.yaml").write_text(yaml.safe_dump({k: v for k, v in settings.items() if k != "edits"}))
    assert give("retrain", run, "--edits", write_edits(run, {"group": names_of(run)[0], "name": "one"})).code == 0
    said = give("run", run.parent / "cheap.yaml", "--out", run)
    assert said.code == 0, said.err
    assert "exmap-edited+dfr" in said.out


def test_edits_of_other_groups_are_refused_and_change_nothing(give: Give, run: Path) -> None:
    before = (run / "settings.yaml").read_text()
    one = {"group": names_of(run)[0], "name": "one"}
    refused = [
        give("retrain", run, "--edits", write_edits(run, one, grouping="0" * 64)),
        give("retrain", run, "--edits", write_edits(run, {"group": "class 9 / cluster 0"})),
        give("retrain", run, "--edits", run / "nothing.yaml"),
    ]
    assert [said.code for said in refused] == [2, 2, 2]
    assert all(said.is_one_sentence() for said in refused)
    assert "edits of other groups" in refused[0].err
    assert "unknown group" in refused[1].err
    assert (run / "settings.yaml").read_text() == before
    assert not (run / "edit").exists()


def test_groups_under_edits_are_not_made_anew_until_the_edits_are_taken_away(give: Give, run: Path) -> None:
    edits = write_edits(run, {"group": names_of(run)[0], "name": "one"})
    said = give("retrain", run, "--edits", edits, "--set", "cluster.n_clusters=3")
    assert (said.code, said.is_one_sentence()) == (2, True)
    assert give("retrain", run, "--edits", edits).code == 0
    before = (run / "settings.yaml").read_text()
    said = give("cluster", run, "--set", "cluster.n_clusters=3")
    assert (said.code, said.is_one_sentence()) == (2, True)
    assert "edits=null" in said.err
    assert (run / "settings.yaml").read_text() == before
    assert give("cluster", run, "--set", "cluster.n_clusters=3", "--set", "edits=null").code == 0
    said = give("retrain", run, "--edits", edits)
    assert (said.code, said.is_one_sentence()) == (2, True)
    assert "edits of other groups" in said.err


def test_groups_that_are_not_there_cannot_be_edited(give: Give, run: Path) -> None:
    edits = write_edits(run, {"group": names_of(run)[0], "name": "one"})
    (run / "cluster" / "done.json").unlink()
    said = give("retrain", run, "--edits", edits)
    assert (said.code, said.is_one_sentence()) == (2, True)
    assert f"exmap cluster {run}" in said.err
