"""Exports for FiftyOne and Renumics Spotlight: what they are told of each image, and the files they ask for."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from exmap.analysis import Analysis
from exmap.data.dataset import SomeImages
from exmap.data.files import FileImages
from exmap.data.reading import FolderFiles
from exmap.errors import RunFolderError
from exmap.export import export_run, export_targets
from exmap.export.looks import ending_of, saved, source_files
from exmap.settings import ImageSettings
from sample_analysis import IMAGES, SIDE, sample_analysis, with_edits, without_images


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return with_edits(sample_analysis())


@pytest.fixture
def loose(analysis: Analysis) -> Analysis:
    """The same where the third image's heatmap is broken, so that it is in no group."""
    explained, groups = analysis.explained, analysis.pseudo_groups
    finite = np.arange(IMAGES) != 3
    return replace(
        analysis,
        explained=replace(explained, heatmaps=replace(explained.maps(), finite=finite)),
        groups={"exmap": replace(groups, index=np.where(finite, groups.index, -1))},
        oracle=None,
    )


def test_the_formats_are_named_where_they_are_chosen() -> None:
    assert export_targets() == ["fiftyone", "parquet", "spotlight", "virelay"]


# FiftyOne


def opened(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    samples = json.loads((path.parent / "samples.json").read_text(encoding="utf-8"))["samples"]
    return json.loads(path.read_text(encoding="utf-8")), samples


def test_a_sample_of_fiftyone_has_labels_groups_and_files(analysis: Analysis, tmp_path: Path) -> None:
    path = export_run(analysis, "fiftyone", tmp_path / "out")
    explained, groups = analysis.explained, analysis.pseudo_groups
    document, samples = opened(path)
    assert len(samples) == IMAGES
    assert len({sample["_id"]["$oid"] for sample in samples}) == IMAGES
    names = explained.class_names
    for row, sample in enumerate(samples):
        group = groups.names[groups.index[row]]
        assert sample["image_id"] == explained.ids[row]
        assert sample["ground_truth"]["label"] == names[explained.labels[row]]
        assert sample["prediction"]["label"] == names[explained.predicted[row]]
        assert 1 / len(names) <= sample["prediction"]["confidence"] <= 1
        assert sample["correct"] == (sample["ground_truth"]["label"] == sample["prediction"]["label"])
        assert sample["group"]["label"] == group
        assert sample["tags"] == [group, *([] if sample["correct"] else ["wrong"])]
        assert {"edited_group", "true_group"} < set(sample)
        assert all(label["_id"]["$oid"] for label in sample.values() if isinstance(label, dict) and "_cls" in label)
    kinds = {field["name"]: field["embedded_doc_type"] or field["ftype"] for field in document["sample_fields"]}
    assert kinds["group"] == kinds["ground_truth"] == "fiftyone.core.labels.Classification"
    assert kinds["relevance_for"] == "fiftyone.core.labels.Heatmap"
    assert kinds["cluster"] == "fiftyone.core.fields.IntField"
    private = {"_id": "id"}
    for sample in samples:  # every value is of a field, and every label of its type
        assert {private.get(name, name) for name in sample} <= set(kinds)
        for name, value in sample.items():
            if isinstance(value, dict) and "_cls" in value:
                assert kinds[name].endswith(f".{value['_cls']}")
    assert document["classes"]["ground_truth"] == list(names)
    assert document["info"]["groups"] == analysis.grouping


def test_the_heatmaps_of_fiftyone_are_files_of_one_sign_each(analysis: Analysis, tmp_path: Path) -> None:
    path = export_run(analysis, "fiftyone", tmp_path / "out")
    _, samples = opened(path)
    values = np.asarray(analysis.explained.maps().values).sum(axis=1)
    for row in (0, IMAGES - 1):
        total = 255 * values[row] / np.abs(values[row]).max()
        for name, sign in (("relevance_for", 1), ("relevance_against", -1)):
            heatmap = samples[row][name]
            assert heatmap["range"] == [0, 255]
            with Image.open(path.parent / heatmap["map_path"]) as file:
                assert file.mode == "L"
                np.testing.assert_allclose(np.asarray(file), np.clip(sign * total, 0, 255), atol=0.51)
        with Image.open(path.parent / samples[row]["filepath"]) as picture:
            pixels = analysis.grouped.images.pixels(np.array([row]))[0]
            np.testing.assert_allclose(np.asarray(picture), 255 * pixels.transpose(1, 2, 0), atol=0.51)


def test_what_is_in_no_group_is_said_so_and_places_may_be_unknown(loose: Analysis, tmp_path: Path) -> None:
    _, samples = opened(export_run(loose, "fiftyone", tmp_path / "out"))
    assert samples[3]["group"]["label"] == "unassigned"
    assert (samples[3]["x"], samples[3]["y"]) == (None, None)
    assert "true_group" not in samples[3]
    assert samples[4]["group"]["label"] != "unassigned"


def test_fiftyone_is_not_given_heatmaps_of_images_that_are_not_there(analysis: Analysis, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"a data set for FiftyOne holds the images, but .* --data-dir"):
        export_run(without_images(analysis), "fiftyone", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_the_same_when_it_is_made_again(analysis: Analysis, tmp_path: Path) -> None:
    first, second = (export_run(analysis, "fiftyone", tmp_path / name).parent for name in ("one", "two"))
    for name in ("metadata.json", "samples.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_fiftyone_itself_opens_the_folder(analysis: Analysis, tmp_path: Path) -> None:
    fiftyone = pytest.importorskip("fiftyone", reason="FiftyOne and its data base are large: install it, or not")
    path = export_run(analysis, "fiftyone", tmp_path / "out")
    dataset = fiftyone.Dataset.from_dir(str(path.parent), dataset_type=fiftyone.types.FiftyOneDataset)
    assert len(dataset) == IMAGES
    assert Path(dataset.first().relevance_for.map_path).is_file()


# Where files are


def test_the_own_files_of_images_are_named_where_they_exist(analysis: Analysis, tmp_path: Path) -> None:
    names = tuple(f"{i}.png" for i in range(4))
    for name in names[:3]:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    images = FileImages(FolderFiles(tmp_path), names, ("",) * 4, ImageSettings(resize=4, crop=4))
    wanted = [str(tmp_path / name) for name in names[:3]]
    assert source_files(images) == [*wanted, None]
    assert source_files(SomeImages(images, np.array([2, 0]))) == [wanted[2], wanted[0]]
    assert source_files(analysis.grouped.images) == [None] * IMAGES


def test_photographs_are_jpeg_and_small_pictures_are_exact() -> None:
    assert (ending_of((3, 64, 64)), ending_of((3, 224, 224))) == ("png", "jpg")
    pixels = np.zeros((80, 90, 3), dtype=np.uint8)
    for ending, kind in (("png", "PNG"), ("jpg", "JPEG")):
        with Image.open(io.BytesIO(saved(pixels, ending))) as picture:
            assert (picture.format, picture.size) == (kind, (90, 80))


# Spotlight


def test_the_table_of_spotlight_says_its_types(analysis: Analysis, tmp_path: Path) -> None:
    path = export_run(analysis, "spotlight", tmp_path / "out")
    table, explained = pd.read_parquet(path), analysis.explained
    assert table["id"].tolist() == list(explained.ids)
    categories = ("class", "predicted", "group", "edited_group", "true_group")
    assert all(isinstance(table[name].dtype, pd.CategoricalDtype) for name in categories)
    assert table["class"].cat.categories.tolist() == list(explained.class_names)
    groups = analysis.pseudo_groups
    assert table["group"].tolist() == [groups.names[g] for g in groups.index]
    assert table["correct"].dtype == bool
    assert {len(vector) for vector in table["heatmap_vector"]} == {64}
    with Image.open(io.BytesIO(table["image"][5])) as picture:
        pixels = analysis.grouped.images.pixels(np.array([5]))[0]
        np.testing.assert_allclose(np.asarray(picture), 255 * pixels.transpose(1, 2, 0), atol=0.51)
    with Image.open(io.BytesIO(table["heatmap"][5])) as picture:
        assert picture.size == (SIDE, SIDE)
    layout = json.loads((path.parent / "layout.json").read_text())
    assert all(name in table.columns for name in columns_of(layout))


def columns_of(layout: Any) -> set[str]:
    """Return the columns that a layout names."""
    keys = {"xAxisColumn", "yAxisColumn", "colorBy", "columnKey", "stackByColumnKey", "xColumn", "yColumn"}
    lists = {"visibleColumns", "placeBy", "columns"}
    if isinstance(layout, list):
        return set().union(*map(columns_of, layout))
    if not isinstance(layout, dict):
        return set()
    found = {value for key, value in layout.items() if key in keys}
    found |= {name for key, value in layout.items() if key in lists and isinstance(value, list) for name in value}
    return found.union(*map(columns_of, layout.values()))


def test_spotlight_is_told_what_is_in_no_group(loose: Analysis, tmp_path: Path) -> None:
    table = pd.read_parquet(export_run(loose, "spotlight", tmp_path / "out"))
    assert table["group"][3] == "unassigned"
    assert np.isnan(table["x"][3])
    assert "true_group" not in table


def test_without_images_spotlight_shows_heatmaps_alone(analysis: Analysis, tmp_path: Path) -> None:
    path = export_run(without_images(analysis), "spotlight", tmp_path / "out")
    table = pd.read_parquet(path)
    assert "image" not in table
    assert table["heatmap"].notna().all()
    assert columns_of(json.loads((path.parent / "layout.json").read_text())) <= set(table.columns)


def test_spotlight_itself_reads_the_types(analysis: Analysis, tmp_path: Path) -> None:
    spotlight = pytest.importorskip("renumics.spotlight.data_store", reason="Spotlight is large: install it, or not")
    source = pytest.importorskip("renumics.spotlight_plugins.core.pandas_data_source")
    path = export_run(analysis, "spotlight", tmp_path / "out")
    kinds = spotlight.DataStore(source.PandasDataSource(path), {}).dtypes
    assert str(kinds["image"]) == str(kinds["heatmap"]) == "Image"
    assert str(kinds["group"]) == "Category"
    assert str(kinds["heatmap_vector"]) == "Embedding"
