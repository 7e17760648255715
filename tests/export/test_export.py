"""Exports: a flat table with pictures, and a project for ViRelAy; whole or not at all."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from exmap.analysis import Analysis
from exmap.errors import RunFolderError, SettingsError
from exmap.explain import reduce_heatmaps
from exmap.export import export_run
from exmap.export.pixels import enlarged, heatmap_colours, in_colour
from exmap.records import Progress
from sample_analysis import IMAGES, SIDE, sample_analysis, with_edits, without_images


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return sample_analysis()


@pytest.fixture(scope="module")
def small(analysis: Analysis) -> Analysis:
    """The same with heatmaps of half the images' size."""
    maps = analysis.explained.maps()
    values = reduce_heatmaps(maps.values, SIDE // 2).reshape(IMAGES, 3, SIDE // 2, SIDE // 2)
    return replace(analysis, explained=replace(analysis.explained, heatmaps=replace(maps, values=values)))


# The table


def test_the_table_has_a_row_per_image_with_its_pictures(analysis: Analysis, tmp_path: Path) -> None:
    path = export_run(analysis, "parquet", tmp_path / "out")
    table, explained, groups = pq.read_table(path), analysis.explained, analysis.pseudo_groups
    assert groups.clusters is not None
    assert analysis.oracle is not None
    wanted = {
        "id": list(explained.ids),
        "split": ["val"] * IMAGES,
        "class": explained.labels.tolist(),
        "class_name": [explained.class_names[k] for k in explained.labels],
        "predicted": explained.predicted.tolist(),
        "correct": explained.correct.tolist(),
        "cluster": groups.clusters.labels.tolist(),
        "group": [groups.names[g] for g in groups.index],
        "true_group": [analysis.oracle.names[g] for g in analysis.oracle.index],
    }
    assert {name: table[name].to_pylist() for name in wanted} == wanted
    assert table["edited_group"].null_count == IMAGES
    np.testing.assert_array_equal(np.stack([table[axis].to_numpy() for axis in "xy"], axis=1), analysis.coordinates)
    for row in (0, IMAGES - 1):
        with Image.open(path.parent / table["thumbnail"][row].as_py()) as picture:
            pixels = analysis.grouped.images.pixels(np.array([row]))[0]
            np.testing.assert_allclose(np.asarray(picture), 255 * pixels.transpose(1, 2, 0), atol=0.51)
        with Image.open(path.parent / table["heatmap"][row].as_py()) as picture:
            colours = heatmap_colours(np.asarray(explained.maps().values[row : row + 1]))[0]
            np.testing.assert_array_equal(np.asarray(picture), colours)


def test_the_table_has_what_a_person_made_of_the_groups(analysis: Analysis, tmp_path: Path) -> None:
    edited = with_edits(analysis)
    table = pq.read_table(export_run(edited, "parquet", tmp_path / "out"))
    groups = edited.groups["exmap-edited"]
    assert table["edited_group"].to_pylist() == [groups.names[g] for g in groups.index]
    assert "looks at the bar" in groups.names


def test_what_is_unknown_is_null(analysis: Analysis, tmp_path: Path) -> None:
    maps, groups = analysis.explained.maps(), analysis.pseudo_groups
    finite = np.arange(IMAGES) != 3
    index = np.where(finite, groups.index, -1)
    assert groups.clusters is not None
    clusters = replace(groups.clusters, labels=np.where(finite, groups.clusters.labels, -1))
    broken = replace(
        analysis,
        explained=replace(analysis.explained, heatmaps=replace(maps, finite=finite)),
        groups={"exmap": replace(groups, index=index, clusters=clusters)},
        oracle=None,
    )
    table = pq.read_table(export_run(broken, "parquet", tmp_path / "out"))
    row = {name: table[name][3].as_py() for name in ("group", "cluster", "x", "y", "heatmap_finite", "true_group")}
    assert row == {**dict.fromkeys(row), "heatmap_finite": False}
    assert table["true_group"].null_count == IMAGES


def test_without_images_the_table_has_no_thumbnails(analysis: Analysis, tmp_path: Path) -> None:
    path = export_run(without_images(analysis), "parquet", tmp_path / "out")
    table = pq.read_table(path)
    assert table["thumbnail"].null_count == len(table) == IMAGES
    assert not (path.parent / "thumbnails").exists()
    assert all((path.parent / name).is_file() for name in table["heatmap"].to_pylist())


# ViRelAy


def test_the_project_names_files_that_hold_an_entry_per_image(small: Analysis, tmp_path: Path) -> None:
    path = export_run(small, "virelay", tmp_path / "out")
    explained, groups = small.explained, small.pseudo_groups
    project = yaml.safe_load(path.read_text())["project"]
    assert project["attributions"]["attribution_method"] == "symmetric_gamma"
    labels = json.loads((path.parent / project["label_map"]).read_text())
    names = {entry["word_net_id"]: entry["name"] for entry in labels}
    assert names == {"all": "all images", "class-0": "bar 0", "class-1": "bar 1"}
    with h5py.File(path.parent / project["dataset"]["path"]) as file:
        assert (file["data"].shape, file["data"].dtype) == ((IMAGES, 3, SIDE, SIDE), np.uint8)
        pixels = small.grouped.images.pixels(np.arange(IMAGES))
        np.testing.assert_allclose(file["data"][()], 255 * pixels, atol=0.51)
        np.testing.assert_array_equal(file["label"][()], explained.labels)
        assert file["label"].dtype == np.uint16
    (source,) = project["attributions"]["sources"]
    with h5py.File(path.parent / source) as file:
        assert file["attribution"].shape == (IMAGES, 3, SIDE, SIDE)
        np.testing.assert_array_equal(file["attribution"][:, :, ::2, ::2], explained.maps().values)
        np.testing.assert_array_equal(file["prediction"][()].argmax(axis=1), explained.predicted)
    (analysis,) = project["analyses"]
    with h5py.File(path.parent / analysis["sources"][0]) as file:
        assert list(file) == ["all", "class-0", "class-1"]
        np.testing.assert_array_equal(file["all"]["cluster"]["exmap groups"][()], groups.index)
        assert tuple(file["all"]["cluster"]["exmap groups"].attrs["names"]) == groups.names
        rows = file["class-1"]["index"][()]
        np.testing.assert_array_equal(rows, np.flatnonzero(explained.labels == 1))
        assert groups.clusters is not None
        np.testing.assert_array_equal(file["class-1"]["cluster"]["exmap clusters"][()], groups.clusters.labels[rows])
        np.testing.assert_array_equal(file["class-1"]["embedding"]["heatmaps"][()], small.coordinates[rows])
        wrong = file["class-1"]["cluster"]["right (0) or wrong (1)"][()]
        np.testing.assert_array_equal(wrong == 0, explained.correct[rows])
        assert "true groups" in file["all"]["cluster"]


def test_virelay_itself_opens_the_project(small: Analysis, tmp_path: Path) -> None:
    model = pytest.importorskip("virelay.model", reason="ViRelAy pins its libraries: install it without them, or not")
    project = model.Project(str(export_run(small, "virelay", tmp_path / "out")))
    assert len(project.dataset) == IMAGES
    (method,) = project.get_analysis_methods()
    assert [c.human_readable_name for c in project.get_analysis_categories(method)][1:] == ["bar 0", "bar 1"]
    (embedding,) = project.get_analysis_embedding_names(method)
    for name in project.get_analysis_clustering_names(method):
        assert len(project.get_analysis(method, "all", name, embedding).clustering) == IMAGES
    assert project.get_sample(3).data.shape == project.get_attribution(3).data.shape == (SIDE, SIDE, 3)
    project.close()


def test_without_h5py_it_is_said_what_to_install(
    analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SettingsError, match=r"pip install 'exmap\[virelay\]'"):
        export_run(analysis, "virelay", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_project_without_images_is_refused(tmp_path: Path, analysis: Analysis) -> None:
    with pytest.raises(RunFolderError, match="--data-dir"):
        export_run(without_images(analysis), "virelay", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# Folders


def test_an_earlier_export_is_replaced_and_nothing_else(analysis: Analysis, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_run(analysis, "parquet", out)
    export_run(analysis, "virelay", out)
    assert not (out / "images.parquet").exists()
    assert (out / "project.yaml").exists()
    assert json.loads((out / "export.json").read_text())["grouping"] == "0123abcd"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for place in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(RunFolderError, match="choose another --out"):
            export_run(analysis, "parquet", place)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_an_export_that_breaks_off_leaves_the_earlier_one_and_the_next_one_starts_anew(
    analysis: Analysis, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(_: Progress) -> None:
        raise StoppedError

    path = export_run(analysis, "parquet", tmp_path / "out")
    before = path.read_bytes()
    with pytest.raises(StoppedError):
        export_run(analysis, "parquet", tmp_path / "out", listen=stop)
    assert path.read_bytes() == before
    assert (tmp_path / "out.part").exists()
    export_run(analysis, "parquet", tmp_path / "out")
    assert not (tmp_path / "out.part").exists()


def test_an_unknown_format_is_refused_with_the_closest_name(analysis: Analysis, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean 'virelay'"):
        export_run(analysis, "virely", tmp_path / "out")


# Pixels


def test_maps_are_enlarged_and_reduced_by_their_nearest_pixel() -> None:
    maps = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(enlarged(maps, 4, 2)[0, 0], [[0, 1], [0, 1], [2, 3], [2, 3]])
    np.testing.assert_array_equal(enlarged(maps, 3, 3)[0, 0, 0], [0, 1, 1])
    np.testing.assert_array_equal(enlarged(maps, 2, 2), maps)


def test_images_of_other_than_three_channels_become_grey() -> None:
    images = np.array([[[[0.0, 1.0]], [[1.0, 1.0]]]])
    np.testing.assert_allclose(in_colour(images), np.full((1, 3, 1, 2), [0.5, 1.0]))
    colour = np.zeros((2, 3, 1, 1))
    assert in_colour(colour).shape == colour.shape


def test_an_all_zero_heatmap_is_white() -> None:
    np.testing.assert_array_equal(heatmap_colours(np.zeros((1, 3, 2, 2))), 255)
