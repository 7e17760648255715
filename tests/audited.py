"""A small classifier as a user has it, in a file of his own with its weights, and photographs of a planted shortcut."""

from __future__ import annotations

import hashlib
import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from exmap.cli import main
from exmap.data import Split
from exmap.data.planted import planted_shortcut
from exmap.runtime import torch_seed
from running import Said, as_options

OWN = """
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3), nn.ReLU())
        self.fc = nn.Linear(16 * 25, n)

    def forward(self, x):
        return self.fc(self.body(x).flatten(1))


def prepare(image):
    return torch.from_numpy(np.asarray(image.resize((16, 16)), dtype=np.float32).transpose(2, 0, 1) / 255)


def two():
    model = Net(2)
    model.preprocess = prepare
    return model


def three():
    model = Net(3)
    model.preprocess = prepare
    return model


def plain():
    return Net(2)
"""
QUICK = as_options(
    "auto.halvings=1",
    "auto.draws=5",
    "retrain.subsamples=2",
    "retrain.tuning_splits=1",
    "retrain.strengths=[1]",
    "evaluate.bootstrap=20",
    "images.workers=0",
    "images.cache=never",
)


class Net(nn.Module):
    """The same network as in the file above."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3), nn.ReLU())
        self.fc = nn.Linear(16 * 25, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.body(x).flatten(1))
        return logits


def give(*words: str | Path) -> Said:
    """Give a command in this process; what it says is caught here, so that fixtures of any scope may."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["exmap", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
    return Said(int(left.value.code or 0), out.getvalue(), err.getvalue())


def audit(model: str, data: Path | str, out: Path, *words: str | Path, weights: Path | None = None) -> Said:
    """Audit with little work."""
    given = () if weights is None else ("--weights", weights)
    return give("audit", "--model", model, "--data", data, "--out", out, *given, *QUICK, *words)


def user(folder: Path) -> Path:
    """Write net.py, and weights of classifiers: two.pt and three.pt follow the patch more than the bar."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(OWN)
    for k, name in ((2, "two.pt"), (3, "three.pt")):
        torch.save(_trained(k).state_dict(), folder / name)
    return folder


def photographs(folder: Path, k: int = 2, images: int = 160, names: tuple[str, ...] = ()) -> Path:
    """Write a folder per class, where the patch agrees with the class in four of five images."""
    split = planted_shortcut(k, sizes=(2 * k, images, 2 * k), correlation=0.8, seed=1).val
    for number, (pixels, label) in enumerate(zip(_pixels(split), split.labels, strict=True)):
        place = folder / (names[label] if names else split.class_names[label]) / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    return folder


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def _pixels(split: Split) -> np.ndarray:
    images = split.images.batch(np.arange(len(split)))
    return (np.clip(images, 0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def _trained(k: int) -> Net:
    """Return a classifier that knows bars and patches, and whose last layer goes by the patch."""
    split = planted_shortcut(k, sizes=(600, 2 * k, 2 * k), correlation=1 / k).train
    x = torch.from_numpy(split.images.batch(np.arange(600)))
    bar, patch = (torch.from_numpy(y) for y in (split.labels, split.true_groups().index % k))
    with torch_seed(0):
        model = Net(2 * k)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(6 if k == 2 else 10):
            for rows in torch.randperm(600).split(50):
                logits = model(x[rows])
                loss = nn.functional.cross_entropy(logits[:, :k], bar[rows])
                loss = loss + nn.functional.cross_entropy(logits[:, k:], patch[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        last = model.fc
        model.fc = nn.Linear(400, k)
    model.fc.load_state_dict({name: p.detach()[k:] + 0.3 * p.detach()[:k] for name, p in last.named_parameters()})
    return model
