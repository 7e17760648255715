"""The relevance of what does not depend on the input, counted per image.

A constant's relevance comes as a tensor of the operation's layout: images first, or images times windows, or positions
first. Which of these it is cannot be told from the shape alone. So it is learned: of two images each is
explained by itself, in one batch, and where that relevance lands says how the operation lays images out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

__all__ = ["Constants", "Layout", "times"]

Layout = Literal["first", "second", "last of first"]
LAYOUTS: tuple[Layout, ...] = ("first", "second", "last of first")
Place = Callable[[torch.Tensor], None]


class Constants:
    """What constants hold of a batch's explained logits."""

    def __init__(self) -> None:
        self.layouts: list[Layout] | None = None
        self.begin(0)

    def begin(self, n: int) -> None:
        """Forget the last batch; the next has n images."""
        self.n, self.places, self.closed = n, 0, False
        self.found: list[tuple[Any, int, torch.Tensor]] = []

    def place(self, owner: Any) -> Place:
        """Return a function that takes in the relevance of one constant, in the order in which operations ran."""
        if self.closed:  # an operation that runs again on the way back
            return lambda relevance: None
        number, self.places = self.places, self.places + 1

        def take(relevance: torch.Tensor) -> None:
            self.found.append((owner, number, relevance.detach()))

        return take

    def layouts_of_two(self, image: int) -> list[set[Layout]]:
        """Return the layouts that each place can have, from relevance of one of two images alone; then forget it."""
        possible: list[set[Layout]] = [set(LAYOUTS) for _ in range(self.places)]
        for _, number, relevance in self.found:
            possible[number] &= {
                layout
                for layout in LAYOUTS
                if _fits(relevance, layout) and not _of_image(relevance, layout, 1 - image).any()
            }
        self.found = []
        return possible

    def by_owner(self) -> list[tuple[Any, torch.Tensor]]:
        """Return the owner and the relevance per image, shape (n,), of each."""
        return [(owner, self._per_image(number, relevance)) for owner, number, relevance in self.found]

    def total(self) -> torch.Tensor:
        """Return the relevance of all constants, shape (n,), in float64 on the CPU."""
        whole = torch.zeros(self.n, dtype=torch.float64)
        for _, relevance in self.by_owner():
            whole += relevance.cpu().double()
        return whole

    def _per_image(self, number: int, relevance: torch.Tensor) -> torch.Tensor:
        n = self.n
        known = self.layouts is not None and len(self.layouts) == self.places
        layout: Layout = self.layouts[number] if known and self.layouts is not None else "first"
        if layout == "second" and relevance.ndim > 1 and relevance.shape[1] == n:
            return relevance.transpose(0, 1).flatten(1).sum(dim=1)
        if relevance.ndim == 0 or relevance.shape[0] % n:
            return (relevance.sum() / n).expand(n)  # of no image more than of another
        if layout == "last of first":
            return relevance.reshape(-1, n, *relevance.shape[1:]).transpose(0, 1).flatten(1).sum(dim=1)
        return relevance.reshape(n, -1).sum(dim=1)


def _fits(relevance: torch.Tensor, layout: Layout) -> bool:
    if layout == "second":
        return relevance.ndim > 1 and relevance.shape[1] == 2
    return relevance.ndim > 0 and relevance.shape[0] % 2 == 0


def _of_image(relevance: torch.Tensor, layout: Layout, image: int) -> torch.Tensor:
    """Return what would belong to one of two images."""
    if layout == "second":
        return relevance[:, image]
    if layout == "first":
        half = len(relevance) // 2
        return relevance[half * image : half * (image + 1)]
    return relevance[image::2]


def times(g: torch.Tensor, part: torch.Tensor | float) -> torch.Tensor:
    """Return g times a constant, summed over dimensions after the first two, or over the last, where that is quick."""
    if not isinstance(part, torch.Tensor) or part.ndim == 0:
        return g.flatten(2).sum(dim=2) * part if g.ndim > 2 else g * part
    if part.numel() == part.shape[-1] == g.shape[-1] and g.ndim > 1:
        return g @ part.reshape(-1).to(g.dtype)
    if g.ndim == part.ndim > 2 and part.numel() == part.shape[1] == g.shape[1]:
        return g.flatten(2).sum(dim=2) @ part.reshape(-1).to(g.dtype)
    return g * part
