"""Outputs of named layers while a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from exmap.errors import SettingsError
from exmap.explain.rules.table import on_the_way_back

__all__ = ["recorded"]


@contextmanager
def recorded(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Keep the relevance of the outputs of modules, as it becomes known on the way back."""
    seen: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())
    if unknown := [name for name in layers if name not in modules]:
        raise SettingsError(f"layers must be paths of the model's modules, found no {', '.join(unknown)}")

    def keep(name: str, output: Any) -> Any:
        tensor = next((t for t in _tensors(output) if t.requires_grad), None)
        if tensor is None:
            return output
        with torch._C.DisableTorchFunction():
            value = tensor.detach().clone()  # the model may overwrite it
        vars(tensor).pop("_exmap_made", None)  # a normalisation that follows is then a map of its own
        seen[name] = made = torch.zeros_like(value)  # of a module that runs several times, the last run

        def came(g: torch.Tensor | None) -> None:
            if g is not None:
                torch.mul(value, g, out=made)

        on_the_way_back(tensor, came)
        return output

    hooks = [
        modules[name].register_forward_hook(lambda _m, _i, output, name=name: keep(name, output)) for name in layers
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, (list, tuple)):
        for item in output:
            yield from _tensors(item)
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from _tensors(item)
