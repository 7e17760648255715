"""Exports: a flat table with pictures, and a project for ViRelAy; whole or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from exmap.errors import RunFolderError, SettingsError
from exmap.export import export_run
from exmap.export.pixels import enlarged, heatmap_colours, in_colour
from exmap.finished import FinishedRun, open_finished
from exmap.records import Progress
from running import Said, command, copy_run, finished_run, moved_run

Give = Callable[..., Said]


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Give:
    monkeypatch.delenv("EXMAP_DATA_DIR", raising=False)
    return lambda *words: command(monkeypatch, capsys, *words)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return open_finished(finished_run(tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="session")
def moved(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Heatmaps of 8 pixels for images of 16, and no images unless it is said where they are."""
    base = tmp_path_factory.getbasetemp()
    return open_finished(moved_run(base), data_dir=base / "moved-data")


# The table


def test_the_table_has_a_row_per_image_with_its_pictures(finished: FinishedRun, tmp_path: Path) -> None:
    path = export_run(finished, "parquet", tmp_path / "out")
    table = pq.read_table(path)
    first = pq.read_table(finished.run.path / "cluster" / "exmap.parquet")
    for name in ("id", "class", "predicted", "correct", "cluster"):
        assert table[name].to_pylist() == first[name].to_pylist()
    assert table["group"].to_pylist() == first["group_name"].to_pylist()
    assert set(table["split"].to_pylist()) == {"val"}
    names = finished.splits["test"].class_names
    assert table["class_name"].to_pylist() == [names[k] for k in finished.labels]
    oracle = pq.read_table(finished.run.path / "cluster" / "oracle.parquet")
    assert table["true_group"].to_pylist() == oracle["group_name"].to_pylist()
    assert table["edited_group"].null_count == 450
    plane = np.stack([table[axis].to_numpy() for axis in "xy"], axis=1)
    np.testing.assert_array_equal(plane, finished.coordinates)
    for row in (0, 449):
        with Image.open(path.parent / table["thumbnail"][row].as_py()) as picture:
            pixels = finished.splits["grouped"].images.pixels(np.array([row]))[0]
            np.testing.assert_allclose(np.asarray(picture), 255 * pixels.transpose(1, 2, 0), atol=0.51)
        with Image.open(path.parent / table["heatmap"][row].as_py()) as picture:
            wanted = heatmap_colours(np.asarray(finished.heatmaps.values[row : row + 1]))[0]
            np.testing.assert_array_equal(np.asarray(picture), wanted)


def test_without_the_data_the_table_has_no_thumbnails(give: Give, moved: FinishedRun, tmp_path: Path) -> None:
    run = copy_run(moved.run.path, tmp_path / "run")
    said = give("export", run, "--to", "parquet")
    assert said.code == 0, said.err
    assert "Without thumbnails: the data are not at hand" in said.out
    out = run / "export" / "parquet"
    table = pq.read_table(out / "images.parquet")
    assert table["thumbnail"].null_count == len(table) == 38
    assert not (out / "thumbnails").exists()
    assert all((out / name).is_file() for name in table["heatmap"].to_pylist())


# ViRelAy


def test_the_project_names_files_that_hold_an_entry_per_image(moved: FinishedRun, tmp_path: Path) -> None:
    path = export_run(moved, "virelay", tmp_path / "out")
    project = yaml.safe_load(path.read_text())["project"]
    labels = json.loads((path.parent / project["label_map"]).read_text())
    names = {entry["word_net_id"]: entry["name"] for entry in labels}
    assert names == {"all": "all images", "class-0": "landbird", "class-1": "waterbird"}
    with h5py.File(path.parent / project["dataset"]["path"]) as file:
        assert (file["data"].shape, file["data"].dtype) == ((38, 3, 16, 16), np.uint8)
        pixels = moved.splits["grouped"].images.pixels(np.arange(38))
        np.testing.assert_allclose(file["data"][()], 255 * pixels, atol=0.51)
        np.testing.assert_array_equal(file["label"][()], moved.labels)
        assert file["label"].dtype == np.uint16
    (source,) = project["attributions"]["sources"]
    with h5py.File(path.parent / source) as file:
        assert file["attribution"].shape == (38, 3, 16, 16)
        np.testing.assert_array_equal(file["attribution"][:, :, ::2, ::2], moved.heatmaps.values)
        np.testing.assert_array_equal(file["prediction"][()].argmax(axis=1), moved.predicted)
    (analysis,) = project["analyses"]
    with h5py.File(path.parent / analysis["sources"][0]) as file:
        assert list(file) == ["all", "class-0", "class-1"]
        np.testing.assert_array_equal(file["all"]["cluster"]["exmap groups"][()], moved.groups.index)
        assert tuple(file["all"]["cluster"]["exmap groups"].attrs["names"]) == moved.groups.names
        rows = file["class-1"]["index"][()]
        np.testing.assert_array_equal(rows, np.flatnonzero(moved.labels == 1))
        np.testing.assert_array_equal(file["class-1"]["cluster"]["exmap clusters"][()], moved.clusters[rows])
        np.testing.assert_array_equal(file["class-1"]["embedding"]["heatmaps"][()], moved.coordinates[rows])
        assert "true groups" in file["all"]["cluster"]


def test_virelay_itself_opens_the_project(moved: FinishedRun, tmp_path: Path) -> None:
    model = pytest.importorskip("virelay.model", reason="ViRelAy pins its libraries: install it without them, or not")
    project = model.Project(str(export_run(moved, "virelay", tmp_path / "out")))
    assert len(project.dataset) == 38
    (method,) = project.get_analysis_methods()
    assert [c.human_readable_name for c in project.get_analysis_categories(method)][1:] == ["landbird", "waterbird"]
    (embedding,) = project.get_analysis_embedding_names(method)
    for name in project.get_analysis_clustering_names(method):
        assert len(project.get_analysis(method, "all", name, embedding).clustering) == 38
    assert project.get_sample(3).data.shape == project.get_attribution(3).data.shape == (16, 16, 3)
    project.close()


def test_without_h5py_it_is_said_what_to_install(
    give: Give, moved: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    said = give("export", moved.run.path, "--to", "virelay", "--out", tmp_path / "out")
    assert (said.code, said.is_one_sentence()) == (2, True)
    assert "pip install 'exmap[virelay]'" in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_project_without_images_is_refused(tmp_path: Path, moved: FinishedRun) -> None:
    with pytest.raises(RunFolderError, match="--data-dir"):
        export_run(open_finished(moved.run.path), "virelay", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# Folders


def test_an_earlier_export_is_replaced_and_nothing_else(moved: FinishedRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_run(moved, "parquet", out)
    export_run(moved, "virelay", out)
    assert not (out / "images.parquet").exists()
    assert (out / "project.yaml").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for place in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(RunFolderError, match="choose another --out"):
            export_run(moved, "parquet", place)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_an_export_that_breaks_off_leaves_the_earlier_one_and_the_next_one_starts_anew(
    moved: FinishedRun, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(_: Progress) -> None:
        raise StoppedError

    path = export_run(moved, "parquet", tmp_path / "out")
    before = path.read_bytes()
    with pytest.raises(StoppedError):
        export_run(moved, "parquet", tmp_path / "out", listen=stop)
    assert path.read_bytes() == before
    assert (tmp_path / "out.part").exists()
    export_run(moved, "parquet", tmp_path / "out")
    assert not (tmp_path / "out.part").exists()


def test_an_unknown_format_is_refused_with_the_closest_name(moved: FinishedRun, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean 'virelay'"):
        export_run(moved, "virely", tmp_path / "out")


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
