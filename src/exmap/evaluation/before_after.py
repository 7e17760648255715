"""Two classifiers on the same images: accuracy by group of both, and how sure the difference is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exmap.evaluation.by_group import group_table
from exmap.evaluation.compare import Difference, worst_group_difference
from exmap.records import GroupTable, IntArray

__all__ = ["Comparison", "compare_predictions"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two classifiers on the same images.

    Attributes
    ----------
    before, after : GroupTable
        Accuracy by group of the first and of the second, with intervals.
    worst, mean : Difference
        The second's worst-group and mean accuracy less the first's, with an interval over draws of the images.
    """

    before: GroupTable
    after: GroupTable
    worst: Difference
    mean: Difference

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row per group: accuracy before and after with intervals, and the images."""
        import pandas as pd

        columns: dict[str, Any] = {"group": self.before.names, "images": self.before.count}
        for name, table in (("before", self.before), ("after", self.after)):
            columns |= {name: table.accuracy, f"{name}_low": table.low, f"{name}_high": table.high}
        return pd.DataFrame(columns)

    def __str__(self) -> str:
        width = max(len(name) for name in ("worst group", *self.before.names))
        lines = [f"{'':<{width}}  images   before    after"]
        rows = zip(self.before.names, self.before.count, self.before.accuracy, self.after.accuracy, strict=True)
        lines += [f"{name:<{width}}  {count:6,}  {a:7.1%}  {b:7.1%}" for name, count, a, b in rows]
        for title, change in (("worst group", self.worst), ("mean", self.mean)):
            values = [getattr(table, title.partition(" ")[0]) for table in (self.before, self.after)]
            lines.append(f"{title:<{width}}          {values[0]:7.1%}  {values[1]:7.1%}  {_points(change)}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from exmap.records.tables import html_table

        rows = [
            (name, f"{count:,}", f"{before:.1%}", f"{after:.1%}")
            for name, count, before, after in zip(
                self.before.names, self.before.count, self.before.accuracy, self.after.accuracy, strict=True
            )
        ]
        caption = (
            f"worst group {self.before.worst:.1%} to {self.after.worst:.1%} ({_points(self.worst)}), mean "
            f"{self.before.mean:.1%} to {self.after.mean:.1%} ({_points(self.mean)})"
        )
        return html_table(caption, ("group", "images", "before", "after"), rows)


def _points(change: Difference) -> str:
    return f"{100 * change.value:+.1f} points, 95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f}"


def compare_predictions(
    before: IntArray,
    after: IntArray,
    labels: IntArray,
    index: IntArray,
    names: Sequence[str],
    *,
    rng: np.random.Generator,
) -> Comparison:
    """Compare what two classifiers predict for the same images.

    Parameters
    ----------
    before, after : ndarray of int64, shape (N,)
        Predicted classes.
    labels : ndarray of int64, shape (N,)
    index : ndarray of int64, shape (N,)
        Group of each image; -1 is left out.
    names : sequence of str
        One per group.
    rng : numpy.random.Generator
        Of the bootstrap.
    """
    tables = [group_table(each, labels, index, names, rng=rng) for each in (before, after)]
    right = [(each == labels)[None] for each in (after, before)]
    one = np.where(index < 0, -1, 0)
    worst, mean = (worst_group_difference([right[0]], [right[1]], over, rng=rng) for over in (index, one))
    return Comparison(tables[0], tables[1], worst, mean)
