"""Who does the work of a clustering, block by block, and who hears how far it has come.

Neither changes what is computed. So neither is an argument of clusterers, which keep scikit-learn's contract, nor of
what calls them: it is said once for all that is done inside a block of code, as by joblib's ``parallel_config``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from exmap.records import Listener, silent
from exmap.runtime import worker_threads

__all__ = ["MapBlocks", "Sharing", "in_threads", "shared_out", "sharing"]

Shared = TypeVar("Shared")
Block = TypeVar("Block")
Made = TypeVar("Made")


class MapBlocks(Protocol):
    """Maps a function over blocks, in order, wherever the work is done."""

    def __call__(
        self, function: Callable[[Shared, Block], Made], shared: Shared, blocks: Sequence[Block]
    ) -> Generator[Made, None, None]:
        """Yield what the function makes of each block.

        Parameters
        ----------
        function : callable
            Of a module, so that other processes find it.
        shared : object
            What all blocks need. It is sent to each machine once.
        blocks : sequence
        """
        ...


def in_threads(
    function: Callable[[Shared, Block], Made], shared: Shared, blocks: Sequence[Block]
) -> Generator[Made, None, None]:
    """Yield what a function makes of each block, in order, by threads of this process."""
    with worker_threads() as pool:
        yield from pool.map(partial(function, shared), blocks)


@dataclass(frozen=True)
class Sharing:
    """How the work of clusterings is shared out.

    Attributes
    ----------
    map_blocks : MapBlocks
    listen : Listener
    """

    map_blocks: MapBlocks = in_threads
    listen: Listener = silent


ALONE = Sharing()
_NOW: ContextVar[Sharing] = ContextVar("sharing")


def sharing() -> Sharing:
    """Return how work is shared out here."""
    return _NOW.get(ALONE)


@contextmanager
def shared_out(map_blocks: MapBlocks = in_threads, listen: Listener = silent) -> Iterator[None]:
    """Share the work of all clusterings inside the block out in this way."""
    token = _NOW.set(Sharing(map_blocks, listen))
    try:
        yield
    finally:
        _NOW.reset(token)
