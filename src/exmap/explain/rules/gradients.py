"""Operations whose gradient is the rule: whatever is a linear map of the data, or scales with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from exmap.explain.rules.activations import elementwise
from exmap.explain.rules.table import (
    Rule,
    all_held,
    hold,
    is_held,
    is_positive,
    mark_positive,
    on_the_way_back,
    rule,
    unmarked,
)

if TYPE_CHECKING:
    from exmap.explain.engine import Call, Engine

__all__ = ["UNKNOWN", "as_it_is", "rearranged"]

_VIEWS = (
    "view reshape view_as reshape_as permute transpose t swapaxes swapdims movedim moveaxis flatten unflatten squeeze "
    "unsqueeze expand expand_as broadcast_to contiguous clone to type float double half bfloat16 type_as cpu cuda "
    "narrow select getitem split split_with_sizes tensor_split chunk unbind roll flip fliplr flipud rot90 unfold "
    "as_strided detach_copy alias diagonal real imag view_as_real view_as_complex ravel atleast_1d atleast_2d "
    "atleast_3d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle tile repeat repeat_interleave "
    "adjoint mT T"
)
_AS_IT_IS = (
    "dropout feature_dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d native_dropout "
    "sum mean nansum nanmean cumsum diff trace neg negative positive conj resolve_conj resolve_neg "
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices "
    "adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices fractional_max_pool2d max_unpool2d "
    "amax amin aminmax cummax cummin topk sort msort kthvalue median nanmedian mode "
    "interpolate upsample upsample_nearest upsample_bilinear upsample_nearest2d upsample_bilinear2d upsample_bicubic2d "
    "fold col2im im2col gather index_select take take_along_dim masked_select "
    "leaky_relu prelu rrelu abs absolute fft rfft irfft ifft fft2 ifft2 rfft2 irfft2 fftn ifftn fftshift "
    "ifftshift complex tril triu diag diag_embed dist meshgrid combinations block_diag"
)


@rule("gradient", _AS_IT_IS)
def as_it_is(call: Call, engine: Engine) -> Any:
    """Run the operation: its gradient is the rule."""
    positive = call.name in _KEEP_SIGN and is_positive(call.data[0])
    output = call.run()
    if positive and isinstance(output, torch.Tensor):
        mark_positive(output)
    held = is_held(call.data[0]) if call.name in _SHAPED_BY else all_held(call)
    return hold(output, True) if held else unmarked(output, call)


@rule("rearranged", _VIEWS, views=True)
def rearranged(call: Call, engine: Engine) -> Any:
    """Rearrange: a probability that may end the model stays one."""
    output = as_it_is(call, engine)
    before = getattr(call.data[0], "_exmap_before", None)
    if before is not None and isinstance(output, torch.Tensor) and before.shape == call.data[0].shape:
        mapped = call.mapped(lambda operand: before if operand is call.data[0] else operand)
        output._exmap_before = mapped.run()  # type: ignore[attr-defined]
    return output


@rule("rearranged", "broadcast_tensors", views=True)
def _broadcast(call: Call, engine: Engine) -> Any:
    """Bring tensors to one shape: each keeps its mark."""
    operands = call.args[0] if isinstance(call.args[0], (list, tuple)) else call.args
    return tuple(hold(made, is_held(operand)) for made, operand in zip(call.run(), operands, strict=True))


_SHAPED_BY = ("expand_as", "view_as", "reshape_as", "type_as")


_SIGN_KEEPERS = (
    "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d flatten view reshape contiguous dropout mean"
)
_KEEP_SIGN = frozenset(_SIGN_KEEPERS.split())


UNKNOWN = Rule("gradient (no rule known)", as_it_is)


@rule("rearranged", "max min", views=False)
def _extreme(call: Call, engine: Engine) -> Any:
    """Select the largest: of a dimension, or of two tensors."""
    other = call.argument(1, "other")
    return _maximum(call, engine) if isinstance(other, torch.Tensor) else as_it_is(call, engine)


@rule("gradient", "maximum minimum fmax fmin")
def _maximum(call: Call, engine: Engine) -> Any:
    """Between two tensors of data the larger takes all; a constant takes its part where it is the larger."""
    return as_it_is(call, engine) if len(call.data) > 1 else elementwise(call, engine)


@rule("gradient", "relu")
def _relu(call: Call, engine: Engine) -> Any:
    """Cut what is negative; some composites change its gradient."""
    kind = engine.composite.relu
    if kind == "gradient":
        return mark_positive(as_it_is(call, engine))
    if kind == "guided":
        output = call.run()
        on_the_way_back(output, lambda g: g.clamp(min=0))
        return output
    x = call.args[0]
    output = _ChangedReLU.apply(x, kind)
    writes = call.in_place or bool(call.argument(1, "inplace", False))
    return x.copy_(output) if writes else output


class _ChangedReLU(torch.autograd.Function):
    """ReLU with the gradient of DeconvNet (Zeiler and Fergus, 2014) or a softplus (Dombrowski et al., 2019)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kind: str) -> torch.Tensor:
        ctx.kind = kind
        ctx.save_for_backward(torch.sigmoid(10 * x) if kind == "smooth" else x.new_empty(0))
        return x.relu()

    @staticmethod
    def backward(ctx: Any, *upper: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        g = upper[0]
        return g.clamp(min=0) if ctx.kind == "deconvnet" else g * ctx.saved_tensors[0], None
