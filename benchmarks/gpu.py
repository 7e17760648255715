"""Measure a machine with a GPU within ten minutes: training by precision, heatmaps, memory, start and clustering.

Parts run in that order, and none begins once the minutes are over; figures are written after each row. On a machine
without a GPU the same runs on the processor, where `--tiny` shows within a minute that it works.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clustering
import startup
from exmap.data import Split, array_split
from exmap.explain.engine import propagate
from exmap.model import fit
from exmap.model.running import to_tensor
from exmap.precision import choose_precision
from exmap.records import Progress
from exmap.runtime import make_fabric
from exmap.settings import RuntimeSettings, TrainSettings
from heatmaps import NETWORKS, _gradient, _predict, _used
from suite import machine

Row = dict[str, Any]
LARGE = {"ResNet-18, ImageNet stem, 28 px": (128, 1024), "ResNet-50, 224 px": (64, 256), "ViT-tiny, 224 px": (64, 256)}
TINY = {"ResNet-18, ImageNet stem, 28 px": (8,)}
STEPS = 12  # of training; the first of them is slower than all others
REPEATS = 5


def images_of(name: str, count: int) -> Split:
    """Return noise of the size that a network takes, in ten classes."""
    side = NETWORKS[name].side
    rng = np.random.default_rng(0)
    images, labels = rng.random((count, 3, side, side), dtype=np.float32), rng.integers(0, 10, count)
    return array_split(images, labels, name="train", class_names=[str(number) for number in range(10)])


def training(networks: dict[str, tuple[int, ...]], steps: int, runtime: RuntimeSettings) -> Iterator[Row]:
    """Yield the images per second of a training step, reading included, by network, batch and precision."""
    kinds = ("32-true", "bf16-mixed", "16-mixed") if torch.cuda.is_available() else ("32-true", "bf16-mixed")
    for (name, batches), precision in itertools.product(networks.items(), kinds):
        for batch in batches:
            stamps: list[float] = []
            notes: list[str] = []

            def listen(progress: Progress, stamps: list[float] = stamps, notes: list[str] = notes) -> None:
                stamps.append(time.perf_counter())
                notes.append(progress.note)

            settings = TrainSettings(epochs=1, batch_size=batch, select="last")
            fabric = make_fabric(runtime.model_copy(update={"precision": precision}))
            _forget_peak()
            model, images = NETWORKS[name].build(), images_of(name, steps * batch)
            fit(model, images, None, settings, fabric=fabric, seed=0, listen=listen)
            seconds = float(np.median(np.diff(stamps)[len(stamps) // 4 :]))
            row = {"network": name, "batch": batch, "precision": precision, "rate": batch / seconds, "peak": _peak()}
            yield row | {"halved": "memory ran out" in notes[-1]}


def training_line(row: Row) -> str:
    """Return one row of the table of trainings."""
    halved = ", in parts" if row["halved"] else ""
    cells = (f"{row['network']}, {row['batch']}{halved}", row["precision"], f"{row['rate']:,.0f}/s")
    return f"| {' | '.join(cells)} | {row['peak']:.2f} GiB |"


def heatmaps(networks: dict[str, tuple[int, ...]], device: torch.device, repeats: int) -> Iterator[Row]:
    """Yield the images per second of heatmaps, gradients and predictions, by network and batch."""
    for name, batches in networks.items():
        torch.manual_seed(0)
        model = _used(NETWORKS[name].build()).eval().to(device)
        for batch in batches:
            x = to_tensor(next(images_of(name, batch).batches(batch))[1], device)
            work = {
                "heatmaps": partial(propagate, model, x),
                "gradient": partial(_gradient, model, x),
                "prediction": partial(_predict, model, x),
            }
            row: Row = {"network": name, "batch": batch}
            for kind, call in work.items():
                _forget_peak()
                try:
                    row[kind] = batch / _seconds(call, device, repeats)
                except torch.OutOfMemoryError:
                    row[kind] = float("nan")
                row[f"{kind} peak"] = _peak()
            yield row


def heatmaps_line(row: Row) -> str:
    """Return one row of the table of heatmaps."""
    kinds = ("heatmaps", "gradient", "prediction")
    rates = " | ".join(f"{row[kind]:,.0f}/s" for kind in kinds)
    cost = row["gradient"] / row["heatmaps"]
    return f"| {row['network']}, {row['batch']} | {rates} | {cost:.2f} | {row['heatmaps peak']:.2f} GiB |"


def _seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median time of a call, to the end of what it gave the device to do; the first one does not count."""
    taken = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak() -> float:
    """Return the most memory of the GPU that was in use, in GiB; 0 without one."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


TABLES = {
    "training": ("Training", "| network, images at once | precision | rate | GPU memory |", 4, training_line),
    "heatmaps": (
        "Heatmaps",
        "| network, images at once | heatmaps | gradient | prediction | gradients a heatmap costs | GPU memory |",
        6,
        heatmaps_line,
    ),
}


def document(found: dict[str, Any]) -> str:
    """Return what was measured as Markdown."""
    where = found["machine"]
    chips = ", ".join(where["accelerators"]) or "no GPU"
    blocks = [
        f"Measured on {where['date']} by `python benchmarks/gpu.py`: {chips}; {where['processor']}, {where['cores']} "
        f"cores, torch {where['torch']}. `runtime.precision=auto` is {where['auto']}."
    ]
    for name, (title, header, columns, line) in TABLES.items():
        if name in found:
            blocks.append("\n".join([f"### {title}\n", header, "|" + "---|" * columns, *map(line, found[name])]))
    for name, title, module in (("clustering", "Clustering", clustering), ("startup", "Start", startup)):
        if name in found:
            blocks.append("\n".join([f"### {title}\n", module.HEADER, *map(module.line, found[name])]))
    return "\n\n".join(blocks)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no further row is begun")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--tiny", action="store_true", help="one small network and few images, to see that it works")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    runtime = RuntimeSettings()
    device = make_fabric(runtime).device
    networks, steps, repeats = (TINY, 3, 1) if given.tiny else (LARGE, STEPS, REPEATS)
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "training": lambda: training(networks, steps, runtime),
        "heatmaps": lambda: heatmaps(networks, device, repeats),
        "startup": lambda: iter(startup.measure(1 if given.tiny else 3)),
    }
    if not given.tiny:
        parts["clustering"] = lambda: iter(clustering.measure([50_000, 100_000]))
    found: dict[str, Any] = {"machine": machine() | {"auto": str(choose_precision(runtime))}}
    end = time.monotonic() + 60 * given.minutes
    for name, measure in parts.items():
        if time.monotonic() > end:
            print(f"{name}: left out, the {given.minutes:g} minutes are over", file=sys.stderr, flush=True)
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        for row in measure():
            found.setdefault(name, []).append(row)
            (given.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            if time.monotonic() > end:
                break
    text = document(found)
    (given.out / "gpu.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
