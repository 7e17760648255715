"""Measure the parts that take a run's time, side by side in one process, and print ratios as well as rates."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import nn

from exmap.cluster import SpectralEigengap
from exmap.config import ExplainSettings, ModelSettings
from exmap.data import array_split
from exmap.explain import compute_heatmaps
from exmap.model import build_model
from exmap.model.backbone import to_tensor
from exmap.model.small_maps import small_maps_as_products


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
    images = to_tensor(np.random.default_rng(0).random((128, 3, 28, 28), dtype=np.float32), torch.device("cpu"))
    labels = torch.arange(128) % 2
    optimizer = torch.optim.SGD(model.parameters(), lr=3e-3, momentum=0.9, weight_decay=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with small_maps_as_products(model) if short else nullcontext():
        return seconds(step, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(
        "| training step, ResNet-18, ImageNet stem, 128 images of 28 px | ordinary | small maps as products | ratio |"
    )
    print("|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        plain, short = (training_step(kind, precision, repeats) for kind in (False, True))
        print(
            f"| {precision} | {128 / plain:.0f} images/s | {128 / short:.0f} images/s | {plain / short:.2f} |",
            flush=True,
        )
    print("\n| heatmaps, 28 px | symmetric gamma | forward + input gradient | ratio |\n|---|---|---|---|")
    for stem, number in (("imagenet", 500), ("3x3", 100)):
        model = build_model(ModelSettings(stem=stem), 2, seed=0).eval()
        array = np.random.default_rng(0).random((number, 3, 28, 28), dtype=np.float32)
        split = array_split(array, np.arange(number) % 2)

        def gradient(model: nn.Module = model, array: np.ndarray = array) -> None:
            x = to_tensor(array, torch.device("cpu")).requires_grad_()
            torch.autograd.grad(model(x).max(dim=1).values.sum(), x)

        def relevance(model: nn.Module = model, split: object = split, number: int = number) -> None:
            compute_heatmaps(model, split, ExplainSettings(batch_size=number))  # type: ignore[arg-type]

        slow, plain = seconds(relevance, 3), seconds(gradient, 3)
        rates = f"{number / slow:.0f} images/s | {number / plain:.0f} images/s | {slow / plain:.1f}"
        print(f"| {stem} stem, batch {number} | {rates} |", flush=True)
    print("\n| spectral clustering with the eigengap, 588 dimensions | seconds |\n|---|---|")
    for number in (5_000, 10_000, 20_000):
        rng = np.random.default_rng(0)
        points = rng.normal(size=(number, 588)) + 3 * rng.normal(size=(4, 588))[rng.integers(0, 4, number)]
        took = seconds(partial(SpectralEigengap(random_state=0).fit, points.astype(np.float32)), 1)
        print(f"| {number:,} samples | {took:.1f} |", flush=True)


if __name__ == "__main__":
    main()
