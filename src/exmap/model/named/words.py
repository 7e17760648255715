"""How a classifier is named by a word, and what the builders of all kinds of words share."""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from exmap.errors import SettingsError
from exmap.importing import is_word
from exmap.model.rows import rows_for

__all__ = [
    "FORMS",
    "KINDS",
    "Facts",
    "check_outputs",
    "is_place",
    "kind_of",
    "quiet",
    "refuse_place",
    "rest_of",
    "with_rows",
]

FORMS = (
    "torchvision:NAME, timm:NAME, hf:FOLDER_OR_ID, onnx:FILE, torchscript:FILE, PACKAGE.MODULE:FUNCTION or "
    "FILE.py:FUNCTION"
)
KINDS = ("torchvision", "timm", "hf", "onnx", "torchscript")
FUNCTION = "function"
NAMED = 5  # functions in a sentence
WEIGHTS = frozenset({".bin", ".ckpt", ".pkl", ".pt", ".pth", ".safetensors", ".tar"})

Builder = Callable[..., nn.Module]


@dataclass(frozen=True)
class Facts:
    """What is known of a classifier that was built by a word.

    Attributes
    ----------
    about : str
        What it is, in words.
    size, channels : int or None
        Of the images it takes, where it says so itself.
    """

    about: str
    size: int | None = None
    channels: int | None = None


def kind_of(word: str) -> str:
    """Return which kind of word it is: one of :data:`KINDS`, "function", or nothing for a registered name.

    Examples
    --------
    >>> kind_of("timm:hf-hub:me/model"), kind_of("mypkg.models:build"), kind_of("resnet18")
    ('timm', 'function', '')
    """
    kind, colon, _ = word.partition(":")
    if colon and kind in KINDS:
        return kind
    return FUNCTION if is_word(word) or ".py:" in word else ""


def rest_of(word: str) -> str:
    """Return what stands behind the kind."""
    return word.partition(":")[2]


def is_place(word: str) -> bool:
    """Return whether a word is a file or a folder without what it is, as people name their model at first."""
    return Path(word).suffix.lower() in {".py", ".onnx", *WEIGHTS} or os.path.isdir(word)


def refuse_place(word: str) -> NoReturn:
    """Say how a file or a folder is named as a model.

    Raises
    ------
    SettingsError
    """
    path = Path(word)
    suffix = path.suffix.lower()
    if suffix == ".py":
        known = _functions_in(path)
        example = f"{word}:{known[-1] if known else 'build'}"
        more = f"; {path.name} has {', '.join(known[-NAMED:])}" if known else ""
        raise SettingsError(
            f"a model in a Python file is named by the function or class that makes it, such as {example}, got "
            f"{word}{more}"
        )
    if suffix == ".onnx":
        raise SettingsError(f"an ONNX file is named with onnx: before it, got {word}; give onnx:{word}")
    if suffix in WEIGHTS:
        raise SettingsError(
            f"{word} is a file of weights, and the model that they belong to is needed, too: give the file by "
            f"model.weights (--weights) and the model as {FORMS} (torchscript:{word} if torch.jit.save wrote the file)"
        )
    raise SettingsError(f"a folder that save_pretrained wrote is named with hf: before it, got {word}; give hf:{word}")


def _functions_in(path: Path) -> list[str]:
    """Return the names of the functions and classes of a Python file in their order; it is not run."""
    try:
        parts = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [part.name for part in parts if isinstance(part, kinds) and not part.name.startswith("_")]


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what libraries warn of about arguments that only they give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_outputs(outputs: Sequence[int], n_classes: int | None, width: int | None = None) -> None:
    """Refuse outputs that are no choice of a classifier's.

    Parameters
    ----------
    outputs : sequence of int
    n_classes : int, optional
        Of the data.
    width : int, optional
        How many outputs the classifier has.

    Raises
    ------
    SettingsError
        If one comes twice, is not there, or there are not as many as classes.
    """
    said = ", ".join(map(str, outputs))
    if len(set(outputs)) < len(outputs) or min(outputs) < 0 or len(outputs) < 2:
        raise SettingsError(f"model.outputs must be two or more different numbers from 0 on, got {said}; correct them")
    if n_classes is not None and len(outputs) != n_classes:
        raise SettingsError(
            f"model.outputs must name one output for each class of the data, {n_classes}, got {len(outputs)} ({said}); "
            "name as many, in the order of the classes"
        )
    if width is not None and max(outputs) >= width:
        raise SettingsError(
            f"model.outputs must be outputs that the model has, 0 to {width - 1}, got {max(outputs)}; correct it"
        )


def with_rows(
    model: nn.Module, state: Mapping[str, torch.Tensor], outputs: Sequence[int] = (), *, but_last: bool = False
) -> nn.Module:
    """Load a state whose last layer has other rows into a model, and return the model.

    Parameters
    ----------
    model : torch.nn.Module
    state : mapping of str to Tensor
        Of the same model with more outputs.
    outputs : sequence of int
        Which of its outputs the model has.
    but_last : bool
        Leave tensors of another shape as they are in the model.
    """
    own = model.state_dict()
    made = dict(own)
    for name, tensor in own.items():
        found = rows_for(state[name], tuple(tensor.shape), outputs)
        if found is None and not but_last:
            width = len(state[name])
            check_outputs(outputs, None, width)
            raise SettingsError(
                f"the layer {name!r} has no rows for model.outputs; give a model that ends in one layer"
            )
        if found is not None:
            made[name] = found
    model.load_state_dict(made)
    return model


def names_at(names: Sequence[str] | None, outputs: Sequence[int]) -> tuple[str, ...] | None:
    """Return the names of chosen outputs, or of all; None where they are not known or not there."""
    if names is None or any(number >= len(names) for number in outputs):
        return None
    return tuple(str(names[number]) for number in outputs) if outputs else tuple(map(str, names))


def only_texts(value: Any) -> tuple[str, ...] | None:
    """Return names that somebody's object states, if they are some."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, str) for one in value):
        return tuple(value)
    return None
