"""Products and quotients of tensors that both depend on the input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from exmap.explain.rules.activations import absorbed, elementwise
from exmap.explain.rules.gradients import as_it_is
from exmap.explain.rules.linear import product_with_weights
from exmap.explain.rules.sums import sum_of
from exmap.explain.rules.table import (
    depends,
    hold,
    is_held,
    on_the_way_back,
    other_call,
    rule,
    run_other,
    unmarked,
)

if TYPE_CHECKING:
    from exmap.explain.engine import Call, Engine

__all__ = ["product"]

_PRODUCTS = (
    "mul multiply matmul mm bmm mv dot vdot inner outer ger kron einsum tensordot multi_dot chain_matmul linalg_matmul"
)


@rule("shared equally; held factors take none", _PRODUCTS)
def product(call: Call, engine: Engine) -> Any:
    """Share relevance equally between factors of data, except those that are held."""
    data = call.data
    if len(data) == 1 and not _is_twice(call, data[0]):
        if call.name in ("matmul", "mm") and (mapped := product_with_weights(call, engine)) is not None:
            return mapped
        return as_it_is(call, engine)
    held = [is_held(operand) for operand in data]
    if any(held) and not all(held):
        return _without_held(call)
    count = max(len(data), 2)
    output = call.run()
    on_the_way_back(output, lambda g: g / count)
    return hold(output, True) if all(held) else unmarked(output, call)


def _is_twice(call: Call, operand: torch.Tensor) -> bool:
    return sum(value is operand for value in (*call.args, *call.kwargs.values())) > 1


def _without_held(call: Call) -> Any:
    target = call.args[0]
    if call.in_place and is_held(target):  # the result goes where the gate was
        spare = call.mapped(lambda operand: operand.detach().clone() if is_held(operand) else operand)
        target.copy_(spare.run())
        return hold(target, False)
    return call.mapped(lambda operand: operand.detach() if is_held(operand) else operand).run()


@rule("gradient to the dividend", "div divide true_divide rdiv rtruediv")
def _quotient(call: Call, engine: Engine) -> Any:
    """Divide: a divisor that depends on the input is held."""
    if call.kwargs.get("rounding_mode") is not None:
        return call.run().detach()
    reverse = call.name.startswith("r")
    divisor = call.args[0] if reverse else call.argument(1, "other")
    dividend = call.argument(1, "other") if reverse else call.args[0]
    if not depends(divisor):
        return as_it_is(call, engine)
    if not depends(dividend):
        return hold(absorbed(call, engine), True)
    held = is_held(dividend)
    if dividend is divisor:
        return call.run().detach()
    marks = {id(divisor): divisor.detach()}
    output = call.mapped(lambda operand: marks.get(id(operand), operand)).run()
    return hold(output, held) if held or call.in_place else output


@rule("passed on", "pow")
def _power(call: Call, engine: Engine) -> Any:
    """Raise to a power: held where the power is negative or a fraction, as in a norm."""
    base, exponent = call.args[0], call.argument(1, "exponent")
    if depends(exponent):
        return hold(absorbed(call, engine), True)
    output = elementwise(call, engine) if depends(base) else hold(absorbed(call, engine), True)
    fraction = isinstance(exponent, (int, float)) and exponent < 1
    return hold(output, True) if fraction or is_held(base) else output


@rule("gated half of the channels", "glu")
def _glu(call: Call, engine: Engine) -> Any:
    """Gate one half of the channels by the other, whose sigmoid is held."""
    x, dim = call.args[0], call.argument(1, "dim", -1)
    signal, gating = x.chunk(2, dim)
    return signal * torch.sigmoid(gating.detach())


@rule("sum plus product", "addmm addbmm baddbmm bilinear")
def _sum_of_products(call: Call, engine: Engine) -> Any:
    """Add a product: the sum keeps its gradient, the product is shared as any other."""
    if call.name == "bilinear":
        left, right, weight = call.args[:3]
        bias = call.argument(3, "bias")
        outer = product(other_call(call, torch.einsum, "einsum", "...i,oij,...j->...o", left, weight, right), engine)
        return outer if bias is None else sum_of(other_call(call, torch.add, "add", outer, bias), engine)
    start, one, other = (call.argument(i, key) for i, key in enumerate(_NAMES[call.name]))
    beta, alpha = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1)
    if call.in_place or len(call.args) > 3:
        return as_it_is(call, engine)
    inner = torch.matmul if call.name != "addbmm" else torch.bmm
    made = run_other(call, inner, "matmul", engine, one, other)
    made = made.sum(dim=0) if call.name == "addbmm" else made
    made = made if alpha == 1 else made * alpha
    start = start if beta == 1 else start * beta
    return made if beta == 0 else run_other(call, torch.add, "add", engine, start, made)


_NAMES = {
    "addmm": ("input", "mat1", "mat2"),
    "addbmm": ("input", "batch1", "batch2"),
    "baddbmm": ("input", "batch1", "batch2"),
}


@rule("detached", "sign sgn round floor ceil trunc fix frac heaviside argmax argmin floor_divide bucketize")
def _detached(call: Call, engine: Engine) -> Any:
    """Run an operation without a useful gradient: what comes of it is a constant."""
    if not call.in_place:
        return call.mapped(torch.Tensor.detach).run()
    target = call.args[0]
    target.copy_(call.mapped(lambda operand: operand.detach().clone()).run())
    engine.note(target, target.detach().clone())
    return target


@rule("sum plus product", "addcmul addcdiv lerp")
def _composed(call: Call, engine: Engine) -> Any:
    """Add a product or quotient, or go from one to another by a weight: by the rules of each operation."""
    one, other, third = call.args[0], call.argument(1, "tensor1"), call.argument(2, "tensor2")
    if call.name == "lerp":
        other, weight = call.argument(1, "end"), call.argument(2, "weight")
        step = run_other(call, torch.sub, "sub", engine, other, one)
        made = run_other(call, torch.mul, "mul", engine, step, weight)
    else:
        function, name = (torch.mul, "mul") if call.name == "addcmul" else (torch.div, "div")
        made = run_other(call, function, name, engine, other, third) * call.kwargs.get("value", 1)
    output = run_other(call, torch.add, "add", engine, one, made)
    return one.copy_(output) if call.in_place else output


@rule("gradient, constants counted", "remainder fmod frac")
def _remainder(call: Call, engine: Engine) -> Any:
    """Take away whole multiples, which are constants."""
    x = call.args[0]
    if len(call.data) > 1 or call.data[0] is not x:
        return absorbed(call, engine)
    before = x.detach().clone()
    output = call.run()
    engine.note(output, output.detach() - before)
    return output


@rule("gradient, places held", "grid_sample affine_grid")
def _sampled(call: Call, engine: Engine) -> Any:
    """Sample at places that may depend on the input, too: these are held."""
    return call.mapped(lambda operand: operand if operand is call.args[0] else operand.detach()).run()
