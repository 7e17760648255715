"""Clusters, groups, and accuracy by group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.errors import DataError
from exmap.records.base import IntArray, check_same_length
from exmap.records.tables import html_table, percent

__all__ = ["Clusters", "GroupTable", "Groups"]


@dataclass(frozen=True, eq=False)
class Clusters:
    """One cluster per sample, and what the clusterer said of its choice.

    Attributes
    ----------
    labels : ndarray of int64, shape (N,)
        -1 where the sample was not clustered.
    scope : str
        ``local`` (labels count from 0 inside each class) or ``global``.
    notes : tuple of dict
        One per fit (per class in local scope): number of samples and clusters, eigenvalues, graph components, notes.
    """

    labels: IntArray
    scope: str
    notes: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Groups:
    """Groups of one split, from one source.

    Attributes
    ----------
    index : ndarray of int64, shape (N,)
        Position in `names`; -1 is unassigned.
    names : tuple of str
        One per group, for example ``class 1 / cluster 0``.
    source : str
        Where the groups come from, for example ``exmap``, ``george`` or ``oracle``.
    labels_used : tuple of str
        The labels the source needed, for example ``("class labels",)``.
    clusters : Clusters or None
        The clustering behind the groups, if there is one.
    classes : tuple of int
        Class of each group, -1 for a group that is of no one class; empty where that is not known.
    parts : tuple of int
        Which part of its class each group is: the number of a cluster, say; empty where classes are not split.
    """

    index: IntArray
    names: tuple[str, ...]
    source: str
    labels_used: tuple[str, ...]
    clusters: Clusters | None = None
    classes: tuple[int, ...] = ()
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for what, numbers in (("class", self.classes), ("part", self.parts)):
            if numbers and len(numbers) != len(self.names):
                raise DataError(f"groups must have one {what} each, got {len(numbers)} for {len(self.names)} groups")
        if len(self.index) and (self.index.min() < -1 or self.index.max() >= len(self.names)):
            raise DataError(
                f"group numbers must lie in [-1, {len(self.names) - 1}], got "
                f"{self.index.min()} to {self.index.max()}; give one name per group"
            )

    def __len__(self) -> int:
        return len(self.index)

    def counts(self) -> IntArray:
        """Return the number of samples in each group, shape (G,)."""
        return np.bincount(self.index[self.index >= 0], minlength=len(self.names)).astype(np.int64)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Groups):
            return NotImplemented
        return (self.names, self.source) == (other.names, other.source) and np.array_equal(self.index, other.index)

    def __hash__(self) -> int:
        return hash((self.names, self.source, self.index.astype(np.int64).tobytes()))  # equal whatever their type

    def __repr__(self) -> str:
        return f"Groups({self.source}, {len(self.names)} groups of {len(self):,} samples)"

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row per group: its name, class, part and number of samples."""
        import pandas as pd

        columns: dict[str, Any] = {"group": self.names, "samples": self.counts()}
        if self.classes:
            columns["class"] = self.classes
        if self.parts:
            columns["part"] = self.parts
        return pd.DataFrame(columns)

    def _repr_html_(self) -> str:
        rows = [(name, f"{count:,}") for name, count in zip(self.names, self.counts(), strict=True)]
        if unassigned := int((self.index < 0).sum()):
            rows.append(("unassigned", f"{unassigned:,}"))
        used = ", ".join(self.labels_used)
        caption = f"{self.source}: {len(self.names)} groups of {len(self):,} samples; labels used: {used}"
        return html_table(caption, ("group", "samples"), rows)

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.names)} groups of {len(self)} samples"]
        lines += [f"  {name}, n = {count}" for name, count in zip(self.names, self.counts(), strict=True)]
        if unassigned := int((self.index < 0).sum()):
            lines.append(f"  unassigned, n = {unassigned}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class GroupTable:
    """Accuracy by group: always this one shape, with counts and intervals beside each value.

    Attributes
    ----------
    names : tuple of str
    accuracy, low, high : ndarray of float64, shape (G,), in [0, 1]
        NaN where the group is empty. `low` and `high` bound the bootstrap interval.
    count : ndarray of int64, shape (G,)
    train_share : ndarray of float64, shape (G,), or None
        Frequency of each group in the training split, for the weighted mean.
    notes : tuple of str
        What a reader should know, such as images that the classifier says nothing of.
    """

    names: tuple[str, ...]
    accuracy: NDArray[np.float64]
    count: IntArray
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    train_share: NDArray[np.float64] | None = field(default=None)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_same_length(
            "a group table", names=self.names, accuracy=self.accuracy, count=self.count, low=self.low, high=self.high
        )

    @property
    def worst(self) -> float:
        """Worst-group accuracy, over the groups that have samples."""
        filled = self.accuracy[self.count > 0]
        return float(filled.min()) if len(filled) else float("nan")

    @property
    def worst_group(self) -> str:
        """Name of the group with the lowest accuracy; empty if no group has samples."""
        return self.names[int(np.nanargmin(self.accuracy))] if (self.count > 0).any() else ""

    @property
    def mean(self) -> float:
        """Plain mean accuracy over samples."""
        total = int(self.count.sum())
        return float(np.nansum(self.accuracy * self.count) / total) if total else float("nan")

    @property
    def weighted_mean(self) -> float:
        """Mean of the group accuracies weighted by training frequency; NaN where that is not known."""
        if self.train_share is None:
            return float("nan")
        share = np.where(self.count > 0, self.train_share, 0.0)
        return float(np.nansum(self.accuracy * share) / share.sum()) if share.sum() else float("nan")

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row per group: accuracy with its interval, and the number of samples."""
        import pandas as pd

        columns = {"group": self.names, "accuracy": self.accuracy, "low": self.low, "high": self.high}
        return pd.DataFrame({**columns, "samples": self.count})

    def _repr_html_(self) -> str:
        rows = [
            (name, percent(value), f"{percent(low)} to {percent(high)}", f"{count:,}")
            for name, value, low, high, count in zip(
                self.names, self.accuracy, self.low, self.high, self.count, strict=True
            )
        ]
        caption = f"worst group {percent(self.worst)} ({self.worst_group}), mean {percent(self.mean)}"
        caption = "; ".join((caption, *self.notes))
        return html_table(caption, ("group", "accuracy", "interval", "samples"), rows)

    def __str__(self) -> str:
        width = max((len(name) for name in self.names), default=5)
        lines = [f"{'group':<{width}}  accuracy      interval  count"]
        for name, value, low, high, count in zip(
            self.names, self.accuracy, self.low, self.high, self.count, strict=True
        ):
            lines.append(f"{name:<{width}}  {value:8.1%}  {low:6.1%}-{high:6.1%}  {count:5d}")
        lines.append(f"worst group {self.worst:.1%} ({self.worst_group}), mean {self.mean:.1%}")
        lines += self.notes
        return "\n".join(lines)
