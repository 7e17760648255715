"""What the check of a model measures: seconds, memory, images alone, and what constants hold."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import nn

from exmap.explain.engine import Call, Engine, Relevance, propagate
from exmap.explain.rules import Composite, Rule
from exmap.model.classifier import logits_of
from exmap.model.probe import copied
from exmap.model.running import evaluation_mode, exact, model_device

__all__ = ["alone", "alone_difference", "alone_error", "as_computed", "double", "plain_logits", "shares"]


KINDS = ("biases", "tokens and positions", "numbers and other constants", "softmax and gates")

_ABSORBING = "softmax log_softmax softmin logsumexp cdist sigmoid exp exp2 log log2 log10 reciprocal rsqrt rpow rdiv"

ABSORBING = frozenset(_ABSORBING.split())  # their gradient does not keep relevance, or they are not zero at zero


def plain_logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return what the model says without the rules, before a softmax that ends it."""
    engine = Engine(Composite("epsilon"), audit=lambda call, _rule, _engine: _unruled(call))
    engine.counting = False
    return propagate(model, x, engine=engine).logits


def _unruled(call: Call) -> Any:
    output = call.run()
    ends = call.name in ("softmax", "log_softmax", "sigmoid")
    before = getattr(call.data[0], "_exmap_before", call.data[0] if ends else None)
    passes = ends or call.name in ("log", "exp")
    if before is not None and passes and isinstance(output, torch.Tensor):
        output._exmap_before = before  # type: ignore[attr-defined]
    return output


def as_computed(
    model: nn.Module, x: torch.Tensor, composite: Composite, target: Any
) -> tuple[Relevance, Counter[tuple[str, str]], float, float, int]:
    """Return relevance as the model computes, the operations, cost, and memory of the way back."""
    counts: Counter[tuple[str, str]] = Counter()

    def count(call: Call, rule: Rule, engine: Engine) -> Any:
        counts[call.name, rule.name] += 1
        return rule.run(call, engine)

    made = propagate(model, x, target=target, engine=Engine(composite, audit=count))
    engine = Engine(composite)
    propagate(model, x, target=target, engine=engine)
    bytes_rules = _kept_bytes(model, lambda: propagate(model, x, target=target, engine=engine))
    bytes_plain = _kept_bytes(model, lambda: _gradient(model, x))
    seconds = [_seconds(lambda: propagate(model, x, target=target, engine=engine)) for _ in range(2)]
    plain = [_seconds(lambda: _gradient(model, x)) for _ in range(2)]
    ratio = bytes_rules / max(1, bytes_plain)
    return made, counts, min(seconds) / max(min(plain), 1e-9), ratio, bytes_rules // len(x)


def _gradient(model: nn.Module, x: torch.Tensor) -> None:
    leaf = x.detach().clone().requires_grad_()
    with evaluation_mode(model), torch.enable_grad():
        logits = logits_of(model(leaf), len(leaf))
        torch.autograd.grad(logits.amax(dim=1).sum(), leaf)


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _kept_bytes(model: nn.Module, work: Any) -> int:
    """Return how many bytes of tensors autograd keeps for the way back beside the weights, each storage once."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(kept.values())


def double(model: nn.Module) -> nn.Module | None:
    """Return a copy in float64, on the CPU where the device has no such numbers; None where it cannot be copied."""
    try:
        twin = copied(model)
        return (twin.cpu() if model_device(model).type == "mps" else twin).double()
    except Exception:  # a copy may fail in any way: modules are the user's
        return None


def alone(
    twin: nn.Module | None, model: nn.Module, x: torch.Tensor, composite: Composite, target: Any
) -> tuple[Relevance, Counter[str], bool]:
    """Explain one image, in float64 where that can be, and return what kinds of constants hold."""
    kinds: Counter[str] = Counter()
    if twin is not None:
        try:
            engine = _Sorting(composite)
            made = propagate(twin, exact(x).to(model_device(twin)), target=target, engine=engine)
            return made, engine.kinds(), True
        except Exception:  # numbers of a fixed kind inside forward; what else is wrong comes again
            kinds.clear()
    engine = _Sorting(composite)
    made = propagate(model, x, target=target, engine=engine)
    return made, engine.kinds(), False


def alone_error(model: nn.Module, x: torch.Tensor, composite: Composite, target: Any) -> float:
    """Return the error of one image's sum when it is explained alone."""
    return float(propagate(model, x, composite=composite, target=target).error()[0])


class _Sorting(Engine):
    """An engine that says which kind of constant each relevance belongs to."""

    def __init__(self, composite: Composite) -> None:
        super().__init__(composite, audit=_owned)

    def kinds(self) -> Counter[str]:
        """Return the relevance of each kind of constant."""
        found: Counter[str] = Counter()
        for owner, relevance in self.constants.by_owner():
            found[owner] += float(exact(relevance).sum())  # type: ignore[assignment]
        return found


def _owned(call: Call, rule: Rule, engine: Engine) -> Any:
    engine.owner = _kind(call)
    return rule.run(call, engine)


def _kind(call: Call) -> str:
    if call.name.startswith("conv") or call.name in ("linear", "addmm") or call.name.endswith("_norm"):
        return KINDS[0]
    values = [*call.args, *call.kwargs.values()]
    values += [item for value in values if isinstance(value, (list, tuple)) for item in value]
    if any(isinstance(value, torch.Tensor) and value.ndim and not value.requires_grad for value in values):
        return KINDS[1]
    return KINDS[3] if call.name in ABSORBING else KINDS[2]


def shares(parts: list[tuple[Relevance, Counter[str], bool]]) -> dict[str, float]:
    """Return what each kind of constants holds of the logit, mean over images."""
    return {
        kind: float(np.mean([kinds[kind] / float(made.explained.double()[0] or np.nan) for made, kinds, _ in parts]))
        for kind in KINDS
    }


def alone_difference(model: nn.Module, x: torch.Tensor, whole: Relevance, composite: Composite, target: Any) -> float:
    """Return how far an image's relevance alone is from that in the batch."""
    if len(x) < 2:
        return 0.0
    worst = 0.0
    engine = Engine(composite)
    for i in range(min(2, len(x))):
        given = target if isinstance(target, int) or target == "margin" else int(whole.target[i])
        alone = propagate(model, x[i : i + 1], target=given, engine=engine)
        for one, other in ((alone.values[0], whole.values[i]), (alone.logits[0], whole.logits[i])):
            peak = other.abs().max().clamp(min=1e-30)
            worst = max(worst, float((one - other).abs().max() / peak))
    return worst
