"""Runs whose splits are computed shard by shard: the files and the identity of those that are computed at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from exmap.data.dataset import Split
from exmap.data.files import FileImages, FolderFiles
from exmap.engine import Shard
from exmap.engine.job import alone
from exmap.errors import SettingsError
from exmap.pipeline.extraction import in_shards
from exmap.pipeline.provenance import identity_part
from exmap.pipeline.runs import open_run
from exmap.settings import ImageSettings, RuntimeSettings, Settings, change_settings
from running import bring_up, changed, command


def test_how_a_run_is_computed_is_no_part_of_what_it_is() -> None:
    changes = ["runtime.engine=ray", "runtime.address=auto", "runtime.actors=3", "runtime.shard_images=7"]
    assert identity_part(change_settings(Settings(), changes)) == identity_part(Settings())


def test_another_engine_finds_a_finished_run_finished(copied: Path) -> None:
    said = changed(copied, "runtime.engine=ray", until="explain")
    assert not [line for line in said if "started" in line]


def test_shards_make_the_files_of_a_run(finished: Path, copied: Path) -> None:
    for step in ("explain-val", "test"):
        shutil.rmtree(copied / step)
    said = changed(copied, "runtime.shard_images=100", until="cluster", look=True)
    assert "explain, heatmaps of the val split: started" in said
    for step in ("explain-val", "test"):
        before, after = (json.loads((folder / step / "done.json").read_text()) for folder in (finished, copied))
        assert before["identity"] == after["identity"]
        assert set(before["files"]) == set(after["files"])
    for name in ("heatmaps.npy", "outputs.safetensors", "channels.npy"):
        assert (finished / "explain-val" / name).read_bytes() == (copied / "explain-val" / name).read_bytes(), name
    groups = "groups-val-exmap/groups.parquet"
    assert (finished / groups).read_bytes() == (copied / groups).read_bytes()


def test_an_interrupted_extraction_continues_from_its_shards(copied: Path) -> None:
    shutil.rmtree(copied / "explain-val")
    _, settings = open_run(copied)
    settings = change_settings(settings, ["runtime.shard_images=100", "explain.batch_size=50"])
    heard: list[int] = []

    def stop(progress: object) -> None:
        heard.append(progress.done)  # type: ignore[attr-defined]
        if len(heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring_up(copied, settings, until="explain", change=True, listen=stop)
    shards = copied / "explain-val.part" / "shards"
    assert len(list(shards.glob("*.parquet"))) == 2
    again: list[int] = []
    bring_up(copied, settings, until="explain", change=True, listen=lambda progress: again.append(progress.done))
    assert again[0] > heard[-1]
    assert (copied / "explain-val" / "heatmaps.npy").is_file()
    assert not list(copied.rglob("shards"))


def test_several_processes_of_one_job_share_batches_instead() -> None:
    assert in_shards(RuntimeSettings(engine="ray", devices=2))
    assert in_shards(RuntimeSettings(shard_images=100))
    assert not in_shards(RuntimeSettings(shard_images=100, devices=2))
    assert not in_shards(RuntimeSettings())


def test_an_address_means_ray(
    monkeypatch: pytest.MonkeyPatch, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = command(monkeypatch, capsys, "explain", copied, "--address", "nowhere:1")
    assert said.code == 0
    assert open_run(copied)[1].runtime.engine == "ray"


def test_another_word_for_an_engine_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"runtime\.engine"):
        change_settings(Settings(), ["runtime.engine=dask"])


def test_files_of_a_shard_are_sent_without_the_names_of_others(tmp_path: Path) -> None:
    names = tuple(f"{n}.png" for n in range(10))
    images = FileImages(FolderFiles(tmp_path), names, ("",) * 10, ImageSettings())
    split = Split("val", images, np.zeros(10, dtype=np.int64), names, ("a", "b"))
    piece = alone(split, Shard(1, 2, 4, 8))
    assert isinstance(piece.images, FileImages)
    assert piece.images.names == piece.ids == names[4:8]
