"""What campaigns start from: sound images, tables, archives, weights and a finished run, made once in a folder."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import struct
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from forked import forked
from PIL import Image

__all__ = [
    "CHEAP",
    "EDITS",
    "QUICK",
    "SMALL",
    "Materials",
    "copied",
    "encoded",
    "make_materials",
    "make_weights",
    "options",
    "pick",
    "picture",
    "shard",
]

# What makes an analysis of a classifier quick.
QUICK = (
    "retrain.repeats=1",
    "retrain.subsamples=2",
    "retrain.tuning_splits=1",
    "retrain.strengths=[1]",
    "evaluate.bootstrap=20",
    "runtime.precision=32-true",
    "runtime.accelerator=cpu",
)
# What makes a whole run quick.
SMALL = ("model={name: tiny}", "train.epochs=1", "train.batch_size=16", "groups.sources=[exmap]", *QUICK)
# A run over small images that takes a second or two.
CHEAP = (
    *SMALL,
    "explain.size=6",
    "images.resize=12",
    "images.crop=12",
    "images.workers=0",
    "images.cache=never",
)
SIDE = 12


def options(*items: str) -> list[str]:
    """Return settings as the words of a command."""
    return [word for item in items for word in ("--set", item)]


def picture(label: int, number: int) -> Any:
    """Return a small picture, 8-bit RGB: bright in its class's place, and mostly of its class's colour."""
    draw = np.random.default_rng([label, number])
    pixels = draw.integers(0, 90, (SIDE, SIDE, 3))
    pixels[:, :, label if number % 4 else 1 - label] += 120
    pixels[3:6, 3 + 3 * label : 6 + 3 * label] = 250
    return pixels.astype(np.uint8)


def encoded(label: int, number: int, kind: str = "PNG") -> bytes:
    """Return that picture as the bytes of a file."""
    kept = io.BytesIO()
    Image.fromarray(picture(label, number)).save(kept, kind)
    return kept.getvalue()


# Edits of the finished run's groups; its identity stands in the place of GROUPING.
EDITS = """format: 1
source: exmap
grouping: GROUPING
edits:
  - {group: class cat / cluster 0, name: left}
  - {group: class dog / cluster 0, not_a_shortcut: true}
selections:
  - {name: odd, rows: "1, 3-5"}
relabel: {val/cat/val00.png: dog}
leave_out: [val/cat/val01.png]
"""


class Materials:
    """Folders of sound things below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.photos, self.run, self.table = root / "photos", root / "run", root / "table"
        self.idx, self.shards, self.weights = root / "mnist", root / "shards", root / "weights"

    def edits(self) -> bytes:
        """Return a file with edits of the finished run's groups."""
        done = json.loads((self.run / "groups-val-exmap" / "done.json").read_text(encoding="utf-8"))
        return EDITS.replace("GROUPING", done["identity"]).encode()


def copied(source: Path, place: Path) -> Path:
    """Return a copy of a folder whose files are links: what changes one must unlink it first, as exmap does."""
    return Path(shutil.copytree(source, place, copy_function=os.link, symlinks=True))


def make_materials(root: Path) -> Materials:
    """Make what is not there yet."""
    made = Materials(root)
    makers: list[tuple[Path, Callable[[Path], object]]] = [
        (made.photos, _photos),
        (made.table, _table),
        (made.idx, _idx),
        (made.shards, _shards),
        (made.weights, make_weights),
        (made.run, lambda part: _run(made, part)),
    ]
    for place, make in makers:
        if not place.exists():
            part = place.with_name(place.name + ".making")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            make(part)
            part.rename(place)
    return made


def _photos(folder: Path) -> None:
    for first, (split, number) in enumerate((("train", 16), ("val", 14), ("test", 12))):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(number):
                (folder / split / name / f"{split}{i:02d}.png").write_bytes(encoded(label, 100 * first + i))


def _table(folder: Path) -> None:
    rows = ["path,label,split,background"]
    for i in range(72):
        split = ("train", "train", "val", "test")[i % 4] if i < 64 else ("val", "test")[i % 2]
        name = f"images/{i:03d}.png"
        (folder / "images").mkdir(exist_ok=True)
        (folder / name).write_bytes(encoded(i // 4 % 2, i))
        rows.append(f"{name},{('cat', 'dog')[i // 4 % 2]},{split},{'land' if i % 3 else 'sea'}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _idx(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for name, number in (("train", 200), ("t10k", 60)):
        labels = np.arange(number, dtype=np.uint8) % 10
        images = (draw.integers(0, 60, (number, 28, 28)) + labels[:, None, None] * 15).astype(np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *images.shape) + images.tobytes())
        whole = struct.pack(">2i", 2049, number) + labels.tobytes()
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(whole, mtime=0))


def _shards(folder: Path) -> None:
    for split, number in (("train", 32), ("val", 28), ("test", 24)):
        (folder / f"{split}-000.tar").write_bytes(shard(number))


@cache
def shard(number: int) -> bytes:
    """Return an archive of so many pictures, each beside its class."""
    kept = io.BytesIO()
    with tarfile.open(fileobj=kept, mode="w") as archive:
        for i in range(number):
            for suffix, data in (("png", encoded(i % 2, i)), ("cls", str(i % 2).encode())):
                member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return kept.getvalue()


def make_weights(folder: Path) -> None:
    """Write one network's weights in several kinds of files, and a function that builds it."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    parts = {
        "features.0.weight": torch.randn(4, 3, 3, 3),
        "features.0.bias": torch.zeros(4),
        "fc.weight": torch.randn(2, 4),
        "fc.bias": torch.zeros(2),
    }
    save_file(parts, folder / "model.safetensors")
    torch.save(parts, folder / "model.pt")
    torch.save({"state_dict": parts, "epoch": 3}, folder / "checkpoint.pt")
    (folder / "net.py").write_text(NET, encoding="utf-8")


NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, n)

    def forward(self, x):
        return self.fc(self.features(x))


def two():
    return Net(2)
"""


def _run(made: Materials, part: Path) -> None:
    words = ["run", "folder", "--data-dir", made.photos, "--out", "run", *options(*CHEAP)]
    said = forked(words, folder=part, seconds=600)
    if said.code != 0:
        raise RuntimeError(f"the run that campaigns start from failed: {said.err.decode(errors='replace')}")
    for item in (part / "run").iterdir():
        item.rename(part / item.name)
    (part / "run").rmdir()


def pick(rng: random.Random, folder: Path) -> Path:
    """Return one of the files below a folder."""
    return rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
