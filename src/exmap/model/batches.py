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

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Compute", "computed_batches", "is_first"]

Compute = Callable[[slice, NDArray[np.float32]], Sequence[torch.Tensor]]


def is_first(fabric: Fabric | None) -> bool:
    """Return whether this process is the one that is given results."""
    return fabric is None or fabric.global_rank == 0


def computed_batches(
    split: Split, size: int, compute: Compute, fabric: Fabric | None = None
) -> Iterator[tuple[slice, Sequence[NDArray[Any]]]]:
    """Yield what is computed of each batch, in order: all in the first process, nothing in the others.

    Parameters
    ----------
    split : Split
    size : int
        Images in a batch.
    compute : callable
        Makes of a slice of the split and its images tensors with one row per image; their further dimensions and
        kinds of numbers must be the same for every batch.
    fabric : Fabric, optional
        Launched. All its processes must come here together.
    """
    parts = list(batch_slices(len(split), size))
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    group: Any = torch.distributed.new_group(backend="gloo") if world > 1 else None  # results are wanted on the CPU
    rows = ((np.arange(part.start, part.stop, dtype=np.int64), None) for part in parts[rank::world])
    sent: list[Any] = []
    compute = _Halved(compute)
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


class _Halved:
    """What is computed of a batch, in halves where memory runs out, and from then on in parts of that size.

    Parameters
    ----------
    compute : callable
    """

    def __init__(self, compute: Compute) -> None:
        self.compute = compute
        self.most: int | None = None  # images at once; None as long as memory has sufficed

    def __call__(self, part: slice, images: NDArray[np.float32]) -> Sequence[torch.Tensor]:
        """Return the tensors of all images of a batch."""
        if self.most is None or len(images) <= self.most:
            try:
                return self.compute(part, images)
            except (RuntimeError, MemoryError) as error:
                if len(images) < 2 or not _ran_out_of_memory(error):
                    raise
                self.most = (len(images) + 1) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        made = [
            self(slice(part.start + piece.start, part.start + piece.stop), images[piece])
            for piece in batch_slices(len(images), self.most)
        ]
        return [torch.cat([tensor.cpu() for tensor in tensors]) for tensors in zip(*made, strict=True)]


def _ran_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that there was not enough memory; on a processor torch has no kind of its own."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error).lower() for words in ("out of memory", "can't allocate memory"))


def _wait(sent: list[Any]) -> None:
    """Wait until tensors have been received; they are kept until then."""
    for request, _ in sent:
        request.wait()
