"""Sums, and other operations that put data and constants together: each constant's relevance is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from exmap.explain.rules.table import all_held, hold, is_held, rule, unmarked

if TYPE_CHECKING:
    from exmap.explain.engine import Call, Engine

__all__ = ["sum_of"]


@rule("gradient, constants counted", "add sub subtract rsub")
def sum_of(call: Call, engine: Engine) -> Any:
    """Add or subtract: each term has its own relevance, numbers and parameters too."""
    if len(call.data) > 1:
        output = call.run()
        return hold(output, True) if all_held(call) else unmarked(output, call)
    operand = call.data[0]
    first = operand is call.args[0]
    constant = call.argument(1, "other") if first else call.args[0]
    if call.in_place and not first:
        constant = constant.clone()  # it is overwritten
    output = call.run()
    if constant is operand:  # a tensor and itself
        return output
    scale = call.kwargs.get("alpha", 1) if first and call.name != "rsub" else 1
    subtracted = call.name in ("sub", "subtract") and first
    engine.note(output, -constant * scale if subtracted else constant * scale)
    if isinstance(constant, (int, float)) and constant and not call.in_place:
        output._exmap_shifted = True
        if hasattr(operand, "_exmap_saturating"):
            return hold(output, True)
    return hold(output, True) if is_held(operand) else unmarked(output, call)


_PLACED = (
    "cat concat concatenate stack hstack vstack dstack column_stack where masked_fill index_fill pad constant_pad_nd "
    "index_put index_copy index_add masked_scatter scatter scatter_add select_scatter slice_scatter "
    "copy fill fill_diagonal addmv addr nan_to_num"
)


@rule("gradient, constants counted", _PLACED)
def _placed(call: Call, engine: Engine) -> Any:
    """Run an operation that is a linear map of the data plus what it is for data of zeros, which is a constant's."""
    part = _constant_part(call) if engine.counting else None
    output = call.run()
    if part is not None and isinstance(output, torch.Tensor):
        engine.note(output, part)
    return hold(output, True) if all_held(call) else unmarked(output, call)


def _constant_part(call: Call) -> torch.Tensor | None:
    with torch.no_grad():
        zeroed = call.mapped(torch.zeros_like)
        if call.in_place and isinstance(call.args[0], torch.Tensor) and not call.args[0].requires_grad:
            zeroed.args = (call.args[0].clone(), *zeroed.args[1:])
        part = zeroed.run()
        part = zeroed.args[0] if part is None else part
        if not isinstance(part, torch.Tensor) or not part.is_floating_point():
            return None
        part = part.nan_to_num(0.0, 0.0, 0.0)
        return part if bool(part.any()) else None


@rule("gradient, constants counted", "setitem")
def _assigned(call: Call, engine: Engine) -> Any:
    """Write into a part of a tensor."""
    target = call.args[0]
    part = _constant_part(call) if engine.counting else None
    call.run()
    if part is not None:
        engine.note(target, part)
    hold(target, is_held(target) and all_held(call))
