from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exmap.data import build_task
from exmap.data.celeba import celeba
from exmap.errors import DataError
from exmap.settings import DataSettings, ImageSettings
from trees import ATTRIBUTES, celeba_tree

COUNTS = {0: (5, 4, 3, 2), 1: (2, 3, 2, 3), 2: (3, 2, 2, 2)}
NAMES = ("not blond, female", "not blond, male", "blond, female", "blond, male")
TINY = ImageSettings(resize=8, crop=None, random_crop=None, workers=0, cache="never", normalize="none")


def as_csv(root: Path) -> Path:
    """Turn the official text files into the CSV files that circulate."""
    attributes, partition = root / "list_attr_celeba.txt", root / "list_eval_partition.txt"
    rows = [line.split() for line in attributes.read_text().splitlines()[2:]]
    table = [["image_id", *ATTRIBUTES], *rows]
    (root / "list_attr_celeba.csv").write_text("\n".join(map(",".join, table)) + "\n")
    splits = [["image_id", "partition"], *(line.split() for line in partition.read_text().splitlines())]
    (root / "list_eval_partition.csv").write_text("\n".join(map(",".join, splits)) + "\n")
    attributes.unlink()
    partition.unlink()
    return root


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("layout", ["official", "metadata", "csv"])
def test_every_layout_says_the_same(tmp_path: Path, layout: str) -> None:
    celeba_tree(tmp_path / "celeba", COUNTS, official=layout != "metadata")
    if layout == "csv":
        as_csv(tmp_path / "celeba")
    for folder in (tmp_path, tmp_path / "celeba"):
        table = celeba(folder)
        assert table.groups().names == NAMES
        assert [tuple(n) for n in table.counts().values()] == list(COUNTS.values())
        assert (table.names[0], table.files.root.name) == ("000001.jpg", "img_align_celeba")  # type: ignore[attr-defined]
        assert len(table.digests) == (1 if layout == "metadata" else 2)


def test_a_celeba_task_has_the_pixels_of_its_labels(tmp_path: Path) -> None:
    celeba_tree(tmp_path, COUNTS)
    task = build_task(DataSettings(name="celeba", dir=tmp_path), TINY)
    assert (len(task.train), len(task.val), len(task.test)) == (14, 10, 9)
    mean = task.train.images.pixels(np.arange(14)).mean(axis=(2, 3))
    assert np.array_equal(mean[:, 0] > 0.4, task.train.labels == 1)
    assert np.array_equal(mean[:, 2] > 0.4, task.train.true_groups().index % 2 == 1)


def test_tables_may_lie_in_anno_and_eval_as_in_the_official_folders(tmp_path: Path) -> None:
    celeba_tree(tmp_path, COUNTS)
    for place, name in (("Anno", "list_attr_celeba.txt"), ("Eval", "list_eval_partition.txt")):
        (tmp_path / place).mkdir()
        (tmp_path / name).rename(tmp_path / place / name)
    assert len(celeba(tmp_path).names) == 33


def test_images_may_lie_in_a_folder_in_a_folder_of_the_same_name_or_beside_the_tables(tmp_path: Path) -> None:
    root = celeba_tree(tmp_path / "one", COUNTS)
    (root / "img_align_celeba").rename(root / "inner")
    (root / "img_align_celeba").mkdir()
    (root / "inner").rename(root / "img_align_celeba" / "img_align_celeba")
    assert celeba(root).files.stamp("000001.jpg")[0] > 0
    root = celeba_tree(tmp_path / "two", COUNTS)
    for image in (root / "img_align_celeba").iterdir():
        image.rename(root / image.name)
    (root / "img_align_celeba").rmdir()
    assert celeba(root).files.stamp("000001.jpg")[0] > 0


def test_text_files_with_windows_line_ends_are_read(tmp_path: Path) -> None:
    celeba_tree(tmp_path, COUNTS)
    for path in tmp_path.glob("*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(celeba(tmp_path).names) == 33


ATTR, PARTITION = "list_attr_celeba.txt", "list_eval_partition.txt"


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (
            ATTR,
            "Blond_Hair",
            "Blond_Hare",
            "unknown attribute 'Blond_Hair' (did you mean 'Blond_Hare'?); choose one of: 5_o_Clock_Shadow, Blond_Hare, "
            "Eyeglasses, Male, Young; the table is {path}",
        ),
        (ATTR, "33\n", "34\n", "{path} must hold 34 rows by its first line, found 33; fetch it again"),
        (
            ATTR,
            "000001.jpg -1 -1 -1 -1  1",
            "000001.jpg -1 -1",
            "{path} must give 4 values or more for each image, got '000001.jpg -1 -1'",
        ),
        (
            ATTR,
            "000001.jpg -1 -1",
            "000001.jpg -1 x1",
            "an attribute of {path} must be 1 or -1, got 'x1' for 000001.jpg",
        ),
        (
            ATTR,
            "000002.jpg",
            "000001.jpg",
            "{path} must list each image once, but lists 000001.jpg again; fetch it again",
        ),
        (
            PARTITION,
            "000002.jpg",
            "000001.jpg",
            "{path} must list each image once, but lists 000001.jpg again; fetch it again",
        ),
        (
            PARTITION,
            "000001.jpg 0",
            "000001.jpg 3",
            "the partition in {path} must be 0, 1 or 2, got '3' for 000001.jpg",
        ),
        (PARTITION, "000001.jpg 0", "000001.jpg", "{path} must give 1 values or more for each image, got '000001.jpg'"),
        (
            PARTITION,
            "000001.jpg 0\n",
            "",
            "{path} must give a split for each image of {other}, and no others, but 1 are in only one of them, the "
            "first 000001.jpg; fetch both again",
        ),
        (
            PARTITION,
            "000001.jpg 0\n",
            "000001.jpg 0\n900000.jpg 1\n",
            "{path} must give a split for each image of {other}, and no others, but 1 are in only one of them, the "
            "first 900000.jpg; fetch both again",
        ),
    ],
)
def test_damaged_text_files_are_refused(tmp_path: Path, file: str, old: str, new: str, said: str) -> None:
    celeba_tree(tmp_path, COUNTS)
    changed(tmp_path / file, old, new)
    with pytest.raises(DataError) as caught:
        celeba(tmp_path)
    assert str(caught.value) == said.format(path=tmp_path / file, other=tmp_path / ATTR)


@pytest.mark.parametrize("file", ["list_attr_celeba", "list_eval_partition"])
@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_an_empty_a_binary_and_a_missing_table_are_refused(tmp_path: Path, file: str, kind: str) -> None:
    celeba_tree(tmp_path, COUNTS)
    if kind == "csv":
        as_csv(tmp_path)
    path = tmp_path / f"{file}.{kind}"
    for data in (b"", b"\xff\xfe\x00\x01" * 40):
        path.write_bytes(data)
        with pytest.raises(DataError, match=str(path)):
            celeba(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=rf"must hold (metadata.csv or list_attr|{file}.txt \(or .csv\))"):
        celeba(tmp_path)


def test_a_truncated_csv_table_is_told_by_the_other(tmp_path: Path) -> None:
    path = as_csv(celeba_tree(tmp_path, COUNTS)) / "list_attr_celeba.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-3]) + "\n")
    with pytest.raises(DataError, match=r"but 3 are in only one of them, the first 000031.jpg; fetch both again$"):
        celeba(tmp_path)


def test_a_csv_table_that_lists_an_image_twice_is_refused(tmp_path: Path) -> None:
    changed(as_csv(celeba_tree(tmp_path, COUNTS)) / "list_attr_celeba.csv", "000002.jpg", "000001.jpg")
    with pytest.raises(DataError, match=r"list_attr_celeba.csv must list each image once, but lists 000001.jpg again"):
        celeba(tmp_path)


def test_an_image_outside_the_folder_is_refused(tmp_path: Path) -> None:
    celeba_tree(tmp_path, COUNTS)
    for file in (ATTR, PARTITION):
        changed(tmp_path / file, "000001.jpg", "../1.jpg")
    with pytest.raises(DataError, match=r"must lie below the data set's folder, got '../1.jpg' in "):
        celeba(tmp_path)


def test_zero_and_one_serve_for_minus_one_and_one(tmp_path: Path) -> None:
    celeba_tree(tmp_path, COUNTS)
    before = celeba(tmp_path).groups().index
    text = (tmp_path / ATTR).read_text()
    (tmp_path / ATTR).write_text(text.replace(" -1", "  0"))
    assert np.array_equal(celeba(tmp_path).groups().index, before)
