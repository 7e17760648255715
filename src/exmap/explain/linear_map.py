"""Convolutions and linear layers as the linear maps they are, with weights that stay the same for a whole run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

__all__ = ["LinearMap", "Weights", "blocks", "held_by", "none_negative", "output_shape"]

BLOCK = 2**17  # entries of a tensor that are worked on at a time
MOST_POSITIONS = 4  # of a map that a matrix is made for: matrices grow with the square of it


@dataclass(frozen=True)
class LinearMap:
    """A convolution or a linear layer without its weights: how inputs meet them.

    Attributes
    ----------
    stride, padding, dilation, output_padding : tuple of int, or None
        Geometry of a convolution; all None for a linear layer.
    transposed : bool
    groups : int
    """

    stride: tuple[int, ...] | None = None
    padding: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    transposed: bool = False
    output_padding: tuple[int, ...] | None = None
    groups: int = 1

    @property
    def _geometry(self) -> tuple[Any, ...]:
        return (self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups)

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return the map's output for weights of its own shape."""
        if self.stride is None:
            return nn.functional.linear(x, weight, bias)
        moved: torch.Tensor = torch.ops.aten.convolution(x, weight, bias, *self._geometry)
        return moved

    def transpose(self, y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the transposed map's output for `y`, in the shape of the input `x`."""
        if self.stride is None:
            return y @ weight
        arguments = (y, x, weight, None, *self._geometry, (True, False, False))
        moved: torch.Tensor = torch.ops.aten.convolution_backward(*arguments)[0]
        return moved

    def outputs_first(self, per_output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return one number per output channel, shape (K,), laid out to multiply the weights."""
        if self.transposed:
            return per_output.view(1, -1, *[1] * (weight.ndim - 2))
        return per_output.view(-1, *[1] * (weight.ndim - 1))

    def is_small(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        """Return whether the map is quicker as a matrix.

        Where the input has no more positions than the kernel has taps, and at most four, convolution routines spend
        most of their time on padding.
        """
        if self.stride is None or self.groups != 1 or self.transposed:
            return False
        return math.prod(x.shape[2:]) <= min(weight[0, 0].numel(), MOST_POSITIONS)

    def matrix(self, weight: torch.Tensor, places: torch.Size) -> tuple[torch.Tensor, torch.Size]:
        """Return the map as a matrix, (positions * C_in, positions * C_out), and the output's sizes.

        Which of the kernel's taps leads from one position to another is read off a convolution of single pixels with
        a kernel that holds the taps' numbers; 0 is no tap.
        """
        sizes, device, dtype = weight.shape[2:], weight.device, weight.dtype
        numbers = torch.arange(1.0, 1 + math.prod(sizes), device=device, dtype=dtype).view(1, 1, *sizes)
        pixels = torch.eye(math.prod(places), device=device, dtype=dtype).view(-1, 1, *places)
        taps = self(pixels, numbers)
        flat = nn.functional.pad(weight.flatten(2), (1, 0))
        blocks = flat[:, :, taps.round().long().flatten(1)]  # (C_out, C_in, positions in, positions out)
        return blocks.permute(2, 1, 3, 0).flatten(2).flatten(0, 1), taps.shape[2:]


@dataclass
class Weights:
    """The weights and bias of one map as data-independent tensors, and what rules derive from them, kept for a run."""

    map: LinearMap
    weight: torch.Tensor
    bias: torch.Tensor | None
    lasting: bool = False  # whether they are parameters, the same in every batch
    derived: dict[Any, torch.Tensor] = field(default_factory=dict)
    matrices: dict[Any, tuple[torch.Tensor, torch.Size]] = field(default_factory=dict)

    def variant(self, name: Any, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return weights changed by `make`, computed once."""
        if name not in self.derived:
            self.derived[name] = make(self.weight)
        return self.derived[name]

    def offset(self, name: Any, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return the bias, zeros where there is none, changed by `make`, computed once."""
        key = ("offset", name)
        if key not in self.derived:
            outputs = self.weight.shape[1] * self.map.groups if self.map.transposed else len(self.weight)
            self.derived[key] = make(self.weight.new_zeros(outputs) if self.bias is None else self.bias)
        return self.derived[key]

    def run(self, name: Any, weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Apply the map with one of its variants."""
        if not self.map.is_small(x, weight):
            return self.map(x, weight, bias)
        matrix, places = self._matrix(name, weight, x)
        output = _channels_last(len(x), len(weight), places, x)
        if bias is None:
            torch.mm(_row(x), matrix, out=_row(output))
        else:
            torch.addmm(bias.repeat(math.prod(places)), _row(x), matrix, out=_row(output))
        return output

    def back(self, name: Any, weight: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Apply the transposed map with one of its variants."""
        if not self.map.is_small(x, weight):
            return self.map.transpose(y, x, weight)
        rows = _row(y) @ self._matrix(name, weight, x)[0].T
        return rows.view(len(rows), *x.shape[2:], -1).movedim(-1, 1)

    def _matrix(self, name: Any, weight: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Size]:
        key = (name, x.shape[2:])
        if key not in self.matrices:
            self.matrices[key] = self.map.matrix(weight, x.shape[2:])
        return self.matrices[key]


def _row(x: torch.Tensor) -> torch.Tensor:
    """Lay (n, C, ...) out as (n, positions * C): a view, if x is channels-last."""
    return x.movedim(1, -1).flatten(1)


def _channels_last(n: int, channels: int, places: torch.Size, like: torch.Tensor) -> torch.Tensor:
    """Return an empty (n, channels, ...) tensor, channels-last, which is no view: it may be changed in place."""
    strides = [channels] * len(places)
    for axis in range(len(places) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * places[axis + 1]
    whole = (channels * math.prod(places), 1, *strides)
    return torch.empty_strided((n, channels, *places), whole, dtype=like.dtype, device=like.device)


def output_shape(linear_map: LinearMap, output: torch.Tensor) -> tuple[int, ...]:
    """Return the shape in which one number per output channel meets an output."""
    if linear_map.stride is None:
        return (1,) * (output.ndim - 1) + (-1,)
    return (1, -1) + (1,) * (output.ndim - 2)


def held_by(linear_map: LinearMap, g: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
    """Return the relevance of one constant per output channel, summed over positions and channels, images first."""
    if linear_map.stride is not None and g.ndim > 2:
        g = g.flatten(2).sum(dim=2)
    return g @ constant


def none_negative(x: torch.Tensor) -> bool:
    """Return whether no entry is negative; false where `x` holds NaN. A mark that a ReLU left is believed."""
    if getattr(x, "_exmap_positive", None) == x._version:
        return True
    return bool(x.amin() >= 0) if x.numel() else True


def blocks(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the same parts of tensors of one shape, small enough that work on them stays in the processor's cache."""
    rows = len(tensors[0])
    step = max(1, BLOCK * rows // max(1, tensors[0].numel()))
    for start in range(0, rows, step):
        yield tuple(tensor[start : start + step] for tensor in tensors)
