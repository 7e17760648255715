"""The report of a run: read what the stages left, compute what is still missing, and write report.html.

Between the stages and the page: this module reads run folders, ``exmap.report`` makes pictures and text of arrays.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from sklearn.metrics import silhouette_score

from exmap.artifacts import read_groups, read_heads, read_heatmaps, read_outputs
from exmap.auto import words
from exmap.cluster import embed, group_means, similarity_to_means
from exmap.cluster.embedding import ENOUGH_FOR_UMAP
from exmap.cluster.rows import sample_rows
from exmap.config import Settings, dump_settings, load_settings, preset_names
from exmap.data import Images, Split
from exmap.data.dataset import Request
from exmap.errors import NumericalError
from exmap.evaluation import group_table, rerun_agreement, within_class_ari
from exmap.explain import compute_heatmaps, reduce_heatmaps
from exmap.groups import Evidence, ExMapGroups, explained_vectors
from exmap.groups.assign import class_names_of
from exmap.model import build_model, load_weights
from exmap.records import Groups, Heatmaps, IntArray, Listener, Outputs, Progress
from exmap.report.page import (
    Amount,
    Choice,
    Comparison,
    Finding,
    Fit,
    Interval,
    Page,
    Points,
    Sample,
    Strategy,
    Trust,
    Weighed,
    percent,
    render_page,
)
from exmap.report.sprites import Sheet, heat_sheet, heat_tiles, picture_sheet, picture_tiles
from exmap.runtime import child_seed, generator
from exmap.store import RunFolder, differences, read_json, write_text

__all__ = ["Shown", "write_report"]

MOST_POINTS = 50_000  # on the map
MOST_PICTURES = 4_000
PICTURE_BYTES = 3_300_000  # of both sheets, as text; a page of 10,000 images stays under 5 MB
SAMPLES = 6  # of each kind in a card
RERUNS, RERUN_SHARE = 5, 0.8
YARDSTICK = 2_000  # images whose input times gradient is computed
SILHOUETTE = 2_000  # samples of its estimate
MAP_SIDE = 28  # pixels of the heatmaps that are placed on the map
AT_ONCE = 256  # images read for tiles
HIDDEN = {"data": ("dir",), "images": ("cache_dir",), "model": ("weights",)}  # places on the machine of the run
BEFORE, AFTER = "erm", "exmap+dfr"
GRADIENT = "gradient_x_input"
CHOSEN = {"auto+dfr": "The last layer", "auto+subg": "The whole network"}  # what is retrained on the chosen groups
CURVE = ("images", "smallest_group", "worst_group_accuracy", "spread")

GroupNumbers = tuple[IntArray, tuple[str, ...]]


@dataclass(frozen=True)
class Shown:
    """What a report takes from the data set, where that is at hand.

    Attributes
    ----------
    grouped, test : Split
    reported : (index, names)
        Groups of the grouped split that results are reported by: the true ones, or classes without those.
    """

    grouped: Split
    test: Split
    reported: GroupNumbers


@dataclass(frozen=True)
class Found:
    """What the stages of a run left: all that a report reads."""

    groups: Groups
    labels: IntArray
    ids: tuple[str, ...]
    outputs: Outputs
    maps: Heatmaps
    after: IntArray  # (repeats, N): classes predicted by the retrained heads
    class_names: tuple[str, ...]
    true_group: GroupNumbers | None  # of each image, where it is known
    fits: list[dict[str, Any]]
    clusters: IntArray
    representation: str = "pixels"  # of what was clustered

    @property
    def vectors(self) -> NDArray[np.float32]:
        """What was clustered: the heatmaps, or the relevance of channels."""
        return np.asarray(explained_vectors(self.evidence, self.representation))

    @property
    def evidence(self) -> Evidence:
        """What the groups were inferred from."""
        maps = self.maps
        return Evidence(
            self.labels, self.outputs.predicted, self.class_names, heatmaps=maps.flat(), channels=maps.channels
        )

    def rows_of(self, group: int) -> IntArray:
        """Return the images of a group."""
        return np.flatnonzero(self.groups.index == group).astype(np.int64)

    def label_of(self, group: int) -> int:
        """Return the class of a group; every group has members, all of one class."""
        return int(self.labels[(self.groups.index == group).argmax()])


def write_report(
    run: RunFolder, settings: Settings, shown: Shown | None, path: Path, *, remarks: Sequence[str], listen: Listener
) -> None:
    """Write the report of an evaluated run.

    Parameters
    ----------
    run : RunFolder
        Finished up to evaluation.
    settings : Settings
    shown : Shown or None
        None where the images are not at hand: the page then has heatmaps and no pictures.
    path : Path
        The file to write.
    remarks : sequence of str
        What the page must say beside what was found.
    listen : Listener
    """
    found = _read(run, settings, shown)
    results = read_json(run.stage("evaluate") / "results.json")
    listen(Progress("report", 0, 4, "parts", "map"))
    on_map = _some(found, MOST_POINTS, settings.seed)
    vectors = _small_vectors(found)
    places = embed(vectors[on_map], seed=child_seed(settings.seed, "report", "map"))
    listen(Progress("report", 1, 4, "parts", "pictures"))
    means = group_means(found.maps.flat(), found.groups.index, len(found.groups.names))
    exemplars = _exemplars(found, means, on_map)
    pictured, pictures, heats = _pictures(found, shown, exemplars, on_map, settings)
    tile = np.full(len(found.labels), -1, dtype=np.int64)
    tile[pictured] = np.arange(len(pictured))
    strategies = _strategies(found, exemplars, tile, on_map, settings)
    listen(Progress("report", 2, 4, "parts", "trust"))
    trust = _trust(run, settings, found, shown, listen)
    points = Points(
        places,
        group=found.groups.index[on_map],
        label=found.labels[on_map],
        predicted=found.outputs.predicted[on_map],
        repaired=found.after[0][on_map],
        truth=np.full(len(on_map), -1) if found.true_group is None else found.true_group[0][on_map],
        picture=tile[on_map],
        ids=[found.ids[row] for row in pictured],
        total=len(found.labels),
        method="UMAP" if len(on_map) > ENOUGH_FOR_UMAP else "two principal components",
    )
    listen(Progress("report", 3, 4, "parts", "page"))
    manifest = read_json(run.path / "manifest.json") or {}
    record = run.record("cluster") or {}
    page = Page(
        title=f"exmap report: {results['dataset']}, seed {results['seed']}",
        headline=_headline(strategies, results, found),
        remarks=[*remarks, *_edited(results, settings), *_by_channels(found), *_not_retrained(results, found)],
        comparisons=_comparisons(run, settings, results, shown),
        labels_used={step.replace("_", " "): used for step, used in results["methods"][AFTER]["labels_used"].items()},
        split=_split_in_words(settings.groups.split),
        class_names=found.class_names,
        truth_names=() if found.true_group is None else found.true_group[1],
        strategies=strategies,
        points=points,
        pictures=pictures,
        heats=heats,
        means=heat_sheet(heat_tiles(means.reshape(len(means), *found.maps.values.shape[1:]))),
        fits=_fits(found, settings),
        trust=trust,
        provenance=_provenance(results, manifest),
        settings=yaml.safe_dump(_without_places(dump_settings(settings)), sort_keys=False),
        seconds={
            stage: done["seconds"]
            for stage in ("train", "explain", "cluster", "auto", "retrain", "repair", "evaluate")
            if (done := run.record(stage)) is not None
        },
        command=_command(settings),
        grouping=str(record.get("identity", "")),
        choice=_choice(results),
    )
    write_text(path, render_page(page))
    listen(Progress("report", 4, 4, "parts"))


def _read(run: RunFolder, settings: Settings, shown: Shown | None) -> Found:
    """Read what the stages left; names come from the groups, so that they are known without the data set, too."""
    split = settings.groups.split
    groups = read_groups(run.stage("cluster"), ExMapGroups.name)
    table = pq.read_table(run.stage("cluster") / f"{ExMapGroups.name}.parquet")
    outputs = read_outputs(run.stage("explain"), split)
    labels = table["class"].to_numpy()
    notes = read_json(run.stage("cluster") / "clusters.json")
    truth = None
    if shown is not None:
        class_names, truth = shown.grouped.class_names, shown.reported
        if truth[1] == class_names:
            truth = None
    else:
        class_names = class_names_of(groups, labels, outputs.logits.shape[1])
        if "oracle" in notes:
            oracle = read_groups(run.stage("cluster"), "oracle")
            truth = (oracle.index, oracle.names)
    heads = read_heads(run.stage("retrain") / f"{ExMapGroups.name}.safetensors")
    return Found(
        groups,
        labels,
        tuple(table["id"].to_pylist()),
        outputs,
        read_heatmaps(run.stage("explain")),
        np.stack([head.predict(outputs.features) for head in heads]),
        class_names,
        truth,
        notes[ExMapGroups.name]["fits"],
        table["cluster"].to_numpy(),
        settings.cluster.representation,
    )


def _split_in_words(split: str) -> str:
    return "validation" if split == "val" else "training"


# Which images are shown


def _some(found: Found, most: int, seed: int) -> IntArray:
    """Return at most so many rows, ascending: right and wrong ones of every group by turns, so that none is missed."""
    cell = 2 * found.groups.index + (found.outputs.predicted == found.labels)
    return np.sort(_by_turns(cell, seed)[:most])


def _by_turns(cell: IntArray, seed: int) -> IntArray:
    """Return all rows, the first of every cell first, in a random order within each."""
    order = generator(seed, "report", "rows").permutation(len(cell))
    turn = np.empty(len(cell), dtype=np.int64)
    for value in np.unique(cell):
        rows = order[cell[order] == value]
        turn[rows] = np.arange(len(rows))
    return np.asarray(order[np.argsort(turn[order], kind="stable")])


def _small_vectors(found: Found) -> NDArray[np.float32]:
    """Return what was clustered, heatmaps as vectors of at most 28 x 28 pixels a channel."""
    maps = found.maps
    if found.representation == "channels":
        return found.vectors
    height, width = maps.values.shape[2:]
    if height * width <= 2 * MAP_SIDE**2 or min(height, width) <= MAP_SIDE:
        return np.asarray(maps.flat())
    return reduce_heatmaps(maps.values, MAP_SIDE)


@dataclass(frozen=True)
class Exemplars:
    """Rows of the images that a card shows, the best first."""

    typical: IntArray
    borderline: IntArray
    wrong: IntArray


def _exemplars(found: Found, means: NDArray[np.float32], on_map: IntArray) -> list[Exemplars]:
    """Return, for each group, what is most like its mean heatmap, and what is nearly as much like another group's."""
    predicted = found.outputs.predicted
    if found.representation == "channels":
        means = group_means(found.vectors, found.groups.index, len(found.groups.names))
    similar = similarity_to_means(found.vectors, means)
    picked = []
    for group in range(len(means)):
        rows = np.intersect1d(found.rows_of(group), on_map)
        own = similar[rows, group]
        others = [g for g in range(len(means)) if g != group]
        same_class = [g for g in others if found.label_of(g) == found.label_of(group)]
        rivals = similar[rows][:, same_class or others]
        margin = own - rivals.max(axis=1) if rivals.size else own
        by_likeness, by_margin = rows[np.argsort(-own, kind="stable")], rows[np.argsort(margin, kind="stable")]
        typical = by_likeness[:SAMPLES]
        border = by_margin[~np.isin(by_margin, typical)][:SAMPLES]
        wrong = by_likeness[predicted[by_likeness] != found.labels[by_likeness]][:SAMPLES]
        picked.append(Exemplars(typical, border, wrong))
    return picked


def _strategies(
    found: Found, exemplars: Sequence[Exemplars], tile: IntArray, on_map: IntArray, settings: Settings
) -> list[Strategy]:
    """Return a strategy per group, the weakest of each class first."""

    def samples(rows: IntArray) -> list[Sample]:
        points = np.searchsorted(on_map, rows)
        return [
            Sample(int(point), found.ids[row], found.class_names[found.outputs.predicted[row]], int(tile[row]))
            for point, row in zip(points, rows, strict=True)
        ]

    def measured(name: str, predicted: IntArray) -> list[Interval]:
        table = group_table(
            predicted,
            found.labels,
            found.groups.index,
            found.groups.names,
            rng=generator(settings.seed, "report", "bootstrap", name),
            bootstrap=settings.evaluate.bootstrap,
            confidence=settings.evaluate.confidence,
        )
        rows = zip(table.accuracy.tolist(), table.low.tolist(), table.high.tolist(), strict=True)
        return [Interval(*row) for row in rows]

    before, after = measured("before", found.outputs.predicted), measured("after", found.after)
    in_class = np.bincount(found.labels, minlength=len(found.class_names))
    strategies = []
    for group, (name, shown) in enumerate(zip(found.groups.names, exemplars, strict=True)):
        rows, label = found.rows_of(group), found.label_of(group)
        strategies.append(
            Strategy(
                group,
                name,
                found.class_names[label],
                len(rows),
                len(rows) / int(in_class[label]),
                before[group],
                after[group],
                mean=group,
                typical=samples(shown.typical),
                borderline=samples(shown.borderline),
                wrong=samples(shown.wrong),
                made_of=_made_of(found, rows),
            )
        )
    return sorted(strategies, key=lambda strategy: (found.label_of(strategy.group), strategy.before.value))


def _made_of(found: Found, rows: IntArray) -> list[tuple[str, int]]:
    """Return the true groups of some images, the largest first; none where they are not known."""
    if found.true_group is None:
        return []
    index, names = found.true_group
    counts = np.bincount(index[rows], minlength=len(names))
    return [(names[g], int(counts[g])) for g in np.argsort(-counts, kind="stable") if counts[g]]


def _pictures(
    found: Found, shown: Shown | None, exemplars: Sequence[Exemplars], on_map: IntArray, settings: Settings
) -> tuple[IntArray, Sheet | None, Sheet]:
    """Return the rows that have a picture, and the sheets: first those of the cards, then as many as there is room."""
    first = [row for each in exemplars for rows in (each.typical, each.borderline, each.wrong) for row in rows.tolist()]
    cell = 2 * found.groups.index[on_map] + (found.outputs.predicted == found.labels)[on_map]
    rows = np.array(list(dict.fromkeys([*first, *on_map[_by_turns(cell, settings.seed)].tolist()])), dtype=np.int64)
    fewest = len(set(first))
    rows = rows[: max(MOST_PICTURES, fewest)]
    parts = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    heat = np.concatenate([heat_tiles(np.asarray(found.maps.values[part])) for part in parts])
    image = None
    if shown is not None:
        image = np.concatenate([picture_tiles(shown.grouped.images.pixels(part)) for part in parts])
    while True:
        pictures = None if image is None else picture_sheet(image[: len(rows)])
        heats = heat_sheet(heat[: len(rows)])
        size = len(heats.uri) + (0 if pictures is None else len(pictures.uri))
        if size <= PICTURE_BYTES or len(rows) <= fewest:
            return rows, pictures, heats
        rows = rows[: max(fewest, int(0.95 * len(rows) * PICTURE_BYTES / size))]


# What is measured


def _comparisons(
    run: RunFolder, settings: Settings, results: Mapping[str, Any], shown: Shown | None
) -> list[Comparison]:
    """Return worst group and mean on the test split, before and after; the mean's interval needs the test labels."""
    before, after = results["methods"][BEFORE], results["methods"][AFTER]
    means = [Interval(row["mean_accuracy"]) for row in (before, after)]
    if shown is not None:
        outputs = read_outputs(run.stage("explain"), shown.test.name)
        heads = read_heads(run.stage("retrain") / f"{ExMapGroups.name}.safetensors")
        all_repeats = np.stack([head.predict(outputs.features) for head in heads])
        means = [_mean(predicted, shown.test.labels, settings) for predicted in (outputs.predicted, all_repeats)]
    return [_worst(results, AFTER), Comparison("All test images", *means)]


def _worst(results: Mapping[str, Any], method: str) -> Comparison:
    """Return the worst group on the test split before and after retraining."""
    before, after = results["methods"][BEFORE], results["methods"][method]
    by = "class" if after["labels_used"]["evaluation"] == ["class labels"] else "group"

    def worst(row: Mapping[str, Any]) -> Interval:
        group = row["group_accuracy"][row["worst_group"]]
        return Interval(row["worst_group_accuracy"], group["low"], group["high"])

    title = f"Worst {by}: {before['worst_group']}"
    if before["worst_group"] != after["worst_group"]:
        title += f" before, {after['worst_group']} after"
    return Comparison(title, worst(before), worst(after))


def _choice(results: Mapping[str, Any]) -> Choice | None:
    """Return which grouping was chosen without group labels, and why; None in runs that do not choose."""
    record = results.get("auto")
    if record is None:
        return None
    marks = {record["chosen"]: "chosen", record["runner_up"]: "runner-up"}
    return Choice(
        words.verdict(record),
        [
            Finding(name, row["found"], row["p_value"], row["effect"], row.get("effect_low"), row["why"])
            for name, row in record["shortcut"].items()
        ],
        record["why"],
        words.confidence(record),
        [
            Weighed(
                row["name"],
                row["also"],
                row["groups"],
                row["score"],
                row["like_chosen"],
                row["eligible"],
                marks.get(row["name"], ""),
            )
            for row in record["candidates"]
        ],
        None if record["reliance"] is None else -record["reliance"]["classifier"],
        words.last_layer(record),
        words.more_images(record),
        [Amount(*(point[key] for key in CURVE)) for point in record["data_curve"]],
        words.remarks(record),
        _outcomes(results) if record["repaired"] else (),
    )


def _outcomes(results: Mapping[str, Any]) -> list[Comparison]:
    """Return what retraining on the chosen groups gave: the last layer, and where it was done the whole network."""
    rows = [_worst(results, method) for method in CHOSEN if method in results["methods"]]
    if len(rows) == 1:
        return rows
    return [replace(row, name=f"{what}. {row.name}") for what, row in zip(CHOSEN.values(), rows, strict=True)]


def _mean(predicted: NDArray[np.int64], labels: IntArray, settings: Settings) -> Interval:
    table = group_table(
        predicted,
        labels,
        np.zeros_like(labels),
        ["all"],
        rng=generator(settings.seed, "report", "mean"),
        bootstrap=settings.evaluate.bootstrap,
        confidence=settings.evaluate.confidence,
    )
    return Interval(float(table.accuracy[0]), float(table.low[0]), float(table.high[0]))


def _headline(strategies: Sequence[Strategy], results: Mapping[str, Any], found: Found) -> str:
    """Say in one sentence what was found: the weakest group of a class that splits, and what retraining did to it."""
    counts = {name: sum(s.class_name == name for s in strategies) for name in found.class_names}
    split = [strategy for strategy in strategies if counts[strategy.class_name] > 1]
    before, after = (_spoken(results["methods"][method]["worst_group_accuracy"]) for method in (BEFORE, AFTER))
    by = "class" if results["methods"][AFTER]["labels_used"]["evaluation"] == ["class labels"] else "group"
    outcome = f"On test images retraining takes the worst {by} from {before} to {after}."
    if not split:
        return f"No class splits into several strategies: the heatmaps of each class are of one kind. {outcome}"
    weakest = min(split, key=lambda strategy: strategy.before.value)
    rest = (found.labels == found.class_names.index(weakest.class_name)) & (found.groups.index != weakest.group)
    right = float((found.outputs.predicted == found.labels)[rest].mean())
    whole = round(weakest.size / weakest.share)
    splits = (
        f"Class {weakest.class_name} splits into {counts[weakest.class_name]} strategies: on {weakest.size:,} of its "
        f"{whole:,} images the model is right {_spoken(weakest.before.value)} of the time"
    )
    if weakest.before.high is not None and weakest.before.high >= right:
        return f"{splits}, which is not clearly less than on the others ({_spoken(right)}). {outcome}"
    return f"{splits}, on the others {_spoken(right)}. {outcome}"


def _spoken(share: float) -> str:
    """Return a share in whole per cent, where that calls nothing 0 or 100 that is not."""
    whole = f"{100 * share:.0f}"
    return (
        percent(share).replace(">\xa0", "over ").replace("<\xa0", "under ")
        if whole in ("0", "100")
        else f"{whole}\xa0%"
    )


def _edited(results: Mapping[str, Any], settings: Settings) -> list[str]:
    """Say what retraining on the groups that a person edited gave, where there are such."""
    if settings.edits is None:
        return []
    method = results["methods"].get(f"{settings.edits.source}-edited+dfr")
    if method is None:
        return []
    return [
        "The groups below are as found. After retraining on what a person made of them, the worst group of the "
        f"test images is right {percent(method['worst_group_accuracy'])} of the time."
    ]


def _fits(found: Found, settings: Settings) -> list[Fit]:
    """Return what each clustering said of itself, with its silhouette where there is more than one cluster."""
    fits = []
    for note in found.fits:
        kind, _, number = str(note["samples_of"]).partition(" ")
        local = kind == "class"
        of = f"Class {found.class_names[int(number)]}" if local else "All classes together"
        members = found.clusters >= 0
        if local:
            members &= found.labels == int(number)
        rows = np.flatnonzero(members)
        values = note.get("eigenvalues")
        fits.append(
            Fit(
                of,
                note["n_samples"],
                note["n_clusters"],
                note["note"],
                settings.cluster.gap,
                None if values is None else np.asarray(values),
                note.get("graph_components"),
                _silhouette(found, rows, settings),
            )
        )
    return fits


def _silhouette(found: Found, rows: IntArray, settings: Settings) -> float | None:
    """Return the mean silhouette of some of the samples; None where it is not defined."""
    rng = generator(settings.seed, "report", "silhouette")
    some = rows[sample_rows(len(rows), SILHOUETTE, rng)]
    clusters = found.clusters[some]
    if not 2 <= len(np.unique(clusters)) < len(some):
        return None
    return float(silhouette_score(found.vectors[some], clusters))


def _trust(run: RunFolder, settings: Settings, found: Found, shown: Shown | None, listen: Listener) -> Trust:
    """Cluster again on parts of the images, and with input times gradient in the heatmaps' place."""
    maps, labels, index = found.maps, found.labels, found.groups.index
    source = ExMapGroups(settings.cluster)

    def regroup(rows: IntArray, seed: int) -> IntArray:
        return source.infer(_rows_of_evidence(found.evidence, rows), seed=seed).index

    rng = generator(settings.seed, "report", "reruns")
    reruns = rerun_agreement(regroup, index, labels, rng=rng, reruns=RERUNS, share=RERUN_SHARE)
    plain, gradient = settings.explain.explainer == GRADIENT, None
    if shown is not None and not plain and (index >= 0).any():
        rng = generator(settings.seed, "report", "gradient")
        assigned = np.flatnonzero(index >= 0).astype(np.int64)
        rows = assigned[sample_rows(len(assigned), YARDSTICK, rng)]
        rows, vectors = _gradient_vectors(run, settings, shown.grouped, rows, listen)
        if len(rows):
            seed = child_seed(settings.seed, "report", "gradient")
            pixels = ExMapGroups(settings.cluster.model_copy(update={"representation": "pixels"}))
            evidence = replace(_rows_of_evidence(found.evidence, rows), heatmaps=vectors)
            there, classes = index[rows], labels[rows]
            gradient = (
                len(rows),
                within_class_ari(pixels.infer(evidence, seed=seed).index, there, classes),
                within_class_ari(regroup(rows, seed), there, classes),
            )
    return Trust(
        np.zeros(0, dtype=np.float32) if maps.input_share is None else maps.input_share[maps.finite],
        maps.conservation_error[maps.finite],
        len(maps),
        int((~maps.finite).sum()),
        int(maps.zero.sum()),
        [(rerun.images, rerun.groups, rerun.ari) for rerun in reruns],
        RERUN_SHARE,
        gradient,
        _explained_by(settings, maps),
        plain,
    )


def _rows_of_evidence(evidence: Evidence, rows: IntArray) -> Evidence:
    """Return the evidence of some images, all of them usable."""
    return Evidence(
        evidence.labels[rows],
        evidence.predicted[rows],
        evidence.class_names,
        heatmaps=None if evidence.heatmaps is None else np.asarray(evidence.heatmaps[rows]),
        channels=None if evidence.channels is None else np.asarray(evidence.channels[rows]),
    )


def _gradient_vectors(
    run: RunFolder, settings: Settings, split: Split, rows: IntArray, listen: Listener
) -> tuple[IntArray, NDArray[np.float32]]:
    """Return rows, and plain input times gradient of their images, reduced as heatmaps are; only finite ones."""
    model = build_model(settings.model, split.n_classes, seed=0)
    load_weights(model, run.stage("train") / "model.safetensors")
    some = Split(
        split.name, SomeImages(split.images, rows), split.labels[rows], _picked(split.ids, rows), split.class_names
    )
    explain = settings.explain.model_copy(update={"explainer": GRADIENT, "layer": "none"})
    try:
        maps = compute_heatmaps(model.eval(), some, explain, listen=listen)
    except NumericalError:  # none is finite
        return rows[:0], np.zeros((0, 1), dtype=np.float32)
    return rows[maps.finite], maps.flat()[maps.finite]


def _picked(ids: Sequence[str], rows: IntArray) -> tuple[str, ...]:
    return tuple(ids[row] for row in rows.tolist())


@dataclass(frozen=True)
class SomeImages:
    """Some of the images of a split, read as those are."""

    images: Images
    rows: IntArray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        return self.images.shape

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` of these as the model wants them."""
        return self.images.batch(self.rows[indices])

    def pixels(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` of these as one looks at them."""
        return self.images.pixels(self.rows[indices])

    def stream(self, requests: Iterable[Request]) -> Iterator[NDArray[np.float32]]:
        """Yield the batch of each request in order."""
        return self.images.stream((self.rows[indices], seed) for indices, seed in requests)


def _explained_by(settings: Settings, maps: Heatmaps) -> str:
    """Return what made the heatmaps, in words."""
    rules = maps.check.get("composite")
    made = f"{settings.explain.explainer} with {rules}" if rules else settings.explain.explainer
    target = settings.explain.target
    what = {"predicted": "predicted class", "true": "true class", "margin": "predicted class against the runner-up"}
    return f"{made}, of the {what.get(str(target), f'class {target}')}"


def _by_channels(found: Found) -> list[str]:
    """Say that something else than pixels was clustered."""
    if found.representation != "channels":
        return []
    layer = found.maps.check.get("layer")
    where = f"layer {layer}" if layer else "an inner layer"
    return [
        f"Images were grouped by the relevance of the channels of {where}, not by that of pixels; the map and what is "
        "typical of a group go by the channels, too. Pictures show pixels."
    ]


def _not_retrained(results: Mapping[str, Any], found: Found) -> list[str]:
    """Say where nothing was retrained for want of a last linear layer: the features are then the logits."""
    notes = results["methods"][AFTER]["notes"]
    if not np.array_equal(found.outputs.features, found.outputs.logits) or not notes:
        return []
    return [f"Nothing was retrained, so accuracies before and after are equal: {notes[0]}."]


# Where the run came from


def _provenance(results: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("data set", str(results["dataset"])), ("seed", str(results["seed"]))]
    rows += [(name, str(version)) for name, version in manifest.get("versions", {}).items()]
    rows += [
        (title, str(manifest[key]))
        for key, title in (("git_commit", "commit of exmap"), ("device", "device"), ("machine", "machine"))
        if manifest.get(key)
    ]
    return rows


def _without_places(tree: dict[str, Any]) -> dict[str, Any]:
    """Return settings without the names of folders: a report is to be mailed."""
    return {
        section: {key: item for key, item in value.items() if key not in HIDDEN.get(section, ())}
        if isinstance(value, Mapping)
        else value
        for section, value in tree.items()
    }


def _command(settings: Settings) -> str:
    """Return the command that makes the run again, with every setting that its preset does not have."""
    base = settings.preset if settings.preset in preset_names() else "digits"
    usual, there = (_without_places(dump_settings(s)) for s in (load_settings(base), settings))
    words = ["exmap", "run", base, "--seed", str(settings.seed)]
    for name in _changed(usual, there):
        value = there
        for key in name.split("."):
            value = value[key]
        if name.split(".")[0] not in ("seed", "preset", "edits"):
            words += ["--set", f"{name}={json.dumps(value)}"]  # JSON is YAML
    command = shlex.join(words)
    places = [] if settings.data.dir is None else [" --data-dir DATA_DIR"]
    places += [] if settings.model.weights is None else [" --set model.weights=WEIGHTS"]
    return command + "".join(places)


def _changed(usual: Any, there: Any) -> list[str]:
    return [item.split(" (", 1)[0] for item in differences(usual, there)]
