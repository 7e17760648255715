"""Classifiers whose shortcut, or lack of one, is known, and what is said of each: the level and the power of the test.

Each case is a small network trained on the data set `graded`. Controls have no shortcut, or an attribute that says
nothing of the class; planted ones have an attribute that goes with the class in most images. Seeds below 100 are there
to develop on, those from 100 on to report on. `make` trains and explains; it continues where it was stopped, and
several may run at once on other parts:

    python benchmarks/campaign.py make --out campaign --data-dir path/to/idx --part 0/2
    python benchmarks/campaign.py judge --out campaign --data-dir path/to/idx
    python benchmarks/campaign.py report --out campaign

`judge` asks each finished classifier, `report` writes table.csv and summary.md. A planted shortcut must be found where
a class has at least 15 validation images against it, and lies at least 15 points above their accuracy.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exmap.auto import experiment
from exmap.auto.against import find_by_exchanges
from exmap.auto.exchange import measure_exchanges
from exmap.auto.mislabelled import doubtful_labels, doubtful_rows
from exmap.auto.shortcut import upper_bound
from exmap.data import Task, build_task
from exmap.exchange import Looks
from exmap.explain import explain_split
from exmap.model import collect_outputs
from exmap.model.weights import load_weights, save_tensors
from exmap.records import Explained, Heatmaps, Outputs
from exmap.runtime import child_seed, generator
from exmap.settings import ExplainSettings, load_settings
from small_networks import NETWORKS, build, train

REPORTED = 100  # the first seed of the smaller cases
UNSEEN = 140  # the first seed that nothing was chosen on; two before it showed that small shifts are shape, not place
BASES = ("mnist", "fashion-mnist")
SHORTCUTS = ("colour", "patch", "texture", "position")
STRENGTHS = (0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
SIZES = {False: (3000, 2000, 2000), True: (2000, 1000, 1000)}  # images of each split; those reported on are fewer
WARNED = 4  # every so many-th seed is asked for warnings, too
SIDE = 14  # to which heatmaps are reduced on disk


@dataclass(frozen=True)
class Case:
    """One classifier: all of it follows from its kind and its seed."""

    kind: str  # "control" or "planted"
    seed: int
    network: str
    base: str
    classes: int
    shortcut: str
    correlation: float
    label_noise: float = 0.0
    imbalance: float = 1.0

    @property
    def name(self) -> str:
        """Stem of its files."""
        return f"{self.kind}-{self.seed:03d}"

    @classmethod
    def of(cls, kind: str, seed: int) -> Case:
        """Draw a case."""
        rng = generator(seed, "campaign", kind)
        network = NETWORKS[seed % 3]
        base = BASES[seed // 3 % 2]
        if kind == "planted":
            strength = STRENGTHS[seed % 7]
            return cls(kind, seed, network, base, int(rng.choice([2, 2, 5, 10])), SHORTCUTS[seed % 4], strength)
        classes = (2, 5, 10, 2, 10)[seed % 5]
        shortcut = "none" if rng.random() < 0.5 else SHORTCUTS[rng.integers(4)]
        noise, imbalance = 0.05 * (rng.random() < 0.35), 10.0 if rng.random() < 0.3 else 1.0
        return cls(kind, seed, network, base, classes, shortcut, max(1 / classes, 0.1), float(noise), imbalance)

    def task(self, data_dir: Path) -> Task:
        """Return its images."""
        values: dict[str, Any] = {key: getattr(self, key) for key in ("base", "classes", "shortcut")}
        values |= {"label_noise": self.label_noise, "imbalance": self.imbalance}
        values |= zip(("train", "val", "test"), SIZES[self.seed >= REPORTED], strict=True)
        overrides = [f"data.graded.{key}={value}" for key, value in values.items()]
        drawn = {"data__split_seed": self.seed, "data__correlation": self.correlation}
        return build_task(load_settings("graded", overrides, data__dir=str(data_dir), **drawn).data)


def cases(first: int, controls: int, planted: int) -> Iterator[Case]:
    """Yield cases from a seed on, both kinds in turn."""
    for number in range(max(controls, planted)):
        if number < controls:
            yield Case.of("control", first + number)
        if number < planted:
            yield Case.of("planted", first + number)


def make(case: Case, out: Path, data_dir: Path) -> None:
    """Train and explain one classifier, and write what is known of it, the JSON last."""
    path, began = out / f"{case.name}.json", time.perf_counter()
    if path.is_file():
        return
    task = case.task(data_dir)
    model = build(case.network, case.classes, seed=child_seed(case.seed, "model"))
    train(model, case.network, task.train, seed=child_seed(case.seed, "train"))
    maps, outputs = explain_split(model, task.val, ExplainSettings(batch_size=250, size=SIDE))
    test = collect_outputs(model, task.test).predicted == task.test.labels
    assert maps.channels is not None
    np.savez(
        out / f"{case.name}.npz",
        values=maps.values.astype(np.float16),
        channels=maps.channels,
        finite=maps.finite,
        zero=maps.zero,
        target=maps.target,
        features=outputs.features,
        logits=outputs.logits,
    )
    save_tensors(model.state_dict(), out / f"{case.name}.safetensors")
    labels = task.test.labels
    found: dict[str, Any] = {**asdict(case), "accuracy": float(test.mean())}
    found["class_accuracy"] = [float(test[labels == label].mean()) for label in range(case.classes)]
    if task.test.truth is not None and task.val.truth is not None:
        index = task.test.truth.index
        counts = np.bincount(task.val.truth.index, minlength=len(task.val.truth.names))
        found["groups"] = {
            name: {"accuracy": float(test[index == g].mean()) if (index == g).any() else None, "val": int(counts[g])}
            for g, name in enumerate(task.test.truth.names)
        }
    found["seconds"] = round(time.perf_counter() - began, 1)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(path)


def load(case: Case, out: Path, task: Task) -> Explained:
    """Return the explained validation images of a finished case."""
    with np.load(out / f"{case.name}.npz") as held:
        maps = Heatmaps(
            held["values"].astype(np.float32),
            held["target"],
            np.zeros(len(held["target"]), dtype=np.float32),
            held["finite"],
            held["zero"],
            channels=held["channels"],
        )
        outputs = Outputs(held["features"], held["logits"])
    return Explained(task.val.name, task.val.ids, task.val.labels, task.val.class_names, outputs, maps)


def judge(case: Case, out: Path, data_dir: Path) -> None:
    """Ask one finished classifier, and write what was found; every fourth is also asked for warnings."""
    path = out / f"{case.name}.judged"
    if path.is_file():
        return
    began = time.process_time()
    task = case.task(data_dir)
    explained = load(case, out, task)
    model = build(case.network, case.classes, seed=0)
    load_weights(model, out / f"{case.name}.safetensors")
    looks = Looks.of(task.val, model.eval())
    seed = child_seed(case.seed, "exchange")
    exchanges = measure_exchanges(looks, explained, seed=seed)
    doubtful = doubtful_rows(doubtful_labels(explained, pixels=looks.reduced, seed=seed), explained)
    kept = np.flatnonzero(~doubtful)
    test = find_by_exchanges(exchanges.rows(kept), explained.rows(kept))
    seconds = time.process_time() - began
    surest = min(test.classes.values(), key=lambda each: 2.0 if each.p_value is None else each.p_value)
    row: dict[str, Any] = {**asdict(case), "accuracy": float(explained.correct.mean()), **_harm(case, task, explained)}
    row |= {"found": test.found, "p_value": surest.p_value, "property": surest.property, "images": surest.images}
    row["doubtful"] = int(doubtful.sum())
    row |= {"classes_found": sum(bool(each.found) for each in test.classes.values()), "seconds": round(seconds, 1)}
    row["relied_on"] = sorted({each.property for each in exchanges.reliances if each.relied_on})
    if case.seed % WARNED == 0:
        row["warnings"] = len(experiment(task.val, explained, model, seed=case.seed).warnings)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(row) + "\n")
    part.replace(path)


def _harm(case: Case, task: Task, explained: Explained) -> dict[str, Any]:
    """Return how many images go against a planted shortcut, and how far they lie below their class, the worst class."""
    if case.kind == "control" or task.val.truth is None:
        return {"against": None, "harm": None}
    value = task.val.truth.index % case.classes
    harms: list[tuple[float, int]] = []
    for label in range(case.classes):
        members = task.val.labels == label
        against = members & (value != np.bincount(value[members], minlength=case.classes).argmax())
        if against.sum() >= 15:
            gap = explained.correct[members].mean() - explained.correct[against].mean()
            harms.append((float(gap), int(against.sum())))
    harm, count = max(harms, default=(0.0, 0))
    return {"against": count, "harm": harm}


def report(out: Path) -> None:
    """Write table.csv, a row per judged classifier, and summary.md."""
    rows = [json.loads(path.read_text()) for path in sorted(out.glob("*.judged"))]
    titles = list(dict.fromkeys(title for row in rows for title in row))
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, titles)
        writer.writeheader()
        writer.writerows({**row, "relied_on": " ".join(row["relied_on"])} for row in rows)
    (out / "summary.md").write_text(summarise(rows), encoding="utf-8")


def summarise(rows: list[dict[str, Any]]) -> str:
    """Return level and power as Markdown."""
    controls, planted, due = _kinds(rows)
    warned = [row for row in rows if "warnings" in row]
    nearly_all = [row for row in warned if row["kind"] == "planted" and row["correlation"] >= 0.98]
    lines: list[str] = []
    for title, part in (
        (f"Seeds from {UNSEEN} on", [row for row in rows if row["seed"] >= UNSEEN]),
        (f"seeds {REPORTED} to {UNSEEN - 1}", [row for row in rows if row["seed"] < UNSEEN]),
    ):
        alarms, _, must = _kinds(part)
        lines += [f"{title}: false alarms {_rate(alarms, upper_bound)}; found where due {_rate(must, _lower)}.", ""]
    lines += [
        f"Warned of controls: {_rate([r for r in warned if r['kind'] == 'control'], upper_bound, 'warnings')}; of "
        f"shortcuts in 98 % of the images and more: {_rate(nearly_all, _lower, 'warnings')}.",
        "",
        *_table("controls", controls, ("shortcut", "classes", "network", "base", "label_noise", "imbalance")),
        "",
        *_table("planted, where it must be found", due, ("shortcut", "classes", "network", "base", "correlation")),
        "",
        "| planted, by harm (points) | fewer than 15 images against | 15 to 29 | 30 to 99 | 100 and more |",
        "| --- " * 5 + "|",
    ]
    for low, high in ((-1.0, 0.05), (0.05, 0.15), (0.15, 0.3), (0.3, 0.6), (0.6, 1.01)):
        inside = [row for row in planted if low <= row["harm"] < high or (not row["against"] and low < 0)]
        bands = ((0, 15), (15, 30), (30, 100), (100, 10**6))
        cells = [[r for r in inside if least <= r["against"] < most] for least, most in bands]
        name = f"{100 * max(low, 0):.0f} to {100 * min(high, 1):.0f}"
        lines.append(f"| {name} | " + " | ".join(_count(cell) for cell in cells) + " |")
    seconds = [row["seconds"] for row in rows]
    lines += ["", f"Seconds a classifier: median {np.median(seconds):.1f}, largest {max(seconds):.1f}."]
    return "\n".join(lines) + "\n"


def _kinds(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], ...]:
    """Return the controls, the planted ones, and those of the latter that must be found."""
    planted = [row for row in rows if row["kind"] == "planted"]
    due = [row for row in planted if row["against"] and row["harm"] >= 0.15]
    return [row for row in rows if row["kind"] == "control"], planted, due


def _table(title: str, rows: list[dict[str, Any]], keys: Sequence[str]) -> Iterator[str]:
    """Yield how many of each kind were found."""
    yield f"| {title} | found of tested |"
    yield "| --- | --- |"
    for key in keys:
        for value in sorted({row[key] for row in rows}):
            yield f"| {key.replace('_', ' ')} {value} | {_count([row for row in rows if row[key] == value])} |"


def _count(rows: list[dict[str, Any]]) -> str:
    return f"{sum(row['found'] for row in rows)} of {len(rows)}" if rows else ""


def _rate(rows: list[dict[str, Any]], bound: Callable[[int, int], float], key: str = "found") -> str:
    """Return a share with its one-sided 95 % bound."""
    count = sum(bool(row[key]) for row in rows)
    if not rows:
        return "none judged"
    side = "at most" if bound is upper_bound else "at least"
    return (
        f"{count} of {len(rows)}, {count / len(rows):.1%} ({side} {bound(count, len(rows)):.1%} with 95 % confidence)"
    )


def _lower(count: int, total: int) -> float:
    return 1 - upper_bound(total - count, total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["make", "judge", "report"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the cases")
    parser.add_argument("--data-dir", type=Path, default=Path(), help="folder of MNIST's and Fashion-MNIST's IDX files")
    parser.add_argument("--first", type=int, default=REPORTED, help="the first seed")
    parser.add_argument("--controls", type=int, default=200)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--part", default="0/1", help="which of how many parts, for several processes")
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(arguments.out)
        return
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, arguments.part.split("/"))
    wanted = list(cases(arguments.first, arguments.controls, arguments.planted))[part::parts]
    for number, case in enumerate(wanted):
        began = time.perf_counter()
        if arguments.command == "make":
            make(case, arguments.out, arguments.data_dir)
        elif (arguments.out / f"{case.name}.json").is_file():
            judge(case, arguments.out, arguments.data_dir)
        print(f"{number + 1}/{len(wanted)} {case.name} {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
