"""Where the relevance of heatmaps lies: in which part of the image, and on how much of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exmap.describe.compare import LEVEL, WORTH, compare_numbers
from exmap.describe.measures import Floats, averaged
from exmap.records import Heatmaps, IntArray
from exmap.results import RelevancePlace

__all__ = ["Relevance", "measure_relevance", "where_in_words"]

GRID = 12  # tiles on a side: thirds, halves and quarters of the image are whole numbers of them
MOST_PIXELS = 28  # on a side, on which the area is counted
AT_ONCE = 64  # maps
MOST = 0.8  # of the relevance
CLEARLY = 0.1  # share of the relevance that lies more in a place than in the other images, for it to be named
DENSE = 1.6  # times the relevance of as large a part of the image, from which it lies mostly there
LITTLE = 0.25  # share of the relevance below which it is not mostly there


def _places() -> dict[str, NDArray[np.bool_]]:
    """Return the parts of the image that have a name, each of shape (12, 12)."""
    third, quarter = GRID // 3, GRID // 4
    rows, columns = np.mgrid[:GRID, :GRID]
    down = {"upper": rows < third, "lower": rows >= GRID - third}
    across = {"left": columns < third, "right": columns >= GRID - third}
    found = {f"{v} {h} corner": down[v] & across[h] for v in down for h in across}
    found |= {"upper edge": down["upper"], "lower edge": down["lower"]}
    found |= {"left edge": across["left"], "right edge": across["right"]}
    centred = [(each >= quarter) & (each < GRID - quarter) for each in (rows, columns)]
    inner = [(each >= 2) & (each < GRID - 2) for each in (rows, columns)]
    return found | {"centre": centred[0] & centred[1], "border": ~(inner[0] & inner[1])}


PLACES = _places()
AREAS = np.array([place.mean() for place in PLACES.values()])


@dataclass(frozen=True, eq=False)
class Relevance:
    """What was measured of heatmaps.

    Attributes
    ----------
    shares : ndarray of float64, shape (N, P)
        Share of the absolute relevance in each place; NaN for maps that are zero or not finite.
    area : ndarray of float64, shape (N,)
        Smallest share of the image that holds 80 % of it.
    tiles : ndarray of float32, shape (N, 12, 12)
        Share of each tile; zero for those maps.
    """

    shares: NDArray[np.float64]
    area: NDArray[np.float64]
    tiles: Floats

    def tests(self) -> int:
        """Return how many p-values a comparison takes: one per place, and that of the area."""
        return len(PLACES) + 1

    def in_box(self, rows: IntArray, box: tuple[float, float, float, float]) -> float:
        """Return the mean share of the relevance in a box (top, left, bottom, right); NaN where none is known."""
        known = rows[np.isfinite(self.area[rows])]
        if not len(known):
            return float("nan")
        top, left, bottom, right = box
        edges = np.arange(GRID)
        down, across = (
            np.clip(np.minimum(high * GRID, edges + 1) - np.maximum(low * GRID, edges), 0, 1)
            for low, high in ((top, bottom), (left, right))
        )
        return float(np.einsum("nhw,h,w->n", self.tiles[known], down, across).mean())

    def place(self, group: IntArray, others: IntArray, tests: int) -> RelevancePlace | None:
        """State where the relevance of a group lies: where it lies more than in the others, else where most of it is.

        None where no map of the group is finite and not zero.
        """
        if not np.isfinite(self.area[group]).any():
            return None
        means, other_means = _mean(self.shares[group]), _mean(self.shares[others])
        apart = self._apart(group, others, tests, means, means - other_means)
        chosen, told = apart, apart is not None
        if chosen is None:
            density = np.where(means >= LITTLE, means / AREAS, 0)
            chosen = int(density.argmax()) if density.max() >= DENSE else None
        area_80, area_80_others = (_median(self.area[rows]) for rows in (group, others))
        if chosen is None:
            where, area, share = "", 1.0, 1.0
            share_others = 1.0 if np.isfinite(area_80_others) else float("nan")
        else:
            where, area = list(PLACES)[chosen], float(AREAS[chosen])
            share, share_others = float(means[chosen]), float(other_means[chosen])
        return RelevancePlace(
            where=where,
            area=area,
            share=min(share, 1.0),
            share_others=share_others,
            apart=told,
            area_80=area_80,
            area_80_others=area_80_others,
        )

    def _apart(
        self, group: IntArray, others: IntArray, tests: int, means: NDArray[np.float64], excess: NDArray[np.float64]
    ) -> int | None:
        """Return the place in which the group has clearly more relevance than the others, for its size the most.

        At least as much as in any other place of that size, too.
        """
        weight = np.where(np.isfinite(excess), excess / np.sqrt(AREAS), -np.inf)
        for place in np.argsort(-weight, kind="stable").tolist():
            if not (excess[place] >= CLEARLY and means[place] >= AREAS[place]):
                continue
            found = compare_numbers(self.shares[group, place], self.shares[others, place])
            if found is not None and found.effect >= WORTH and found.p_value * tests <= LEVEL:
                return int(place)
        return None


def measure_relevance(maps: Heatmaps, rows: IntArray) -> Relevance:
    """Measure the heatmaps of some images, a few at a time.

    Parameters
    ----------
    maps : Heatmaps
        May lie on disk.
    rows : ndarray of int64, shape (N,)
    """
    tiles = np.zeros((len(rows), GRID, GRID), dtype=np.float32)
    area = np.full(len(rows), np.nan)
    height, width = (min(MOST_PIXELS, side) for side in maps.values.shape[2:])
    for start in range(0, len(rows), AT_ONCE):
        part = slice(start, min(start + AT_ONCE, len(rows)))
        sizes = np.abs(np.asarray(maps.values[rows[part]], dtype=np.float32).sum(axis=1))
        total = sizes.mean(axis=(1, 2))
        known = np.isfinite(total) & (total > 0) & maps.finite[rows[part]]
        share = sizes / np.where(known, total, 1)[:, None, None]
        tiles[part] = np.where(known[:, None, None], averaged(share, GRID, GRID) / GRID**2, 0)
        largest = -np.sort(-averaged(share, height, width).reshape(len(share), -1), axis=1)
        held = np.cumsum(largest, axis=1) / np.maximum(largest.sum(axis=1, keepdims=True), 1e-12)
        area[part] = np.where(known, ((held < MOST - 1e-6).sum(axis=1) + 1) / held.shape[1], np.nan)
    masks = np.stack([place.ravel() for place in PLACES.values()]).astype(np.float32)
    shares = (tiles.reshape(len(rows), -1) @ masks.T).astype(np.float64)
    shares[~np.isfinite(area)] = np.nan
    return Relevance(shares, area, tiles)


def where_in_words(top: float, left: float, bottom: float, right: float) -> str:
    """Return where a box lies in the image, in words.

    Examples
    --------
    >>> where_in_words(0, 0, 0.2, 0.2), where_in_words(0.4, 0.4, 0.6, 0.6), where_in_words(0.9, 0, 1, 1)
    ('upper left corner', 'centre', 'lower edge')
    """
    if bottom - top > 0.7 and right - left > 0.7:
        return "border" if min(top, left, 1 - bottom, 1 - right) < 0.02 else "centre"
    down = _third(top, bottom, "upper", "lower")
    across = _third(left, right, "left", "right")
    if down and across:
        return f"{down} {across} corner"
    return f"{down or across} edge" if down or across else "centre"


def _third(low: float, high: float, first: str, last: str) -> str:
    middle = (low + high) / 2
    if high - low > 0.7:
        return ""
    return first if middle < 1 / 3 else last if middle > 2 / 3 else ""


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of columns over known values; NaN where there are none."""
    known = values[np.isfinite(values).all(axis=1)] if len(values) else values
    return known.mean(axis=0) if len(known) else np.full(values.shape[1], np.nan)


def _median(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")
