"""Layers at which all relevance can be seen, and relevance by channel.

Between input and logit there are places through which everything passes, such as the outputs of residual blocks. There,
relevance summed over positions says which channels carry the prediction, wherever in the image the evidence lies
(concept relevance: Achtibat et al., 2023; prototypes of it: Dreyer et al., 2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from exmap.explain.engine import Call, Engine, propagate
from exmap.explain.rules import Composite, Rule
from exmap.explain.rules.table import on_the_way_back
from exmap.model.running import exact

__all__ = ["Layer", "by_channel", "layer_at", "whole_layers"]

NEARLY = 1e-3  # of the logit may be missing at a layer that is called whole


@dataclass(frozen=True)
class Layer:
    """A module whose output all relevance passes through.

    Attributes
    ----------
    path : str
    depth : float
        Share of the network's linear maps that have run by then, in [0, 1].
    shape : tuple of int
        Of its output for one image.
    """

    path: str
    depth: float
    shape: tuple[int, ...]


@dataclass
class _Seen:
    path: str
    operations: int
    maps: int
    shape: tuple[int, ...]
    relevance: float = 0.0


def whole_layers(model: nn.Module, x: torch.Tensor, composite: Composite) -> list[Layer]:
    """Return the modules through whose outputs all relevance passes, from the input on.

    Parameters
    ----------
    model : torch.nn.Module
    x : Tensor, shape (n, C, H, W)
        The first image is explained.
    composite : Composite

    Returns
    -------
    list of Layer
        Of several modules with the same output the outermost.
    """
    counter = {"operations": 0, "maps": 0}

    def count(call: Call, rule: Rule, engine: Engine) -> Any:
        counter["operations"] += 1
        counter["maps"] += rule.name == "linear map"
        engine.owner = counter["operations"]
        return rule.run(call, engine)

    engine = Engine(composite, audit=count)
    with _outputs(model, counter) as seen:
        made = propagate(model, x[:1], engine=engine)
    explained = float(exact(made.explained)[0])
    later = torch.zeros(counter["operations"] + 2, dtype=torch.float64)
    for owner, relevance in engine.constants.by_owner():
        later[owner or 0] += float(exact(relevance).sum())
    after = later.flip(0).cumsum(0).flip(0)  # relevance of the constants of this operation and all later ones
    found: dict[int, Layer] = {}
    for one in seen:
        missing = abs(one.relevance + float(after[one.operations + 1]) - explained)
        if missing <= NEARLY * max(abs(explained), abs(one.relevance)):
            found[one.operations] = Layer(one.path, one.maps / max(1, counter["maps"]), one.shape)
    return list(found.values())


@contextmanager
def _outputs(model: nn.Module, counter: dict[str, int]) -> Iterator[list[_Seen]]:
    """Note what every module's output carries, in the order in which modules end."""
    seen: list[_Seen] = []

    def keep(path: str, output: Any) -> None:
        if not isinstance(output, torch.Tensor) or not output.requires_grad or output.ndim < 2:
            return
        one = _Seen(path, counter["operations"], counter["maps"], tuple(output.shape[1:]))
        seen.append(one)
        with torch._C.DisableTorchFunction():  # the engine would count this copy
            value = output.detach().clone()

        def came(g: torch.Tensor | None) -> None:
            if g is not None:
                one.relevance += float(exact(g * value).sum())

        on_the_way_back(output, came)

    hooks = [
        module.register_forward_hook(lambda _m, _i, output, path=path: keep(path, output))
        for path, module in model.named_modules()
        if path
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def layer_at(layers: list[Layer], depth: float) -> Layer | None:
    """Return the layer nearest to a depth among those with positions, or None where there is none."""
    usable = [layer for layer in layers if sum(size > 1 for size in layer.shape) > 1]
    return min(usable, key=lambda layer: abs(layer.depth - depth), default=None)


def by_channel(relevance: torch.Tensor, image: torch.Size) -> torch.Tensor:
    """Return relevance of a layer by channel, summed over positions.

    Parameters
    ----------
    relevance : Tensor, shape (n, C, h, w), (n, h, w, C), (n, S, C) or (n, C)
        Of four dimensions the last two are positions, unless the two before the last have the image's proportions and
        those do not.
    image : torch.Size
        Of the images, (n, C, H, W).

    Returns
    -------
    Tensor, shape (n, C)
    """
    if relevance.ndim == 2:
        return relevance
    if relevance.ndim == 3:
        return relevance.sum(dim=1)
    height, width = image[-2:]
    a, b, c = relevance.shape[1:4]
    first = b * width == c * height
    last = a * width == b * height
    return relevance.sum(dim=(1, 2)) if last and not first else relevance.flatten(2).sum(dim=2)


def unit_peak(vectors: torch.Tensor) -> torch.Tensor:
    """Divide each vector by its largest absolute value; a vector of zeros stays so."""
    peak = vectors.abs().amax(dim=1, keepdim=True)
    return vectors / torch.where(peak == 0, 1.0, peak)
