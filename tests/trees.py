"""Small trees of real image files in exactly the layouts in which the paper's data sets are distributed."""

from __future__ import annotations

import csv
import io
import itertools
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (24, 18)) -> Path:
    """Save one image of nearly one colour, in the format its suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.name))
    noise = np.random.default_rng(seed).integers(0, 30, size=(size[1], size[0], 3))
    Image.fromarray((np.array(colour) * 0.8 + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


def waterbirds_tree(root: Path, counts: dict[int, Sequence[int]], masks: bool = False) -> Path:
    """Write ``metadata.csv`` and images: counts[split] are the sizes of groups y * 2 + place."""
    rows = []
    for split, sizes in counts.items():
        for group, size in enumerate(sizes):
            for number in range(size):
                y, place = divmod(group, 2)
                kind = f"{group + 1:03d}.Some_Bird"
                name = f"{kind}/Some_Bird_{split}_{number:04d}.jpg"
                picture(root / "waterbird_complete95_forest2water2" / name, ((60, 160, 60), (60, 60, 160))[place])
                if masks:
                    mask = np.zeros((18, 24), dtype=np.uint8)
                    mask[4:14, 6:18] = 255
                    target = root / "segmentations" / Path(name).with_suffix(".png")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(target)
                rows.append([len(rows) + 1, name, y, split, place, f"/o/ocean/{number}.jpg"])
    with open(root / "waterbird_complete95_forest2water2" / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["img_id", "img_filename", "y", "split", "place", "place_filename"])
        writer.writerows(rows)
    return root


ATTRIBUTES = ["5_o_Clock_Shadow", "Blond_Hair", "Eyeglasses", "Male", "Young"]


def celeba_tree(root: Path, counts: dict[int, Sequence[int]], official: bool = True) -> Path:
    """Write CelebA in either layout; counts[split] are the sizes of groups blond * 2 + male."""
    rows = []
    for split, sizes in counts.items():
        for group, size in enumerate(sizes):
            rows += [(split, *divmod(group, 2))] * size
    names = [f"{number + 1:06d}.jpg" for number in range(len(rows))]
    for name, (_, blond, male) in zip(names, rows, strict=True):
        picture(root / "img_align_celeba" / name, (200 if blond else 40, 100, 200 if male else 40), (18, 22))
    if official:
        lines = [str(len(rows)), " ".join(ATTRIBUTES) + " "]
        for name, (_, blond, male) in zip(names, rows, strict=True):
            values = [-1, 2 * blond - 1, -1, 2 * male - 1, 1]
            lines.append(f"{name} " + " ".join(f"{value:2d}" for value in values))
        (root / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
        splits = [f"{name} {split}" for name, (split, _, _) in zip(names, rows, strict=True)]
        (root / "list_eval_partition.txt").write_text("\n".join(splits) + "\n")
    else:
        table = [
            f"{i},{name},{blond},{split},{male}"
            for i, (name, (split, blond, male)) in enumerate(zip(names, rows, strict=True))
        ]
        (root / "metadata.csv").write_text("\n".join(["img_id,img_filename,y,split,place", *table]) + "\n")
    return root


def urbancars_tree(root: Path, counts: dict[int, Sequence[int]]) -> Path:
    """Write UrbanCars' folders; counts[split] are the sizes of groups car * 4 + background * 2 + object."""
    kinds = ("urban", "country")
    places = {
        0: "bg-0.95_co_occur_obj-0.95/train",
        1: "bg-0.95_co_occur_obj-0.95/val",
        2: "bg-0.5_co_occur_obj-0.5/test",
    }
    for split, sizes in counts.items():
        for size, (car, background, thing) in zip(sizes, itertools.product(range(2), repeat=3), strict=True):
            folder = f"obj-{kinds[car]}_bg-{kinds[background]}_co_occur_obj-{kinds[thing]}"
            (root / "urbancars" / places[split] / folder).mkdir(parents=True, exist_ok=True)
            for number in range(size):
                colour = (200 if car else 50, 200 if background else 50, 200 if thing else 50)
                picture(root / "urbancars" / places[split] / folder / f"{number:03d}.jpg", colour)
    return root


def own_table(root: Path, rows: Sequence[Sequence[object]], head: Sequence[str] = ("path", "label")) -> Path:
    """Write ``own.csv`` with the given rows, and an image for each path in its first column."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "own.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    for path, *_ in rows:
        if not (root / str(path)).exists():
            picture(root / str(path), size=(8, 6))
    return root / "own.csv"


def class_folders(root: Path, counts: dict[str, int]) -> Path:
    """Write ``NAME/000.png`` and so on, no two of them the same; names may hold several folders."""
    for name, size in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(size):
            picture(root / name / f"{number:03d}.png", (10 * number % 256, 60, zlib.crc32(name.encode()) % 100), (8, 6))
    return root


def shard(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """Write a tar file of the given members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def png(value: int, size: tuple[int, int] = (8, 6)) -> bytes:
    """Return a PNG file of one grey value."""
    stored = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(stored, "PNG")
    return stored.getvalue()


def shards(root: Path, n: int, per_shard: int = 10) -> Path:
    """Write WebDataset shards of images with the grey value 5 * i and the labels 0, 1, 0, and so on."""
    for start in range(0, n, per_shard):
        members = []
        for i in range(start, min(start + per_shard, n)):
            members += [(f"{i:04d}.png", png(5 * i)), (f"{i:04d}.cls", str(i % 2).encode())]
        shard(root / f"part-{start // per_shard:03d}.tar", members)
    return root / "part-000.tar"


def truncate(path: Path) -> None:
    """Leave the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
