"""Held-out images that received properties of others: what an epoch is chosen by where no group is large enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exmap.data import Split
from exmap.data.images import Request
from exmap.exchange import OfRows, Property, Scale, paired
from exmap.records import Groups, IntArray
from exmap.retrain.selection import Selection
from exmap.runtime import generator

__all__ = ["ExchangedImages", "exchanged_selection"]

FEWEST, MOST = 1_000, 4_000  # images that are judged


@dataclass(frozen=True, eq=False)
class ExchangedImages:
    """Images that receive properties, made as they are read.

    Attributes
    ----------
    scale : Scale
        Of the split that receivers and donors are of.
    receivers, donors : ndarray of int64, shape (N,)
        Its rows.
    exchanges : sequence of callable
        One per property; all are of the same donor.
    """

    scale: Scale
    receivers: IntArray
    donors: IntArray
    exchanges: Sequence[Property | OfRows]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        return self.scale.images.shape

    def __len__(self) -> int:
        return len(self.receivers)

    def pixels(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` in the scale of the exchange, float32, shape (n, C, H, W)."""
        some, others = self.receivers[indices], self.donors[indices]
        seen, donors = self.scale.pixels(some), self.scale.pixels(others)
        for exchange in self.exchanges:
            seen = paired(exchange, some, others)(seen, donors)
        return np.asarray(seen, dtype=np.float32)

    def batch(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` as the model wants them, float32, shape (n, C, H, W)."""
        return self.scale.wanted(self.pixels(indices))

    def stream(self, requests: Iterable[Request]) -> Iterator[NDArray[np.float32]]:
        """Yield the batch of each request, without random crops."""
        return (self.batch(indices) for indices, _ in requests)


def exchanged_selection(split: Split, exchanges: Sequence[Property | OfRows], *, seed: int) -> Selection:
    """Return a selection of images that received properties, grouped by whether donor and receiver are of one class.

    Receivers are as many of each class. Half of those of a class receive of images of their own class, half of images
    of others: were a property followed, the worst would be of those. No group is needed.

    Parameters
    ----------
    split : Split
    exchanges : sequence of callable, or OfRows of the split
        One per property.
    seed : int
    """
    rng, labels = generator(seed, "exchanged"), split.labels
    classes = np.unique(labels)
    members = [np.flatnonzero(labels == label) for label in classes]
    most = max(2, min(max(len(labels), FEWEST), MOST) // len(classes))
    receivers, donors, index = [], [], []
    for number, rows in enumerate(members):
        others = [other for other in range(len(classes)) if other != number] or [number]
        chosen = np.concatenate([rng.permutation(rows) for _ in range(-(-most // len(rows)))])[:most]
        unlike = np.arange(most) % 2
        giving = np.where(unlike, rng.choice(others, most), number)
        receivers.append(chosen)
        donors.append([rng.choice(members[one]) for one in giving])
        index.append(2 * number + unlike)
    rows, given = np.concatenate(receivers), np.concatenate(donors).astype(np.int64)
    names = tuple(
        f"{split.class_names[label]}, given what images of {whose} have"
        for label in classes
        for whose in ("its own class", "other classes")
    )
    images = ExchangedImages(Scale.read(split), rows, given, tuple(exchanges))
    ids = tuple(f"{number}" for number in range(len(rows)))
    changed = Split(split.name, images, labels[rows], ids, split.class_names)
    return Selection(changed, Groups(np.concatenate(index).astype(np.int64), names, "exchanged", ()))
