"""Classifiers of real photographs, explained, with what is known of their shortcut: to judge a test for shortcuts on.

Planted cases learn from data in which a second attribute goes with the class: birds and their backgrounds
(`waterbirds-remix`, 95 % of training images), blond hair and sex (`celeba-10k`), on the data's own splits. Controls
learn from a selection of the same photographs in which the second attribute says nothing of the class: in every split
its share is the same in both classes. With CelebA no person is in two splits. What else goes with the class is not
taken away; for CelebA the JSON names the attributes that do so most. `make` continues where it was stopped. Beside the
weights it keeps what the classifier makes of validation and test images, never an image:

    python benchmarks/photographs.py make --out cases --natural path/to/natural --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import nn

from exmap.auto import choose_groups, experiment
from exmap.data import Split, Task
from exmap.data.dataset import ArrayImages, Attribute, TrueGroups, batch_slices
from exmap.explain import explain_split
from exmap.model import collect_outputs
from exmap.model.backbone import to_tensor
from exmap.model.weights import load_weights, save_tensors
from exmap.records import Explained, Groups, Heatmaps, IntArray, Outputs
from exmap.retrain import DFR, ClassBalanced
from exmap.runtime import child_seed, generator, torch_seed
from exmap.settings import AutoSettings, ExplainSettings
from networks import build_network
from small_networks import build

__all__ = ["Case", "cases", "images", "load", "network"]

NAMES = {"y": ("landbird", "waterbird"), "place": ("land", "water")}
MEAN, DEVIATION = (np.array(v, dtype=np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
DESCRIPTIONS = {
    "resnet18": "ResNet-18 of half the width (32 to 256 channels), from random weights",
    "efficientnet-lite0": "EfficientNet-lite0, all layers tuned from ImageNet weights",
}


@dataclass(frozen=True)
class Case:
    """One classifier: all of it follows from these fields."""

    kind: str  # "planted" or "control"
    dataset: str
    network: str
    seed: int
    target: str
    attribute: str

    @property
    def name(self) -> str:
        """Stem of its files."""
        return "-".join((self.kind, self.dataset, self.target, self.attribute, self.network, str(self.seed)))


class Recipe(NamedTuple):
    """How a network is trained: pixels on a side, images seen over all epochs, highest rate of AdamW, images a step."""

    side: int
    seen: int
    rate: float
    batch_size: int


RECIPES = {
    ("waterbirds-remix", "resnet18"): Recipe(64, 21_000, 1e-3, 64),
    ("waterbirds-remix", "efficientnet-lite0"): Recipe(96, 4_200, 5e-4, 32),
    ("celeba-10k", "resnet18"): Recipe(64, 20_000, 1e-3, 64),
    ("celeba-10k", "efficientnet-lite0"): Recipe(96, 6_000, 5e-4, 32),
}


SELECTIONS = {  # of controls: how many images of each class, and the second attribute's share in both
    ("y", "place"): ((1800, 380), 0.5),
    ("Smiling", "Male"): ((2750, 2750), 0.5),
    ("Mouth_Slightly_Open", "Young"): ((2750, 2750), 0.78),
    ("Black_Hair", "Male"): ((2350, 2350), 0.5),
}
SHARES = {"train": 0.53, "val": 0.21, "test": 0.26}  # of a control's images


def cases(seed: int) -> Iterator[Case]:
    """Yield a seed's cases, the most needed first."""
    small, pretrained = DESCRIPTIONS
    for kind in ("planted", "control"):
        yield from (Case(kind, "waterbirds-remix", name, seed, "y", "place") for name in DESCRIPTIONS)
    yield from (Case("planted", "celeba-10k", name, seed, "y_blond", "a_male") for name in DESCRIPTIONS)
    yield from (Case("control", "celeba-10k", small, seed, *pair) for pair in list(SELECTIONS)[1:])
    yield Case("control", "celeba-10k", pretrained, seed, "Smiling", "Male")


class Photographs(ArrayImages):
    """Photographs as uint8, given to the model with ImageNet's mean and deviation taken off, and shown as they are."""

    def batch(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` as the model wants them."""
        return (super().batch(indices) - MEAN) / DEVIATION

    def pixels(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` as one looks at them."""
        return super().batch(indices)


@lru_cache(maxsize=2)
def _photographs(folder: Path, side: int) -> tuple[pd.DataFrame, NDArray[np.uint8]]:
    """Return a data set's table, and the middle square of each of its images at the size asked for."""
    table = pd.read_csv(folder / "metadata.csv")
    inside = folder if (folder / table["img_filename"][0]).is_file() else folder / "images"
    array = np.empty((len(table), 3, side, side), dtype=np.uint8)
    for row, name in enumerate(table["img_filename"]):
        with Image.open(inside / name) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BILINEAR)
        array[row] = np.asarray(fitted).transpose(2, 0, 1)
    return table, array


def _selected(table: pd.DataFrame, cell: IntArray, wanted: tuple[tuple[int, int], float], seed: int) -> list[IntArray]:
    """Return the rows of each split of a control; fewer of all four cells where a split has not enough of one."""
    rng, draw = generator(seed, "selection"), np.empty(len(table))
    if "identity" in table:  # each person has a number in [0, 1), which says their split
        person = np.unique(table["identity"], return_inverse=True)[1]
        draw = rng.random(person.max() + 1)[person]
    else:  # the images of each cell are shared out exactly
        for rows in (np.flatnonzero(cell == which) for which in range(4)):
            draw[rows] = (rng.permutation(len(rows)) + 0.5) / len(rows)
    split = np.searchsorted(np.cumsum(list(SHARES.values()))[:2], draw, side="right")
    parts = []
    for number, share in enumerate(SHARES.values()):
        sizes = share * np.outer(wanted[0], (1 - wanted[1], wanted[1])).ravel()
        found = [rng.permutation(np.flatnonzero((cell == which) & (split == number))) for which in range(4)]
        scale = min(1.0, *(len(rows) / size for rows, size in zip(found, sizes, strict=True)))
        chosen = [rows[: round(scale * size)] for rows, size in zip(found, sizes, strict=True)]
        parts.append(np.sort(np.concatenate(chosen)).astype(np.int64))
    return parts


def _table(case: Case, data_dir: Path) -> tuple[pd.DataFrame, NDArray[np.uint8], list[IntArray]]:
    """Return the data set's table and images, and the case's rows of each split."""
    table, array = _photographs(data_dir / case.dataset, RECIPES[case.dataset, case.network].side)
    if case.kind == "planted":
        named = [table["split"].isin([name, number]).to_numpy() for number, name in enumerate(SHARES)]
        return table, array, [np.flatnonzero(rows).astype(np.int64) for rows in named]
    cell = (2 * table[case.target] + table[case.attribute]).to_numpy(dtype=np.int64)
    return table, array, _selected(table, cell, SELECTIONS[case.target, case.attribute], case.seed)


def images(case: Case, data_dir: Path) -> Task:
    """Return a case's images; `data_dir` holds the folders of the data sets."""
    table, array, parts = _table(case, data_dir)
    classes, values = _names(case.target), _names(case.attribute)

    def split(name: str, rows: IntArray) -> Split:
        some = table.iloc[rows]
        labels, attribute = (some[column].to_numpy(dtype=np.int64) for column in (case.target, case.attribute))
        truth = TrueGroups.cross(labels, classes, [Attribute(case.attribute, attribute, values)])
        return Split(name, Photographs(array[rows]), labels, tuple(some["img_filename"]), classes, truth)

    first, second, third = map(split, SHARES, parts)
    return Task(case.name, first, second, third)


def _names(column: str) -> tuple[str, str]:
    """Return what 0 and 1 in a column mean."""
    return NAMES.get(column, (f"not {column}", column))


def _build(case: Case, seed: int) -> nn.Module:
    """Return a case's network before training."""
    side = RECIPES[case.dataset, case.network].side
    small = case.network == "resnet18"
    model = build(case.network, 2, seed=seed) if small else build_network(case.network, (side, side), seed=seed)
    return model.to(memory_format=torch.channels_last)


def network(case: Case, out: Path) -> nn.Module:
    """Return the trained network of a finished case, in evaluation mode."""
    model = _build(case, 0)
    load_weights(model, out / f"{case.name}.safetensors")
    return model.eval()


def train(model: nn.Module, split: Split, recipe: Recipe, *, seed: int) -> list[float]:
    """Train on images flipped at random, by AdamW, whose rate rises and falls; return the mean loss of each epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.05, fused=True)
    epochs = round(recipe.seen / len(split))
    steps, step, losses = epochs * math.ceil(len(split) / recipe.batch_size), 0, []
    model.train()
    for epoch in range(epochs):
        rng, total = generator(seed, "order", epoch), 0.0
        order = rng.permutation(len(split)).astype(np.int64)
        with torch_seed(child_seed(seed, "epoch", epoch)):
            for part in batch_slices(len(order), recipe.batch_size):
                step += 1
                share = min(10 * step / steps, (1 + math.cos(math.pi * step / steps)) / 2)
                optimizer.param_groups[0]["lr"] = recipe.rate * share
                batch = split.images.batch(order[part])
                flipped = rng.random(len(batch)) < 0.5
                batch[flipped] = batch[flipped, ..., ::-1]
                labels = torch.from_numpy(split.labels[order[part]])
                loss = nn.functional.cross_entropy(model(to_tensor(batch, torch.device("cpu"))), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.item() * len(batch)
        losses.append(round(total / len(split), 4))
    model.eval()
    return losses


def make(case: Case, out: Path, data_dir: Path) -> dict[str, Any]:
    """Train and explain one classifier, and write what is known of it, the JSON last; return the JSON."""
    path, began = out / f"{case.name}.json", time.perf_counter()
    if path.is_file():
        return dict(json.loads(path.read_text()))
    task, recipe = images(case, data_dir), RECIPES[case.dataset, case.network]
    model, built = _build(case, child_seed(case.seed, "model")), time.perf_counter()
    losses = train(model, task.train, recipe, seed=child_seed(case.seed, "train"))
    trained = time.perf_counter()
    maps, outputs = explain_split(model, task.val, ExplainSettings(batch_size=100, size=16))
    test = collect_outputs(model, task.test)
    arrays = {name: getattr(maps, name) for name in ("channels", "finite", "zero", "target")}
    arrays |= _said(task.val, outputs) | {f"test_{name}": held for name, held in _said(task.test, test).items()}
    np.savez(out / f"{case.name}.npz", values=maps.values.astype(np.float16), **arrays)
    save_tensors(model.state_dict(), out / f"{case.name}.safetensors")
    right = {"val": outputs.predicted == task.val.labels, "test": test.predicted == task.test.labels}
    train_right = collect_outputs(model, task.train).predicted == task.train.labels
    found = asdict(case) | recipe._asdict() | {"description": DESCRIPTIONS[case.network], "optimiser": "AdamW"}
    found |= {"parameters": sum(p.numel() for p in model.parameters()), "class_names": task.test.class_names}
    found |= {"epochs": len(losses), "train_loss": losses, "train_accuracy": float(train_right.mean())}
    found |= {"accuracy": float(right["test"].mean()), "val_accuracy": float(right["val"].mean())}
    found["class_accuracy"] = [float(right["test"][task.test.labels == label].mean()) for label in range(2)]
    truth = {name: task.split(name).true_groups() for name in SHARES}
    for group, name in enumerate(truth["test"].names):
        row = {split: int(groups.counts()[group]) for split, groups in truth.items()}
        accuracy = {split: float(hits[truth[split].index == group].mean()) for split, hits in right.items()}
        found.setdefault("groups", {})[name] = {"accuracy": accuracy["test"], "val_accuracy": accuracy["val"], **row}
    found |= {"goes_with_the_class": _correlates(case, data_dir), "torch": torch.__version__}
    found |= {"train_seconds": round(trained - built, 1), "seconds": round(time.perf_counter() - began, 1)}
    path.with_suffix(".part").write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".part").replace(path)
    return found


def _said(split: Split, outputs: Outputs) -> dict[str, NDArray[Any]]:
    """Return what is kept of a split: what it is, and what the classifier says of it."""
    known = {"labels": split.labels, "truth": split.true_groups().index, "ids": np.array(split.ids)}
    return {"features": outputs.features, "logits": outputs.logits, **known}


def _correlates(case: Case, data_dir: Path) -> dict[str, float]:
    """Return the class's correlation with the second attribute, and with those that go with it most, in training."""
    table, _, parts = _table(case, data_dir)
    some = table.iloc[parts[0]].select_dtypes("number").drop(columns=["img_id", "identity", "split"], errors="ignore")
    phi = some.corrwith(some[case.target]).drop(case.target)
    return {str(name): round(float(phi[name]), 3) for name in (case.attribute, *phi.abs().nlargest(7).index)}


def load(case: Case, out: Path) -> Explained:
    """Return the explained validation images of a finished case."""
    with np.load(out / f"{case.name}.npz") as held:
        values, error = held["values"].astype(np.float32), np.zeros(len(held["target"]), dtype=np.float32)
        maps = Heatmaps(values, held["target"], error, held["finite"], held["zero"], channels=held["channels"])
        outputs = Outputs(held["features"], held["logits"])
        return Explained("val", tuple(held["ids"].tolist()), held["labels"], _names(case.target), outputs, maps)


def judge(case: Case, out: Path, data_dir: Path) -> dict[str, Any]:
    """Ask one finished classifier, choose groups, and measure the last layers on test images; return what was found."""
    path = out / f"{case.name}.judged"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    task, explained, began = images(case, data_dir), load(case, out), time.process_time()
    exchanges = experiment(task.val, explained, network(case, out), seed=case.seed)
    choice = choose_groups(explained, exchanges=exchanges, settings=AutoSettings(only_if_found=False), seed=case.seed)
    seconds = time.process_time() - began
    with np.load(out / f"{case.name}.npz") as held:
        test = {key: held[f"test_{key}"] for key in ("features", "logits", "labels", "truth")}
        truth = replace(choice.groups, index=held["truth"], names=task.val.true_groups().names, classes=(), parts=())

    def worst(right: NDArray[np.bool_]) -> float:
        return min(float(right[test["truth"] == group].mean()) for group in np.unique(test["truth"]))

    def after(groups: Groups | None) -> float:
        learner = DFR(seed=case.seed) if groups is not None else ClassBalanced(seed=case.seed)
        head = learner.fit_head(explained.features, explained.labels, groups, n_classes=len(explained.class_names))
        return worst(head.predict(test["features"]) == test["labels"])

    found: dict[str, Any] = {**asdict(case), "found": [n for n, f in choice.record.shortcut.items() if f.found]}
    found |= {"why": {name: each.why for name, each in choice.record.shortcut.items()}, "chosen": choice.record.chosen}
    found |= {"p_values": {name: each.p_value for name, each in choice.record.shortcut.items()}}
    found |= {
        "warnings": list(exchanges.warnings),
        "confidence": choice.record.confidence,
        "seconds": round(seconds, 1),
    }
    found |= {"erm": worst(test["logits"].argmax(axis=1) == test["labels"]), "auto": after(choice.groups)}
    found |= {"classes": after(None), "oracle": after(truth)}
    if choice.record.repair is not None:
        found["gain"] = [getattr(choice.record.repair, name) for name in ("gain", "gain_low", "gain_high")]
    path.with_suffix(".judging").write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".judging").replace(path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["make", "judge"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the cases")
    parser.add_argument("--natural", type=Path, required=True, help="folder of waterbirds-remix and celeba-10k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    wanted = [case for seed in arguments.seeds for case in cases(seed)]
    for number, case in enumerate(wanted):
        if arguments.command == "judge":
            if (arguments.out / f"{case.name}.json").is_file():
                found = judge(case, arguments.out, arguments.natural)
                shares = {key: round(100 * found[key], 1) for key in ("erm", "classes", "auto", "oracle")}
                print(f"{case.name}: found in {found['found']}, {shares}, {found['chosen']}", flush=True)
            continue
        found = make(case, arguments.out, arguments.natural)
        groups = {name: round(100 * group["accuracy"], 1) for name, group in found["groups"].items()}
        print(f"{number + 1}/{len(wanted)} {case.name} {found['seconds']:.0f} s: {groups}", flush=True)


if __name__ == "__main__":
    main()
