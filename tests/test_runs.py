"""The run folder: what it holds, what is kept, what is made again, and what a kill or a full disk leaves."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file
from torch import nn

from exmap.data import build_task
from exmap.errors import RunFolderError, SettingsError
from exmap.model import build_model, collect_outputs, load_weights
from exmap.pipeline.disk import array_file
from exmap.pipeline.runs import open_run
from exmap.records import Progress
from exmap.results import Results
from exmap.runtime import torch_seed
from exmap.settings import change_settings
from running import (
    CHEAP,
    KEPT,
    LONGEST,
    SOURCES,
    STAGE_NAMES,
    as_options,
    bring_up,
    changed,
    cheap_settings,
    command,
    copy_run,
    in_process,
    modification_times,
    redone,
    results_of,
    start_process,
    without_times,
)

GROUPS = [f"groups-val-{source}" for source in SOURCES]
FITS = [f"fit-{source}+dfr" for source in SOURCES]
STEPS = [
    "data",
    "train",
    "explain-val",
    "test",
    *GROUPS,
    *FITS,
    "repaired",
    "trust",
    "describe-exmap",
    "evaluate",
    "report",
]
WRITTEN = Path(__file__).with_name("written")


@pytest.fixture(scope="session")
def results(finished: Path) -> dict[str, Any]:
    return results_of(finished)


# What a finished run holds


def test_a_run_folder_holds_a_folder_for_each_step_with_every_documented_file(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir() if path.is_dir()) == sorted(STEPS)
    files = [
        "settings.yaml",
        "manifest.json",
        "results.json",
        *(f"data/{name}" for name in ("data.json", "train.parquet", "val.parquet", "test.parquet")),
        "train/model.safetensors",
        "train/history.json",
        *(f"explain-val/{name}" for name in ("heatmaps.npy", "heatmaps.parquet", "channels.npy")),
        "explain-val/outputs.safetensors",
        "test/outputs.safetensors",
        *(f"{step}/{name}" for step in GROUPS for name in ("groups.parquet", "groups.json")),
        *(f"{step}/{name}" for step in FITS for name in ("fit.json", "heads.safetensors", "predicted.safetensors")),
        "repaired/model.safetensors",
        "trust/trust.json",
        "evaluate/results.json",
        "report/report.html",
        "report/strategies.png",
        *(f"{step}/{name}" for step in STEPS for name in ("done.json", "identity.json")),
    ]
    assert [name for name in files if not (finished / name).is_file()] == []


def test_a_finished_run_holds_nothing_half_written(finished: Path) -> None:
    assert [path.name for path in finished.rglob("*") if path.suffix in (".part", ".old")] == []
    assert not (finished / "train" / "state.safetensors").exists()


def test_the_labels_and_ids_of_all_splits_are_kept_so_that_images_need_not_be_at_hand(finished: Path) -> None:
    task = build_task(cheap_settings().data)
    record = json.loads((finished / "data" / "data.json").read_text())
    assert (record["name"], record["digests"]) == ("digits", dict(task.digests))
    for split in (task.train, task.val, task.test):
        table = pq.read_table(finished / "data" / f"{split.name}.parquet")
        assert table["id"].to_pylist() == list(split.ids)
        assert np.array_equal(table["class"].to_numpy(), split.labels)
        assert np.array_equal(table["true_group"].to_numpy(), split.true_groups().index)


def test_each_source_of_groups_has_one_row_per_validation_image(finished: Path) -> None:
    val = build_task(cheap_settings().data).val
    for step in GROUPS:
        table = pq.read_table(finished / step / "groups.parquet")
        assert table.column_names == ["id", "class", "cluster", "group", "group_name", "predicted", "correct"]
        assert table["id"].to_pylist() == list(val.ids)
        assert np.array_equal(table["class"].to_numpy(), val.labels)
        assert np.array_equal(table["correct"].to_numpy(), table["predicted"].to_numpy() == val.labels)


def test_group_names_in_the_tables_are_those_of_the_group_numbers(finished: Path) -> None:
    for source, step in zip(SOURCES, GROUPS, strict=True):
        table = pq.read_table(finished / step / "groups.parquet")
        notes = json.loads((finished / step / "groups.json").read_text())
        assert notes["source"] == source
        assert table["group_name"].to_pylist() == [notes["names"][g] for g in table["group"].to_pylist()]
        assert notes["counts"] == np.bincount(table["group"].to_numpy(), minlength=len(notes["names"])).tolist()


def test_heatmaps_and_outputs_have_one_entry_per_image(finished: Path) -> None:
    maps = np.load(finished / "explain-val" / "heatmaps.npy", allow_pickle=False)
    assert maps.shape == (450, 3, 8, 8)
    assert maps.dtype == np.float32
    assert np.abs(maps).max() <= 1
    for step in ("explain-val", "test"):
        outputs = load_file(finished / step / "outputs.safetensors")
        shapes = {name: array.shape for name, array in outputs.items()}
        assert shapes == {"features": (450, 32), "logits": (450, 2)}
    table = pq.read_table(finished / "explain-val" / "heatmaps.parquet")
    assert table.column_names == ["id", "target", "conservation_error", "finite", "zero", "input_share"]
    assert table.num_rows == 450
    assert np.load(finished / "explain-val" / "channels.npy", allow_pickle=False).shape[0] == 450


def test_the_figure_is_a_png(finished: Path) -> None:
    assert (finished / "report" / "strategies.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_folder_keeps_its_settings_and_where_it_came_from(finished: Path) -> None:
    kept = yaml.safe_load((finished / "settings.yaml").read_text())
    manifest = json.loads((finished / "manifest.json").read_text())
    assert (kept["format"], manifest["format"]) == (2, 1)
    assert kept["settings"] == manifest["settings"] == cheap_settings().model_dump(mode="json")
    assert manifest["input_digests"] == dict(build_task(cheap_settings().data).digests)
    assert {"python", "exmap", "torch", "scikit-learn", "numpy"} <= set(manifest["versions"])
    assert {"git_commit", "device", "machine", "seed"} <= set(manifest)


def test_what_a_method_says_of_the_test_images_is_what_its_heads_make_of_the_features(finished: Path) -> None:
    features = load_file(finished / "test" / "outputs.safetensors")["features"]
    for step in FITS:
        heads = load_file(finished / step / "heads.safetensors")
        predicted = load_file(finished / step / "predicted.safetensors")["predicted"]
        made = [(features @ heads[f"{n}.weight"].T + heads[f"{n}.bias"]).argmax(axis=1) for n in range(2)]
        assert (np.stack(made) == predicted).mean() > 0.995  # sums may round otherwise


def test_the_repaired_model_is_the_trained_one_with_the_first_repeats_head(finished: Path) -> None:
    heads = load_file(finished / "fit-exmap+dfr" / "heads.safetensors")
    trained, kept = (load_file(finished / step / "model.safetensors") for step in ("train", "repaired"))
    changed_ones = {name for name in trained if not np.array_equal(trained[name], kept[name])}
    assert changed_ones == {"11.weight", "11.bias"}
    assert np.array_equal(kept["11.weight"], heads["0.weight"])
    assert np.array_equal(kept["11.bias"], heads["0.bias"])
    model = build_model(cheap_settings().model, 2, seed=5)
    load_weights(model, finished / "repaired" / "model.safetensors")
    predicted = load_file(finished / "fit-exmap+dfr" / "predicted.safetensors")["predicted"]
    own = collect_outputs(model, build_task(cheap_settings().data).test).predicted
    assert (own == predicted[0]).mean() > 0.995


# results.json


def test_results_name_the_data_the_seed_and_every_method(results: dict[str, Any]) -> None:
    assert (results["format"], results["dataset"], results["preset"], results["seed"]) == (1, "digits", "digits", 0)
    assert sorted(results["methods"]) == sorted(["erm", *(f"{source}+dfr" for source in SOURCES)])


def test_results_are_read_back_as_they_were_written_and_hold_how_far_to_trust_them(
    finished: Path, results: dict[str, Any]
) -> None:
    assert Results.from_json(results).to_json() == results
    assert results["trust"] == json.loads((finished / "trust" / "trust.json").read_text())
    assert results["trust"]["images"] == 450
    assert len(results["trust"]["reruns"]) == 5
    assert results["trust"]["gradient"]["images"] == 450


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


def test_only_methods_with_repeats_have_a_spread(results: dict[str, Any]) -> None:
    methods = dict(results["methods"])
    erm = methods.pop("erm")
    assert (erm["std"], erm["repeats"]) == (None, 1)
    assert all(row["repeats"] == 2 and row["std"] >= 0 for row in methods.values())
    assert all(len(row["strengths"]) == 2 and set(row["strengths"]) <= {1, 0.1} for row in methods.values())


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
    assert set(seconds) == {"data", *STAGE_NAMES}
    assert results["peak_memory_mib"] > 100


# Results that were written before the chain was a graph of steps


def fixed(seed: int = 0) -> Any:
    """Settings of a run whose classifier is not trained: its weights are those of a file, on every machine."""
    given = ("retrain.harm=warn", "retrain.subsamples=3", "retrain.tuning_splits=2", "train.epochs=0", f"seed={seed}")
    kept = [item for item in CHEAP if item.startswith(("model", "retrain.repeats"))]
    return change_settings(
        cheap_settings(), ["evaluate.bootstrap=1000", "retrain.strengths=[1, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01]", *given]
    ).model_copy(update={"model": change_settings(cheap_settings(*kept), model__weights=WEIGHTS).model})


WEIGHTS = str(WRITTEN / "tiny.safetensors")


def differences(found: Any, written: Any, place: str = "") -> list[str]:
    """Return where two trees differ; numbers may by a thousandth."""
    if isinstance(found, dict) and isinstance(written, dict):
        names = [*written, *(name for name in found if name not in written)]
        return [line for name in names for line in differences(found.get(name), written.get(name), f"{place}.{name}")]
    if isinstance(found, list) and isinstance(written, list) and len(found) == len(written):
        pairs = enumerate(zip(found, written, strict=True))
        return [line for n, pair in pairs for line in differences(*pair, f"{place}[{n}]")]
    if isinstance(found, float) and isinstance(written, float):
        return [] if found == pytest.approx(written, rel=1e-3, abs=1e-3) else [f"{place}: {found}, was {written}"]
    return [] if found == written else [f"{place}: {found!r}, was {written!r}"]


def test_the_same_classifier_gives_the_results_that_were_written_before(tmp_path: Path) -> None:
    written = json.loads((WRITTEN / "digits.json").read_text())
    bring_up(tmp_path / "run", fixed(), until="evaluate")
    found = without_times(results_of(tmp_path / "run"))
    assert found.pop("trust")["images"] == 450
    assert differences(found, written) == []
    changed(tmp_path / "run", "seed=1")
    assert len(differences(results_of(tmp_path / "run")["methods"], written["methods"])) > 20


# The same command again, and another seed or folder


def test_the_same_seed_in_another_folder_gives_the_same_results(tmp_path: Path) -> None:
    for name in ("one", "other"):
        bring_up(tmp_path / name, cheap_settings("train.epochs=1", "groups.sources=[exmap, george]"), until="evaluate")
    assert without_times(results_of(tmp_path / "one")) == without_times(results_of(tmp_path / "other"))


def test_a_second_run_keeps_every_step_and_touches_no_file(copied: Path) -> None:
    before = modification_times(copied)
    assert bring_up(copied, cheap_settings()) == KEPT
    assert modification_times(copied) == before


def test_lost_results_are_published_again_from_the_finished_steps(copied: Path, results: dict[str, Any]) -> None:
    (copied / "results.json").unlink()
    assert bring_up(copied, cheap_settings()) == KEPT
    assert results_of(copied) == results


def test_a_step_without_its_marker_is_made_again_and_nothing_else(copied: Path) -> None:
    before = modification_times(copied)
    (copied / "groups-val-exmap" / "done.json").unlink()
    said = bring_up(copied, cheap_settings())
    assert said == [*KEPT[:2], "cluster, groups of the val split by exmap: started", *KEPT[3:]]
    assert redone(before, copied) == {"groups-val-exmap"}


# A classifier without a last linear layer


def bounded_network() -> nn.Module:
    """Return a classifier whose logits no linear map makes."""
    with torch_seed(0):
        layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2), nn.Tanh())
        return nn.Sequential(*layers)


def test_without_a_last_linear_layer_groups_are_made_and_nothing_is_retrained(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = cheap_settings("model.name=test_runs:bounded_network", "explain.layer=none", "groups.sources=[exmap]")
    bring_up(folder, settings, until="evaluate")
    methods = results_of(folder)["methods"]
    before, after = methods["erm"], methods["exmap+dfr"]
    assert after["worst_group_accuracy"] == before["worst_group_accuracy"]
    assert "found logits made by" in after["notes"][0]
    assert "name a layer by head= or give a model that ends in a linear layer" in after["notes"][0]
    trained, kept = (load_file(folder / step / "model.safetensors") for step in ("train", "repaired"))
    assert all(np.array_equal(trained[name], kept[name]) for name in trained)
    outputs = load_file(folder / "explain-val" / "outputs.safetensors")
    assert np.array_equal(outputs["features"], outputs["logits"])


# Other settings


def test_channels_are_clustered_where_that_is_asked_for(copied: Path) -> None:
    before = modification_times(copied)
    first = pq.read_table(copied / "groups-val-exmap" / "groups.parquet")
    changed(copied, "cluster.representation=channels", "groups.sources=[exmap, george]")
    assert redone(before, copied) == {
        "groups-val-exmap",
        "fit-exmap+dfr",
        "repaired",
        "trust",
        "describe-exmap",
        "evaluate",
    }
    again = pq.read_table(copied / "groups-val-exmap" / "groups.parquet")
    assert again["id"].equals(first["id"])
    assert not again["group"].equals(first["group"])


def test_another_explainer_leaves_no_channels_and_promises_what_it_promises(copied: Path) -> None:
    changed(copied, "explain.explainer=gradient_x_input")
    found = results_of(copied)
    assert found["heatmaps"]["conservation_error_median"] is None
    assert found["heatmaps"]["check"]["explainer"] == "gradient_x_input"
    assert found["trust"]["is_gradient"] is True
    assert not (copied / "explain-val" / "channels.npy").exists()


def test_another_way_to_cluster_remakes_what_follows_and_nothing_else(copied: Path) -> None:
    before = modification_times(copied)
    said = changed(copied, "cluster.method=kmeans")
    assert said == [
        *KEPT[:2],
        "cluster, groups of the val split by exmap: started",
        "cluster, groups of the val split by random: started",  # of as many groups as ExMap's
        "retrain, exmap+dfr: started",
        "retrain, random+dfr: started",
        "retrain, repaired classifier: started",
        "evaluate, trust: started",
        "evaluate, description of the groups by exmap: started",
        "evaluate, results: started",
    ]
    of_exmap = {"groups-val-exmap", "fit-exmap+dfr", "repaired", "trust", "describe-exmap", "evaluate"}
    assert redone(before, copied) == of_exmap | {"groups-val-random", "fit-random+dfr"}
    assert not (copied / "report").exists()  # it shows other groups
    assert open_run(copied)[1].cluster.method == "kmeans"


def test_more_repeats_are_more_heads_of_the_same_groups(copied: Path) -> None:
    before = modification_times(copied)
    said = changed(copied, "retrain.repeats=3")
    assert said[:3] == KEPT[:3]
    assert redone(before, copied) == {*FITS, "repaired", "evaluate"}
    assert results_of(copied)["methods"]["george+dfr"]["repeats"] == 3


def test_one_source_more_is_fitted_alone(copied: Path) -> None:
    before = modification_times(copied)
    one_more = "exmap[method=kmeans]"
    said = changed(copied, f"groups.sources=[{', '.join(SOURCES)}, '{one_more}']")
    assert said == [
        *KEPT[:2],
        f"cluster, groups of the val split by {one_more}: started",
        f"retrain, {one_more}+dfr: started",
        "evaluate, results: started",
    ]
    new = redone(before, copied)
    assert len(new) == 3
    assert new & set(STEPS) == {"evaluate"}
    assert f"{one_more}+dfr" in results_of(copied)["methods"]


def test_sources_left_out_are_not_evaluated_and_come_back_without_work(copied: Path, results: dict[str, Any]) -> None:
    changed(copied, "groups.sources=[exmap, classes]")
    found = results_of(copied)
    assert sorted(found["methods"]) == ["classes+dfr", "erm", "exmap+dfr"]
    assert sorted(found["group_inference"]) == ["classes", "exmap"]
    before = modification_times(copied)
    changed(copied, f"groups.sources=[{', '.join(SOURCES)}]")
    assert redone(before, copied) == {"evaluate"}
    assert results_of(copied)["methods"] == results["methods"]


def test_another_draw_of_intervals_only_evaluates_again_and_back_it_is_the_same(
    copied: Path, results: dict[str, Any]
) -> None:
    before = modification_times(copied)
    assert changed(copied, "evaluate.bootstrap=50") == [*KEPT[:4], "evaluate, results: started"]
    assert redone(before, copied) == {"evaluate"}
    assert results_of(copied)["methods"] != results["methods"]
    changed(copied, "evaluate.bootstrap=20")
    assert without_times(results_of(copied)) == without_times(results)


def test_a_changed_step_takes_the_old_results_away(copied: Path) -> None:
    changed(copied, "cluster.method=kmeans", until="cluster")
    assert not (copied / "results.json").exists()
    assert not (copied / "fit-exmap+dfr").exists()
    assert (copied / "fit-george+dfr").exists()


def test_another_seed_is_another_run_of_the_same_data(copied: Path) -> None:
    before = modification_times(copied)
    changed(copied, "seed=1", until="train")
    assert redone(before, copied) == {"train"}
    assert sorted(path.name for path in copied.iterdir() if path.is_dir()) == ["data", "train"]


@pytest.mark.parametrize("item", ["train.learning_rate=0.5", "cluster.scope=local", "seed=7", "data.correlation=0.7"])
def test_other_settings_are_refused_by_name_and_change_nothing(finished: Path, item: str) -> None:
    before = (finished / "settings.yaml").read_text()
    with pytest.raises(RunFolderError, match=item.split("=")[0].replace(".", r"\.")) as caught:
        bring_up(finished, cheap_settings(item))
    assert f"{item.split('=')[1]} here" in str(caught.value).replace("'", "")
    assert (finished / "settings.yaml").read_text() == before


def test_where_the_data_lies_is_not_part_of_what_a_run_is(copied: Path, tmp_path: Path) -> None:
    assert bring_up(copied, cheap_settings(f"data.dir={tmp_path}", "data.download=true")) == KEPT


def test_a_refused_name_leaves_the_settings_of_the_run_as_they_were(finished: Path) -> None:
    before = (finished / "settings.yaml").read_text()
    with pytest.raises(SettingsError, match="kmean'"):
        changed(finished, "cluster.method=kmean", until="cluster")
    assert (finished / "settings.yaml").read_text() == before


def test_a_corrected_command_works_after_a_mistyped_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="epsilon_plu'"):
        bring_up(tmp_path / "run", cheap_settings("explain.composite=epsilon_plu"), until="train")
    open_run(tmp_path / "run", cheap_settings())


# Other learners


@pytest.mark.parametrize(
    ("learner", "method", "tuning"),
    [("afr", "afr@exmap", ["exmap groups"]), ("class_balanced", "class_balanced", ["class labels"])],
)
def test_a_learner_of_the_last_layer_takes_the_features_that_are_there(
    copied: Path, learner: str, method: str, tuning: list[str]
) -> None:
    before = modification_times(copied)
    changed(copied, f"retrain.learner={learner}", "groups.sources=[exmap]")
    assert redone(before, copied) == {f"fit-{method}", "repaired", "evaluate"}
    row = results_of(copied)["methods"][method]
    assert row["repeats"] == 2
    assert row["labels_used"]["tuning"] == tuning


def test_a_learner_that_trains_on_groups_has_those_of_the_training_images_and_is_chosen_by_those_of_validation(
    copied: Path,
) -> None:
    before = modification_times(copied)
    changed(copied, "retrain.learner=subg", "retrain.epochs=1", "retrain.harm=warn", "groups.sources=[exmap]")
    made = redone(before, copied)
    assert made == {"explain-train", "groups-train-exmap", "fit-exmap+subg", "repaired", "evaluate"}
    assert pq.read_table(copied / "groups-train-exmap" / "groups.parquet").num_rows == 897
    found = results_of(copied)
    assert sorted(found["methods"]) == ["erm", "exmap+subg"]
    row = found["methods"]["exmap+subg"]
    assert (row["repeats"], row["epoch"], row["labels_used"]["epoch_selection"]) == (1, 1, ["exmap groups"])
    network, repaired = (load_file(copied / step / "model.safetensors") for step in ("fit-exmap+subg", "repaired"))
    trained = load_file(copied / "train" / "model.safetensors")
    assert all(np.array_equal(network[name], repaired[name]) for name in network)
    assert not np.array_equal(network["0.weight"], trained["0.weight"])


def test_methods_that_are_only_chosen_by_groups_are_one_training(copied: Path) -> None:
    before = modification_times(copied)
    changed(copied, "retrain.learner=jtt", "groups.sources=[exmap, classes]", "retrain.epochs=1", "retrain.up_weight=2")
    assert redone(before, copied) == {"fit-jtt", "repaired", "evaluate"}
    found = results_of(copied)["methods"]
    assert sorted(found) == ["erm", "jtt", "jtt@exmap"]
    assert found["jtt@exmap"]["labels_used"]["epoch_selection"] == ["exmap groups"]
    assert found["jtt"]["labels_used"]["epoch_selection"] == ["class labels"]


# What a kill leaves


class KilledError(BaseException):
    """Ends the work at once, as a kill does: nothing is tidied away."""


def killed_at(*tasks: str, times: int = 1) -> Callable[[Progress], None]:
    """Return a listener that ends the work at some progress of a task."""
    seen = [0]

    def listen(progress: Progress) -> None:
        seen[0] += progress.task in tasks
        if seen[0] >= times and progress.task in tasks:
            raise KilledError

    return listen


def test_training_that_was_killed_continues_after_its_last_epoch(tmp_path: Path) -> None:
    settings = cheap_settings("groups.sources=[exmap]", "train.epochs=3")
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def listen(progress: Progress) -> None:
        if progress.task == "train" and (killed / "train.part" / "state.safetensors").exists():
            raise KilledError

    with pytest.raises(KilledError):
        bring_up(killed, settings, listen=listen)
    assert not (killed / "train").exists()
    assert not (killed / "results.json").exists()
    epochs: list[Progress] = []
    assert bring_up(killed, settings, until="train", listen=epochs.append) == ["train, classifier: continued"]
    assert sum(each.task == "train" for each in epochs) < 3 * 897 / 32  # not all batches again
    bring_up(whole, settings, until="train")
    weights = [load_file(folder / "train" / "model.safetensors") for folder in (killed, whole)]
    assert all(np.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])
    left, right = (json.loads((folder / "train" / "history.json").read_text()) for folder in (killed, whole))
    assert left == right


def test_fits_that_were_finished_before_a_kill_are_kept(copied: Path, tmp_path: Path) -> None:
    whole = copy_run(copied, tmp_path / "whole")
    _, settings = open_run(copied)
    more = change_settings(settings, ["retrain.repeats=3"])
    with pytest.raises(KilledError):
        bring_up(copied, more, change=True, look=False, until="evaluate", listen=killed_at("retrain", times=5))
    assert not (copied / "results.json").exists()
    before = modification_times(copied)
    finished = {"fit-exmap+dfr"}
    said = bring_up(copied, more, until="evaluate")
    assert said[:3] == KEPT[:3]
    assert said[3].endswith("+dfr: continued")
    assert redone(before, copied) == {*FITS, "repaired", "evaluate"} - finished
    changed(whole, "retrain.repeats=3")
    assert without_times(results_of(copied)) == without_times(results_of(whole))


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something is there while the process is still at work."""
    deadline = time.monotonic() + LONGEST
    while not happened():
        assert process.poll() is None, f"the process ended first: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow  # tests/robustness/test_campaigns.py kills commands at many more moments
def test_a_process_killed_during_training_is_continued_by_the_same_command(tmp_path: Path) -> None:
    overrides = [*CHEAP, "train.epochs=12", "groups.sources=[exmap]"]
    killed = tmp_path / "killed"
    process = start_process("run", "digits", "--out", killed, *as_options(*overrides))
    wait_until((killed / "train.part" / "state.safetensors").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "train").exists()

    said = in_process("run", "digits", "--out", killed, *as_options(*overrides))
    assert said.code == 0, said.err
    assert "train, classifier: continued" in said.out
    assert len(json.loads((killed / "train" / "history.json").read_text())) == 12
    assert results_of(killed)["methods"]["exmap+dfr"]["mean_accuracy"] > 0.5


# A full disk


@contextmanager
def full_disk(most: int = 50_000) -> Iterator[None]:
    """Let no file grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_while_training_is_one_sentence_and_the_same_command_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = ("run", "digits", "--out", folder, *as_options(*CHEAP))
    with full_disk():
        said = command(monkeypatch, capsys, *words)
    assert said.refused(), said.err
    assert "state.safetensors" in said.err
    assert not (folder / "train").exists()
    assert sorted(path.name for path in (folder / "train.part").iterdir()) == [
        "attempt.json",
        "identity.json",
        "trained_on.json",
    ]
    assert bring_up(folder, cheap_settings(), until="train") == ["train, classifier: continued"]


def test_a_full_disk_while_explaining_is_one_sentence_and_the_same_command_finishes(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("explain", copied, *as_options("explain.size=4"))
    with full_disk():
        said = command(monkeypatch, capsys, *words)
    assert said.refused(), said.err
    assert not (copied / "explain-val.part" / "done.json").exists()
    assert np.load(copied / "explain-val" / "heatmaps.npy", allow_pickle=False).shape == (450, 3, 8, 8)
    assert command(monkeypatch, capsys, *words).code == 0
    assert np.load(copied / "explain-val" / "heatmaps.npy", allow_pickle=False).shape == (450, 3, 4, 4)


def test_the_space_of_the_heatmaps_is_still_reserved_while_they_are_computed(copied: Path) -> None:
    array_file(copied / "probe", (450, 3, 8, 8))
    if (copied / "probe").stat().st_blocks * 512 < 345_728:
        pytest.skip("this file system does not reserve space")
    reserved: list[int] = []

    def listen(progress: Progress) -> None:
        if progress.task.startswith("heatmaps"):
            reserved.append((copied / "explain-val.part" / "heatmaps.npy").stat().st_blocks * 512)

    settings = change_settings(open_run(copied)[1], ["explain.target=true", "explain.batch_size=10"])
    bring_up(copied, settings, change=True, until="explain", listen=listen)
    assert reserved[0] >= 345_728
