"""Weights as safetensors: written whole or not at all, and read without executing anything.

A file of another architecture is refused with the first layer that differs and both shapes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from exmap.errors import CheckpointError
from exmap.model.backbone import build_model
from exmap.settings import ModelSettings

__all__ = ["detached", "initial_model", "load_tensors", "load_weights", "save_tensors", "save_weights"]


def initial_model(settings: ModelSettings, n_classes: int, *, seed: int) -> nn.Module:
    """Return the classifier as training begins with it: built, and with the weights of its file if it has one."""
    model = build_model(settings, n_classes, seed=seed)
    if settings.weights is not None:
        load_weights(model, settings.weights)
    return model


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to `path`; the file appears under its name only when it is whole."""
    part = path.with_name(path.name + ".part")
    try:
        save_file(detached(tensors), part, metadata=dict(metadata or {}))
    except SafetensorError as error:  # the library wraps the system's error; give back what a caller can catch
        part.unlink(missing_ok=True)
        raise OSError(f"{path} could not be written: {error}") from error
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
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} must be a whole safetensors file, but cannot be read ({error}); convert pickled checkpoints with "
            "safetensors.torch.save_file where you trust them"
        ) from error


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the model's state to `path` as safetensors."""
    save_tensors(model.state_dict(), path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state written by :func:`save_weights` into a model of the same architecture.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or belongs to another architecture.
    """
    tensors, _ = load_tensors(path)
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise CheckpointError(
                f"{path} has no layer {name!r}, which the model has with shape {tuple(tensor.shape)}; it belongs to "
                "another architecture: build the model it was saved from"
            )
        if tensors[name].shape != tensor.shape:
            raise CheckpointError(
                f"layer {name!r} has shape {tuple(tensor.shape)} in the model and {tuple(tensors[name].shape)} in "
                f"{path}; the weights belong to another architecture: build the model they were saved from"
            )
    if extra := [name for name in tensors if name not in expected]:
        raise CheckpointError(
            f"{path} has a layer {extra[0]!r} of shape {tuple(tensors[extra[0]].shape)} that the model lacks; it "
            "belongs to another architecture: build the model it was saved from"
        )
    model.load_state_dict(tensors)
