"""Read what ``torch.save`` wrote without executing anything of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from exmap.errors import CheckpointError
from exmap.importing import first_line

__all__ = ["Shell", "read_torch", "state_of"]

ADVICE = "save model.state_dict() alone, best by safetensors.torch.save_file"


class Shell:
    """What is left of an object whose class is not loaded: its name and the values that were kept of it."""

    name = "object"

    def __new__(cls, *args: Any, **kwargs: Any) -> Shell:
        """Take whatever the class was given, and do nothing with it."""
        made = super().__new__(cls)
        made.items, made.state = {}, None
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.items: dict[Any, Any]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


def read_torch(path: Path) -> Any:
    """Return what a file of ``torch.save`` holds: tensors, numbers, texts and containers; all else as a :class:`Shell`.

    Raises
    ------
    CheckpointError
        If it cannot be read without executing something.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other pickle protocols: what cannot be read is said below
        return _read(path)


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = error
    if "TorchScript" in str(first):
        raise CheckpointError(
            f"{path} is a TorchScript program, not a file of weights; give it as the model, torchscript:{path}"
        ) from first
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        shells: list[Any] = [(type("Shell", (Shell,), {"name": name}), name) for name in unknown]
        with torch.serialization.safe_globals(shells):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of a file that is cut off, or asks for a function of the system; the first error says it best
        raise CheckpointError(
            f"{path} must be a whole file of weights that can be read without executing anything, but it cannot "
            f"({_short(first)}); {ADVICE}"
        ) from first


def _short(error: Exception) -> str:
    text, marker = str(error), "WeightsUnpickler error:"
    lines = [line for line in text.partition(marker)[2].splitlines() if line.strip()]
    found = [line for line in text.splitlines() if "GLOBAL" in line] or lines or [first_line(error)]
    return found[0].rpartition(marker)[2].strip().partition(". ")[0][:160].rstrip(". ")


def state_of(shell: Shell) -> Mapping[str, torch.Tensor]:
    """Return the state dict of a module that was saved whole, of its shell; empty where it is no module."""
    return dict(_tensors(shell, ""))


def _tensors(shell: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    state = getattr(shell, "state", None)
    if not isinstance(state, Mapping):
        return
    for kind in ("_parameters", "_buffers"):
        absent = state.get("_non_persistent_buffers_set") or ()
        for name, value in (state.get(kind) or {}).items():
            if isinstance(value, torch.Tensor) and not (kind == "_buffers" and name in absent):
                yield f"{prefix}{name}", value.detach()
    for name, child in (state.get("_modules") or {}).items():
        yield from _tensors(child, f"{prefix}{name}.")
