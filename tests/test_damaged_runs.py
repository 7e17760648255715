"""Run folders whose files are not what was written: said in one sentence, and never taken for what they are not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from exmap.errors import RunFolderError
from exmap.pipeline.kept import DamagedError, kept_array, kept_arrays, kept_json, kept_table
from exmap.pipeline.looking import open_analysis, opened_run, report_run
from exmap.pipeline.store import RunFolder
from running import bring_up, changed, copy_run, results_of, without_times

Damage = Callable[[Path], object]


def forget_digests(run: Path) -> None:
    """Make a run folder one of an earlier version, whose markers name no files."""
    for marker in run.glob("*/done.json"):
        record = json.loads(marker.read_text())
        del record["files"]
        marker.write_text(json.dumps(record))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def text(content: str) -> Damage:
    return lambda path: path.write_text(content)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def shorter_table(path: Path) -> None:
    pq.write_table(pq.read_table(path)[1:], path)


def shorter_arrays(path: Path) -> None:
    axis = 1 if path.name.startswith("predicted") else 0  # that of the images
    save_file({name: np.delete(array, 0, axis) for name, array in load_file(path).items()}, path)


def shorter_array(path: Path) -> None:
    np.save(path, np.load(path)[1:])


def objects(path: Path) -> None:
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


def key_lost(path: Path) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps(dict(list(record.items())[1:])))


OPENED = {  # files that are read when a run is looked at, and what may have happened to them
    "data/data.json": (cut, text("{}"), text("[]"), key_lost, flip),
    "data/val.parquet": (cut, flip, shorter_table, Path.unlink),
    "explain-val/heatmaps.npy": (cut, flip, shorter_array, objects, pipe),
    "explain-val/heatmaps.parquet": (shorter_table, text(""), dangling),
    "explain-val/outputs.safetensors": (cut, flip, shorter_arrays, text("null")),
    "groups-val-exmap/groups.json": (text("null"), key_lost),
    "groups-val-exmap/groups.parquet": (shorter_table, folder),
    "fit-exmap+dfr/fit.json": (text("[]"), key_lost, pipe),
    "fit-exmap+dfr/heads.safetensors": (cut, shorter_arrays),
    "fit-exmap+dfr/predicted.safetensors": (flip, shorter_arrays, Path.unlink),
    "evaluate/results.json": (text("{}"), key_lost, flip),
    "trust/trust.json": (text("{}"), cut),
}


@pytest.mark.parametrize("name", OPENED)
def test_a_damaged_file_is_named_with_what_to_do(name: str, finished: Path, tmp_path: Path) -> None:
    step = name.partition("/")[0]
    for number, damage in enumerate(OPENED[name]):
        run = copy_run(finished, tmp_path / str(number))
        damage(run / name)
        with pytest.raises(RunFolderError) as caught:
            open_analysis(run)
        assert str(caught.value).startswith(f"{run / name} is damaged ("), damage
        assert str(caught.value).endswith(f"); delete {run / step} and run the command again")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OPENED)
def test_a_damaged_file_of_a_run_that_kept_no_digests_is_refused_or_changes_nothing(
    name: str, finished: Path, tmp_path: Path
) -> None:
    whole = open_analysis(finished)
    predicted = {method: fit.predicted.tolist() for method, fit in whole.fits.items()}
    for number, damage in enumerate(OPENED[name]):
        if damage is flip:  # nothing tells one number from another there
            continue
        run = copy_run(finished, tmp_path / str(number))
        forget_digests(run)
        damage(run / name)
        try:
            found = open_analysis(run)
        except RunFolderError as error:
            said = str(error)
        else:
            assert found.explained.predicted.tolist() == whole.explained.predicted.tolist()
            assert all(fit.predicted.tolist() == predicted[method] for method, fit in found.fits.items())
            continue
        assert str(run / name.partition("/")[0]) in said, damage


def test_a_damaged_report_is_refused_by_the_run_and_written_again_by_report(copied: Path) -> None:
    page = copied / "report" / "report.html"
    whole = page.read_bytes()
    for damage in (cut, flip, Path.unlink, folder):
        page.write_bytes(whole)
        damage(page)
        with pytest.raises(RunFolderError, match=r"report.html is damaged .*; delete .*/report and run the command"):
            bring_up(copied, opened_run(copied)[1], change=True)
    report_run(*opened_run(copied), say=lambda _: None)
    bring_up(copied, opened_run(copied)[1], change=True)


def test_deleting_what_is_damaged_makes_the_same_results_again(copied: Path) -> None:
    before = without_times(results_of(copied))
    cut(copied / "groups-val-exmap" / "groups.parquet")
    with pytest.raises(RunFolderError, match=r"groups.parquet is damaged"):
        changed(copied)
    for path in (copied / "groups-val-exmap").iterdir():
        path.unlink()
    (copied / "groups-val-exmap").rmdir()
    assert "cluster, groups of the val split by exmap: started" in changed(copied)
    assert without_times(results_of(copied)) == before


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[]", "null", '{"identity": 3}', '{"identity": "x", "files": [1]}', "[" * 5000]
)
def test_a_marker_that_is_not_whole_finishes_nothing(copied: Path, content: str) -> None:
    (copied / "explain-val" / "done.json").write_text(content)
    assert RunFolder(copied).record("explain-val") is None
    with pytest.raises(RunFolderError, match=r"is not finished: its step explain-val is missing; bring it up to date"):
        open_analysis(copied)


def test_a_marker_with_measures_that_are_none_finishes_nothing(copied: Path) -> None:
    marker = copied / "train" / "done.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"seconds": "long"}))
    assert RunFolder(copied).record("train") is None


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"versions": 3}', "\0"])
def test_without_a_manifest_a_run_is_looked_at_all_the_same(copied: Path, content: str) -> None:
    (copied / "manifest.json").write_text(content)
    assert open_analysis(copied).made_by == {}


@pytest.mark.parametrize(
    "content",
    ["format: 2\nsettings:\n", "format: 2\nsettings: 3\n", "format: 2\nformat: 2\n", "a: !!int x\n", "[" * 1500, "\0"],
)
def test_damaged_settings_of_a_run_are_refused(copied: Path, content: str) -> None:
    (copied / "settings.yaml").write_text(content)
    with pytest.raises(RunFolderError) as caught:
        opened_run(copied)
    assert "\n" not in str(caught.value)
    assert str(copied) in str(caught.value)


# Single files


def test_only_files_of_the_right_kind_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    readers: list[Callable[[], Any]] = [
        lambda: kept_json(path),
        lambda: kept_arrays(path),
        lambda: kept_array(path, (None,)),
        lambda: kept_table(path),
    ]
    for make in (Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)):
        make(path)
        for read in readers:
            with pytest.raises((DamagedError, OSError)):
                read()
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    for content in (b"", b"\0" * 100, b"PK\3\4" + b"\0" * 100, b"\x93NUMPY\1\0\xff\xff{", b"{}", os.urandom(200)):
        path.write_bytes(content)
        for read in readers[1:]:
            with pytest.raises(DamagedError):
                read()


def test_an_array_file_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**3)})
    with pytest.raises(DamagedError):
        kept_array(path, (None, None))
    np.save(path, np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(DamagedError, match="floating-point"):
        kept_array(path, (None, None))


def test_a_table_is_asked_for_its_rows_before_it_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"group": [1, 2, 3], "name": ["a", "b", None]}), tmp_path / "t.parquet")
    assert kept_table(tmp_path / "t.parquet", 3, {"group": "iu"}).num_rows == 3
    for rows, columns in ((4, {}), (3, {"name": ""}), (3, {"group": "f"}), (3, {"lost": ""})):
        with pytest.raises(DamagedError):
            kept_table(tmp_path / "t.parquet", rows, columns)


def test_files_whose_names_are_not_utf_8_are_read(tmp_path: Path) -> None:
    path = tmp_path / "n\udcff.safetensors"
    save_file({"a": np.arange(3)}, tmp_path / "a")
    (tmp_path / "a").rename(path)
    assert kept_arrays(path, a=(3,))["a"].tolist() == [0, 1, 2]
    pq.write_table(pa.table({"a": [1]}), tmp_path / "b")
    (tmp_path / "b").rename(path)
    assert kept_table(path, 1).num_rows == 1
