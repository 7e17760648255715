"""How a classifier is named by a word, and what the builders of all kinds of words share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from exmap.errors import SettingsError
from exmap.importing import is_word
from exmap.model.rows import rows_for

__all__ = ["FORMS", "KINDS", "Facts", "check_outputs", "kind_of", "quiet", "rest_of", "with_rows"]

FORMS = (
    "torchvision:NAME, timm:NAME, hf:FOLDER_OR_ID, onnx:FILE, torchscript:FILE, PACKAGE.MODULE:FUNCTION or "
    "FILE.py:FUNCTION"
)
KINDS = ("torchvision", "timm", "hf", "onnx", "torchscript")
FUNCTION = "function"

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
