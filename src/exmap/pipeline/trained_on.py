"""What a training computes with on the machine that it finds: decided once, and kept where it is interrupted."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from exmap.data import Split
from exmap.model.quickest import quickest_precision
from exmap.pipeline.disk import read_json, write_json
from exmap.precision import device_name
from exmap.results import TrainedOn
from exmap.runtime import process_number
from exmap.settings import RuntimeSettings, TrainSettings

__all__ = ["forget_training", "training_here"]

FILE = "trained_on.json"  # in the folder of a training that is not done


def training_here(
    model: nn.Module, train: Split, settings: TrainSettings, runtime: RuntimeSettings, folder: Path | None
) -> TrainedOn:
    """Return device, precision, the reason for it, and threads of a training.

    One that goes on on the same device keeps its precision, and so ends as if it had not been interrupted.
    """
    path = None if folder is None else folder / FILE
    device = device_name(runtime.accelerator)
    if path is not None and path.exists() and runtime.precision == "auto":
        with suppress(ValidationError):
            before = TrainedOn.model_validate(read_json(path))
            if before.device == device:
                return before.changed(threads=torch.get_num_threads())
    choice = quickest_precision(model, train, settings, runtime)
    made = TrainedOn(device=device, precision=choice.precision, why=choice.why, threads=torch.get_num_threads())
    if path is not None and process_number() == 0:
        write_json(path, made.model_dump())
    return made


def forget_training(folder: Path | None) -> None:
    """Remove the file of a training that is done; the record of its step says the same."""
    if folder is not None and process_number() == 0:
        (folder / FILE).unlink(missing_ok=True)
