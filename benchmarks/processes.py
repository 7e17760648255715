"""Measure training and heatmaps in one process with all cores, and in two that share them, through Fabric.

Each process times itself from when all have come up, so starting them (some seconds) is left out.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from torch import nn

from exmap.data import Split, array_split
from exmap.explain import compute_heatmaps
from exmap.model import build_model
from exmap.model.fit import fit
from exmap.runtime import in_processes
from exmap.settings import ModelSettings, RuntimeSettings, TrainSettings
from table import print_table

IMAGES, SIDE, SEED = 8_000, 28, 0
WORK = {"training, bfloat16": "train", "heatmaps": "explain"}
COLUMNS = ("ResNet-18, ImageNet stem, 8,000 images of 28 px", "1 process", "2 processes", "ratio")


def images(number: int = IMAGES) -> Split:
    """Return noise of two classes."""
    rng = np.random.default_rng(SEED)
    return array_split(rng.random((number, 3, SIDE, SIDE), dtype=np.float32), np.arange(number) % 2)


def seconds(fabric: Any, model: nn.Module, kind: str) -> float:
    """Return how long one pass over the images takes, after a short one that does not count."""
    settings = TrainSettings(epochs=1)
    for split in (images(512), images()):
        fabric.barrier()
        start = time.perf_counter()
        if kind == "train":
            fit(model, split, None, settings, fabric=fabric, seed=SEED)
        else:
            compute_heatmaps(model, split, fabric=fabric)
        fabric.barrier()
    return time.perf_counter() - start


def measure(repeats: int = 3) -> list[dict[str, Any]]:
    """Return images per second, the best of the repeats, by work and number of processes."""
    rows = []
    for title, kind in WORK.items():
        row: dict[str, Any] = {"work": title}
        for number in (1, 2):
            precision: Any = "bf16-mixed" if kind == "train" else "32-true"
            runtime = RuntimeSettings(devices=number, accelerator="cpu", precision=precision)
            taken = [
                in_processes(runtime, seconds, build_model(ModelSettings(stem="imagenet"), 2, seed=SEED), kind)
                for _ in range(repeats)
            ]
            row[f"{number} processes"] = IMAGES / min(taken)
        rows.append(row)
    return rows


HEADER = f"| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS)


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    one, two = row["1 processes"], row["2 processes"]
    return f"| {row['work']} | {one:.0f}/s | {two:.0f}/s | {two / one:.2f} |"


if __name__ == "__main__":
    print_table(__doc__, HEADER, line, measure, 3)
