"""What a model does with two images: every operation that torch shows, and every module that runs.

A :class:`Trace` is read backwards from the output, to find what made it. Operations inside scripted or compiled code
and in other libraries are not seen: their results have no maker.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.overrides import TorchFunctionMode

from exmap.errors import DataError
from exmap.model.classifier import check_module
from exmap.model.running import eager, evaluation_mode, model_input, run_model

__all__ = ["Call", "ModuleCall", "Site", "Trace", "Watch", "traced", "with_operand"]

NO_RESULT = {"shape", "dtype", "device", "size", "dim", "is_contiguous", "stride", "grad_fn", "requires_grad", "layout"}


@dataclass(frozen=True)
class Site:
    """Where in a forward pass an operation stands: by its name, the shape of its operand, and how many came before.

    The shape is that of one image. Operations of other shapes may be more or fewer from batch to batch.
    """

    name: str
    shape: tuple[int, ...]
    number: int
    operand: int  # which of the operation's tensors is the data


@dataclass(eq=False)
class Call:
    """One operation: what it was given, what it returned, and who made its tensors.

    Attributes
    ----------
    name : str
        Of the operation, as :func:`operation_name` gives it.
    operands : list of (Tensor, Call or None)
        The tensors it was given, each with the call that made it.
    data : list of int
        Which of the operands depend on the images.
    module : str
        Name of the innermost module that was running.
    counts : list of int
        For each operand, how many operations of this name and of its shape came before.
    """

    name: str
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    operands: list[tuple[torch.Tensor, Call | None]]
    data: list[int]
    module: str
    counts: list[int]

    @property
    def source(self) -> tuple[torch.Tensor, Call | None]:
        """The one operand that depends on the images, and its maker."""
        return self.operands[self.data[0]]

    @property
    def site(self) -> Site:
        """Where the operation stands in the forward pass."""
        operand = self.data[0]
        return Site(self.name, tuple(self.operands[operand][0].shape[1:]), self.counts[operand], operand)


@dataclass(eq=False)
class ModuleCall:
    """One run of a module: what it was given and what it returned."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    number: int

    @property
    def given(self) -> torch.Tensor | None:
        """The first tensor that the module was given."""
        return next(_tensors((*self.args, *self.kwargs.values())), None)


@dataclass(eq=False)
class Trace:
    """A forward pass: its input, its output, and all that was seen between."""

    model: nn.Module
    x: torch.Tensor
    output: Any = None
    calls: list[Call] = field(default_factory=list)
    made: dict[int, Call] = field(default_factory=dict)
    modules: list[ModuleCall] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)

    def depends(self, tensor: torch.Tensor, call: Call | None) -> bool:
        """Return whether a tensor may depend on the images: all that is not made of parameters and constants alone."""
        if call is not None:
            return bool(call.data)
        return id(tensor) not in self.fixed


def operation_name(func: Any) -> str:
    """Return the plain name of an operation, the same for a function, a method and an operator in place."""
    name = str(getattr(func, "__name__", ""))
    if name == "__get__":
        return str(getattr(func.__self__, "__name__", ""))
    name = name.partition(".")[0] if "." in name else name
    name = name.removeprefix("special_")
    if name.startswith("__") and name.endswith("__"):
        return name
    return name.rstrip("_").removeprefix("_")


def in_place(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether an operation writes to what it is given."""
    name = str(getattr(func, "__name__", "")).partition(".")[0]
    operator = name.startswith("__i") and name not in {"__invert__", "__index__", "__int__"}
    return operator or (name.endswith("_") and not name.endswith("__")) or bool(kwargs.get("inplace"))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)


class _Recorder(TorchFunctionMode):
    """Writes every operation into a trace."""

    def __init__(self, trace: Trace, running: list[str]) -> None:
        super().__init__()
        self.trace, self.running = trace, running
        self.seen: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operation_name(func)
        if name in NO_RESULT:
            return func(*args, **kwargs)
        trace = self.trace
        operands = [(tensor, trace.made.get(id(tensor))) for tensor in _tensors((args, kwargs))]
        keys = [(name, tuple(tensor.shape[1:])) for tensor, _ in operands]
        counts = [self.seen[key] for key in keys]
        self.seen.update(set(keys))
        if name in {"sigmoid", "expit"} and in_place(func, kwargs):  # the logits are wanted as they were
            operands = [(tensor.clone(), call) for tensor, call in operands]
        output = func(*args, **kwargs)
        results = list(_tensors(output))
        if name in {"__setitem__", "setitem"}:
            results = [args[0]]
        if not results:
            return output
        data = [number for number, (tensor, call) in enumerate(operands) if trace.depends(tensor, call)]
        module = self.running[-1] if self.running else ""
        call = Call(name, func, args, kwargs, output, operands, data, module, counts)
        trace.calls.append(call)
        for tensor in results:
            trace.made[id(tensor)] = call
        return output


def traced(model: nn.Module, images: NDArray[np.float32]) -> Trace:
    """Run the model on two images in evaluation mode without gradients, and return what it did.

    Parameters
    ----------
    model : torch.nn.Module
    images : ndarray of float32, shape (n, C, H, W)
        The first two are taken; one is taken twice.

    Raises
    ------
    DataError
        If the model raises an error, or there are no images.
    """
    check_module(model)
    if len(images) == 0:
        raise DataError("the model is looked at by running it on an image, found none; give at least one")
    rows = images[:2] if len(images) > 1 else np.concatenate([images, images])
    trace = Trace(model, model_input(model, np.ascontiguousarray(rows)))
    trace.fixed = {id(tensor) for module in model.modules() for tensor in _own_tensors(module)}
    running: list[str] = []
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                _watch_module(trace, running, name, module, stack)
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(eager(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(_Recorder(trace, running))
        trace.output = run_model(model, trace.x.clone())  # it may write to what it is given
    return trace


def _own_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield a module's parameters, buffers and other tensors, without those of its children."""
    yield from (tensor for tensor in module._parameters.values() if tensor is not None)
    yield from (tensor for tensor in module._buffers.values() if tensor is not None)
    yield from (value for value in vars(module).values() if isinstance(value, torch.Tensor))


def _watch_module(trace: Trace, running: list[str], name: str, module: nn.Module, stack: ExitStack) -> None:
    """Write each run of a module into the trace until the stack is left."""
    depth: list[int] = []

    def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
        depth.append(len(running))
        running.append(name)

    def after(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        del running[depth.pop() :]
        number = sum(one.module is module for one in trace.modules)
        trace.modules.append(ModuleCall(name, module, args, kwargs, output, number))

    stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)


class Watch(TorchFunctionMode):
    """Keeps what chosen operations are given, in any later forward pass of the same model.

    Parameters
    ----------
    *sites : Site

    Attributes
    ----------
    found : dict of Site to Tensor
    """

    def __init__(self, *sites: Site) -> None:
        super().__init__()
        self.wanted: dict[str, list[Site]] = defaultdict(list)
        for site in sites:
            self.wanted[site.name].append(site)
        self.found: dict[Site, torch.Tensor] = {}
        self.seen: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operation_name(func)
        if name in self.wanted:
            operands = list(_tensors((args, kwargs)))
            for site in self.wanted[name]:
                self._keep(site, operands, in_place(func, kwargs))
            self.seen.update({(name, tuple(tensor.shape[1:])) for tensor in operands})
        return func(*args, **kwargs)

    def _keep(self, site: Site, operands: list[torch.Tensor], overwritten: bool) -> None:
        """Keep the operand if this is the site."""
        if site.operand >= len(operands):
            return
        tensor = operands[site.operand]
        if tuple(tensor.shape[1:]) == site.shape and self.seen[site.name, site.shape] == site.number:
            self.found[site] = tensor.clone() if overwritten else tensor

    def get(self, site: Site) -> torch.Tensor:
        """Return what the operation at a site was given.

        Raises
        ------
        DataError
            If the pass did not come there.
        """
        if site not in self.found:
            sizes = ", ".join(map(str, site.shape))
            raise DataError(
                f"the model must do the same with every batch, but {site.name} at its end did not run on values of "
                f"shape (n, {sizes}) as it did on the first images; give images of one size, or a model that returns "
                "logits"
            )
        return self.found[site]


def with_operand(call: Call, tensor: torch.Tensor) -> Any:
    """Run an operation again with another tensor in place of the one that depends on the images.

    Its other tensors are taken in the same kind of numbers.
    """
    old = call.source[0]

    def swapped(value: Any) -> Any:
        if value is old:
            return tensor
        if isinstance(value, torch.Tensor):
            return value.to(tensor.dtype) if value.is_floating_point() else value
        if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
            return type(value)(swapped(one) for one in value)
        return value

    args = tuple(swapped(value) for value in call.args)
    with torch.no_grad():
        return call.func(*args, **{key: swapped(value) for key, value in call.kwargs.items()})
