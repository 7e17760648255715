"""Check relevance on every kind of classifier: input and constants beside the logit, cost and memory beside a gradient.

The catalogue is that of the tests (`tests/explain/families.py`): small networks by default, with `--full` those that
users have, with `--more` families that nobody named. Two weights (new, and of a trained network's kind) and two
precisions each. The sum is taken here, from the relevance itself and a plain call of the network; what
`exmap.check_model` says stands beside it.

One thread, one process, alone on the machine; times are medians of calls in turn. Memory is the most that tensors held
at once beyond what was there before (torch's own account of its allocations), per image.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts bytes has nothing else to say

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import exmap
from exmap.errors import ExMapError
from exmap.explain.engine import Engine, propagate
from exmap.explain.rules import make_composite

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "explain"))
from families import FAMILIES, Family, images_for, logits_of, trained_like

Row = dict[str, Any]
DTYPES = {"float64": (torch.float64, 1e-6), "float32": (torch.float32, 1e-3)}
WEIGHTS = ("random", "trained-like")
CALIBRATION = 8  # images that batch normalisation's statistics come from

MORE = {  # of timm, by side of the images: families that issue 14 does not name
    "test_byobnet": 64, "test_convnext": 64, "test_convnext2": 64, "test_convnext3": 64, "test_efficientnet": 64,
    "test_efficientnet_evos": 64, "test_efficientnet_gn": 64, "test_efficientnet_ln": 64, "test_mambaout": 64,
    "test_nfnet": 64, "test_resnet": 64, "test_vit": 160, "test_vit2": 64, "test_vit3": 160, "test_vit4": 160,
    "xcit_nano_12_p16_224": 224, "edgenext_xx_small": 64, "fastvit_t8": 64, "davit_tiny": 64, "gcvit_xxtiny": 224,
    "tiny_vit_5m_224": 224, "hiera_tiny_224": 224, "convmixer_768_32": 32, "crossvit_tiny_240": 240,
    "twins_svt_small": 64, "regnety_002": 32, "repvgg_a0": 32, "dla34": 32, "ese_vovnet19b_dw": 32, "dpn48b": 32,
    "xception41": 64, "inception_v4": 96, "dm_nfnet_f0": 64, "skresnet18": 32, "resnest14d": 64, "ecaresnet26t": 64,
    "cspresnet50": 64, "efficientvit_b0": 64, "efficientvit_m0": 224, "mvitv2_tiny": 224, "nest_tiny": 224,
    "sequencer2d_s": 224, "tnt_s_legacy_patch16_224": 224, "visformer_tiny": 224, "coat_tiny": 224, "convit_tiny": 224,
    "pit_ti_224": 224, "botnet26t_256": 256, "halonet26t": 256, "lambda_resnet26t": 256, "focalnet_tiny_srf": 64,
    "repvit_m0_9": 64, "efficientformer_l1": 224, "efficientformerv2_s0": 224, "inception_next_atto": 64,
    "rdnet_tiny": 64, "starnet_s1": 64, "mambaout_femto": 64, "hgnetv2_b0": 64, "ghostnetv2_100": 64, "tinynet_e": 64,
    "lcnet_050": 64, "fbnetv3_b": 64, "nextvit_small": 64, "vitamin_small_224": 224,
    "eca_nfnet_l0": 64, "gernet_s": 64, "mobileone_s0": 64, "selecsls42": 64, "hardcorenas_a": 64, "mixnet_s": 64,
    "semnasnet_050": 64, "resnetv2_50x1_bit": 64, "vit_relpos_small_patch16_224": 224, "volo_d1_224": 224,
    "gcresnext26ts": 64, "seresnextaa101d_32x8d": 64, "haloregnetz_b": 224, "shvit_s1": 224, "swiftformer_xs": 224,
}  # fmt: skip


def more() -> dict[str, Family]:
    """Return families of timm that are not in the catalogue, with five classes."""

    def make(name: str) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            import timm

            return timm.create_model(name, pretrained=False, num_classes=5)

        return build

    return {f"timm/{name}": Family(f"timm/{name}", "timm", make(name), (3, side, side)) for name, side in MORE.items()}


def measure(
    families: dict[str, Family],
    *,
    full: bool = False,
    weights: tuple[str, ...] = WEIGHTS,
    dtypes: tuple[str, ...] = tuple(DTYPES),
    images: int = 2,
    repeats: int = 5,
    composite: str = "symmetric_gamma",
) -> Iterator[Row]:
    """Yield a row per family, weights and precision; times and memory are taken in float32.

    Parameters
    ----------
    families : dict of str to Family
    full : bool
        Networks as users have them, where the catalogue knows them.
    weights, dtypes : tuple of str
    images : int
        At once, for checks and times alike.
    repeats : int
        Timed calls of each kind, after one that does not count; 0 for none.
    composite : str
        Whose cost is measured. The sum is that of the epsilon rule.
    """
    for family in families.values():
        for kind in weights:
            for name in dtypes:
                row: Row = {"family": family.name, "weights": kind, "dtype": name, "expected": family.verdict}
                try:
                    model, x = _prepared(family, kind, DTYPES[name][0], images, full)
                    row["side"], row["parameters"] = x.shape[-1], sum(p.numel() for p in model.parameters())
                    row.update(_checked(family, model, x, DTYPES[name][1]))
                    row.update(_by_check_model(model, x))
                    if name == "float32" and kind == weights[-1] and repeats:
                        row.update(_cost(model, x, repeats, composite))
                except ExMapError as error:
                    row.update(verdict="refused", said=str(error))
                except Exception as error:
                    last = traceback.extract_tb(error.__traceback__)[-1]
                    place = f"{Path(last.filename).name}:{last.lineno}"
                    row.update(verdict="error", said=f"{type(error).__name__} at {place}: {str(error)[:200]}")
                model = x = None
                gc.collect()
                yield row


def _prepared(
    family: Family, weights: str, dtype: torch.dtype, number: int, full: bool
) -> tuple[nn.Module, torch.Tensor]:
    full = full and family.full is not None
    model = family.build(seed=0, full=full).to(dtype)
    if weights == "trained-like":
        trained_like(model, images_for(family, CALIBRATION, seed=1, dtype=dtype, full=full))
    return model, images_for(family, number, seed=2, dtype=dtype, full=full)


def _checked(family: Family, model: nn.Module, x: torch.Tensor, tolerance: float) -> Row:
    """Return how far relevance and constants are from the logit that a plain call of the network gives."""
    before = {name: tensor.detach().clone() for name, tensor in _tensors(model)}
    logits = family.logits(model, x)
    found = propagate(model, x, composite="epsilon", target="predicted")
    alone = propagate(model, x[:1], composite="epsilon", target="predicted")
    changed = [name for name, tensor in _tensors(model) if not torch.equal(tensor, before[name])]
    inputs, constants = found.values.double().flatten(1).sum(dim=1), found.constants.double()
    top = logits.double().amax(dim=1)
    if family.name == "own/one logit":  # which of the two is explained decides the sign and the half
        top = found.explained.double()
    largest = torch.maximum(inputs.abs(), constants.abs()).clamp(min=1e-30)
    error = float(((inputs + constants - top).abs() / largest).max())
    size = float(found.values[0].abs().max()) or 1.0
    aside = float((found.values[0] - alone.values[0]).abs().max()) / size
    return {
        "verdict": "exact" if error <= tolerance else "off",
        "error": error,
        "input": (inputs / top).tolist(),
        "constants": (constants / top).tolist(),
        "alone": aside,
        "logits": float((found.logits.double() - logits.double()).abs().max() / logits.abs().max().clamp(min=1e-30)),
        "changed": changed,
        "cancelled": float((found.values.double().abs().flatten(1).sum(dim=1) / largest).max()),
    }


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _by_check_model(model: nn.Module, x: torch.Tensor) -> Row:
    try:
        result = exmap.check_model(model, x)
    except ExMapError as error:
        return {"check_model": f"refused: {error}"}
    except Exception as error:
        return {"check_model": f"{type(error).__name__}: {str(error)[:80]}"}
    return {"check_model": bool(result.passed), "check_model_error": float(result.error)}


def _cost(model: nn.Module, x: torch.Tensor, repeats: int, composite: str) -> Row:
    """Return seconds and bytes per image of explaining and of a plain forward with the gradient of the input.

    As in a run over many batches, what rules derive from weights is kept from the first call, which does not count.
    """
    plain = copy.deepcopy(model)
    for parameter in plain.parameters():
        parameter.requires_grad_(False)

    def gradient() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        top = logits_of(plain(leaf)).amax(dim=1)
        return torch.autograd.grad(top.sum(), leaf)[0]

    work: dict[str, Callable[[], Any]] = {
        "gradient": gradient,
        **{name: _explaining(model, x, name) for name in ("epsilon", composite)},
    }
    times: dict[str, list[float]] = {kind: [] for kind in work}
    for run in range(1 + repeats):
        for kind, call in work.items():
            begin = time.perf_counter()
            call()
            if run:
                times[kind].append(time.perf_counter() - begin)
    seconds = {kind: float(np.median(taken)) / len(x) for kind, taken in times.items()}
    memory = {kind: peak_bytes(call) / len(x) for kind, call in work.items()}
    return {"composite": composite, "seconds": seconds, "memory": memory}


def _explaining(model: nn.Module, x: torch.Tensor, composite: str) -> Callable[[], Any]:
    engine = Engine(make_composite(composite))
    return lambda: propagate(model, x, engine=engine)


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the most bytes that tensors made by the call held at once."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            call()
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    steps = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(max(np.cumsum(steps), default=0))


COLUMNS = (
    "family", "px", "weights", "precision", "verdict", "error", "input's share", "alone", "logits", "check_model",
    "gradients: epsilon", "gradients: composite", "memory: epsilon", "memory: composite",
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS)


def line(row: Row) -> str:
    """Return one row of the table."""
    start = [row["family"], row.get("side", ""), row["weights"], row["dtype"]]
    if "error" not in row:
        return f"| {' | '.join(map(str, start))} | {row['verdict']}: {row['said']} |" + " |" * (len(COLUMNS) - 5)
    share = " to ".join(f"{value:.2f}" for value in sorted({min(row["input"]), max(row["input"])}))
    middle = [
        row["verdict"] + (", weights changed" if row["changed"] else ""), f"{row['error']:.0e}", share,
        f"{row['alone']:.0e}", f"{row['logits']:.0e}", row.get("check_model", ""),
    ]  # fmt: skip
    cost = [""] * 4
    if "seconds" in row:
        kinds = ("epsilon", row["composite"])
        cost = [f"{row[what][kind] / row[what]['gradient']:.2f}" for what in ("seconds", "memory") for kind in kinds]
    return f"| {' | '.join(map(str, [*start, *middle, *cost]))} |"


def chosen(names: list[str], catalogue: dict[str, Family], full: bool) -> dict[str, Family]:
    """Return the families whose names hold one of the words; with `full`, those issue 14 lists."""
    return {
        name: family
        for name, family in catalogue.items()
        if (not names or any(word in name for word in names)) and (not full or (family.listed and family.full))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="families, or parts of their names; all by default")
    parser.add_argument("--full", action="store_true", help="networks in the size that users have")
    parser.add_argument("--more", action="store_true", help="families of timm that are not in the catalogue")
    parser.add_argument("--weights", nargs="*", default=WEIGHTS, choices=WEIGHTS)
    parser.add_argument("--dtypes", nargs="*", default=tuple(DTYPES), choices=tuple(DTYPES))
    parser.add_argument("--images", type=int, default=2, help="at once")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each kind; 0 for none")
    parser.add_argument("--composite", default="symmetric_gamma", help="whose cost is measured beside epsilon's")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    families = chosen(arguments.names, more() if arguments.more else FAMILIES, arguments.full)
    rows: list[Row] = []
    print(HEADER)
    for row in measure(
        families,
        full=arguments.full,
        weights=tuple(arguments.weights),
        dtypes=tuple(arguments.dtypes),
        images=arguments.images,
        repeats=arguments.repeats,
        composite=arguments.composite,
    ):
        rows.append(row)
        print(line(row), flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    exact = sum(row["verdict"] == "exact" for row in rows)
    unlike = [row for row in rows if row["expected"] == "exact" and row["verdict"] != "exact"]
    print(f"\n{exact} of {len(rows)} exact; expected to be and not: {len(unlike)}")


if __name__ == "__main__":
    main()
