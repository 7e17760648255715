"""Find and repair a shortcut in classifiers that are no ResNet: ViT, ConvNeXt and EfficientNet, end to end.

Each trained classifier (`networks.py` makes them) explains images of the validation split; the heatmaps are clustered
(spectral, global) and the last layer is retrained on the groups. Beside it stand the classifier as it is and the same
retraining on the true groups of the same images. The package's front door does all of it.

    python benchmarks/architectures.py --cache /tmp/nets --data-dir ../shared/data --out /tmp/nets/architectures.json
    python benchmarks/architectures.py --cache /tmp/nets --out /tmp/nets/architectures.json --table
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import exmap
from exmap.data import Split
from exmap.evaluation import group_agreement
from networks import NETWORKS, Cell, all_cells, load_network, load_task, part_of, processor, some_rows, trained

ALL = ("lrp", "lrp@channels", "lrp:epsilon")  # the package's default for the network comes first
METHODS = {
    "vit": (*ALL, "lrp:attention_gamma", "lrp:epsilon_plus"),
    "convnext-atto": (*ALL, "lrp:attention_gamma", "lrp:symmetric_gamma"),
    "efficientnet-lite0": (*ALL, "lrp:symmetric_gamma"),
    "resnet18": ALL,
}
IMAGES = 5_000  # of the validation split, at most
SIZE = 28  # side in pixels of the heatmaps that are clustered
Row = dict[str, Any]


def accuracies(model: nn.Module, test: Split, name: str) -> Row:
    """Return worst-group and mean accuracy on the test split."""
    found = exmap.evaluate(model, test)
    return {f"{name}_worst": found.worst, f"{name}_mean": found.mean}


def measure_references(cell: Cell, model: nn.Module, val: Split, test: Split) -> Row:
    """Return the accuracies of the classifier as it is, and of its last layer retrained on the true groups."""
    truth = val.true_groups()
    groups = exmap.Groups(truth.index, truth.names, "oracle", ("true groups",))
    repaired = exmap.DFR(seed=cell.seed).fit(model, val, groups)
    return {**accuracies(model, test, "erm"), **accuracies(repaired, test, "oracle")}


def source_of(method: str, size: int, seed: int) -> exmap.ExMap:
    """Return the source of groups that ``EXPLAINER[:COMPOSITE][@channels]`` names."""
    name, _, representation = method.partition("@")
    explainer, _, composite = name.partition(":")
    options: dict[str, Any] = {"composite": composite} if composite else {}
    if representation:
        options["representation"] = representation
    else:
        options["size"] = size
    return exmap.ExMap(scope="global", seed=seed, explainer=explainer, **options)


def measure_method(cell: Cell, model: nn.Module, val: Split, test: Split, method: str, size: int) -> Row:
    """Return how well the groups that one explanation gives follow the true ones, and the repair on them."""
    start = time.perf_counter()
    groups = source_of(method, size, cell.seed).infer(model, val)
    seconds = time.perf_counter() - start
    truth = val.true_groups()
    found = group_agreement(groups.index, truth.index, val.labels, truth.names)
    clusters = np.unique(groups.clusters.labels) if groups.clusters is not None else np.empty(0)
    repaired = exmap.DFR(seed=cell.seed).fit(model, val, groups)
    return {
        "method": method,
        "size": size,
        "infer_seconds": round(seconds, 1),
        "clusters": int((clusters >= 0).sum()),
        "groups": len(groups.names),
        "ari": found.ari,
        "minority_precision": found.minority_precision,
        "minority_recall": found.minority_recall,
        **accuracies(repaired, test, "exmap"),
    }


COLUMNS = ("data set", "network", "explanation", "seeds", "clusters", "ARI within class")
WORST = ("ERM", "ExMap + DFR", "oracle + DFR")
HEADER = " | ".join([*COLUMNS, *(f"{name}, worst group %" for name in WORST)])


def table(rows: Sequence[Row]) -> str:
    """Return the Markdown table: mean and standard deviation over seeds."""
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if "error" not in row:
            cells.setdefault((row["dataset"], row["network"], row["method"]), []).append(row)
    lines = [f"| {HEADER} |", "|" + "---|" * (len(COLUMNS) + len(WORST))]
    for key, found in sorted(cells.items(), key=lambda item: (item[0][0], NETWORKS.index(item[0][1]))):
        clusters = ", ".join(str(row["clusters"]) for row in found)
        worst = [_mean([100 * row[f"{name}_worst"] for row in found], 1) for name in ("erm", "exmap", "oracle")]
        values = [*key, str(len(found)), clusters, _mean([row["ari"] for row in found], 2), *worst]
        lines.append(f"| {' | '.join(values)} |")
    failed = [
        f"- {row['dataset']}, {row['network']}, {row['method']}: {row['error']}" for row in rows if "error" in row
    ]
    return "\n".join(lines + (["", "Not measured:", "", *failed] if failed else []))


def _mean(values: Sequence[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def measure_cell(given: argparse.Namespace, cell: Cell, rows: list[Row]) -> None:
    """Measure what is missing of one classifier; each row is written as soon as it is there."""
    done = {row["method"] for row in rows if all(row[key] == value for key, value in asdict(cell).items())}
    methods = [name for name in given.methods or METHODS[cell.network] if name not in done]
    if not methods:
        return
    model, task = load_network(cell, given.cache), load_task(cell, given.data_dir, given.cache)
    val = part_of(task.val, some_rows(task.val, given.images, seed=0))
    setting = {**asdict(cell), "images": len(val), "of_images": len(task.val), "processor": processor()}
    setting["smallest_groups"] = sorted(int(count) for count in val.true_groups().counts())[:2]
    references = measure_references(cell, model, val, task.test)
    for method in methods:
        row: Row = {**setting, **references, "method": method}
        try:
            row |= measure_method(cell, model, val, task.test, method, given.size)
        except exmap.ExMapError as error:
            row["error"] = str(error)
        rows.append(row)
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the trained weights")
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="mnist, fashion-mnist, natural")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON of all that is measured; what it has is not redone"
    )
    parser.add_argument("--datasets", nargs="*", default=["cmnist", "dominoes"])
    parser.add_argument(
        "--networks", nargs="*", default=["vit", "convnext-atto", "efficientnet-lite0"], choices=NETWORKS
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--methods", nargs="*", help="EXPLAINER[:COMPOSITE][@channels]; some by default")
    parser.add_argument("--images", type=int, default=IMAGES, help="validation images, at most")
    parser.add_argument("--size", type=int, default=SIZE, help="side in pixels of the heatmaps that are clustered")
    parser.add_argument("--table", action="store_true", help="print the table of what is measured, and measure nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = json.loads(given.out.read_text()) if given.out.is_file() else []
    cells = trained(given.cache, [cell for cell in all_cells() if cell.seed in given.seeds])
    for cell in () if given.table else cells:
        if cell.dataset in given.datasets and cell.network in given.networks:
            measure_cell(given, cell, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
