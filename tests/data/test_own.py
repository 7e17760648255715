from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from exmap.data import build_task
from exmap.data.huggingface import SavedFiles, saved_dataset
from exmap.data.own import image_folder, image_table
from exmap.data.table import ImageTable
from exmap.errors import DataError
from exmap.settings import DataSettings, ImageSettings
from trees import class_folders, own_table, picture

TINY = ImageSettings(resize=6, crop=None, random_crop=None, workers=0, cache="never", normalize="none")


# --- a table


def rows(n: int = 30) -> list[list[object]]:
    return [[f"{i:03d}.png", ("no", "yes")[i % 2], ("train", "val", "test")[i // 2 % 3], i % 3] for i in range(n)]


HEAD = ("path", "label", "split", "place")


def table(root: Path, **changes: Any) -> ImageTable:
    return image_table(DataSettings(name="table", **{"dir": root, "table": Path("own.csv"), **changes}))


def refused(root: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        table(root, **changes)
    return str(caught.value)


def test_a_table_becomes_a_task(tmp_path: Path) -> None:
    own_table(tmp_path, rows(), HEAD)
    settings = DataSettings(name="table", dir=tmp_path, table=Path("own.csv"), group_columns=("place",))
    task = build_task(settings, TINY)
    assert (task.name, task.train.class_names) == ("own", ("no", "yes"))
    assert [len(split) for split in (task.train, task.val, task.test)] == [10, 10, 10]
    assert task.train.metadata == {}
    assert task.train.ids[:3] == ("000.png", "001.png", "006.png")
    groups = task.train.true_groups()
    assert groups.names == tuple(f"{label}, place {place}" for label in ("no", "yes") for place in range(3))
    assert [groups.names[i] for i in groups.index[:3]] == ["no, place 0", "yes, place 1", "no, place 0"]
    assert set(task.digests) == {"own.csv", "images"}


def test_paths_start_where_the_table_lies_unless_a_folder_is_named(tmp_path: Path) -> None:
    own_table(tmp_path / "inner", rows(), HEAD)
    here = image_table(DataSettings(name="table", table=tmp_path / "inner" / "own.csv"))
    assert here.files.stamp("000.png")[0] > 0
    own_table(tmp_path, [[f"inner/{name}", *rest] for name, *rest in rows()], HEAD)
    assert table(tmp_path).files.stamp("inner/000.png")[0] > 0


def test_a_table_must_be_named_and_be_there(tmp_path: Path) -> None:
    assert refused(tmp_path, table=None) == (
        "your own images need their table, and none was given; name it with --set data.table=FILE"
    )
    assert refused(tmp_path) == f"the table {tmp_path / 'own.csv'} does not exist; give a CSV or Parquet file"


@pytest.mark.parametrize(
    ("changes", "column", "hint"),
    [
        ({"image_column": "paht"}, "paht", "path"),
        ({"label_column": "lable"}, "lable", "label"),
        ({"split_column": "spilt"}, "spilt", "split"),
        ({"group_columns": ("places",)}, "places", "place"),
    ],
)
def test_a_missing_column_is_answered_with_the_closest_one(
    tmp_path: Path, changes: dict[str, Any], column: str, hint: str
) -> None:
    path = own_table(tmp_path, rows(), HEAD)
    assert refused(tmp_path, **changes) == (
        f"unknown column {column!r} (did you mean {hint!r}?); choose one of: label, path, place, split; the table is "
        f"{path}"
    )


def test_columns_may_have_any_name(tmp_path: Path) -> None:
    own_table(tmp_path, rows(), ("Bild, klein", "Klasse", "Teil", "Ort"))
    names = {"image_column": "Bild, klein", "label_column": "Klasse", "split_column": "Teil", "group_columns": ("Ort",)}
    found = table(tmp_path, **names)
    assert np.bincount(found.splits).tolist() == [10, 10, 10]
    assert found.attributes[0].value_names == ("Ort 0", "Ort 1", "Ort 2")


@pytest.mark.parametrize(("word", "split"), [("Training", 0), ("VALID", 1), ("dev", 1), ("Testing", 2), ("2", 2)])
def test_splits_have_their_usual_names(tmp_path: Path, word: str, split: int) -> None:
    given = rows()
    for row in given:
        row[2] = word if row[2] == ("train", "val", "test")[split] else row[2]
    own_table(tmp_path, given, HEAD)
    assert np.bincount(table(tmp_path).splits).tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("word", "hint"),
    [("tset", " (did you mean 'test'?)"), ("trian", " (did you mean 'train'?)"), ("7", "")],
)
def test_an_unknown_split_is_refused_with_its_row(tmp_path: Path, word: str, hint: str) -> None:
    given = rows()
    given[3][2] = word
    path = own_table(tmp_path, given, HEAD)
    assert (
        refused(tmp_path) == f"a split must be train, val or test (or 0, 1, 2), got {word!r}{hint} in row 5 of {path}"
    )


def test_an_empty_split_is_refused_unless_all_are(tmp_path: Path) -> None:
    given = rows()
    given[3][2] = ""
    own_table(tmp_path, given, HEAD)
    assert refused(tmp_path) == (
        "either every image of own must have a split or none, but 1 of 30 have none; fill the column, or leave it out"
    )
    own_table(tmp_path, [[*row[:2], "", row[3]] for row in given], HEAD)
    assert np.bincount(table(tmp_path).splits).tolist() == [18, 6, 6]


@pytest.mark.parametrize(("place", "name"), [(1, "label"), (3, "place")])
def test_an_empty_value_is_refused_with_its_row(tmp_path: Path, place: int, name: str) -> None:
    given = rows()
    given[4][place] = " "
    path = own_table(tmp_path, given, HEAD)
    assert refused(tmp_path, group_columns=("place",)) == (
        f"column {name} of {path} must have a value for every image, but row 6 is empty"
    )


def test_an_image_that_comes_twice_is_refused_however_it_is_written(tmp_path: Path) -> None:
    for again in ("000.png", "./000.png", str(tmp_path / "000.png")):
        own_table(tmp_path, [*rows(), [again, "no", "train", 1]], HEAD)
        assert refused(tmp_path) == "each image must be listed once, but own lists 000.png again; leave one out"


@pytest.mark.parametrize("bad", ["../a.png", "/etc/passwd", "..\\a.png", "C:\\a.png", "D:/a.png", "", "x\0.png"])
def test_an_image_outside_the_folder_is_refused(tmp_path: Path, bad: str) -> None:
    path = own_table(tmp_path, rows(), HEAD)
    path.write_text(path.read_text().replace("005.png", bad))
    assert refused(tmp_path) == (
        f"an image's path must lie below the data set's folder, got {bad!r} in {path}; write it relative to the folder"
    )


@pytest.mark.parametrize("relative", [False, True])
def test_absolute_paths_inside_the_folder_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    own_table(tmp_path / "data", [[str(tmp_path / "data" / str(row[0])), *row[1:]] for row in rows()], HEAD)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    found = table(Path("../data") if relative else tmp_path / "data")
    assert found.names[:2] == ("000.png", "001.png")


def test_a_table_with_a_head_only_lists_no_images(tmp_path: Path) -> None:
    own_table(tmp_path, [], HEAD)
    assert refused(tmp_path) == "own must list images, found none; give a folder or table that holds some"


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_bytes(bytes(range(256)))
    assert refused(tmp_path).startswith(f"{tmp_path / 'own.csv'} must be a CSV or Parquet file, but it cannot be read")


def test_a_single_label_is_refused(tmp_path: Path) -> None:
    own_table(tmp_path, [[f"{i}.png", "x"] for i in range(20)])
    assert refused(tmp_path) == "own must have 2 or more classes, found only 'x'; add another"


def test_labels_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    own_table(tmp_path, [[f"{i}.png", (10, 9, 100)[i % 3]] for i in range(30)])
    assert table(tmp_path).class_names == ("9", "10", "100")
    own_table(tmp_path, [[f"{i}.png", ("10", "9", "x")[i % 3]] for i in range(30)])
    assert table(tmp_path).class_names == ("10", "9", "x")


def test_group_columns_are_for_evaluation_only(tmp_path: Path) -> None:
    given = [[*row[:2], i % 3, i % 5] for i, row in enumerate(rows(60))]
    own_table(tmp_path, given, ("path", "label", "place", "sky"))
    tables = [table(tmp_path, group_columns=columns) for columns in ((), ("place",), ("sky", "place"))]
    for other in tables[1:]:
        assert other.names == tables[0].names
        assert other.class_names == tables[0].class_names
        assert np.array_equal(other.labels, tables[0].labels)
        assert np.array_equal(other.splits, tables[0].splits)
    assert [len(other.groups().names) for other in tables] == [2, 6, 30]
    assert tables[2].groups().attributes == ("sky", "place")


def test_a_run_without_group_columns_has_no_true_groups(tmp_path: Path) -> None:
    own_table(tmp_path, rows(), HEAD)
    task = build_task(DataSettings(name="table", dir=tmp_path, table=Path("own.csv")), TINY)
    with pytest.raises(DataError, match="evaluate by class, or name its group columns"):
        task.test.true_groups()


def test_made_splits_are_stratified_and_follow_their_seed(tmp_path: Path) -> None:
    own_table(tmp_path, [[f"{i:03d}.png", int(i % 4 == 0)] for i in range(80)])
    first, same, other = (table(tmp_path, split_seed=seed) for seed in (0, 0, 1))
    assert [np.bincount(first.splits[first.labels == k]).tolist() for k in (0, 1)] == [[36, 12, 12], [12, 4, 4]]
    assert np.array_equal(first.splits, same.splits)
    assert not np.array_equal(first.splits, other.splits)


def test_validation_images_are_taken_from_training_ones_where_only_they_lack(tmp_path: Path) -> None:
    own_table(tmp_path, [[*row[:2], "test" if i < 10 else "train"] for i, row in enumerate(rows(50))], HEAD[:3])
    found = table(tmp_path)
    assert found.splits[:10].tolist() == [2] * 10
    assert np.bincount(found.splits).tolist() == [32, 8, 10]


def test_a_class_that_one_split_lacks_is_named(tmp_path: Path) -> None:
    given = [row for row in rows(60) if row[1:3] != ["yes", "val"]]
    own_table(tmp_path, given, HEAD)
    with pytest.raises(DataError) as caught:
        build_task(DataSettings(name="table", dir=tmp_path, table=Path("own.csv")), TINY)
    assert str(caught.value) == (
        "each class needs at least 2 samples in each split, but class 'yes' has 0 in split val; add samples or leave "
        "the class out"
    )


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (pa.array([2, 10] * 10), ("2", "10")),
        (pa.array([2.0, 10.0] * 10), ("2", "10")),
        (pa.array([True, False] * 10), ("false", "true")),
        (pa.array(["b", "a"] * 10).dictionary_encode(), ("a", "b")),
        (pa.array([2, 10] * 10, pa.int8()).dictionary_encode(), ("2", "10")),
    ],
)
def test_labels_of_any_plain_kind_are_read_from_parquet(tmp_path: Path, labels: pa.Array, names: tuple[str]) -> None:
    pq.write_table(pa.table({"path": [f"{i}.png" for i in range(20)], "label": labels}), tmp_path / "own.parquet")
    found = table(tmp_path, table=Path("own.parquet"))
    assert found.class_names == names
    assert [found.class_names[i] for i in found.labels[:2]] == [
        str(v).lower().removesuffix(".0") for v in labels[:2].to_pylist()
    ]


@pytest.mark.parametrize("labels", [pa.array([1, None] * 10), pa.array([1.0, float("nan")] * 10), pa.nulls(20)])
def test_labels_that_are_missing_in_parquet_are_refused(tmp_path: Path, labels: pa.Array) -> None:
    pq.write_table(pa.table({"path": [f"{i}.png" for i in range(20)], "label": labels}), tmp_path / "own.parquet")
    said = refused(tmp_path, table=Path("own.parquet"))
    assert said.startswith(f"column label of {tmp_path / 'own.parquet'} must have a value for every image, but row ")


def test_labels_in_the_spellings_of_two_tools_are_unified_and_said(tmp_path: Path) -> None:
    own_table(tmp_path, [[f"{i:02d}.png", ("True", "true", "FALSE", "False")[i % 4]] for i in range(48)])
    task = build_task(DataSettings(name="table", dir=tmp_path, table=Path("own.csv")), TINY)
    assert task.train.class_names == ("false", "true")
    assert task.notes[0].startswith("Spellings in column label of own.csv that mean the same are taken for one: ")
    own_table(tmp_path, [[f"{i:02d}.png", ("Cat", "cat", "dog")[i % 3]] for i in range(48)])
    assert "'Cat' and 'cat' differ only in case" in refused(tmp_path)


def test_numbers_as_another_program_writes_them_are_the_same_classes(tmp_path: Path) -> None:
    head = ("path", "label", "split", "place")
    given = [[f"{i:02d}.png", f"{i % 2 * 10}.0", f"{i // 2 % 3}.0", ("1", "1.0")[i % 2]] for i in range(48)]
    own_table(tmp_path, given, head)
    found = table(tmp_path, group_columns=("place",))
    assert (found.class_names, np.bincount(found.splits).tolist()) == (("0", "10"), [16, 16, 16])
    assert found.attributes[0].value_names == ("place 1",)
    assert table(tmp_path, classes=("10", "0")).labels[:2].tolist() == [1, 0]


def test_a_table_may_be_separated_by_tabs(tmp_path: Path) -> None:
    path = own_table(tmp_path, rows(), HEAD)
    path.with_suffix(".tsv").write_text(path.read_text().replace(",", "\t"))
    assert table(tmp_path, table=Path("own.tsv")).names == table(tmp_path).names


def test_columns_that_nobody_asks_for_may_hold_anything(tmp_path: Path) -> None:
    made = pa.table({"path": [f"{i}.png" for i in range(20)], "label": [0, 1] * 10, "box": [[1, 2]] * 20})
    pq.write_table(made, tmp_path / "own.parquet")
    assert table(tmp_path, table=Path("own.parquet")).metadata == {}
    assert "column box of " in refused(tmp_path, table=Path("own.parquet"), group_columns=("box",))


def test_other_columns_are_metadata_and_group_columns_are_not(tmp_path: Path) -> None:
    given = [[*row, f"camera {i % 4}", i] for i, row in enumerate(rows())]
    own_table(tmp_path, given, (*HEAD, "camera", "number"))
    task = build_task(DataSettings(name="table", dir=tmp_path, table=Path("own.csv"), group_columns=("place",)), TINY)
    assert task.val.metadata == {
        "camera": [f"camera {i % 4}" for i in range(30) if i // 2 % 3 == 1],
        "number": [str(i) for i in range(30) if i // 2 % 3 == 1],
    }
    assert task.val.rows(np.array([3, 0])).metadata["number"] == ["9", "2"]


# --- a folder per class


def folder(root: Path | None, **changes: Any) -> ImageTable:
    return image_folder(DataSettings(name="folder", dir=root, **changes))


def folder_refused(root: Path | None) -> str:
    with pytest.raises(DataError) as caught:
        folder(root)
    return str(caught.value)


def test_a_folder_per_class_is_divided_in_three(tmp_path: Path) -> None:
    found = folder(class_folders(tmp_path / "pets", {"dog": 10, "cat": 20}))
    assert (found.name, found.class_names, found.names[0]) == ("pets", ("cat", "dog"), "cat/000.png")
    assert [np.bincount(found.splits[found.labels == k]).tolist() for k in (0, 1)] == [[12, 4, 4], [6, 2, 2]]
    task = build_task(DataSettings(name="folder", dir=tmp_path / "pets"), TINY)
    assert len(task.train) == 18


def test_a_folder_per_split_and_class_is_read_as_it_is(tmp_path: Path) -> None:
    sizes = {f"{split}/{kind}": n for n, split in enumerate(("Train", "validation", "TEST"), 3) for kind in "ab"}
    found = folder(class_folders(tmp_path, sizes))
    assert np.bincount(found.splits).tolist() == [6, 8, 10]
    assert found.class_names == ("a", "b")


def test_training_and_test_folders_alone_give_validation_images_too(tmp_path: Path) -> None:
    found = folder(class_folders(tmp_path, {f"{split}/{kind}": 10 for split in ("train", "test") for kind in "ab"}))
    assert np.bincount(found.splits).tolist() == [16, 4, 20]
    assert {found.names[i].split("/")[0] for i in np.flatnonzero(found.splits == 1)} == {"train"}


@pytest.mark.parametrize("names", [("0", "1"), ("0", "1", "2"), ("0", "1", "10", "2", "3")])
def test_folders_are_classes_in_the_order_in_which_other_libraries_read_them(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    found = folder(class_folders(tmp_path, dict.fromkeys(names, 6)))
    assert found.class_names == names == tuple(ImageFolder(tmp_path).classes)
    assert found.notes == ((
        f"The classes of the folders of {tmp_path.name} are in the order of their names as text, as other libraries "
        "read folders (0, 1, 10, 2, 3); data.classes gives another.",
    ) if "10" in names else ())  # fmt: skip
    assert folder(tmp_path, classes=tuple(sorted(names, key=int))).class_names == tuple(sorted(names, key=int))


def test_hidden_files_and_folders_are_passed_over_and_listed(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 6, "dog": 6})
    before = folder(tmp_path).names
    for name in (".thumbs/a.png", "cat/.a.png", "cat/._000.png", "cat/.thumbs/a.png", "__MACOSX/cat/b.png"):
        picture(tmp_path / name)
    (tmp_path / "cat" / "Thumbs.db").write_text("")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "dog" / "empty.png").write_bytes(b"")
    picture(tmp_path / "loose.png")
    found = folder(tmp_path)
    assert found.names == before
    assert found.ignored == {
        "hidden folders": [".thumbs", "cat/.thumbs"],
        "folders of the system": ["__MACOSX"],
        "images outside of a class's folder": ["loose.png"],
        "files that are no images": ["notes.txt"],
        "files of the system": ["cat/._000.png", "cat/Thumbs.db"],
        "hidden files": ["cat/.a.png"],
        "empty files": ["dog/empty.png"],
    }
    assert build_task(DataSettings(name="folder", dir=tmp_path), TINY).ignored == found.ignored


def test_the_name_of_a_class_may_start_with_a_line(tmp_path: Path) -> None:
    assert folder(class_folders(tmp_path, {"_other": 6, "cat": 6})).class_names == ("_other", "cat")


def test_nested_folders_and_suffixes_in_capitals_are_found(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 6, "dog": 6})
    picture(tmp_path / "cat" / "2020" / "may" / "A.JPG")
    picture(tmp_path / "cat" / "B.Jpeg")
    assert {"cat/2020/may/A.JPG", "cat/B.Jpeg"} <= set(folder(tmp_path).names)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    for place in (None, tmp_path / "no-such", tmp_path / "a-file"):
        assert folder_refused(place) == (
            f"a folder per class is needed, and {place} is no folder; name it with --data-dir"
        )


def test_an_empty_folder_and_one_with_loose_images_are_refused(tmp_path: Path) -> None:
    said = f"{tmp_path} must hold a folder of images per class, found no folder in it"
    assert folder_refused(tmp_path) == said
    picture(tmp_path / "a.png")
    picture(tmp_path / ".b.png")
    assert folder_refused(tmp_path) == (
        f"{tmp_path} must hold a folder of images per class, but found 1 without labels: sort them into folders, or "
        "list them in a table with the columns path and label; where there are none, the classifier's own predictions "
        "in that table still show what it looks at, but not how often it is wrong"
    )


def test_a_single_class_with_images_is_refused_with_the_folder_without(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 6, "dog": 0})
    assert folder_refused(tmp_path) == (
        "each class's folder must hold images (.bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp), found "
        f"none in {tmp_path / 'dog'}"
    )


def test_folders_without_images_are_passed_over_and_said(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 6, "dog": 6, "none": 0})
    (tmp_path / "none" / "notes.txt").write_text("")
    found = folder(tmp_path)
    assert found.class_names == ("cat", "dog")
    assert found.notes == ("The folder none is passed over: it holds no images.",)
    assert found.ignored == {"files that are no images": ["none/notes.txt"], "folders without images": ["none"]}
    assert folder(tmp_path, classes=("none", "cat", "dog")).class_names == ("none", "cat", "dog")


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    class_folders(tmp_path / "pets", {"cat": 6})
    assert folder_refused(tmp_path / "pets") == "pets must have 2 or more classes, found only 'cat'; add another"


def test_splits_beside_classes_are_refused(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train/cat": 2, "train/dog": 2, "cat": 2})
    assert folder_refused(tmp_path) == (
        f"{tmp_path} must hold a folder per split or a folder per class, but train is a split's name and cat is not; "
        "move one of them"
    )


def test_a_set_beside_splits_is_offered_by_its_name(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train/cat": 2, "train/dog": 2, "holdout/cat": 2, "holdout/dog": 2})
    assert folder_refused(tmp_path) == (
        f"{tmp_path} must hold a folder per split or a folder per class, but train is a split's name and holdout is "
        f"not; move one of them, or name one set of images: {tmp_path / 'holdout'}"
    )


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    assert folder(class_folders(tmp_path, {"train": 6, "bus": 6})).class_names == ("bus", "train")


def test_a_folder_without_images_may_lie_beside_splits(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train/cat": 6, "train/dog": 6, "models": 0})
    found = folder(tmp_path)
    assert (found.class_names, found.ignored) == (("cat", "dog"), {"folders without images": ["models"]})


def test_a_split_without_classes_is_left_out_for_its_images_have_no_labels(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train/cat": 9, "train/dog": 9, "test": 4})
    found = folder(tmp_path)
    assert np.bincount(found.splits).tolist() == [10, 4, 4]
    assert found.notes == (
        "The split test is left out: it holds no folder per class, so that its images have no labels.",
    )
    assert found.ignored["splits without a folder per class"] == ["test"]


def test_a_class_that_one_split_folder_lacks_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train/cat": 3, "train/dog": 3, "val/cat": 3, "test/cat": 3, "test/dog": 3})
    with pytest.raises(DataError, match=r"class 'dog' has 0 in split val; add samples or leave the class out$"):
        build_task(DataSettings(name="folder", dir=tmp_path), TINY)


# --- a Hugging Face data set


@pytest.fixture
def hf() -> Iterator[Any]:
    datasets = pytest.importorskip("datasets", reason="needs exmap[huggingface]")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def grey(value: int) -> Image.Image:
    return Image.fromarray(np.full((6, 6, 3), value, dtype=np.uint8))


def saved(hf: Any, n: int = 24, image: str = "image", **columns: Any) -> Any:
    """Make a data set whose images have the grey value 5 * row, and whose labels are dog, cat, dog, and so on."""
    made = hf.Dataset.from_dict({image: [grey(5 * i) for i in range(n)]}, features=hf.Features({image: hf.Image()}))
    made = made.add_column("label", [i % 2 for i in range(n)], feature=hf.ClassLabel(names=["dog", "cat"]))
    for name, values in columns.items():
        made = made.add_column(name, values)
    return made


def read(root: Path, **changes: Any) -> ImageTable:
    return saved_dataset(DataSettings(name="huggingface", dir=root, **changes))


def saved_refused(root: Path | None, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        saved_dataset(DataSettings(name="huggingface", dir=root, **changes))
    return str(caught.value)


def test_a_saved_data_set_of_three_splits_becomes_a_task(hf: Any, tmp_path: Path) -> None:
    parts = {"train": saved(hf, 12), "validation": saved(hf, 6), "test": saved(hf, 4)}
    hf.DatasetDict(parts).save_to_disk(tmp_path / "pets")
    task = build_task(DataSettings(name="huggingface", dir=tmp_path / "pets"), TINY)
    assert (task.name, task.train.class_names) == ("pets", ("dog", "cat"))  # in the order of the ClassLabel
    assert [len(split) for split in (task.train, task.val, task.test)] == [12, 6, 4]
    assert task.train.labels.tolist() == [0, 1] * 6
    assert task.val.ids[:2] == ("validation/000000", "validation/000001")
    values = 255 * task.train.images.pixels(np.arange(12)).mean(axis=(1, 2, 3))
    assert np.allclose(values, 5 * np.arange(12), atol=0.01)


def test_a_saved_data_set_without_splits_is_divided(hf: Any, tmp_path: Path) -> None:
    saved(hf, 40, place=["a", "b"] * 20).save_to_disk(tmp_path / "pets")
    found = read(tmp_path / "pets", group_columns=("place",))
    assert [np.bincount(found.splits[found.labels == k]).tolist() for k in (0, 1)] == [[12, 4, 4]] * 2
    assert found.groups().names == ("dog, place a", "dog, place b", "cat, place a", "cat, place b")
    assert np.array_equal(found.splits, read(tmp_path / "pets").splits)


def test_the_columns_of_a_saved_data_set_may_have_any_name(hf: Any, tmp_path: Path) -> None:
    saved(hf, 24, image="picture/small", kind=[3, 11] * 12, teil=["train", "val", "test", "train"] * 6).save_to_disk(
        tmp_path
    )
    found = read(tmp_path, image_column="picture/small", label_column="kind", split_column="teil")
    assert found.class_names == ("3", "11")
    assert np.bincount(found.splits).tolist() == [12, 6, 6]
    assert found.files.read(found.names[5]) == found.files.read("all/000005")


def test_two_image_columns_of_one_data_set_are_told_apart_in_the_cache(hf: Any, tmp_path: Path) -> None:
    made = saved(hf, 24)
    dark = hf.Dataset.from_dict({"dark": [grey(1)] * 24}, features=hf.Features({"dark": hf.Image()}))
    made = hf.concatenate_datasets([made, dark], axis=1)
    made.save_to_disk(tmp_path / "pets")
    kept = TINY.model_copy(update={"cache": "always", "cache_dir": tmp_path / "cache"})
    first, second = (
        build_task(DataSettings(name="huggingface", dir=tmp_path / "pets", image_column=column), kept)
        for column in ("image", "dark")
    )
    assert first.test.images.pixels(np.arange(4)).max() > 0.1
    assert second.test.images.pixels(np.arange(4)).max() < 0.1


def test_a_split_column_of_names_is_read_by_its_names(hf: Any, tmp_path: Path) -> None:
    made = saved(hf, 24)
    words = hf.ClassLabel(names=["test", "train", "val"])
    made.add_column("split", [0, 0, 1, 1, 2, 2] * 4, feature=words).save_to_disk(tmp_path)
    assert read(tmp_path).splits[:6].tolist() == [2, 2, 0, 0, 1, 1]


def test_missing_splits_of_a_saved_data_set_are_seen(hf: Any, tmp_path: Path) -> None:
    saved(hf, 24, split=["train", "val", "test", None] * 6).save_to_disk(tmp_path / "pets")
    assert saved_refused(tmp_path / "pets").startswith("either every image of pets must have a split or none, but 6 of")


def test_an_unknown_split_of_a_saved_data_set_is_no_training_images(hf: Any, tmp_path: Path) -> None:
    hf.DatasetDict({"train": saved(hf, 6), "trial": saved(hf, 6)}).save_to_disk(tmp_path)
    assert saved_refused(tmp_path).startswith("each class needs at least 2 images in each split, but class 'dog' of ")
    hf.DatasetDict({"one": saved(hf, 6), "two": saved(hf, 6)}).save_to_disk(tmp_path / "b")
    assert saved_refused(tmp_path / "b") == (
        f"{tmp_path / 'b'} must have splits that are called train, validation and test, found 'one', 'two'; name one "
        "of them with --set data.part=NAME and data.one_set=true, or rename them"
    )


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
def test_a_missing_label_of_a_saved_data_set_is_refused(hf: Any, tmp_path: Path, missing: Any) -> None:
    value: Any = "a" if missing == "" else 1.0
    saved(hf, 24, kind=[value] * 5 + [missing] + [value] * 18).save_to_disk(tmp_path)
    assert saved_refused(tmp_path, label_column="kind") == (
        f"column kind of {tmp_path} (all) must have a value for every image, but row 5 is empty"
    )


def test_an_unlabelled_image_is_not_a_class_of_its_own(hf: Any, tmp_path: Path) -> None:
    kind = hf.ClassLabel(names=["dog", "cat"])
    saved(hf, 24).add_column("kind", [0, 1, -1] * 8, feature=kind).save_to_disk(tmp_path)
    found = read(tmp_path, label_column="kind")
    assert (found.class_names, found.names[1:3]) == (("dog", "cat"), ("all/000001", "all/000003"))
    assert found.files.read("all/000003") == read(tmp_path).files.read("all/000003")
    assert found.notes == ("8 of 24 images of all have no label (-1) and are left out.",)


def test_a_column_of_lists_is_no_label(hf: Any, tmp_path: Path) -> None:
    saved(hf, 4, kinds=[[1, 2]] * 4).save_to_disk(tmp_path)
    assert saved_refused(tmp_path, label_column="kinds").startswith(
        f"column kinds of {tmp_path} must hold text or numbers, found "
    )


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"image_column": "imag"}, "image"),
        ({"label_column": "labels"}, "label"),
        ({"group_columns": ("plac",)}, "place"),
    ],
)
def test_a_missing_column_of_a_saved_data_set_is_answered_with_the_closest(
    hf: Any, tmp_path: Path, changes: dict[str, Any], hint: str
) -> None:
    saved(hf, 4, place=[0, 1] * 2).save_to_disk(tmp_path)
    assert f"(did you mean {hint!r}?); choose one of: image, label, place; the table is " in saved_refused(
        tmp_path, **changes
    )


def test_a_column_that_holds_no_images_is_refused(hf: Any, tmp_path: Path) -> None:
    saved(hf, 4).save_to_disk(tmp_path)
    assert saved_refused(tmp_path, image_column="label").startswith(
        f"column label of {tmp_path} must hold images, found ClassLabel("
    )


def test_an_image_that_a_row_lacks_is_missing(hf: Any, tmp_path: Path) -> None:
    features = hf.Features({"image": hf.Image(), "label": hf.Value("int64")})
    images = [grey(i) for i in range(24)]
    data = {"image": [*images[:7], None, *images[8:]], "label": [0, 1] * 12}
    hf.Dataset.from_dict(data, features=features).save_to_disk(tmp_path / "pets")
    task = build_task(DataSettings(name="huggingface", dir=tmp_path / "pets"), TINY)
    assert task.skipped == {"all/000007": "the file is missing"}
    assert "1 of 24 images cannot be read and are left out: all/000007 (the file is missing)." in task.notes


def test_images_are_stored_as_bytes_or_by_their_path(tmp_path: Path) -> None:
    data = picture(tmp_path / "a.png").read_bytes()
    stored = [
        {"bytes": data, "path": None},
        {"bytes": None, "path": "a.png"},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        {"bytes": data, "path": "gone.png"},
        {"bytes": None, "path": None},
        {"bytes": None, "path": "gone.png"},
    ]
    files = SavedFiles(tmp_path, "image", {"all": [{"image": image} for image in stored]})
    assert [files.read(f"all/{i:06d}") == data for i in range(4)] == [True] * 4
    for i in (4, 5):
        with pytest.raises(FileNotFoundError):
            files.read(f"all/{i:06d}")


def test_the_files_of_a_saved_data_set_are_stamped_once(
    hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(hf, 24).save_to_disk(tmp_path)
    files = read(tmp_path).files
    size, _ = files.stamp("all/000000")
    assert size == sum(path.stat().st_size for path in tmp_path.glob("*.arrow"))
    monkeypatch.setattr(os, "stat", None)
    assert files.stamp("all/000001")[0] == size


@pytest.mark.parametrize("place", [None, "no-such", "."])
def test_a_folder_that_save_to_disk_has_not_written_is_refused(hf: Any, tmp_path: Path, place: str | None) -> None:
    picture(tmp_path / "a.png")
    root = None if place is None else tmp_path / place
    assert saved_refused(root) == (
        f"{root} must be a folder that save_to_disk has written (with dataset_info.json or dataset_dict.json), "
        "or hold Parquet files of images; name one with --data-dir"
    )


@pytest.mark.parametrize("damage", ["arrow", "json"])
def test_a_damaged_saved_data_set_is_refused(hf: Any, tmp_path: Path, damage: str) -> None:
    saved(hf, 24).save_to_disk(tmp_path)
    for path in tmp_path.glob(f"*.{damage}"):
        path.write_bytes(b"{")
    assert saved_refused(tmp_path).startswith(f"{tmp_path} cannot be read as a saved data set: ")


def test_without_the_library_its_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert saved_refused(tmp_path) == (
        "Hugging Face data sets need the library datasets, which is not installed; pip install 'exmap[huggingface]'"
    )


def test_the_classes_of_a_saved_data_set_keep_their_order_and_other_columns_are_metadata(
    hf: Any, tmp_path: Path
) -> None:
    made = hf.Dataset.from_dict({"image": [grey(i) for i in range(30)]}, features=hf.Features({"image": hf.Image()}))
    words = hf.ClassLabel(names=["zebra", "unused", "ant"])
    made = made.add_column("label", [0, 2] * 15, feature=words).add_column("site", ["a", "b", None] * 10)
    made = made.add_column("places", [[1]] * 30).add_column("place", [0, 1] * 15)
    made.save_to_disk(tmp_path)
    assert read(tmp_path).class_names == ("zebra", "unused", "ant")
    found = read(tmp_path, one_set=True, group_columns=("place",))
    assert (found.class_names, found.labels[:2].tolist()) == (("zebra", "unused", "ant"), [0, 2])
    assert set(found.metadata) == {"site"}
    assert list(found.metadata["site"][:3]) == ["a", "b", ""]


def test_the_only_columns_of_their_kind_are_found_whatever_their_names(hf: Any, tmp_path: Path) -> None:
    made = saved(hf, 24, image="img").rename_column("label", "fine")
    made.save_to_disk(tmp_path)
    assert read(tmp_path).class_names == ("dog", "cat")
    made.add_column("other", [0, 1] * 12, feature=hf.ClassLabel(names=["a", "b"])).save_to_disk(tmp_path / "two")
    assert "unknown column 'label'" in saved_refused(tmp_path / "two")


def test_parquet_files_of_images_are_read_with_the_splits_in_their_names(
    hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, n in (("train-00000-of-00001", 24), ("validation-00000-of-00001", 12), ("test-00000-of-00001", 20)):
        (tmp_path / "pets" / "data").mkdir(parents=True, exist_ok=True)
        saved(hf, n).to_parquet(tmp_path / "pets" / "data" / f"{name}.parquet")
    found = read(tmp_path / "pets")
    assert np.bincount(found.splits).tolist() == [24, 12, 20]
    assert found.class_names == ("dog", "cat")
    one = read(tmp_path / "pets" / "data", table=Path("test*.parquet"), one_set=True)
    assert len(one.names) == 20
    task = build_task(
        DataSettings(name="huggingface", dir=tmp_path / "pets", one_set=True, part="test"),
        TINY,
    )
    assert (len(task.val), task.val.class_names) == (20, ("dog", "cat"))
    assert saved_refused(tmp_path / "pets", one_set=True, part="tset") == (
        f"{tmp_path / 'pets'} has no split 'tset', but the splits train, validation, test; name one of them, or none"
    )


def test_a_split_of_any_name_may_be_the_one_set(hf: Any, tmp_path: Path) -> None:
    hf.DatasetDict({"train": saved(hf, 20), "hard_ones": saved(hf, 22)}).save_to_disk(tmp_path / "pets")
    settings = DataSettings(name="huggingface", dir=tmp_path / "pets", one_set=True)
    assert len(build_task(settings.model_copy(update={"part": "hard_ones"}), TINY).val) == 22


def test_an_id_without_a_network_is_one_sentence(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise ConnectionError(f"Couldn't reach {name} on the Hub\nmore")

    monkeypatch.setattr(hf, "load_dataset", offline)
    assert saved_refused(None, id="someone/pets") == (
        "the data set someone/pets could not be loaded from the Hugging Face hub (ConnectionError: Couldn't reach "
        "someone/pets on the Hub); check its name and the network, or give a folder that save_to_disk has written"
    )


def test_a_data_set_by_its_id_is_read_like_a_saved_one(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = hf.DatasetDict({"train": saved(hf, 30), "test": saved(hf, 20)})
    monkeypatch.setattr(hf, "load_dataset", {"someone/pets": made}.__getitem__)
    task = build_task(DataSettings(name="huggingface", id="someone/pets", one_set=True, part="test"), TINY)
    assert (task.name, len(task.val), task.val.class_names) == ("someone/pets", 20, ("dog", "cat"))
    assert np.allclose(255 * task.val.images.pixels(np.arange(20)).mean(axis=(1, 2, 3)), 5 * np.arange(20), atol=0.01)


@pytest.mark.parametrize("kind", ["hidden", "number", "absent"])
def test_a_split_whose_labels_are_hidden_is_left_out(hf: Any, tmp_path: Path, kind: str) -> None:
    labels = hf.Value("int64") if kind == "number" else hf.ClassLabel(names=["dog", "cat"])
    test = saved(hf, 6).remove_columns("label")
    if kind != "absent":
        test = test.add_column("label", [-1] * 6, feature=labels)
    parts = {"train": saved(hf, 24).cast_column("label", labels), "test": test}
    hf.DatasetDict(parts).save_to_disk(tmp_path / "pets")
    found = read(tmp_path / "pets")
    assert np.bincount(found.splits).tolist() == [16, 4, 4]
    assert found.notes == ("Splits without labels, whose labels are hidden, are left out: 'test'.",)
    if kind == "hidden":
        said = saved_refused(tmp_path / "pets", one_set=True, part="test")
        assert said.endswith("must have labels, but column label holds none; name another column")


def test_splits_of_other_names_are_left_out_and_usual_ones_are_known(hf: Any, tmp_path: Path) -> None:
    names = {"Train": 12, "Validation": 6, "eval": 6, "Test": 4, "unsupervised": 4}
    hf.DatasetDict({name: saved(hf, n) for name, n in names.items()}).save_to_disk(tmp_path)
    found = read(tmp_path)
    assert np.bincount(found.splits).tolist() == [12, 12, 4]
    assert found.notes == (
        "Splits that are neither training, validation nor test images are left out: 'unsupervised'.",
        "Validation and eval are taken together as the split val.",
    )


def test_a_data_set_of_one_split_of_any_name_is_divided(hf: Any, tmp_path: Path) -> None:
    hf.DatasetDict({"full": saved(hf, 24)}).save_to_disk(tmp_path)
    assert np.bincount(read(tmp_path).splits).tolist() == [16, 4, 4]


def test_classes_of_several_splits_are_known_by_their_names(hf: Any, tmp_path: Path) -> None:
    turned = saved(hf, 12).remove_columns("label")
    turned = turned.add_column("label", [0, 1] * 6, feature=hf.ClassLabel(names=["cat", "dog"]))
    hf.DatasetDict({"train": saved(hf, 12), "test": turned}).save_to_disk(tmp_path)
    found = read(tmp_path)
    assert found.class_names == ("dog", "cat")
    assert found.labels[-12:].tolist() == [1, 0] * 6


def test_an_unused_class_stays_an_output_and_is_said(hf: Any, tmp_path: Path) -> None:
    made = saved(hf, 24).remove_columns("label")
    names = hf.ClassLabel(names=["dog", "bird", "cat"])
    made.add_column("label", [0, 2] * 12, feature=names).save_to_disk(tmp_path)
    task = build_task(DataSettings(name="huggingface", dir=tmp_path), TINY)
    assert (task.train.class_names, set(task.train.labels.tolist())) == (("dog", "bird", "cat"), {0, 2})
    assert task.notes == ("1 class of the classifier without images: 'bird'.",)


@pytest.mark.parametrize("form", ["struct", "bytes"])
def test_images_in_parquet_files_of_others_are_understood(
    hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = [picture(tmp_path / "made" / f"{i}.png", (9 * i, 9, 9)).read_bytes() for i in range(24)]
    column = {"struct": {"img": [{"bytes": one, "path": None} for one in data]}, "bytes": {"image": data}}[form]
    (tmp_path / "pets").mkdir()
    pq.write_table(pa.table({**column, "label": [0, 1] * 12}), tmp_path / "pets" / "a.parquet")
    found = read(tmp_path / "pets")
    assert found.files.read(found.names[3]) == data[3]


def test_files_are_named_by_a_pattern_below_their_folder(hf: Any, tmp_path: Path) -> None:
    for pattern in ("/etc/*.parquet", "../*.parquet", "."):
        assert saved_refused(tmp_path, table=Path(pattern)).startswith(
            f"files of {tmp_path} must be named by a pattern"
        )
