"""The run folder: what it holds, what is kept, what is made again, and what a kill or a full disk leaves."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file
from torch import nn

from exmap.config import ModelSettings, change_settings
from exmap.data import build_task
from exmap.errors import RunFolderError, SettingsError
from exmap.model import build_model, collect_outputs, load_weights
from exmap.records import Progress
from exmap.runtime import torch_seed
from exmap.stages import open_run
from running import (
    CHEAP,
    STAGE_NAMES,
    as_options,
    bring_up,
    cheap_settings,
    command,
    copy_run,
    finished_run,
    in_process,
    modification_times,
    start_process,
    without_times,
)

SOURCES = ["classes", "error_set", "exmap", "george", "oracle", "random"]
KEPT = [f"{name}: finished before, kept" for name in STAGE_NAMES]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def results(finished: Path) -> dict[str, Any]:
    return json.loads((finished / "results.json").read_text())


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return copy_run(finished, tmp_path / "run")


# What a finished run holds


def test_a_run_folder_holds_every_documented_file(finished: Path) -> None:
    files = [
        "settings.yaml",
        "manifest.json",
        "results.json",
        "train/model.safetensors",
        "train/history.json",
        "explain/heatmaps.npy",
        "explain/heatmaps.parquet",
        "explain/channels.npy",
        "explain/outputs.safetensors",
        "cluster/clusters.json",
        *(f"cluster/{source}.parquet" for source in SOURCES),
        *(f"retrain/{source}.safetensors" for source in SOURCES),
        "retrain/heads.json",
        "retrain/model.safetensors",
        "evaluate/results.json",
        "report/report.html",
        "report/strategies.png",
        *(f"{stage}/done.json" for stage in STAGE_NAMES),
    ]
    assert [name for name in files if not (finished / name).is_file()] == []


def test_a_finished_run_holds_nothing_half_written(finished: Path) -> None:
    assert [path.name for path in finished.rglob("*") if path.suffix in (".part", ".old")] == []
    assert not (finished / "train" / "state.safetensors").exists()


def test_each_source_of_groups_has_one_row_per_validation_image(finished: Path) -> None:
    val = build_task(cheap_settings().data).val
    for source in SOURCES:
        table = pq.read_table(finished / "cluster" / f"{source}.parquet")
        assert table.column_names == ["id", "class", "cluster", "group", "group_name", "predicted", "correct"]
        assert table["id"].to_pylist() == list(val.ids)
        assert np.array_equal(table["class"].to_numpy(), val.labels)
        assert np.array_equal(table["correct"].to_numpy(), table["predicted"].to_numpy() == val.labels)


def test_group_names_in_the_tables_are_those_of_the_group_numbers(finished: Path) -> None:
    notes = json.loads((finished / "cluster" / "clusters.json").read_text())
    for source in SOURCES:
        table = pq.read_table(finished / "cluster" / f"{source}.parquet")
        names = notes[source]["names"]
        assert table["group_name"].to_pylist() == [names[g] for g in table["group"].to_pylist()]
        assert notes[source]["counts"] == np.bincount(table["group"].to_numpy(), minlength=len(names)).tolist()


def test_heatmaps_and_outputs_have_one_entry_per_image(finished: Path) -> None:
    maps = np.load(finished / "explain" / "heatmaps.npy", allow_pickle=False)
    assert maps.shape == (450, 3, 8, 8)
    assert maps.dtype == np.float32
    assert np.abs(maps).max() <= 1
    outputs = load_file(finished / "explain" / "outputs.safetensors")
    assert {name: array.shape for name, array in outputs.items()} == {
        "val.features": (450, 512),
        "val.logits": (450, 2),
        "test.features": (450, 512),
        "test.logits": (450, 2),
    }
    table = pq.read_table(finished / "explain" / "heatmaps.parquet")
    assert table.column_names == ["id", "target", "conservation_error", "finite", "zero", "input_share"]
    assert table.num_rows == 450
    assert np.load(finished / "explain" / "channels.npy", allow_pickle=False).shape[0] == 450


def test_the_figure_is_a_png(finished: Path) -> None:
    assert (finished / "report" / "strategies.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_folder_keeps_its_settings_and_where_it_came_from(finished: Path) -> None:
    kept = yaml.safe_load((finished / "settings.yaml").read_text())
    manifest = json.loads((finished / "manifest.json").read_text())
    assert kept["format"] == manifest["format"] == 1
    assert kept["settings"] == manifest["settings"] == cheap_settings().model_dump(mode="json")
    assert manifest["input_digests"] == dict(build_task(cheap_settings().data).digests)
    assert {"python", "exmap", "torch", "scikit-learn", "numpy"} <= set(manifest["versions"])
    assert {"git_commit", "device", "machine", "seed"} <= set(manifest)


# results.json


def test_results_name_the_data_the_seed_and_every_method(results: dict[str, Any]) -> None:
    assert (results["format"], results["dataset"], results["preset"], results["seed"]) == (1, "digits", "digits", 0)
    assert sorted(results["methods"]) == sorted(["erm", *(f"{source}+dfr" for source in SOURCES)])


def test_every_method_has_accuracies_in_range_with_counts_and_intervals(results: dict[str, Any]) -> None:
    names = ["digit 0-4, red", "digit 0-4, green", "digit 5-9, red", "digit 5-9, green"]
    for row in results["methods"].values():
        assert all(0 <= row[key] <= 1 for key in ("worst_group_accuracy", "mean_accuracy", "weighted_mean_accuracy"))
        assert list(row["group_accuracy"]) == names
        for group in row["group_accuracy"].values():
            assert 0 <= group["low"] <= group["value"] <= group["high"] <= 1
        assert sum(group["count"] for group in row["group_accuracy"].values()) == 450


def test_results_say_what_of_the_logit_is_accounted_for(results: dict[str, Any]) -> None:
    found = results["heatmaps"]
    assert found["input_share_median"] + found["constant_share_median"] == pytest.approx(1)
    assert 0 <= found["conservation_error_median"] <= found["conservation_error_p95"] < 1e-4
    check = found["check"]
    assert (check["explainer"], check["composite"], check["images"]) == ("lrp", "symmetric_gamma", 4)
    assert 0 <= check["error"] < 1e-4
    assert check["layer"].startswith("layer")


def test_only_methods_with_repeats_have_a_spread(results: dict[str, Any]) -> None:
    methods = dict(results["methods"])
    erm = methods.pop("erm")
    assert (erm["std"], erm["repeats"]) == (None, 1)
    assert all(row["repeats"] == 2 and row["std"] >= 0 for row in methods.values())


def test_the_worst_group_of_erm_is_the_lowest_of_its_groups(results: dict[str, Any]) -> None:
    erm = results["methods"]["erm"]
    assert erm["worst_group_accuracy"] == min(group["value"] for group in erm["group_accuracy"].values())
    hits = sum(group["value"] * group["count"] for group in erm["group_accuracy"].values())
    assert erm["mean_accuracy"] == pytest.approx(hits / 450)


def test_only_the_oracle_uses_true_groups_for_anything_but_evaluation(results: dict[str, Any]) -> None:
    for name, row in results["methods"].items():
        used = dict(row["labels_used"])
        assert used.pop("evaluation") == ["true groups"]
        named = {label for labels in used.values() for label in labels}
        assert ("true groups" in named) == (name == "oracle+dfr")


def test_agreement_with_the_truth_is_given_for_every_source(results: dict[str, Any]) -> None:
    assert sorted(results["group_inference"]) == SOURCES
    for row in results["group_inference"].values():
        assert {"ari", "nmi", "minority_precision", "minority_recall"} <= set(row)
        assert all(0 <= row[key] <= 1 for key in ("nmi", "minority_precision", "minority_recall"))
    assert results["group_inference"]["oracle"]["ari"] == 1
    assert results["group_inference"]["classes"]["ari"] == 0


def test_results_say_how_long_each_stage_took_and_how_much_memory(results: dict[str, Any]) -> None:
    seconds = dict(results["seconds"])
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()), abs=0.01)
    assert list(seconds) == STAGE_NAMES
    assert results["peak_memory_mib"] > 100


def test_the_repaired_model_is_the_trained_one_with_the_first_repeats_head(finished: Path) -> None:
    test = build_task(cheap_settings().data).test
    model = build_model(ModelSettings(), 2, seed=5)
    load_weights(model, finished / "retrain" / "model.safetensors")
    predicted = collect_outputs(model, test).predicted
    heads = load_file(finished / "retrain" / "exmap.safetensors")
    features = load_file(finished / "explain" / "outputs.safetensors")["test.features"]
    by_head = (features @ heads["0.weight"].T + heads["0.bias"]).argmax(axis=1)
    groups = test.true_groups().index
    for group in range(4):
        right = [(rows == test.labels)[groups == group].mean() for rows in (predicted, by_head)]
        assert right[0] == right[1]


# The same command again, and another seed or folder


def test_the_same_seed_in_another_folder_gives_the_same_results(results: dict[str, Any], tmp_path: Path) -> None:
    bring_up(tmp_path / "again", cheap_settings(), until="evaluate")
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert without_times(again) == without_times(results)


def test_a_second_run_keeps_every_stage_and_touches_no_file(copied: Path) -> None:
    before = modification_times(copied)
    assert bring_up(copied, cheap_settings()) == KEPT
    assert modification_times(copied) == before


def test_lost_results_are_published_again_from_the_finished_stages(copied: Path, results: dict[str, Any]) -> None:
    (copied / "results.json").unlink()
    assert bring_up(copied, cheap_settings()) == KEPT
    assert json.loads((copied / "results.json").read_text()) == results


def test_a_stage_without_its_marker_is_made_again(copied: Path) -> None:
    (copied / "cluster" / "done.json").unlink()
    assert bring_up(copied, cheap_settings()) == [*KEPT[:2], "cluster: started", *KEPT[3:]]


# A classifier without a last linear layer


def bounded_network(*_: Any, **__: Any) -> nn.Module:
    """Return a classifier whose logits no linear map makes."""
    with torch_seed(0):
        layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2), nn.Tanh())
        return nn.Sequential(*layers)


def test_without_a_last_linear_layer_groups_and_report_are_made_and_nothing_is_retrained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("model.weights", "stages", "reporting"):
        monkeypatch.setattr(f"exmap.{module}.build_model", bounded_network)
    folder = tmp_path / "run"
    assert bring_up(folder, cheap_settings("explain.layer=none"))[-1] == "report: started"
    results = json.loads((folder / "results.json").read_text())
    before, after = results["methods"]["erm"], results["methods"]["exmap+dfr"]
    assert after["worst_group_accuracy"] == before["worst_group_accuracy"]
    assert "found logits made by" in after["notes"][0]
    assert "name a layer by head= or give a model that ends in a linear layer" in after["notes"][0]
    trained, kept = (load_file(folder / stage / "model.safetensors") for stage in ("train", "retrain"))
    assert all(np.array_equal(trained[name], kept[name]) for name in trained)
    outputs = load_file(folder / "explain" / "outputs.safetensors")
    assert np.array_equal(outputs["val.features"], outputs["val.logits"])
    assert "Nothing was retrained, so accuracies before and after are equal" in (
        folder / "report" / "report.html"
    ).read_text(encoding="utf-8")


# Other settings


def test_channels_are_clustered_where_that_is_asked_for(copied: Path) -> None:
    lines = bring_up(copied, change_settings(open_run(copied)[1], ["cluster.representation=channels"]), change=True)
    assert lines == [*KEPT[:2], *(f"{name}: started" for name in STAGE_NAMES[2:])]
    page = (copied / "report" / "report.html").read_text(encoding="utf-8")
    assert "Images were grouped by the relevance of the channels of layer layer" in page


def test_another_explainer_leaves_no_channels_and_promises_what_it_promises(copied: Path) -> None:
    settings = change_settings(open_run(copied)[1], ["explain.explainer=gradient_x_input"])
    bring_up(copied, settings, change=True)
    found = json.loads((copied / "results.json").read_text())["heatmaps"]
    assert found["conservation_error_median"] is None
    assert found["check"]["explainer"] == "gradient_x_input"
    assert not (copied / "explain" / "channels.npy").exists()
    page = (copied / "report" / "report.html").read_text(encoding="utf-8")
    assert "promises no sum" in page
    assert "themselves, without relevance rules" in page


def test_another_way_to_cluster_remakes_what_follows_and_nothing_before(copied: Path) -> None:
    before = modification_times(copied)
    settings = change_settings(open_run(copied)[1], ["cluster.method=kmeans"])
    lines = bring_up(copied, settings, change=True)
    assert lines == [*KEPT[:2], *(f"{name}: started" for name in STAGE_NAMES[2:])]
    after = modification_times(copied)
    kept = {name for name in before if before[name] == after.get(name)}
    assert {name.split("/")[0] for name in kept} == {"train", "explain"}
    assert {name for name in before if name.startswith(("train/", "explain/"))} == kept
    assert open_run(copied)[1].cluster.method == "kmeans"


def test_a_changed_stage_takes_the_old_results_away(copied: Path) -> None:
    settings = change_settings(open_run(copied)[1], ["cluster.method=kmeans"])
    bring_up(copied, settings, change=True, until="cluster")
    assert not (copied / "results.json").exists()


def test_changing_back_makes_the_same_results_again(copied: Path, results: dict[str, Any]) -> None:
    for bootstrap in (50, 1000):
        settings = change_settings(open_run(copied)[1], [f"evaluate.bootstrap={bootstrap}"])
        bring_up(copied, settings, change=True, until="evaluate")
    assert without_times(json.loads((copied / "results.json").read_text())) == without_times(results)


@pytest.mark.parametrize("item", ["train.learning_rate=0.5", "cluster.scope=local", "seed=7", "data.correlation=0.7"])
def test_other_settings_are_refused_by_name_and_change_nothing(copied: Path, item: str) -> None:
    before = (copied / "settings.yaml").read_text()
    with pytest.raises(RunFolderError, match=item.split("=")[0].replace(".", r"\.")) as caught:
        bring_up(copied, cheap_settings(item))
    assert f"{item.split('=')[1]} here" in str(caught.value).replace("'", "")
    assert (copied / "settings.yaml").read_text() == before


def test_where_the_data_lies_is_not_part_of_what_a_run_is(copied: Path, tmp_path: Path) -> None:
    assert bring_up(copied, cheap_settings(f"data.dir={tmp_path}", "data.download=true")) == KEPT


def test_a_refused_name_leaves_the_settings_of_the_run_as_they_were(copied: Path) -> None:
    before = (copied / "settings.yaml").read_text()
    with pytest.raises(SettingsError, match="kmean'"):
        bring_up(copied, change_settings(open_run(copied)[1], ["cluster.method=kmean"]), change=True, until="cluster")
    assert (copied / "settings.yaml").read_text() == before


def test_a_corrected_command_works_after_a_mistyped_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="epsilon_plu'"):
        bring_up(tmp_path / "run", cheap_settings("explain.composite=epsilon_plu"), until="train")
    open_run(tmp_path / "run", cheap_settings())


# Kill


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something is there while the process is still at work."""
    deadline = time.monotonic() + 90
    while not happened():
        assert process.poll() is None, f"the process ended first: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_run_killed_during_training_continues_after_its_last_epoch(tmp_path: Path) -> None:
    overrides = [*CHEAP, "train.epochs=3", "groups.sources=[exmap]", "retrain.repeats=1"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start_process("run", "digits", "--out", killed, *as_options(*overrides))
    wait_until((killed / "train.part" / "state.safetensors").exists, process)
    kill(process)
    assert not (killed / "train").exists()
    assert not (killed / "results.json").exists()

    # Processes like the first: what else has run in this one may round otherwise.
    said = in_process("run", "digits", "--out", killed, *as_options(*overrides))
    assert said.code == 0, said.err
    assert "train: continued" in said.out
    assert in_process("run", "digits", "--out", whole, *as_options(*overrides)).code == 0
    left, right = (json.loads((folder / "results.json").read_text()) for folder in (killed, whole))
    assert without_times(left) == without_times(right)
    for name in ("train/model.safetensors", "train/history.json", "retrain/model.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_killed_while_retraining_keeps_what_was_finished_and_makes_the_rest(copied: Path, tmp_path: Path) -> None:
    whole = copy_run(copied, tmp_path / "whole")
    before = modification_times(copied)
    process = start_process("evaluate", copied, *as_options("retrain.repeats=6"))
    wait_until((copied / "retrain.part" / "exmap.safetensors").exists, process)
    kill(process)
    assert not (copied / "retrain.part" / "done.json").exists()
    assert not (copied / "results.json").exists()
    assert modification_times(copied) == before

    settings = change_settings(open_run(whole)[1], ["retrain.repeats=6"])
    assert bring_up(copied, settings, until="evaluate") == [*KEPT[:3], "retrain: continued", "evaluate: started"]
    bring_up(whole, settings, change=True, until="evaluate")
    left, right = (json.loads((folder / "results.json").read_text()) for folder in (copied, whole))
    assert without_times(left) == without_times(right)


# A full disk


def test_a_full_disk_while_training_is_one_sentence_and_the_same_command_finishes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("run", "digits", "--out", folder, *as_options(*CHEAP))
    said = in_process(*words, file_limit=1_000_000)
    assert said.code == 2
    assert said.is_one_sentence()
    assert "state.safetensors" in said.err
    assert not (folder / "train").exists()
    assert sorted(path.name for path in (folder / "train.part").iterdir()) == ["attempt.json", "identity.json"]
    lines = bring_up(folder, cheap_settings(), until="train")
    assert lines == ["train: continued"]


def test_a_full_disk_while_explaining_is_one_sentence_and_the_same_command_finishes(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("explain", copied, *as_options("explain.size=4"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        said = command(monkeypatch, capsys, *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not (copied / "explain.part" / "done.json").exists()
        assert np.load(copied / "explain" / "heatmaps.npy", allow_pickle=False).shape == (450, 3, 8, 8)
    assert said.code == 2
    assert said.is_one_sentence()
    assert command(monkeypatch, capsys, *words).code == 0
    assert np.load(copied / "explain" / "heatmaps.npy", allow_pickle=False).shape == (450, 3, 4, 4)


def test_the_space_of_the_heatmaps_is_still_reserved_while_they_are_computed(copied: Path) -> None:
    from exmap.store import array_file

    array_file(copied / "probe", (450, 3, 8, 8))
    if (copied / "probe").stat().st_blocks * 512 < 345_728:
        pytest.skip("this file system does not reserve space")
    reserved: list[int] = []

    def listen(progress: Progress) -> None:
        if progress.task.startswith("heatmaps"):
            reserved.append((copied / "explain.part" / "heatmaps.npy").stat().st_blocks * 512)

    settings = change_settings(open_run(copied)[1], ["explain.target=true", "explain.batch_size=10"])
    bring_up(copied, settings, change=True, until="explain", listen=listen)
    assert reserved[0] >= 345_728
