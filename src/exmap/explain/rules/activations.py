"""Functions of each entry, gates and statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from exmap.explain.rules.table import RULES, Rule, depends, hold, is_held, on_the_way_back, rule

if TYPE_CHECKING:
    from exmap.explain.engine import Call, Engine

__all__ = ["OWN_FUNCTION", "absorbed", "elementwise", "gate"]

_ACTIVATIONS = (
    "threshold gelu silu hardswish relu6 hardtanh tanh elu selu celu mish softsign tanhshrink hardshrink softshrink "
    "clamp clamp_min clamp_max clip square erfinv sin sinh asin asinh arcsin arcsinh atan arctan "
    "atanh arctanh tan expm1 log1p i0 logit sinc digamma lgamma float_power cos cosh acos"
)
_GATES = (
    "erf special_erf erfc sigmoid hardsigmoid expit special_expit exp exp2 softplus logsigmoid log_sigmoid "
    "log log2 log10 sqrt rsqrt reciprocal rpow"
)
_ENDS = ("sigmoid", "expit", "special_expit")  # of one logit or several
_CUTS = ("relu6", "hardtanh", "clamp", "clip")  # of a shifted tensor they are gates, as in relu6(x + 3) / 6
_SATURATING = ("tanh", "elu")  # plus a number they are gates, as in x (1 + tanh(x)); see `sum_of`


@rule("passed on", _ACTIVATIONS)
def elementwise(call: Call, engine: Engine) -> Any:
    """Pass relevance on through a function of each entry: f(x) = f(0) + x (f(x) - f(0)) / x, where f(0) is constant."""
    if len(call.data) > 1:
        return RULES["maximum" if call.name in _CUTS or call.name in ("clamp_min", "clamp_max") else "mul"].run(
            call, engine
        )
    operand = call.data[0]
    gated = call.name in _CUTS and hasattr(operand, "_exmap_shifted")
    output = hold(_passed(call, engine), is_held(operand) or gated)
    if call.name in _SATURATING:
        output._exmap_saturating = True
    return output


OWN_FUNCTION = Rule("passed on (a function of each entry)", elementwise)


@rule("held in products, else passed on", _GATES)
def gate(call: Call, engine: Engine) -> Any:
    """Pass relevance on as an activation does, and mark the output as held."""
    logit = call.data[0].clone() if call.in_place and call.name in _ENDS else call.data[0]
    output = hold(_passed(call, engine), True)
    before = getattr(call.data[0], "_exmap_before", logit if call.name in _ENDS else None)
    if before is not None:  # a probability, or its logarithm, that may end the model
        output._exmap_before = before
    return output


def _passed(call: Call, engine: Engine) -> Any:
    x = call.data[0]
    position = next((i for i, value in enumerate(call.args) if value is x), None)
    writes = call.in_place or call.kwargs.get("inplace", False) or any(value is True for value in call.args)

    def function(values: torch.Tensor) -> Any:
        args = tuple(values if i == position else value for i, value in enumerate(call.args))
        kwargs = {key: values if value is x else value for key, value in call.kwargs.items()}
        return call.function(*args, **kwargs)

    with torch.no_grad():
        whole = _has_tensor(call, x) or call.name not in RULES  # a function that may need the shape
        start = function(torch.zeros_like(x) if whole else x.new_zeros(()))
    if not bool(torch.isfinite(start).all()):
        return absorbed(call, engine)
    starts_at_zero = not bool(start.any())
    output: Any = _Passed.apply(x, function, writes, None if starts_at_zero else start)
    if not starts_at_zero:
        engine.note(output, start if start.ndim == 0 else start.expand_as(output))
    if writes:
        x.copy_(output)
        return x
    return output


def _has_tensor(call: Call, x: torch.Tensor) -> bool:
    values = (*call.args, *call.kwargs.values())
    return any(isinstance(value, torch.Tensor) and value is not x and value.ndim > 0 for value in values)


class _Passed(torch.autograd.Function):
    """y = f(x), backward g (f(x) - f(0)) / x; near zero, where that subtracts equal numbers, the slope there."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, function: Any, writes: bool, start: torch.Tensor | None) -> torch.Tensor:
        values = x.detach()
        y: torch.Tensor = function(values.clone() if writes else values)
        if start is None:
            ratio = torch.where(values == 0, 0.0, y / values)
        else:
            near = torch.finfo(x.dtype).eps ** 0.5
            step = values.new_full((), near)
            wide = (
                [function(sign * step.expand_as(values).clone()) for sign in (1, -1)]
                if start.ndim
                else [function(sign * step) for sign in (1, -1)]
            )
            slope = (wide[0] - wide[1]) / (2 * near)
            ratio = torch.where(values.abs() < near, slope, (y - start) / torch.where(values == 0, 1.0, values))
        ctx.save_for_backward(ratio)
        return y

    @staticmethod
    def backward(ctx: Any, *upper: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return upper[0] * ctx.saved_tensors[0], None, None, None


def absorbed(call: Call, engine: Engine) -> Any:
    """Run an operation whose gradient does not keep relevance; what the gradient leaves is counted as a constant's."""
    spare = call.mapped(lambda operand: operand.detach().clone())  # the model may overwrite them
    if call.in_place and isinstance(call.args[0], torch.Tensor) and not depends(call.args[0]):
        spare.args = (call.args[0].clone(), *spare.args[1:])
    output = call.run()
    place = engine.place()
    if place is None or not isinstance(output, torch.Tensor) or not output.requires_grad:
        return output
    count_left = place

    def left(g: torch.Tensor) -> None:
        with torch.enable_grad(), torch._C.DisableTorchFunction():
            fresh = {id(operand): operand.detach().clone().requires_grad_() for operand in spare.data}
            again = spare.mapped(lambda operand: fresh[id(operand)])
            inputs = list(fresh.values())
            y = again.mapped(torch.Tensor.clone).run() if call.in_place else again.run()
            back = torch.autograd.grad(y, inputs, g, allow_unused=True)
        count_left(g * y.detach())
        for operand, gradient in zip(inputs, back, strict=True):
            if gradient is not None:
                count_left(-gradient * operand.detach())

    on_the_way_back(output, left)
    return output


@rule("held in products, else gradient", "std norm vector_norm linalg_norm linalg_vector_norm renorm logsumexp cdist")
def _statistic(call: Call, engine: Engine) -> Any:
    """Run a statistic: held in products."""
    if call.name in ("logsumexp", "cdist"):
        return hold(absorbed(call, engine), True)
    return hold(call.run(), True)


@rule("held in products, else halved", "var")
def _variance(call: Call, engine: Engine) -> Any:
    """Run a sum of squares, of degree two: half its gradient keeps relevance."""
    output = call.run()
    if output.requires_grad:
        on_the_way_back(output, lambda g: g / 2)
    return hold(output, True)


@rule("variance held, mean a gradient", "var_mean std_mean")
def _variance_and_mean(call: Call, engine: Engine) -> Any:
    spread, mean = call.run()
    if call.name == "var_mean" and spread.requires_grad:
        on_the_way_back(spread, lambda g: g / 2)
    return hold(spread, True), mean
