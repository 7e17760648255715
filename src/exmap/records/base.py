"""What all records share: types of arrays, progress, and the check that arrays belong together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.errors import DataError

__all__ = ["FloatArray", "IntArray", "Listener", "Progress", "check_same_length", "silent"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Progress:
    """How far a long piece of work has come: `done` of `total` units, with a short note.

    `at_once` asks to be shown now, for example an estimate of the time before the work begins.
    """

    task: str
    done: int
    total: int
    unit: str = "images"
    note: str = ""
    at_once: bool = False

    def __str__(self) -> str:
        """Return it as a line to print.

        Examples
        --------
        >>> print(Progress("explain", 1_200, 4_000))
        explain: 1,200 of 4,000 images
        """
        return " ".join(filter(None, (f"{self.task}: {self.done:,} of {self.total:,} {self.unit}", self.note)))


Listener = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Ignore progress."""


def check_same_length(what: str, **arrays: Any) -> None:
    """Raise DataError unless all arrays have one length."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the arrays of {what} must have one length, got {lengths}")
