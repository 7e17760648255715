"""Measure heatmaps against the same rule written slowly, a plain input gradient and a prediction, side by side.

All four run one after the other on the same weights and images, in one process, which is alone on the machine.
The slow rule is the one the tests check against (`tests/explain/slow_rules.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from zennit.attribution import Gradient

from exmap.config import ModelSettings
from exmap.explain import make_composite
from exmap.explain.canonize import canonized_copy
from exmap.model import build_model
from exmap.model.backbone import to_tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "explain"))
from slow_rules import SUMS, slow_composite

NETWORKS = {  # settings, side in pixels, images at once
    "ResNet-18, ImageNet stem, 28 px": (ModelSettings(name="resnet18", stem="imagenet"), 28, 500),
    "ResNet-18, 3 x 3 stem, 28 px": (ModelSettings(name="resnet18", stem="3x3"), 28, 50),
    "ResNet-50, 224 px": (ModelSettings(name="resnet50", stem="imagenet"), 224, 8),
}
UNCOUNTED = 3
KINDS = ("slow rule", "heatmaps", "gradient", "prediction")


def measure(repeats: int = 3, networks: list[str] | None = None) -> list[dict[str, Any]]:
    """Return, per network, images per second of each kind of pass, and how far fast heatmaps are from slow ones.

    Parameters
    ----------
    repeats : int
        Runs of each kind that count, after some that do not.
    networks : list of str, optional
        Names in `NETWORKS`; all by default.
    """
    return [_measure(name, repeats) for name in networks or NETWORKS]


def _measure(name: str, repeats: int) -> dict[str, Any]:
    settings, side, number = NETWORKS[name]
    model = _used(build_model(settings, 10, seed=0)).eval()
    array = np.random.default_rng(0).random((number, 3, side, side), dtype=np.float32)
    merged = canonized_copy(model, array[:2])
    x = to_tensor(array, torch.device("cpu"))
    with ExitStack() as stack:
        fast, slow = (
            partial(
                stack.enter_context(Gradient(model=canonized_copy(model, array[:2]), composite=composite)), x, _start
            )
            for composite in (make_composite("symmetric_gamma", merged), slow_composite(4.0, SUMS))
        )
        work = dict(zip(KINDS, (slow, fast, partial(_gradient, merged, x), partial(_predict, merged, x)), strict=True))
        times, made = _times(work, repeats)
    wanted, found = made["slow rule"][1], made["heatmaps"][1]
    peak = wanted.abs().amax(dim=(1, 2, 3))
    deviation = float(((found - wanted).abs().amax(dim=(1, 2, 3)) / peak).max())
    rates = {kind: number / seconds for kind, seconds in times.items()}
    return {"network": name, "batch": number, "threads": torch.get_num_threads(), "deviation": deviation, **rates}


def _used(model: nn.Module) -> nn.Module:
    """Give batch normalisation statistics and weights as after training: those of a new network change nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.running_var, 0.5, 2), (module.weight.data, 0.5, 1.5)):
                tensor.uniform_(low, high, generator=generator)
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(0, 0.2, generator=generator)
    return model


def _start(output: torch.Tensor) -> torch.Tensor:
    return nn.functional.one_hot(output.argmax(dim=1), output.shape[1]).to(output.dtype)


def _gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).max(dim=1).values.sum(), x)[0]


def _predict(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(x)


def _times(work: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the median seconds of each call, and what it returned.

    As in use, batch follows batch of one kind; the first ones, for which the system has to find memory, do not count.
    """
    times, made = {}, {}
    for kind, call in work.items():
        taken = []
        for _ in range(UNCOUNTED + repeats):
            start = time.perf_counter()
            made[kind] = call()
            taken.append(time.perf_counter() - start)
        times[kind] = float(np.median(taken[UNCOUNTED:]))
    return times, made


COLUMNS = ("network, images at once", *KINDS, "heatmaps / slow rule", "gradients a heatmap costs", "deviation")
HEADER = f"| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS)


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    rates = " | ".join(f"{row[kind]:.1f}/s" for kind in KINDS)
    ratios = f"{row['heatmaps'] / row['slow rule']:.2f} | {row['gradient'] / row['heatmaps']:.2f}"
    return f"| {row['network']}, {row['batch']} | {rates} | {ratios} | {row['deviation']:.0e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS))
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    print(HEADER)
    rows = []
    for name in arguments.networks or NETWORKS:
        rows += measure(arguments.repeats, [name])
        print(line(rows[-1]), flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
