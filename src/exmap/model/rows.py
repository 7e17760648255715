"""A last layer with more outputs than the data have classes, or with one for two: read, and written back."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from exmap.errors import CheckpointError

__all__ = ["expanded", "rows_for"]


def rows_for(
    tensor: torch.Tensor, shape: tuple[int, ...], outputs: Sequence[int] = (), *, halved: bool = False
) -> torch.Tensor | None:
    """Return a tensor in the model's shape: as it is, the rows of chosen outputs, or one output as two. Else None."""
    if tuple(tensor.shape) == shape:
        return tensor
    if tensor.ndim == 0 or not shape or tuple(tensor.shape[1:]) != shape[1:]:
        return None
    if outputs and shape[0] == len(outputs) and max(outputs) < len(tensor):
        return tensor[list(outputs)]
    if halved and len(tensor) == 1 and shape[0] == 2 and tensor.is_floating_point():
        return torch.cat([-tensor / 2, tensor / 2])
    return None


def expanded(old: torch.Tensor, new: torch.Tensor, outputs: Sequence[int] = ()) -> torch.Tensor:
    """Return a new tensor as the file has it: in its numbers and its rows; the inverse of :func:`rows_for`.

    Raises
    ------
    CheckpointError
        If it does not fit.
    """
    new = new.detach().to("cpu", old.dtype)
    if old.shape == new.shape:
        return new.clone()
    if old.shape[1:] == new.shape[1:] and outputs and len(new) == len(outputs) and max(outputs) < len(old):
        kept = old.detach().clone()
        kept[list(outputs)] = new
        return kept
    if old.shape[1:] == new.shape[1:] and len(old) == 1 and len(new) == 2:
        return (new[1:] - new[:1]).clone()
    raise CheckpointError(
        f"a changed layer of shape {tuple(new.shape)} must fit into the file's of shape {tuple(old.shape)}, but does "
        "not; save the repaired model by itself"
    )
