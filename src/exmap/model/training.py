"""Train over one or several processes, and keep the loop's state in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from exmap.data.dataset import Split
from exmap.errors import CheckpointError, SettingsError
from exmap.model.fit import Checkpoint, FitState, Objective, Row, Weights, fit
from exmap.model.quickest import quickest_precision
from exmap.model.running import surroundings
from exmap.model.weights import detached, load_tensors, save_tensors
from exmap.records import IntArray, Listener, silent
from exmap.runtime import in_processes
from exmap.settings import RuntimeSettings, TrainSettings

__all__ = ["FileCheckpoint", "train_choices", "train_model"]


class FileCheckpoint:
    """A training state in one safetensors file, replaced as a whole after each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> FitState | None:
        """Return the state in the file, or None if there is no file yet."""
        if not self.path.exists():
            return None
        tensors, metadata = load_tensors(self.path)
        parts: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "momentum": {}}
        try:
            history = json.loads(metadata["history"])
            best: dict[str, Weights] = {f"best{number}": {} for number in range(len(history))}
            for name, tensor in tensors.items():
                kind, _, rest = name.partition("/")
                {**parts, **best}[kind][rest] = tensor
            return FitState(int(metadata["epoch"]), **parts, best=list(best.values()), history=history)
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{self.path} is not a training state of exmap ({error!r}); delete it") from error

    def save(self, state: FitState) -> None:
        """Replace the file by the state."""
        best = {f"best{number}": weights for number, weights in enumerate(state.best)}
        parts = {"weights": state.weights, "momentum": state.momentum, **best}
        tensors = {f"{kind}/{name}": tensor for kind, part in parts.items() for name, tensor in part.items()}
        save_tensors(tensors, self.path, {"epoch": str(state.epoch), "history": json.dumps(state.history)})


def train_model(
    model: nn.Module,
    train: Split,
    val: Split | None,
    settings: TrainSettings,
    runtime: RuntimeSettings,
    *,
    seed: int,
    checkpoint: Checkpoint | None = None,
    listen: Listener = silent,
) -> list[Row]:
    """Train `model` in place on the devices that `runtime` names, and leave it with the weights of the chosen epoch.

    Parameters
    ----------
    model, train, val, settings, seed, checkpoint, listen
        As for :func:`exmap.model.fit.fit`.
    runtime : RuntimeSettings
        With more than one device the processes are spawned, unless torchrun has started them: a script then needs
        ``if __name__ == "__main__":``.

    Returns
    -------
    list of dict
        One row per epoch.
    """
    (history,), (weights,) = train_choices(
        model, train, val, settings, runtime, seed=seed, checkpoint=checkpoint, listen=listen
    )
    model.load_state_dict(weights)
    return history


def train_choices(
    model: nn.Module,
    train: Split,
    val: Split | None,
    settings: TrainSettings,
    runtime: RuntimeSettings,
    *,
    seed: int,
    objective: Objective | None = None,
    choices: Sequence[IntArray] | None = None,
    checkpoint: Checkpoint | None = None,
    listen: Listener = silent,
) -> tuple[list[list[Row]], list[Weights]]:
    """Train once and choose an epoch several times, as :func:`exmap.model.fit.fit` does, on `runtime`'s devices.

    With one device `model` is trained in place; with several it stays as it is.

    Raises
    ------
    SettingsError
        If the objective follows samples or groups from batch to batch, and there is more than one device.
    """
    if objective is not None and objective.one_process and runtime.processes > 1:
        raise SettingsError(
            f"a training that weighs samples by what it has seen of them runs in one process, got "
            f"{runtime.processes}; set runtime.devices=1"
        )
    # The model is an argument of its own: Fabric then gives each process its own copy of the weights.
    job = partial(
        _fit_in_process,
        train=train,
        val=val,
        settings=settings,
        seed=seed,
        objective=objective,
        choices=choices,
        checkpoint=checkpoint,
        listen=listen,
    )
    with surroundings():
        if runtime.precision == "auto":
            chosen = quickest_precision(model, train, settings, runtime)
            runtime = runtime.model_copy(update={"precision": chosen.precision})
        history, weights = in_processes(runtime, job, model)
    return history, [safetensors.torch.load(each) for each in weights]


def _fit_in_process(
    fabric: Any, model: nn.Module, *, listen: Listener, **job: Any
) -> tuple[list[list[Row]], list[bytes]]:
    """Train in this process; the weights go back as bytes, since shared memory ends with the process."""
    history, best = fit(model, fabric=fabric, listen=listen if fabric.global_rank == 0 else silent, **job)
    return history, [safetensors.torch.save(detached(weights)) for weights in best]
