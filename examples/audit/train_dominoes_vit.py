"""Train a small Vision Transformer of Hugging Face's, from a config, to tell a dress from a coat.

Above each garment stands a digit that goes with it in 95 % of the images. Written are the model's folder
(`save_pretrained`, with its image processor) and the images it was not trained on (`save_to_disk`). The folder of
`mnist` and `fashion-mnist` is given by --data or EXMAP_DATA_DIR; exmap makes the pixels, nothing else here needs it:

    python train_dominoes_vit.py --data path/to/data --out vit
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from torch import nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import exmap

CLASSES = ["dress", "coat"]


def pictures(split: exmap.Split) -> list[Pillow.Image]:
    """Return a split's images as Pillow's."""
    pixels = split.images.pixels(np.arange(len(split)))
    return [Pillow.fromarray(image) for image in np.rint(255 * pixels.transpose(0, 2, 3, 1)).astype(np.uint8)]


def saved(split: exmap.Split, folder: Path) -> None:
    """Save a split as a data set of Hugging Face's."""
    columns = {"image": pictures(split), "label": split.labels.tolist()}
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
    Dataset.from_dict(columns, features=features).save_to_disk(folder)


@torch.no_grad()
def hits(model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return for each image whether it is classified correctly."""
    model.eval()
    said = torch.cat([model(pixel_values=part).logits.argmax(1) for part in pixels.split(200)])
    return said == labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of mnist and fashion-mnist; otherwise EXMAP_DATA_DIR")
    parser.add_argument("--out", type=Path, default=Path("vit"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    task = exmap.load("dominoes", data_dir=args.data)

    config = ViTConfig(
        image_size=(56, 28),
        patch_size=7,
        hidden_size=96,
        num_hidden_layers=6,
        num_attention_heads=3,
        intermediate_size=384,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
    )
    model = ViTForImageClassification(config)
    processor = ViTImageProcessor(size={"height": 56, "width": 28})  # mean and deviation 0.5

    def ready(split: exmap.Split) -> tuple[torch.Tensor, torch.Tensor]:
        return processor(pictures(split), return_tensors="pt")["pixel_values"], torch.from_numpy(split.labels)

    pixels, labels = ready(task.train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05)
    steps = args.epochs * (len(labels) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.1)
    began = time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        losses = []
        for rows in torch.randperm(len(labels)).split(64)[: len(labels) // 64]:
            loss = model(pixel_values=pixels[rows], labels=labels[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    model.save_pretrained(args.out / "model")
    processor.save_pretrained(args.out / "model")

    truth = task.test.true_groups()
    digit = truth.index % 2  # the groups are dress 0, dress 1, coat 0, coat 1
    saved(task.val, args.out / "held-out")
    saved(task.test, args.out / "test")
    labels = [CLASSES[label] for label in task.test.labels]
    pd.DataFrame({"label": labels, "digit": digit}).to_csv(args.out / "test_groups.csv", index_label="row")
    right = pd.Series(hits(model, *ready(task.test)).numpy())
    print(f"test mean {right.mean():.3f}")
    print(right.groupby([task.test.labels, digit]).agg(["mean", "size"]).to_string(), flush=True)


if __name__ == "__main__":
    main()
