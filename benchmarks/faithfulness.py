"""Measure how faithful explanations are: patches replaced in the order of relevance, and relevance on the bird's mask.

For each trained classifier (`networks.py` makes them) and each way to explain, patches of test images are replaced,
most relevant first and least relevant first; the area between the two curves of the explained class, its probability
and its logit, says how well the map tells what the classifier needs from what it does not. The class is the predicted
one. What stands in a replaced patch matters, so there are several: the mean training image, zeros (black in the digits
and garments), the image blurred. On the birds, the share of positive relevance on the bird's own pixels is measured
beside the share of the area that it covers: that says where a classifier looks, which is no matter of right or wrong.

    python benchmarks/faithfulness.py --cache /tmp/nets --data-dir ../shared/data --out /tmp/nets/faithfulness.json
    python benchmarks/faithfulness.py --cache /tmp/nets --out /tmp/nets/faithfulness.json --table
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torchvision.transforms.functional import gaussian_blur

import exmap
from exmap.data import Split
from exmap.explain.faithfulness import Curves, area_between_curves, perturbation_curves, share_inside
from exmap.runtime import generator
from networks import NETWORKS, Cell, all_cells, load_network, load_task, part_of, processor, some_rows, trained

METHODS = (
    "lrp:symmetric_gamma",
    "lrp:epsilon",
    "lrp:attention_gamma",
    "lrp:attnlrp",
    "lrp:attnlrp_gamma",
    "lrp:epsilon_plus",
    "lrp:epsilon_alpha2_beta1",
    "gradient_x_input",
    "integrated_gradients",
    "grad_cam",
    "occlusion",
    "random",
)
PATCHES = {28: 4, 64: 8, 112: 16}  # by width in pixels
IMAGES = 200
STEPS = 16  # points of a curve after the first
FILLINGS = {"mean": "the mean training image", "zero": "zeros", "blur": "the blurred image"}
DRAWS = 2_000  # of the bootstrap
CURVES = ("probability", "logit")
Row = dict[str, Any]


def explain(model: nn.Module, images: NDArray[np.float32], method: str, batch_size: int) -> NDArray[np.float32]:
    """Return relevance for the predicted classes, shape (n, C, H, W)."""
    if method == "random":
        return generator(0, "random relevance").standard_normal(images.shape, dtype=np.float32)
    explainer, _, composite = method.partition(":")
    options = {"composite": composite} if composite else {}
    parts = [images[first : first + batch_size] for first in range(0, len(images), batch_size)]
    maps = [
        np.asarray(exmap.heatmaps(model, part, explainer=explainer, target="predicted", **options)) for part in parts
    ]
    return np.concatenate(maps).astype(np.float32)


def filling_of(kind: str, split: Split, images: NDArray[np.float32], patch: int) -> NDArray[np.float32]:
    """Return what patches are replaced by: the mean of 2,000 training images, zeros, or the images blurred."""
    if kind == "mean":
        mean: NDArray[np.float32] = split.images.batch(some_rows(split, 2_000, seed=0)).mean(axis=0)
        return mean
    if kind == "zero":
        return np.zeros(1, dtype=np.float32)
    blurred: NDArray[np.float32] = gaussian_blur(torch.from_numpy(images), 2 * patch + 1, float(patch)).numpy()
    return blurred


def kinds_of(dataset: str, given: Sequence[str] | None) -> Sequence[str]:
    """Return the fillings of a data set: those given, or two that differ there (a bird's mean image is nearly zero)."""
    return given or (("mean", "blur") if dataset == "waterbirds-remix" else ("mean", "zero"))


def methods_of(network: str, given: Sequence[str] | None) -> Sequence[str]:
    """Return the methods for a network: those given, or all but those that differ in attention alone."""
    return given or [name for name in METHODS if network == "vit" or not name.startswith("lrp:attnlrp")]


def bird_masks(folder: Path, ids: Sequence[str], size: tuple[int, int]) -> NDArray[np.float64]:
    """Return the part of each pixel that is bird, shape (n, H, W), as the images are resized."""
    with (folder / "metadata.csv").open(newline="") as file:
        names = {row["img_filename"]: row["mask_filename"] for row in csv.DictReader(file)}
    height, width = size
    masks = []
    for name in ids:
        with Image.open(folder / names[name]) as picture:
            masks.append(np.asarray(picture.convert("L").resize((width, height), Image.Resampling.BOX)))
    return np.stack(masks) / 255


def measure_cell(
    given: argparse.Namespace, cell: Cell, methods: Sequence[str], kinds: Sequence[str], keep: Callable[[Row], None]
) -> None:
    """Measure the methods on one classifier, and hand each row to `keep`: one for each method and filling."""
    model, task = load_network(cell, given.cache), load_task(cell, given.data_dir, given.cache)
    count = given.images // 2 if cell.size[1] > 28 else given.images
    test = part_of(task.test, some_rows(task.test, count, seed=0))
    images = np.ascontiguousarray(test.images.batch(np.arange(len(test), dtype=np.int64)))
    patch = PATCHES[cell.size[1]]
    masks = None
    if cell.dataset == "waterbirds-remix":
        masks = bird_masks(given.data_dir / "natural" / cell.dataset, test.ids, cell.size)
    fillings = {kind: filling_of(kind, task.train, images, patch) for kind in kinds}
    setting = {"images": len(images), "patch": patch, "steps": given.steps, "processor": processor()}
    batch_size = max(20, 250 * 28 * 28 // (images.shape[2] * images.shape[3]))
    follow = partial(perturbation_curves, model, images, patch=patch, steps=given.steps, batch_size=batch_size)
    for method in methods:
        found = {**asdict(cell), "method": method, **setting}
        try:
            start = time.perf_counter()
            relevance = explain(model, images, method, batch_size)
            found["explain_seconds"] = round(time.perf_counter() - start, 2)
        except Exception as error:  # an explainer that does not fit a network is a finding, and the others go on
            found["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            keep({**found, "baseline": kinds[0]})
            continue
        usable = np.isfinite(relevance).all(axis=(1, 2, 3))
        relevance[~usable] = 0
        found |= {"not_finite": int((~usable).sum()), **on_masks(relevance, masks)}
        made = {kind: areas(partial(follow, relevance, baseline=filling)) for kind, filling in fillings.items()}
        for kind, row in made.items():
            keep({**found, "baseline": kind, **row})


def areas(curves: Callable[..., Curves]) -> Row:
    """Return the area of each image between its curves, and the mean curves."""
    most, least = curves(order="most_relevant_first"), curves(order="least_relevant_first")
    found: Row = {}
    for curve in CURVES:
        falling, staying = getattr(most, curve), getattr(least, curve)
        found[curve] = rounded(area_between_curves(falling, staying, most.share))
        found[f"{curve}_curves"] = {"most": rounded(falling.mean(axis=0)), "least": rounded(staying.mean(axis=0))}
    return found


def on_masks(relevance: NDArray[np.float32], masks: NDArray[np.float64] | None) -> Row:
    """Return the share of positive relevance on each image's mask, where there are masks."""
    if masks is None:
        return {}
    return {"inside": rounded(share_inside(relevance, masks)), "mask_area": float(masks.mean())}


def rounded(values: NDArray[np.floating[Any]]) -> list[float | None]:
    """Return values for a JSON: six digits, None where there is none."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return mean and 95 % bootstrap interval of the mean over images; images without a value are left out."""
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan"), float("nan")
    drawn = known[generator(0, "bootstrap").integers(0, len(known), (DRAWS, len(known)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(known.mean()), float(low), float(high)


def array(row: Row, key: str) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in row[key]], dtype=np.float64)


def table(rows: Sequence[Row], key: str, title: str, *, mark: bool = True) -> str:
    """Return a Markdown table, methods by networks; what cannot be told from a column's best is bold."""
    networks = [name for name in NETWORKS if any(row["network"] == name for row in rows)]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    columns = {name: [row for row in rows if row["network"] == name] for name in networks}
    cells = {name: _column(column, key, mark) for name, column in columns.items()}
    lines = [f"| {title} | {' | '.join(networks)} |", "|" + "---|" * (1 + len(networks))]
    for method in methods:
        lines.append(f"| {method} | {' | '.join(cells[name].get(method, '') for name in networks)} |")
    return "\n".join(lines)


def _column(rows: Sequence[Row], key: str, mark: bool) -> dict[str, str]:
    """Return the cell of each method for one classifier, or the mean over several seeds of it."""
    values: dict[str, list[NDArray[np.float64]]] = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        values.setdefault(row["method"], []).append(array(row, key) if key in row else np.array([np.nan]))
    joined = {method: np.concatenate(parts) for method, parts in values.items()}
    means = {method: interval(found) for method, found in joined.items()}
    known = {method: mean for method, (mean, _, _) in means.items() if np.isfinite(mean)}
    best = max(known, key=lambda method: known[method]) if known and mark else None
    texts = {}
    for method, (mean, low, high) in means.items():
        if method not in known:
            texts[method] = "does not apply"
            continue
        text = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
        equal = best is not None and len(joined[best]) == len(joined[method])
        as_good = method == best or (equal and interval(joined[best] - joined[method])[1] <= 0)  # type: ignore[index]
        texts[method] = f"**{text}**" if mark and as_good else text
    return texts


def report(rows: Sequence[Row]) -> str:
    """Return all tables as Markdown."""
    parts = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        here = [row for row in rows if row["dataset"] == dataset]
        seeds = sorted({row["seed"] for row in here})
        sizes = sorted({(row["images"], row["patch"]) for row in here})
        parts.append(
            f"### {dataset}\n\n{'; '.join(f'{count} images, patches of {patch} px' for count, patch in sizes)}; "
            f"{here[0]['steps']} steps; seeds {', '.join(map(str, seeds))}; {here[0]['processor']}."
        )
        for kind in dict.fromkeys(row["baseline"] for row in here):
            some = [row for row in here if row["baseline"] == kind]
            parts += [table(some, curve, f"area, {curve}, replaced by {FILLINGS[kind]}") for curve in CURVES]
        once = [row for row in here if "inside" in row and row["baseline"] == "mean"]
        if once:
            covered = sorted({f"{row['mask_area']:.3f}" for row in once})
            parts.append(f"The bird covers {' to '.join(covered)} of the pixels.")
            parts.append(table(once, "inside", "share of positive relevance on the bird", mark=False))
    failed = [
        f"- {row['dataset']}, {row['network']}, {row['method']}: {row['error']}" for row in rows if "error" in row
    ]
    return "\n\n".join(parts + (["Not measured:\n\n" + "\n".join(failed)] if failed else []))


class Grey(nn.Module):
    """A classifier of grey images, given one of their three equal channels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the classifier's logits of images of shape (n, 1, H, W)."""
        logits: torch.Tensor = self.model(x.expand(-1, 3, -1, -1))
        return logits


def check_with_quantus(cells: Sequence[Cell], data_dir: Path, cache: Path, count: int = 20) -> list[Row]:
    """Flip pixels of dominoes (grey images) here and by Quantus, and return the largest distance of the curves.

    Input x gradient is the explanation; 56 of 1,568 pixels are set to the image's least value at each step.
    """
    import quantus

    rows = []
    for cell in (cell for cell in cells if cell.dataset == "dominoes"):
        model, task = Grey(load_network(cell, cache)).eval(), load_task(cell, data_dir, cache)
        images = task.test.images.batch(some_rows(task.test, count, seed=0))[:, :1].copy()
        x = torch.from_numpy(images).requires_grad_()
        best = model(x).max(dim=1)
        (gradient,) = torch.autograd.grad(best.values.sum(), x)
        relevance, target = images * gradient.numpy(), best.indices.numpy()
        metric = quantus.PixelFlipping(
            features_in_step=56, perturb_baseline="black", normalise=False, disable_warnings=True
        )
        wanted = np.array(metric(model, images, target, a_batch=relevance, softmax=True, device="cpu"))
        black = images.min(axis=(1, 2, 3), keepdims=True)
        curves = perturbation_curves(model, images, relevance, patch=1, baseline=black, target=target, steps=28)
        # the order of the very many pixels without relevance, which are black, changes nothing
        distance = float(np.abs(curves.probability[:, 1:] - wanted).max())
        rows.append({**asdict(cell), "images": count, "largest_distance": distance})
        print(f"{cell.name}: largest distance from Quantus' PixelFlipping {distance:.1e}", flush=True)
    return rows


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    rows: list[Row] = json.loads(given.out.read_text()) if given.out.is_file() else []
    cells = trained(given.cache, [cell for cell in all_cells() if cell.seed in given.seeds])
    cells = [cell for cell in cells if cell.dataset in given.datasets and cell.network in given.networks]
    if given.check_quantus:
        check_with_quantus(cells, given.data_dir, given.cache)
        return
    done = {(row["dataset"], row["network"], row["seed"], row["method"]) for row in rows}

    def keep(row: Row) -> None:
        rows.append(row)
        given.out.write_text(json.dumps(rows) + "\n")
        area = row.get("error") or "area {:.3f} [{:.3f}, {:.3f}]".format(*interval(array(row, "probability")))
        print(f"{row['dataset']} {row['network']} {row['seed']} {row['baseline']} {row['method']}: {area}", flush=True)

    for cell in () if given.table else cells:
        wanted = methods_of(cell.network, given.methods)
        missing = [method for method in wanted if (cell.dataset, cell.network, cell.seed, method) not in done]
        if missing:
            measure_cell(given, cell, missing, kinds_of(cell.dataset, given.fillings), keep)
    print(report(rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the trained weights")
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="mnist, fashion-mnist, natural")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON of all that is measured; what it has is not redone"
    )
    parser.add_argument("--datasets", nargs="*", default=["dominoes", "cmnist", "waterbirds-remix"])
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--methods", nargs="*", help="EXPLAINER or lrp:COMPOSITE, and random; by default all")
    parser.add_argument("--fillings", nargs="*", choices=list(FILLINGS), help="by default two for each data set")
    parser.add_argument("--images", type=int, default=IMAGES, help="test images; half as many of photographs")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--check-quantus", action="store_true", help="compare pixel flipping with Quantus on dominoes")
    parser.add_argument(
        "--table", action="store_true", help="print the tables of what is measured, and measure nothing"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
