"""The source of groups that chooses among many, in a bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from exmap.bench import load_bench, plan, run_bench
from exmap.stages import open_run
from running import CHEAP, bring_up, cheap_settings, copy_run, trained_run

TRAINED = ("train.epochs=6", "model.stem=3x3")  # well above chance
METHODS = ["erm", "auto+dfr", "auto+subg[epochs=1]"]


def bring(folder: Path, base: Path, methods: list[str], *settings: str) -> dict[str, dict[str, Any]]:
    """Run a bench beside a classifier that is there, and return its cells by method."""
    run = copy_run(trained_run(base), folder / "runs" / "digits-seed0")
    open_run(run, cheap_settings(*TRAINED, *settings), change=True)
    (folder / "bench.yaml").touch()
    bench = load_bench(datasets=["digits"], methods=methods, seeds=1, settings=[*CHEAP, *TRAINED, *settings])
    _, cells = run_bench(bench, plan(bench), folder, jobs=1, say=lambda _: None)
    assert [cell["status"] for cell in cells] == ["done"] * len(methods), cells
    return {cell["method"]: cell for cell in cells}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("auto") / "b"
    return folder, bring(folder, tmp_path_factory.getbasetemp(), METHODS)


def test_the_chosen_grouping_is_that_of_a_run(
    made: tuple[Path, dict[str, dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    run = copy_run(trained_run(tmp_path_factory.getbasetemp()), tmp_path / "run")
    bring_up(run, cheap_settings(*TRAINED, "groups.auto=true"), until="evaluate", change=True)
    row = json.loads((run / "results.json").read_text())["methods"]["auto+dfr"]
    folder, cells = made
    cell = cells["auto+dfr"]
    assert cell["worst_group_accuracy"] == row["worst_group_accuracy"] > cells["erm"]["worst_group_accuracy"] + 0.05
    here = folder / "runs" / "digits-seed0"
    assert pq.read_table(here / "groups-val-auto" / "auto.parquet").equals(pq.read_table(run / "auto" / "auto.parquet"))
    assert cell["seconds"]["groups"] >= json.loads((here / "choice" / "done.json").read_text())["seconds"] - 1e-3


def test_no_true_group_is_used(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    cells = made[1]
    for method in ("auto+dfr", "auto+subg[epochs=1]"):
        used = cells[method]["labels_used"]
        assert used["fitting"] == used["selection"] == ["auto groups"]
    for cell in cells.values():
        asked = {label for step, labels in cell["labels_used"].items() if step != "evaluation" for label in labels}
        assert "true groups" not in asked


def test_a_whole_network_gets_the_chosen_grouping_of_the_training_images(
    made: tuple[Path, dict[str, dict[str, Any]]],
) -> None:
    folder, cells = made
    here = folder / "runs" / "digits-seed0"
    chosen = json.loads((here / "choice" / "auto.json").read_text())["chosen"]
    trained, chosen_for = (pq.read_table(here / f"groups-{split}-auto" / "auto.parquet") for split in ("train", "val"))
    assert trained.num_rows == 897
    assert chosen_for.num_rows == 450
    assert "epoch" in cells["auto+subg[epochs=1]"]
    assert chosen.startswith(("exmap[", "george["))


def test_where_no_shortcut_is_found_the_classifier_is_left_as_it_is(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    methods = ["erm", "auto+dfr"]
    cells = bring(tmp_path / "b", tmp_path_factory.getbasetemp(), methods, "auto.ratio=1000")
    right = [load_file(path)["correct"] for path in sorted((tmp_path / "b" / "cells" / "digits").glob("*.safetensors"))]
    assert len(right) == 2
    assert np.array_equal(*right)
    assert cells["auto+dfr"]["notes"][0] == "the classifier is left as it is"
    assert any("No shortcut was found" in note for note in cells["auto+dfr"]["notes"])


def test_where_training_images_are_grouped_others_judge(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    methods = ["auto+dfr", "auto+subg[epochs=1]"]
    bring(tmp_path / "b", tmp_path_factory.getbasetemp(), methods, "groups.split=train", "auto.only_if_found=false")
    here = tmp_path / "b" / "runs" / "digits-seed0"
    assert json.loads((here / "choice" / "auto.json").read_text())["judged_on"] == "the validation split"
    fitted, judged = (pq.read_table(here / f"groups-{split}-auto" / "auto.parquet") for split in ("train", "val"))
    assert (fitted.num_rows, judged.num_rows) == (897, 450)
    for split, source in (("train", "auto"), ("val", "auto-judged")):
        assert pq.read_table(here / "choice" / f"{source}.parquet")["group"].equals(
            pq.read_table(here / f"groups-{split}-auto" / "auto.parquet")["group"]
        )
