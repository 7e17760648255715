from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from exmap.data.check import DataCheck, check_data
from exmap.data.compose import Recipe, compose
from exmap.errors import DataError
from exmap.registry import DATASETS
from exmap.settings import DataSettings, ImageSettings
from trees import celeba_tree, class_folders, own_table, picture, truncate, urbancars_tree, waterbirds_tree

TREE = "waterbird_complete95_forest2water2"
SMALL = {0: (3, 2, 2, 3), 1: (2, 2, 2, 2), 2: (2, 2, 2, 2)}
CARS = {0: (3, 1, 1, 0, 0, 1, 1, 3), 1: (1,) * 8, 2: (2,) * 8}


def check(name: str, folder: Path | None, **changes: Any) -> DataCheck:
    return check_data(DataSettings(name=name, dir=folder, **changes), ImageSettings(workers=0))


def found(result: DataCheck) -> dict[str, list[int]]:
    return {s: [row.found for row in result.groups if row.split == s] for s in ("train", "val", "test")}


def expected(result: DataCheck) -> dict[str, list[int | None]]:
    return {s: [row.expected for row in result.groups if row.split == s] for s in ("train", "val", "test")}


@pytest.mark.parametrize(
    ("name", "make"), [("waterbirds", waterbirds_tree), ("celeba", celeba_tree), ("urbancars", urbancars_tree)]
)
def test_the_counts_of_a_smaller_set_stand_beside_those_of_the_paper(tmp_path: Path, name: str, make: Any) -> None:
    counts = CARS if name == "urbancars" else SMALL
    result = check(name, make(tmp_path, counts))
    assert found(result) == {split: list(counts[n]) for n, split in enumerate(("train", "val", "test"))}
    stated = DATASETS[name].counts
    assert stated is not None
    for split, row in expected(result).items():
        assert row == list(stated.get(split, [None] * len(row)))
    assert (result.missing, result.unreadable, result.extra) == ((), {}, ())
    assert not result.whole


def test_a_set_with_the_counts_of_the_paper_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = {"train": (3, 2, 2, 3), "val": (2, 2, 2, 2), "test": (2, 2, 2, 2)}
    monkeypatch.setitem(vars(DATASETS["waterbirds"]), "counts", stated)
    waterbirds_tree(tmp_path, SMALL)
    assert check("waterbirds", tmp_path).whole
    picture(tmp_path / TREE / "001.Some_Bird" / "one-more.jpg")
    result = check("waterbirds", tmp_path)
    assert (result.extra, result.whole) == (("001.Some_Bird/one-more.jpg",), True)


def test_missing_unreadable_and_extra_files_are_listed(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 0, "dog": 0})
    own_table(tmp_path, [[f"{kind}/{i}.png", kind] for kind in ("cat", "dog") for i in range(6)])
    assert check("table", tmp_path, table=Path("own.csv")).whole
    (tmp_path / "cat" / "0.png").unlink()
    truncate(tmp_path / "cat" / "1.png")
    (tmp_path / "dog" / "2.png").write_bytes(b"")
    (tmp_path / "dog" / "3.png").write_text("words")
    for extra in ("dog/9.JPG", "spare.png", ".hidden.png", ".thumbs/1.png", "dog/.thumbs/1.png"):
        picture(tmp_path / extra)
    result = check("table", tmp_path, table=Path("own.csv"))
    assert result.missing == ("cat/0.png",)
    assert list(result.unreadable) == ["cat/1.png", "dog/2.png", "dog/3.png"]
    assert (result.unreadable["dog/2.png"], result.unreadable["dog/3.png"]) == ("the file is empty", "not an image")
    assert result.extra == ("dog/9.JPG", "spare.png")
    assert found(result) == {"train": [2, 2], "val": [2, 2], "test": [2, 2]}
    assert not result.whole


def test_a_missing_mask_makes_its_image_unreadable_and_masks_are_not_extra(tmp_path: Path) -> None:
    waterbirds_tree(tmp_path, SMALL, masks=True)
    (tmp_path / "segmentations").rename(tmp_path / TREE / "segmentations")
    result = check("waterbirds-fg", tmp_path)
    assert (result.missing, result.unreadable, result.extra) == ((), {}, ())
    sorted((tmp_path / TREE / "segmentations").rglob("*_2_*.png"))[0].unlink()
    result = check("waterbirds-fg", tmp_path)
    assert list(result.unreadable) == ["001.Some_Bird/Some_Bird_2_0000.jpg"]
    assert result.missing == ()


def test_your_own_images_have_no_expected_counts(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 8, "dog": 8})
    picture(tmp_path / "loose.png")
    result = check("folder", tmp_path)
    assert {row.expected for row in result.groups} == {None}
    assert [row.group for row in result.groups[:2]] == ["cat", "dog"]
    assert (result.extra, result.whole) == (("loose.png",), True)


def test_a_tree_that_lacks_a_whole_kind_is_refused(tmp_path: Path) -> None:
    urbancars_tree(tmp_path, {0: (2, 0, 1, 0, 2, 0, 1, 0), 1: (1, 0) * 4, 2: (1, 0) * 4})
    with pytest.raises(
        DataError, match=r"^8 groups were expected, found 4: urban car, urban background, urban object,"
    ):
        check("urbancars", tmp_path)


def test_a_set_in_memory_is_counted_without_files() -> None:
    result = check("digits", None)
    assert [sum(row) for row in found(result).values()] == [897, 450, 450]
    assert result.whole


def cut_outs(root: Path, kinds: tuple[str, ...], n: int, transparent: bool) -> Path:
    """A folder per kind, of images of one colour each, with a clear border if they are cut-outs."""
    for number, kind in enumerate(kinds):
        (root / kind).mkdir(parents=True)
        for i in range(n):
            pixels = np.full((20, 20, 4), 255, dtype=np.uint8)
            pixels[..., :3] = (80 * number, 3 * i, 90)
            if transparent:
                pixels[:4, :, 3] = 0
            Image.fromarray(pixels).save(root / kind / f"{i}.png")
    return root


def composed_set(root: Path, layout: str, kinds: tuple[str, ...]) -> Path:
    parts = [cut_outs(root / name, kinds, 12, name != "behind") for name in ("things", "behind", "objects")]
    objects = parts[2] if layout == "urbancars" else None
    shares = (0.9, 0.9, 0.5) if layout == "urbancars" else (0.9, 0.5, 0.5)
    size = (24 * len(kinds) - 1, 9 * len(kinds), 8 * len(kinds))  # of odd numbers, so that groups differ
    compose(Recipe(layout, parts[0], parts[1], objects, sizes=size, correlation=shares, side=32), root / "made")
    return root / "made"


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("waterbirds", "waterbirds"),
        ("urbancars", "urbancars"),
        ("urbancars-bg", "urbancars"),
        ("urbancars-coobj", "urbancars"),
    ],
)
def test_a_composed_set_is_held_against_its_own_manifest(tmp_path: Path, name: str, layout: str) -> None:
    # in the order of their names country comes first, but the reader of UrbanCars puts urban first
    made = composed_set(tmp_path, layout, ("country", "urban"))
    result = check(name, made)
    assert expected(result) == found(result)
    assert result.whole
    counts = [row.found for row in result.groups]
    assert counts != counts[::-1]
    first = next(row for row in result.groups if row.found)
    image = next(iter(sorted(made.rglob("*.jpg"))))
    image.unlink()
    broken = check(name, made)
    assert not broken.whole
    assert first.expected == broken.groups[result.groups.index(first)].expected


def test_a_composed_set_of_three_classes_is_whole(tmp_path: Path) -> None:
    assert check("waterbirds", composed_set(tmp_path, "waterbirds", ("a", "b", "c"))).whole


def test_an_image_that_a_composed_tree_has_lost_is_counted(tmp_path: Path) -> None:
    made = composed_set(tmp_path, "urbancars", ("bus", "van"))
    lost = next(iter(sorted(made.rglob("train/*/*.jpg"))))
    lost.unlink()
    result = check("urbancars", made)
    wrong = [row for row in result.groups if row.found != row.expected]
    assert [(row.split, row.group, row.expected - row.found) for row in wrong if row.expected is not None] == [
        ("train", "bus car, bus background, bus object", 1)
    ]
    assert not result.whole


def test_a_composed_tree_that_lost_a_kind_is_refused(tmp_path: Path) -> None:
    made = composed_set(tmp_path, "urbancars", ("a", "b", "c"))
    for folder in sorted(made.rglob("obj-*_bg-c_*")):
        shutil.rmtree(folder)
    with pytest.raises(DataError) as caught:
        check("urbancars", made)
    assert str(caught.value) == (
        "the manifest of urbancars counts the group 'a car, c background, a object', but no folder is of that kind"
    )


def test_a_foreign_manifest_changes_nothing(tmp_path: Path) -> None:
    waterbirds_tree(tmp_path, SMALL)
    (tmp_path / TREE / "manifest.json").write_text(json.dumps({"counts": {"train": 3}}))
    assert expected(check("waterbirds", tmp_path))["train"] == [3498, 184, 56, 1057]


def test_nothing_is_kept_of_the_images_that_were_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    class_folders(tmp_path / "pets", {"cat": 8, "dog": 8})
    check("folder", tmp_path / "pets")
    assert not (tmp_path / "cache").exists()
