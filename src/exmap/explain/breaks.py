"""Where relevance is lost: each operation of a model looked at by itself, and the first that breaks the sum."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exmap.explain.engine import Call, Engine, propagate
from exmap.explain.rules import Composite, Rule, hold, is_held
from exmap.explain.rules.table import on_the_way_back
from exmap.model.running import exact, model_device

__all__ = ["EXACT", "ROUNDED", "Break", "Watch", "first_break"]

EXACT = 1e-6  # of the larger share, in float64
ROUNDED = 1e-3  # the same in float32


@dataclass(frozen=True)
class Break:
    """The first operation whose relevance does not add up.

    Attributes
    ----------
    operation, rule : str
    module : str
        Path of the module that runs it.
    line : str
        ``file:line`` of the code that calls it.
    error : float
        What is missing, as a share of the explained logit.
    """

    operation: str
    rule: str
    module: str
    line: str
    error: float

    def __str__(self) -> str:
        return (
            f"{self.operation} (rule: {self.rule}) in module {self.module or 'the model itself'!r}, {self.line}: "
            f"{self.error:.3g} of the logit is lost or made there"
        )


@dataclass
class _Record:
    operation: str
    rule: str
    module: str
    line: str
    out: float = 0.0
    into: float = 0.0
    unseen: list[str] = field(default_factory=list)


class Watch:
    """Looks at each operation by itself: what comes to its outputs, and what it hands to each operand."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self.records: list[_Record] = []
        self.began = False

    def __call__(self, call: Call, rule: Rule, engine: Engine) -> Any:
        """Run one operation on copies of its operands, and record what flows through it."""
        if rule.views:
            return _seen(rule.run(call, engine))
        record = _Record(call.name, rule.name, *_where(self.names))
        record.unseen = [_maker(operand) for operand in call.data if self.began and not hasattr(operand, "_exmap_seen")]
        self.began = True
        self.records.append(record)
        engine.owner = record
        pairs = {id(operand): self._copy(operand, record) for operand in call.data}
        target = call.args[0] if call.args else None
        output = rule.run(call.mapped(lambda operand: pairs[id(operand)]), engine)
        written = pairs.get(id(target)) if isinstance(target, torch.Tensor) else None
        if written is not None and written._version > 0:  # the operation wrote into its first operand
            call.args[0].copy_(self._watched(written, record))
            hold(target, is_held(written))
            return None if output is None else _seen(target)
        if output is None:
            return output
        made = [self._watched(part, record) for part in (output if isinstance(output, (tuple, list)) else [output])]
        return _seen(type(output)(made) if type(output) in (tuple, list) else made[0] if len(made) == 1 else output)

    def _copy(self, operand: torch.Tensor, record: _Record) -> torch.Tensor:
        duplicate = operand.clone()
        value = duplicate.detach().clone()
        hold(duplicate, is_held(operand))
        if hasattr(operand, "_exmap_before"):
            duplicate._exmap_before = operand._exmap_before  # type: ignore[attr-defined]

        def came(g: torch.Tensor) -> None:
            record.into += float(exact(g * value).sum())

        if duplicate.is_floating_point():
            on_the_way_back(duplicate, came)
        return duplicate

    def _watched(self, part: Any, record: _Record) -> Any:
        if not isinstance(part, torch.Tensor) or not part.requires_grad or not part.is_floating_point():
            return part
        duplicate = part.clone()
        for name in ("_exmap_held", "_exmap_before"):
            if hasattr(part, name):
                setattr(duplicate, name, getattr(part, name))
        value = duplicate.detach().clone()

        def came(g: torch.Tensor) -> None:
            record.out += float(exact(g * value).sum())

        on_the_way_back(duplicate, came)
        return duplicate


def _seen(output: Any) -> Any:
    for part in output if isinstance(output, (tuple, list)) else (output,):
        if isinstance(part, torch.Tensor):
            part._exmap_seen = True  # type: ignore[attr-defined]
    return output


def _maker(tensor: torch.Tensor) -> str:
    return type(tensor.grad_fn).__name__ if tensor.grad_fn is not None else "an operation"


def _where(names: dict[int, str]) -> tuple[str, str]:
    """Return the path of the module that is running, and the line of the user's code that called the operation."""
    frame = sys._getframe(2)
    module, line = None, ""
    while frame is not None:
        file = frame.f_code.co_filename
        owner = frame.f_locals.get("self")
        if module is None and id(owner) in names:
            module = names[id(owner)]
        inside = (
            "/torch/" in file.replace("\\", "/") or file == __file__ or "/exmap/explain/" in file.replace("\\", "/")
        )
        if not line and not inside:
            line = f"{Path(file).name}:{frame.f_lineno}"
        if module is not None and line:
            break
        frame = frame.f_back  # type: ignore[assignment]
    return module or "", line


def first_break(
    watch: Watch, twin: nn.Module | None, model: nn.Module, x: torch.Tensor, composite: Composite, target: Any
) -> Break | None:
    """Explain one image again, operation by operation, and return the first that breaks the sum."""
    engine = Engine(composite, audit=watch)
    kind = torch.float64
    try:
        used = twin if twin is not None else model
        kind = torch.float64 if twin is not None else x.dtype
        given = x if twin is None else exact(x)
        made = propagate(used, given.to(model_device(used)), target=target, engine=engine)
    except Exception:  # the copy does not run: watch the model itself
        watch.records.clear()
        watch.names = {id(module): name for name, module in model.named_modules()}
        kind = x.dtype
        made = propagate(model, x, target=target, engine=engine)
    held: Counter[int] = Counter()
    for owner, relevance in engine.constants.by_owner():
        held[id(owner)] += float(exact(relevance).sum())  # type: ignore[assignment]
    scale = max(float(made.explained.abs().max()), 1e-30)
    limit = EXACT if kind == torch.float64 else ROUNDED
    for record in watch.records:
        if record.unseen:
            return Break(
                record.unseen[0],
                "none: it cannot be seen",
                record.module,
                f"before {record.line}",
                float(made.error().max()),
            )
        lost = abs(record.out - record.into - held[id(record)]) / max(scale, abs(record.out), abs(record.into))
        if not lost <= limit:
            return Break(record.operation, record.rule, record.module, record.line, lost)
    return None
