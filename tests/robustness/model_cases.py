"""Cases of classifiers: files of weights that are damaged, and words that name none."""

from __future__ import annotations

import random
from pathlib import Path

from case import Case
from damage import damage_file
from materials import Materials, copied, options

__all__ = ["model_words", "weights"]


AUDIT = (
    "images.transform=null",
    "images.resize=12",
    "images.crop=12",
    "images.workers=0",
    "explain.size=6",
    "runtime.precision=32-true",
    "evaluate.bootstrap=20",
    "retrain.subsamples=2",
    "retrain.tuning_splits=1",
    "retrain.strengths=[1]",
)


def weights(rng: random.Random, place: Path, made: Materials) -> Case:
    """A file of weights that is damaged, for a check and for an audit."""
    folder = copied(made.weights, place / "w")
    file = rng.choice([folder / "model.safetensors", folder / "model.pt", folder / "checkpoint.pt"])
    how = damage_file(file, rng)
    if rng.random() < 0.7 or not file.is_file():
        words = ["check-model", "w/net.py:two", "--weights", file, "--size", "12"]
    else:
        data = ["--data", made.photos / "val", "--out", "out", "--classes", "dog,cat"]
        words = ["audit", "--model", "w/net.py:two", "--weights", file, *data, *options(*AUDIT)]
    return Case(f"{words[0]} with {file.name} {how}", words)


WORDS = (
    "nothing", "", "w", "w/net.py", "w/net.py:", "w/net.py:three", "w/net.py:Net", "w/net.py:torch",
    "torchvision:nothing", "torchvision:resnet18", "torchvision:", "timm:x", "hf:w", "hf:", "onnx:w/net.py",
    "torchscript:w/model.pt", "os:getcwd", "builtins:print", "json:dumps", "/dev/zero", "w/model.pt", ":",
    "\ud800", "a" * 5000, "\x1b[31m", "torchvision:resnet18:x", "run", "torch.nn:Identity", "numpy:zeros",
)  # fmt: skip


GIVEN: tuple[tuple[str, ...], ...] = (
    (),
    *(("--size", size) for size in ("0", "-1", "1", "12", "100000", "x")),
    *(("--classes", number) for number in ("0", "-3", "1", "9999999")),
    *(("--channels", number) for number in ("0", "1", "-1", "99999")),
    ("--composite", "nothing"),
    ("--images", "w/model.pt"),
)


def model_words(rng: random.Random, place: Path, made: Materials) -> Case:
    """A classifier by a word that names none."""
    copied(made.weights, place / "w")
    word = rng.choice(WORDS)
    given = rng.choice(GIVEN)
    audit = ["audit", "--model", word, "--data", made.photos / "val", "--out", "out"]
    words = rng.choice((["check-model", word, *given], audit))
    return Case(f"{words[0]} of {word!r:.60} {given}", words)
