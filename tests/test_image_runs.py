"""Whole runs over image files: the paper's layouts and a user's own, good and bad."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import exmap
from exmap.errors import CheckpointError, DataError
from exmap.model import build_model, save_weights
from exmap.pipeline.looking import open_analysis
from exmap.settings import Settings, load_settings
from running import (
    KEPT,
    SMALL,
    Give,
    as_options,
    bring_up,
    changed,
    command,
    copy_run,
    modification_times,
    moved_run,
    redone,
    results_of,
)
from sharing import shared
from trees import picture, urbancars_tree, waterbirds_tree

SIZES = {0: (30, 8, 8, 30), 1: (12, 7, 7, 12), 2: (6, 6, 6, 6)}
CACHED = ("images.cache=auto", "groups.sources=[exmap, oracle]")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EXMAP_DATA_DIR", raising=False)


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Give:
    return lambda *words: command(monkeypatch, capsys, *words)


def small(preset: str, folder: Path, *overrides: str) -> Settings:
    return load_settings(preset, [*SMALL, *CACHED, *overrides], data__dir=str(folder))


@pytest.fixture(scope="session")
def waterbirds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a small Waterbirds, ``wb``, and a run over them, ``run``."""

    def make(folder: Path) -> None:
        tree = waterbirds_tree(folder / "wb", SIZES)
        bring_up(folder / "run", small("waterbirds", tree, f"images.cache_dir={folder / 'cache'}"), until="evaluate")

    return shared(tmp_path_factory, "waterbirds", make)


def spoil(root: Path, names: list[str]) -> list[str]:
    """Cut three images short, empty one of them, and return how each is named in the table."""
    for name, kept in zip(names, (200, 0, 40), strict=True):
        path = root / name
        path.write_bytes(path.read_bytes()[:kept])
    return names


def test_waterbirds_runs_from_its_own_layout(waterbirds: Path) -> None:
    run = waterbirds / "run"
    found = results_of(run)
    assert (found["dataset"], found["grouped_split"], found["skipped_images"]) == ("waterbirds", "val", {})
    accuracy = found["methods"]["exmap+dfr"]["group_accuracy"]
    assert {name: row["count"] for name, row in accuracy.items()} == {
        "landbird, land": 6,
        "landbird, water": 6,
        "waterbird, land": 6,
        "waterbird, water": 6,
    }
    assert "gaps" not in found["methods"]["erm"]
    assert np.load(run / "explain-val/heatmaps.npy").shape == (38, 3, 8, 8)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["reading"]["images"] == 138
    assert manifest["reading"]["images_per_second_when_opened"] > 0


def test_a_run_over_images_is_the_same_again_with_workers_and_without_the_cache(
    waterbirds: Path, tmp_path: Path
) -> None:
    change = ("images.cache=never", "images.workers=2", f"images.cache_dir={tmp_path / 'elsewhere'}")
    bring_up(tmp_path / "two", small("waterbirds", waterbirds / "wb", *change), until="explain")
    for name in ("train/model.safetensors", "explain-val/outputs.safetensors", "test/outputs.safetensors"):
        one, two = (load_file(run / name) for run in (waterbirds / "run", tmp_path / "two"))
        assert all(np.allclose(one[key], two[key], atol=1e-4) for key in one)


def test_how_images_are_read_is_not_part_of_what_a_run_is(waterbirds: Path, tmp_path: Path) -> None:
    run = copy_run(waterbirds / "run", tmp_path / "run")
    change = ("images.cache=never", "images.workers=2", f"images.cache_dir={tmp_path / 'elsewhere'}")
    said = bring_up(run, small("waterbirds", waterbirds / "wb", *change), until="evaluate")
    assert [line for line in said if not line.startswith("data: ")] == KEPT[:5]


def test_images_changed_on_disk_are_another_run(waterbirds: Path, tmp_path: Path, give: Give) -> None:
    run, tree = copy_run(waterbirds / "run", tmp_path / "run"), copy_run(waterbirds / "wb", tmp_path / "wb")
    picture(next(tree.rglob("Some_Bird_0_0003.jpg")), size=(80, 70))
    before = modification_times(run)
    said = give("cluster", run, "--data-dir", tree, "--set", "cluster.n_clusters=3")
    assert said.code == 0  # of heatmaps that are there
    assert redone(before, run) == {"groups-val-exmap"}
    said = give("explain", run, "--data-dir", tree)
    assert "train, classifier: started" in said.out
    assert (
        json.loads((run / "data" / "data.json").read_text())["digests"]
        != json.loads((waterbirds / "run" / "data" / "data.json").read_text())["digests"]
    )
    assert not (run / "groups-val-exmap").exists()


def test_a_step_that_reads_images_refuses_others_than_the_runs_own(
    waterbirds: Path, tmp_path: Path, give: Give
) -> None:
    run, tree = copy_run(waterbirds / "run", tmp_path / "run"), copy_run(waterbirds / "wb", tmp_path / "wb")
    picture(next(tree.rglob("Some_Bird_0_0003.jpg")), size=(80, 70))
    said = give("retrain", run, "--data-dir", tree, "--set", "retrain.learner=subg")
    assert said.refused(), said.err
    assert "the data found are not those that" in said.err
    assert "--data-dir" in said.err


# Without the images


def test_a_run_whose_images_are_elsewhere_is_clustered_retrained_and_evaluated(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, give: Give
) -> None:
    run = copy_run(moved_run(tmp_path_factory), tmp_path / "run")
    before = modification_times(run)
    insisted = ["retrain.repeats=2", "retrain.harm=warn"]
    for stage, items in (("cluster", ["cluster.n_clusters=3"]), ("retrain", insisted), ("evaluate", [])):
        said = give(stage, run, *as_options(*items))
        assert said.code == 0, said.err
    made = redone(before, run)
    assert {"groups-val-exmap", "fit-exmap+dfr", "repaired", "evaluate", "trust"} <= made
    assert not made & {"data", "train", "explain-val", "test"}
    found = results_of(run)
    assert found["methods"]["exmap+dfr"]["repeats"] == 2
    assert found["trust"]["gradient"] is None  # which needs images
    analysis = open_analysis(run)
    assert "the data are not at hand" in analysis.no_images
    assert analysis.repair() is not analysis.network()


def test_its_report_has_no_pictures_until_the_images_are_found(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, give: Give
) -> None:
    moved = moved_run(tmp_path_factory)
    run = copy_run(moved, tmp_path / "run")
    assert give("evaluate", run, "--set", "groups.sources=[exmap]").code == 0
    said = give("report", run)
    assert said.code == 0, said.err
    assert "report: without pictures, because the images cannot be read" in said.out
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert "The images were not at hand when this page was made" in page
    assert open_analysis(run, data_dir=moved.parent / "data").no_images == ""


def test_what_needs_images_says_where_they_are_looked_for(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, give: Give
) -> None:
    run = copy_run(moved_run(tmp_path_factory), tmp_path / "run")
    said = give("retrain", run, "--set", "retrain.learner=jtt")
    assert said.refused(), said.err
    assert f"{moved_run(tmp_path_factory).parent / 'waterbirds'} must hold metadata.csv" in said.err


# Other layouts


def test_two_shortcuts_have_gaps_and_may_be_grouped_on_the_training_images(tmp_path: Path) -> None:
    sizes = {0: (30, 8, 8, 7, 7, 8, 8, 30), 1: (12, 2, 2, 1, 1, 2, 2, 12), 2: (4,) * 8}
    tree, run = urbancars_tree(tmp_path / "uc", sizes), tmp_path / "run"
    bring_up(run, small("urbancars", tree), until="evaluate")
    found = results_of(run)
    shortcuts = ["background", "co-occurring object", "background + co-occurring object"]
    assert list(found["methods"]["erm"]["gaps"]) == shortcuts
    assert np.load(run / "explain-val/heatmaps.npy", mmap_mode="r").shape[0] == 34

    before = modification_times(run)
    said = changed(run, "groups.split=train")
    assert said[0] == KEPT[0]
    assert not redone(before, run) & {"data", "train", "test"}
    found = results_of(run)
    assert found["grouped_split"] == "train"
    assert sum(found["group_inference"]["oracle"]["groups"].values()) == 106
    assert found["group_inference"]["oracle"]["ari"] == 1
    assert np.load(run / "explain-train/heatmaps.npy", mmap_mode="r").shape[0] == 106


NAMES = [f"00{group}.Some_Bird/Some_Bird_{split}_0002.jpg" for group, split in ((1, 0), (2, 1), (4, 2))]


def test_three_unreadable_images_may_stop_a_run_at_once_and_all_are_named(tmp_path: Path, give: Give) -> None:
    tree = waterbirds_tree(tmp_path / "wb", SIZES)
    spoil(tree / "waterbird_complete95_forest2water2", NAMES)
    stop = as_options(*SMALL, "images.on_error=stop")
    said = give("run", "waterbirds", "--data-dir", tree, "--out", tmp_path / "run", *stop)
    assert said.refused(), said.err
    assert "3 of 138 images of waterbirds cannot be read: " in said.err
    assert all(name in said.err for name in NAMES)
    assert "images.on_error=skip" in said.err
    assert not (tmp_path / "run" / "train").exists()


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path) -> None:
    tree = waterbirds_tree(tmp_path / "wb", SIZES)
    spoil(tree / "waterbird_complete95_forest2water2", NAMES)
    lines = bring_up(tmp_path / "run", small("waterbirds", tree), until="evaluate")
    assert lines[0].startswith("data: 138 images opened, ")
    assert lines[0].endswith("/s, kept decoded")
    assert lines[1].startswith("data: 3 of 138 images cannot be read and are left out: ")
    found = results_of(tmp_path / "run")
    assert found["data_notes"][0] == lines[1].removeprefix("data: ")
    assert sorted(found["skipped_images"]) == NAMES
    assert found["skipped_images"][NAMES[1]] == "the file is empty"
    assert found["methods"]["erm"]["group_accuracy"]["waterbird, water"]["count"] == 5
    assert np.load(tmp_path / "run/explain-val/heatmaps.npy", mmap_mode="r").shape[0] == 37


def own_table(root: Path, per_class: int = 40) -> Path:
    """Write images of three classes and a table without splits; the tint is a spurious attribute."""
    rows = []
    for number in range(3 * per_class):
        kind, tint = number % 3, (number % 3 if number % 10 else (number + 1) % 3)
        colour = tuple(220 if channel == tint else 60 for channel in range(3))
        name = f"images/{number:03d} <b>é</b>.png"
        picture(root / name, colour, size=(16 + 4 * kind, 16))  # type: ignore[arg-type]
        rows.append([name, ("cat", "dog", "<script>owl</script>")[kind], f"tint {tint}"])
    with open(root / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "label", "tint"], *rows])
    return root


def test_a_table_of_ones_own_runs_with_three_classes_and_without_groups(tmp_path: Path) -> None:
    root = own_table(tmp_path / "own")
    bring_up(tmp_path / "run", small("table", root, "data.table=labels.csv"), until="evaluate")
    found = results_of(tmp_path / "run")
    assert "oracle+dfr" not in found["methods"]
    assert found["methods"]["exmap+dfr"]["labels_used"]["evaluation"] == ["class labels"]
    assert list(found["methods"]["erm"]["group_accuracy"]) == ["<script>owl</script>", "cat", "dog"]
    bring_up(
        tmp_path / "groups",
        small("table", root, "data.table=labels.csv", "data.group_columns=[tint]"),
        until="evaluate",
    )
    with_groups = results_of(tmp_path / "groups")
    assert len(with_groups["methods"]["erm"]["group_accuracy"]) == 9
    assert "oracle+dfr" in with_groups["methods"]
    one, two = (load_file(tmp_path / run / "train/model.safetensors") for run in ("run", "groups"))
    assert all(np.allclose(one[key], two[key], atol=1e-4) for key in one)  # group columns are for evaluation alone


def test_the_five_lines_work_on_a_folder_per_class(tmp_path: Path) -> None:
    for number in range(60):
        picture(tmp_path / "own" / ("left", "right")[number % 2] / f"{number}.jpg", (200 * (number % 2), 90, 90))
    task = exmap.load("folder", data_dir=tmp_path / "own", resize=20, crop=16, workers=0)
    assert (task.name, len(task.train), len(task.val), len(task.test)) == ("own", 36, 12, 12)
    settings = load_settings("folder", [*SMALL, "train.epochs=2"])
    model = exmap.train(task, settings)
    groups = exmap.ExMap(size=8).infer(model, task.val)
    fixed = exmap.DFR(subsamples=2, tuning_splits=2).fit(model, task.val, groups)
    assert exmap.evaluate(fixed, task.test).names == ("left", "right")


def test_a_classifier_trained_elsewhere_is_taken_as_it_is(tmp_path: Path) -> None:
    root = own_table(tmp_path / "own")
    settings = small("table", root, "data.table=labels.csv", "train.epochs=0")
    model = build_model(settings.model, 3, seed=5)
    save_weights(model, tmp_path / "mine.safetensors")
    bring_up(
        tmp_path / "run",
        load_settings(
            "table",
            [*SMALL, "data.table=labels.csv", "train.epochs=0"],
            data__dir=str(root),
            model__weights=str(tmp_path / "mine.safetensors"),
        ),
        until="train",
    )
    kept, mine = (load_file(path) for path in (tmp_path / "run/train/model.safetensors", tmp_path / "mine.safetensors"))
    assert all(np.array_equal(kept[key], mine[key]) for key in mine)


def test_imagenet_weights_are_read_from_torchvisions_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet18_Weights, resnet18

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = resnet18()
    file = tmp_path / "hub" / "checkpoints" / ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    torch.save(source.state_dict(), file)
    settings = load_settings("folder").model
    model, other = (build_model(settings, 3, seed=seed) for seed in (0, 1))
    assert torch.equal(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert model.fc.weight.shape == (3, 512)
    assert not torch.equal(model.fc.weight, other.fc.weight)
    file.write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"ImageNet weights could not be loaded .* model\.pretrained=false"):
        build_model(settings, 3, seed=0)


def test_a_class_without_test_images_is_refused_by_name(tmp_path: Path) -> None:
    tree = waterbirds_tree(tmp_path / "wb", {0: (30, 8, 8, 30), 1: (12, 7, 7, 12), 2: (6, 6, 0, 0)})
    with pytest.raises(DataError, match="class 'waterbird' has 0 in split test"):
        bring_up(tmp_path / "run", small("waterbirds", tree))
