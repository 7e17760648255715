from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from exmap.data import Split, Task
from exmap.data.coloured import cmnist, colour_split, draw_colours, embedded_digits
from exmap.data.idx import read_pair
from exmap.errors import DataError


@pytest.fixture(scope="module")
def paper(mnist_dir: Path) -> Task:
    return cmnist(mnist_dir)


@pytest.mark.parametrize(
    ("name", "counts"),
    [("train", [254, 25284, 24231, 231]), ("val", [45, 5013, 4893, 49]), ("test", [48, 5091, 4815, 46])],
)
def test_cmnist_has_exactly_the_group_counts_of_the_paper(paper: Task, name: str, counts: list[int]) -> None:
    split: Split = getattr(paper, name)
    assert split.true_groups().counts().tolist() == counts
    assert split.true_groups().names == ("digit 0-4, red", "digit 0-4, green", "digit 5-9, red", "digit 5-9, green")
    assert len(split) == sum(counts)


def test_cmnist_is_mnist_in_its_own_order_and_the_label_is_whether_the_digit_exceeds_4(
    paper: Task, mnist_dir: Path
) -> None:
    grey, digits, digests = read_pair(mnist_dir, "t10k")
    assert np.array_equal(paper.test.labels, digits > 4)
    assert np.array_equal(paper.test.images.array.sum(axis=1, dtype=np.uint8), grey)  # type: ignore[attr-defined]
    train_grey, train_digits, train_digests = read_pair(mnist_dir, "train")
    assert np.array_equal(paper.val.labels, train_digits[50_000:] > 4)
    assert np.array_equal(paper.val.images.batch(np.array([0])).sum(axis=1)[0] * 255, train_grey[50_000])
    assert paper.digests == {**train_digests, **digests}
    assert len(paper.digests) == 4


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_a_digit_fills_only_the_channel_of_its_colour(paper: Task, name: str) -> None:
    split: Split = getattr(paper, name)
    used = split.images.array.any(axis=(2, 3))  # type: ignore[attr-defined]
    colour = split.true_groups().index % 2
    assert np.array_equal(used, np.eye(3, dtype=bool)[colour])


def test_cmnist_without_a_shortcut_has_nearly_balanced_groups(paper: Task, mnist_dir: Path) -> None:
    for split in (paper.train, paper.val, paper.test):
        colours = draw_colours(split.labels, 0.5)
        counts = np.bincount(split.labels * 2 + colours, minlength=4)
        assert np.allclose(counts / len(split), 0.25, atol=0.02)
    _, digits, _ = read_pair(mnist_dir, "t10k")
    tiny = colour_split("test", np.zeros((10_000, 1, 1), dtype=np.uint8), digits, 0.5)
    assert np.allclose(tiny.true_groups().counts(), 2500, atol=200)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("correlation", [0.5, 0.8, 0.95])
def test_each_class_takes_its_usual_colour_as_often_as_asked(correlation: float, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 2, 8000)
    colours = draw_colours(labels, correlation)
    assert np.mean(colours[labels == 0]) == pytest.approx(correlation, abs=0.025)
    assert np.mean(colours[labels == 1]) == pytest.approx(1 - correlation, abs=0.025)
    assert np.array_equal(colours, draw_colours(labels, correlation))


def test_colours_follow_the_papers_order_of_draws() -> None:
    labels = np.array([1, 0, 1, 0, 0, 1])
    rng = np.random.RandomState(0)
    zeros, ones = rng.binomial(1, 0.7, 3), rng.binomial(1, 1 - 0.7, 3)
    assert draw_colours(labels, 0.7).tolist() == [ones[0], zeros[0], ones[1], zeros[1], zeros[2], ones[2]]


def test_colours_do_not_touch_numpys_global_generator() -> None:
    before = np.random.get_state()[1].copy()
    draw_colours(np.array([0, 1]), 0.9)
    assert np.array_equal(np.random.get_state()[1], before)


def test_embedded_digits_are_coloured_and_their_splits_share_no_image() -> None:
    task = embedded_digits(0.9)
    task.check()
    assert [len(split) for split in (task.train, task.val, task.test)] == [897, 450, 450]
    assert task.train.images.shape == (3, 8, 8)
    for split in (task.train, task.val, task.test):
        used = split.images.array.any(axis=(2, 3))  # type: ignore[attr-defined]
        assert np.array_equal(used, np.eye(3, dtype=bool)[split.true_groups().index % 2])
        usual = split.true_groups().counts()[[1, 2]].sum() / len(split)
        assert usual == pytest.approx(0.9, abs=0.05)
    assert embedded_digits(0.9).digests == task.digests


def test_too_few_training_images_are_refused(tmp_path: Path) -> None:
    for stem in ("train", "t10k"):
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">HBBIII", 0, 8, 3, 2, 1, 1) + b"ab")
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 2) + b"\0\1")
    with pytest.raises(DataError) as caught:
        cmnist(tmp_path)
    assert str(caught.value) == (f"MNIST's training file must hold more than 10,000 images, found 2 in {tmp_path}")
