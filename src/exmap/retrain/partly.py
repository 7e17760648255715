"""Train the last blocks of a network and leave the rest of it as it is, as cheaply as its forward allows.

What is frozen needs no gradient, and what comes before the last blocks is the same in every epoch. So the maps that
they are given are computed once and take the place of the images, where that can be proved on the network itself: the
modules before the last blocks are replaced by ones that pass on what they are given, and the logits must be the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.data import ArrayImages, Split
from exmap.errors import DataError
from exmap.model import logits_of
from exmap.model.batches import computed_batches
from exmap.model.blocks import Blocks
from exmap.model.check import largest_gap, rounding
from exmap.model.probe import copied
from exmap.model.running import (
    available_memory,
    eager,
    evaluation_mode,
    images_at_once,
    model_device,
    model_input,
    run_model,
)
from exmap.records import Listener, Progress

__all__ = ["PartlyTrained", "from_kept_maps", "scales_and_shifts"]

DRAWS = 4  # of random crops, to see whether there are any


class PartlyTrained(nn.Module):
    """A copy of a classifier of which the last blocks and the last layer are trained.

    All else has no gradient and stays in evaluation mode: running statistics stay as they are, and nothing is drawn.

    Parameters
    ----------
    model : torch.nn.Module
        Stays as it is.
    blocks : Blocks
        Of the model.
    norms : bool
        Whether scales and shifts of normalisation layers are trained in all of the network.
    shape : tuple of int, optional
        Of what the last blocks are given, for one image: then the modules before them pass on what they are given.
    """

    def __init__(
        self, model: nn.Module, blocks: Blocks, *, norms: bool = False, shape: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        self.model, self.blocks, self.shape = copied(model), blocks, shape
        for name in () if shape is None else blocks.before:
            self.model.set_submodule(name, nn.Identity())
        trained = {name for name, _ in self.model.named_parameters() if name in blocks.head or blocks.holds(name)}
        if norms:
            trained |= scales_and_shifts(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained and parameter.is_floating_point())
        self.train(model.training)

    def train(self, mode: bool = True) -> PartlyTrained:
        """Put the last blocks into a mode, and all else into evaluation mode."""
        super().train(mode)
        for name, module in self.model.named_modules():
            module.training = mode and self.blocks.holds(name)
        return self

    def forward(self, x: torch.Tensor) -> Any:
        """Return what the classifier makes of images, or of maps of one shape."""
        return self.model(x if self.shape is None else x.reshape(len(x), *self.shape))

    def put_into(self, model: nn.Module) -> nn.Module:
        """Return a copy of the model with the weights that were trained here, in evaluation mode."""
        whole = copied(model)
        whole.load_state_dict({**whole.state_dict(), **self.model.state_dict()})
        return whole.eval()

    def sizes(self) -> tuple[int, int]:
        """Return how many weights are trained, and how many there are in all that is here."""
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in self.model.parameters()]
        return sum(size for size, trained in counts if trained), sum(size for size, _ in counts)


def scales_and_shifts(model: nn.Module) -> set[str]:
    """Return the names of the parameters of normalisation layers, known by their class's name and their shape."""
    return {
        f"{name}.{leaf}" if name else leaf
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for leaf, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 1
    }


def from_kept_maps(
    model: nn.Module, blocks: Blocks, splits: Sequence[Split], listen: Listener
) -> tuple[PartlyTrained, list[Split]] | None:
    """Return a network that begins with the last blocks, and splits of what these are given in place of the images.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode; stays as it is.
    blocks : Blocks
        Of the model.
    splits : sequence of Split
    listen : Listener

    Returns
    -------
    tuple or None
        None where it cannot be: images are cropped at random, the maps would fill more than a quarter of the memory
        that is free, the last blocks are run more than once or share weights with what runs before them, or the
        network is no chain there, so that the logits would be others.
    """
    if not blocks.before or not blocks.last or _shares_weights(model, blocks) or _crops(splits[0]):
        return None
    images = splits[0].first_images()
    given = _given(model, blocks, images)
    if given is None:
        return None
    shape = tuple(given.shape[1:])
    free = available_memory()
    if free is not None and 4 * math.prod(shape) * sum(map(len, splits)) > free // 4:
        return None
    network = PartlyTrained(model, blocks, shape=shape)
    if not _agree(model, network, images, given):
        return None
    return network, [_kept(model, blocks, split, shape, listen) for split in splits]


def _shares_weights(model: nn.Module, blocks: Blocks) -> bool:
    """Return whether what is trained stands in the rest of the network, too."""
    named = list(model.named_parameters(remove_duplicate=False))
    trained = {id(parameter) for name, parameter in named if name in blocks.head or blocks.holds(name)}
    inside = tuple(f"{name}." for name in blocks.before)
    return any(id(parameter) in trained for name, parameter in named if name.startswith(inside))


def _crops(split: Split) -> bool:
    """Return whether a training is shown random parts of the images: another draw would then be another image."""
    rows = split.first_rows()
    drawn = split.images.stream((rows, seed) for seed in range(DRAWS))
    return not all(np.array_equal(one, split.images.batch(rows), equal_nan=True) for one in drawn)


def _given(model: nn.Module, blocks: Blocks, images: NDArray[np.float32]) -> torch.Tensor | None:
    """Return what the last blocks are given, shape (n, ...), or None unless they run once, on one tensor of floats."""
    seen: list[Any] = []

    def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
        one = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
        seen.append(args[0].detach().float().clone() if one else None)  # the block may write to it

    hook = model.get_submodule(blocks.last[0]).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad(), evaluation_mode(model), eager(model):
            run_model(model, model_input(model, np.ascontiguousarray(images)))
    finally:
        hook.remove()
    found = seen[0] if len(seen) == 1 else None
    return found if isinstance(found, torch.Tensor) and found.ndim > 1 and len(found) == len(images) else None


def _agree(model: nn.Module, network: nn.Module, images: NDArray[np.float32], given: torch.Tensor) -> bool:
    """Return whether a network says of the maps what the model says of the images."""
    with torch.no_grad(), evaluation_mode(model), evaluation_mode(network), eager(model), eager(network):
        wanted = logits_of(run_model(model, model_input(model, np.ascontiguousarray(images))), len(images))
        try:
            found = logits_of(run_model(network, model_input(network, _as_images(given))), len(images))
        except DataError:  # something between the modules takes images alone
            return False
    return found.shape == wanted.shape and largest_gap(found, wanted) <= rounding(model, wanted)


def _as_images(maps: torch.Tensor) -> NDArray[np.float32]:
    """Return maps of any shape (n, ...) as images, shape (n, C, H, W)."""
    return (maps if maps.ndim == 4 else maps.reshape(len(maps), -1, 1, 1)).cpu().numpy()


def _kept(model: nn.Module, blocks: Blocks, split: Split, shape: tuple[int, ...], listen: Listener) -> Split:
    """Return a split with what the last blocks are given in place of its images."""
    kept = np.empty((len(split), *(shape if len(shape) == 3 else (math.prod(shape), 1, 1))), dtype=np.float32)

    def compute(part: slice, images: NDArray[np.float32]) -> list[torch.Tensor]:
        given = _given(model, blocks, images)
        if given is None or given.shape[1:] != shape:
            raise DataError(
                f"the model must do the same with every batch, but {blocks.last[0]!r} was not given values of shape "
                f"(n, {', '.join(map(str, shape))}) as it was of the first images; give images of one size"
            )
        return [given]

    for part, (maps,) in computed_batches(split, images_at_once(split, model_device(model)), compute):
        kept[part] = maps.reshape(len(maps), *kept.shape[1:])
        listen(Progress(f"maps ({split.name})", part.stop, len(split)))
    return replace(split, images=ArrayImages(kept))
