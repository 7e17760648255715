"""Tensors as safetensors: written whole or not at all, and read without executing anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from exmap.errors import CheckpointError, not_written
from exmap.plain_text import textual_path

__all__ = ["detached", "load_tensors", "save_tensors"]


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to `path`; the file appears under its name only when it is whole."""
    part = path.with_name(path.name + ".part")
    try:
        save_file(detached(tensors), part, metadata=dict(metadata or {}))
    except SafetensorError as error:
        part.unlink(missing_ok=True)
        raise not_written(path, error) from error
    os.replace(part, path)


def detached(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies on the CPU that share no memory: what safetensors takes, tied weights included."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read tensors and metadata.

    Raises
    ------
    CheckpointError
        If the file is missing or is not a whole safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"weights file {path} does not exist; give an existing safetensors file")
    try:
        with textual_path(path) as readable, safe_open(readable, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} must be a whole safetensors file, but cannot be read ({error}); convert pickled checkpoints with "
            "safetensors.torch.save_file where you trust them"
        ) from error
