"""Convolutions with a single output position are matrix products: compute them as such.

The last block of a residual network works on 1 x 1 maps when images are small (28 pixels under an ImageNet stem). Of
a 3 x 3 kernel with padding 1 only the centre meets data there; the rest of the work, and of the gradient, is zeros,
and convolution routines are slow at that. Inside :func:`small_maps_as_products` such convolutions multiply the part
of the image and the part of the kernel that meet. Output and gradients are the same up to rounding; the gradient of
the weights that meet padding is exactly zero, as before, so weight decay treats them as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

__all__ = ["small_maps_as_products"]


@contextmanager
def small_maps_as_products(model: nn.Module) -> Iterator[None]:
    """Let the model's plain 2-d convolutions take the short way inside the block, where their input allows it."""
    changed = [
        module
        for module in model.modules()
        if type(module) is nn.Conv2d
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
    taps, pixels = [], []
    padding_of: Any = conv.padding  # numbers: those given as words were left out above
    for size, kernel, stride, pad in zip(x.shape[-2:], conv.kernel_size, conv.stride, padding_of, strict=True):
        padding = int(pad)
        single = 0 <= size + 2 * padding - kernel < stride
        first, last = padding, min(kernel, padding + size)  # the kernel's positions that meet data
        if not single or x.ndim != 4 or first >= last:
            ordinary: torch.Tensor = nn.Conv2d._conv_forward(conv, x, weight, bias)
            return ordinary
        taps.append(slice(first, last))
        pixels.append(slice(first - padding, last - padding))
    output: torch.Tensor = _Product.apply(x, weight, (..., *taps), (..., *pixels))
    return output if bias is None else output + bias[:, None, None].to(output.dtype)


class _Product(torch.autograd.Function):
    """The product of one window of x with one part of the weight.

    Slicing the weight under autograd would do the same, but its backward pass makes the surrounding zeros in another
    memory layout than the parameter's, and every later use of that gradient then pays for a conversion.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, taps: Any, pixels: Any) -> torch.Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        window, part = _rows(x[pixels], dtype), _rows(weight[taps], dtype)
        ctx.save_for_backward(x, weight, window, part)
        ctx.taps, ctx.pixels = taps, pixels
        return (window @ part.T)[:, :, None, None]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, window, part = ctx.saved_tensors
        upper = grads[0].flatten(1).to(window.dtype)
        back = _whole(x, ctx.pixels, upper @ part) if ctx.needs_input_grad[0] else None
        moved = _whole(weight, ctx.taps, upper.T @ window) if ctx.needs_input_grad[1] else None
        return back, moved, None, None


def _rows(block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Lay a block (n, C, h, w) out as a matrix (n, h * w * C): a view, if it is channels-last."""
    return block.permute(0, 2, 3, 1).flatten(1).to(dtype)


def _whole(like: torch.Tensor, place: Any, rows: torch.Tensor) -> torch.Tensor:
    """Return zeros like a tensor, with a matrix of :func:`_rows` written back to its place."""
    whole = torch.zeros_like(like)
    n, c, h, w = whole[place].shape
    whole[place] = rows.view(n, h, w, c).permute(0, 3, 1, 2).to(whole.dtype)
    return whole
