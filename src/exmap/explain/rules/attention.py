"""Softmax, and attention in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from exmap.explain.rules.activations import absorbed
from exmap.explain.rules.table import depends, hold, other_call, rule, run_other

if TYPE_CHECKING:
    from exmap.explain.engine import Call, Engine

__all__ = []


@rule("softmax", "softmax log_softmax softmin special_softmax special_log_softmax")
def _softmax(call: Call, engine: Engine) -> Any:
    """Hold probabilities (Ali et al., 2022), or take their gradient (Achtibat et al., 2024), as the composite says."""
    output = absorbed(call, engine)
    output._exmap_before = getattr(call.data[0], "_exmap_before", call.data[0])
    return hold(output, engine.composite.softmax == "held")


@rule("attention", "scaled_dot_product_attention")
def _attention(call: Call, engine: Engine) -> Any:
    """Weigh values by probabilities: held, or by the gradient of softmax and the rule for products."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    query, key, value, mask, _, causal = (call.argument(i, name) for i, name in enumerate(names))
    if not depends(value):  # learned values: query and key are all that depends on the input
        return absorbed(call, engine)
    if engine.composite.softmax == "held":
        query, key = query.detach(), key.detach()
        mask = mask.detach() if isinstance(mask, torch.Tensor) else mask
        options = {key_: call.kwargs[key_] for key_ in ("scale", "enable_gqa") if key_ in call.kwargs}
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=bool(causal), **options
        )
    return _open_attention(call, engine, query, key, value, mask, bool(causal))


def _open_attention(call: Call, engine: Engine, query: Any, key: Any, value: Any, mask: Any, causal: bool) -> Any:
    """Compute attention by visible operations."""
    scale = call.kwargs.get("scale") or query.shape[-1] ** -0.5
    if call.kwargs.get("enable_gqa"):
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    scores = run_other(call, torch.matmul, "matmul", engine, query * scale, key.transpose(-2, -1))
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.inf)
    if mask is not None:
        scores = run_other(call, torch.add, "add", engine, scores, mask)
    softmax = other_call(call, torch.softmax, "softmax", scores, -1)
    weights = _softmax(softmax, engine)
    return run_other(call, torch.matmul, "matmul", engine, weights, value)
