"""Measure relevance beside an input gradient and a prediction: time, and bytes that autograd keeps for the way back.

All kinds of pass take turns in one process, on the same weights and images, so that what else the machine does falls on
all of them alike; the medians are compared. The slow rule, where there is one, is that which the tests check against
(`tests/explain/slow_rules.py`, by zennit). Networks of timm are left out where timm is not installed.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from exmap.explain.check_measures import _kept_bytes
from exmap.explain.engine import Engine, composite_for, propagate
from exmap.model import build_model
from exmap.model.backbone import to_tensor
from exmap.settings import ModelSettings

UNCOUNTED = 2
KINDS = ("slow rule", "heatmaps", "without constants", "gradient", "prediction")


@dataclass(frozen=True)
class Network:
    """What is measured: how it is built, the side of its images in pixels, how many of them at once."""

    build: Callable[[], nn.Module]
    side: int
    batch: int
    slow: bool = False  # whether the slow rule explains it


def _timm(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        model = timm.create_model(name, num_classes=10)
        assert isinstance(model, nn.Module)
        return model

    return build


def _ours(name: str, stem: str) -> Callable[[], nn.Module]:
    return partial(build_model, ModelSettings(name=name, stem=stem), 10, seed=0)


NETWORKS = {
    "ResNet-18, ImageNet stem, 28 px": Network(_ours("resnet18", "imagenet"), 28, 500, slow=True),
    "ResNet-18, 3 x 3 stem, 28 px": Network(_ours("resnet18", "3x3"), 28, 50, slow=True),
    "ResNet-50, 224 px": Network(_ours("resnet50", "imagenet"), 224, 8, slow=True),
    "ViT-tiny, 224 px": Network(_timm("vit_tiny_patch16_224"), 224, 16),
    "ConvNeXt-atto, 224 px": Network(_timm("convnext_atto"), 224, 16),
    "EfficientNet-lite0, 224 px": Network(_timm("efficientnet_lite0"), 224, 16),
}


def measure(repeats: int = 3, networks: list[str] | None = None) -> list[dict[str, Any]]:
    """Return, per network, images per second of each kind of pass, kept bytes per image, and the distance of two rules.

    Parameters
    ----------
    repeats : int
        Runs of each kind that count, after some that do not.
    networks : list of str, optional
        Names in `NETWORKS`; all by default.
    """
    here = [name for name in networks or NETWORKS if _can_build(name)]
    return [_measure(name, repeats) for name in here]


def _can_build(name: str) -> bool:
    return "ResNet" in name or importlib.util.find_spec("timm") is not None


def _measure(name: str, repeats: int) -> dict[str, Any]:
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = _used(network.build()).eval()
    array = np.random.default_rng(0).random((network.batch, 3, network.side, network.side), dtype=np.float32)
    x = to_tensor(array, torch.device("cpu"))
    composite = composite_for(model, x, "auto")
    counting, other = Engine(composite), Engine(composite)
    other.counting = False
    work: dict[str, Callable[[], Any]] = {
        "heatmaps": partial(propagate, model, x, engine=counting),
        "without constants": partial(propagate, model, x, engine=other),
        "gradient": partial(_gradient, model, x),
        "prediction": partial(_predict, model, x),
    }
    if network.slow:
        work = {"slow rule": _slow(model, x)} | work
    times, made = _times(work, repeats)
    row: dict[str, Any] = {
        "network": name,
        "batch": network.batch,
        "threads": torch.get_num_threads(),
        "composite": composite.name,
        "error": float(made["heatmaps"].error().max()),
    }
    if network.slow:
        row["deviation"] = _deviation(made["heatmaps"], made["slow rule"])
    for kind in ("heatmaps", "gradient"):
        row[f"{kind} bytes"] = _kept_bytes(model, work[kind]) // network.batch
    return row | {kind: network.batch / seconds for kind, seconds in times.items()}


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


def _slow(model: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return the relevance of the predicted logit by four modified passes, on the model with what can be merged."""
    from zennit.attribution import Gradient

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "explain"))
    from slow_rules import SUMS, slow_composite

    model = _merged(copy.deepcopy(model))

    def start(logits: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(logits).scatter(1, logits.argmax(dim=1, keepdim=True), logits.amax(dim=1, keepdim=True))

    def work() -> torch.Tensor:
        with Gradient(model=model, composite=slow_composite(4.0, SUMS, stabilizer=1e-12)) as attributor:
            relevance: torch.Tensor = attributor(x, start)[1].detach()
        return relevance

    return work


def _merged(model: nn.Module) -> nn.Module:
    """Put each batch normalisation of a torchvision ResNet into the convolution before it."""
    pairs = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")]
    for module in model.modules():
        for convolution, norm in pairs:
            one, other = module._modules.get(convolution), module._modules.get(norm)
            if isinstance(one, nn.Conv2d) and isinstance(other, nn.BatchNorm2d):
                module._modules[convolution] = nn.utils.fusion.fuse_conv_bn_eval(one, other)
                module._modules[norm] = nn.Identity()
    return model


def _deviation(found: Any, wanted: torch.Tensor) -> float:
    peak = wanted.abs().amax(dim=(1, 2, 3))
    return float(((found.values - wanted).abs().amax(dim=(1, 2, 3)) / peak).max())


def _gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the predicted logit with respect to the input alone."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in weights:
        parameter.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    made = torch.autograd.grad(model(leaf).amax(dim=1).sum(), leaf)[0]
    for parameter in weights:
        parameter.requires_grad_(True)
    return made


def _predict(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(x)
    return logits


def _times(work: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the median seconds of each call, and what it returned; calls take turns, the first rounds do not count."""
    taken: dict[str, list[float]] = {kind: [] for kind in work}
    made = {}
    for _ in range(UNCOUNTED + repeats):
        for kind, call in work.items():
            start = time.perf_counter()
            made[kind] = call()
            taken[kind].append(time.perf_counter() - start)
    return {kind: float(np.median(seconds[UNCOUNTED:])) for kind, seconds in taken.items()}, made


COLUMNS = (
    "network, images at once",
    "composite",
    *KINDS,
    "gradients a heatmap costs",
    "gradients one without constants costs",
    "kept bytes an image",
    "of the gradient's",
    "sum is off by",
    "distance from the slow rule",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS)


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    values = [f"{row['network']}, {row['batch']}", row["composite"]]
    values += [f"{row[kind]:.1f}/s" if kind in row else "" for kind in KINDS]
    values += [f"{row['gradient'] / row[kind]:.2f}" for kind in ("heatmaps", "without constants")]
    values += [f"{row['heatmaps bytes'] / 2**20:.1f} MiB", f"{row['heatmaps bytes'] / row['gradient bytes']:.2f}"]
    values += [f"{row['error']:.0e}", f"{row['deviation']:.0e}" if "deviation" in row else ""]
    return f"| {' | '.join(values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS))
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    print(HEADER)
    rows = []
    for name in arguments.networks or NETWORKS:
        for row in measure(arguments.repeats, [name]):
            rows.append(row)
            print(line(row), flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
