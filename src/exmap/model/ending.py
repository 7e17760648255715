"""Read a trace backwards: the logits before any softmax, and the linear map that made them.

Between a linear map and the logits may stand what a linear map can be exchanged with: another shape, a mean over
positions, a factor, a constant (:mod:`exmap.model.tail`). The whole must give the logits again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from exmap.model.classifier import raw_logits
from exmap.model.operations import AROUND, FACTORS, JOINS, LINEAR, POOLS, PROBABILITIES, SHAPES, matrix_of, owner_of
from exmap.model.probe import affine_map
from exmap.model.tail import Step, Tail, numbers, pooled, read_tail
from exmap.model.trace import Call, ModuleCall, Site, Trace, with_operand

__all__ = ["Ending", "LastLayer", "read_ending"]


@dataclass(frozen=True, eq=False)
class LastLayer:
    """The last linear map of a model: ``logits = features @ weight.T + bias``.

    Attributes
    ----------
    name : str
        Of the module; for a function of a parameter, of the module that owns the parameter.
    kind : {"linear", "convolution", "function", "cut"}
        A module on vectors or tokens; one on maps, channels first; an operation in somebody's forward; a layer that was
        named though more than a linear map follows: what comes after it is left out by :func:`replace_head`.
    weight : ndarray of float32, shape (K, D)
        All that follows included; one row for a classifier with one logit.
    bias : ndarray of float32, shape (K,)
    tail : Tail
        What follows the module or operation.
    axis : int
        Where the features lie in what the layer is given: -1, or 1 for channels first.
    run, runs : int
        Which of the module's runs makes the logits, and how many there are.
    site : Site, optional
        Of an operation.
    parameters : tuple of (str, bool, str), optional
        For an operation: the name of its weight, whether that is transposed, and the name of its bias, where both are
        whole parameters.
    """

    name: str
    kind: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    tail: Tail
    axis: int = -1
    run: int = 0
    runs: int = 1
    site: Site | None = None
    parameters: tuple[str, bool, str] | None = None

    @property
    def in_features(self) -> int:
        """The number of features."""
        return int(self.weight.shape[1])

    @property
    def n_logits(self) -> int:
        """The number of logits that the layer makes: 1 for a classifier of two classes with one logit."""
        return int(self.weight.shape[0])

    def by_class(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return weight (K, D) and bias (K,) with a row for each class: one logit is halved between two."""
        if self.n_logits > 1:
            return self.weight, self.bias
        half = np.array([-0.5, 0.5], dtype=np.float32)
        return half[:, None] * self.weight, half * self.bias


@dataclass(frozen=True)
class Ending:
    """How a model ends.

    Attributes
    ----------
    probability : Site, optional
        The operation that turns logits into probabilities; its operand are the logits.
    layer : LastLayer, optional
    reason : str
        Where there is no last linear map: what made the logits.
    """

    probability: Site | None
    layer: LastLayer | None
    reason: str


def read_ending(trace: Trace) -> Ending:
    """Find the logits and the last linear map of a traced model."""
    raw = raw_logits(trace.output, len(trace.x))
    made = trace.made.get(id(raw))
    probability = _probability(_complement(raw, made))
    if probability is not None:
        raw, made = probability.source
    steps, site, stopped = _walk(raw, made)
    layer = _layer(trace, raw, steps, site, stopped)
    reason = "" if layer is not None else _reason(stopped or site)
    return Ending(None if probability is None else probability.site, layer, reason)


def _pick(call: Call, tensor: torch.Tensor) -> int:
    """Return which of an operation's results a tensor is."""
    if isinstance(call.output, (tuple, list)):
        return next(number for number, one in enumerate(call.output) if one is tensor)
    return -1


def _complement(raw: torch.Tensor, call: Call | None) -> Call | None:
    """Return what made the second column where the first is one minus it: two probabilities of one logit."""
    joined = call is not None and call.name in JOINS and len(call.data) == 2 and raw.shape[1:] == (2,)
    if call is None or not joined or not torch.allclose(raw.sum(dim=1), raw.new_ones(()), atol=1e-2):
        return call
    second, made = call.operands[call.data[1]]
    one_each = second.numel() == len(raw) and torch.equal(second.reshape(-1), raw[:, 1])
    return made if one_each and _probability(made) is not None else call


def _probability(call: Call | None) -> Call | None:
    """Return the operation that made probabilities of logits, the first where one follows another."""
    found = None
    while call is not None and len(call.data) == 1:
        if call.name in PROBABILITIES:
            found = call
        elif call.name not in SHAPES and call.name not in AROUND:
            break
        call = call.source[1]
    return found


def _walk(tensor: torch.Tensor, call: Call | None) -> tuple[list[Step], Call | None, Call | None]:
    """Go back from the logits: return what was passed, last first, and the linear operation or what stopped the way."""
    steps: list[Step] = []
    while call is not None:
        if len(call.data) != 1:
            return steps, None, call
        if call.name in LINEAR and matrix_of(call) is not None:
            return steps, call, None
        if call.name not in SHAPES and call.name not in POOLS and call.name not in FACTORS:
            return steps, None, call
        steps.append((call, _pick(call, tensor)))
        tensor, call = call.source
    return steps, None, None


def _layer(
    trace: Trace, raw: torch.Tensor, steps: list[Step], site: Call | None, stopped: Call | None
) -> LastLayer | None:
    """Return the last linear map, if what was found gives the logits again."""
    if site is not None:
        found = matrix_of(site)
        assert found is not None
        return _of_operation(trace, raw, steps, site, *found)
    return _of_module(trace, raw, steps, stopped) if stopped is not None else None


def _of_operation(
    trace: Trace, raw: torch.Tensor, steps: list[Step], site: Call, weight: torch.Tensor, bias: torch.Tensor | None
) -> LastLayer | None:
    """Return the linear map of an operation: the module that is no more than it, or the operation itself."""
    x, axis = site.source[0], 1 if site.name.startswith("conv") else -1
    z = with_operand(site, x)
    tail = read_tail(steps, z, axis)
    if tail is None or z.shape[axis] != len(weight):
        return None
    plain = np.zeros(len(weight)) if bias is None else numbers(bias)
    effective = tail.after(numbers(weight), plain)
    if not _gives(raw, site.output, x, axis, tail, *effective):
        return None
    weights = [part.astype(np.float32) for part in effective]
    for module in trace.modules:  # in the order in which they ended: the innermost first
        place = _place(module, steps, site)
        if module.given is not x or place is None or not _plain(module):
            continue
        rest = read_tail(steps[:place], z if place == len(steps) else module.output, axis)
        if rest is not None:
            kind = "convolution" if axis == 1 and x.ndim > 2 else "linear"
            runs = sum(other.module is module.module for other in trace.modules)
            return LastLayer(module.name, kind, weights[0], weights[1], rest, axis, module.number, runs)
    name, parameters = owner_of(trace, site)
    return LastLayer(name, "function", weights[0], weights[1], tail, axis, site=site.site, parameters=parameters)


def _place(module: ModuleCall, steps: list[Step], site: Call) -> int | None:
    """Return how many of the steps follow a module that holds the operation, or None if it does not hold it alone."""

    def inside(call: Call) -> bool:
        return not module.name or f"{call.module}.".startswith(f"{module.name}.")

    if not inside(site):
        return None
    place = len(steps)
    while place and inside(steps[place - 1][0]):
        place -= 1
    last = site.output if place == len(steps) else steps[place][0].output
    return place if module.output is last else None


def _plain(module: ModuleCall) -> bool:
    """Return whether a plain layer could stand in the module's place: one tensor in, one tensor out."""
    return isinstance(module.output, torch.Tensor) and not module.kwargs and len(module.args) == 1


def _of_module(trace: Trace, raw: torch.Tensor, steps: list[Step], stopped: Call) -> LastLayer | None:
    """Return the linear map of a module that does more than one operation, such as a layer with LoRA."""
    for module in trace.modules:
        output, x = module.output, module.given
        if output is not stopped.output or not isinstance(output, torch.Tensor) or x is None or not module.name:
            continue
        for axis in (-1, 1) if x.ndim > 2 else (-1,):
            tail = read_tail(steps, output, axis)
            found = None if tail is None else affine_map(module.module, x, axis)
            if tail is None or found is None:
                continue
            weight, bias = tail.after(*found)
            if _gives(raw, output, x, axis, tail, weight, bias):
                kind = "convolution" if axis == 1 else "linear"
                runs = sum(other.module is module.module for other in trace.modules)
                parts = weight.astype(np.float32), bias.astype(np.float32)
                return LastLayer(module.name, kind, *parts, tail, axis, module.number, runs)
    return None


def _gives(
    raw: torch.Tensor,
    made: torch.Tensor,
    x: torch.Tensor,
    axis: int,
    tail: Tail,
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
) -> bool:
    """Return whether the features times the weight are the logits, up to rounding."""
    features = numbers(pooled(x, axis, tail.positions))
    if features.shape[1] != weight.shape[1] or len(features) != len(raw):
        return False
    wanted, found = numbers(raw).reshape(len(raw), -1), features @ weight.T + bias
    if wanted.shape != found.shape:
        return False
    known = np.isfinite(wanted).all(axis=1)  # what is not finite proves nothing, and is said elsewhere
    wanted, found, features = wanted[known], found[known], features[known]
    size = np.abs(features) @ np.abs(weight).T + np.abs(bias)  # rounding grows with the parts, not with their sum
    low = any(torch.finfo(tensor.dtype).eps > 1e-5 for tensor in (raw, made, x))
    share = 0.05 if low else 1e-4 if x.device.type == "cpu" else 5e-3  # others may multiply in TF32
    return bool((np.abs(wanted - found) <= share * size + 1e-12).all())


def _reason(call: Call | None) -> str:
    """Return what made the logits, for a sentence."""
    if call is None:
        return "something that torch does not show (numpy, scripted or compiled code)"
    where = f" in module {call.module!r}" if call.module else ""
    if call.name in LINEAR:
        return f"the operation {call.name}{where}, whose result does not give the logits by a mean over positions"
    several = f" of {len(call.data)} values that depend on the images" if len(call.data) > 1 else ""
    return f"the operation {call.name}{where}{several}"
