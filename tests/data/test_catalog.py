from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exmap.data import Task, build_task, dataset_names
from exmap.data.catalog import entry, read_images
from exmap.errors import DataError, SettingsError
from exmap.registry import DATASETS
from exmap.settings import DataSettings, ImageSettings, load_settings, preset_names
from trees import celeba_tree, class_folders, own_table, shards, urbancars_tree, waterbirds_tree

TINY = ImageSettings(resize=8, crop=None, random_crop=None, workers=0, cache="never")
IN_FILES = sorted(name for name, one in DATASETS.items() if one.images is not None)
EVEN = dict.fromkeys(range(3), (2,) * 4)


def settings_for(name: str, root: Path, request: pytest.FixtureRequest) -> DataSettings:
    """Make a small set of each kind, or take the real IDX files."""
    if name.startswith("waterbirds"):
        waterbirds_tree(root, EVEN, masks=True)
    elif name == "celeba":
        celeba_tree(root, EVEN)
    elif name.startswith("urbancars"):
        urbancars_tree(root, dict.fromkeys(range(3), (1,) * 8))
    elif name == "table":
        own_table(root, [[f"{i:02d}.png", i % 2, i % 3] for i in range(24)], ("path", "label", "place"))
        return DataSettings(name=name, dir=root, table=Path("own.csv"), group_columns=("place",))
    elif name == "folder":
        class_folders(root, {"cat": 12, "dog": 12})
    elif name == "huggingface":
        datasets = pytest.importorskip("datasets", reason="needs exmap[huggingface]")
        files = [str(path) for path in sorted(class_folders(root / "images", {"all": 24}).rglob("*.png"))]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        datasets.disable_progress_bars()
        made = datasets.Dataset.from_dict({"image": files, "label": [0, 1] * 12}, features=features)
        made.save_to_disk(root / "saved")
        return DataSettings(name=name, dir=root / "saved")
    elif name == "webdataset":
        return DataSettings(name=name, dir=shards(root / "shards", 24).parent)
    elif "fashion-mnist" in DATASETS[name].idx:
        return DataSettings(name=name, dir=request.getfixturevalue("idx_dir"))
    elif DATASETS[name].idx:
        return DataSettings(name=name, dir=request.getfixturevalue("mnist_dir"))
    return DataSettings(name=name, dir=root)


@pytest.mark.parametrize("name", dataset_names())
def test_every_data_set_keeps_the_contract(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    settings = settings_for(name, tmp_path, request)
    task: Task = build_task(settings, TINY)
    task.check()
    own = name in ("folder", "table", "huggingface", "webdataset")
    assert own or task.name == name
    assert task.digests
    ids: set[str] = set()
    for split, title in ((task.train, "train"), (task.val, "val"), (task.test, "test")):
        assert split.name == title
        assert split.class_names == task.train.class_names
        assert split.labels.dtype == np.int64
        assert ids.isdisjoint(split.ids)
        ids |= set(split.ids)
        rows = np.array([len(split) - 1, 0])
        batch, shown = split.images.batch(rows), split.images.pixels(rows)
        assert batch.shape == shown.shape == (2, *split.images.shape)
        assert batch.dtype == shown.dtype == np.float32
        assert np.isfinite(batch).all()
        assert shown.min() >= 0
        assert shown.max() <= 1
        if name in ("folder", "huggingface", "webdataset"):
            assert split.truth is None
            continue
        groups = split.true_groups()
        assert groups.names == task.train.true_groups().names
        assert groups.coordinates is not None
        assert np.array_equal(groups.coordinates[groups.index, 0], split.labels)
        assert len(groups.attributes) == groups.coordinates.shape[1] - 1
    if counts := DATASETS[name].counts:
        assert {len(row) for row in counts.values()} == {len(task.train.true_groups().names)}


@pytest.mark.parametrize("name", dataset_names())
def test_every_entry_says_what_it_is_and_is_read_in_one_way(name: str) -> None:
    one = entry(name)
    assert one.about
    assert (one.arrays is None) != (one.images is None)
    assert name in preset_names()
    assert load_settings(name).data.name == name


def test_the_catalogue_is_sorted() -> None:
    assert dataset_names() == sorted(DATASETS)


def test_the_variants_with_one_shortcut_count_the_same_images() -> None:
    both = DATASETS["urbancars"].counts
    assert both is not None
    for name in ("urbancars-bg", "urbancars-coobj"):
        counts = DATASETS[name].counts
        assert counts is not None
        assert {split: sum(row) for split, row in counts.items()} == {split: sum(row) for split, row in both.items()}
        assert counts["train"] == (3800, 200, 200, 3800)


def test_digits_are_built_with_the_asked_correlation() -> None:
    task = build_task(DataSettings(name="digits", correlation=1.0))
    assert (task.name, len(task.train), len(task.val), len(task.test)) == ("digits", 897, 450, 450)
    groups = task.train.true_groups()
    assert np.flatnonzero(groups.counts()).tolist() == [1, 2]  # class 0 green, class 1 red


def test_a_correlation_below_that_of_chance_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        build_task(DataSettings(name="digits", correlation=0.4))
    assert str(caught.value) == (
        "correlation must lie in [0.5, 1] for a shortcut of 2 values, got 0.4; 0.5 plants none"
    )


def test_an_unknown_data_set_is_answered_with_the_closest_one() -> None:
    with pytest.raises(SettingsError) as caught:
        build_task(DataSettings(name="cmist"))
    assert str(caught.value) == (
        f"unknown data set 'cmist' (did you mean 'cmnist'?); choose one of: {', '.join(dataset_names())}"
    )


@pytest.mark.parametrize("name", sorted(set(dataset_names()) - {"digits", "folder", "table", "huggingface"}))
def test_a_data_set_without_a_folder_says_how_to_name_one(name: str) -> None:
    with pytest.raises(DataError) as caught:
        build_task(DataSettings(name=name))
    assert str(caught.value) == (f"{name} needs the folder of its files, but none was given; name it with --data-dir")


def test_only_data_sets_in_files_have_a_table() -> None:
    with pytest.raises(DataError, match="digits does not lie in image files"):
        read_images(DataSettings(name="digits"))
    assert "digits" not in IN_FILES
