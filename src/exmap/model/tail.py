"""What may stand between a linear map and the logits: a mean over positions, a factor, a constant, a choice of outputs.

It is not judged by its name alone: it is run on zeros, ones and numbers, so that all these are known exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from exmap.model.trace import Call, with_operand

__all__ = ["Step", "Tail", "numbers", "pooled", "read_tail"]

MOST_POSITIONS = 4096
Step = tuple[Call, int]  # an operation, and which of its results goes on


@dataclass(frozen=True)
class Tail:
    """What stands between a linear map and the logits.

    With z (n, P, M) what the map makes at P positions,
    ``logits = scale * sum_p positions[p] * z[:, p, outputs] + shift``.

    Attributes
    ----------
    positions : tuple of float
        Sum to 1.
    scale : ndarray of float64, shape (K,)
        Without zeros.
    shift : ndarray of float64, shape (K,)
    outputs : ndarray of int64, shape (K,)
        Which of the map's outputs each logit is made of.
    n_outputs : int
        Of the map, M.
    """

    positions: tuple[float, ...]
    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    outputs: NDArray[np.int64]
    n_outputs: int

    def after(
        self, weight: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return weight and bias of the logits, given those of the map."""
        return self.scale[:, None] * weight[self.outputs], self.scale * bias[self.outputs] + self.shift


def pooled(x: torch.Tensor, axis: int, positions: Sequence[float]) -> torch.Tensor:
    """Return the weighted sum over positions of what a layer is given, shape (n, D), in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32)).movedim(axis, -1)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    if x.shape[1] == 1:
        return x[:, 0]
    if np.ptp(positions) < 1e-6 * abs(positions[0]):
        return x.mean(dim=1)
    return (x * torch.tensor(positions, dtype=x.dtype, device=x.device)[:, None]).sum(dim=1)


def read_tail(steps: list[Step], z: torch.Tensor, axis: int) -> Tail | None:
    """Run what follows a linear map on zeros and on ones at each position.

    Parameters
    ----------
    steps : list of (Call, int)
        Last first.
    z : Tensor, shape (n, ..., K, ...)
        What the linear map made.
    axis : int
        Where its outputs lie.

    Returns
    -------
    Tail or None
        None if it mixes images, classes or positions in another way than by a weighted sum.
    """
    kind = torch.float64 if z.device.type != "mps" else torch.float32
    moved = z.movedim(axis, -1)
    flat = torch.zeros(moved.shape[0], moved[0, ..., 0].numel(), moved.shape[-1], dtype=kind, device=z.device)

    def run(values: torch.Tensor) -> NDArray[np.float64]:
        result = values.reshape(moved.shape).movedim(-1, axis).clone()
        for call, number in reversed(steps):
            result = with_operand(call, result)
            result = result[number] if number >= 0 else result
        return numbers(result).reshape(len(result), -1)

    if flat.shape[1] > MOST_POSITIONS:
        return None
    try:
        shift = run(flat)
        if len(shift) != len(moved):
            return None
        if np.ptp(shift, axis=0).max() > 1e-6 * (1 + np.abs(shift).max()):
            return None
        shares: list[NDArray[np.float64]] = []
        places: list[NDArray[np.float64]] = []
        numbered = torch.arange(1, flat.shape[-1] + 1, dtype=kind, device=z.device)
        for position in range(flat.shape[1]):
            for values, kept in ((1.0, shares), (numbered, places)):
                flat.zero_()
                flat[:, position] = values
                kept.append((run(flat) - shift)[0])
    except (RuntimeError, TypeError, ValueError, IndexError):  # an operation that does not take such values is no tail
        return None
    return _separated(np.array(shares), np.array(places), shift[0], flat.shape[-1])


def _separated(
    shares: NDArray[np.float64], places: NDArray[np.float64], shift: NDArray[np.float64], n_outputs: int
) -> Tail | None:
    """Return weights of positions and factors of classes whose products are the shares, if there are any.

    Parameters
    ----------
    shares, places : ndarray of float64, shape (P, K)
        What ones make of each position, and what the numbers 1 to M of the outputs make.
    shift : ndarray of float64, shape (K,)
    n_outputs : int
    """
    scale = shares.sum(axis=0)
    if np.abs(scale).min() < 1e-9:
        return None
    positions = (shares / scale).mean(axis=1)
    outputs = np.rint(places.sum(axis=0) / scale).astype(np.int64)
    if outputs.min() < 1 or outputs.max() > n_outputs:
        return None
    gaps = np.abs(positions[:, None] * scale - shares), np.abs(positions[:, None] * scale * outputs - places)
    if gaps[0].max() > 1e-4 * np.abs(shares).max() or gaps[1].max() > 1e-4 * np.abs(places).max():
        return None
    return Tail(tuple(positions.tolist()), scale, shift, outputs - 1, n_outputs)


def numbers(tensor: torch.Tensor) -> NDArray[np.float64]:
    """Return a tensor's values in float64."""
    return np.asarray(tensor.detach().cpu().double().numpy())
