from __future__ import annotations

import gzip
import hashlib
import struct
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from exmap.data import Task
from exmap.data.fashion import dominoes, three_shortcuts, two_shortcuts
from exmap.data.idx import FILES, find_set, read_pair
from exmap.errors import DataError

SPLITS = ("train", "val", "test")
DIGESTS = ["eb012386a965bc7c", "a09a9c3f263d1457", "d3bdabbbad9a1d3b"]  # of two shortcuts, as first published
read_once = cache(read_pair)


@pytest.fixture(scope="module")
def stacked(idx_dir: Path) -> Task:
    return dominoes(idx_dir)


@pytest.fixture(scope="module")
def twice(idx_dir: Path) -> Task:
    return two_shortcuts(idx_dir)


@pytest.fixture(scope="module")
def thrice(idx_dir: Path) -> Task:
    return three_shortcuts(idx_dir)


def array(task: Task, split: str) -> np.ndarray:
    found: np.ndarray = getattr(task, split).images.array
    return found


def pool(folder: Path, name: str, split: str, kind: int) -> np.ndarray:
    """The pictures of one kind that a split may show."""
    images, labels, _ = read_once(find_set(folder, name), "t10k" if split == "test" else "train")
    part = {"train": slice(None, -1000), "val": slice(-1000, None), "test": slice(None)}[split]
    return images[labels == kind][part]


def bytes_of(pictures: np.ndarray) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def fake_sets(root: Path, train: int, test: int) -> Path:
    """Write both sets with so many pictures of 2 x 2 of each kind."""
    for name in ("mnist", "fashion-mnist"):
        (root / name).mkdir(parents=True)
        for number, size in enumerate((train, test)):
            labels = np.repeat(np.arange(10, dtype=np.uint8), size)
            head = struct.pack(">HBBIII", 0, 8, 3, len(labels), 28, 28)
            with gzip.open(root / name / f"{FILES[2 * number]}.gz", "wb", compresslevel=1) as file:
                file.write(head + bytes(len(labels) * 28 * 28))
            with gzip.open(root / name / f"{FILES[2 * number + 1]}.gz", "wb") as file:
                file.write(struct.pack(">HBBI", 0, 8, 1, len(labels)) + labels.tobytes())
    return root


def test_dominoes_have_their_sizes_and_groups(stacked: Task) -> None:
    stacked.check()
    assert [len(getattr(stacked, split)) for split in SPLITS] == [10_000, 2_000, 2_000]
    assert stacked.train.images.shape == (3, 56, 28)
    assert stacked.train.true_groups().names == ("dress, digit 0", "dress, digit 1", "coat, digit 0", "coat, digit 1")
    for split in ("train", "val"):
        counts = getattr(stacked, split).true_groups().counts()
        assert counts[[0, 3]].sum() / counts.sum() == pytest.approx(0.95, abs=0.015)
        assert getattr(stacked, split).labels.sum() * 2 == counts.sum()
    assert np.allclose(stacked.test.true_groups().counts(), 500, atol=60)
    assert len(stacked.digests) == 8


@pytest.mark.parametrize("split", SPLITS)
def test_dominoes_show_the_pictures_of_their_labels_from_the_right_files(
    stacked: Task, idx_dir: Path, split: str
) -> None:
    images, labels = array(stacked, split), getattr(stacked, split).labels
    digits = getattr(stacked, split).true_groups().index % 2
    assert np.array_equal(images[:, 0], images[:, 1])
    assert np.array_equal(images[:, 0], images[:, 2])
    for kind in (0, 1):
        assert np.array_equal(images[labels == kind, 0, 28:], pool(idx_dir, "fashion-mnist", split, 3 + kind))
        shown, there = bytes_of(images[digits == kind, 0, :28]), bytes_of(pool(idx_dir, "mnist", split, kind))
        assert set(shown) <= set(there)
        times = Counter(shown)
        fair = -(-len(shown) // len(there))  # none comes again before all have come
        assert max(times.values()) <= fair + max(Counter(there).values()) - 1


@pytest.mark.parametrize("task", ["stacked", "twice"])
def test_splits_share_no_picture(task: str, idx_dir: Path, request: pytest.FixtureRequest) -> None:
    made: Task = request.getfixturevalue(task)
    garments = (3, 4) if task == "stacked" else (7, 9)
    assert len(set(made.train.ids) | set(made.val.ids) | set(made.test.ids)) == sum(
        len(getattr(made, split)) for split in SPLITS
    )
    for name, kinds in (("fashion-mnist", garments), ("mnist", (0, 1))):
        for kind in kinds:
            seen = [set(bytes_of(pool(idx_dir, name, split, kind))) for split in SPLITS]
            assert not seen[0] & seen[1]
            assert not seen[0] & seen[2]
            assert not seen[1] & seen[2]


def test_two_shortcuts_have_their_sizes_and_groups(twice: Task) -> None:
    twice.check()
    assert [len(getattr(twice, split)) for split in SPLITS] == [10_000, 2_000, 2_000]
    groups = twice.train.true_groups()
    assert groups.attributes == ("background", "co-occurring object")
    assert groups.names[:2] == ("sneaker, rust stripes, digit 0", "sneaker, rust stripes, digit 1")
    assert len(groups.names) == 8
    assert np.allclose(twice.test.true_groups().counts(), 250, atol=50)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_two_shortcuts_are_wrong_independently_of_each_other(twice: Task, split: str) -> None:
    groups = getattr(twice, split).true_groups()
    assert groups.coordinates is not None
    label, texture, digit = groups.coordinates[groups.index].T
    wrong = np.stack([texture != label, digit != label])
    assert np.allclose(wrong.mean(axis=1), 0.05, atol=0.015)
    assert wrong.all(axis=0).mean() == pytest.approx(0.0025, abs=0.002)
    assert abs(np.corrcoef(wrong)[0, 1]) < 0.06
    counts = groups.counts()
    assert counts.min() > 0


def test_in_the_test_split_class_and_shortcuts_are_independent(twice: Task) -> None:
    groups = twice.test.true_groups()
    assert groups.coordinates is not None
    assert np.allclose(np.corrcoef(groups.coordinates[groups.index].T), np.eye(3), atol=0.06)


@pytest.mark.parametrize("split", SPLITS)
def test_two_shortcuts_show_things_before_a_texture(twice: Task, idx_dir: Path, split: str) -> None:
    made = getattr(twice, split)
    images, labels = array(twice, split), made.labels
    groups = made.true_groups()
    _, texture, digit = groups.coordinates[groups.index].T
    garments = np.concatenate([pool(idx_dir, "fashion-mnist", split, kind) for kind in (7, 9)])
    assert np.array_equal(labels, np.repeat([0, 1], [len(pool(idx_dir, "fashion-mnist", split, k)) for k in (7, 9)]))
    lower = images[:, :, 28:]
    assert np.all(lower.min(axis=1) >= np.maximum(garments, 1) - 1)  # what is bright stays, whatever is behind it
    assert np.all(lower.min(axis=1)[garments == 255] == 255)
    behind = (lower * (garments == 0)[:, None]).sum(axis=(2, 3), dtype=np.int64)
    assert np.array_equal(behind[:, 2] > behind[:, 0], texture == 1)  # teal has more blue than red, rust less
    for kind in (0, 1):  # a one has much less ink than a zero
        ink = (images[digit == kind, :, :28].min(axis=1) > 200).mean(axis=(1, 2))
        assert (np.median(ink) < 0.06) == (kind == 1)


def test_two_shortcuts_stay_the_bytes_that_results_were_measured_on(twice: Task) -> None:
    digests = [hashlib.sha256(array(twice, split).tobytes()).hexdigest()[:16] for split in SPLITS]
    assert digests == DIGESTS


def test_three_shortcuts_are_two_shortcuts_in_a_frame(thrice: Task, twice: Task) -> None:
    thrice.check()
    groups = thrice.train.true_groups()
    assert groups.attributes == ("background", "co-occurring object", "frame")
    assert groups.names[0] == "sneaker, rust stripes, digit 0, violet frame"
    assert len(groups.names) == 16
    assert np.allclose(thrice.test.true_groups().counts(), 125, atol=35)
    for split in SPLITS:
        assert np.array_equal(array(thrice, split)[:, :, 2:-2, 2:-2], array(twice, split)[:, :, 2:-2, 2:-2])
        assert getattr(thrice, split).ids == getattr(twice, split).ids
        assert np.array_equal(
            getattr(thrice, split).true_groups().index // 2, getattr(twice, split).true_groups().index
        )


@pytest.mark.parametrize("split", SPLITS)
def test_the_frame_has_one_of_two_colours_as_its_group_says(thrice: Task, split: str) -> None:
    images, groups = array(thrice, split), getattr(thrice, split).true_groups()
    frame = groups.coordinates[groups.index][:, 3]
    around = np.concatenate(
        [images[:, :, :2].reshape(len(images), 3, -1), images[:, :, :, -2:].reshape(len(images), 3, -1)], 2
    )
    assert np.all(around == around[:, :, :1])  # one colour, all around
    assert np.array_equal(around[:, 0, 0] > around[:, 2, 0], frame == 1)  # gold has more red than blue, violet less


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_three_shortcuts_are_wrong_independently_of_each_other(thrice: Task, split: str) -> None:
    groups = getattr(thrice, split).true_groups()
    label, *shortcuts = groups.coordinates[groups.index].T
    wrong = np.stack([value != label for value in shortcuts])
    assert np.allclose(wrong.mean(axis=1), 0.05, atol=0.015)
    assert np.allclose(np.corrcoef(wrong), np.eye(3), atol=0.08)


def test_the_same_files_make_the_same_images(tmp_path: Path) -> None:
    fake_sets(tmp_path, 1010, 20)
    first, again = two_shortcuts(tmp_path), two_shortcuts(tmp_path)
    assert all(np.array_equal(array(first, split), array(again, split)) for split in SPLITS)
    assert first.digests == again.digests


@pytest.mark.parametrize("make", [dominoes, two_shortcuts, three_shortcuts])
@pytest.mark.parametrize("correlation", [0.1, 0.49, 1.01])
def test_a_correlation_out_of_its_range_is_refused(idx_dir: Path, make: object, correlation: float) -> None:
    with pytest.raises(DataError) as caught:
        make(idx_dir, correlation)  # type: ignore[operator]
    assert str(caught.value) == (
        f"correlation must lie in [0.5, 1] for a shortcut of 2 values, got {correlation}; 0.5 plants none"
    )


def test_a_correlation_of_one_leaves_no_exception(tmp_path: Path) -> None:
    counts = dominoes(fake_sets(tmp_path, 1010, 20), 1.0).train.true_groups().counts()
    assert counts.tolist() == [10, 0, 0, 10]


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        two_shortcuts(fake_sets(tmp_path, 1000, 20))
    assert str(caught.value) == (
        f"{tmp_path / 'fashion-mnist'} must hold more than 1,000 training images of kinds 7 and 9 each and some to "
        "test on, found 1,000 in train; give the original IDX files"
    )


@pytest.mark.parametrize("missing", ["mnist", "fashion-mnist"])
def test_a_set_that_is_not_there_is_named(tmp_path: Path, missing: str) -> None:
    fake_sets(tmp_path, 1010, 2)
    for path in (tmp_path / missing).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=rf"must hold {missing}'s IDX files"):
        dominoes(tmp_path)
