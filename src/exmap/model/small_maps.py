"""Convolutions with few output positions are matrix products: compute them as such.

The last blocks of a residual network work on maps of 1 x 1 to 2 x 2 when images are small (28 pixels under an ImageNet
stem). Of a 3 x 3 kernel with padding 1 little more than the centre meets data there; much of the work, and of the
gradient, is zeros, and convolution routines are slow at that. On maps of 2 x 1 they can even be wrong: torch 2.15's
bfloat16 convolution with stride 2 reads beyond its input there on some processors. Inside
:func:`small_maps_as_products` such convolutions multiply, position by position, the part of the image and the part of
the kernel that meet. Output and gradients are the same up to rounding; the gradient of the weights that meet only
padding is exactly zero, as before, so weight decay treats them as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

__all__ = ["small_maps_as_products"]

MOST_POSITIONS = 8  # beyond, convolution routines are as quick


@contextmanager
def small_maps_as_products(model: nn.Module, but: str | None = None) -> Iterator[None]:
    """Let the model's plain 2-d convolutions take the short way inside the block, where their input allows it.

    The module of the name `but` and all inside it stay as they are.
    """
    left = {id(m) for name, m in model.named_modules() if but is not None and f"{name}.".startswith(f"{but}.")}
    changed = [
        module
        for module in model.modules()
        if type(module) is nn.Conv2d
        and id(module) not in left
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.dilation == (1, 1)
        and module.groups == 1
        and "_conv_forward" not in vars(module)
    ]
    for module in changed:
        module._conv_forward = partial(_forward, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module._conv_forward


def _forward(conv: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    padding: Any = conv.padding  # numbers: those given as words were left out above
    along = [
        _meetings(size, kernel, stride, pad)
        for size, kernel, stride, pad in zip(x.shape[-2:], conv.kernel_size, conv.stride, padding, strict=True)
    ]
    few = 0 < len(along[0]) * len(along[1]) <= MOST_POSITIONS
    if x.ndim != 4 or not few or not all(first < last for first, last, _ in (*along[0], *along[1])):
        ordinary: torch.Tensor = nn.Conv2d._conv_forward(conv, x, weight, bias)
        return ordinary
    output: torch.Tensor = _Product.apply(x, weight, along)
    return output if bias is None else output + bias[:, None, None].to(output.dtype)


def _meetings(size: int, kernel: int, stride: int, padding: int) -> list[tuple[int, int, int]]:
    """Return, per output position along one side, what of the kernel meets data: first tap, last + 1, first pixel."""
    starts = range(-padding, size + padding - kernel + 1, stride)
    return [(max(0, -start), min(kernel, size - start), max(0, start)) for start in starts]


class _Product(torch.autograd.Function):
    """For each output position, the product of one window of x with the part of the weight that it meets.

    Slicing the weight under autograd would do the same, but its backward pass makes the surrounding zeros in another
    memory layout than the parameter's, and every later use of that gradient then pays for a conversion.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, along: Any) -> torch.Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        ctx.along, ctx.dtypes, ctx.computed_in = along, (x.dtype, weight.dtype), dtype
        ctx.save_for_backward(x, weight)  # as given: only these have a second derivative
        x, weight = x.to(dtype), weight.to(dtype)
        output = x.new_empty(len(x), len(weight), len(along[0]), len(along[1]))
        output = output.contiguous(memory_format=torch.channels_last)
        for place, taps, pixels in _positions(along):
            output[place] = _rows(x[pixels]) @ _rows(weight[taps]).T
        return output

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = (saved.to(ctx.computed_in) for saved in ctx.saved_tensors)
        back, moved = (
            torch.zeros_like(tensor, dtype=dtype) if needed else None
            for tensor, dtype, needed in zip((x, weight), ctx.dtypes, ctx.needs_input_grad[:2], strict=True)
        )
        for place, taps, pixels in _positions(ctx.along):
            upper = grads[0][place].to(x.dtype)
            if back is not None:
                _add(back, pixels, upper @ _rows(weight[taps]))
            if moved is not None:
                _add(moved, taps, upper.T @ _rows(x[pixels]))
        return back, moved, None


def _positions(along: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield, per output position, where it lies in the output, the weight's taps and the image's pixels."""
    for i, (top, bottom, row) in enumerate(along[0]):
        for j, (left, right, column) in enumerate(along[1]):
            pixels = (..., slice(row, row + bottom - top), slice(column, column + right - left))
            yield (..., i, j), (..., slice(top, bottom), slice(left, right)), pixels


def _rows(block: torch.Tensor) -> torch.Tensor:
    """Lay a block (n, C, h, w) out as a matrix (n, h * w * C): a view, if it is channels-last."""
    return block.permute(0, 2, 3, 1).flatten(1)


def _add(to: torch.Tensor, place: Any, rows: torch.Tensor) -> None:
    """Add a matrix of :func:`_rows` back to its place."""
    n, c, h, w = to[place].shape
    to[place] += rows.view(n, h, w, c).permute(0, 3, 1, 2)
