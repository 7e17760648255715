"""Copy models that resist copying, and find out whether a module is a linear map by trying it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.errors import DataError

__all__ = ["affine_map", "copied", "name_in_copy"]


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model, whatever its modules keep in themselves.

    ``torch.nn.utils.weight_norm`` keeps the weight it computed, with its gradient's history, which
    :func:`copy.deepcopy` refuses. The copy gets its values alone, and recomputes it when it runs. What
    ``torch.compile`` has compiled is no longer so in the copy: it would run the model it was copied from.

    Raises
    ------
    DataError
        If something else in the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in (*vars(module).values(), *module._buffers.values()):
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return _uncompiled(copy.deepcopy(model, memo))
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the model must be one that copy.deepcopy copies, because a copy of it is changed, but it says: {first}; "
            "take out of its modules what cannot be copied (open files, processes, hooks that hold such)"
        ) from error


def _uncompiled(model: nn.Module) -> nn.Module:
    """Put what was compiled back into the places of the compiled modules."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            inner = None if child is None or name == "_orig_mod" else child._modules.get("_orig_mod")
            if inner is not None:
                module._modules[name] = inner
    return model


def name_in_copy(name: str) -> str:
    """Return the name of a module or parameter in what :func:`copied` returns."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def affine_map(module: nn.Module, x: torch.Tensor, axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return weight (K, D) and bias (K,) of a module that is a linear map of the features at each position, or None.

    Parameters
    ----------
    module : torch.nn.Module
        A copy of it is run in float64 on zeros and on each feature alone, then on `x` and on random numbers.
    x : Tensor, shape (n, ..., D, ...)
    axis : int
        Where the features lie.
    """
    width = x.shape[axis]
    if width > 16384:
        return None
    values = x.detach().cpu().double()
    drawn = torch.from_numpy(np.random.default_rng(0).normal(size=tuple(x.shape))) * (1 + values.abs().max())
    shape = [1] * x.ndim
    shape[0], shape[axis] = width + 1, width
    basis = torch.cat([torch.zeros(1, width), torch.eye(width)]).double()
    try:
        with torch.no_grad():
            double = copied(module).cpu().double().eval()
            made = double(basis.reshape(shape))
            pairs = [(given, double(given.clone())) for given in (values, drawn)]
    except Exception:  # whatever it says of such values: it is not a plain linear map then
        return None
    if made.ndim != x.ndim or made.numel() != made.shape[0] * made.shape[axis]:
        return None
    made = made.reshape(width + 1, -1).numpy()
    bias = made[0]
    weight = (made[1:] - bias).T
    for given, wanted in pairs:
        again = given.movedim(axis, -1).numpy() @ weight.T + bias
        close = wanted.movedim(axis, -1).numpy()
        if again.shape != close.shape or np.abs(again - close).max() > 1e-9 * (1 + np.abs(close).max()):
            return None
    return weight, bias
