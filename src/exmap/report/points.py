"""The report's map: a point per image, packed for the page's script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.errors import DataError
from exmap.records import IntArray

__all__ = ["Points"]

NONE = 65_535  # in the page's tables of 16-bit numbers: no group, no picture
STEPS = 65_534  # of a coordinate
COLUMNS = ("group", "label", "predicted", "repaired", "truth", "picture")


@dataclass(frozen=True)
class Points:
    """The map: one entry per image that is on it.

    Attributes
    ----------
    places : ndarray of float32, shape (n, 2)
    group, label, predicted, repaired, truth, picture : ndarray of int64, shape (n,)
        Pseudo-group, class, predicted class before and after retraining, true group, and tile; -1: none.
    ids : sequence of str
        Of the images with a picture, by tile.
    total : int
        How many images there are, shown or not.
    method : str
        How the places were found.
    rows : ndarray of int64, shape (n,), or None
        Which image of the split each one is, ascending; None where they are the first ones.
    """

    places: NDArray[np.float32]
    group: IntArray
    label: IntArray
    predicted: IntArray
    repaired: IntArray
    truth: IntArray
    picture: IntArray
    ids: Sequence[str]
    total: int
    method: str
    rows: IntArray | None = None

    def __post_init__(self) -> None:
        columns = ("places", *COLUMNS, *(["rows"] if self.rows is not None else []))
        lengths = {name: len(getattr(self, name)) for name in columns}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the columns of the map must have one length, got {lengths}")
        if (most := max((int(getattr(self, name).max(initial=-1)) for name in COLUMNS), default=-1)) >= NONE:
            raise DataError(f"a report shows at most {NONE - 1:,} groups, classes and pictures, got {most + 1:,}")

    def for_script(self) -> dict[str, Any]:
        """Return coordinates and columns as 16-bit numbers in base64, with the ids of the pictures."""
        places = _filled(self.places)
        columns = {name: getattr(self, name) for name in COLUMNS}
        return {
            "count": len(self.places),
            "x": _packed(places[:, 0]),
            "y": _packed(STEPS - places[:, 1]),
            **{name: _packed(np.where(values < 0, NONE, values)) for name, values in columns.items()},
            "rows": self._packed_rows(),
            "ids": list(self.ids),
        }

    def _packed_rows(self) -> str:
        """Return row numbers as 32-bit numbers in base64; empty where they count up from 0."""
        if self.rows is None or np.array_equal(self.rows, np.arange(len(self.places))):
            return ""
        return base64.b64encode(self.rows.astype("<u4").tobytes()).decode()


def _filled(places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return places that fill a square of 16-bit coordinates; the shorter axis is stretched to twice at most."""
    low, high = (f(axis=0, initial=0) if not len(places) else f(axis=0) for f in (places.min, places.max))
    span = np.maximum(high - low, (high - low).max() / 2)
    share = (places - (low + high) / 2) / np.where(span > 0, span, 1) + 0.5
    return np.asarray(np.clip(share, 0, 1) * STEPS, dtype=np.float32)


def _packed(values: NDArray[Any]) -> str:
    """Return numbers as 16-bit little-endian integers in base64."""
    return base64.b64encode(np.rint(values).astype("<u2").tobytes()).decode()
