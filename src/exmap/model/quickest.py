"""Which precision trains a network quickest here: what the device says, or a few steps where that leaves doubt."""

from __future__ import annotations

import itertools
import time

import numpy as np
from torch import nn

from exmap.data.dataset import Split
from exmap.errors import NumericalError
from exmap.model.fit import fit
from exmap.model.probe import copied
from exmap.precision import Precision, PrecisionChoice, choose_precision
from exmap.records import Progress
from exmap.runtime import launched, make_fabric
from exmap.settings import RuntimeSettings, TrainSettings

__all__ = ["quickest_precision"]

STEPS = 5  # of each precision; the first ones are slower than all others
WORTH = 20  # times as many images as the trial takes must be trained on
MARGIN = 1.15  # how many times as quick another precision than float32 must be

_FOUND: dict[tuple[object, ...], PrecisionChoice] = {}  # of trainings of the same kind in this process


def quickest_precision(
    model: nn.Module, train: Split, settings: TrainSettings, runtime: RuntimeSettings
) -> PrecisionChoice:
    """Return the precision to train a network in.

    Where it is left open, and the device has instructions for bfloat16 that may not pay, a copy of the network takes a
    few steps in each precision. Several processes, and trainings that are shorter than 20 such trials, do what the
    device's instructions suggest.

    Parameters
    ----------
    model : torch.nn.Module
        Stays as it is.
    train : Split
        Of whose first images the trial's batches are made.
    settings : TrainSettings
    runtime : RuntimeSettings
    """
    choice = choose_precision(runtime)
    images = STEPS * settings.batch_size
    if choice.certain or runtime.processes > 1 or launched() or settings.epochs * len(train) < WORTH * images:
        return choice
    size = sum(parameter.numel() for parameter in model.parameters())
    key = (type(model).__qualname__, size, train.images.shape, settings.batch_size, runtime)
    if key not in _FOUND:
        seconds: dict[Precision, float] = {
            precision: _seconds(model, train, settings, runtime.model_copy(update={"precision": precision}))
            for precision in ("32-true", "bf16-mixed")
        }
        plain, mixed = seconds["32-true"], seconds["bf16-mixed"]
        best: Precision = "bf16-mixed" if mixed * MARGIN < plain else "32-true"
        why = f"as a step takes {plain:.3g} s in 32-true here, and {mixed:.3g} s in bf16-mixed"
        _FOUND[key] = PrecisionChoice(best, why)
    return _FOUND[key]


def _seconds(model: nn.Module, train: Split, settings: TrainSettings, runtime: RuntimeSettings) -> float:
    """Return how long a step takes in one precision; infinity where it leaves the finite numbers."""
    stamps = [time.perf_counter()]

    def listen(_: Progress) -> None:
        stamps.append(time.perf_counter())

    some = train.rows(np.resize(np.arange(len(train)), STEPS * settings.batch_size))
    trial = settings.model_copy(update={"epochs": 1})
    try:
        fit(copied(model), some, None, trial, fabric=make_fabric(runtime), seed=0, listen=listen)
    except NumericalError:
        return float("inf")
    return min(later - earlier for earlier, later in itertools.pairwise(stamps))
