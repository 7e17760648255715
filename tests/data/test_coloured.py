from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from exmap.data import Split, Task
from exmap.data.coloured import (
    TEN_COLOURS,
    cmnist,
    cmnist_10,
    colour_split,
    draw_colours,
    draw_shortcut,
    embedded_digits,
)
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


@pytest.mark.parametrize("n_values", [2, 3, 10])
@pytest.mark.parametrize("seed", range(3))
def test_a_shortcut_takes_the_labels_own_value_as_often_as_asked_and_the_others_evenly(
    n_values: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, n_values, 20_000)
    for correlation in (1 / n_values, 0.8):
        drawn = draw_shortcut(labels, n_values, correlation, np.random.default_rng(seed))
        distance = np.bincount((drawn - labels) % n_values, minlength=n_values) / len(labels)
        assert distance[0] == pytest.approx(correlation, abs=0.015)
        assert np.allclose(distance[1:], (1 - correlation) / (n_values - 1), atol=0.015)
    always = draw_shortcut(labels, n_values, 1.0, np.random.default_rng(seed))
    assert np.array_equal(always, labels)


@pytest.mark.parametrize(("n_values", "correlation"), [(2, 0.49), (3, 0.33), (10, 0.09), (2, 1.01), (2, float("nan"))])
def test_a_correlation_out_of_its_range_is_refused(n_values: int, correlation: float) -> None:
    with pytest.raises(DataError) as caught:
        draw_shortcut(np.array([0, 1]), n_values, correlation, np.random.default_rng(0))
    least = f"{1 / n_values:.3g}"
    assert str(caught.value) == (
        f"correlation must lie in [{least}, 1] for a shortcut of {n_values} values, got {correlation}; {least} plants "
        "none"
    )


@pytest.mark.parametrize("correlation", [0.2, 0.499])
def test_two_colours_need_a_correlation_of_a_half_or_more(correlation: float) -> None:
    with pytest.raises(DataError, match=r"^correlation must lie in \[0.5, 1\] for a shortcut of 2 values, got "):
        draw_colours(np.array([0, 1]), correlation)
    with pytest.raises(DataError, match=r"^correlation must lie in "):
        embedded_digits(correlation)


@pytest.fixture(scope="module")
def ten(mnist_dir: Path) -> Task:
    return cmnist_10(mnist_dir)


def test_ten_digits_in_ten_colours_have_a_hundred_groups(ten: Task) -> None:
    ten.check()
    assert [len(split) for split in (ten.train, ten.val, ten.test)] == [50_000, 10_000, 10_000]
    assert (len(ten.digests), ten.n_classes) == (4, 10)
    groups = ten.train.true_groups()
    assert (groups.names[0], groups.names[99], len(groups.names)) == ("digit 0, red", "digit 9, grey", 100)
    for split in (ten.train, ten.val):
        counts = split.true_groups().counts().reshape(10, 10)
        assert np.allclose(np.diag(counts) / counts.sum(axis=1), 0.99, atol=0.01)
    assert np.allclose(ten.test.true_groups().counts(), 100, atol=45)


def test_the_splits_of_ten_colours_are_mnist_in_its_own_order(ten: Task, mnist_dir: Path) -> None:
    grey, digits, _ = read_pair(mnist_dir, "t10k")
    assert np.array_equal(ten.test.labels, digits)
    assert np.array_equal(ten.val.labels, read_pair(mnist_dir, "train")[1][50_000:])
    palette = np.array(list(TEN_COLOURS.values()))
    colours = ten.test.true_groups().index % 10
    rows = np.arange(0, 10_000, 97)
    images = ten.test.images.array[rows]  # type: ignore[attr-defined]
    expected = grey[rows, None].astype(int) * palette[colours[rows]][:, :, None, None] // 255
    assert np.array_equal(images, expected)


def test_ten_colours_are_ten() -> None:
    assert len(set(TEN_COLOURS.values())) == 10


def test_ten_colours_plant_no_shortcut_at_a_tenth_and_refuse_less(mnist_dir: Path) -> None:
    counts = cmnist_10(mnist_dir, 0.1).val.true_groups().counts().reshape(10, 10)
    assert np.allclose(np.diag(counts) / counts.sum(axis=1), 0.1, atol=0.035)
    with pytest.raises(DataError, match=r"^correlation must lie in \[0.1, 1\] for a shortcut of 10 values, got 0.05;"):
        cmnist_10(mnist_dir, 0.05)


def test_too_few_images_for_ten_colours_are_refused(tmp_path: Path) -> None:
    for stem in ("train", "t10k"):
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">HBBIII", 0, 8, 3, 2, 1, 1) + b"ab")
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, 2) + b"\0\1")
    with pytest.raises(DataError, match=r"must hold more than 10,000 images, found 2 in "):
        cmnist_10(tmp_path)
