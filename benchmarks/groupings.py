"""Which grouping to believe: what `groups.auto` chooses, beside every grouping it could have chosen.

Takes finished run folders (those of `exmap bench` will do: OUT/runs/*), brings each up to a choice of groups, retrains
the last layer on every candidate and measures the true worst group on the test images. Only here is truth looked at.
Writes groupings.csv (a row per run and candidate), and groupings.md: regret, rank correlation, and the groupings that
are best when one has to serve all data sets.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from exmap.analysis import reported_groups
from exmap.auto import find_candidates
from exmap.data import build_task
from exmap.pipeline.disk import read_json
from exmap.pipeline.files import load_explained, load_outputs
from exmap.pipeline.graph import split_of
from exmap.pipeline.plan import TEST, explained_name
from exmap.pipeline.plan_groups import CHOICE
from exmap.pipeline.runs import open_run, run_until
from exmap.results import AutoRecord
from exmap.retrain import DFR
from exmap.runtime import child_seed
from exmap.settings import change_settings

WORDS = {True: "yes", False: "no", None: "cannot say"}


def examine(path: Path, data_dir: dict[str, Path], repeats: int) -> list[dict[str, Any]]:
    """Return a row per grouping of one run: its score, and what it would have been worth."""
    _, settings = open_run(path)
    name = settings.data.name
    settings = change_settings(settings, groups__auto=True, data__dir=data_dir.get(name, data_dir.get("")))
    run, settings = open_run(path, settings, change=True)
    began = time.process_time()
    run_until(run, settings, until="cluster", say=lambda text: print(f"{path.name}: {text}", flush=True))
    seconds = time.process_time() - began
    record = AutoRecord.from_json(read_json(run.folder(CHOICE) / "auto.json"))
    suffices = None if record.repair is None else record.repair.last_layer_suffices
    task = build_task(settings.data, settings.images)
    grouped = split_of(task, settings.groups.split)
    explained = load_explained(grouped, run.folder(explained_name(grouped.name)))
    part = "judges" if settings.groups.split == "val" else "candidates"
    known = find_candidates(explained, seed=child_seed(child_seed(settings.seed, "auto"), part)).names()
    test = load_outputs(run.folder(TEST))
    truth, _ = reported_groups(task.test)

    def worst(predicted: np.ndarray) -> float:
        right = predicted == task.test.labels
        return float(min(right[truth == group].mean() for group in np.unique(truth)))

    rows = []
    for weighed in record.candidates:
        heads = [
            DFR(**settings.retrain.options, seed=child_seed(settings.seed, "retrain", n)).fit_head(
                explained.features, explained.labels, known[weighed.name].groups, n_classes=task.n_classes
            )
            for n in range(repeats)
        ]
        rows.append(
            {
                "data": name,
                "seed": settings.seed,
                "name": weighed.name,
                "also": " ".join(weighed.also),
                "score": weighed.score,
                "eligible": weighed.eligible,
                "chosen": weighed.name == record.chosen,
                "runner_up": weighed.name == record.runner_up,
                "confidence": record.confidence,
                "worst_group_accuracy": float(np.mean([worst(head.predict(test.features)) for head in heads])),
                "erm": worst(test.predicted),
                "found": sum(finding.found for finding in record.shortcut.values()),
                "p_value": min(finding.p_value for finding in record.shortcut.values()),
                "last_layer_suffices": suffices,
                "seconds": round(seconds, 1),
            }
        )
        print(f"  {weighed.name}: {rows[-1]['worst_group_accuracy']:.3f}", flush=True)
    return rows


def summarise(rows: list[dict[str, Any]]) -> str:
    """Return the tables: what was chosen in each run, and every grouping that could be used throughout."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        runs[row["data"], row["seed"]].append(row)
    text = [
        "| data set | seed | chosen | WGA | best | regret | rank correlation | runner-up | confidence | error set "
        "| ERM | shortcut found (classes; p) | last layer suffices |",
        "| --- " * 13 + "|",
    ]
    regret: dict[str, list[float]] = defaultdict(list)
    fixed: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (data, seed), each in sorted(runs.items()):
        accuracy = np.array([row["worst_group_accuracy"] for row in each])
        chosen = next(row for row in each if row["chosen"])
        error = next(row for row in each if "error_set" in (row["name"], *row["also"].split()))
        second = next((row["worst_group_accuracy"] for row in each if row["runner_up"]), float("nan"))
        lost = accuracy.max() - chosen["worst_group_accuracy"]
        regret[data].append(lost)
        rank = spearmanr([row["score"] for row in each], accuracy)[0]
        text.append(
            f"| {data} | {seed} | `{chosen['name']}` | {chosen['worst_group_accuracy']:.1%} | {accuracy.max():.1%} | "
            f"{lost:.1%} | {rank:.2f} | {second:.1%} | {chosen['confidence']:.2f} | "
            f"{error['worst_group_accuracy']:.1%} | {chosen['erm']:.1%} | {chosen['found']}; {chosen['p_value']:.1g} | "
            f"{WORDS[chosen['last_layer_suffices']]} |"
        )
        fixed["auto"][data].append(chosen["worst_group_accuracy"])
        sizes = sorted({_size(name) for row in each for name in (row["name"], *row["also"].split()) if _size(name)})
        for row in each:
            for name in (row["name"], *row["also"].split()):
                place = ("3 px", "a quarter", "half")[-len(sizes) :][sizes.index(_size(name))] if _size(name) else ""
                fixed[name.replace(f"size={_size(name)}", f"size: {place}")][data].append(row["worst_group_accuracy"])
    sets = sorted({data for data, _ in runs})
    text += ["", "Mean regret: " + ", ".join(f"{data} {np.mean(regret[data]):.1%}" for data in sets) + ".", ""]
    text += ["| grouping | " + " | ".join(sets) + " | mean |", "| --- " * (len(sets) + 2) + "|"]
    complete = {name: by for name, by in fixed.items() if len(by) == len(sets)}
    mean = {name: float(np.mean([np.mean(by[data]) for data in sets])) for name, by in complete.items()}
    for name in sorted(mean, key=lambda name: -mean[name]):
        cells = [f"{np.mean(complete[name][data]):.1%}" for data in sets]
        text.append(f"| {'**auto**' if name == 'auto' else f'`{name}`'} | {' | '.join(cells)} | {mean[name]:.1%} |")
    return "\n".join(text) + "\n"


def _size(name: str) -> int:
    """Return the side of the heatmaps in a candidate's name, or 0."""
    _, found, rest = name.partition("size=")
    return int(rest.partition(",")[0]) if found else 0


def main() -> None:
    """Examine the runs that are named, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="finished run folders; they get a choice of groups")
    parser.add_argument("--data-dir", action="append", default=[], help="DIR, or NAME=DIR for one data set")
    parser.add_argument("--repeats", type=int, default=2, help="retrainings of each grouping")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    folders = {}
    for text in given.data_dir:
        name, _, folder = text.rpartition("=")
        folders[name] = Path(folder)
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for path in given.runs:
        kept = given.out / f"{path.name}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(examine(path, folders, given.repeats)))
        rows += json.loads(kept.read_text())
    with (given.out / "groupings.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    text = summarise(rows)
    (given.out / "groupings.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
