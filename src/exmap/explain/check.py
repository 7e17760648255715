"""Whether a model is explained right, on the user's own model and images: a proof by sums, and where it fails.

The relevance of the input and of everything that does not depend on it must add up to the explained logit. That holds
for every rule of :mod:`exmap.explain.rules`, so it is a test of each operation the model uses. Where it fails, every
operation is looked at by itself, and the first that breaks the sum is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.errors import DataError, SettingsError
from exmap.explain.breaks import EXACT, ROUNDED, Break, Watch, first_break
from exmap.explain.check_measures import alone, alone_difference, alone_error, as_computed, double, plain_logits, shares
from exmap.explain.engine import composite_for, full_precision
from exmap.explain.rules import UNKNOWN, Composite
from exmap.model.check import check_inputs
from exmap.model.classifier import check_differentiable, unwrapped
from exmap.model.running import model_device, model_dtype

__all__ = ["Break", "ModelCheck", "Operation", "check_model"]

MOST_IMAGES = 8  # that are looked at one by one


@dataclass(frozen=True)
class Operation:
    """One row of the table: an operation of the model, its rule, and how often one pass runs it."""

    name: str
    rule: str
    count: int


@dataclass(frozen=True)
class ModelCheck:
    """What :func:`check_model` found.

    Attributes
    ----------
    passed : bool
    error : float
        Largest distance of input + constants from the explained logit, as a share of the largest of the three, in
        float64 where the model can be computed in it.
    error_float32 : float
        The same as the model computes, at least in float32.
    exact : bool
        Whether `error` was found in float64.
    input_share : ndarray of float64, shape (n,)
        Relevance of the input over the explained logit.
    shares : dict of str to float
        Mean share of the explained logit that each kind of constant holds.
    operations : tuple of Operation
    composite : str
    logits_difference : float
        Largest difference of a logit with and without the rules, as a share of the largest logit; 0 is bit-equal.
    alone_difference : float
        Largest difference of an image's relevance alone and in a batch, as a share of the largest relevance.
    cost : float
        Time of a relevance pass over that of a forward pass with input gradients.
    memory : float
        Bytes kept for the way back over those of the gradient's.
    memory_per_image : int
        Bytes kept for the way back, per image.
    first_break : Break or None
    reasons : tuple of str
        What failed, in sentences.
    """

    passed: bool
    error: float
    error_float32: float
    exact: bool
    input_share: NDArray[np.float64]
    shares: dict[str, float]
    operations: tuple[Operation, ...]
    composite: str
    logits_difference: float
    alone_difference: float
    cost: float
    memory: float
    memory_per_image: int
    first_break: Break | None = None
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = "The model is explained right." if self.passed else "The model is not explained right."
        kind = "float64" if self.exact else "the model's own precision"
        shares = ", ".join(f"{name} {share:.3f}" for name, share in self.shares.items() if abs(share) > 5e-4)
        equal = "bit-equal" if self.logits_difference == 0 else f"off by {self.logits_difference:.1e} of the largest"
        rows = [
            head,
            *(f"- {reason}" for reason in self.reasons),
            f"sum of relevance     off by {self.error:.1e} of the logit ({kind}), {self.error_float32:.1e} as computed",
            f"share of the logit   input {float(np.mean(self.input_share)):.3f}{', ' if shares else ''}{shares}",
            f"logits               {equal}",
            f"alone, in a batch    maps differ by {self.alone_difference:.1e} of their maximum",
            f"cost                 {self.cost:.2f} input gradients; {self.memory_per_image / 2**20:.1f} MiB an image, "
            f"{self.memory:.2f} of the gradient's",
            f"rules                {self.composite}",
            *_table(self.operations),
        ]
        return "\n".join(rows)


def _table(operations: tuple[Operation, ...]) -> list[str]:
    width = max((len(row.name) for row in operations), default=0)
    rules = max((len(row.rule) for row in operations), default=0)
    return [f"  {row.name:<{width}}  {row.rule:<{rules}}  {row.count:>5}" for row in operations]


def check_model(
    model: nn.Module,
    images: Any,
    *,
    composite: str | Composite = "auto",
    target: str | int = "predicted",
    tolerance: float | None = None,
) -> ModelCheck:
    """Check that relevance on a model is right: that input + constants = logit, image by image.

    Parameters
    ----------
    model : torch.nn.Module
        Any classifier; it stays as it is.
    images : ndarray or Tensor of float, shape (n, C, H, W)
        As the model was trained on them; the first 8 are used. Two at least compare an image alone and in a batch.
    composite : str or Composite
        "auto" takes the default of the model's kind.
    target : "predicted", "margin" or int
    tolerance : float, optional
        Largest error that passes; by default 1e-6 in float64 and 1e-3 in float32.

    Raises
    ------
    DataError
        For a model or images that cannot be run; see also :func:`exmap.model.check_inputs`.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> result = check_model(model.eval(), torch.randn(4, 3, 8, 8))
    >>> result.passed, result.error < 1e-6
    (True, True)
    """
    check_differentiable(model)
    x = _tensor(images)[:MOST_IMAGES]
    check_inputs(model, np.ascontiguousarray(x[:2].float().cpu().numpy()))
    model = unwrapped(model)
    used = full_precision(model)
    x = x.to(model_device(used), model_dtype(used))
    chosen = composite if isinstance(composite, Composite) else composite_for(used, x, composite)
    if not chosen.times_input:
        raise SettingsError(
            f"composite {chosen.name} changes gradients and promises no sum, so there is nothing to check; choose "
            "another, such as symmetric_gamma"
        )
    whole, counts, cost, memory, per_image = as_computed(used, x, chosen, target)
    plain = plain_logits(used, x)
    scale = float(plain.abs().max().clamp(min=1e-30))
    twin = double(used)
    watch = Watch(twin if twin is not None else used)
    parts = [alone(twin, used, x[i : i + 1], chosen, target) for i in range(len(x))]
    exact = all(is_exact for _, _, is_exact in parts)
    errors = [float(made.error().max()) for made, _, _ in parts]
    by_batch = alone_difference(used, x, whole, chosen, target)
    found = _Found(
        error=max(errors, default=0.0),
        error_float32=max((alone_error(used, x[i : i + 1], chosen, target) for i in range(len(x))), default=0.0),
        exact=exact,
        logits=float((plain - whole.logits).abs().max()) / scale,
        alone=by_batch,
        unknown=sorted({name for name, rule in counts if rule == UNKNOWN.name}),
    )
    limit = tolerance if tolerance is not None else (EXACT if exact else ROUNDED)
    first = None
    if not found.error <= limit:
        first = first_break(watch, twin, used, x[int(np.argmax(errors))][None], chosen, target)
    reasons = _reasons(found, limit, tolerance if tolerance is not None else ROUNDED, first)
    return ModelCheck(
        passed=not reasons,
        error=found.error,
        error_float32=found.error_float32,
        exact=exact,
        input_share=np.array([float(made.values.double().sum() / made.explained.double()[0]) for made, _, _ in parts]),
        shares=shares(parts),
        operations=tuple(Operation(name, rule, count) for (name, rule), count in counts.items()),
        composite=chosen.name,
        logits_difference=found.logits,
        alone_difference=by_batch,
        cost=cost,
        memory=memory,
        memory_per_image=per_image,
        first_break=first,
        reasons=tuple(reasons),
    )


@dataclass
class _Found:
    error: float
    error_float32: float
    exact: bool
    logits: float
    alone: float
    unknown: list[str]


def _reasons(found: _Found, limit: float, rounded: float, first: Break | None) -> list[str]:
    reasons = []
    if not found.error <= limit:
        where = f"the first operation that breaks it is {first}" if first else "no single operation breaks it"
        reasons.append(
            f"input and constants must add up to the logit within {limit:.0e} of it, but are off by {found.error:.3g}; "
            f"{where}. Give that operation a rule (exmap.explain.rules), or choose explainer='occlusion'"
        )
    if found.error <= limit and not found.error_float32 <= rounded:
        reasons.append(
            f"in float32 input and constants are off by {found.error_float32:.3g} of the logit, more than "
            f"{rounded:.0e}, though the rules are right; explain the model in float64 (model.double())"
        )
    if not found.logits <= 1e-3:
        reasons.append(f"the logits change by {found.logits:.3g} of the largest while the model is explained")
    if not found.alone <= 1e-2:
        reasons.append(
            f"an image's map depends on the batch it is in (by {found.alone:.3g} of its maximum); something in the "
            "model looks at the whole batch, such as batch normalisation without running statistics"
        )
    return reasons


def _tensor(images: Any) -> torch.Tensor:
    array = images if isinstance(images, torch.Tensor) else np.asarray(images)
    numbers = isinstance(array, torch.Tensor) or array.dtype.kind in "fiub"
    x = torch.as_tensor(array).detach() if numbers else torch.zeros(0)
    if not numbers or x.ndim != 4 or len(x) == 0 or not x.is_floating_point():
        found = f"{tuple(x.shape)} of {x.dtype}" if numbers else type(images).__name__
        raise DataError(
            "images must be an array of floating-point numbers of shape (n, C, H, W) with n at least 1, got "
            f"{found}; give them as the model was trained on them"
        )
    if not bool(torch.isfinite(x).all()):
        raise DataError("images must be finite, but hold NaN or infinity; leave out the damaged ones")
    return x
