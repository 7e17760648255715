"""A column: one thing that is known of each image, a number or a text, and what one says where groups differ in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from exmap.errors import DataError
from exmap.records import IntArray

__all__ = ["Column", "file_columns", "given_columns"]

MOST_VALUES = 30  # of a text: rarer ones count as one that is never named
ALL_DIFFERENT = 0.5  # share of distinct texts from which they are names of images, not kinds of them
FEW_NUMBERS = 6  # distinct numbers up to which they are kinds: 0 and 1, months, grades
YES_AND_NO = (("0", "1"), ("-1", "1"), ("no", "yes"), ("False", "True"), ("false", "true"), ("0.0", "1.0"))
LONGEST = 60  # characters of a text in a sentence

FILE_WORDS: Mapping[str, tuple[str, str, str]] = {
    "bytes": ("are larger files", "are smaller files", "bytes"),
    "width": ("are wider", "are narrower", "pixels"),
    "height": ("are taller", "are less tall", "pixels"),
    "aspect": ("have a wider shape", "have a taller shape", "width : height"),
    "bits per pixel": ("are less compressed", "are more compressed", "bits"),
    "quality": ("have a higher JPEG quality", "have a lower JPEG quality", ""),
}


@dataclass(frozen=True, eq=False)
class Column:
    """One thing that is known of each image.

    Attributes
    ----------
    name, topic, unit : str
    kind : str
        Where it comes from, as in :class:`~exmap.results.Difference`.
    more, less : str
        Ends of sentences about several images; of texts, ``{}`` stands for the value.
    numbers : ndarray of float64, shape (N,), or None
        NaN where not known.
    texts : ndarray of object, shape (N,), or None
        Empty where not known.
    of : str
        The one text that is said of them, of a column of yes and no; else empty.
    """

    name: str
    kind: Literal["place of relevance", "pixels", "file", "metadata"]
    topic: str
    more: str
    less: str
    unit: str = ""
    numbers: NDArray[np.float64] | None = None
    texts: NDArray[np.object_] | None = None
    of: str = ""

    def rows(self, rows: IntArray) -> tuple[NDArray[np.float64] | None, NDArray[np.object_] | None]:
        """Return the numbers, or the texts, of some images."""
        return (
            None if self.numbers is None else self.numbers[rows],
            None if self.texts is None else self.texts[rows],
        )


def given_columns(metadata: Mapping[str, Sequence[Any]] | None, count: int) -> tuple[list[Column], list[str]]:
    """Return columns of metadata, and a sentence for each that says nothing of a group.

    Parameters
    ----------
    metadata : mapping of str to sequence, or None
        One value per image; numbers, texts, or what looks like either.
    count : int
        How many images there are.

    Raises
    ------
    DataError
        If a column has another number of values.
    """
    columns, remarks = [], []
    for name, values in (metadata or {}).items():
        if len(values) != count:
            raise DataError(f"metadata must have one value per image, got {len(values)} of {name} for {count} images")
        numbers, texts = _read(values)
        if numbers is not None:
            more, less = f"have a higher {name}", f"have a lower {name}"
            columns.append(Column(name, "metadata", name, more, less, numbers=numbers))
        elif texts is not None and (yes := _yes(texts)):
            more, less = f"are marked {name}", f"less often are marked {name}"
            columns.append(Column(name, "metadata", name, more, less, "share", texts=texts, of=yes))
        elif texts is not None:
            columns.append(
                Column(
                    name,
                    "metadata",
                    name,
                    f"have {name} \u201c{{}}\u201d",
                    f"less often have {name} \u201c{{}}\u201d",
                    "share",
                    texts=texts,
                )
            )
        else:
            remarks.append(f"Column {name} has another value for nearly every image, or one for all, and was left out.")
    return columns, remarks


def file_columns(facts: Mapping[str, Sequence[Any]] | None, count: int) -> list[Column]:
    """Return columns of what is known of image files: sizes, format, camera and whatever else was read.

    Parameters
    ----------
    facts : mapping of str to sequence, or None
        ``bytes``, ``width`` and ``height`` in pixels, ``format``, ``camera`` and others.
    count : int
    """
    known: dict[str, Any] = dict(facts or {})
    sizes = {name: _numbers(known[name]) for name in ("bytes", "width", "height") if name in known}
    if {"width", "height"} <= set(sizes):
        with np.errstate(divide="ignore", invalid="ignore"):
            known["aspect"] = sizes["width"] / sizes["height"]
            if "bytes" in sizes:
                known["bits per pixel"] = 8 * sizes["bytes"] / (sizes["width"] * sizes["height"])
    columns = []
    for name, values in known.items():
        if len(values) != count:
            raise DataError(f"facts of files must be one per image, got {len(values)} of {name} for {count} images")
        numbers, texts = (_numbers(values), None) if name in FILE_WORDS else _read(values)
        if numbers is not None:
            more, less, unit = FILE_WORDS.get(name, (f"have a higher {name}", f"have a lower {name}", ""))
            columns.append(Column(name, "file", "file", more, less, unit, numbers=numbers))
        elif texts is not None:
            more, less = f"have the {name} \u201c{{}}\u201d", f"less often have the {name} \u201c{{}}\u201d"
            columns.append(Column(name, "file", f"file {name}", more, less, "share", texts=texts))
    return columns


def _numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    """Return values as numbers, NaN for what is none."""
    return np.array([_number(value) for value in values], dtype=np.float64)


def _number(value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return float("nan")
    return found if np.isfinite(found) else float("nan")


def _read(values: Sequence[Any]) -> tuple[NDArray[np.float64] | None, NDArray[np.object_] | None]:
    """Return values as numbers or as texts; neither where they say nothing of a group."""
    texts = np.array(["" if _unknown(value) else str(value).strip() for value in values], dtype=object)
    known = texts[texts != ""]
    distinct = sorted(set(known))
    if len(distinct) < 2:
        return None, None
    numbers = _numbers([None if text == "" else text for text in texts])
    if len(distinct) > FEW_NUMBERS and np.isfinite(numbers[texts != ""]).all():
        return (None, None) if _counts(numbers) else (numbers, None)
    if len(distinct) > max(ALL_DIFFERENT * len(known), 2):
        return None, None
    return None, np.array([text[:LONGEST] for text in texts], dtype=object)


def _yes(texts: NDArray[np.object_]) -> str:
    """Return what stands for yes in a column of yes and no; empty for other columns."""
    found = set(texts) - {""}
    return next((yes for no, yes in YES_AND_NO if found <= {no, yes}), "")


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _counts(numbers: NDArray[np.float64]) -> bool:
    """Return whether these are the numbers of the images themselves: whole, all different, one after the other."""
    known = numbers[np.isfinite(numbers)]
    whole = np.unique(known)
    return len(whole) == len(known) and bool((np.diff(whole) == 1).all())
