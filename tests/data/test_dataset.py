from __future__ import annotations

import numpy as np
import pytest

from exmap.data import ArrayImages, Split, Task, array_split
from exmap.data.dataset import batch_slices
from exmap.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 3, 4, 5), dtype=np.uint8)
LABELS = np.arange(9, dtype=np.int64) % 3


def split(labels: np.ndarray = LABELS, ids: tuple[str, ...] | None = None, names: str = "abc") -> Split:
    return Split("val", ArrayImages(IMAGES), labels, ids or tuple(f"v/{i}" for i in range(9)), tuple(names))


def test_whole_number_pixels_are_read_as_fractions_and_others_as_they_are() -> None:
    rows = np.array([4, 0, 4])
    batch = ArrayImages(IMAGES).batch(rows)
    assert batch.dtype == np.float32
    assert np.array_equal(batch, IMAGES[rows].astype(np.float32) / np.float32(255))
    real = np.random.default_rng(1).normal(size=(9, 3, 4, 5))
    assert np.array_equal(ArrayImages(real).batch(rows), real[rows].astype(np.float32))


def test_reading_a_batch_gives_a_copy() -> None:
    real = np.ones((2, 3, 4, 5), dtype=np.float32)
    ArrayImages(real).batch(np.array([0, 1]))[:] = 7
    assert (real == 1).all()


def test_images_know_their_shape_and_refuse_another_number_of_dimensions() -> None:
    assert (ArrayImages(IMAGES).shape, len(ArrayImages(IMAGES))) == ((3, 4, 5), 9)
    with pytest.raises(DataError) as caught:
        ArrayImages(IMAGES[:, 0])
    assert str(caught.value) == "images must have shape (N, C, H, W), got (9, 4, 5)"


def test_a_split_gives_every_image_once_in_order() -> None:
    parts = list(split().batches(4))
    assert [part for part, _ in parts] == [slice(0, 4), slice(4, 8), slice(8, 9)]
    assert np.array_equal(np.concatenate([images for _, images in parts]), ArrayImages(IMAGES).batch(np.arange(9)))
    assert list(batch_slices(0, 4)) == []


def test_repeated_ids_are_refused_with_their_number() -> None:
    with pytest.raises(DataError) as caught:
        split(ids=("a", "b", "a", "c", "d", "b", "e", "a", "f"))
    assert str(caught.value) == "split val must have unique ids; 3 repeat"


@pytest.mark.parametrize(("first", "low", "high"), [(3, 0, 3), (-1, -1, 2)])
def test_labels_outside_the_classes_are_refused_with_the_range(first: int, low: int, high: int) -> None:
    labels = np.array([first, *LABELS[1:]])
    with pytest.raises(DataError) as caught:
        split(labels)
    assert str(caught.value) == f"labels of split val must lie in [0, 2], got {low} to {high}; name every class"


def test_missing_labels_or_ids_are_refused_with_all_three_numbers() -> None:
    with pytest.raises(DataError) as caught:
        split(LABELS[:8])
    assert str(caught.value) == "split val must have one label and id per image, got 9 images, 8 labels, 9 ids"


def test_true_groups_must_be_there_to_be_read() -> None:
    with pytest.raises(DataError, match="split val has no true groups; evaluate by class"):
        split().true_groups()
    made = array_split(IMAGES, LABELS, true_groups=[0, 0, 1, 1, 1, 3, 3, 3, 3])
    assert made.true_groups().counts().tolist() == [2, 3, 0, 4]
    assert made.true_groups().names == ("group 0", "group 1", "group 2", "group 3")
    assert "truth" not in repr(made)


def test_true_groups_of_another_length_are_refused() -> None:
    with pytest.raises(DataError):
        array_split(IMAGES, LABELS, true_groups=[0, 1, 0])


def test_arrays_make_a_split_with_numbered_or_given_names() -> None:
    made = array_split(IMAGES, LABELS.tolist(), name="mine")
    assert (made.ids[0], made.ids[8], made.class_names, made.n_classes) == ("mine/0", "mine/8", ("0", "1", "2"), 3)
    assert made.labels.dtype == np.int64
    named = array_split(IMAGES, LABELS, class_names=["x", "y", "z", "w"])
    assert named.class_names == ("x", "y", "z", "w")


@pytest.mark.parametrize("bad", ["train", "val", "test"])
@pytest.mark.parametrize("count", [0, 1])
def test_a_class_with_fewer_than_two_samples_in_any_split_is_refused(bad: str, count: int) -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2])
    few = np.array([0, 0, 0, 1, 1, 1, 1, 1, *[2] * count, 0, 0][:9])
    splits = {n: split(few if n == bad else labels) for n in ("train", "val", "test")}
    named = {n: Split(n, s.images, s.labels, s.ids, s.class_names) for n, s in splits.items()}
    with pytest.raises(DataError) as caught:
        Task("mine", **named).check()
    assert str(caught.value) == (
        f"each class needs at least 2 samples in each split, but class 'c' has {count} in split {bad}; add samples or "
        "leave the class out"
    )


def test_two_samples_of_each_class_are_enough() -> None:
    two = array_split(IMAGES[:6], [0, 1, 2, 0, 1, 2])
    Task("mine", two, two, two).check()
