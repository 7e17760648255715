"""Cluster one run's heatmaps and features in every way the paper names, retrain on each, and tabulate what comes out.

The figures are for reading, not for choosing: true groups are looked at after each configuration is done.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exmap.data import Task, build_task
from exmap.evaluation import group_agreement, group_table
from exmap.explain import reduce_maps
from exmap.groups import ErrorSetGroups, ExMapGroups, GeorgeGroups, GroupSource, OracleGroups
from exmap.pipeline.disk import write_json
from exmap.pipeline.files import load_explained, load_outputs
from exmap.pipeline.plan import TEST, explained_name
from exmap.pipeline.runs import open_run
from exmap.records import Explained, Groups, Outputs
from exmap.retrain import DFR
from exmap.runtime import child_seed, generator
from exmap.settings import ClusterSettings, Settings, change_settings


def clusterings(full: bool) -> list[tuple[str, ClusterSettings]]:
    rows = []
    for scope in ("global", "local"):
        for gap in ("relative", "absolute"):
            rows.append((f"spectral, {gap} eigengap, {scope}", ClusterSettings(scope=scope, gap=gap)))
        for k in (2, 3, 4, 8) if full else (2,):
            rows.append((f"spectral, {k}, {scope}", ClusterSettings(method="spectral", scope=scope, n_clusters=k)))
        for k in (2, 3, 4, 6, 8, 10, 12, 15) if full else (2, 8):
            rows.append((f"k-means, {k}, {scope}", ClusterSettings(method="kmeans", scope=scope, n_clusters=k)))
        for k in (2, 8):
            rows.append(
                (f"UMAP + k-means, {k}, {scope}", ClusterSettings(method="umap_kmeans", scope=scope, n_clusters=k))
            )
    return rows


def shrink(maps: np.ndarray, size: int) -> np.ndarray:
    """Reduce stored maps further, a few at a time."""
    parts = [reduce_maps(torch.from_numpy(np.array(part)), size)[0].numpy() for part in np.array_split(maps, 20)]
    return np.concatenate(parts)


def measure(
    groups: Groups, explained: Explained, tested: Outputs, task: Task, settings: Settings, repeats: int
) -> dict[str, Any]:
    truth, val_truth = task.test.true_groups(), task.val.true_groups()
    worst, means = [], []
    for repeat in range(repeats):
        head = DFR(seed=child_seed(settings.seed, "retrain", repeat)).fit_head(
            explained.features, explained.labels, groups, n_classes=task.n_classes
        )
        predicted = head.predict(tested.features)
        table = group_table(predicted, task.test.labels, truth.index, truth.names, rng=generator(0, "b"), bootstrap=1)
        worst.append(table.worst)
        means.append(table.mean)
    agreement = group_agreement(groups.index, val_truth.index, task.val.labels)
    fits = groups.clusters.notes if groups.clusters else ()
    return {
        "worst_group_accuracy": float(np.mean(worst)),
        "std": float(np.std(worst, ddof=1)) if repeats > 1 else None,
        "mean_accuracy": float(np.mean(means)),
        "ari": agreement.ari,
        "minority_precision": agreement.minority_precision,
        "minority_recall": agreement.minority_recall,
        "n_clusters": [fit["n_clusters"] for fit in fits],
        "graph_components": [fit.get("graph_components") for fit in fits],
        "eigenvalues": [fit.get("eigenvalues") for fit in fits],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=[28, 14, 7, 5, 3], help="of heatmaps, in pixels")
    parser.add_argument("--features", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="all cluster counts instead of a few")
    parser.add_argument("--out", type=Path, help="JSON file; by default configurations.json beside the run folder")
    args = parser.parse_args()
    run, settings = open_run(args.run)
    settings = change_settings(settings, data__dir=args.data_dir)
    task = build_task(settings.data, settings.images)
    explained = load_explained(task.val, run.folder(explained_name("val")))
    explained = explained.with_given(truth=task.val.true_groups())
    maps, tested = explained.maps(), load_outputs(run.folder(TEST))
    plain: list[tuple[str, str, GroupSource]] = [
        ("-", "oracle", OracleGroups()),
        ("-", "error set", ErrorSetGroups()),
    ]
    jobs: list[tuple[str, str, GroupSource]] = plain + [
        (f"heatmaps, {size} px", name, ExMapGroups(clustering))
        for size in args.sizes
        for name, clustering in clusterings(args.full)
    ]
    if args.features:
        jobs += [("features", name, GeorgeGroups(clustering)) for name, clustering in clusterings(args.full)]
    rows: list[dict[str, Any]] = []
    reduced: dict[str, np.ndarray] = {}
    print("| representation | clustering | clusters | worst group | mean | ARI | minority precision / recall | s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for representation, name, source in jobs:
        start = time.perf_counter()
        if representation.startswith("heatmaps") and representation not in reduced:
            size = int(representation.split()[1])
            reduced = {representation: maps.values if size == maps.values.shape[-1] else shrink(maps.values, size)}
        values = reduced.get(representation, maps.values)
        given = replace(explained, heatmaps=replace(maps, values=values))
        groups = source.infer(given, seed=child_seed(settings.seed, "groups"))
        row = {"representation": representation, "clustering": name}
        row |= measure(groups, explained, tested, task, settings, args.repeats)
        row["seconds"] = time.perf_counter() - start
        rows.append(row)
        std = f" ± {100 * row['std']:.1f}" if row["std"] is not None else ""
        cells = (
            representation,
            name,
            "+".join(map(str, row["n_clusters"])) or str(len(groups.names)),
            f"{100 * row['worst_group_accuracy']:.1f}{std}",
            f"{100 * row['mean_accuracy']:.1f}",
            f"{row['ari']:.2f}",
            f"{row['minority_precision']:.2f} / {row['minority_recall']:.2f}",
            f"{row['seconds']:.0f}",
        )
        print("| " + " | ".join(cells) + " |", flush=True)
        write_json(args.out or args.run.with_name(args.run.name + "-configurations.json"), rows)


if __name__ == "__main__":
    main()
