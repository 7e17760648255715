"""Calls of convolutions and linear layers: their geometry, and the rule that the composite gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from exmap.explain.maps import Epsilon, LinearMap, MapRule, Weights, apply_rule
from exmap.explain.rules.activations import absorbed
from exmap.explain.rules.table import RULES, depends, hold, is_held, rule

if TYPE_CHECKING:
    from exmap.explain.engine import Call, Engine

__all__ = ["merged", "product_with_weights"]


@dataclass(frozen=True)
class _Made:
    """How a tensor came of a linear map, for a normalisation that may follow."""

    x: torch.Tensor
    weights: Weights
    rule: MapRule
    version: int


@rule("linear map", "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
def _convolution(call: Call, engine: Engine) -> Any:
    """Convolve, by the composite's rule for convolutions."""
    x, weight, bias = call.args[0], call.argument(1, "weight"), call.argument(2, "bias")
    if depends(weight):
        return _data_dependent(call, engine)
    chosen = _rule(engine, engine.composite.convolution)
    dims = weight.ndim - 2
    if isinstance(chosen, Epsilon) or x.ndim != weight.ndim:
        return _plain(call, engine, bias, dims if x.ndim == weight.ndim else None)
    transposed = call.name.startswith("conv_transpose")
    found = _geometry(call, dims, transposed, weight)
    if found is None:
        x = nn.functional.pad(x, _same_padding(call, weight))
        found = _geometry(call, dims, transposed, weight, padded=True)
        assert found is not None
    return _mapped(call, engine, x, _weights(engine, found, weight, bias), chosen)


@rule("linear map", "linear")
def _linear(call: Call, engine: Engine) -> Any:
    """Multiply by weights, by the composite's rule for linear layers."""
    x, weight, bias = call.args[0], call.argument(1, "weight"), call.argument(2, "bias")
    if depends(weight):
        return _data_dependent(call, engine)
    chosen = _rule(engine, engine.composite.linear)
    if isinstance(chosen, Epsilon) or weight.ndim != 2:
        output = call.run()
        if bias is not None:
            engine.note(output, bias)
        return hold(output, True) if is_held(x) else output
    return _mapped(call, engine, x, _weights(engine, LinearMap(), weight, bias), chosen)


def product_with_weights(call: Call, engine: Engine) -> torch.Tensor | None:
    """Return ``x @ W`` by the rule for linear layers, or None where that is the gradient or W is no matrix."""
    chosen = engine.composite.linear
    x, weight = call.args[0], call.argument(1, "other", call.kwargs.get("mat2"))
    if isinstance(chosen, Epsilon) or call.data[0] is not x or weight.ndim != 2 or is_held(x):
        return None
    return _mapped(call, engine, x, _weights(engine, LinearMap(), weight, None, turned=True), _rule(engine, chosen))


def _rule(engine: Engine, usual: MapRule) -> MapRule:
    first = engine.composite.first is not None and not engine.met_first
    engine.met_first = True
    return engine.composite.first if first and engine.composite.first is not None else usual


def _data_dependent(call: Call, engine: Engine) -> Any:
    """Multiply data by weights that depend on data, too."""
    bias = call.argument(2, "bias")
    if bias is None:
        return RULES["mul"].run(call, engine)
    return absorbed(call, engine)


def _plain(call: Call, engine: Engine, bias: torch.Tensor | None, dims: int | None) -> Any:
    output = call.run()
    if bias is not None:
        engine.note(output, bias.view(1, -1, *[1] * dims) if dims is not None else bias.view(-1, 1, 1))
    return hold(output, True) if is_held(call.args[0]) else output


def _mapped(call: Call, engine: Engine, x: torch.Tensor, weights: Weights, chosen: MapRule) -> torch.Tensor:
    """Run the call with a rule in place of its gradient."""
    expected = engine.kept.setdefault("normalised", set())
    late = id(weights) in expected
    values = x.detach()
    output = apply_rule(
        chosen,
        weights,
        x,
        lambda: weights.run("weight", weights.weight, values, weights.bias),
        engine.place(),
        late=late,
        deposit=engine.deposit if chosen is engine.composite.first else None,
    )
    if chosen.merges_normalisation and weights.map.stride is not None:
        output._exmap_made = _Made(x, weights, chosen, output._version)  # type: ignore[attr-defined]
    return output


def merged(call: Call, z: torch.Tensor, parts: tuple[Any, ...], eps: float, engine: Engine) -> torch.Tensor | None:
    """Return a normalisation by running statistics as one map with the convolution that made its input, or None."""
    made: _Made | None = getattr(z, "_exmap_made", None)
    if made is None or made.version != z._version or (made.weights.map.transposed and made.weights.map.groups > 1):
        return None
    mean, var, weight, bias = parts
    key = ("merged", id(made.weights), id(mean), id(weight))
    weights: Weights | None = engine.kept[key][0] if made.weights.lasting and key in engine.kept else None
    if weights is None:
        scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
        offset = -mean * scale if bias is None else bias - mean * scale
        if made.weights.bias is not None:
            offset = offset + made.weights.bias * scale
        whole = made.weights.weight * made.weights.map.outputs_first(scale, made.weights.weight)
        weights = Weights(made.weights.map, whole, offset)
    if made.weights.lasting:
        engine.kept[key] = (weights, made.weights, parts)  # all keep their identity
        engine.kept.setdefault("normalised", set()).add(id(made.weights))
    values = z.detach()
    arguments = (values, *call.args[1:])
    return apply_rule(
        made.rule,
        weights,
        made.x,
        lambda: call.function(*arguments, **call.kwargs),
        engine.place(),
        deposit=engine.deposit if made.rule is engine.composite.first else None,
    )


def _weights(
    engine: Engine, linear_map: LinearMap, weight: torch.Tensor, bias: torch.Tensor | None, *, turned: bool = False
) -> Weights:
    values = weight.detach().T if turned else weight.detach()
    made = Weights(linear_map, values, None if bias is None else bias.detach())
    if not isinstance(weight, nn.Parameter):  # computed for this call, as under weight normalisation
        return made
    key = ("weights", id(weight), id(bias), linear_map, turned)
    made.lasting = True
    found: Weights = engine.kept.setdefault(key, (made, weight, bias))[0]  # the parameters keep their identity
    return found


def _numbers(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 < dims else 1)


def _geometry(
    call: Call, dims: int, transposed: bool, weight: torch.Tensor, *, padded: bool = False
) -> LinearMap | None:
    """Return the geometry of a convolution; None where its padding is not the same on both sides."""
    stride = _numbers(call.argument(3, "stride", 1), dims)
    padding = 0 if padded else call.argument(4, "padding", 0)
    if transposed:
        added = _numbers(call.argument(5, "output_padding", 0), dims)
        groups, dilation = call.argument(6, "groups", 1), _numbers(call.argument(7, "dilation", 1), dims)
        return LinearMap(stride, _numbers(padding, dims), dilation, True, added, groups)
    dilation, groups = _numbers(call.argument(5, "dilation", 1), dims), call.argument(6, "groups", 1)
    if padding == "valid":
        padding = 0
    if padding == "same":
        both = [step * (taps - 1) for step, taps in zip(dilation, weight.shape[2:], strict=True)]
        if any(total % 2 for total in both):
            return None
        padding = tuple(total // 2 for total in both)
    return LinearMap(stride, _numbers(padding, dims), dilation, False, (0,) * dims, groups)


def _same_padding(call: Call, weight: torch.Tensor) -> list[int]:
    dilation = _numbers(call.argument(5, "dilation", 1), weight.ndim - 2)
    sides: list[int] = []
    for step, taps in reversed(list(zip(dilation, weight.shape[2:], strict=True))):
        total = step * (taps - 1)
        sides += [total // 2, total - total // 2]
    return sides
