"""Which relevance rule goes on which operation: a table that can be printed and extended, and composites as data.

A rule is a function of a call and the engine. It runs the call and returns its output, and sees to it that what
autograd then sends backward is the rule's g (relevance = value x g). Most operations need nothing: the gradient of a
sum, a view, a pooling, a ReLU or any linear map is the rule. The others:

- an activation passes relevance on: g f(x) / x, where f(0) = 0; otherwise the part f(0) is a constant's;
- statistics and gates (a norm, a sigmoid, a softmax) are *held* in a product with other data: all relevance goes to the
  other factor; so normalisation is linear, squeeze-excitation scales, and attention weighs its values;
- any other product of two tensors of data shares its relevance equally (Achtibat et al., AttnLRP, 2024).

Sources: Bach et al. (2015) for the epsilon, alpha-beta and z-plus rules; Montavon et al. (2017) for the box rule; Ali
et al. (2022) for held attention and normalisation; Achtibat et al. (2024) for products and the gradient of softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from exmap.explain.engine import Call, Engine

__all__ = [
    "RULES",
    "Rule",
    "all_held",
    "depends",
    "hold",
    "is_held",
    "is_positive",
    "mark_positive",
    "on_the_way_back",
    "other_call",
    "rule",
    "rules_table",
    "run_other",
    "unmarked",
]

Run = Callable[["Call", "Engine"], Any]


@dataclass(frozen=True)
class Rule:
    """What is done with one kind of operation.

    Attributes
    ----------
    name : str
        As tables show it.
    run : callable
        Takes the call and the engine, returns the operation's output.
    views : bool
        Whether the operation only rearranges its operand, so that an audit need not look at it.
    """

    name: str
    run: Run
    views: bool = False


RULES: dict[str, Rule] = {}


def rule(name: str, operations: str, *, views: bool = False) -> Callable[[Run], Run]:
    """Give operations, named with spaces between, a rule: extends the table.

    Examples
    --------
    >>> from exmap.explain import rules
    >>> @rules.rule("passed on", "my_activation")
    ... def _mine(call, engine):
    ...     return rules.elementwise(call, engine)
    >>> rules.RULES.pop("my_activation").name
    'passed on'
    """

    def register(run: Run) -> Run:
        for operation in operations.split():
            RULES[operation] = Rule(name, run, views)
        return run

    return register


# --- what stands beside a tensor ---------------------------------------------------------------------------------


def depends(value: Any) -> bool:
    """Return whether a value is a tensor that depends on the input: leaves are parameters, registered or not."""
    return isinstance(value, torch.Tensor) and value.requires_grad and not value.is_leaf


def is_held(tensor: torch.Tensor) -> bool:
    """Return whether the tensor is a gate or statistic, which takes no relevance in a product with other data."""
    return bool(getattr(tensor, "_exmap_held", False))


def hold(output: Any, held: bool) -> Any:
    """Mark outputs of an operation as held or not."""
    for tensor in output if isinstance(output, (tuple, list)) else (output,):
        if isinstance(tensor, torch.Tensor) and (held or hasattr(tensor, "_exmap_held")):
            tensor._exmap_held = held  # type: ignore[attr-defined]
    return output


def all_held(call: Call) -> bool:
    """Return whether every operand that depends on the input is held."""
    return all(is_held(operand) for operand in call.data)


def mark_positive(output: Any) -> Any:
    """Mark a tensor without negative entries, for rules that are quicker then."""
    output._exmap_positive = output._version
    return output


def is_positive(x: torch.Tensor) -> bool:
    """Return whether the tensor is marked as without negative entries."""
    return getattr(x, "_exmap_positive", None) == x._version


def unmarked(output: Any, call: Call) -> Any:
    """Take the mark of a gate from what an operation wrote into."""
    return hold(output, False) if call.in_place else output


def other_call(like: Call, function: Any, name: str, *args: Any) -> Call:
    """Return a call of another operation, as if the user's model had made it."""
    data = [value for value in args if depends(value)]
    return replace(like, function=function, name=name, args=args, kwargs={}, in_place=False, data=data)


def run_other(like: Call, function: Any, name: str, engine: Engine, *args: Any) -> Any:
    """Run another operation by its rule."""
    call = other_call(like, function, name, *args)
    return RULES[name].run(call, engine) if call.data else call.run()


def on_the_way_back(tensor: torch.Tensor, work: Callable[[torch.Tensor], Any]) -> None:
    """Do something with g when it comes to a tensor; what `work` returns, if anything, goes on in its place."""
    tensor.register_hook(lambda g: None if g is None else work(g))  # type: ignore[no-untyped-call]


def rules_table() -> str:
    """Return the table of rules as text: each rule, and the operations that have it."""
    by_rule: dict[str, list[str]] = {}
    for operation, found in RULES.items():
        by_rule.setdefault(found.name, []).append(operation)
    return "\n".join(f"{name}: {', '.join(sorted(operations))}" for name, operations in sorted(by_rule.items()))
