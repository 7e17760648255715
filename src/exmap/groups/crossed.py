"""Groups of one round crossed with those of the rounds before, so that what was repaired stays repaired."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from exmap.errors import DataError
from exmap.records import Groups, IntArray

__all__ = ["FEWEST", "cross_groups"]

FEWEST = 20  # images of a crossing that a group of its own needs; a learner balances on it


def cross_groups(groups: Groups, earlier: Groups, *, fewest: int = FEWEST) -> Groups:
    """Part each group by the earlier group of its images.

    Crossings of fewer than `fewest` images are no groups of their own: those of one group are pooled, and where even
    together they are too few, they join the smallest other crossing of that group. So every image stays in its group,
    and parting makes none smaller than `fewest`.

    Parameters
    ----------
    groups, earlier : Groups
        Of the same images.
    fewest : int

    Returns
    -------
    Groups
        With the source of `groups`, and as unassigned as these.

    Raises
    ------
    DataError
        If they are of different numbers of images.

    Examples
    --------
    >>> now = Groups(np.array([0, 0, 0, 0, 1, 1]), ("class cat / a", "class cat / b"), "auto", (), classes=(0, 0))
    >>> then = Groups(np.array([0, 0, 1, 1, 0, 1]), ("class cat / x", "class cat / y"), "auto", (), classes=(0, 0))
    >>> cross_groups(now, then, fewest=2).names
    ('class cat / a & x', 'class cat / a & y', 'class cat / b')
    """
    if len(groups) != len(earlier):
        raise DataError(
            f"groups are crossed with earlier ones of the same images, got {len(groups):,} and {len(earlier):,}; make "
            "the earlier round again with the same data"
        )
    index = np.full(len(groups), -1, dtype=np.int64)
    names: list[str] = []
    origin: list[int] = []
    for number, name in enumerate(groups.names):
        rows = np.flatnonzero(groups.index == number)
        cells = _cells(earlier.index[rows], fewest)
        for cell in cells:
            index[rows[np.isin(earlier.index[rows], cell)]] = len(names)
            names.append(name if len(cells) == 1 else f"{name} & {_words(cell, earlier)}")
            origin.append(number)
    classes = tuple(groups.classes[number] for number in origin) if groups.classes else ()
    return replace(
        groups,
        index=index,
        names=tuple(names),
        labels_used=tuple(dict.fromkeys((*groups.labels_used, *earlier.labels_used))),
        classes=classes,
        parts=tuple(classes[:place].count(label) for place, label in enumerate(classes)),
    )


def _cells(values: IntArray, fewest: int) -> list[list[int]]:
    """Return which earlier groups of the images of one group are taken together: at least one cell."""
    counts = Counter(values.tolist())
    cells = [[value] for value in sorted(counts) if counts[value] >= fewest]
    few = [value for value in sorted(counts) if counts[value] < fewest]
    if not few and cells:
        return cells
    if sum(counts[value] for value in few) >= fewest or not cells:
        return [*cells, few]
    smallest = min(cells, key=lambda cell: counts[cell[0]])
    smallest += few
    return cells


def _words(cell: list[int], earlier: Groups) -> str:
    """Return what a cell is called: the part of its first earlier group, and how many others there are."""
    first = earlier.names[cell[0]].partition(" / ")[2] or earlier.names[cell[0]] if cell[0] >= 0 else "unassigned"
    return first if len(cell) == 1 else f"{first} or {len(cell) - 1} other{'s' if len(cell) > 2 else ''}"
