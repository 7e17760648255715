"""Make run folders of known answers for a test that finds shortcuts, and tabulate what is known and measured of each.

Each run is a classifier trained on the data set `graded` and explained: controls without a shortcut, and shortcuts of
graded strength. The same command continues where it was stopped; runs of the first seed come first, controls and
shortcuts in turn. `examine` says what is measured of a finished run.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exmap.analysis import reported_groups
from exmap.auto import find_candidates, find_shortcuts
from exmap.auto.shortcut import upper_bound
from exmap.data import build_task
from exmap.pipeline.disk import read_json, write_json
from exmap.pipeline.files import load_explained, load_outputs
from exmap.pipeline.outcome import measure_on_test
from exmap.pipeline.plan import TEST, TRAIN, explained_name
from exmap.pipeline.runs import open_run, run_until
from exmap.runtime import child_seed
from exmap.settings import Settings, load_settings

EXPLAINED = explained_name("val")
BASES = ("mnist", "fashion-mnist")
SHORTCUTS = ("colour", "patch", "texture", "position")
CONTROL_SEEDS, GRADED_SEEDS = range(4), range(2)
STRENGTHS = (0.95, 0.8, 0.99, 0.6, 0.9, 0.98, 0.995)  # coarse ones first
COARSE = STRENGTHS[:3]


@dataclass(frozen=True, order=True)
class Case:
    """One run: what `data.graded` is made of, how strongly class and shortcut agree, and the seed of all of it."""

    base: str
    classes: int
    shortcut: str
    correlation: float
    seed: int

    @property
    def planted(self) -> bool:
        """Whether there is a shortcut to be found."""
        return self.shortcut != "none" and self.correlation > 1 / self.classes

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return f"{self.base}-{self.classes}-{self.shortcut}-{self.correlation:g}-{self.seed}"

    def settings(self, data_dir: Path) -> Settings:
        """Return the settings of the run."""
        overrides = [f"data.graded.{key}={getattr(self, key)}" for key in ("base", "classes", "shortcut")]
        return load_settings(
            "graded",
            overrides,
            seed=self.seed,
            data__dir=str(data_dir),
            data__split_seed=self.seed,
            data__correlation=self.correlation,
        )


def cases() -> list[Case]:
    """Return all runs, in the order in which they are made."""
    ordered = []
    for seed in sorted({*CONTROL_SEEDS, *GRADED_SEEDS}):
        kinds = [list(controls(seed)), list(graded(seed))]
        places = {case: place / len(kind) for kind in kinds for place, case in enumerate(kind)}
        ordered += sorted(places, key=places.__getitem__)  # in turn
    return ordered


def controls(seed: int) -> Iterator[Case]:
    """Yield runs without a shortcut: none drawn, or one drawn that says nothing of the class."""
    for base in BASES if seed in CONTROL_SEEDS else ():
        yield Case(base, 10, "none", 0.1, seed)
        yield Case(base, 2, "none", 0.5, seed)
        yield from (Case(base, 2, shortcut, 0.5, seed) for shortcut in SHORTCUTS)


def graded(seed: int) -> Iterator[Case]:
    """Yield runs with a shortcut; garments and more classes with the first seed alone."""
    if seed not in GRADED_SEEDS:
        return
    first = seed == GRADED_SEEDS[0]
    for strength in STRENGTHS:
        for shortcut in SHORTCUTS:
            yield Case("mnist", 2, shortcut, strength, seed)
            if first and strength in COARSE:
                yield Case("fashion-mnist", 2, shortcut, strength, seed)
            if first and strength == COARSE[0]:
                yield from (Case("mnist", classes, shortcut, strength, seed) for classes in (5, 10))


def make(case: Case, out: Path, data_dir: Path) -> Path:
    """Train and explain one classifier, and write how well it does on the test images: erm.json, last."""
    run, settings = open_run(out / case.name, case.settings(data_dir))
    if not (run.path / "erm.json").is_file():
        run_until(run, settings, until="explain", say=lambda _: None)
        task = build_task(settings.data)
        found = measure_on_test(task, settings, load_outputs(run.folder(TEST)).predicted[None], "erm").to_json()
        index, names = reported_groups(task.val)
        counts = np.bincount(index, minlength=len(names)).tolist()
        found["val_counts"] = dict(zip(names, counts, strict=True))
        found["val_mean_accuracy"] = float(load_explained(task.val, run.folder(EXPLAINED)).correct.mean())
        found["seconds"] = {step: (run.record(step) or {}).get("seconds") for step in (TRAIN, EXPLAINED)}
        write_json(run.path / "erm.json", found)
    return run.path


def examine(run_folder: Path, data_dir: Path) -> dict[str, Any]:
    """Return what is measured of a finished run, by the titles of the table's columns.

    The test of shortcuts is applied to the validation images; its verdict is kept in shortcut.json.
    """
    kept = run_folder / "shortcut.json"
    if not kept.is_file():
        run, settings = open_run(run_folder)
        task = build_task(settings.data.model_copy(update={"dir": data_dir}))
        explained = load_explained(task.val, run.folder(EXPLAINED))
        began = time.process_time()
        seed = child_seed(settings.seed, "auto", "judges")
        test = find_shortcuts(find_candidates(explained, seed=seed, features=False), explained)
        seconds = round(time.process_time() - began, 1)
        classes = {name: finding.to_json() for name, finding in test.classes.items()}
        write_json(kept, {"tested": test.tested, "found": test.found, "classes": classes, "seconds": seconds})
    erm, verdict = read_json(run_folder / "erm.json"), read_json(kept)
    surest = min(verdict["classes"].values(), key=lambda each: each["p_value"])
    return {
        "mean accuracy": erm["mean_accuracy"],
        "worst-group accuracy": erm["worst_group_accuracy"],
        "found": verdict["found"],
        "p-value": surest["p_value"],
        "effect": surest["effect"],
        "images": surest["images"],
        "conductance": surest["conductance"],
        "clusters tested": verdict["tested"],
        "seconds": verdict["seconds"],
    }


def summarise(rows: list[dict[str, Any]]) -> str:
    """Return false alarms over the controls, and how many planted shortcuts were found, as Markdown."""
    controls = [row for row in rows if not row["planted"]]
    planted = [row for row in rows if row["planted"]]
    alarms = sum(row["found"] for row in controls)
    text = [
        f"Controls: {alarms} false alarms in {len(controls)} classifiers without a shortcut (at most "
        f"{upper_bound(alarms, len(controls)):.1%} with 95 % confidence). Planted: {sum(r['found'] for r in planted)} "
        f"of {len(planted)} found.",
        "",
        *_crossed(controls, lambda row: f"{row['shortcut']}, {row['classes']} classes", "base", "without a shortcut"),
        "",
        *_crossed(
            [row for row in planted if row["classes"] == 2],
            lambda row: f"{row['base']}, {row['shortcut']}",
            "correlation",
            "planted, 2 classes",
        ),
        "",
        *_crossed(
            [row for row in planted if row["classes"] > 2],
            lambda row: f"{row['base']}, {row['shortcut']}, {row['correlation']:g}",
            "classes",
            "planted, more classes",
        ),
        "",
        *_crossed([{**row, "worst": _band(row)} for row in planted], lambda row: row["shortcut"], "worst", "planted"),
    ]
    return "\n".join(text) + "\n"


def _band(row: dict[str, Any]) -> str:
    """Return in which range the classifier's worst group lies."""
    low = next(low for low in (0.9, 0.8, 0.6, 0.0) if row["worst-group accuracy"] >= low)
    return {0.9: "worst group from 90 %", 0.8: "80 to 90 %", 0.6: "60 to 80 %", 0.0: "below 60 %"}[low]


def _crossed(
    rows: list[dict[str, Any]], line: Callable[[dict[str, Any]], str], column: str, title: str
) -> Iterator[str]:
    """Yield a table of how many were found of how many, with the mean worst-group accuracy."""
    cells: dict[str, dict[Any, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[line(row)][row[column]].append(row)
    columns = sorted({row[column] for row in rows})
    yield f"| {title} | " + " | ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in columns) + " |"
    yield "| --- " * (len(columns) + 1) + "|"
    for name in sorted(cells):
        yield f"| {name} | " + " | ".join(_found(cells[name][each]) for each in columns) + " |"


def _found(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    worst = np.mean([row["worst-group accuracy"] for row in rows])
    return f"{sum(row['found'] for row in rows)} of {len(rows)} ({worst:.0%})"


def write_tables(out: Path, data_dir: Path) -> None:
    """Write table.csv, a row per finished run with what `examine` says of it, and summary.md."""
    finished = [case for case in sorted(cases()) if (out / case.name / "erm.json").is_file()]
    rows = [{**asdict(case), "planted": case.planted, **examine(out / case.name, data_dir)} for case in finished]
    titles = list(dict.fromkeys(title for row in rows for title in row))
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, titles)
        writer.writeheader()
        writer.writerows(rows)
    (out / "summary.md").write_text(summarise(rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run folders and the tables")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of MNIST's and Fashion-MNIST's IDX files")
    parser.add_argument("--tables", action="store_true", help="make no runs, tabulate those that are finished")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [] if arguments.tables else cases()
    for number, case in enumerate(wanted):
        began = time.perf_counter()
        erm = read_json(make(case, arguments.out, arguments.data_dir) / "erm.json")
        print(
            f"{number + 1}/{len(wanted)} {case.name}: mean {erm['mean_accuracy']:.3f}, "
            f"worst group {erm['worst_group_accuracy']:.3f}, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    write_tables(arguments.out, arguments.data_dir)


if __name__ == "__main__":
    main()
