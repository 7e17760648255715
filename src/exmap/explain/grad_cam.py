"""Grad-CAM: the maps of one layer, weighted by their gradients, enlarged to the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from exmap.errors import DataError
from exmap.explain.engine import Relevance, explained_logit
from exmap.explain.prepared import Prepared, Target, gradient_of, nan_for
from exmap.registry import EXPLAINERS

__all__ = ["GradCAM", "as_maps"]

SKIPPED = (nn.Linear, nn.Softmax, nn.Dropout, nn.Identity)  # parts of attention, and what changes nothing
MOST_TOKENS = 8  # beside those of the grid: class token, distillation token, registers
Run = tuple[str, int]  # a module's path, and which of its runs


@EXPLAINERS.register(name="grad_cam")
@dataclass
class GradCAM:
    r"""Grad-CAM (Selvaraju et al., 2017): where the maps of a layer, weighted by their mean gradients, are active.

    .. math:: L = ReLU(\sum_k a_k A_k), \quad a_k = mean(\partial f / \partial A_k)

    L is enlarged to the image bilinearly and spread evenly over its channels: their sum is L. It is no decomposition of
    the logit, so ``constants`` is NaN.

    Parameters
    ----------
    layer : str, optional
        Path of a module that returns maps (n, C, h, w), or tokens (n, S, D) in a grid of the image's proportions, those
        without a place (class token, registers) first. By default the last such module of more than one place from
        whose places the explained logit has a gradient; in a vision transformer that reads its class token this is
        the normalisation in front of the last attention. Linear layers are not looked at: they are parts of attention.
    relu : bool
        False keeps what speaks against the class.
    """

    layer: str | None = None
    relu: bool = True
    needs_gradient: ClassVar[bool] = True
    _prepared: Prepared = field(default_factory=Prepared, init=False, repr=False, compare=False)
    _found: tuple[nn.Module, tuple[int, ...], Run] | None = field(default=None, init=False, repr=False, compare=False)

    def explain(self, model: nn.Module, x: torch.Tensor, target: Target = "predicted") -> Relevance:
        """Return the relevance of a batch of images, shape (n, C, H, W)."""
        with self._prepared.running(model, x) as (classifier, leaf):
            path, number = self._run(classifier, leaf)
            with recorded(classifier, path) as runs:
                logits = classifier(leaf.clone())
            chosen, explained = explained_logit(logits, target)
            if path not in runs:
                raise DataError(f"layer must be a module that runs when the model does, but {self.layer!r} does not")
            layer = runs[path][number]
            gradient_of(explained, leaf)
            values = self._map(layer.value, layer.gradient, leaf)
        return Relevance(values, logits.detach(), chosen, explained.detach(), nan_for(values))

    def _map(self, layer: torch.Tensor, gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the map of each image, enlarged and spread over channels, shape (n, C, H, W)."""
        size = (int(x.shape[2]), int(x.shape[3]))
        maps, slopes = as_maps(layer, size), as_maps(gradient, size)
        if maps is None or slopes is None or len(maps) != len(x):
            raise DataError(
                f"layer must be a module that returns maps (n, C, h, w), or tokens (n, S, D) in a grid of the image's "
                f"proportions, but {self.layer!r} returns {tuple(layer.shape)} for {len(x)} images"
            )
        weighted = (slopes.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1, keepdim=True)
        weighted = weighted.relu() if self.relu else weighted
        enlarged = nn.functional.interpolate(weighted, size=size, mode="bilinear", align_corners=False)
        return (enlarged / x.shape[1]).expand(x.shape).contiguous()

    def _run(self, classifier: nn.Module, x: torch.Tensor) -> Run:
        """Return the layer that was named, or the last that can be looked at."""
        if self.layer is not None:
            return self._prepared.path(self.layer, "layer"), -1
        shape = tuple(x.shape[1:])
        if self._found is None or self._found[0] is not classifier or self._found[1] != shape:
            self._found = classifier, shape, last_layer(classifier, x[:2].detach().requires_grad_())
        return self._found[2]


@dataclass(eq=False)
class Output:
    """What a module returned, and its gradient once that is known."""

    value: torch.Tensor
    gradient: torch.Tensor


def last_layer(model: nn.Module, x: torch.Tensor) -> Run:
    """Return the last module whose output are maps from whose places the predicted logit has a gradient.

    Raises
    ------
    DataError
        If there is none.
    """
    size = (int(x.shape[2]), int(x.shape[3]))
    skipped = {name for name, module in model.named_modules() if isinstance(module, SKIPPED)}
    with recorded(model, *(name for name, _ in model.named_modules() if name not in skipped)) as runs:
        logits = model(x.clone())
    gradient_of(explained_logit(logits, "predicted")[1], x)
    slopes = [(run, as_maps(runs[run[0]][run[1]].gradient, size)) for run in reversed(runs.order)]
    maps = [(run, found) for run, found in slopes if found is not None and len(found) == len(x)]
    if maps:
        return next((run for run, found in maps if bool(found.any())), maps[0][0])
    raise DataError(
        "grad_cam needs a module that returns maps (n, C, h, w) of more than one place, or tokens (n, S, D), but the "
        'model has none; name one by layer=, or choose explainer="gradient_x_input"'
    )


class Runs(dict[str, list[Output]]):
    """The outputs of modules by their paths, one for each run, and the order in which they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[Run] = []

    def keep(self, path: str, output: Any) -> None:
        """Keep the first tensor of an output as it is now: the model may write to it later."""
        tensor = first_tensor(output)
        if tensor is None or not tensor.requires_grad or not tensor.is_floating_point():
            return
        kept = Output(tensor.detach().clone(), torch.zeros_like(tensor, requires_grad=False))
        tensor.register_hook(lambda g: setattr(kept, "gradient", g.detach()))  # type: ignore[no-untyped-call]
        self.setdefault(path, []).append(kept)
        self.order.append((path, len(self[path]) - 1))


@contextmanager
def recorded(model: nn.Module, *paths: str) -> Iterator[Runs]:
    """Keep the outputs of modules inside the block, and their gradients when they become known."""
    runs = Runs()
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda _m, _i, output, path=path: runs.keep(path, output))
        for path in paths
    ]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def first_tensor(output: Any) -> torch.Tensor | None:
    """Return the first tensor in what a module returned."""
    if isinstance(output, torch.Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


def as_maps(output: torch.Tensor, size: tuple[int, int]) -> torch.Tensor | None:
    """Return a layer's output as maps (n, C, h, w), or None where its places have no order in the image.

    Parameters
    ----------
    output : Tensor, shape (n, C, h, w), (n, h, w, C) or (n, S, D)
        Which of the first two it is tell the image's proportions.
    size : (int, int)
        Height and width of the image.
    """
    if output.ndim == 4:
        if not _alike(output.shape[2:], size) and _alike(output.shape[1:3], size):
            output = output.movedim(-1, 1)
        return output if output.shape[2] * output.shape[3] > 1 else None
    if output.ndim != 3:
        return None
    grid = _grid(output.shape[1], size)
    if grid is None:
        return None
    places = output[:, output.shape[1] - grid[0] * grid[1] :]
    return places.transpose(1, 2).reshape(len(places), -1, *grid)


def _alike(grid: Any, size: tuple[int, int]) -> bool:
    """Return whether a grid has the image's proportions, up to rounding."""
    height, width = grid
    return bool(height * width > 1 and abs(height * size[1] - width * size[0]) < max(size))


def _grid(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the largest grid of the image's proportions that so many tokens fill, but for a few."""
    width = int((tokens * size[1] / size[0]) ** 0.5 + 1e-9)
    for columns in range(width, 0, -1):
        rows, rest = divmod(columns * size[0], size[1])
        if rest == 0 and rows * columns > 1:
            return (rows, columns) if tokens - rows * columns <= MOST_TOKENS else None
    return None
