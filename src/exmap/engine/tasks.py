"""Map a function over blocks by tasks of a Ray cluster, in order, each until one worker has done it.

What all blocks need is put into the cluster's object store once, where every machine gets it from. A task holds nothing
that is needed later, so Ray gives it to another worker where one has died.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import exmap
from exmap.engine.workers import check_version, why_lost
from exmap.errors import ProcessError
from exmap.runtime import worker_threads

__all__ = ["made_by_tasks"]

MOST_LOSSES = 5  # of one block, after which it is taken for the reason
AHEAD = 4  # blocks for each core of the cluster that are given away before their results are asked for

Shared = TypeVar("Shared")
Block = TypeVar("Block")
Made = TypeVar("Made")


def made_by_tasks(
    ray: Any, function: Callable[[Shared, Block], Made], shared: Shared, blocks: Sequence[Block]
) -> Generator[Made, None, None]:
    """Yield what a function makes of each block, in order.

    Parameters
    ----------
    ray : module
        Connected to a cluster.
    function, shared, blocks
        As of :class:`~exmap.cluster.sharing.MapBlocks`.

    Raises
    ------
    SettingsError
        If the cluster runs another version of exmap.
    ProcessError
        If a block has lost several workers.
    Exception
        What the function raises.
    """
    task = ray.remote(num_cpus=1, max_retries=MOST_LOSSES, scheduling_strategy="SPREAD")(_block)
    kept = ray.put(shared)
    left, given = deque(blocks), deque[Any]()
    try:
        while left or given:
            most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while left and len(given) < most:
                given.append(task.remote(exmap.__version__, function, kept, left.popleft()))
            yield _result(ray, given.popleft())
    finally:
        for reference in given:
            with suppress(Exception):
                ray.cancel(reference)


def _block(version: str, function: Callable[[Shared, Block], Made], shared: Shared, block: Block) -> Made:
    """Make what is asked for of one block, in a process of the cluster."""
    check_version(version)
    with worker_threads():  # each product takes one thread, as it does in threads of one process
        return function(shared, block)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except Exception as error:
        why = why_lost(ray, error)
        raise ProcessError(
            f"each block of cells must be searched by some worker of the Ray cluster, but {MOST_LOSSES} died at one "
            f"({why}); give the cluster more memory, or set runtime.engine=local, and rerun the same command"
        ) from error
