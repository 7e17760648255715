"""The source of groups that chooses among many, in a bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from exmap.bench import load_bench, plan, run_bench
from exmap.pipeline.disk import read_json
from exmap.pipeline.runs import open_run
from running import CHEAP, auto_run, cheap_settings, copy_run, finished_run, little_choices

METHODS = ["erm", "auto+dfr", "auto+subg[epochs=1]"]


def bring(folder: Path, finished: Path, methods: list[str], *settings: str) -> dict[str, dict[str, Any]]:
    """Run a bench beside a classifier that is there, and return its cells by method."""
    run = copy_run(finished, folder / "runs" / "digits-seed0")
    open_run(run, cheap_settings(*settings), change=True)
    (folder / "bench.yaml").touch()
    bench = load_bench(datasets=["digits"], methods=methods, seeds=1, settings=[*CHEAP, *settings])
    with little_choices():
        _, cells = run_bench(bench, plan(bench), folder, jobs=1, say=lambda _: None)
    assert [cell["status"] for cell in cells] == ["done"] * len(methods), cells
    return {cell["method"]: cell for cell in cells}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("auto") / "b"
    return folder, bring(folder, finished_run(tmp_path_factory), METHODS)


def test_the_chosen_grouping_is_that_of_a_run(
    made: tuple[Path, dict[str, dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run, (folder, cells) = auto_run(tmp_path_factory), made
    row, cell = read_json(run / "results.json")["methods"]["auto+dfr"], cells["auto+dfr"]
    assert cell["worst_group_accuracy"] == row["worst_group_accuracy"]
    here = folder / "runs" / "digits-seed0"
    for table in ("auto/groups/groups.parquet", "groups-val-auto/groups.parquet"):
        assert pq.read_table(here / table).equals(pq.read_table(run / table))
    assert cell["seconds"]["groups"] >= read_json(here / "auto" / "done.json")["seconds"] - 1e-3


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
    chosen = read_json(here / "auto" / "auto.json")["chosen"]
    trained, chosen_for = (
        pq.read_table(here / f"groups-{split}-auto" / "groups.parquet") for split in ("train", "val")
    )
    assert trained.num_rows == 897
    assert chosen_for.num_rows == 450
    assert "epoch" in cells["auto+subg[epochs=1]"]
    assert chosen.startswith(("exmap[", "george[", "exchange["))


def test_where_no_shortcut_is_found_the_classifier_is_left_as_it_is(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    methods = ["erm", "auto+dfr"]
    cells = bring(tmp_path / "b", finished_run(tmp_path_factory), methods, "auto.level=1e-200")
    right = [load_file(path)["correct"] for path in sorted((tmp_path / "b" / "cells" / "digits").glob("*.safetensors"))]
    assert len(right) == 2
    assert np.array_equal(*right)
    assert cells["auto+dfr"]["notes"][0] == "the classifier is left as it is"
    assert any("No shortcut was found" in note for note in cells["auto+dfr"]["notes"])


def test_where_training_images_are_grouped_others_judge(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    methods = ["auto+dfr", "auto+subg[epochs=1]"]
    settings = ("groups.split=train", "auto.only_if_found=false")
    bring(tmp_path / "b", finished_run(tmp_path_factory), methods, *settings)
    here = tmp_path / "b" / "runs" / "digits-seed0"
    assert read_json(here / "auto" / "auto.json")["judged_on"] == "the validation split"
    for split, kind, images in (("train", "groups", 897), ("val", "judged", 450)):
        chosen = pq.read_table(here / "auto" / kind / "groups.parquet")["group"]
        assert len(chosen) == images
        assert chosen.equals(pq.read_table(here / f"groups-{split}-auto" / "groups.parquet")["group"])
