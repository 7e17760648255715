"""Which logit of each image is explained."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from exmap.errors import SettingsError

__all__ = ["explained_logit"]


def explained_logit(logits: torch.Tensor, target: str | int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the explained classes, shape (n,), and the logits or differences of logits, shape (n,)."""
    count = logits.shape[1]
    if isinstance(target, str):
        if target not in ("predicted", "margin"):
            raise SettingsError(f"target must be predicted, margin, a class or one class per image, got {target!r}")
        chosen = logits.detach().float().argmax(dim=1)  # outputs are kept in float32, and name the same class
    else:
        chosen = _classes(target, len(logits)).to(logits.device)
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < count:
        raise SettingsError(
            f"target must be a class in [0, {count - 1}], because the model has {count} outputs, got "
            f"{int(chosen.min())} to {int(chosen.max())}"
        )
    explained = logits.gather(1, chosen[:, None])[:, 0]
    if isinstance(target, str) and target == "margin":
        others = logits.detach().scatter(1, chosen[:, None], -torch.inf)
        explained = explained - logits.gather(1, others.argmax(dim=1, keepdim=True))[:, 0]
    return chosen, explained


def _classes(target: Any, n: int) -> torch.Tensor:
    """Return one class per image of a number or an array of classes."""
    found = np.asarray(target.cpu() if isinstance(target, torch.Tensor) else target)
    if found.dtype.kind not in "iu" or found.ndim > 1:
        raise SettingsError(
            f"target must be predicted, margin, a class or an array of one class per image, got {target!r:.60}"
        )
    if found.ndim == 1 and len(found) != n:
        raise SettingsError(f"target must be one class for each of the {n} images, got {len(found)} classes")
    return torch.from_numpy(np.broadcast_to(found, (n,)).astype(np.int64))
