from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exmap.data.dataset import Attribute
from exmap.data.files import FolderFiles
from exmap.data.table import ImageTable, broken_images, relative_name, task_from_table, with_splits
from exmap.errors import DataError
from exmap.settings import ImageSettings
from trees import class_folders, truncate

TINY = ImageSettings(resize=8, crop=None, random_crop=None, workers=0, cache="never")


def plain(labels: list[int], splits: list[int] | None = None, attributes: tuple[Attribute, ...] = ()) -> ImageTable:
    n = len(labels)
    return ImageTable(
        name="things",
        files=FolderFiles(Path()),
        names=tuple(f"{i:03d}.png" for i in range(n)),
        labels=np.array(labels, dtype=np.int64),
        splits=np.array([-1] * n if splits is None else splits, dtype=np.int64),
        class_names=tuple(f"kind {k}" for k in range(max(labels, default=1) + 1)),
        attributes=attributes,
    )


def on_disk(root: Path, per_split: int = 6) -> ImageTable:
    """Two classes in three splits, as real files."""
    class_folders(root, {f"{split}/{kind}": per_split for split in "abc" for kind in ("x", "y")})
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    return ImageTable(
        name="things",
        files=FolderFiles(root),
        names=tuple(names),
        labels=np.array(["xy".index(name[2]) for name in names]),
        splits=np.array(["abc".index(name[0]) for name in names]),
        class_names=("x", "y"),
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a.jpg", "a.jpg"),
        ("./sub//a.jpg", "sub/a.jpg"),
        ("sub\\a.jpg", "sub/a.jpg"),
        ("/data/birds/sub/a.jpg", "sub/a.jpg"),
        ("...jpg", "...jpg"),
        ("a..b/c.jpg", "a..b/c.jpg"),
    ],
)
def test_a_path_below_the_folder_is_taken_from_there(text: str, name: str) -> None:
    assert relative_name(text, "own.csv", "/data/birds") == name


def test_an_absolute_windows_path_inside_the_folder_is_accepted() -> None:
    assert relative_name("C:\\data\\sub\\a.jpg", "own.csv", "C:\\data") == "sub/a.jpg"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "  ",
            "/etc/passwd",
            "../a.jpg",
            "sub/../../a.jpg",
            "sub/..",
            "..\\a.jpg",
            "\\\\host\\a.jpg",
            "C:\\a.jpg",
        ),
        *("c:/a.jpg", "C:a.jpg", "/data/birds/../cats/a.jpg", "/data/birdsong/a.jpg", "a\0.jpg"),
    ],
)
def test_a_path_that_may_leave_the_folder_is_refused(text: str) -> None:
    for root in ("", "/data/birds"):
        with pytest.raises(DataError) as caught:
            relative_name(text, "own.csv", root)
        assert str(caught.value) == (
            f"an image's path must lie below the data set's folder, got {text!r} in own.csv; write it relative to the "
            "folder"
        )


def test_an_image_that_is_listed_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r"^each image must be listed once, but things lists a.png again; leave one"):
        replace(plain([0, 1]), names=("a.png", "a.png"))


def test_a_table_without_images_is_refused() -> None:
    with pytest.raises(DataError, match=r"^things must list images, found none; give a folder or table"):
        plain([])


def test_a_single_class_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        plain([0, 0, 0])
    assert str(caught.value) == "things must have 2 or more classes, found only 'kind 0'; add another"


def test_attributes_with_a_value_per_image_are_refused_before_their_groups_fill_the_memory() -> None:
    labels = [0, 1] * 200
    each = Attribute("file", np.arange(400), tuple(map(str, range(400))))
    assert len(plain(labels, attributes=(each,)).groups().names) == 800
    with pytest.raises(DataError) as caught:
        plain(labels, attributes=(each, each))
    assert str(caught.value) == (
        "classes and attributes of things must make at most 10,000 groups, got 320,000; name attributes of few values"
    )


def test_groups_are_the_class_crossed_with_every_attribute_and_counted_by_split() -> None:
    first = Attribute("place", np.array([0, 1, 1, 0]), ("land", "water"))
    second = Attribute("sky", np.array([0, 0, 2, 1]), ("blue", "grey", "red"))
    table = plain([0, 0, 1, 1], [0, 0, 0, 2], (first, second))
    assert len(table.groups().names) == 12
    assert table.groups().index.tolist() == [0, 3, 11, 7]
    assert table.counts()["train"].nonzero()[0].tolist() == [0, 3, 11]
    assert table.counts()["val"].sum() == 0
    assert table.counts()["test"].nonzero()[0].tolist() == [7]


def test_taking_rows_takes_everything_that_belongs_to_them() -> None:
    place = Attribute("place", np.array([0, 1, 1, 0]), ("land", "water"))
    table = replace(plain([0, 0, 1, 1], [0, 0, 0, 2], (place,)), masks=("", "b", "", "d"))
    some = table.take(np.array([3, 1]))
    assert (some.names, some.masks, some.labels.tolist()) == (("003.png", "001.png"), ("d", "b"), [1, 0])
    assert (some.splits.tolist(), some.attributes[0].values.tolist()) == ([2, 0], [0, 1])


@pytest.mark.parametrize("seed", range(3))
def test_missing_splits_are_made_class_by_class_in_the_asked_shares(seed: int) -> None:
    labels = [0] * 100 + [1] * 40 + [2] * 10
    made = with_splits(plain(labels), 0.2, 0.3, seed)
    sizes = [[int(np.sum(made.splits[made.labels == k] == s)) for s in range(3)] for k in range(3)]
    assert sizes == [[50, 20, 30], [20, 8, 12], [5, 2, 3]]
    assert np.array_equal(made.splits, with_splits(plain(labels), 0.2, 0.3, seed).splits)
    assert not np.array_equal(made.splits, with_splits(plain(labels), 0.2, 0.3, seed + 1).splits)


def test_made_splits_do_not_depend_on_attributes() -> None:
    labels = [0, 1] * 30
    place = Attribute("place", np.arange(60) % 3, ("a", "b", "c"))
    with_place, without = (with_splits(plain(labels, attributes=a), 0.2, 0.2, 0) for a in ((place,), ()))
    assert np.array_equal(with_place.splits, without.splits)


@pytest.mark.parametrize(("given", "missing"), [((0, 2), 1), ((0, 1), 2)])
def test_a_single_missing_split_is_taken_from_the_training_images_alone(given: tuple[int, int], missing: int) -> None:
    splits = np.repeat(given, 40).tolist()
    made = with_splits(plain([0, 1] * 40, splits), 0.25, 0.25, 0)
    assert np.bincount(made.splits, minlength=3)[missing] == 10
    changed = made.splits != np.array(splits)
    assert set(np.array(splits)[changed]) == {0}
    assert set(made.splits[changed]) == {missing}


def test_splits_that_are_all_there_stay_as_they_are_whatever_the_shares() -> None:
    table = plain([0, 1] * 6, [0] * 4 + [1] * 4 + [2] * 4)
    assert with_splits(table, 0.9, 0.9, 0) is table


def test_a_share_that_is_not_needed_does_not_count() -> None:
    made = with_splits(plain([0, 1] * 20, [0] * 20 + [2] * 20), 0.5, 0.6, 0)
    assert np.bincount(made.splits).tolist() == [10, 10, 20]


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(DataError, match=r"^data.val_share and data.test_share must leave something to train on, got "):
        with_splits(plain([0, 1] * 20), 0.5, 0.5, 0)


def test_a_class_that_is_too_small_to_be_divided_is_named() -> None:
    with pytest.raises(DataError) as caught:
        with_splits(plain([0] * 20 + [1] * 5), 0.2, 0.2, 0)
    assert str(caught.value) == (
        "each class needs at least 2 images in each split, but class 'kind 1' of things has 5 to share out; add images "
        "or leave the class out"
    )


def test_splits_for_some_images_only_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        with_splits(plain([0, 1, 0, 1], [0, 0, -1, 2]), 0.2, 0.2, 0)
    assert str(caught.value) == (
        "either every image of things must have a split or none, but 1 of 4 have none; fill the column, or leave it out"
    )


def test_splits_without_training_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"^things must hold training images, but its splits name none; call them tra"):
        with_splits(plain([0, 1] * 10, [1] * 10 + [2] * 10), 0.2, 0.2, 0)


def test_unreadable_images_stop_a_run_at_once_and_all_are_named(tmp_path: Path) -> None:
    table = on_disk(tmp_path)
    truncate(tmp_path / "a/x/000.png")
    (tmp_path / "b/y/001.png").write_text("no image")
    (tmp_path / "c/x/002.png").unlink()
    with pytest.raises(DataError) as caught:
        task_from_table(table, TINY.model_copy(update={"on_error": "stop"}))
    said = str(caught.value)
    assert said.startswith("3 of 36 images of things cannot be read: a/x/000.png (")
    assert "; b/y/001.png (not an image); c/x/002.png (the file is missing). Mend them" in said
    assert said.endswith("with --set images.on_error=skip")


def test_unreadable_images_can_be_left_out_and_are_listed(tmp_path: Path) -> None:
    table = on_disk(tmp_path)
    for name in ("a/x/000.png", "b/y/001.png", "c/x/002.png"):
        truncate(tmp_path / name)
    task = task_from_table(table, TINY.model_copy(update={"on_error": "skip"}))
    assert list(task.skipped) == ["a/x/000.png", "b/y/001.png", "c/x/002.png"]
    assert [len(split) for split in (task.train, task.val, task.test)] == [11, 11, 11]
    assert "a/x/000.png" not in task.train.ids
    assert task.train.labels.tolist() == [0] * 5 + [1] * 6
    whole = task_from_table(on_disk(tmp_path / "again"), TINY)
    assert np.array_equal(task.train.images.batch(np.arange(11)), whole.train.images.batch(np.arange(1, 12)))
    task.check()


def test_a_class_that_is_gone_with_its_unreadable_images_is_named(tmp_path: Path) -> None:
    table = on_disk(tmp_path, per_split=2)
    truncate(tmp_path / "b/y/001.png")
    task = task_from_table(table, TINY.model_copy(update={"on_error": "skip"}))
    with pytest.raises(DataError, match=r"class 'y' has 1 in split val; add samples or leave the class out$"):
        task.check()


def test_no_more_than_twenty_unreadable_images_are_named() -> None:
    said = broken_images(dict.fromkeys(range(23), "gone"), [f"{i}.png" for i in range(30)])
    assert (len(said), said[0], said[-1]) == (21, "0.png (gone)", "and 3 more")


def test_a_table_without_attributes_has_no_true_groups(tmp_path: Path) -> None:
    task = task_from_table(on_disk(tmp_path, per_split=2), TINY)
    with pytest.raises(DataError, match="no true groups"):
        task.train.true_groups()
