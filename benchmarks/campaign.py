"""Classifiers whose shortcut, or lack of one, is known, and what is said of each: the level and the power of the test.

Each case is a small network trained on the data set `graded`. Controls have no shortcut, or an attribute that says
nothing of the class; planted ones have an attribute that goes with the class in most images. Seeds below 100 are there
to develop on, those from 100 on to report on. `make` trains and explains; it continues where it was stopped, and
several may run at once on other parts:

    python benchmarks/campaign.py make --out campaign --data-dir path/to/idx --part 0/2
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exmap.data import Task, build_task
from exmap.explain import explain_split
from exmap.model import collect_outputs
from exmap.model.weights import save_tensors
from exmap.records import Explained, Heatmaps, Outputs
from exmap.runtime import child_seed, generator
from exmap.settings import ExplainSettings, load_settings
from small_networks import NETWORKS, build, train

REPORTED = 100  # the first seed that constants were not chosen on
BASES = ("mnist", "fashion-mnist")
SHORTCUTS = ("colour", "patch", "texture", "position")
STRENGTHS = (0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
SIZES = {False: (3000, 2000, 2000), True: (2000, 1000, 1000)}  # images of each split; those reported on are fewer
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["make"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the cases")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of MNIST's and Fashion-MNIST's IDX files")
    parser.add_argument("--first", type=int, default=REPORTED, help="the first seed")
    parser.add_argument("--controls", type=int, default=200)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--part", default="0/1", help="which of how many parts, for several processes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, arguments.part.split("/"))
    wanted = list(cases(arguments.first, arguments.controls, arguments.planted))[part::parts]
    for number, case in enumerate(wanted):
        began = time.perf_counter()
        make(case, arguments.out, arguments.data_dir)
        print(f"{number + 1}/{len(wanted)} {case.name} {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
