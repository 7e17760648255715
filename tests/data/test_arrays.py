from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from exmap.data import array_split
from exmap.data.given import as_split
from exmap.data.images import ArrayImages
from exmap.errors import DataError

X = np.random.default_rng(0).random((6, 3, 8, 7)).astype(np.float32)
Y = [0, 1, 0, 1, 0, 1]
ALL = np.arange(6)

WAYS = pytest.mark.parametrize(
    "make", [array_split, lambda x, y, **more: as_split((x, y), **more)], ids=["array", "as"]
)


def refused(make: Any, x: Any, y: Any, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        make(x, y, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@WAYS
@pytest.mark.parametrize(
    "images",
    [
        X.tolist(),
        torch.tensor(X, requires_grad=True),
        list(torch.tensor(X)),
        X.transpose(0, 2, 3, 1),
        X.astype(">f4"),
        np.array([*X, None], dtype=object)[:6],
    ],
    ids=["list", "tensor", "tensors", "channels last", "big-endian", "objects"],
)
def test_images_in_any_plain_form_are_the_same_images(make: Any, images: Any) -> None:
    assert np.array_equal(make(images, Y).images.batch(ALL), X)


@WAYS
def test_grey_and_black_and_white_images_are_understood(make: Any) -> None:
    assert make(X[:, 0], Y).images.shape == (1, 8, 7)
    assert np.array_equal(make(X > 0.5, Y).images.batch(ALL), (X > 0.5).astype(np.float32))


@WAYS
def test_small_feature_maps_are_not_taken_for_channels_last(make: Any) -> None:
    assert make(np.zeros((6, 64, 4, 4), dtype=np.float32), Y).images.shape == (64, 4, 4)


@WAYS
@pytest.mark.parametrize("kind", ["int64", "int32", "uint16", "int8", ">u2"])
def test_integers_other_than_bytes_are_refused_with_how_to_convert_them(make: Any, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 100, (6, 3, 8, 7)).astype(kind)
    said = refused(make, pixels, Y)
    assert said.startswith("images must be bytes, or floating-point numbers as the model wants them, got ")
    assert said.endswith("from 0 to 99; give them as bytes by astype('uint8')")
    assert refused(make, pixels.astype("int64") * 100, Y).endswith("as floating-point numbers")
    with pytest.raises(DataError, match="images must be bytes"):
        ArrayImages(pixels)


@WAYS
@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([X[0], X[1][:, :4]], "images must be one array, but their parts differ in shape"),
        (np.array(["a"] * 6), "images must have shape (N, C, H, W), (N, H, W, C) or (N, H, W), got (6,)"),
        (X.astype(complex), "got complex128; convert them by astype"),
        (X[:, :, :0], "images must have shape"),
        (X[0], "there must be one label per image"),
        (None, ""),
        ({"a": 1}, ""),
    ],
    ids=["ragged", "words", "complex", "no height", "one image", "none", "dict"],
)
def test_what_is_no_images_is_one_sentence(make: Any, images: Any, said: str) -> None:
    assert said in refused(make, images, Y)


@WAYS
@pytest.mark.parametrize(
    ("labels", "names", "index"),
    [
        (["b", "a"] * 3, ("a", "b"), [1, 0] * 3),
        ([b"b", b"a"] * 3, ("a", "b"), [1, 0] * 3),
        (["10", "9"] * 3, ("9", "10"), [1, 0] * 3),
        (["cat ", "cat", "dog"] * 2, ("cat", "dog"), [0, 0, 1] * 2),
        (np.array(Y)[:, None], ("0", "1"), Y),
        (np.array(Y, dtype=float), ("0", "1"), Y),
        (np.array(Y) == 1, ("0", "1"), Y),
        (torch.tensor(Y, dtype=torch.uint8), ("0", "1"), Y),
        ([2, 0] * 3, ("0", "1", "2"), [2, 0] * 3),
    ],
)
def test_labels_in_any_plain_form_are_understood(
    make: Any, labels: Any, names: tuple[str, ...], index: list[int]
) -> None:
    split = make(X, labels)
    assert (split.class_names, split.labels.tolist()) == (names, index)


@WAYS
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0.0, 1.0, 0.9, 1, 0, 1], "got 0.9; correct it"),
        ([0, 1, 0, 1, 0, float("nan")], "got nan"),
        ([0, 1, 0, 1, 0, float("inf")], "got inf"),
        ([0, 1, 0, 1, 0, None], "got None"),
        (["a", "b", "a", "b", "a", " "], "got ' '"),
        (np.eye(2)[Y], "of one-hot labels give the argmax"),
        ([0, 1, 0, 1, 0, -1], "labels must be the numbers of classes from 0 on, got -1"),
        ([0, 1, 0, 1, 0, 10**12], "of at most 100,000 classes, from 0 on, got 1000000000000"),
        ([0, 1, 0, 1, 0, 2**80], "of at most 100,000 classes"),
        (["b", 1] * 3, "labels must be all numbers or all names, got 1 and 'b'"),
        (["Cat", "cat"] * 3, "name all of them in class_names if they are several"),
        ([b"\xff", b"a"] * 3, "must be text"),
        (3, "labels must be one for each image, got 3"),
        (None, "labels must be one for each image, got None"),
        (Y[:4], "there must be one label per image, got 4 for 6 images"),
        (np.array(["2020-01-01"] * 6, dtype="M8[D]"), "got datetime64"),
    ],
)
def test_what_is_no_label_is_one_sentence(make: Any, labels: Any, said: str) -> None:
    assert said in refused(make, X, labels)


@WAYS
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a"], "every label must be the number of one of 1 classes, from 0 on, got 1"),
        ("ab", "class_names must be a list of names, got the text 'ab'"),
        (["a", "a"], "class_names names 'a' again"),
    ],
)
def test_class_names_are_a_list_of_all_classes(make: Any, names: Any, said: str) -> None:
    assert said in refused(make, X, Y, class_names=names)


@pytest.mark.parametrize(("groups", "said"), [([0, 0.5] * 3, "got 0.5"), ([0, -1] * 3, "got -1"), ([0], "got 1 for 6")])
def test_true_groups_are_not_cut_to_numbers(groups: Any, said: str) -> None:
    assert said in refused(array_split, X, Y, true_groups=groups)


def test_true_groups_may_be_names() -> None:
    assert array_split(X, Y, true_groups=["sea", "land"] * 3).true_groups().names == ("land", "sea")


@WAYS
def test_whole_numbers_as_floats_are_taken_as_they_are_and_that_is_said(make: Any) -> None:
    split = make(np.round(X * 255), Y)
    assert split.images.batch(ALL).max() > 200
    assert "if it wants [0, 1], give them as bytes by astype('uint8')" in split.notes[0]
    assert make(X, Y).notes == make(X * 255, Y).notes == ()


def test_pixels_that_are_not_finite_are_kept_and_shown_black() -> None:
    damaged = X.copy()
    damaged[2, 0, 0, 0], damaged[3, 0, 0, 0] = np.nan, np.inf
    images = array_split(damaged, Y).images
    assert np.isnan(images.batch(ALL)[2, 0, 0, 0])
    assert np.isfinite(images.pixels(ALL)).all()
    assert images.pixels(ALL)[2, 0, 0, 0] == 0


def test_an_empty_set_is_refused() -> None:
    for images, said in ((X[:0], "found none"), (np.zeros((0, 2, 4, 4), dtype=object), "got object")):
        assert said in refused(lambda x, y: as_split((x, y), class_names=["a", "b"]), images, [])
