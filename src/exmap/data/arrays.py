"""Arrays and lists of a user's as images and labels: what is surely meant is understood, all else is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exmap.data.labels import listed, named_again, read_labels
from exmap.errors import DataError, shown
from exmap.records import IntArray

__all__ = ["as_array", "check_pixels", "label_of", "label_index", "pixel_array", "pixel_notes"]

LOOKED_AT = 16  # images
MOST_CLASSES = 100_000  # without names; a larger label is a number of something else


def as_array(values: Any, what: str) -> NDArray[Any]:
    """Return a tensor, list or anything else that numpy makes an array of; pictures become an array of objects.

    Raises
    ------
    DataError
        For a list of arrays of several shapes.
    """
    if isinstance(values, torch.Tensor):
        tensor = values.detach().cpu()
        found: NDArray[Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
        return found
    if isinstance(values, (list, tuple)) and values and hasattr(values[0], "convert"):  # pictures
        held = np.empty(len(values), dtype=object)
        held[:] = values
        return held
    if isinstance(values, (list, tuple)) and values and isinstance(values[0], torch.Tensor):
        values = [as_array(one, what) for one in values]
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of several lengths; objects that are no numbers
        raise DataError(f"{what} must be one array, but their parts differ in shape; give them one shape") from error


def pixel_array(images: Any) -> NDArray[np.uint8] | NDArray[np.floating]:
    """Return images as an array of shape (N, C, H, W).

    Parameters
    ----------
    images : array-like or Tensor
        Of shape (N, C, H, W); (N, H, W, C) where only that has 1 to 4 channels; or (N, H, W), which are grey. uint8 in
        [0, 255], bool, or floating point as the model wants it.

    Raises
    ------
    DataError
        For another shape or kind of numbers, above all integers other than bytes: nobody knows their range.
    """
    pixels = as_array(images, "images")
    if pixels.dtype == object and pixels.ndim and len(pixels) and all(isinstance(one, np.ndarray) for one in pixels):
        shapes = {one.shape for one in pixels}
        if len(shapes) > 1:
            first, second = sorted(shapes)[:2]
            raise DataError(f"all images must have one shape, got {first} and {second}; resize or crop them")
        pixels = np.stack(list(pixels))
    if pixels.dtype == bool:
        pixels = pixels.astype(np.float32)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if pixels.ndim != 4 or 0 in pixels.shape[1:]:
        raise DataError(f"images must have shape (N, C, H, W), (N, H, W, C) or (N, H, W), got {pixels.shape}")
    if pixels.shape[1] > 4 and pixels.shape[2] > 4 and pixels.shape[3] <= 4:
        pixels = pixels.transpose(0, 3, 1, 2)
    check_pixels(pixels)
    return pixels


def pixel_notes(pixels: NDArray[Any]) -> tuple[str, ...]:
    """Return a sentence where pixels may be meant otherwise than they are taken, as the first images show."""
    few = pixels[:LOOKED_AT]
    if pixels.dtype.kind != "f" or not few.size or not np.isfinite(few).all():
        return ()
    if few.min() >= 0 and 16 < few.max() <= 255 and np.array_equal(few, np.rint(few)):
        return (
            f"The images hold whole numbers up to {few.max():.0f} as floating-point numbers, which the model is given "
            "as they are; if it wants [0, 1], give them as bytes by astype('uint8').",
        )
    return ()


def check_pixels(pixels: NDArray[Any]) -> None:
    """Refuse numbers other than bytes and floating-point ones.

    Raises
    ------
    DataError
        With how to convert them.
    """
    if pixels.dtype != np.uint8 and pixels.dtype.kind != "f":
        how = ""
        if pixels.dtype.kind in "iu" and pixels.size:
            low, high = int(pixels.min()), int(pixels.max())
            fits = low >= 0 and 1 < high <= 255
            how = f" from {low} to {high}; " + (
                "give them as bytes by astype('uint8')"
                if fits
                else "scale them to what the model wants, as floating-point numbers"
            )
        raise DataError(
            f"images must be bytes, or floating-point numbers as the model wants them, got {pixels.dtype}"
            f"{how or '; convert them by astype'}"
        )


def label_of(value: Any) -> int | str:
    """Return a label as a number or a name.

    Raises
    ------
    DataError
        For several labels, boxes, fractions, what is missing, and the like.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise DataError(
                f"each image must have one label, the number of its class, got {value.size} numbers; a classifier of "
                "several labels at once cannot be analyzed, and of one-hot labels give the argmax"
            )
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"the name of a class must be text, got {shown(value)}; give its number or name") from error
    if isinstance(value, str) and value.strip():
        return str(value).strip()
    if isinstance(value, (int, np.integer, np.bool_)):
        return int(value)
    if isinstance(value, (float, np.floating)) and np.isfinite(value) and value == int(value):
        return int(value)
    found = shown(value) if isinstance(value, (str, float, np.floating)) or value is None else type(value).__name__
    raise DataError(
        f"each image must have one label, the number or name of its class, got {found}; correct it, or leave such "
        "images out"
    )


def label_index(
    labels: Any, class_names: Sequence[str] | None, what: str = "labels"
) -> tuple[tuple[str, ...], IntArray, tuple[str, ...]]:
    """Return class names, the number of the class of each image, and notes on how labels were understood.

    Parameters
    ----------
    labels : array-like or Tensor, shape (N,)
        Numbers of classes from 0 on, or names: all of one kind.
    class_names : sequence of str, optional
        In the order of the classifier's outputs; by default the numbers, or the names as they are sorted.
    what : str
        What these are, for sentences.

    Raises
    ------
    DataError
        For labels that are no classes.
    """
    if isinstance(class_names, str):
        raise DataError(f"class_names must be a list of names, got the text {shown(class_names)}; put it in brackets")
    if class_names is not None and (again := named_again(class_names)) is not None:
        raise DataError(f"each class must be named once, but class_names names {shown(again)} again; leave it out")
    given = labels if isinstance(labels, list) else as_array(labels, what)
    if isinstance(given, np.ndarray) and given.ndim == 0:
        raise DataError(f"{what} must be one for each image, got {shown(labels)}; give a list or an array")
    if isinstance(given, np.ndarray) and given.dtype.kind in "iub" and given.ndim == 1:
        known = given.tolist()
    else:
        known = [label_of(value) for value in given]
    words = [label for label in known if isinstance(label, str)]
    if words:
        return _of_names(known, words, class_names, what)
    numbers = [label for label in known if isinstance(label, int)]
    low, high = min(numbers, default=0), max(numbers, default=-1)
    if low < 0:
        raise DataError(f"{what} must be the numbers of classes from 0 on, got {low}; leave such images out")
    if class_names is None and high >= MOST_CLASSES:
        raise DataError(
            f"{what} must be the numbers of at most {MOST_CLASSES:,} classes, from 0 on, got {shown(high)}; number the "
            "classes, or name every class"
        )
    if class_names is not None and high >= len(class_names):
        raise DataError(
            f"every label must be the number of one of {len(class_names)} classes, from 0 on, got {shown(high)}; name "
            "every class, or give the images of these alone"
        )
    names = tuple(map(str, range(high + 1))) if class_names is None else tuple(map(str, class_names))
    return names, np.array(numbers, dtype=np.int64), ()


def _of_names(
    known: Sequence[int | str], words: Sequence[str], class_names: Sequence[str] | None, what: str
) -> tuple[tuple[str, ...], IntArray, tuple[str, ...]]:
    if len(words) < len(known):
        number = next(label for label in known if isinstance(label, int))
        raise DataError(
            f"{what} must be all numbers or all names, got {shown(number)} and {shown(words[0])}; write them in one way"
        )
    if class_names is None:
        read = read_labels(words, what, told="class_names")
        return read.names, read.index, read.notes
    position = {str(name): number for number, name in enumerate(class_names)}
    strange = next((text for text in words if text not in position), None)
    if strange is not None:
        raise DataError(
            f"every label must be one of the classes {listed(tuple(position))}, got {shown(strange)}; correct it, or "
            "name every class"
        )
    return tuple(map(str, class_names)), np.array([position[text] for text in words], dtype=np.int64), ()
