"""What computes shards, and blocks of numbers: an engine, one for a single process and one for many."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar

import torch

from exmap.cluster.sharing import in_threads
from exmap.data.dataset import Split
from exmap.engine.job import Job, Shard, alone
from exmap.records import Explained
from exmap.runtime import make_fabric
from exmap.settings import RuntimeSettings

__all__ = ["Engine", "LocalEngine", "Results", "engine_of"]

Shared = TypeVar("Shared")
Block = TypeVar("Block")
Made = TypeVar("Made")
Results = Generator[tuple[Shard, Explained], None, None]


class Engine(Protocol):
    """Computes the shards of a split, each once and in any order, and blocks of other numbers in order.

    Attributes
    ----------
    measured : dict of str to float
        What happened while the last shards were computed, such as the number of workers that were lost.
    """

    measured: dict[str, float]

    def compute(self, job: Job, split: Split, shards: Sequence[Shard]) -> Results:
        """Yield each shard with what was computed of it, as soon as it is there.

        Parameters
        ----------
        job : Job
        split : Split
            That the shards are of.
        shards : sequence of Shard
            Those that are wanted.

        Raises
        ------
        ProcessError
            If workers are lost again and again.
        ExMapError
            What the job raises.
        """
        ...

    def map_blocks(
        self, function: Callable[[Shared, Block], Made], shared: Shared, blocks: Sequence[Block]
    ) -> Generator[Made, None, None]:
        """Yield what a function makes of each block, in order; see :class:`~exmap.cluster.sharing.MapBlocks`.

        Raises
        ------
        ProcessError
            If workers are lost again and again.
        Exception
            What the function raises.
        """
        ...


class LocalEngine:
    """Computes in this process: shards one after the other, blocks by its threads.

    Parameters
    ----------
    device : torch.device, optional
        Where the model is moved to; by default it stays where it is.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.measured: dict[str, float] = {}

    def compute(self, job: Job, split: Split, shards: Sequence[Shard]) -> Results:
        """Yield each shard with what was computed of it, in order."""
        if self.device is not None:
            job.model.to(self.device)
        for shard in shards:
            yield shard, job(alone(split, shard), first=shard.number == 0)

    def map_blocks(
        self, function: Callable[[Shared, Block], Made], shared: Shared, blocks: Sequence[Block]
    ) -> Generator[Made, None, None]:
        """Yield what a function makes of each block, in order."""
        return in_threads(function, shared, blocks)


def engine_of(settings: RuntimeSettings, *, move: bool) -> Engine:
    """Return the engine that the settings name.

    Parameters
    ----------
    settings : RuntimeSettings
    move : bool
        Whether this process may move the model to the device of the settings.

    Raises
    ------
    SettingsError
        If its library is not installed.
    """
    if settings.engine == "local":
        device = make_fabric(settings).device if move else None
        if device is not None and device.type == "mps":  # it has no float64
            device = torch.device("cpu")
        return LocalEngine(device)
    from exmap.engine.on_ray import RayEngine

    return RayEngine(settings)
