"""Splits computed shard by shard in one process: the same as at once, and continued from what was finished."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from exmap.data import Split, Task
from exmap.data.dataset import array_split
from exmap.engine import Job, LocalEngine, Shard, engine_of, shards_of
from exmap.engine.engine import Results
from exmap.engine.job import alone
from exmap.explain import explain_split
from exmap.model import build_model, collect_outputs
from exmap.pipeline.extraction import ShardFolder, compute_split, load_shard
from exmap.records import Explained, Outputs, Progress
from exmap.settings import ExplainSettings, ModelSettings, RuntimeSettings

SETTINGS = ExplainSettings(batch_size=20, size=8)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model(ModelSettings(name="tiny"), 3, seed=0).eval()


@pytest.fixture(scope="module")
def split(three_classes: Task) -> Split:
    return three_classes.val


@pytest.fixture(scope="module")
def whole(model: nn.Module, split: Split) -> Explained:
    maps, outputs = explain_split(model, split, SETTINGS)
    return Explained(split.name, split.ids, split.labels, split.class_names, outputs, maps)


class Dying(LocalEngine):
    """An engine whose process is killed after some shards."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def compute(self, job: Job, split: Split, shards: Sequence[Shard]) -> Results:
        yield from itertools.islice(super().compute(job, split, shards), self.after)
        raise KeyboardInterrupt


class Backwards(LocalEngine):
    """An engine whose last shard is finished first."""

    def compute(self, job: Job, split: Split, shards: Sequence[Shard]) -> Results:
        yield from super().compute(job, split, shards[::-1])


def same(one: Explained, other: Explained) -> None:
    assert (one.split, one.ids, one.class_names) == (other.split, other.ids, other.class_names)
    assert np.array_equal(one.labels, other.labels)
    assert np.array_equal(one.outputs.features, other.outputs.features)
    assert np.array_equal(one.outputs.logits, other.outputs.logits)
    assert (one.heatmaps is None) == (other.heatmaps is None)
    if one.heatmaps is not None and other.heatmaps is not None:
        assert one.heatmaps.check == other.heatmaps.check
        for name in ("values", "target", "conservation_error", "finite", "zero", "input_share", "channels"):
            assert np.array_equal(getattr(one.heatmaps, name), getattr(other.heatmaps, name)), name


@pytest.mark.parametrize(
    ("images", "at_once", "size"), [(0, 10, 5), (1, 10, 5), (95, 10, 20), (100, 30, 30), (7, 100, 1)]
)
def test_shards_cover_a_split_in_whole_batches(images: int, at_once: int, size: int) -> None:
    split = array_split(np.zeros((images, 3, 4, 4), dtype=np.uint8), np.arange(images) % 2, class_names=["a", "b"])
    shards = shards_of(split, at_once, size)
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == list(range(images))
    assert all(shard.start % at_once == 0 and shard.of == len(shards) for shard in shards)
    assert [shard.number for shard in shards] == list(range(len(shards)))


def test_no_shard_is_much_smaller_than_the_others() -> None:
    split = array_split(np.zeros((410, 3, 4, 4), dtype=np.uint8), np.arange(410) % 2)
    assert [len(shard) for shard in shards_of(split, 10, 200)] == [130, 140, 140]


def test_a_shard_holds_nothing_of_the_other_images_and_no_true_groups(split: Split) -> None:
    piece = alone(split, Shard(1, 3, 50, 100))
    assert piece.images.array.shape[0] == 50  # type: ignore[attr-defined]
    assert piece.ids == split.ids[50:100]
    assert piece.truth is None
    assert np.array_equal(piece.images.batch(np.arange(3)), split.images.batch(np.arange(50, 53)))


@pytest.mark.parametrize("engine", [LocalEngine(), Backwards()])
def test_shards_make_what_one_pass_makes(
    model: nn.Module, split: Split, whole: Explained, engine: LocalEngine, tmp_path: Path
) -> None:
    job = Job.of(model, split, SETTINGS)
    same(compute_split(engine, job, split, size=40), whole)
    heard: list[Progress] = []
    same(compute_split(engine, job, split, size=40, folder=tmp_path / "shards", listen=heard.append), whole)
    assert sorted(each.done for each in heard) == [each.done for each in heard]
    assert heard[-1].done == len(split)
    assert not (tmp_path / "shards").exists()


def test_without_explanation_shards_hold_outputs(model: nn.Module, split: Split) -> None:
    found = compute_split(LocalEngine(), Job.of(model, split, None), split, size=40)
    outputs: Outputs = collect_outputs(model, split)
    assert found.heatmaps is None
    assert np.allclose(found.outputs.logits, outputs.logits, atol=1e-6)


def test_a_split_without_images_has_no_shards(model: nn.Module, split: Split) -> None:
    none = split.rows(np.arange(0))
    assert len(compute_split(LocalEngine(), Job.of(model, none, SETTINGS), none)) == 0


def test_finished_shards_are_not_computed_again(
    model: nn.Module, split: Split, whole: Explained, tmp_path: Path
) -> None:
    job, folder = Job.of(model, split, SETTINGS), tmp_path / "shards"
    with pytest.raises(KeyboardInterrupt):
        compute_split(Dying(after=2), job, split, size=40, folder=folder)
    kept = sorted(folder.glob("*.parquet"))
    assert [path.name for path in kept] == ["00000-of-00004.parquet", "00001-of-00004.parquet"]
    kept[0].write_bytes(kept[0].read_bytes()[:1000])  # the disk was full
    (folder / "00002-of-00004.parquet.part").write_bytes(b"half")
    seen: list[int] = []

    class Counting(LocalEngine):
        def compute(self, job: Job, split: Split, shards: Sequence[Shard]) -> Results:
            seen.extend(shard.number for shard in shards)
            yield from super().compute(job, split, shards)

    same(compute_split(Counting(), job, split, size=40, folder=folder), whole)
    assert seen == [0, 2, 3]


@pytest.mark.parametrize("change", ["weights", "settings", "size"])
def test_shards_of_another_job_are_not_taken(model: nn.Module, split: Split, tmp_path: Path, change: str) -> None:
    job, folder = Job.of(model, split, SETTINGS), tmp_path / "shards"
    with pytest.raises(KeyboardInterrupt):
        compute_split(Dying(after=2), job, split, size=40, folder=folder)
    other, size = job, 40
    if change == "weights":
        other = Job.of(build_model(ModelSettings(name="tiny"), 3, seed=1).eval(), split, SETTINGS)
    elif change == "settings":
        other = Job.of(model, split, SETTINGS.model_copy(update={"target": "true"}))
    else:
        size = 60
    assert len(list(folder.glob("*.parquet"))) == 2
    ShardFolder(folder).begin(other.key, other.at_once, size)
    assert not list(folder.glob("*.parquet"))


def test_what_is_continued_keeps_the_batches_it_began_with(model: nn.Module, split: Split, tmp_path: Path) -> None:
    job, folder = Job.of(model, split, SETTINGS), tmp_path / "shards"
    with pytest.raises(KeyboardInterrupt):
        compute_split(Dying(after=1), job, split, size=40, folder=folder)
    assert ShardFolder(folder).begin(job.key, 7, 40) == 20  # less memory is free than before


def test_a_shard_is_a_parquet_file_that_others_can_read(
    model: nn.Module, split: Split, whole: Explained, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        compute_split(Dying(after=1), Job.of(model, split, SETTINGS), split, size=150, folder=tmp_path / "s")
    (path,) = (tmp_path / "s").glob("*.parquet")
    table = pq.read_table(path)
    assert table.column_names[:5] == ["id", "label", "predicted", "features", "logits"]
    assert str(table.schema.field("heatmap").type) == "fixed_size_list<element: float>[192]"
    assert table["id"].to_pylist() == list(split.ids)
    assert table["predicted"].to_pylist() == whole.predicted.tolist()
    same(load_shard(path, split), whole)


def test_the_device_of_the_settings_is_used_only_where_the_model_may_be_moved() -> None:
    assert engine_of(RuntimeSettings(accelerator="cpu"), move=True).device == torch.device("cpu")  # type: ignore[attr-defined]
    assert engine_of(RuntimeSettings(), move=False).device is None  # type: ignore[attr-defined]
