"""Train a small network of one's own to tell a boot from a sneaker, where nearly all boots stand on grass.

The shoes are Fashion-MNIST's; the grass and the pavement are drawn. Written are the weights, and the images that the
network was not trained on, in a folder per class. The folder of `fashion-mnist` is given by --data or EXMAP_DATA_DIR;
exmap reads its file, nothing else here needs it:

    python train_shoes.py --data path/to/data --out shoes
    exmap audit --model train_shoes.py:build --weights shoes/shoes.pth --data shoes/photos \
        --transform train_shoes.py:eval_transform

Importing this file trains nothing: `build()` is the network, `eval_transform()` is how its images are made ready.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms

from exmap.data.idx import find_set, read_pair

CLASSES = ["boot", "sneaker"]
KINDS = [9, 7]  # their numbers in Fashion-MNIST
SIDE, SHOE = 64, 44  # pixels
USUAL = 0.95  # share of the boots on grass, and of the sneakers on pavement
GROUNDS = 40  # of each kind, shifted for each picture


def build() -> nn.Module:
    """Return the network with random weights."""
    layers: list[nn.Module] = []
    for width, wider in ((3, 16), (16, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, len(CLASSES)))


def eval_transform() -> transforms.Compose:
    """Return what makes a picture ready: its shorter side to 64 pixels, the middle square, values from -1 to 1."""
    return transforms.Compose(
        [
            transforms.Resize(SIDE),
            transforms.CenterCrop(SIDE),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.5] * 3, std=[0.5] * 3),
        ]
    )


def grass(rng: np.random.Generator) -> np.ndarray:
    """Draw blades of grass."""
    ground = np.array([70, 120, 50]) + rng.normal(0, 18, (SIDE, SIDE, 1)) + rng.normal(0, 6, 3)
    for _ in range(150):
        x, y, length = rng.integers(0, SIDE), rng.integers(0, SIDE), rng.integers(5, 14)
        lean = rng.normal(0, 0.3)
        for step in range(length):
            ground[(y - step) % SIDE, int(x + lean * step) % SIDE] = np.array([60, 150, 40]) + rng.normal(0, 25, 3)
    return ground


def pavement(rng: np.random.Generator) -> np.ndarray:
    """Draw the slabs of a pavement."""
    ground = np.array([150, 140, 135]) + rng.normal(0, 10, (SIDE, SIDE, 1)) + rng.normal(0, 8, 3)
    for row, top in enumerate(range(0, SIDE, 16)):
        ground[top] -= 55
        for left in range(12 * (row % 2), SIDE, 24):
            ground[top : top + 16, left] -= 55
    return ground


def picture(shoe: np.ndarray, grounds: list[np.ndarray], rng: np.random.Generator) -> Image.Image:
    """Put a shoe somewhere on one of the grounds."""
    ground = np.roll(grounds[rng.integers(len(grounds))], rng.integers(0, SIDE, 2), axis=(0, 1))
    grey = np.asarray(Image.fromarray(shoe).resize((SHOE, SHOE), Image.Resampling.BICUBIC), float)
    covered = np.clip(grey / 60, 0, 1)[..., None]
    y, x = rng.integers(0, SIDE - SHOE, 2)
    place = ground[y : y + SHOE, x : x + SHOE]
    place[:] = covered * grey[..., None] * [0.85, 0.8, 0.9] + (1 - covered) * place
    return Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))


@torch.no_grad()
def accuracy(model: nn.Module, images: list[tuple[Image.Image, int]]) -> float:
    """Return the share of the pictures that are classified correctly."""
    model.eval()
    ready = eval_transform()
    said = model(torch.stack([ready(image) for image, _ in images])).argmax(1)
    return (said == torch.tensor([label for _, label in images])).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("EXMAP_DATA_DIR"), help="folder of fashion-mnist")
    parser.add_argument("--out", type=Path, default=Path("shoes"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    if args.data is None:
        parser.error("give the folder of fashion-mnist by --data or EXMAP_DATA_DIR")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    grounds = [[draw(rng) for _ in range(GROUNDS)] for draw in (grass, pavement)]
    grey, kinds, _ = read_pair(find_set(args.data, "fashion-mnist"), "train", 28)
    shoes = [grey[kinds == kind] for kind in KINDS]

    def pictures(first: int, last: int, share: float) -> list[tuple[Image.Image, int]]:
        return [
            (picture(shoe, grounds[label if rng.random() < share else 1 - label], rng), label)
            for label, kind in enumerate(shoes)
            for shoe in kind[first:last]
        ]

    train, held_out = pictures(0, 1500, USUAL), pictures(1500, 2100, USUAL)
    ready = eval_transform()
    images = TensorDataset(torch.stack([ready(image) for image, _ in train]), torch.tensor([k for _, k in train]))
    loader = DataLoader(images, 64, shuffle=True, drop_last=True)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * len(loader))
    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}", flush=True)

    for number, (image, label) in enumerate(held_out):
        place = args.out / "photos" / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number:04d}.png")
    torch.save(model.state_dict(), args.out / "shoes.pth")
    for name, share in (("usual", 1.0), ("unusual", 0.0)):
        print(f"{name} ground: {accuracy(model, pictures(2100, 2400, share)):.3f} right")


if __name__ == "__main__":
    main()
