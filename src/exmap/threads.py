"""How many threads torch and linear algebra take: one for each core that is free.

A thread that waits for a core holds up all others: beside another busy process on a machine with 2 cores, training
with two threads was three times slower than with one. So ``runtime.threads=auto`` counts the cores that this process
may use, and leaves out those that other programs keep busy.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from exmap.settings import RuntimeSettings

__all__ = ["Threads", "choose_threads", "computing_threads", "usable_cores"]

STAT = Path("/proc/stat")
MOMENT = 0.1  # seconds over which the processors are watched


@dataclass(frozen=True)
class Threads:
    """A number of threads.

    Attributes
    ----------
    number : int
    why : str
        The reason, as the end of a sentence.
    """

    number: int
    why: str

    def __str__(self) -> str:
        return f"{self.number} thread{'s' if self.number > 1 else ''}, {self.why}"


@lru_cache(maxsize=2)
def usable_cores(*, physical: bool = False) -> int:
    """Return how many cores this process may use: what its affinity and the quota of its container leave of them.

    Parameters
    ----------
    physical : bool
        Whether threads that share a core count once; computing gains nothing from the second one.
    """
    from joblib import cpu_count

    with warnings.catch_warnings():  # where the system does not tell one kind from the other
        warnings.simplefilter("ignore")
        return max(1, int(cpu_count(only_physical_cores=physical)))


def choose_threads(runtime: RuntimeSettings) -> Threads:
    """Return how many threads this process takes.

    By itself it never takes more than torch was told to, by ``OMP_NUM_THREADS`` or ``torch.set_num_threads``.
    """
    import torch

    if runtime.threads != "auto":
        return Threads(runtime.threads, "as runtime.threads says")
    cores, told = usable_cores(physical=True), torch.get_num_threads()
    busy = round(_busy())
    free = max(1, (os.cpu_count() or 1) - busy)
    number = min(cores, told, free)
    if free < min(cores, told):
        return Threads(number, f"as other programs keep {busy} of {os.cpu_count()} cores busy")
    if told < cores:
        return Threads(number, f"as torch was told, on {cores} cores")
    return Threads(number, f"one for each core that this process may use ({cores})")


@contextmanager
def computing_threads(number: int) -> Iterator[None]:
    """Let torch and linear algebra take that many threads inside the block, and as many as before on leaving."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(number):
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _busy() -> float:
    """Return how many cores are busy: over the last minute, or at this moment where that is less.

    The last minute alone would count what this process, or the command before it, has done.
    """
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has no such thing
        return 0.0
    return min(load, _busy_now(load)) if round(load) else load


def _busy_now(otherwise: float) -> float:
    """Return how many cores are busy at this moment, where Linux says."""
    before = _ticks()
    time.sleep(MOMENT)
    after = _ticks()
    if before is None or after is None or after[1] <= before[1]:
        return otherwise
    return (os.cpu_count() or 1) * (after[0] - before[0]) / (after[1] - before[1])


def _ticks() -> tuple[int, int] | None:
    """Return how long the processors have worked, and have been there, in Linux's ticks."""
    try:
        numbers = [int(word) for word in STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        return sum(numbers) - numbers[3] - numbers[4], sum(numbers)  # without idle, and waiting for a disk
    except (OSError, ValueError, IndexError):
        return None
