"""Which images a report shows: those on its map, those in the card of each group, and those with a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exmap.cluster import group_means, similarity_to_means
from exmap.cluster.sampling import by_turns
from exmap.data.missing import MissingImages
from exmap.explain import reduce_heatmaps
from exmap.groups import explained_vectors
from exmap.records import IntArray
from exmap.report.sprites import Sheet, heat_sheet, heat_tiles, picture_sheet, picture_tiles
from exmap.runtime import generator

if TYPE_CHECKING:
    from exmap.analysis import Analysis

__all__ = ["Exemplars", "choose_exemplars", "clustered_vectors", "make_sheets", "rows_on_map", "small_vectors"]

MOST_POINTS = 50_000  # on the map
MOST_PICTURES = 4_000
PICTURE_BYTES = 3_300_000  # of both sheets, as text; a page of 10,000 images stays under 5 MB
SAMPLES = 6  # of each kind in a card
MAP_SIDE = 28  # pixels of the heatmaps that are placed on the map
AT_ONCE = 256  # images read for tiles


def clustered_vectors(analysis: Analysis) -> NDArray[np.float32]:
    """Return what ExMap clustered: the heatmaps, or the relevance of channels."""
    return explained_vectors(analysis.explained, analysis.settings.cluster.representation)


def small_vectors(analysis: Analysis) -> NDArray[np.float32]:
    """Return what ExMap clustered, heatmaps as vectors of at most 28 x 28 pixels a channel."""
    maps = analysis.explained.maps()
    height, width = maps.values.shape[2:]
    by_channels = analysis.settings.cluster.representation == "channels"
    if by_channels or height * width <= 2 * MAP_SIDE**2 or min(height, width) <= MAP_SIDE:
        return np.asarray(clustered_vectors(analysis))
    return reduce_heatmaps(maps.values, MAP_SIDE)


def rows_on_map(analysis: Analysis) -> IntArray:
    """Return the images on the map, ascending: right and wrong ones of every group by turns, so that none is missed."""
    return np.sort(_by_turns(_cells(analysis), analysis)[:MOST_POINTS])


def _cells(analysis: Analysis) -> IntArray:
    """Return a number for each image's group and whether the classifier is right, shape (N,)."""
    return np.asarray(2 * analysis.pseudo_groups.index + analysis.explained.correct)


def _by_turns(cells: IntArray, analysis: Analysis) -> IntArray:
    return by_turns(cells, generator(analysis.settings.seed, "report", "rows"))


@dataclass(frozen=True)
class Exemplars:
    """Rows of the images in the card of a group, the best first."""

    typical: IntArray
    borderline: IntArray
    wrong: IntArray


def choose_exemplars(analysis: Analysis, means: NDArray[np.float32], on_map: IntArray) -> list[Exemplars]:
    """Return, for each group, what is most like its mean, and what is nearly as much like another group's.

    Parameters
    ----------
    analysis : Analysis
    means : ndarray of float32, shape (G, F)
        Mean heatmap of each group; where channels were clustered, their means are taken instead.
    on_map : ndarray of int64
        Rows to choose from.
    """
    groups, explained, vectors = analysis.pseudo_groups, analysis.explained, clustered_vectors(analysis)
    if analysis.settings.cluster.representation == "channels":
        means = group_means(vectors, groups.index, len(groups.names))
    similar = similarity_to_means(vectors, means)
    chosen = []
    for group in range(len(means)):
        rows = np.intersect1d(np.flatnonzero(groups.index == group), on_map)
        own = similar[rows, group]
        others = [g for g in range(len(means)) if g != group]
        same_class = [g for g in others if groups.classes[g] == groups.classes[group]]
        rivals = similar[rows][:, same_class or others]
        margin = own - rivals.max(axis=1) if rivals.size else own
        by_likeness, by_margin = rows[np.argsort(-own, kind="stable")], rows[np.argsort(margin, kind="stable")]
        typical = by_likeness[:SAMPLES]
        borderline = by_margin[~np.isin(by_margin, typical)][:SAMPLES]
        wrong = by_likeness[~explained.correct[by_likeness]][:SAMPLES]
        chosen.append(Exemplars(typical, borderline, wrong))
    return chosen


def make_sheets(
    analysis: Analysis, exemplars: Sequence[Exemplars], on_map: IntArray, also: Sequence[int] = ()
) -> tuple[IntArray, Sheet | None, Sheet]:
    """Return the rows that have a picture, with the sheets of their images and heatmaps.

    Those in the cards, and `also` these rows, come first, then as many as there is room for. Without the images that
    sheet is None.
    """
    first = [row for each in exemplars for rows in (each.typical, each.borderline, each.wrong) for row in rows.tolist()]
    first += also
    others = on_map[_by_turns(_cells(analysis)[on_map], analysis)].tolist()
    fewest = len(set(first))
    rows = np.array(list(dict.fromkeys([*first, *others])), dtype=np.int64)[: max(MOST_PICTURES, fewest)]
    parts = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    values, images = analysis.explained.maps().values, analysis.grouped.images
    heat = np.concatenate([heat_tiles(np.asarray(values[part])) for part in parts])
    image = None
    if not isinstance(images, MissingImages):
        image = np.concatenate([picture_tiles(images.pixels(part)) for part in parts])
    while True:
        pictures = None if image is None else picture_sheet(image[: len(rows)])
        heats = heat_sheet(heat[: len(rows)])
        size = len(heats.uri) + (0 if pictures is None else len(pictures.uri))
        if size <= PICTURE_BYTES or len(rows) <= fewest:
            return rows, pictures, heats
        rows = rows[: max(fewest, int(0.95 * len(rows) * PICTURE_BYTES / size))]
