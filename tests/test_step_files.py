"""Records as files of a step, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from exmap.analysis import Fit
from exmap.data import Task, planted_shortcut
from exmap.data.missing import MissingImages
from exmap.groups import crossed_groups
from exmap.pipeline.facts import load_task, save_task
from exmap.pipeline.files import (
    heatmap_file,
    load_explained,
    load_fits,
    load_groups,
    load_outputs,
    outputs_file,
    save_explained,
    save_fits,
    save_groups,
    save_outputs,
)
from exmap.records import Clusters, Explained, Heatmaps, Outputs
from exmap.retrain import Head

TASK = planted_shortcut(3, (12, 6, 9), correlation=0.5, side=8)
VAL = TASK.val
N = len(VAL)


def heatmaps(folder: Path | None = None, **changes: Any) -> Heatmaps:
    rng = np.random.default_rng(0)
    values = np.zeros((N, 1, 2, 2), dtype=np.float32) if folder is None else heatmap_file(folder)((N, 1, 2, 2))
    values[:] = rng.random(values.shape)
    error, finite = rng.random(N).astype(np.float32), np.arange(N) != 2
    return Heatmaps(values, np.arange(N) % 3, error, finite, np.arange(N) == 1, **changes)


def outputs(n: int = N) -> Outputs:
    rng = np.random.default_rng(1)
    return Outputs(rng.random((n, 4)).astype(np.float32), rng.random((n, 3)).astype(np.float32))


def explained() -> Explained:
    return Explained("val", VAL.ids, VAL.labels, VAL.class_names, outputs(), heatmaps())


# Explained splits


def test_an_explained_split_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    check = {"explainer": "lrp", "composite": "symmetric_gamma", "images": 3, "error": 1.5e-7, "layer": "layer3"}
    share, channels = rng.random(N).astype(np.float32), rng.normal(size=(N, 5)).astype(np.float32)
    written, said = heatmaps(tmp_path, input_share=share, channels=channels, check=check), outputs()
    save_explained(written, said, VAL.ids, tmp_path)
    found = ["channels.npy", "heatmaps.npy", "heatmaps.parquet", "outputs.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == found
    read = load_explained(VAL, tmp_path)
    assert (read.split, read.ids, read.class_names) == ("val", VAL.ids, VAL.class_names)
    assert np.array_equal(read.labels, VAL.labels)
    for name in ("values", "target", "conservation_error", "finite", "zero", "input_share", "channels"):
        assert np.array_equal(getattr(read.maps(), name), getattr(written, name)), name
        assert getattr(read.maps(), name).dtype == getattr(written, name).dtype, name
    assert read.maps().check == check
    assert isinstance(read.maps().values, np.memmap)
    assert isinstance(read.maps().channels, np.memmap)
    assert np.array_equal(read.features, said.features)
    assert np.array_equal(read.outputs.logits, said.logits)
    assert pq.read_table(tmp_path / "heatmaps.parquet")["id"].to_pylist() == list(VAL.ids)


def test_what_there_is_none_of_is_none_again(tmp_path: Path) -> None:
    save_explained(heatmaps(tmp_path), outputs(), VAL.ids, tmp_path)
    read = load_explained(VAL, tmp_path).maps()
    assert (read.input_share, read.channels, read.check) == (None, None, {})
    assert not (tmp_path / "channels.npy").exists()


def test_heatmaps_without_the_columns_of_newer_versions_are_read(tmp_path: Path) -> None:
    written = heatmaps(tmp_path)
    columns = ("target", "conservation_error", "finite", "zero")
    table = pa.table({"id": list(VAL.ids), **{name: getattr(written, name) for name in columns}})
    pq.write_table(table, tmp_path / "heatmaps.parquet")
    save_outputs(outputs(), tmp_path)
    read = load_explained(VAL, tmp_path).maps()
    assert np.array_equal(read.conservation_error, written.conservation_error)
    assert (read.input_share, read.channels, read.check) == (None, None, {})


def test_outputs_come_back_as_they_were_written(tmp_path: Path) -> None:
    save_outputs(outputs(5), tmp_path)
    read = load_outputs(tmp_path)
    assert np.array_equal(read.features, outputs(5).features)
    assert np.array_equal(read.predicted, outputs(5).predicted)


def test_a_mapped_file_is_known_by_a_path_from_the_present_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("run")
    folder.mkdir()
    features, logits = outputs_file(folder)((5, 4), (5, 3))
    features[:], logits[:] = 1, 2
    save_outputs(Outputs(features, logits), folder)
    np.testing.assert_array_equal(load_outputs(folder).logits, np.full((5, 3), 2))


def test_outputs_stay_on_disk_in_the_file_that_safetensors_would_write(tmp_path: Path) -> None:
    save_outputs(outputs(5), tmp_path)
    plain = (tmp_path / "outputs.safetensors").read_bytes()
    (tmp_path / "mapped").mkdir()
    features, logits = outputs_file(tmp_path / "mapped")((5, 4), (5, 3))
    assert not features.any()
    for start in range(0, 5, 2):
        features[start : start + 2], logits[start : start + 2] = (
            array[start : start + 2] for array in (outputs(5).features, outputs(5).logits)
        )
    save_outputs(Outputs(features, logits), tmp_path / "mapped")
    assert (tmp_path / "mapped" / "outputs.safetensors").read_bytes() == plain
    read = load_outputs(tmp_path / "mapped", 5)
    assert isinstance(read.features, np.memmap)
    assert not read.features.flags.writeable
    assert np.array_equal(read.logits, outputs(5).logits)


def test_outputs_on_disk_are_written_elsewhere_as_they_are(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "copy", "half", "other")]
    for folder in folders:
        folder.mkdir()
    save_outputs(outputs(6), folders[0])
    whole = load_outputs(folders[0])
    save_outputs(whole, folders[1])
    save_outputs(Outputs(whole.features[3:], whole.logits[3:]), folders[2])
    save_outputs(Outputs(whole.features[::-1], whole.logits[::-1]), folders[3])
    assert np.array_equal(load_outputs(folders[1]).features, outputs(6).features)
    assert np.array_equal(load_outputs(folders[2], 3).features, outputs(6).features[3:])
    assert np.array_equal(load_outputs(folders[3], 6).logits, outputs(6).logits[::-1])


def test_outputs_of_no_images_are_written_and_read(tmp_path: Path) -> None:
    features, logits = outputs_file(tmp_path)((0, 4), (0, 3))
    save_outputs(Outputs(features, logits), tmp_path)
    read = load_outputs(tmp_path, 0)
    assert (read.features.shape, read.logits.shape) == ((0, 4), (0, 3))


# Groups


def test_groups_come_back_with_their_clustering(tmp_path: Path) -> None:
    labels = np.array([0, -1, 1, 0, 0, 2])
    clusters = Clusters(labels, "global", ({"samples_of": "all", "n_samples": 5, "n_clusters": 3, "note": "x"},))
    written = crossed_groups(VAL.labels, labels, VAL.class_names, source="exmap", clusters=clusters)
    save_groups(written, explained(), tmp_path)
    read = load_groups(tmp_path)
    assert read == written
    for name in ("names", "source", "labels_used", "classes", "parts"):
        assert getattr(read, name) == getattr(written, name), name
    assert read.clusters is not None
    assert (read.clusters.scope, read.clusters.notes) == ("global", clusters.notes)
    assert np.array_equal(read.clusters.labels, labels)


def test_the_table_of_groups_is_readable_by_itself(tmp_path: Path) -> None:
    labels = np.array([0, -1, 1, 0, 0, 2])
    save_groups(crossed_groups(VAL.labels, labels, VAL.class_names, source="mine"), explained(), tmp_path)
    table = pq.read_table(tmp_path / "groups.parquet").to_pydict()
    assert table["id"] == list(VAL.ids)
    assert table["class"] == VAL.labels.tolist()
    assert table["group_name"][1] == "unassigned"
    assert table["group"][1] == -1
    assert table["group_name"][0] == f"class {VAL.class_names[VAL.labels[0]]} / cluster 0"
    assert table["correct"] == explained().correct.tolist()
    assert load_groups(tmp_path).clusters is None


# Fits


def head(seed: int) -> Head:
    rng = np.random.default_rng(seed)
    weight, bias = rng.random((3, 4)).astype(np.float32), rng.random(3).astype(np.float32)
    return Head(weight, bias, 0.1 * seed, {"0.1": 0.5, "1.0": 0.75}, ("a note",), {"strength": 0.1})


def test_fits_of_last_layers_come_back(tmp_path: Path) -> None:
    written = Fit(np.arange(6).reshape(2, 3), (head(1), head(2)), None, ("one",), left_alone="why", seconds=1.5)
    save_fits({"exmap+dfr": written}, tmp_path)
    (read,) = load_fits(tmp_path, nn.Identity).values()
    assert np.array_equal(read.predicted, written.predicted)
    assert (read.notes, read.left_alone, read.seconds, read.network) == (("one",), "why", 1.5, None)
    for mine, given in zip(read.heads, written.heads, strict=True):
        assert np.array_equal(mine.weight, given.weight)
        assert np.array_equal(mine.bias, given.bias)
        for name in ("strength", "tuning", "notes", "chosen"):
            assert getattr(mine, name) == getattr(given, name), name


def test_fits_of_one_training_are_told_apart(tmp_path: Path) -> None:
    networks = [nn.Linear(2, 2), nn.Linear(2, 2)]
    fits = {
        name: Fit(np.full((1, 3), number), network=network, epoch=number)
        for number, (name, network) in enumerate(zip(("jtt", "jtt@exmap"), networks, strict=True))
    }
    save_fits(fits, tmp_path)
    read = load_fits(tmp_path, lambda: nn.Linear(2, 2))
    assert list(read) == ["jtt", "jtt@exmap"]
    for number, (fit, network) in enumerate(zip(read.values(), networks, strict=True)):
        assert fit.epoch == number
        assert fit.predicted.tolist() == [[number] * 3]
        assert fit.network is not None
        assert torch.equal(fit.network.weight, network.weight)
        assert not fit.network.training


def test_no_fits_are_no_fits_again(tmp_path: Path) -> None:
    save_fits({}, tmp_path)
    assert load_fits(tmp_path, nn.Identity) == {}


# What a run keeps of its data


def blind(task: Task) -> Task:
    return replace(task, **{name: replace(getattr(task, name), truth=None) for name in ("train", "val", "test")})


def test_labels_ids_and_true_groups_come_back_without_images(tmp_path: Path) -> None:
    written = replace(TASK, digests={"a.csv": "0" * 64}, skipped={"train": 2})
    save_task(written, tmp_path)
    read = load_task(tmp_path, "were not found")
    assert (read.name, read.digests, read.skipped) == ("planted", {"a.csv": "0" * 64}, {"train": 2})
    for name in ("train", "val", "test"):
        mine, given = getattr(read, name), getattr(written, name)
        assert (mine.name, mine.ids, mine.class_names) == (name, given.ids, given.class_names)
        assert np.array_equal(mine.labels, given.labels)
        assert np.array_equal(mine.true_groups().index, given.true_groups().index)
        assert mine.true_groups().names == given.true_groups().names
        assert mine.true_groups().attributes == given.true_groups().attributes
        assert isinstance(mine.images, MissingImages)
        assert mine.images.shape == (3, 8, 8)
        assert mine.images.why == "were not found"


def test_data_without_true_groups_have_none_again(tmp_path: Path) -> None:
    save_task(blind(TASK), tmp_path)
    read = load_task(tmp_path)
    assert read.train.truth is None
    assert "true_group" not in pq.read_table(tmp_path / "val.parquet").column_names
