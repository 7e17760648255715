"""Records as files of a stage, and back; folders of older versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exmap.artifacts import HEATMAP_FILES, heatmap_file, read_heatmaps, write_heatmaps
from exmap.records import Heatmaps

IDS = ("val/0", "val/1", "val/2")


def heatmaps(folder: Path, **changes: Any) -> Heatmaps:
    rng = np.random.default_rng(0)
    values = heatmap_file(folder)((3, 1, 2, 2))
    values[:] = rng.random(values.shape)
    return Heatmaps(
        values,
        np.array([0, 1, 1]),
        rng.random(3).astype(np.float32),
        np.array([True, True, False]),
        np.array([False, True, False]),
        **changes,
    )


def test_heatmaps_come_back_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    check = {"explainer": "lrp", "composite": "symmetric_gamma", "images": 3, "error": 1.5e-7, "layer": "layer3"}
    share, channels = rng.random(3).astype(np.float32), rng.normal(size=(3, 5)).astype(np.float32)
    written = heatmaps(tmp_path, input_share=share, channels=channels, check=check)
    write_heatmaps(written, IDS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(HEATMAP_FILES)
    read = read_heatmaps(tmp_path)
    for name in ("values", "target", "conservation_error", "finite", "zero", "input_share", "channels"):
        assert np.array_equal(getattr(read, name), getattr(written, name)), name
        assert getattr(read, name).dtype == getattr(written, name).dtype, name
    assert read.check == check
    assert isinstance(read.values, np.memmap)
    assert isinstance(read.channels, np.memmap)
    assert pq.read_table(tmp_path / "heatmaps.parquet")["id"].to_pylist() == list(IDS)


def test_what_there_is_none_of_is_none_again(tmp_path: Path) -> None:
    write_heatmaps(heatmaps(tmp_path), IDS, tmp_path)
    read = read_heatmaps(tmp_path)
    assert (read.input_share, read.channels, read.check) == (None, None, {})
    assert not (tmp_path / "channels.npy").exists()


def test_a_folder_of_an_older_version_is_read(tmp_path: Path) -> None:
    written = heatmaps(tmp_path)
    columns = ("target", "conservation_error", "finite", "zero")
    pq.write_table(
        pa.table({"id": list(IDS), **{name: getattr(written, name) for name in columns}}), tmp_path / "heatmaps.parquet"
    )
    read = read_heatmaps(tmp_path)
    assert np.array_equal(read.conservation_error, written.conservation_error)
    assert (read.input_share, read.channels, read.check) == (None, None, {})
