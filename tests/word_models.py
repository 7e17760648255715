"""Classifiers as users have them, for tests of words: in folders, files and functions; small, with random weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from exmap.runtime import torch_seed

SIDE = 16
IMAGES = np.random.default_rng(0).random((6, 3, SIDE, SIDE), dtype=np.float32)

OWN = """
import torch
from torch import nn
import beside


class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, n)

    def forward(self, x):
        return self.fc(self.body(x))


def prepare(image):
    return torch.full((3, 16, 16), beside.HALF)


def five():
    model = Net(5)
    model.classes = ["a", "b", "c", "d", "e"]
    model.preprocess = prepare
    return model


def sized(num_classes, *, width: int = 4):
    return Net(num_classes)


def boxes():
    class Detector(Net):
        def forward(self, x):
            return [{"boxes": torch.zeros(2, 4), "labels": torch.zeros(2, dtype=torch.long)} for _ in x]

    return Detector(3)


def without_bias():
    model = Net(3)
    model.fc = nn.Linear(4, 3, bias=False)
    return model


ready = Net(2)
"""


class Net(nn.Module):
    """The same network as in the file above."""

    def __init__(self, n: int, *, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, n, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.body(x))
        return logits


def net(n: int = 5, seed: int = 3, *, bias: bool = True) -> Net:
    with torch_seed(seed):
        return Net(n, bias=bias).eval()


def own_file(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "beside.py").write_text("HALF = 0.5\n")
    path = folder / "mine.py"
    path.write_text(OWN)
    return path


def hugging_face(folder: Path, names: Sequence[str] = ("cat", "dog", "fox"), **changes: Any) -> nn.Module:
    """Save a small vision transformer with its image processor."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=SIDE,
        patch_size=8,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        **changes,
    )
    with torch_seed(0):
        model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return model  # type: ignore[no-any-return]


def onnx_file(model: nn.Module, path: Path, *, batch: int | None = None) -> Path:
    """Export a model by torch's older exporter, which is quick, with any number of images or a fixed one."""
    free = {} if batch else {"x": {0: "n"}, "logits": {0: "n"}}
    x = torch.zeros(batch or 2, 3, SIDE, SIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (x,), str(path), dynamo=False, input_names=["x"], output_names=["logits"], dynamic_axes=free
        )
    return path


def script_file(model: nn.Module, path: Path, *, trace: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(model, torch.zeros(1, 3, SIDE, SIDE)) if trace else torch.jit.script(model)
        torch.jit.save(made, str(path))
    return path


def logits(model: nn.Module, images: np.ndarray[Any, Any] = IMAGES) -> np.ndarray[Any, Any]:
    """Return what a module makes of images."""
    with torch.no_grad():
        made = model.eval()(torch.from_numpy(images))
    return np.asarray(getattr(made, "logits", made))
