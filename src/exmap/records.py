"""The records that travel between stages: frozen, checked on construction, and free of torch.

Shapes are given as N samples, C channels, H x W pixels, K classes, D features and G groups. A group or cluster
of -1 means "unassigned"; an empty group's accuracy is NaN, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.errors import DataError

__all__ = [
    "Clusters",
    "Explained",
    "FloatArray",
    "GroupTable",
    "Groups",
    "Heatmaps",
    "IntArray",
    "Listener",
    "Outputs",
    "Progress",
    "silent",
]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Progress:
    """How far a long piece of work has come: `done` of `total` units, with a short note."""

    task: str
    done: int
    total: int
    unit: str = "images"
    note: str = ""


Listener = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Ignore progress."""


def _same_length(what: str, **arrays: Any) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the arrays of {what} must have one length, got {lengths}")


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
        _same_length("outputs", features=self.features, logits=self.logits)

    @property
    def predicted(self) -> IntArray:
        """Class with the largest logit, shape (N,)."""
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

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
        _same_length(
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
        _same_length(f"split {self.split}", ids=self.ids, labels=self.labels, logits=self.outputs.logits, **maps)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        maps = "no heatmaps" if self.heatmaps is None else repr(self.heatmaps)
        return f"Explained({self.split}, {len(self):,} images of {len(self.class_names)} classes, {maps})"

    @property
    def predicted(self) -> IntArray:
        """Predicted class of each image, shape (N,)."""
        return self.outputs.predicted

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
        return hash((self.names, self.source, self.index.tobytes()))

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
        return _html_table(caption, ("group", "samples"), rows)

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
    """

    names: tuple[str, ...]
    accuracy: NDArray[np.float64]
    count: IntArray
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    train_share: NDArray[np.float64] | None = field(default=None)

    def __post_init__(self) -> None:
        _same_length(
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
            (name, _percent(value), f"{_percent(low)} to {_percent(high)}", f"{count:,}")
            for name, value, low, high, count in zip(
                self.names, self.accuracy, self.low, self.high, self.count, strict=True
            )
        ]
        caption = f"worst group {_percent(self.worst)} ({self.worst_group}), mean {_percent(self.mean)}"
        return _html_table(caption, ("group", "accuracy", "interval", "samples"), rows)

    def __str__(self) -> str:
        width = max((len(name) for name in self.names), default=5)
        lines = [f"{'group':<{width}}  accuracy      interval  count"]
        for name, value, low, high, count in zip(
            self.names, self.accuracy, self.low, self.high, self.count, strict=True
        ):
            lines.append(f"{name:<{width}}  {value:8.1%}  {low:6.1%}-{high:6.1%}  {count:5d}")
        lines.append(f"worst group {self.worst:.1%} ({self.worst_group}), mean {self.mean:.1%}")
        return "\n".join(lines)


def _percent(value: float) -> str:
    return f"{value:.1%}" if np.isfinite(value) else "none"


def _html_table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table for a notebook; all text is escaped, and all columns but the first are numbers."""
    right = ' style="text-align: right"'
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td{right if n else ''}>{escape(cell)}</td>" for n, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
