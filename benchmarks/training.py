"""Measure a training step with and without the short way for small maps, side by side in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from exmap.model import build_model
from exmap.model.backbone import to_tensor
from exmap.model.small_maps import small_maps_as_products
from exmap.settings import ModelSettings
from table import print_table

BATCH = 128
COLUMNS = ("ResNet-18, ImageNet stem, 128 images of 28 px", "ordinary", "small maps as products", "ratio")


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def training_step(short: bool, precision: str, repeats: int) -> float:
    model = build_model(ModelSettings(stem="imagenet"), 2, seed=0).to(memory_format=torch.channels_last)
    images = to_tensor(np.random.default_rng(0).random((BATCH, 3, 28, 28), dtype=np.float32), torch.device("cpu"))
    labels = torch.arange(BATCH) % 2
    optimizer = torch.optim.SGD(model.parameters(), lr=3e-3, momentum=0.9, weight_decay=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with small_maps_as_products(model) if short else nullcontext():
        return seconds(step, repeats)


def measure(repeats: int = 7) -> list[dict[str, Any]]:
    """Return images per second of a training step, by precision."""
    rows = []
    for precision in ("fp32", "bf16"):
        plain, short = (BATCH / training_step(kind, precision, repeats) for kind in (False, True))
        rows.append({"precision": precision, "ordinary": plain, "products": short, "ratio": short / plain})
    return rows


HEADER = f"| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS)


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    return f"| {row['precision']} | {row['ordinary']:.0f}/s | {row['products']:.0f}/s | {row['ratio']:.2f} |"


if __name__ == "__main__":
    print_table(__doc__, HEADER, line, measure, 7)
