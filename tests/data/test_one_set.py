from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exmap.data import Task, build_task
from exmap.data.preprocess import Preprocess
from exmap.errors import DataError, SettingsError
from exmap.settings import DataSettings, ImageSettings
from trees import class_folders, own_table, picture

TINY = ImageSettings(resize=6, crop=None, random_crop=None, workers=0, cache="never", normalize="none")


def one(root: Path, **changes: Any) -> Task:
    return build_task(DataSettings(**{"name": "folder", "dir": root, "one_set": True, **changes}), TINY)


def refused(root: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        one(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "pets", {"cat": 14, "dog": 12})


def numbered_pictures(root: Path, start: int = 0, **counts: int) -> Path:
    for kind, count in counts.items():
        for number in range(start, start + count):
            picture(root / kind / f"{number:03d}.png", (9 * number, 30, 90 if kind == "cat" else 10), (8, 6))
    return root


def test_all_images_are_judged_and_nothing_is_kept_for_training(pets: Path) -> None:
    task = one(pets)
    assert task.cross_fitted
    assert task.test is task.val
    assert (task.train.name, task.val.name, len(task.val)) == ("train", "val", 26)
    assert task.train.ids == task.val.ids
    assert np.array_equal(task.train.images.batch(np.arange(3)), task.val.images.batch(np.arange(3)))
    assert (task.notes, set(task.digests)) == ((), {"images"})


def test_true_groups_stay_with_the_set_that_is_measured(tmp_path: Path) -> None:
    own_table(tmp_path, [[f"{i:03d}.png", i % 2, i % 3] for i in range(30)], ("path", "label", "place"))
    task = one(tmp_path, name="table", table=Path("own.csv"), group_columns=("place",))
    assert task.train.truth is None
    assert task.val.true_groups().attributes == ("place",)


def test_a_second_set_is_measured_on(tmp_path: Path) -> None:
    first = numbered_pictures(tmp_path / "first", cat=14, dog=12)
    second = numbered_pictures(tmp_path / "second", 100, cat=6, dog=5)
    (second / "notes.txt").write_text("")
    task = one(first, test=second)
    assert not task.cross_fitted
    assert [(split.name, len(split)) for split in (task.train, task.val, task.test)] == [
        ("train", 26), ("val", 26), ("test", 11),
    ]  # fmt: skip
    assert set(task.digests) == {"images", "test images"}
    assert task.ignored == {"test: files that are no images": ["notes.txt"]}


def test_a_second_table_lies_beside_the_first_or_anywhere(tmp_path: Path) -> None:
    for i in range(30):
        picture(tmp_path / "d" / f"{i:03d}.png", (8 * i, 20, 20))
    place = own_table(tmp_path / "d", [[f"{i:03d}.png", i % 2] for i in range(30)])
    lines = place.read_text().splitlines()
    place.write_text("\n".join(lines[:25]))
    (tmp_path / "d" / "more.csv").write_text("\n".join([lines[0], *lines[25:]]))
    for changes in (
        {"dir": tmp_path / "d", "table": Path("own.csv"), "test": Path("more.csv")},
        {"dir": tmp_path / "d", "table": Path("own.csv"), "test": tmp_path / "d" / "more.csv"},
        {"dir": None, "table": place, "test": tmp_path / "d" / "more.csv"},
    ):
        task = one(tmp_path, name="table", **changes)
        assert (len(task.val), len(task.test)) == (24, 6)


def test_a_second_table_elsewhere_lies_beside_its_own_images(tmp_path: Path) -> None:
    for folder, start in (("one", 0), ("two", 100)):
        for i in range(24):
            picture(tmp_path / folder / f"{i:03d}.png", (8 * i, start, 20))
        own_table(tmp_path / folder, [[f"{i:03d}.png", i % 2] for i in range(24)])
    task = one(tmp_path / "one", name="table", table=Path("own.csv"), test=tmp_path / "two" / "own.csv")
    assert not np.allclose(task.val.images.pixels(np.arange(9)), task.test.images.pixels(np.arange(9)), atol=0.2)
    mixed = one(numbered_pictures(tmp_path / "pets", **{"0": 12, "1": 12}), test=tmp_path / "two")
    assert len(mixed.test) == 24


def test_duplicates_are_left_out_of_the_set_that_is_fitted_and_said(tmp_path: Path) -> None:
    first = numbered_pictures(tmp_path / "first", cat=14, dog=14)
    second = numbered_pictures(tmp_path / "second", 100, cat=6, dog=6)
    shutil.copy(first / "cat" / "003.png", second / "dog" / "other.png")
    shutil.copy(first / "dog" / "004.png", second / "dog" / "004.png")
    task = one(first, test=second)
    assert task.notes == (
        "2 of 28 images of first are in second, too, byte for byte (cat/003.png = dog/other.png, dog/004.png = "
        "dog/004.png): they were left out of the first, and are measured on.",
    )
    assert (len(task.val), len(task.test)) == (26, 14)
    assert not {"cat/003.png", "dog/004.png"} & set(task.val.ids)
    assert refused(first, test=first).startswith(
        "the second set must hold other images, but all 28 of first are also in first (cat/000.png = cat/000.png,"
    )


def test_duplicates_of_a_saved_data_set_are_found_too(tmp_path: Path) -> None:
    pets = numbered_pictures(tmp_path / "pets", cat=14, dog=12)
    datasets = pytest.importorskip("datasets", reason="needs exmap[huggingface]")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    numbered_pictures(tmp_path / "other", 100, cat=6, dog=6)
    files = [str(path) for path in [*sorted((tmp_path / "other").rglob("*.png")), pets / "dog" / "000.png"]]
    made = datasets.Dataset.from_dict({"image": files, "label": [0] * 6 + [1] * 7}, features=features)
    made.save_to_disk(tmp_path / "saved")
    task = one(pets, test=tmp_path / "saved")
    assert task.notes[0].startswith("1 of 26 images of pets are in saved, too")
    assert "dog/000.png" not in task.val.ids


def test_classes_are_in_the_order_of_the_outputs_and_may_lack_images(pets: Path) -> None:
    task = one(pets, classes=("bird", "dog", "cat"))
    assert task.val.class_names == ("bird", "dog", "cat")
    assert np.bincount(task.val.labels).tolist() == [0, 12, 14]
    assert task.notes == ("1 class of the classifier without images: 'bird'.",)


def test_labels_that_are_numbers_are_positions_among_classes(tmp_path: Path) -> None:
    own_table(tmp_path, [[f"{i:03d}.png", i % 2] for i in range(30)])
    task = one(tmp_path, name="table", table=Path("own.csv"), classes=("land", "water"))
    assert task.val.class_names == ("land", "water")
    assert task.val.labels[:2].tolist() == [0, 1]
    assert "'0', '1' of own" in refused(tmp_path, name="table", table=Path("own.csv"), classes=("only",))


def test_labels_without_an_output_are_named_with_the_closest_class(pets: Path) -> None:
    assert refused(pets, classes=("catt", "dog")) == (
        "every label must be a class of the classifier, but 'cat' (did you mean 'catt'?) of pets (14 images) is none "
        "of 'catt', 'dog'; rename it, leave its images out, or name the classes in the order of the outputs with "
        "--classes or --set 'data.classes=[...]'"
    )
    assert "names 'dog' again" in refused(pets, classes=("dog", "dog"))


def test_folders_of_splits_are_not_one_set(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "p", {f"{split}/{kind}": 12 for split in ("train", "Test") for kind in "ab"})
    assert refused(root) == (
        "one labelled set is needed that the classifier was not trained on, but p has the splits train, test; give one "
        f"of them, such as {root / 'Test'}"
    )
    assert set(one(root, part="test").val.ids) == {f"Test/{kind}/{i:03d}.png" for kind in "ab" for i in range(12)}
    assert refused(root, part="dev") == "p has no split 'dev'; it has train, test"
    assert len(one(root / "Test").val) == 24


def test_a_table_of_splits_gives_one_of_them(tmp_path: Path) -> None:
    rows = [[f"{i:03d}.png", i % 2, ("train", "val", "test")[i // 2 % 3]] for i in range(90)]
    own_table(tmp_path, rows, ("path", "label", "split"))
    said = refused(tmp_path, name="table", table=Path("own.csv"))
    assert said.endswith("has the splits train, val, test; give one of them, by --set data.part=test")
    assert len(one(tmp_path, name="table", table=Path("own.csv"), part="validation").val) == 30


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"cat": 5, "dog": 5}, "each class needs at least 10 images to be judged, but 'cat' of p has 5; add images"),
        ({"cat": 30, "dog": 1}, "each class needs at least 10 images to be judged, but 'dog' of p has 1; add images"),
        ({"cat": 30}, "p must have 2 or more classes, found only 'cat'; add another"),
    ],
)
def test_too_few_images_are_one_sentence(tmp_path: Path, counts: dict[str, int], said: str) -> None:
    assert refused(class_folders(tmp_path / "p", counts)).startswith(said)


def test_one_class_of_several_outputs_is_refused(pets: Path) -> None:
    own_table(pets, [[f"{i:03d}.png", "cat"] for i in range(20)])
    assert refused(pets, name="table", table=Path("own.csv"), classes=("cat", "dog")) == (
        "own must have 2 or more classes, found only 'cat'; add another"
    )


def test_images_that_cannot_be_read_do_not_make_a_class_too_small_in_silence(pets: Path) -> None:
    for number in range(11):
        (pets / "dog" / f"{number:03d}.png").write_bytes(b"x")
    settings = DataSettings(name="folder", dir=pets, one_set=True)
    with pytest.raises(DataError, match="each class needs at least 2 samples in each split, but class 'dog' has 1"):
        build_task(settings, TINY.model_copy(update={"on_error": "skip"}))


def test_both_sets_must_have_inputs_of_one_size_and_be_in_files(tmp_path: Path) -> None:
    first = numbered_pictures(tmp_path / "first", cat=14, dog=12)
    second = tmp_path / "second"
    for kind, count in (("cat", 4), ("dog", 4)):
        for number in range(count):
            picture(second / kind / f"{number}.png", (0, 200, 7 * number), (10, 9))
    plain = Preprocess(lambda image: np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255)
    with pytest.raises(DataError, match=r"images of both sets must have one size, got \(3, 6, 8\) in first and \(3, 9"):
        build_task(DataSettings(name="folder", dir=first, one_set=True, test=second), TINY, preprocess=plain)
    with pytest.raises(SettingsError, match=r"data\.one_set is for images in files, but digits is made in memory"):
        build_task(DataSettings(name="digits", one_set=True), TINY)
