"""The report page of an analysis: choose what is shown, measure what is still missing, and write one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import silhouette_score

from exmap.cluster import embed, group_means
from exmap.cluster.embedding import embedding_method
from exmap.cluster.rows import sample_rows
from exmap.data.missing import MissingImages
from exmap.groups import ExMapGroups
from exmap.model import collect_outputs
from exmap.records import IntArray, Listener, Progress, silent
from exmap.report import outcome
from exmap.report.cards import ClusterCard, Interval, Sample, Strategy
from exmap.report.choose_pictures import (
    Exemplars,
    choose_exemplars,
    clustered_vectors,
    make_sheets,
    rows_on_map,
    small_vectors,
)
from exmap.report.description_card import chosen_descriptions, chosen_groups, described
from exmap.report.page import Page, render_page
from exmap.report.points import Points
from exmap.report.provenance import command_line, made_with, settings_text
from exmap.report.sprites import Sheet, heat_sheet, heat_tiles
from exmap.report.trust_card import TrustCard
from exmap.results import ClusterFit
from exmap.runtime import child_seed, generator

if TYPE_CHECKING:
    from exmap.analysis import Analysis

__all__ = ["write_page"]

SILHOUETTE_SAMPLES = 2_000
SPLITS = {"train": "training", "val": "validation", "test": "test"}
NO_IMAGES = "The images were not at hand when this page was made, so it shows their heatmaps alone."


@dataclass(frozen=True)
class Pictures:
    """Which images are on the map (rows, ascending), in the cards of groups and in the sheets of tiles."""

    on_map: IntArray
    exemplars: Sequence[Exemplars]
    pictured: IntArray
    images: Sheet | None
    heats: Sheet
    means: Sheet

    def tiles(self, n_images: int) -> IntArray:
        """Return the tile of each image, -1 for those without one."""
        tile = np.full(n_images, -1, dtype=np.int64)
        tile[self.pictured] = np.arange(len(self.pictured))
        return tile


def write_page(analysis: Analysis, path: Path, *, listen: Listener = silent) -> None:
    """Write the report of an analysis, which may be without images, retraining or evaluation.

    Parameters
    ----------
    analysis : Analysis
    path : Path
        The file to write.
    listen : Listener
    """
    listen(Progress("report", 0, 3, "parts", "map"))
    on_map = rows_on_map(analysis)
    places = embed(small_vectors(analysis)[on_map], seed=child_seed(analysis.settings.seed, "report", "map"))
    listen(Progress("report", 1, 3, "parts", "pictures"))
    pictures = _pictures(analysis, on_map)
    listen(Progress("report", 2, 3, "parts", "page"))
    page = _page(analysis, places, pictures, _repaired(analysis, listen))
    path.write_text(render_page(page), encoding="utf-8", errors="backslashreplace")  # a name may be no text
    listen(Progress("report", 3, 3, "parts"))


def _repaired(analysis: Analysis, listen: Listener) -> IntArray | None:
    """Return what each repeat of the repaired classifier predicts for the grouped images, shape (R, N).

    None where no repair is shown, or where a whole network was retrained and the images are not at hand.
    """
    name = outcome.shown_method(analysis)
    if name is None:
        return None
    fit = analysis.fits[name]
    if analysis.task.cross_fitted:
        return fit.predicted
    if fit.heads:
        return np.stack([head.predict(analysis.explained.features) for head in fit.heads])
    if fit.network is None or isinstance(analysis.grouped.images, MissingImages):
        return None
    return collect_outputs(fit.network, analysis.grouped, listen=listen).predicted[None]


def _pictures(analysis: Analysis, on_map: IntArray) -> Pictures:
    maps, groups = analysis.explained.maps(), analysis.pseudo_groups
    means = group_means(maps.flat(), groups.index, len(groups.names))
    exemplars = choose_exemplars(analysis, means, on_map)
    also = [row for each in chosen_descriptions(analysis) for row in each.prototypes if row in on_map]
    pictured, images, heats = make_sheets(analysis, exemplars, on_map, also)
    mean_tiles = heat_tiles(means.reshape(len(means), *maps.values.shape[1:]))
    return Pictures(on_map, exemplars, pictured, images, heats, heat_sheet(mean_tiles))


def _page(analysis: Analysis, places: NDArray[np.float32], pictures: Pictures, repaired: IntArray | None) -> Page:
    explained, settings, results = analysis.explained, analysis.settings, analysis.results
    before = outcome.accuracy_by_group(analysis, explained.predicted, "before")
    after = None if repaired is None else outcome.accuracy_by_group(analysis, repaired, "after")
    truth = _truth(analysis)
    no_images = [NO_IMAGES] if pictures.images is None else []
    return Page(
        title=f"exmap report: {analysis.task.name}, seed {settings.seed}",
        headline=outcome.headline(analysis, before),
        remarks=[*no_images, *outcome.remarks(analysis)],
        comparisons=outcome.comparisons(analysis),
        labels_used=outcome.labels_used(analysis),
        split="labelled" if settings.data.one_set or analysis.task.cross_fitted else SPLITS[explained.split],
        class_names=explained.class_names,
        truth_names=() if truth is None else truth[1],
        strategies=_strategies(analysis, pictures, before, after),
        points=_points(analysis, places, pictures, repaired),
        pictures=pictures.images,
        heats=pictures.heats,
        means=pictures.means,
        clusterings=_clusterings(analysis),
        trust=TrustCard(explained.maps(), analysis.trust),
        provenance=made_with(analysis),
        settings=settings_text(settings),
        seconds={} if results is None else {k: v for k, v in results.seconds.items() if k not in ("report", "total")},
        command=command_line(settings) if analysis.grouping else "",
        grouping=analysis.grouping,
        choice=outcome.choice(analysis),
        whole_network=outcome.is_whole_network(analysis),
        method=outcome.unusual_method(analysis),
        chosen=chosen_groups(analysis, _samples(analysis, pictures)),
        cross_fitted=analysis.task.cross_fitted,
        measured=outcome.measured_images(analysis),
        judged=outcome.was_judged(analysis),
    )


def _truth(analysis: Analysis) -> tuple[IntArray, tuple[str, ...]] | None:
    """Return the true group of each image and their names; None where they are not known, or are the classes."""
    oracle = analysis.oracle
    if oracle is None or oracle.names == analysis.explained.class_names:
        return None
    return oracle.index, oracle.names


def _points(analysis: Analysis, places: NDArray[np.float32], pictures: Pictures, repaired: IntArray | None) -> Points:
    explained, on_map, truth = analysis.explained, pictures.on_map, _truth(analysis)
    unknown = np.full(len(on_map), -1, dtype=np.int64)
    return Points(
        places,
        group=analysis.pseudo_groups.index[on_map],
        label=explained.labels[on_map],
        predicted=explained.predicted[on_map],
        repaired=unknown if repaired is None else repaired[0][on_map],
        truth=unknown if truth is None else truth[0][on_map],
        picture=pictures.tiles(len(explained))[on_map],
        ids=[explained.ids[row] for row in pictures.pictured],
        total=len(explained),
        method=embedding_method(len(on_map)),
        rows=on_map,
    )


def _samples(analysis: Analysis, pictures: Pictures) -> Callable[[IntArray], list[Sample]]:
    """Return what makes samples of rows; those that are not on the map, or have no picture, are left out."""
    explained, tile = analysis.explained, pictures.tiles(len(analysis.explained))
    predicted = explained.predicted_names

    def samples(rows: IntArray) -> list[Sample]:
        shown = rows[np.isin(rows, pictures.on_map) & (tile[rows] >= 0)]
        points = np.searchsorted(pictures.on_map, shown)
        return [
            Sample(int(point), explained.ids[row], predicted[row], int(tile[row]))
            for point, row in zip(points, shown, strict=True)
        ]

    return samples


def _strategies(
    analysis: Analysis, pictures: Pictures, before: Sequence[Interval], after: Sequence[Interval] | None
) -> list[Strategy]:
    """Return what is shown of each group, the weakest of each class first."""
    explained, groups = analysis.explained, analysis.pseudo_groups
    in_class, known = np.bincount(explained.labels), described(analysis, ExMapGroups.name)
    samples = _samples(analysis, pictures)
    strategies = []
    for group, (name, chosen) in enumerate(zip(groups.names, pictures.exemplars, strict=True)):
        rows, label = np.flatnonzero(groups.index == group), groups.classes[group]
        strategies.append(
            Strategy(
                group,
                name,
                explained.class_names[label],
                len(rows),
                len(rows) / int(in_class[label]),
                before[group],
                None if after is None else after[group],
                mean=group,
                typical=samples(chosen.typical),
                borderline=samples(chosen.borderline),
                wrong=samples(chosen.wrong),
                made_of=_made_of(analysis, rows),
                described=known.get(group),
            )
        )
    return sorted(strategies, key=lambda strategy: (groups.classes[strategy.group], strategy.before.value))


def _made_of(analysis: Analysis, rows: IntArray) -> list[tuple[str, int]]:
    """Return the true groups of some images, the largest first; none where they are not known."""
    truth = _truth(analysis)
    if truth is None:
        return []
    index, names = truth
    counts = np.bincount(index[rows], minlength=len(names))
    return [(names[g], int(counts[g])) for g in np.argsort(-counts, kind="stable") if counts[g]]


def _clusterings(analysis: Analysis) -> list[ClusterCard]:
    """Return what each clustering said of itself, with its silhouette where there is more than one cluster."""
    explained, clusters = analysis.explained, analysis.pseudo_groups.clusters
    if clusters is None:
        return []
    cards = []
    for fit in map(ClusterFit.from_json, clusters.notes):
        kind, _, number = fit.samples_of.partition(" ")
        members, of = clusters.labels >= 0, "All classes together"
        if kind == "class":
            members, of = members & (explained.labels == int(number)), f"Class {explained.class_names[int(number)]}"
        silhouette = _silhouette(analysis, np.flatnonzero(members), clusters.labels)
        cards.append(ClusterCard(of, fit, analysis.settings.cluster.gap, silhouette))
    return cards


def _silhouette(analysis: Analysis, rows: IntArray, clusters: IntArray) -> float | None:
    """Return the mean silhouette of some of the samples; None where it is not defined."""
    rng = generator(analysis.settings.seed, "report", "silhouette")
    some = rows[sample_rows(len(rows), SILHOUETTE_SAMPLES, rng)]
    if not 2 <= len(np.unique(clusters[some])) < len(some):
        return None
    return float(silhouette_score(clustered_vectors(analysis)[some], clusters[some]))
