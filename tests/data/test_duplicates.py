from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from exmap.data import Task, build_task
from exmap.settings import DataSettings, ImageSettings
from trees import class_folders

TINY = ImageSettings(resize=6, crop=None, random_crop=None, workers=0, cache="never", normalize="none")


def task_of(root: Path, **changes: object) -> Task:
    return build_task(
        DataSettings(name="folder", dir=root, **changes), TINY.model_copy(update={"cache_dir": root / ".c"})
    )


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return class_folders(tmp_path, {f"{split}/{kind}": 6 for split in ("train", "val", "test") for kind in "ab"})


def test_images_that_lie_there_once_are_not_spoken_of(three: Path) -> None:
    task = task_of(three)
    assert task.notes == ()
    assert "copies" not in task.reading


def test_a_split_that_is_a_copy_of_another_is_said(three: Path) -> None:
    shutil.rmtree(three / "val")
    shutil.copytree(three / "train", three / "val")
    for _ in range(2):  # once opened, and once remembered
        task = task_of(three)
        assert task.reading["copies"] == 12
        assert task.notes == (
            "12 of 12 images of split val are copies of images of split train, byte for byte (val/a/000.png = "
            "train/a/000.png, val/a/001.png = train/a/001.png, val/a/002.png = train/a/002.png, val/a/003.png = "
            "train/a/003.png, val/a/004.png = train/a/004.png and 7 more): what is measured on them says little of "
            "other images.",
        )


def test_one_file_under_two_labels_is_named(three: Path) -> None:
    shutil.copy(three / "train" / "a" / "000.png", three / "train" / "b" / "again.png")
    assert task_of(three).notes == (
        "1 image has several labels, byte for byte the same file: train/a/000.png (a) = train/b/again.png (b); correct "
        "the labels, or leave such images out.",
    )


def test_copies_within_a_class_are_counted(three: Path) -> None:
    for name in ("x.png", "y.png"):
        shutil.copy(three / "test" / "a" / "000.png", three / "test" / "a" / name)
    assert task_of(three).notes == (
        "2 images are copies of others of the same class and split, byte for byte (test/a/x.png = test/a/000.png, "
        "test/a/y.png = test/a/000.png).",
    )


def test_images_that_cannot_be_read_are_left_out_named_and_no_copies(three: Path) -> None:
    for name in ("x.png", "y.png"):
        (three / "test" / "a" / name).write_bytes(b"no image")
    task = task_of(three)
    assert task.notes == (
        "2 of 38 images cannot be read and are left out: test/a/x.png (not an image); test/a/y.png (not an image).",
    )
    assert set(task.skipped) == {"test/a/x.png", "test/a/y.png"}


def test_one_set_has_no_splits_to_speak_of(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pets", {"a": 12, "b": 12})
    shutil.copy(root / "a" / "000.png", root / "b" / "x.png")
    shutil.copy(root / "a" / "000.png", root / "a" / "x.png")
    notes = task_of(root, one_set=True).notes
    assert [note.split(",")[0] for note in notes] == [
        "1 image has several labels",
        "1 image is a copy of others of the same class and split",
    ]
