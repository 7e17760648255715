"""The new last layer alone, as it stands in the user's own model, and the lines that put it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.errors import DataError
from exmap.model import find_last_layer
from exmap.model.named import ChosenOutputs, kind_of
from exmap.model.replace import OtherHead
from exmap.model.weights_file import WeightsFile
from exmap.settings import ModelSettings

__all__ = ["OwnLayer", "own_layer", "snippet_of"]

PARTS = ("weight", "bias")
LOAD = 'head = load_file("head.safetensors")'
IMPORT = "from safetensors.torch import load_file\n\n"


@dataclass(frozen=True, eq=False)
class OwnLayer:
    """What was changed, in the user's own model.

    Attributes
    ----------
    changes : mapping of str to Tensor
        What differs in the state of the user's model (inside :class:`ChosenOutputs`), by name; of the model as it was
        built, so that only some outputs of a wider file may be in it.
    names : tuple of str
        The names of weight and bias of the last layer in it; empty where more was changed.
    tensors : mapping of str to Tensor
        ``weight`` and ``bias`` of the last layer, with a row for each class.
    rows : tuple of int
        Which rows of the user's last layer they are; empty for all.
    replaced : bool
        Whether the user's layer had no bias, and is to be replaced by one that has.
    foreign : bool
        Whether no plain layer can stand in place of the old one, so that its state cannot hold the new one.
    notes : tuple of str
    """

    changes: Mapping[str, torch.Tensor]
    names: tuple[str, ...] = ()
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    replaced: bool = False
    foreign: bool = False
    notes: tuple[str, ...] = ()


def own_layer(model: nn.Module, repaired: nn.Module, images: NDArray[np.float32], settings: ModelSettings) -> OwnLayer:
    """Return what was changed in a model, and its new last layer where that is all.

    Raises
    ------
    DataError
        If the two are not models of the same kind.
    """
    rows = tuple(settings.outputs)
    if isinstance(repaired, OtherHead):
        state = {part: repaired.head.get_parameter(part).detach() for part in PARTS}
        note = (
            f"The last layer {repaired.name!r} is none that weight and bias describe, so the state of your own model "
            "cannot hold the new one; the program of torch.export does, and head.safetensors has it alone."
        )
        return OwnLayer({}, (repaired.name,), state, rows, foreign=True, notes=(note,))
    inside = isinstance(model, ChosenOutputs)
    old, new = _state(model), _state(repaired)
    changes = {name: value for name, value in new.items() if name not in old or not _same(old[name], value)}
    try:
        layer = find_last_layer(model, images)
    except DataError:  # it has none: only a training of all weights can have changed it
        return OwnLayer(changes, rows=rows)
    name = layer.name.removeprefix("model").removeprefix(".") if inside else layer.name
    names = tuple(f"{name}.{part}".lstrip(".") for part in ("weight", "bias"))
    if gone := [key for key in old if key not in new]:
        if not all(f"{key}.".startswith(f"{name}.") for key in gone):
            raise DataError(
                f"the repaired model must be of the same kind as the model, but it lacks {gone[0]!r}; give what "
                "Analysis.repair returns"
            )
        plain = {part: new[key] for part, key in zip(PARTS, names, strict=True)}
        note = (
            f"The last layer {name!r} was more than a plain layer, and the repaired model has a plain one: put one "
            "into your own model before it loads the state."
        )
        return OwnLayer(changes, names, plain, rows, replaced=True, foreign=True, notes=(note,))
    across = False
    if layer.parameters is not None:
        weight, across, bias = layer.parameters
        names = tuple(one.removeprefix("model.") if inside else one for one in (weight, bias))
    if inside:
        changes |= {key: _rows(old.get(key), new[key], rows, across and key == names[0]) for key in names}
    if set(changes) - set(names) or not changes:
        return OwnLayer(changes, rows=rows)
    tensors = {part: new[key] for part, key in zip(PARTS, names, strict=True)}
    if inside:
        tensors = {part: _picked(value, rows, across and part == "weight") for part, value in tensors.items()}
    if _one_row(model, settings, names):
        tensors = {part: value[1:] - value[:1] for part, value in tensors.items()}
    added = names[1] not in old
    notes = ("The last layer had no bias; the repaired one has.",) if added else ()
    return OwnLayer(changes, names, tensors, rows, replaced=added, notes=notes)


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of the user's own model, on the CPU."""
    inner = model.model if isinstance(model, ChosenOutputs) else model
    return {name: value.detach().cpu() for name, value in inner.state_dict().items()}


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _rows(old: torch.Tensor | None, new: torch.Tensor, rows: tuple[int, ...], across: bool) -> torch.Tensor:
    """Return a tensor of all outputs in which those that were not chosen are as they were."""
    made = torch.zeros_like(new) if old is None else old.clone()
    where = (slice(None), list(rows)) if across else (list(rows),)
    made[where] = new[where]
    return made


def _picked(value: torch.Tensor, rows: tuple[int, ...], across: bool) -> torch.Tensor:
    return value[:, list(rows)] if across else value[list(rows)]


def _one_row(model: nn.Module, settings: ModelSettings, names: tuple[str, ...]) -> bool:
    """Return whether the user's file has one output where the model has two."""
    if settings.weights is None:
        return False
    inner = model.model if isinstance(model, ChosenOutputs) else model
    found = WeightsFile.read(settings.weights, inner).tensors.get(names[0])
    return found is not None and len(found) == 1 and len(inner.state_dict()[names[0]]) == 2


def snippet_of(layer: OwnLayer, settings: ModelSettings, file: str) -> str:
    """Return lines that put the new last layer into the user's model, which is called `model` there."""
    if not layer.tensors:
        return ""
    kind = kind_of(settings.name)
    rows = f"[{list(layer.rows)}]" if layer.rows else "[:]"
    width = tuple(layer.tensors["weight"].shape)
    if kind == "onnx":
        return (
            f"import onnxruntime\n\n# {file} is your file with the new last layer; head.safetensors has it alone\n"
            f'session = onnxruntime.InferenceSession("{file}")\n'
        )
    if kind == "torchscript":
        return f'import torch\n\n# {file} is your program with the new last layer\nmodel = torch.jit.load("{file}")\n'
    if layer.replaced:
        made = f"Linear({width[1]}, {width[0]})" if len(width) == 2 else f"Conv2d({width[1]}, {width[0]}, 1)"
        parent, _, leaf = layer.names[0].rpartition(".")[0].rpartition(".")
        return (
            f"import torch\n{IMPORT}layer = torch.nn.{made}\n"
            f'layer.load_state_dict(load_file("head.safetensors"))\n'
            f'setattr(model.get_submodule("{parent}"), "{leaf}", layer)\n'
        )
    if layer.foreign:
        where = layer.names[0] or "the last layer"
        return (
            f"{IMPORT}{LOAD}\n# features: what {where} of your model is given, one row per image\n"
            'logits = features @ head["weight"].T + head["bias"]\n'
        )
    lines = [
        f'model.get_parameter("{name}").data{rows} = head["{part}"]'
        for name, part in zip(layer.names, PARTS, strict=True)
    ]
    return IMPORT + "\n".join([LOAD, *lines]) + "\n"
