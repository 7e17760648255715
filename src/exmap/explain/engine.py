"""Relevance propagation by operation: one engine for every differentiable classifier.

Relevance is written as the input times a modified gradient, :math:`R = x g`, and what travels backward is g. For every
linear map, sum, concatenation, view, pooling and ReLU the gradient autograd computes *is* the rule; for the others a
rule of :mod:`exmap.explain.rules` takes its place as the operation runs. The engine sees operations, not modules:
functions, methods, in-place operators, and whatever the user's modules call. It changes nothing in the model.

What does not depend on the input (biases, class tokens, position embeddings, added numbers) takes its part of the
relevance. It is counted per image, so that input + constants = explained logit can be checked on any model.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from exmap.errors import DataError
from exmap.explain.constants import LAYOUTS, Constants, Layout, Place, times
from exmap.explain.operations import Call, data_of, marked_attribute, of_each_entry, operation_name, visible
from exmap.explain.recorded import recorded
from exmap.explain.rules import (
    DEFAULT,
    DEFAULT_ATTENTION,
    OWN_FUNCTION,
    RULES,
    UNKNOWN,
    Composite,
    Rule,
    make_composite,
)
from exmap.explain.rules.table import hold, is_held, on_the_way_back
from exmap.explain.target import explained_logit
from exmap.model.classifier import logits_of, raw_logits
from exmap.model.probe import copied
from exmap.model.running import eager, evaluation_mode, model_device, run_model, way_back

__all__ = ["Call", "Engine", "Relevance", "composite_for", "explained_logit", "operation_name", "propagate"]

_ATTRIBUTES = ("__get__", "__set__", "__delete__")
_IGNORED_NAMES = """
    size dim shape numel is_contiguous stride element_size storage_offset data_ptr is_floating_point is_complex
    _set_grad_enabled register_hook __len__ __bool__ __repr__ __format__ __hash__ requires_grad_ ndimension is_same_size
    get_device storage untyped_storage __dir__ retain_grad tolist item backward
"""
_IGNORED = frozenset(_IGNORED_NAMES.split())


@dataclass(frozen=True)
class Relevance:
    """Relevance of a batch of images, in units of the explained logit.

    Attributes
    ----------
    values : Tensor of float, shape (n, C, H, W)
        Relevance of the input.
    logits : Tensor of float, shape (n, K)
    target : Tensor of int64, shape (n,)
        The explained class; with ``target="margin"`` the predicted one.
    explained : Tensor of float, shape (n,)
        The explained logit, or difference of logits. ``values.sum((1, 2, 3)) + constants`` equals it.
    constants : Tensor of float, shape (n,)
        Relevance of what does not depend on the input; NaN where it was not counted.
    layers : dict of str to Tensor
        Relevance of the outputs of the modules asked for, by their paths.
    """

    values: torch.Tensor
    logits: torch.Tensor
    target: torch.Tensor
    explained: torch.Tensor
    constants: torch.Tensor
    layers: dict[str, torch.Tensor] = field(default_factory=dict)

    def error(self) -> torch.Tensor:
        """Return |input + constants - explained| per image, shape (n,), as a share of the largest of the three."""
        total = self.values.flatten(1).cpu().double().sum(dim=1)
        constants, explained = self.constants.cpu().double(), self.explained.cpu().double()
        largest = torch.stack([total.abs(), constants.abs(), explained.abs()]).amax(dim=0)
        return (total + constants - explained).abs() / largest.clamp(min=1e-30)


class Engine(TorchFunctionMode):
    """Gives every operation that runs inside it, and whose operands depend on the input, its rule.

    Parameters
    ----------
    composite : Composite
    audit : callable, optional
        Watches operations: is given the call, its rule and the engine, and returns the output.
    """

    def __init__(self, composite: Composite, *, audit: Any = None) -> None:
        super().__init__()
        self.composite = composite
        self.audit = audit
        self.counting = True
        self.owner: Any = None  # of constants, in an audit
        self.kept: dict[Any, Any] = {}  # what rules derive from weights, for a whole run
        self.constants = Constants()
        self.begin(0, None)

    def begin(self, n: int, image: torch.Tensor | None) -> None:
        """Forget the last batch."""
        self.n, self.image = n, image
        self.constants.begin(n)
        self.deposited: torch.Tensor | None = None
        self.met_first = False

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation by its rule."""
        kwargs = kwargs or {}
        name, in_place = operation_name(function)
        if name in _IGNORED or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        if getattr(function, "__name__", "") in _ATTRIBUTES:
            return marked_attribute(function(*args, **kwargs), args[0])
        if not args and "input" in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop("input"),)
        data = data_of(args, kwargs)
        if not data:
            return function(*args, **kwargs)
        rule = RULES.get(name)
        if rule is None:
            if opened := visible(function):
                with self:
                    return opened(*args, **kwargs)
            rule = UNKNOWN
        call = Call(function, name, args, kwargs, in_place, data)
        if in_place and isinstance(args[0], torch.Tensor) and args[0]._is_view():
            return self._into_view(call, rule)
        return self._run(call, rule)

    def _run(self, call: Call, rule: Rule) -> Any:
        return rule.run(call, self) if self.audit is None else self.audit(call, rule, self)

    def _into_view(self, call: Call, rule: Rule) -> Any:
        """Run an operation that writes into a view on a copy, then write the result: hooks on views are lost."""
        view = call.args[0]
        spare = view.clone()
        vars(spare).update(vars(view))
        data = [spare if operand is view else operand for operand in call.data]
        output = self._run(replace(call, args=(spare, *call.args[1:]), data=data), rule)
        view.copy_(spare)
        hold(view, is_held(spare))
        return view if output is spare else output

    def note(self, output: torch.Tensor, part: torch.Tensor | float) -> None:
        """Count the relevance of a constant that is a part of an operation's output."""
        if self.counting and output.requires_grad:
            place = self.constants.place(self.owner)
            on_the_way_back(output, lambda g: place(times(g, part)))

    def place(self) -> Place | None:
        """Return what takes in the relevance of a constant of the running operation; None where none is counted."""
        return self.constants.place(self.owner) if self.counting else None

    def deposit(self, relevance: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Give relevance straight to the pixels where `x` has their shape, else as if in proportion to `x`."""
        assert self.image is not None
        if x.shape == self.image.shape:
            self.deposited = relevance if self.deposited is None else self.deposited + relevance
            return torch.zeros_like(relevance)
        return relevance / (x + x.new_full((), 1e-6).copysign(x))


@contextmanager
def _own_functions_seen(engine: Engine) -> Iterator[None]:
    """Let autograd Functions of the user's own come to the engine, which does not see them by itself.

    One that is a function of each entry, such as a memory-saving activation, gets the rule of activations.
    """
    usual = inspect.getattr_static(torch.autograd.Function, "apply")
    inherited = "apply" not in vars(torch.autograd.Function)
    thread = threading.get_ident()

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        function = usual.__get__(None, cls)
        mine = cls.__module__.startswith("exmap.") or threading.get_ident() != thread
        if mine or kwargs or not torch.is_grad_enabled() or torch._C._len_torch_function_stack() == 0:
            return function(*args, **kwargs)
        data = data_of(args, {})
        if not data:
            return function(*args)
        call = Call(function, cls.__name__, args, {}, False, data)
        with torch._C.DisableTorchFunction():
            rule = RULES.get(cls.__name__) or (OWN_FUNCTION if of_each_entry(call) else UNKNOWN)
            return engine.audit(call, rule, engine) if engine.audit is not None else rule.run(call, engine)

    torch.autograd.Function.apply = classmethod(apply)
    try:
        yield
    finally:
        if inherited:
            del torch.autograd.Function.apply
        else:
            torch.autograd.Function.apply = usual


@contextmanager
def constant_parameters(model: nn.Module) -> Iterator[None]:
    """Let parameters need no gradient inside the block: what then needs one depends on the input."""
    needing = [one for one in model.parameters() if one.requires_grad and not one.is_inference()]
    for parameter in needing:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in needing:
            parameter.requires_grad_(True)


@contextmanager
def _as_explained(model: nn.Module) -> Iterator[None]:
    """Let the model run eagerly, in evaluation mode and with gradients inside the block, its parameters constant."""
    with (
        evaluation_mode(model),
        eager(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(model_device(model).type, enabled=False),
        constant_parameters(model),
    ):
        yield


def full_precision(model: nn.Module) -> nn.Module:
    """Return the model, or a float32 copy of one with weights of less; relevance needs float32 at least."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        with torch.inference_mode(False):
            model = copied(model)
    if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in tensors):
        return copied(model).float()
    return model


def propagate(
    model: nn.Module,
    x: torch.Tensor,
    *,
    composite: str | Composite = "symmetric_gamma",
    target: str | int | torch.Tensor = "predicted",
    layers: Sequence[str] = (),
    engine: Engine | None = None,
) -> Relevance:
    """Explain a batch of images.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (n, C, H, W) to logits. Its weights, modes, hooks and outputs stay as they are.
    x : Tensor of float, shape (n, C, H, W)
    composite : str or Composite
        Which rule goes to which kind of operation.
    target : "predicted", "margin", int or Tensor of int64, shape (n,)
        The class whose logit is explained; "margin" is the predicted class's logit minus the runner-up's.
    layers : sequence of str
        Paths of modules whose outputs' relevance is returned, too.
    engine : Engine, optional
        One kept from an earlier batch, with what it derived from the weights. The composite is then its own.

    Raises
    ------
    DataError
        If no logit depends on the input.
    SettingsError
        For an unknown composite, target or layer.
    """
    engine = engine or Engine(composite if isinstance(composite, Composite) else make_composite(composite))
    with _as_explained(model):
        if engine.counting and engine.constants.layouts is None and len(x) > 1:
            engine.constants.layouts = _layouts(model, x[:2], engine.composite)
        leaf = x.detach().clone() if x.is_inference() else x.detach()
        leaf.requires_grad_()
        with recorded(model, layers) as seen:
            logits = _run(model, leaf, engine)
            chosen, explained = explained_logit(logits, target)
            gradient = _back(explained, leaf, engine)
    values = _relevance(engine, leaf.detach(), gradient)
    constants = engine.constants.total() if engine.counting else torch.full((len(leaf),), torch.nan).double()
    constants = constants if values.device.type == "mps" else constants.to(values.device)
    return Relevance(values, logits.detach(), chosen, explained.detach(), constants, seen)


def _run(model: nn.Module, leaf: torch.Tensor, engine: Engine) -> torch.Tensor:
    """Run the model inside the engine and return its logits, shape (n, K)."""
    engine.begin(len(leaf), leaf)
    given = leaf.clone()  # the model may overwrite it
    with engine, _own_functions_seen(engine):
        output = run_model(model, given)
    engine.constants.closed = True
    logits = _logits(output, len(leaf))
    if not logits.requires_grad:
        raise DataError(
            "the model's output must depend on its input through operations that have a gradient, but it does not; use "
            "explainer='occlusion', or remove detach, argmax or rounding from forward"
        )
    return logits


def _back(explained: torch.Tensor, leaf: torch.Tensor, engine: Engine, *, again: bool = False) -> torch.Tensor | None:
    """Send g backward from the explained logits to the input, inside the engine: a model may run parts again."""
    start = torch.ones_like(explained)
    with way_back(), engine:
        return torch.autograd.grad(explained, leaf, start, allow_unused=True, retain_graph=again)[0]


def _layouts(model: nn.Module, x: torch.Tensor, composite: Composite) -> list[Layout]:
    """Return how each constant's relevance is laid out, seen from two images, each explained by itself."""
    engine = Engine(composite)
    leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
    logits = _run(model, leaf, engine)
    possible: list[list[set[Layout]]] = []
    for image in (0, 1):
        explained = logits[image, logits[image].argmax()]
        _back(explained, leaf, engine, again=image == 0)
        possible.append(engine.constants.layouts_of_two(image))
    both = [one & other for one, other in zip(*possible, strict=True)]
    return [next((layout for layout in LAYOUTS if layout in found), "first") for found in both]


def composite_for(model: nn.Module, x: torch.Tensor, name: str) -> Composite:
    """Return a composite by name; "auto" takes the default of the model's kind, seen by running it.

    A network that multiplies more in convolutions than in linear layers is one of convolutions; any other is taken
    for a transformer.
    """
    if name != "auto":
        return make_composite(name)
    work = {"conv": 0, "linear": 0}

    def count(call: Call, rule: Rule, engine: Engine) -> Any:
        output = rule.run(call, engine)
        kind = "conv" if call.name.startswith("conv") else call.name
        weight = call.argument(1, "weight")
        if kind in work and isinstance(weight, torch.Tensor) and isinstance(output, torch.Tensor):
            work[kind] += output.numel() * weight[0].numel()
        return output

    engine = Engine(make_composite("epsilon"), audit=count)
    engine.counting = False
    propagate(model, x[:1], engine=engine)
    return make_composite(DEFAULT if work["conv"] >= work["linear"] else DEFAULT_ATTENTION)


def _relevance(engine: Engine, x: torch.Tensor, g: torch.Tensor | None) -> torch.Tensor:
    g = torch.zeros_like(x) if g is None else g
    if not engine.composite.times_input:
        return g
    values = x * g
    return values if engine.deposited is None else values + engine.deposited


def _logits(output: Any, n: int) -> torch.Tensor:
    """Return the logits of a model's output, shape (n, K), before a softmax or sigmoid that ends the model."""
    tensor = raw_logits(output, n)
    return logits_of(getattr(tensor, "_exmap_before", tensor), n)
