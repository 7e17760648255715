"""Normalisation: statistics are held, the mean's subtraction and the affine part are linear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from exmap.explain.rules.activations import absorbed
from exmap.explain.rules.linear import merged
from exmap.explain.rules.table import other_call, rule

if TYPE_CHECKING:
    from exmap.explain.engine import Call, Engine

__all__ = []


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> torch.Tensor:
        output, _, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(rstd, *([] if weight is None else [weight]))
        ctx.dims = tuple(range(-len(shape), 0))
        return output

    @staticmethod
    def backward(ctx: Any, *upper: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rstd, *weight = ctx.saved_tensors
        g = upper[0] * weight[0] if weight else upper[0]
        return (g - g.mean(dim=ctx.dims, keepdim=True)) * rstd.to(g.dtype), None, None, None, None


@rule("statistics held", "layer_norm")
def _layer_norm(call: Call, engine: Engine) -> Any:
    """Normalise over the last dimensions."""
    if len(call.data) != 1 or call.data[0] is not call.args[0]:
        return absorbed(call, engine)
    shape, weight, bias, eps = (
        call.argument(i, key, default)
        for i, (key, default) in enumerate(
            [("normalized_shape", None), ("weight", None), ("bias", None), ("eps", 1e-5)], start=1
        )
    )
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    output: torch.Tensor = _LayerNorm.apply(call.args[0], shape, weight, bias, eps)
    if bias is not None:
        engine.note(output, bias)
    return output


@rule("statistics held", "rms_norm")
def _rms_norm(call: Call, engine: Engine) -> Any:
    """Divide by the root mean square over the last dimensions."""
    x, shape = call.args[0], call.argument(1, "normalized_shape")
    weight, eps = call.argument(2, "weight"), call.argument(3, "eps")
    dims = tuple(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scale = x.detach().pow(2).mean(dim=dims, keepdim=True).add(eps).rsqrt()
    return x * (scale if weight is None else scale * weight)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, groups: int, weight: Any, bias: Any, eps: float) -> torch.Tensor:
        n, channels = x.shape[:2]
        places = x[0, 0].numel()
        output, _, rstd = torch.native_group_norm(x.contiguous(), weight, bias, n, channels, places, groups, eps)
        ctx.save_for_backward(rstd, *([] if weight is None else [weight]))
        ctx.groups = groups
        return output

    @staticmethod
    def backward(ctx: Any, *upper: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rstd, *weight = ctx.saved_tensors
        g = upper[0]
        if weight:
            g = g * weight[0].view(1, -1, *[1] * (g.ndim - 2))
        parted = g.reshape(len(g), ctx.groups, -1)
        parted = (parted - parted.mean(dim=2, keepdim=True)) * rstd.view(len(g), ctx.groups, 1)
        return parted.reshape(g.shape), None, None, None, None


@rule("statistics held", "group_norm")
def _group_norm(call: Call, engine: Engine) -> Any:
    """Normalise over groups of channels."""
    groups = call.argument(1, "num_groups")
    weight, bias = call.argument(2, "weight"), call.argument(3, "bias")
    return _grouped(call.args[0], groups, weight, bias, call.argument(4, "eps", 1e-5), engine)


def _grouped(x: torch.Tensor, groups: int, weight: Any, bias: Any, eps: float, engine: Engine) -> torch.Tensor:
    output: torch.Tensor = _GroupNorm.apply(x, groups, weight, bias, eps)
    if bias is not None:
        engine.note(output, bias.view(1, -1, *[1] * (output.ndim - 2)))
    return output


_NORM = ("running_mean", "running_var", "weight", "bias")


@rule("statistics held", "instance_norm")
def _instance_norm(call: Call, engine: Engine) -> Any:
    """Normalise each channel of each image, or by running statistics."""
    mean, var, weight, bias = (call.argument(i, key) for i, key in enumerate(_NORM, start=1))
    eps = call.argument(7, "eps", 1e-5)
    if call.argument(5, "use_input_stats", True):
        return _grouped(call.args[0], call.args[0].shape[1], weight, bias, eps, engine)
    return _affine(call, (mean, var, weight, bias), eps, engine)


@rule("affine map", "batch_norm")
def _batch_norm(call: Call, engine: Engine) -> Any:
    """Scale by running statistics; where a linear map with a rule of its own made the input, both are one map."""
    call = _usual_order(call)
    mean, var, weight, bias = (call.argument(i, key) for i, key in enumerate(_NORM, start=1))
    eps = call.argument(7, "eps", 1e-5)
    if call.argument(5, "training", False) or mean is None:
        return _by_batch(call, weight, bias, eps, engine)
    return _affine(call, (mean, var, weight, bias), eps, engine)


def _usual_order(call: Call) -> Call:
    """Return the call of torch.batch_norm as that of torch.nn.functional's, which has another order."""
    if call.function is not torch.batch_norm:
        return call
    x, weight, bias, mean, var, training, momentum, eps = call.args[:8]
    return other_call(
        call, torch.nn.functional.batch_norm, call.name, x, mean, var, weight, bias, training, momentum, eps
    )


def _affine(call: Call, parts: tuple[Any, ...], eps: float, engine: Engine) -> Any:
    x = call.args[0]
    if (output := merged(call, x, parts, eps, engine)) is not None:
        return output
    mean, var, weight, bias = parts
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    offset = -mean * scale if bias is None else bias - mean * scale
    scaled: torch.Tensor = _Scaled.apply(x, call.mapped(torch.Tensor.detach).run, scale.view(shape))
    engine.note(scaled, offset.view(shape))
    return scaled


class _Scaled(torch.autograd.Function):
    """An operation that is a scaling; torch 2.15's own gradient of it is wrong for one image with g in some layouts."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, run: Any, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(scale)
        output: torch.Tensor = run()
        return output

    @staticmethod
    def backward(ctx: Any, *upper: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return upper[0] * ctx.saved_tensors[0], None, None


def _by_batch(call: Call, weight: Any, bias: Any, eps: float, engine: Engine) -> Any:
    """Normalise by the batch's own statistics: held, too, but an image's map then depends on its batch."""
    x = call.args[0]
    dims = [0, *range(2, x.ndim)]
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = (x.detach().var(dim=dims, unbiased=False, keepdim=True) + eps).rsqrt()
    output = (x - x.mean(dim=dims, keepdim=True)) * (scale if weight is None else scale * weight.view(shape))
    if bias is None:
        return output
    output = output + bias.view(shape)
    engine.note(output, bias.view(shape))
    return output
