"""Device, precision and processes from settings, through Lightning Fabric; and seeds without global state.

A run has one seed. Every stage, epoch and repeat derives its own from it by name, so that no stage's draws depend
on how many another stage made, and nothing ever touches a global generator.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from exmap.config import RuntimeSettings
from exmap.errors import SettingsError
from exmap.records import Listener, Progress, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["child_seed", "generator", "make_fabric", "torch_seed", "without_denormals"]

Result = TypeVar("Result")


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


def without_denormals(work: Callable[[Listener], Result], listen: Listener = silent) -> Result:
    """Do work in a thread in which numbers below 1e-38 count as zero.

    Once a network fits its training set, gradients fall into that range, and a CPU is several times slower at it. The
    setting belongs to a thread, and torch's worker threads inherit it only from the thread that first needs them: so
    the work gets a thread of its own, and the caller's threads stay as they are.

    Parameters
    ----------
    work : callable
        Takes a listener, which it should call often: an interrupt of the caller reaches the work there.
    listen : Listener
    """
    import torch

    outcome: list[Result] = []
    failure: list[BaseException] = []
    interrupted = threading.Event()

    def heard(progress: Progress) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        listen(progress)

    def run() -> None:
        torch.set_flush_denormal(True)
        try:
            outcome.append(work(heard))
        except BaseException as error:  # whatever it is, it belongs to the caller
            failure.append(error)

    thread = threading.Thread(target=run, name="exmap-work", daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        interrupted.set()
        thread.join()
        raise
    if failure:
        raise failure[0]
    return outcome[0]


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
