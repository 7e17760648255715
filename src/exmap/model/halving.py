"""Compute in halves where memory runs out, and from then on no more at once than fitted.

What is computed image by image is simply cut. A step of training is not: its loss may weigh the images of a batch
against each other. So logits are computed part by part without gradients, the loss of the whole batch is taken of them,
and each part is run again for the gradients of its own logits, which add up to those of the batch. Without batch
normalisation that is the same step up to rounding, for any loss; with it, statistics are those of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from exmap.errors import DataError
from exmap.model.running import ran_out_of_memory

__all__ = ["AtOnce", "step_in_parts"]

Result = TypeVar("Result")


class AtOnce:
    """How many images are computed at once: half as many from where memory runs out.

    Parameters
    ----------
    most : int
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def parts(self, total: int, compute: Callable[[slice], Result]) -> Iterator[Result]:
        """Yield what is computed of consecutive parts of ``range(total)``.

        Raises
        ------
        DataError
            If memory does not suffice for one image.
        """
        start = 0
        while start < total:
            part = slice(start, min(start + self.most, total))
            try:
                made = compute(part)
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
                if part.stop - part.start < 2:
                    raise DataError(
                        f"memory must suffice for one image at a time, but ran out ({_first_line(error)}); give "
                        "smaller images, or a machine with more memory"
                    ) from error
                self.most = (part.stop - part.start + 1) // 2
            else:
                yield made
                start = part.stop
                continue
            _empty_caches()


def step_in_parts(
    at_once: AtOnce,
    total: int,
    *,
    run: Callable[[slice], Any],
    loss: Callable[[Any], torch.Tensor],
    backward: Callable[[torch.Tensor], None],
    model: nn.Module,
) -> torch.Tensor:
    """Add the gradients of a batch's loss to those of the model's parameters, in parts where memory runs out.

    Parameters
    ----------
    at_once : AtOnce
        Is lowered where memory runs out.
    total : int
        Images of the batch.
    run : callable
        Returns the logits of a part: a tensor with a row per image, or a tuple of them.
    loss : callable
        Returns what the batch costs, of the logits of all its images. Where memory runs out after it, it is called
        again for the same batch.
    backward : callable
        Goes back from a number, and adds to the gradients.
    model : torch.nn.Module
        Whose gradients are emptied where a batch is begun again.

    Returns
    -------
    Tensor
        The loss, without its history.

    Raises
    ------
    RuntimeError, MemoryError
        That memory ran out for two images: normalising a batch of one is impossible.
    """
    while True:
        number = min(-(-total // at_once.most), max(1, total // 2))
        try:
            if number == 1:
                cost = loss(run(slice(0, total)))
                backward(cost)
                return cost.detach()
            return _in_parts(number, total, run, loss, backward, model)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error) or number == max(1, total // 2):
                raise
            at_once.most = -(-total // (2 * number))
        model.zero_grad()
        _empty_caches()


def _in_parts(
    number: int,
    total: int,
    run: Callable[[slice], Any],
    loss: Callable[[Any], torch.Tensor],
    backward: Callable[[torch.Tensor], None],
    model: nn.Module,
) -> torch.Tensor:
    parts = [slice(part * total // number, (part + 1) * total // number) for part in range(number)]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # running statistics count each image once
    states, made = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state())
            made.append(run(part))
        for buffer, before in buffers:
            buffer.copy_(before)
    several = isinstance(made[0], tuple)
    rows = zip(*made, strict=True) if several else [made]
    logits = [torch.cat(list(each)).requires_grad_() for each in rows]
    cost = loss(type(made[0])(logits) if several else logits[0])
    slopes = torch.autograd.grad(cost, logits)
    after = _random_state()
    for part, state in zip(parts, states, strict=True):
        _set_random_state(state)  # dropout leaves out what it left out before
        again = run(part)
        pairs = zip(again if several else [again], slopes, strict=True)
        backward(torch.stack([(each * slope[part]).sum() for each, slope in pairs]).sum())
    _set_random_state(after)
    return cost.detach()


def _random_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the state of torch's generators, those of GPUs included."""
    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.random.get_rng_state(), torch.cuda.get_rng_state_all() if used else []


def _set_random_state(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.random.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


def _empty_caches() -> None:
    """Give back what an error held until here of a GPU's memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
