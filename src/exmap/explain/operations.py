"""Operations as they come to the engine: their names, their operands, and torch's own functions in the open."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from exmap.explain.rules.table import depends

__all__ = ["Call", "data_of", "marked_attribute", "of_each_entry", "operation_name", "visible"]


@dataclass
class Call:
    """One operation as it is about to run.

    Attributes
    ----------
    function : callable
    name : str
        The operation's own name: ``add`` for ``a + b``, ``a += b``, ``torch.add`` and ``Tensor.add_``.
    args, kwargs
        As given.
    in_place : bool
        Whether the first argument is overwritten, as far as the name tells.
    data : list of Tensor
        Operands that depend on the input.
    """

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_place: bool
    data: list[torch.Tensor]

    def run(self) -> Any:
        """Run the operation as it is."""
        return self.function(*self.args, **self.kwargs)

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        """Return the call with operands that depend on the input changed."""
        mapping = {id(operand): change(operand) for operand in self.data}
        args = tuple(_replaced(value, mapping) for value in self.args)
        kwargs = {key: _replaced(value, mapping) for key, value in self.kwargs.items()}
        return Call(self.function, self.name, args, kwargs, self.in_place, list(mapping.values()))

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


def _replaced(value: Any, mapping: Mapping[int, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return mapping.get(id(value), value)
    if isinstance(value, (list, tuple)) and any(isinstance(item, torch.Tensor) for item in value):
        return type(value)([_replaced(item, mapping) for item in value])
    return value


def data_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Return the operands of a call that depend on the input."""
    found = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            if depends(value):
                found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(item for item in value if depends(item))
    return found


@cache
def operation_name(function: Callable[..., Any]) -> tuple[str, bool]:
    """Return an operation's own name, and whether it overwrites its first argument.

    Examples
    --------
    >>> operation_name(torch.Tensor.add_), operation_name(torch.Tensor.__rsub__)
    (('add', True), ('rsub', False))
    """
    name = getattr(function, "__name__", type(function).__name__)
    if name.startswith("__") and name.endswith("__"):
        bare = name.strip("_")
        if bare.startswith("i") and bare[1:] in ("add", "sub", "mul", "div", "truediv", "pow", "matmul"):
            return bare[1:].replace("truediv", "div"), True
        return bare.replace("truediv", "div"), bare == "setitem"
    return name.strip("_"), name.endswith("_")


def marked_attribute(value: Any, owner: Any) -> Any:
    """Return an attribute's value, such as that of `x.mT`, with the marks of the tensor it is a view of."""
    if depends(value) and isinstance(owner, torch.Tensor):
        for mark in ("_exmap_held", "_exmap_seen"):
            if hasattr(owner, mark):
                setattr(value, mark, getattr(owner, mark))
    return value


@cache
def visible(function: Any) -> Callable[..., Any] | None:
    """Return a Python function of torch's with its operations in the open, or None if it is not one.

    Such functions begin by handing themselves over whole; this copy of the function does not.
    """
    function = getattr(function, "__wrapped__", function)
    if not isinstance(function, types.FunctionType) or not function.__module__.startswith("torch."):
        return None
    never = {name: lambda *_: False for name in function.__globals__ if name.startswith("has_torch_function")}
    opened = types.FunctionType(
        function.__code__,
        {**function.__globals__, **never},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


def of_each_entry(call: Call) -> bool:
    """Return whether a function of one tensor does the same to each entry, whatever the others are and where it is."""
    if len(call.data) != 1 or any(isinstance(v, torch.Tensor) and v is not call.data[0] for v in call.args):
        return False
    x = call.data[0].detach()
    changed = x.clone().flatten()
    changed[::2] += 1 + changed[::2].abs()
    with torch.no_grad():
        there = call.mapped(lambda _: x).run()
        if not isinstance(there, torch.Tensor) or there.shape != x.shape or x.numel() < 4:
            return False
        reverse = call.mapped(lambda _: x.flatten().flip(0).view(x.shape)).run()
        beside = call.mapped(lambda _: changed.view(x.shape)).run()
    near = partial(torch.allclose, rtol=1e-4, atol=1e-6, equal_nan=True)
    return near(there.flatten().flip(0), reverse.flatten()) and near(there.flatten()[1::2], beside.flatten()[1::2])
