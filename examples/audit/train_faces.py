"""Train timm's ResNet-18 from random weights to tell whether a person's hair is blond.

The folder of `celeba-10k` (metadata.csv and images/) is given by --data or the variable FACES_DIR:

    python train_faces.py --data path/to/celeba-10k --out faces

Importing this file trains nothing: `eval_transform()` is how the classifier's images are made ready.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import pandas as pd
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms

CLASSES = ["not blond", "blond"]
SIZE = 64


def eval_transform() -> transforms.Compose:
    """Return what makes a photograph ready: its shorter side to 64 pixels, the middle square, ImageNet's statistics."""
    return transforms.Compose(
        [
            transforms.Resize(SIZE),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )


def split(folder: Path, name: str) -> tuple[pd.DataFrame, TensorDataset]:
    """Return the rows and the images of one split, all in memory."""
    table = pd.read_csv(folder / "metadata.csv")
    table = table[table.split == name].reset_index(drop=True)
    ready, images = eval_transform(), []
    for file in table.img_filename:
        with Image.open(folder / "images" / file) as image:
            images.append(ready(image.convert("RGB")))
    return table, TensorDataset(torch.stack(images), torch.tensor(table.y_blond))


@torch.no_grad()
def hits(model: nn.Module, images: TensorDataset) -> torch.Tensor:
    """Return for each image whether it is classified correctly."""
    model.eval()
    return torch.cat([model(x).argmax(1) == y for x, y in DataLoader(images, 100)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("FACES_DIR"), help="folder of celeba-10k")
    parser.add_argument("--out", type=Path, default=Path("faces"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    if args.data is None:
        parser.error("give the folder of the photographs by --data or FACES_DIR")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    _, train = split(args.data, "train")
    loader = DataLoader(train, 64, shuffle=True, drop_last=True)
    model = timm.create_model("resnet18", pretrained=False, num_classes=len(CLASSES))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * len(loader))
    began = time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        for x, y in loader:
            flipped = torch.rand(len(x)) < 0.5
            x[flipped] = x[flipped].flip(-1)
            loss = nn.functional.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch}: loss {total / len(loader):.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, args.out / "faces.safetensors")

    table, test = split(args.data, "test")
    right = pd.Series(hits(model, test).numpy())
    print(f"test mean {right.mean():.3f}")
    print(right.groupby([table.y_blond, table.a_male]).agg(["mean", "size"]).to_string(), flush=True)


if __name__ == "__main__":
    main()
