"""Make the parts of a composed data set from what is at hand: garments of Fashion-MNIST, and two photographs.

Cut-outs of sneakers and ankle boots (RGBA, their brightness is their opacity), and crops of scikit-learn's two sample
photographs as backgrounds:

    python examples/parts.py path/to/fashion-mnist parts
    exmap data compose composed --foregrounds parts/garments --backgrounds parts/places --sizes 2400 600 1200
    exmap data check waterbirds composed
    exmap run waterbirds --data-dir composed --set model={name: resnet18} --set 'images={resize: 64, crop: 56}' ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from exmap.data.idx import read_pair

GARMENTS = {"boot": 9, "sneaker": 7}
PLACES = ("city", "flower")  # in the order of scikit-learn's photographs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fashion", type=Path, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("out", type=Path)
    parser.add_argument("--cut-outs", type=int, default=2000, help="per class")
    parser.add_argument("--crops", type=int, default=300, help="per photograph")
    parser.add_argument("--side", type=int, default=64)
    args = parser.parse_args()
    images, labels, _ = read_pair(args.fashion, "train")
    for name, label in GARMENTS.items():
        folder = args.out / "garments" / name
        folder.mkdir(parents=True)
        for number, grey in enumerate(images[labels == label][: args.cut_outs]):
            picture = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(grey)))
            large = picture.resize((args.side, args.side), Image.Resampling.BICUBIC)
            large.convert("RGBA").save(folder / f"{number:04d}.png")
    rng = np.random.default_rng(0)
    for name, photograph in zip(PLACES, load_sample_images().images, strict=True):
        folder = args.out / "places" / name
        folder.mkdir(parents=True)
        height, width = photograph.shape[:2]
        for number in range(args.crops):
            side = int(rng.integers(120, 300))
            top, left = rng.integers(0, height - side), rng.integers(0, width - side)
            crop = Image.fromarray(photograph[top : top + side, left : left + side])
            crop.resize((160, 160)).save(folder / f"{number:04d}.jpg", quality=92)


if __name__ == "__main__":
    main()
