"""The last blocks of any classifier: which of its modules run last before the last linear map, and hold weights.

A classifier is taken apart until no part holds more than half of its weights: a module that does is opened, as are
those that hold the last layer and those that are not run themselves, such as lists. The parts are put in the order in
which they run. A part with a matrix or a kernel that the logits depend on begins a block; what follows it without one
(normalisation, activation, pooling, dropout) belongs to it. So the last block of a ResNet is its last residual block,
that of a vision transformer its last layer, that of a plain chain the last convolution with its normalisation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.model.classifier import logits_of
from exmap.model.ending import LastLayer
from exmap.model.head import find_last_layer
from exmap.model.running import eager, evaluation_mode, model_input, run_model, way_back
from exmap.model.trace import traced

__all__ = ["Blocks", "last_blocks"]


@dataclass(frozen=True)
class Blocks:
    """The parts of a classifier, by the names of modules.

    Attributes
    ----------
    before : tuple of str
        What runs before the last blocks, in order.
    last : tuple of str
        The last blocks, in order.
    head : frozenset of str
        Names of the parameters of the last linear map.
    """

    before: tuple[str, ...]
    last: tuple[str, ...]
    head: frozenset[str]

    def holds(self, name: str) -> bool:
        """Return whether a module or a parameter is in the last blocks."""
        return any(f"{name}.".startswith(f"{part}.") for part in self.last)


def last_blocks(model: nn.Module, images: NDArray[np.float32], count: int = 1) -> Blocks:
    """Return the last blocks before the last linear map, and what runs before them.

    Parameters
    ----------
    model : torch.nn.Module
        Without wrappers; stays as it is.
    images : ndarray of float32, shape (n, C, H, W)
        A few, to run the model on.
    count : int
        Of blocks; where there are fewer, all parts are among them.

    Raises
    ------
    DataError
        If the logits are not made by a linear map, or have no gradient.
    """
    layer = find_last_layer(model, images)
    place = {call.name: number for number, call in enumerate(traced(model, images).modules)}
    head = _parameters_of(model, layer)
    total = sum(p.numel() for name, p in model.named_parameters() if name not in head)
    parts = [name for name in _parts(model, layer, place, total) if place[name] < place.get(layer.name, len(place))]
    parts.sort(key=place.__getitem__)
    learning = _learning(model, images)
    begins = [number for number, name in enumerate(parts) if _has_matrix(model, name, learning)]
    start = begins[-count] if count <= len(begins) else (0 if begins else len(parts))
    return Blocks(tuple(parts[:start]), tuple(parts[start:]), head)


def _parameters_of(model: nn.Module, layer: LastLayer) -> frozenset[str]:
    """Return the names of a last layer's parameters."""
    if layer.parameters is not None:
        return frozenset({layer.parameters[0], layer.parameters[2]})
    prefix = f"{layer.name}." if layer.name else ""
    return frozenset(name for name, _ in model.named_parameters() if name.startswith(prefix))


def _parts(model: nn.Module, layer: LastLayer, run: Mapping[str, int], total: int, name: str = "") -> Iterator[str]:
    """Yield the names of the parts inside a module, none of which holds more than half of the weights if it has parts.

    Parameters
    ----------
    run : mapping
        With the names of all modules that are run.
    total : int
        How many weights there are.
    """
    for leaf, child in model.get_submodule(name).named_children():
        inner = f"{name}.{leaf}" if name else leaf
        if inner == layer.name and layer.site is None:
            continue
        large = 2 * sum(parameter.numel() for parameter in child.parameters()) > total
        opened = large or inner not in run or f"{layer.name}.".startswith(f"{inner}.")
        if opened and any(child.children()):
            yield from _parts(model, layer, run, total, inner)
        elif inner in run:
            yield inner


def _learning(model: nn.Module, images: NDArray[np.float32]) -> frozenset[str]:
    """Return the names of the parameters that the logits have a gradient of, whether or not it is switched off."""
    named = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    switches = {name: parameter.requires_grad for name, parameter in named.items()}
    try:
        for parameter in named.values():
            parameter.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad(), evaluation_mode(model), eager(model), way_back():
            x = model_input(model, np.ascontiguousarray(images[:2]))
            logits = logits_of(run_model(model, x), len(x))
            slopes = torch.autograd.grad(logits.sum(), list(named.values()), allow_unused=True)
    finally:
        for name, parameter in named.items():
            parameter.requires_grad_(switches[name])
    return frozenset(name for name, slope in zip(named, slopes, strict=True) if slope is not None)


def _has_matrix(model: nn.Module, name: str, learning: Collection[str]) -> bool:
    """Return whether a part has a parameter of two dimensions or more that learns."""
    parameters = model.get_submodule(name).named_parameters()
    return any(parameter.ndim > 1 and f"{name}.{inner}" in learning for inner, parameter in parameters)
