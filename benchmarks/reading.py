"""Measure how fast image files are read: opened and checked, decoded for each epoch, and from the cache.

The files are crops of scikit-learn's two sample photographs, saved as JPEG of 500 x 375 pixels: about Waterbirds' size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from exmap.data import Split, build_task
from exmap.settings import DataSettings, ImageSettings


def write_photographs(root: Path, number: int) -> None:
    """Write `number` different crops, half of each photograph, in a folder per photograph."""
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images
    for i in range(number):
        photograph = photographs[i % 2]
        height, width = photograph.shape[:2]
        top, left = rng.integers(0, height - 300), rng.integers(0, width - 400)
        crop = Image.fromarray(photograph[top : top + 300, left : left + 400]).resize((500, 375))
        path = root / ("china", "flower")[i % 2] / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.save(path, quality=90)


def epoch(split: Split, augmented: bool) -> float:
    """Return images per second of one pass in batches of 32."""
    order = np.random.default_rng(1).permutation(len(split))
    batches = np.array_split(order, max(1, len(order) // 32))
    start = time.perf_counter()
    seen = sum(len(batch) for batch in split.images.stream((rows, 7 if augmented else None) for rows in batches))
    return seen / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root / "photos", args.images)
        size = sum(path.stat().st_size for path in (root / "photos").rglob("*.jpg")) / args.images
        print(f"{args.images} JPEG of 500 x 375, {size / 1024:.0f} KiB on average; images per second\n")
        print(
            "| workers | opened and kept | epoch from the cache | the same, no random crops | epoch without a cache |"
        )
        print("|---|---|---|---|---|")
        data = DataSettings(name="folder", dir=root / "photos")
        for workers in args.workers:
            kept = ImageSettings(workers=workers, cache="always", cache_dir=root / f"cache-{workers}")
            task = build_task(data, kept)
            again = build_task(data, kept.model_copy(update={"cache": "never"}))
            cells = [
                task.reading["images_per_second_when_opened"],
                epoch(task.train, True),
                epoch(task.train, False),
                epoch(again.train, True),
            ]
            print(f"| {workers} | " + " | ".join(f"{cell:,.0f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
