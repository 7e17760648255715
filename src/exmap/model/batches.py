"""Compute a split batch after batch, in one process or in several: images come from readers that work ahead.

With several processes a round is one batch for each, so the batches, and with them every number, are those of one
process. Results are sent to the first process as they are made: nothing waits for the end of the split, no memory grows
with it, and a process that has died is noticed by the next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from exmap.data.dataset import Split, batch_slices
from exmap.model.halving import AtOnce

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Compute", "Halved", "agreed_size", "computed_batches", "is_first"]

Compute = Callable[[slice, NDArray[np.float32]], Sequence[torch.Tensor]]


def is_first(fabric: Fabric | None) -> bool:
    """Return whether this process is the one that is given results."""
    return fabric is None or fabric.global_rank == 0


def agreed_size(size: int, fabric: Fabric | None) -> int:
    """Return the smallest of the batches that the processes would take, each by the memory that it finds free."""
    if fabric is None or fabric.world_size == 1:
        return size
    smallest: Any = fabric.all_reduce(torch.tensor(size), reduce_op="min")
    return int(smallest)


def computed_batches(
    split: Split, size: int, compute: Compute, fabric: Fabric | None = None
) -> Iterator[tuple[slice, Sequence[NDArray[Any]]]]:
    """Yield what is computed of each batch, in order: all in the first process, nothing in the others.

    Parameters
    ----------
    split : Split
    size : int
        Images in a batch; the smallest of what the processes say.
    compute : callable
        Makes of a slice of the split and its images tensors with one row per image; their further dimensions and
        kinds of numbers must be the same for every batch.
    fabric : Fabric, optional
        Launched. All its processes must come here together.
    """
    size = agreed_size(size, fabric)
    parts = list(batch_slices(len(split), size))
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    group: Any = torch.distributed.new_group(backend="gloo") if world > 1 else None  # results are wanted on the CPU
    rows = ((np.arange(part.start, part.stop, dtype=np.int64), None) for part in parts[rank::world])
    sent: list[Any] = []
    compute = Halved(compute, size)
    for number, images in enumerate(split.images.stream(rows)):
        turn = parts[number * world : (number + 1) * world]
        made = [tensor.cpu().contiguous() for tensor in compute(turn[rank], images)]
        if rank > 0:
            _wait(sent)  # at most one batch ahead of the first process
            sent = [(torch.distributed.isend(tensor, dst=0, group=group), tensor) for tensor in made]
            continue
        yield turn[0], [tensor.numpy() for tensor in made]
        for other, part in enumerate(turn[1:], start=1):
            received = [tensor.new_empty((part.stop - part.start, *tensor.shape[1:])) for tensor in made]
            for tensor in received:
                torch.distributed.recv(tensor, src=other, group=group)
            yield part, [tensor.numpy() for tensor in received]
    _wait(sent)


class Halved:
    """What is computed of a batch, in halves where memory runs out, and from then on in parts of that size.

    Parameters
    ----------
    compute : callable
    size : int
        Images in a batch.
    """

    def __init__(self, compute: Compute, size: int) -> None:
        self.compute, self.at_once = compute, AtOnce(size)

    def __call__(self, part: slice, images: NDArray[np.float32]) -> Sequence[torch.Tensor]:
        """Return the tensors of all images of a batch."""

        def of(piece: slice) -> Sequence[torch.Tensor]:
            return self.compute(slice(part.start + piece.start, part.start + piece.stop), images[piece])

        made = list(self.at_once.parts(len(images), of))
        return made[0] if len(made) == 1 else [torch.cat([t.cpu() for t in rows]) for rows in zip(*made, strict=True)]


def _wait(sent: list[Any]) -> None:
    """Wait until tensors have been received; they are kept until then."""
    for request, _ in sent:
        request.wait()
