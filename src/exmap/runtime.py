"""Device, precision and processes from settings, through Lightning Fabric; and seeds without global state.

A run has one seed. Every stage, epoch and repeat derives its own from it by name, so that no stage's draws depend
on how many another stage made, and nothing ever touches a global generator.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from exmap.config import RuntimeSettings
from exmap.errors import SettingsError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["child_seed", "generator", "make_fabric", "torch_seed"]


def child_seed(seed: int, *names: str | int) -> int:
    """Return the seed in [0, 2**32) of the child that `names` lead to.

    Examples
    --------
    >>> child_seed(0, "train", 1) == child_seed(0, "train", 1) != child_seed(0, "train", 2)
    True
    """
    key = [zlib.crc32(str(name).encode()) for name in names]
    return int(np.random.SeedSequence([seed, *key]).generate_state(1)[0])


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator of its own for the child that `names` lead to."""
    return np.random.default_rng(child_seed(seed, *names))


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Seed torch inside the block only; the caller's generators are as before on leaving."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def make_fabric(settings: RuntimeSettings) -> Fabric:
    """Return a Fabric for the settings; several processes are spawned by its ``launch``.

    Raises
    ------
    SettingsError
        If the accelerator or the number of devices is not there.
    """
    from lightning_fabric import Fabric

    try:
        return Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            precision=settings.precision,
            strategy="ddp_spawn" if settings.devices > 1 else "auto",
        )
    except Exception as error:  # Fabric raises several kinds for the same cause: the device is not there
        raise SettingsError(
            f"runtime.accelerator={settings.accelerator} with runtime.devices={settings.devices} cannot be used here: "
            f"{error} Set runtime.accelerator=cpu or lower runtime.devices"
        ) from error
