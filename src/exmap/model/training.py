"""Train over one or several processes, and keep the loop's state in one safetensors file."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from exmap.config import RuntimeSettings, TrainSettings
from exmap.data.dataset import Split
from exmap.errors import CheckpointError
from exmap.model.fit import Checkpoint, FitState, Row, fit
from exmap.model.weights import detached, load_tensors, save_tensors
from exmap.records import Listener, silent
from exmap.runtime import make_fabric

__all__ = ["FileCheckpoint", "train_model"]


class FileCheckpoint:
    """A training state in one safetensors file, replaced as a whole after each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> FitState | None:
        """Return the state in the file, or None if there is no file yet."""
        if not self.path.exists():
            return None
        tensors, metadata = load_tensors(self.path)
        parts: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "momentum": {}, "best": {}}
        try:
            for name, tensor in tensors.items():
                kind, _, rest = name.partition("/")
                parts[kind][rest] = tensor
            return FitState(epoch=int(metadata["epoch"]), history=json.loads(metadata["history"]), **parts)
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{self.path} is not a training state of exmap ({error!r}); delete it") from error

    def save(self, state: FitState) -> None:
        """Replace the file by the state."""
        parts = {"weights": state.weights, "momentum": state.momentum, "best": state.best}
        tensors = {f"{kind}/{name}": tensor for kind, part in parts.items() for name, tensor in part.items()}
        save_tensors(tensors, self.path, {"epoch": str(state.epoch), "history": json.dumps(state.history)})


def train_model(
    model: nn.Module,
    train: Split,
    val: Split,
    settings: TrainSettings,
    runtime: RuntimeSettings,
    *,
    seed: int,
    checkpoint: Checkpoint | None = None,
    listen: Listener = silent,
) -> list[Row]:
    """Train `model` in place on the devices that `runtime` names.

    Parameters
    ----------
    model, train, val, settings, seed, checkpoint, listen
        As for :func:`exmap.model.fit.fit`.
    runtime : RuntimeSettings
        With more than one device the processes are spawned: a script then needs ``if __name__ == "__main__":``.

    Returns
    -------
    list of dict
        One row per epoch.
    """
    # The model is an argument of its own: Fabric then gives each process its own copy of the weights.
    job = partial(
        _fit_in_process, train=train, val=val, settings=settings, seed=seed, checkpoint=checkpoint, listen=listen
    )
    weights, history = make_fabric(runtime).launch(job, model)
    model.load_state_dict(safetensors.torch.load(weights))
    return list(history)


def _fit_in_process(
    fabric: Any,
    model: nn.Module,
    *,
    train: Split,
    val: Split,
    settings: TrainSettings,
    seed: int,
    checkpoint: Checkpoint | None,
    listen: Listener,
) -> tuple[bytes, list[Row]]:
    """Train in this process; the weights go back as bytes, since shared memory ends with the process."""
    heard = listen if fabric.global_rank == 0 else silent
    history = fit(model, train, val, settings, fabric=fabric, seed=seed, checkpoint=checkpoint, listen=heard)
    return safetensors.torch.save(detached(model.state_dict())), history
