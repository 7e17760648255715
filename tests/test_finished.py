"""A finished run opened for looking at, whole or not, with its images or without them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from exmap.data import build_task
from exmap.errors import RunFolderError
from exmap.finished import open_finished
from running import cheap_settings, copy_run, finished_run, moved_run
from trees import waterbirds_tree


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return copy_run(finished, tmp_path / "run")


@pytest.fixture
def moved(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return copy_run(moved_run(tmp_path_factory.getbasetemp()), tmp_path / "moved")


def test_a_finished_run_gives_what_its_stages_left(finished: Path) -> None:
    found, val = open_finished(finished), build_task(cheap_settings().data).val
    table = pq.read_table(finished / "cluster" / "exmap.parquet")
    assert found.ids == val.ids
    np.testing.assert_array_equal(found.labels, val.labels)
    np.testing.assert_array_equal(found.predicted, table["predicted"].to_numpy())
    np.testing.assert_array_equal(found.clusters, table["cluster"].to_numpy())
    np.testing.assert_array_equal(found.groups.index, table["group"].to_numpy())
    assert found.class_names == val.class_names
    assert set(found.sources) == {"exmap", "classes", "random", "error_set", "george"}
    assert found.oracle is not None
    np.testing.assert_array_equal(found.oracle.index, val.true_groups().index)
    assert (found.split_name, found.no_images, set(found.splits)) == ("val", "", {"grouped", "test"})
    assert found.heatmaps.values.shape == (450, 3, 8, 8)
    head = found.repaired_head()
    assert head is not None
    assert head.weight.shape == (2, 512)


def test_opening_a_run_changes_nothing_in_it(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    open_finished(finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_true_groups_come_from_the_data_where_no_oracle_was_asked_for(copied: Path) -> None:
    notes = json.loads((copied / "cluster" / "clusters.json").read_text())
    first = open_finished(copied).oracle
    del notes["oracle"]
    (copied / "cluster" / "clusters.json").write_text(json.dumps(notes))
    again = open_finished(copied).oracle
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(first.index, again.index)
    assert first.names == again.names


@pytest.mark.parametrize("stage", ["train", "explain", "cluster"])
def test_an_unfinished_run_is_refused_with_what_finishes_it(copied: Path, stage: str) -> None:
    (copied / stage / "done.json").unlink()
    with pytest.raises(RunFolderError, match=rf"its stage {stage} is missing; finish it with exmap evaluate {copied}"):
        open_finished(copied)


def test_groups_of_heatmaps_that_were_replaced_are_refused(copied: Path) -> None:
    done = json.loads((copied / "explain" / "done.json").read_text())
    (copied / "explain" / "done.json").write_text(json.dumps({**done, "identity": "0" * 64}))
    with pytest.raises(RunFolderError, match="its stage cluster was made from what has been replaced since"):
        open_finished(copied)


def test_heads_of_groups_that_were_replaced_are_not_taken(copied: Path) -> None:
    path = copied / "retrain" / "identity.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "before": "0" * 64}))
    assert open_finished(copied).repaired_head() is None


def test_another_format_of_run_folder_is_refused(copied: Path) -> None:
    settings = (copied / "settings.yaml").read_text()
    (copied / "settings.yaml").write_text(settings.replace("format: 1", "format: 0", 1))
    with pytest.raises(RunFolderError, match="must be of run-folder format 1, found 0; use the version of exmap"):
        open_finished(copied)


def test_a_run_whose_data_moved_is_opened_without_images(moved: Path) -> None:
    found = open_finished(moved)
    assert found.splits == {}
    assert "the data are not at hand" in found.no_images
    assert "--data-dir" in found.no_images
    assert found.class_names == ("landbird", "waterbird")
    assert found.oracle is not None
    assert found.heatmaps.values.shape == (38, 3, 8, 8)


def test_moved_data_are_found_where_they_are_said_to_be(moved: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = open_finished(moved, data_dir=tmp_path_factory.getbasetemp() / "moved-data")
    assert found.no_images == ""
    assert found.splits["grouped"].ids == found.ids


def test_other_data_are_not_taken_for_those_of_the_run(moved: Path, tmp_path: Path) -> None:
    other = waterbirds_tree(tmp_path / "other", {0: (30, 8, 8, 30), 1: (11, 7, 7, 13), 2: (6, 6, 6, 6)})
    found = open_finished(moved, data_dir=other)
    assert found.splits == {}
    assert "not those the run was made from" in found.no_images


def test_without_data_and_oracle_there_are_no_true_groups(moved: Path) -> None:
    notes = json.loads((moved / "cluster" / "clusters.json").read_text())
    del notes["oracle"]
    (moved / "cluster" / "clusters.json").write_text(json.dumps(notes))
    shutil.rmtree(moved / "retrain", ignore_errors=True)
    found = open_finished(moved)
    assert found.oracle is None
    assert found.repaired_head() is None
