from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from exmap.data import build_task
from exmap.data.urbancars import BACKGROUND, OBJECT, urbancars
from exmap.errors import DataError
from exmap.settings import DataSettings, ImageSettings
from trees import picture, urbancars_tree

COUNTS = {0: (5, 2, 3, 1, 1, 2, 2, 4), 1: (3, 1, 1, 0, 0, 1, 2, 3), 2: (2, 2, 2, 2, 2, 2, 2, 2)}
KINDS = ("urban", "country")
TINY = ImageSettings(resize=8, crop=None, random_crop=None, workers=0, cache="never", normalize="none")
TRAIN = "urbancars/bg-0.95_co_occur_obj-0.95/train"
FIRST = "obj-urban_bg-urban_co_occur_obj-urban"


def test_folders_are_labels_and_shortcuts(tmp_path: Path) -> None:
    urbancars_tree(tmp_path, COUNTS)
    for folder in (tmp_path, tmp_path / "urbancars"):
        table = urbancars(folder)
        assert [tuple(n) for n in table.counts().values()] == list(COUNTS.values())
        assert table.groups().names == tuple(
            f"{car} car, {background} background, {thing} object"
            for car in KINDS
            for background in KINDS
            for thing in KINDS
        )
        first = "bg-0.5_co_occur_obj-0.5/test/obj-country_bg-country_co_occur_obj-country/000.jpg"
        assert table.names[0] == first


@pytest.mark.parametrize(
    ("name", "attribute", "pairs"),
    [
        ("urbancars-bg", BACKGROUND, ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("urbancars-coobj", OBJECT, ((0, 2), (1, 3), (4, 6), (5, 7))),
    ],
)
def test_a_variant_with_one_shortcut_merges_over_the_other(
    tmp_path: Path, name: str, attribute: str, pairs: tuple[tuple[int, int], ...]
) -> None:
    urbancars_tree(tmp_path, COUNTS)
    table = urbancars(tmp_path, (attribute,))
    assert (table.name, [a.name for a in table.attributes]) == (name, [attribute])
    for split, sizes in zip(("train", "val", "test"), COUNTS.values(), strict=True):
        assert table.counts()[split].tolist() == [sizes[a] + sizes[b] for a, b in pairs]
    both = urbancars(tmp_path)
    assert both.names == table.names
    assert np.array_equal(both.labels, table.labels)
    assert np.array_equal(both.splits, table.splits)


def test_an_urbancars_task_has_the_pixels_of_its_folders(tmp_path: Path) -> None:
    urbancars_tree(tmp_path, COUNTS)
    task = build_task(DataSettings(name="urbancars", dir=tmp_path), TINY)
    bright = task.test.images.pixels(np.arange(16)).mean(axis=(2, 3)) > 0.4
    assert np.array_equal(bright @ [4, 2, 1], task.test.true_groups().index)


def test_hidden_files_and_folders_and_other_files_are_passed_over(tmp_path: Path) -> None:
    urbancars_tree(tmp_path, COUNTS)
    before = urbancars(tmp_path).names
    picture(tmp_path / TRAIN / FIRST / "._000.jpg.jpg")
    picture(tmp_path / TRAIN / ".thumbnails" / "000.jpg")
    (tmp_path / TRAIN / FIRST / "notes.txt").write_text("")
    (tmp_path / TRAIN / "notes.txt").write_text("")
    (tmp_path / "urbancars" / "bg-notes.txt").write_text("")
    assert urbancars(tmp_path).names == before


def test_suffixes_in_capitals_are_images(tmp_path: Path) -> None:
    urbancars_tree(tmp_path, COUNTS)
    (tmp_path / TRAIN / FIRST / "000.jpg").rename(tmp_path / TRAIN / FIRST / "000.JPG")
    assert urbancars(tmp_path).counts()["train"][0] == 5


def test_a_folder_of_another_name_is_refused(tmp_path: Path) -> None:
    urbancars_tree(tmp_path, COUNTS)
    picture(tmp_path / TRAIN / "obj-urban_bg-urban" / "000.jpg")
    with pytest.raises(DataError) as caught:
        urbancars(tmp_path)
    assert str(caught.value) == (
        "folders of UrbanCars must be named obj-KIND_bg-KIND_co_occur_obj-KIND, found "
        f"{tmp_path / TRAIN / 'obj-urban_bg-urban'}; rename or move it"
    )


@pytest.mark.parametrize("folder", [".", "no-such-folder", "a-file"])
def test_a_folder_without_the_tree_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(DataError) as caught:
        urbancars(tmp_path / folder)
    assert str(caught.value) == (
        f"{tmp_path / folder} must hold UrbanCars' folders, such as bg-0.95_co_occur_obj-0.95/train, itself or in "
        "urbancars, but it does not"
    )


def test_a_tree_without_images_is_refused(tmp_path: Path) -> None:
    urbancars_tree(tmp_path, {0: (0,) * 8})
    with pytest.raises(DataError, match=r"must hold images in its folders, found none; unpack UrbanCars there$"):
        urbancars(tmp_path)


def test_a_tree_of_one_car_only_is_refused(tmp_path: Path) -> None:
    urbancars_tree(tmp_path, {0: (3, 1, 1, 1, 0, 0, 0, 0)})
    with pytest.raises(DataError, match=r"^urbancars must have 2 or more classes, found only 'urban car'; add another"):
        urbancars(tmp_path)


def test_a_missing_split_is_told_before_a_run(tmp_path: Path) -> None:
    urbancars_tree(tmp_path, COUNTS)
    shutil.rmtree(tmp_path / "urbancars" / "bg-0.5_co_occur_obj-0.5")
    with pytest.raises(DataError, match=r"class 'urban car' has 0 in split test; add samples or leave the class out$"):
        build_task(DataSettings(name="urbancars", dir=tmp_path), TINY)


def test_other_kinds_and_correlations_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number, kind in enumerate(("cow", "bee", "ant")):
        folder = f"obj-{kind}_bg-{kind}_co_occur_obj-{kind}"
        for split in ("train", "val"):
            picture(tmp_path / "bg-0.8_co_occur_obj-0.7" / split / folder / f"{number}.png")
    table = urbancars(tmp_path)
    assert table.class_names == ("ant car", "bee car", "cow car")
    assert [table.groups().names[i] for i in table.groups().index[:1]] == ["ant car, ant background, ant object"]
