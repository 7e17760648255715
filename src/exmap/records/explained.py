"""What a classifier says of a split, its heatmaps, and both together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.errors import DataError
from exmap.records.base import IntArray, check_same_length

__all__ = ["Explained", "Heatmaps", "Outputs", "predicted_class"]

AT_ONCE = 2**16  # rows of logits that are looked at once; they may lie on disk


def predicted_class(logits: NDArray[np.floating[Any]]) -> IntArray:
    """Return the class with the largest logit of each row, shape (N,); -1, which no label is, where any is not finite.

    Examples
    --------
    >>> predicted_class(np.array([[0.0, 1.0], [np.nan, 1.0]])).tolist()
    [1, -1]
    """
    found = np.empty(len(logits), dtype=np.int64)
    for start in range(0, len(logits), AT_ONCE):
        some = logits[start : start + AT_ONCE]
        known = np.isfinite(some).all(axis=1)
        found[start : start + AT_ONCE] = np.where(known, some.argmax(axis=1), -1)
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Outputs:
    """What a classifier says of a split.

    Attributes
    ----------
    features : ndarray of float32, shape (N, D)
        Input of the classifier's last linear layer.
    logits : ndarray of float32, shape (N, K)
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]

    def __post_init__(self) -> None:
        check_same_length("outputs", features=self.features, logits=self.logits)

    @cached_property
    def predicted(self) -> IntArray:
        """Class with the largest logit, shape (N,); -1 where logits are not finite, as those of a damaged image."""
        found = predicted_class(self.logits)
        found.setflags(write=False)  # all share it
        return found

    def __repr__(self) -> str:
        return (
            f"Outputs({len(self.logits):,} images, {self.features.shape[1]} features, {self.logits.shape[1]} classes)"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Heatmaps:
    """Relevance of every pixel for one class of each image.

    Attributes
    ----------
    values : ndarray of float32, shape (N, C, h, w), in [-1, 1]
        Reduced, then divided by its own largest absolute value; an all-zero map stays zero. May be a memory map.
    target : ndarray of int64, shape (N,)
        The explained class.
    conservation_error : ndarray of float32, shape (N,)
        Distance of the relevance of the input and of all constants from the explained logit, as a share of the
        largest of the three, before reduction; NaN for explainers that promise no sum.
    finite : ndarray of bool, shape (N,)
        False where the relevance held NaN or infinity; those maps are stored as zeros.
    zero : ndarray of bool, shape (N,)
        True where a finite map is zero everywhere.
    input_share : ndarray of float32, shape (N,), or None
        Relevance of the input over the explained logit; the rest is of biases and other constants.
    channels : ndarray of float32, shape (N, D), or None
        Relevance of an inner layer by channel, summed over positions, divided by its own largest absolute value.
    check : dict
        What was found of the first images, one by one, before all others were explained: `images`, `error`,
        `composite`, `layer` (of `channels`).
    """

    values: NDArray[np.float32]
    target: IntArray
    conservation_error: NDArray[np.float32]
    finite: NDArray[np.bool_]
    zero: NDArray[np.bool_]
    input_share: NDArray[np.float32] | None = None
    channels: NDArray[np.float32] | None = None
    check: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.ndim != 4:
            raise DataError(f"heatmaps must have shape (N, C, h, w), got {self.values.shape}")
        check_same_length(
            "heatmaps",
            values=self.values,
            target=self.target,
            conservation_error=self.conservation_error,
            finite=self.finite,
            zero=self.zero,
            **({} if self.input_share is None else {"input_share": self.input_share}),
            **({} if self.channels is None else {"channels": self.channels}),
        )

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Heatmaps({len(self):,} images, {' x '.join(map(str, self.values.shape[1:]))})"

    def flat(self) -> NDArray[np.float32]:
        """Return the maps as vectors, shape (N, C * h * w)."""
        return self.values.reshape(len(self.values), -1)

    def health(self) -> dict[str, float]:
        """Return shares of non-finite and all-zero maps, and what of the logit input, constants and error hold."""
        error = self.conservation_error[self.finite]
        error = error[np.isfinite(error)]
        median, high = np.quantile(error, [0.5, 0.95]) if len(error) else (np.nan, np.nan)
        shares = np.full(0, np.nan) if self.input_share is None else self.input_share[self.finite]
        shares = shares[np.isfinite(shares)]
        share = float(np.median(shares)) if len(shares) else np.nan
        return {
            "images": float(len(self)),
            "share_not_finite": float(np.mean(~self.finite)) if len(self) else 0.0,
            "share_all_zero": float(np.mean(self.zero)) if len(self) else 0.0,
            "input_share_median": share,
            "constant_share_median": 1 - share if len(error) else np.nan,
            "conservation_error_median": float(median),
            "conservation_error_p95": float(high),
        }


@dataclass(frozen=True, eq=False, repr=False)
class Explained:
    """What a classifier does with one split: all that a source of groups may look at, and no true group.

    Attributes
    ----------
    split : str
        Name of the split: ``train``, ``val`` or ``test``.
    ids : tuple of str, length N
    labels : ndarray of int64, shape (N,)
        Class labels.
    class_names : tuple of str, length K
    outputs : Outputs
    heatmaps : Heatmaps or None
        None for a split that was not explained.
    given : mapping of str to Any
        What else a source of groups asked for (``needs``), by name.
    """

    split: str
    ids: tuple[str, ...]
    labels: IntArray
    class_names: tuple[str, ...]
    outputs: Outputs
    heatmaps: Heatmaps | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        maps = {} if self.heatmaps is None else {"heatmaps": self.heatmaps}
        check_same_length(f"split {self.split}", ids=self.ids, labels=self.labels, logits=self.outputs.logits, **maps)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        maps = "no heatmaps" if self.heatmaps is None else repr(self.heatmaps)
        return f"Explained({self.split}, {len(self):,} images of {len(self.class_names)} classes, {maps})"

    @property
    def predicted(self) -> IntArray:
        """Predicted class of each image, shape (N,); -1 where the classifier gives no finite logits."""
        return self.outputs.predicted

    @property
    def predicted_names(self) -> tuple[str, ...]:
        """Name of each image's predicted class, length N; ``none`` where there is none."""
        names = (*self.class_names, "none")
        return tuple(names[number] for number in self.predicted.tolist())

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the classifier is right, shape (N,)."""
        return np.asarray(self.predicted == self.labels)

    @property
    def features(self) -> NDArray[np.float32]:
        """Input of the last linear layer, shape (N, D)."""
        return self.outputs.features

    def maps(self) -> Heatmaps:
        """Return the heatmaps.

        Raises
        ------
        DataError
            If the split was not explained.
        """
        if self.heatmaps is None:
            raise DataError(f"split {self.split} has no heatmaps, which are needed here; explain it first")
        return self.heatmaps

    def rows(self, rows: IntArray) -> Explained:
        """Return some of the images, without what else was given."""
        maps = self.heatmaps
        if maps is not None:
            maps = Heatmaps(
                np.asarray(maps.values[rows]),
                maps.target[rows],
                maps.conservation_error[rows],
                maps.finite[rows],
                maps.zero[rows],
                None if maps.input_share is None else maps.input_share[rows],
                None if maps.channels is None else np.asarray(maps.channels[rows]),
                maps.check,
            )
        outputs = Outputs(self.outputs.features[rows], self.outputs.logits[rows])
        ids = tuple(self.ids[row] for row in rows.tolist())
        return Explained(self.split, ids, self.labels[rows], self.class_names, outputs, maps)

    def with_given(self, **given: Any) -> Explained:
        """Return the same with what a source of groups asked for."""
        return replace(self, given={**self.given, **given})
