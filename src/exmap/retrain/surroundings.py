"""What surrounds an image's object, where heatmaps say that the object is; and its exchange between images.

A classifier that follows a background looks at it, so its own heatmaps do not show the object. Those of the same
network with a last layer that is fitted to balanced groups do: what speaks for the class there is the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from exmap.data import Split
from exmap.data.dataset import batch_slices
from exmap.exchange import Pixels, Property
from exmap.exchange.properties import otsu, softened
from exmap.explain import compute_heatmaps
from exmap.records import IntArray, Listener, silent
from exmap.settings import ExplainSettings

__all__ = ["CutOut", "cut_out", "exchange_surroundings"]

SMOOTHING = 0.04  # of relevance, as a share of the image's side
FILLING = 0.08  # how far the surroundings are carried on into where an object was, as a share of the image's side
TINY = 1e-6
CHUNK = 512  # images whose heatmaps are held at once


@dataclass(frozen=True, eq=False)
class CutOut:
    """Where each image's object is.

    Attributes
    ----------
    packed : ndarray of uint8, shape (N, ceil(H * W / 8))
        Eight pixels a byte, as of :func:`numpy.packbits`; 1 where the object is.
    shape : tuple of int
        Height and width in pixels.
    """

    packed: NDArray[np.uint8]
    shape: tuple[int, int]

    def inside(self, rows: IntArray) -> NDArray[np.bool_]:
        """Return where the objects of some images are, shape (n, H, W)."""
        height, width = self.shape
        bits = np.unpackbits(self.packed[rows], axis=1, count=height * width)
        return bits.reshape(len(rows), height, width).astype(bool)

    def at(self, receivers: IntArray, donors: IntArray) -> Property:
        """Return the exchange of surroundings between these rows of the split."""
        return partial(exchange_surroundings, inside=self.inside(receivers), theirs=self.inside(donors))


def exchange_surroundings(
    receivers: Pixels, donors: Pixels, *, inside: NDArray[np.bool_], theirs: NDArray[np.bool_]
) -> Pixels:
    """Give images what surrounds the object of others; where theirs was, their surroundings are carried on.

    Parameters
    ----------
    receivers, donors : ndarray of float32, shape (n, C, H, W), in about [0, 1]
    inside, theirs : ndarray of bool, shape (n, H, W)
        Where the objects of receivers and of donors are. An image without an object gives nothing, and one that is
        nothing else receives nothing.
    """
    widened = np.asarray(ndimage.binary_dilation(theirs, np.ones((1, 5, 5))))
    keep, gone = softened(inside)[:, None], softened(widened)[:, None]
    height, width = inside.shape[1:]
    reach = (0, 0, FILLING * height, FILLING * width)
    left = 1 - gone
    mean = (donors * left).sum(axis=(2, 3), keepdims=True) / (left.sum(axis=(2, 3), keepdims=True) + TINY)
    near = ndimage.gaussian_filter(left, reach) + TINY
    carried = (ndimage.gaussian_filter(donors * left, reach) + TINY * mean) / near
    share = theirs.mean(axis=(1, 2))
    empty = (share == 0) | (share == 1)
    given = np.where(empty[:, None, None, None], receivers, donors * left + carried * gone)
    return np.asarray(receivers * keep + given * (1 - keep), dtype=np.float32)


def cut_out(model: nn.Module, split: Split, *, listen: Listener = silent) -> CutOut:
    """Return where the object of each image is: where what speaks for the class that a model predicts gathers.

    Relevance of the image itself, summed over channels, its positive part smoothed, is parted from the rest by the
    threshold of Otsu (1979). Where relevance is nowhere positive, or not finite, all of the image is the object.

    Parameters
    ----------
    model : torch.nn.Module
        Explained by the default explainer.
    split : Split
        Read without random crops.
    listen : Listener
    """
    _, height, width = split.images.shape
    rows = []
    for part in batch_slices(len(split), CHUNK):
        some = split.rows(np.arange(part.start, part.stop, dtype=np.int64))
        maps = compute_heatmaps(model, some, ExplainSettings(layer="none"), listen=listen).values
        strength = np.maximum(maps.sum(axis=1, dtype=np.float64), 0)
        smooth = ndimage.gaussian_filter(strength, (0, SMOOTHING * height, SMOOTHING * width))
        found = smooth > otsu(smooth.reshape(len(smooth), -1))[:, None, None]
        found |= ~found.any(axis=(1, 2), keepdims=True)
        rows.append(np.packbits(found.reshape(len(found), -1), axis=1))
    return CutOut(np.concatenate(rows), (height, width))
