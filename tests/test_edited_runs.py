"""A person's edits of a run's groups, end to end: retrained on, evaluated beside the others, refused when stale."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from exmap.pipeline.looking import open_analysis
from exmap.settings import load_settings
from running import (
    KEPT,
    Give,
    bring_up,
    command,
    copy_run,
    finished_run,
    modification_times,
    redone,
    results_of,
    without_times,
)

EDITED = "exmap-edited"
GROUPS, FIT = f"groups-val-{EDITED}", f"fit-{EDITED}+dfr"
STARTED = [
    "retrain, edited groups: started",
    f"retrain, {EDITED}+dfr: started",
    "retrain, repaired classifier: started",
]


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Give:
    monkeypatch.delenv("EXMAP_DATA_DIR", raising=False)
    return lambda *words: command(monkeypatch, capsys, *words)


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return copy_run(finished_run(tmp_path_factory), tmp_path / "run")


def names_of(run: Path) -> list[str]:
    names: list[str] = json.loads((run / "groups-val-exmap" / "groups.json").read_text())["names"]
    return names


def write_edits(
    run: Path, *edits: dict[str, Any], grouping: str | None = None, selections: Sequence[dict[str, Any]] = ()
) -> Path:
    there = json.loads((run / "groups-val-exmap" / "done.json").read_text())["identity"]
    tree = {"format": 1, "source": "exmap", "grouping": grouping or there, "edits": list(edits)}
    tree |= {"selections": list(selections)} if selections else {}
    path = run.parent / "edits.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def test_selected_images_are_retrained_on_as_a_group_of_their_own(give: Give, run: Path) -> None:
    first = table_of(run, "groups-val-exmap")
    ids = [id_ for id_, label in zip(first["id"].to_pylist(), first["class"].to_pylist(), strict=True) if label == 0]
    edits = write_edits(run, selections=[{"name": "by hand", "images": ids[:12]}])
    said = give("retrain", run, "--edits", edits)
    assert said.code == 0, said.err
    table = table_of(run, GROUPS)
    of = dict(zip(table["id"].to_pylist(), table["group_name"].to_pylist(), strict=True))
    assert [id_ for id_, name in of.items() if name == "by hand"] == ids[:12]
    rows = [number for number, id_ in enumerate(first["id"].to_pylist()) if id_ in ids[:12]]
    edits = write_edits(run, selections=[{"name": "by hand", "rows": ", ".join(map(str, rows))}])
    before = table
    assert give("retrain", run, "--edits", edits).code == 0
    assert table_of(run, GROUPS).equals(before)  # rows and ids say the same
    said = give("retrain", run, "--edits", write_edits(run, selections=[{"name": "x", "rows": "0-99999"}]))
    assert said.code == 2
    assert "selection 'x' has row 99999" in said.err


def table_of(run: Path, step: str) -> Any:
    return pq.read_table(run / step / "groups.parquet")


def test_edited_groups_are_retrained_on_and_stand_beside_the_first_ones(give: Give, run: Path) -> None:
    before, results, names = modification_times(run), results_of(run), names_of(run)
    left = [name for name in names if name.startswith(names[0].partition(" / ")[0])]
    edits = write_edits(run, {"group": left[0], "merge_into": left[1]}, {"group": left[1], "name": "all of them"})
    said = give("retrain", run, "--edits", edits)
    assert said.code == 0, said.err
    assert said.steps() == [*KEPT[:3], *STARTED]
    assert redone(before, run) == {GROUPS, FIT, "repaired"}
    first, table = table_of(run, "groups-val-exmap"), table_of(run, GROUPS)
    assert table["id"].equals(first["id"])
    wanted = ["all of them" if name in left else name for name in first["group_name"].to_pylist()]
    assert table["group_name"].to_pylist() == wanted
    edited = open_analysis(run).groups[EDITED]
    assert [edited.names[g] for g in edited.index] == wanted
    kept = yaml.safe_load((run / "settings.yaml").read_text())["settings"]["edits"]
    assert [edit["name"] for edit in kept["edits"]] == [None, "all of them"]

    said = give("evaluate", run)
    assert said.steps() == [*KEPT[:4], "evaluate, results: started"]
    assert f"{EDITED}+dfr" in said.out
    found = results_of(run)
    row = found["methods"].pop(f"{EDITED}+dfr")
    assert row["labels_used"]["groups"] == ["class labels", "a person's edits"]
    assert row["labels_used"]["tuning"] == [f"{EDITED} groups"]
    assert found["group_inference"].pop(EDITED)["groups"]["all of them"] == wanted.count("all of them")
    assert without_times(found) == without_times(results)
    heads, model = load_file(run / FIT / "heads.safetensors"), load_file(run / "repaired" / "model.safetensors")
    assert np.array_equal(model["11.weight"], heads["0.weight"])


def test_the_same_edits_again_redo_nothing_and_other_ones_only_themselves(give: Give, run: Path) -> None:
    name = names_of(run)[0]
    edits = write_edits(run, {"group": name, "name": "one"})
    assert give("retrain", run, "--edits", edits).code == 0
    before = modification_times(run)
    assert give("retrain", run, "--edits", edits).steps() == KEPT[:4]
    assert give("run", "digits", "--out", run).steps() == []  # other settings than the cheap ones: refused
    assert redone(before, run) == set()
    edits = write_edits(run, {"group": name, "name": "other"})
    assert give("retrain", run, "--edits", edits).steps() == [*KEPT[:3], *STARTED]
    assert set(table_of(run, GROUPS)["group_name"].to_pylist()) == {"other", *names_of(run)[1:]}


def test_edits_that_only_name_groups_give_the_heads_of_the_first_groups(give: Give, run: Path) -> None:
    edits = write_edits(run, *({"group": name, "name": f"group {i}"} for i, name in enumerate(names_of(run))))
    assert give("retrain", run, "--edits", edits).code == 0
    first = load_file(run / "fit-exmap+dfr" / "heads.safetensors")
    again = load_file(run / FIT / "heads.safetensors")
    assert all(np.array_equal(first[key], again[key]) for key in first)


def test_edits_taken_away_take_their_results_along(give: Give, run: Path) -> None:
    results = results_of(run)
    edits = write_edits(run, {"group": names_of(run)[0], "name": "one"})
    assert give("retrain", run, "--edits", edits).code == 0
    assert give("evaluate", run).code == 0
    assert give("evaluate", run, "--set", "edits=null").code == 0
    assert without_times(results_of(run)) == without_times(results)
    assert EDITED not in open_analysis(run).groups
    heads = load_file(run / "fit-exmap+dfr" / "heads.safetensors")
    assert np.array_equal(load_file(run / "repaired" / "model.safetensors")["11.weight"], heads["0.weight"])


def test_a_run_whose_groups_were_edited_is_continued_by_the_command_that_started_it(give: Give, run: Path) -> None:
    settings = yaml.safe_load((run / "settings.yaml").read_text())["settings"]
    (run.parent / "cheap.yaml").write_text(yaml.safe_dump({k: v for k, v in settings.items() if k != "edits"}))
    assert give("retrain", run, "--edits", write_edits(run, {"group": names_of(run)[0], "name": "one"})).code == 0
    bring_up(run, load_settings(run.parent / "cheap.yaml"), until="evaluate")
    assert f"{EDITED}+dfr" in results_of(run)["methods"]


def test_edits_of_other_groups_are_refused_and_change_nothing(give: Give, run: Path) -> None:
    before = (run / "settings.yaml").read_text()
    one = {"group": names_of(run)[0], "name": "one"}
    refused = [
        give("retrain", run, "--edits", write_edits(run, one, grouping="0" * 64)),
        give("retrain", run, "--edits", write_edits(run, {"group": "class 9 / cluster 0"})),
        give("retrain", run, "--edits", run / "nothing.yaml"),
    ]
    assert all(said.refused() for said in refused)
    assert "edits of other groups" in refused[0].err
    assert "unknown group" in refused[1].err
    assert (run / "settings.yaml").read_text() == before
    assert not (run / GROUPS).exists()


def test_groups_under_edits_are_not_made_anew_until_the_edits_are_taken_away(give: Give, run: Path) -> None:
    edits = write_edits(run, {"group": names_of(run)[0], "name": "one"})
    said = give("retrain", run, "--edits", edits, "--set", "cluster.n_clusters=3")
    assert said.refused(), said.err
    assert give("retrain", run, "--edits", edits).code == 0
    before = (run / "settings.yaml").read_text()
    said = give("cluster", run, "--set", "cluster.n_clusters=3")
    assert said.refused(), said.err
    assert "edits=null" in said.err
    assert (run / "settings.yaml").read_text() == before
    assert give("cluster", run, "--set", "cluster.n_clusters=3", "--set", "edits=null").code == 0
    said = give("retrain", run, "--edits", edits)
    assert said.refused(), said.err
    assert "edits of other groups" in said.err


def test_groups_that_are_not_there_cannot_be_edited(give: Give, run: Path) -> None:
    edits = write_edits(run, {"group": names_of(run)[0], "name": "one"})
    (run / "groups-val-exmap" / "done.json").unlink()
    said = give("retrain", run, "--edits", edits)
    assert said.refused(), said.err
    assert f"exmap cluster {run}" in said.err
