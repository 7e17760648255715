"""Weights in files: those of exmap's own runs as safetensors, and any file that holds weights of the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from exmap.model.backbone import build_model
from exmap.model.safe import detached, load_tensors, save_tensors
from exmap.model.weights_file import WeightsFile
from exmap.settings import ModelSettings

__all__ = [
    "WeightsFile",
    "detached",
    "initial_model",
    "load_tensors",
    "load_weights",
    "save_tensors",
    "save_weights",
]


def initial_model(settings: ModelSettings, n_classes: int, *, seed: int) -> nn.Module:
    """Return the classifier as training begins with it: built, and with the weights of its file if it has one."""
    model = build_model(settings, n_classes, seed=seed)
    if settings.weights is not None:
        load_weights(model, settings.weights, outputs=settings.outputs, halved=True)
    return model


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the model's state to `path` as safetensors."""
    save_tensors(model.state_dict(), path)


def load_weights(model: nn.Module, path: Path, *, outputs: Sequence[int] = (), halved: bool = False) -> None:
    """Load the weights of a file into a model of the same architecture; nothing of the file is executed.

    Parameters
    ----------
    model : torch.nn.Module
        Stays as it is where the file does not fit.
    path : Path
        Safetensors, or what ``torch.save`` wrote: of a state dict, of a checkpoint that holds one (Lightning's, timm's,
        your own), or of a whole module. Names may have a prefix, such as ``model.`` or ``module.``.
    outputs : sequence of int
        Which outputs of the file's classifier are those of the model; by default all.
    halved : bool
        Whether the one output of a file's classifier of two classes may become the two of the model.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or belongs to another architecture: what is missing or too much is named.
    """
    model.load_state_dict(WeightsFile.read(path, model).state_for(model, outputs, halved=halved))
