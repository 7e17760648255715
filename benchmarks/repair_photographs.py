"""Repairs of classifiers of real photographs, beside last layers on true groups.

The classifiers are the planted cases of photographs.py. Groups of the training and the validation images are chosen
without group labels; whole networks go on from the classifier for `--steps` steps, and their epoch is chosen by the
worst of the groups found among the validation images. True groups serve the oracle and the table alone:

    python benchmarks/photographs.py make --out cases --natural path/to/natural --seeds 0 1 2
    python benchmarks/repair_photographs.py fit --cases cases --natural path/to/natural --seeds 0 1 2
    python benchmarks/repair_photographs.py show --cases cases --natural path/to/natural --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from exmap.auto import choose_groups, experiment
from exmap.data import Split
from exmap.evaluation import worst_group_difference
from exmap.explain import explain_split
from exmap.model import collect_outputs
from exmap.records import Explained, Groups
from exmap.registry import LEARNERS
from exmap.retrain import Selection
from exmap.runtime import generator
from exmap.settings import AutoSettings, ExplainSettings, RuntimeSettings, TrainSettings
from photographs import DESCRIPTIONS, Case, cases, images, network

LAST_LAYERS = ("dfr", "class_balanced", "neurontune", "project", "dpe")
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {  # whole networks by the names of their rows: learner and options
    "exchange": ("exchange", {"properties": "surroundings", "learning_rate": 0.01, "refitted": True}),
    "rwg": ("rwg", {}),
    "lp_ft": ("lp_ft", {}),
}
ORACLE = "oracle dfr"
REPAIRS = (*LAST_LAYERS, ORACLE, *NETWORKS)
RATE, BATCH = 0.003, 64


def planted(seed: int) -> Iterator[Case]:
    """Yield the cases with a shortcut."""
    return (case for case in cases(seed) if case.kind == "planted")


def groups_of(model: nn.Module, split: Split, seed: int, by: str) -> Groups:
    """Return the groups that are chosen for a split without group labels, or its classes."""
    if by == "classes":
        return Groups(split.labels, split.class_names, "classes", ())
    maps, outputs = explain_split(model, split, ExplainSettings(batch_size=100, size=16))
    explained = Explained(split.name, split.ids, split.labels, split.class_names, outputs, maps)
    exchanges = experiment(split, explained, model, seed=seed)
    settings = AutoSettings(only_if_found=False)
    return choose_groups(explained, exchanges=exchanges, settings=settings, seed=seed).groups


def fit(case: Case, folder: Path, natural: Path, steps: int, by: str, wanted: Collection[str]) -> None:
    """Fit the repairs of a case that are wanted and not yet there, and keep which test images each classifies right."""
    path = folder / f"{case.name}.{by}-{steps}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    task, model = images(case, natural), network(case, folder)
    train, val = (replace(split, truth=None) for split in (task.train, task.val))
    truth = task.val.true_groups()
    kept: dict[str, Groups] = {}

    def group(split: Split) -> Groups:
        if split.name not in kept:
            kept[split.name] = groups_of(model, split, case.seed, by)
        return kept[split.name]

    def oracle() -> Groups:
        return Groups(truth.index, truth.names, "oracle", ())

    def add(name: str, make: Callable[[], nn.Module], notes: Callable[[], tuple[str, ...]]) -> None:
        if name in found or name not in wanted:
            return
        began = time.perf_counter()
        made = make()
        seconds = time.perf_counter() - began
        right = collect_outputs(made, task.test).predicted == task.test.labels
        found[name] = {"seconds": round(seconds, 1), "right": np.packbits(right).tolist(), "notes": list(notes())}
        path.with_suffix(".part").write_text(json.dumps(found) + "\n")
        path.with_suffix(".part").replace(path)
        accuracy = by_group(right, task.test)
        print(f"{case.name}: {name}: worst {min(accuracy):.1%}, mean {right.mean():.1%}, {seconds:.0f} s", flush=True)

    add("erm", lambda: model, tuple)
    for name in LAST_LAYERS:
        learner = LEARNERS.build(name, {"harm": "warn"}, seed=case.seed)
        wants = learner.fits_groups or learner.tunes_groups
        add(
            name,
            lambda learner=learner, wants=wants: learner.fit(model, val, group(val) if wants else None),
            lambda learner=learner: learner.head_.notes,
        )
    learner = LEARNERS.build("dfr", {"harm": "warn"}, seed=case.seed)
    add(ORACLE, lambda: learner.fit(model, val, oracle()), lambda: learner.head_.notes)
    settings = TrainSettings(learning_rate=RATE, batch_size=BATCH, epochs=10)
    for name, (learner_name, more) in NETWORKS.items():
        options = {"harm": "warn", "steps": steps, "start": "classifier", **more}
        trained = LEARNERS.build(learner_name, options, seed=case.seed, train=settings, runtime=RuntimeSettings())
        add(
            name,
            lambda trained=trained: trained.fit(model, train, group(train), selection=Selection(val, group(val))),
            lambda trained=trained: trained.notes_,
        )


def by_group(right: np.ndarray[Any, Any], test: Split) -> list[float]:
    """Return the accuracy of each true group."""
    truth = test.true_groups()
    return [float(right[truth.index == group].mean()) for group in range(len(truth.names))]


def show(folder: Path, natural: Path, seeds: list[int], kind_of_groups: str) -> None:
    """Print a table: worst group and mean over seeds, in %, and the worst group's difference from the oracle's."""
    rights: dict[tuple[str, str], dict[str, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    seconds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    tests: dict[tuple[str, str], Split] = {}
    for case in (case for seed in seeds for case in planted(seed)):
        path, kind = folder / f"{case.name}.{kind_of_groups}.json", (case.dataset, case.network)
        if path.is_file():
            tests[kind] = images(case, natural).test  # the same for all seeds
            for name, each in json.loads(path.read_text()).items():
                bits = np.unpackbits(np.array(each["right"], dtype=np.uint8))[: len(tests[kind])]
                rights[kind][name][case.seed] = bits.astype(bool)
                seconds[*kind, name].append(each["seconds"])
    print("| photographs | network | repair | worst group | mean | against oracle dfr | s | seeds |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, repairs in rights.items():
        truth = tests[kind].true_groups()
        for name, by_seed in repairs.items():
            both = sorted(set(by_seed) & set(repairs[ORACLE]))
            found = worst_group_difference(
                [by_seed[one] for one in both],
                [repairs[ORACLE][one] for one in both],
                truth.index,
                rng=generator(0, "repairs"),
            )
            worst = spread([100 * min(by_group(right, tests[kind])) for right in by_seed.values()])
            mean = spread([100 * float(right.mean()) for right in by_seed.values()])
            gain = f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
            took = f"{np.mean(seconds[*kind, name]):.0f}"
            print(f"| {' | '.join(kind)} | {name} | {worst} | {mean} | {gain} | {took} | {len(by_seed)} |")


def spread(values: list[float]) -> str:
    """Return the mean of some values, and their standard deviation where there are several."""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["fit", "show"])
    parser.add_argument("--cases", type=Path, required=True, help="folder that photographs.py made")
    parser.add_argument("--natural", type=Path, required=True, help="folder of waterbirds-remix and celeba-10k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--groups", choices=["auto", "classes"], default="auto", help="chosen groups, or the classes")
    parser.add_argument("--networks", nargs="+", default=list(DESCRIPTIONS), choices=DESCRIPTIONS)
    parser.add_argument("--repairs", nargs="+", default=list(REPAIRS), choices=REPAIRS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "show":
        show(arguments.cases, arguments.natural, arguments.seeds, f"{arguments.groups}-{arguments.steps}")
        return
    for seed in arguments.seeds:
        for case in planted(seed):
            if case.network in arguments.networks and (arguments.cases / f"{case.name}.json").is_file():
                fit(
                    case,
                    arguments.cases,
                    arguments.natural,
                    arguments.steps,
                    arguments.groups,
                    {"erm", *arguments.repairs},
                )


if __name__ == "__main__":
    main()
