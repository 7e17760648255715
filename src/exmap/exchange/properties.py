"""Properties of an image that can be given to another: its colours, background, place, brightness; and a region.

Everything else of the image that receives stays as it is. Images have values in about [0, 1], float32 (n, C, H, W), as
:class:`~exmap.exchange.looks.Looks` returns them, and receivers and donors go in pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from exmap.exchange.looks import Pixels
from exmap.records import IntArray

__all__ = [
    "GIVEN",
    "PROPERTIES",
    "OfRows",
    "Property",
    "Region",
    "exchange_background",
    "exchange_brightness",
    "exchange_colour",
    "exchange_place",
    "exchangeable",
    "otsu",
    "paired",
    "softened",
]

Property = Callable[[Pixels, Pixels], Pixels]


@runtime_checkable
class OfRows(Protocol):
    """A property that knows more of each image of a split than its pixels."""

    def at(self, receivers: IntArray, donors: IntArray) -> Property:
        """Return the exchange between these rows of the split, in pairs."""
        ...


SMALLEST = 8  # side in pixels of images whose properties can be exchanged
FEATHER = 0.03  # width of the edge between what is kept and what is exchanged, as a share of the image's side
ELSEWHERE = 0.1  # share of the image's side
DARK = 0.05  # brightness below which a pixel has hardly any colour


def exchangeable(shape: tuple[int, int, int]) -> bool:
    """State whether images of a shape (C, H, W) have properties to exchange: 1 or 3 channels, 8 pixels a side."""
    channels, height, width = shape
    return channels in (1, 3) and min(height, width) >= SMALLEST


def exchange_colour(receivers: Pixels, donors: Pixels) -> Pixels:
    """Give images the tint of others: each pixel's brightness stays, and a grey image keeps a grey tint."""
    value = receivers.max(axis=1, keepdims=True)
    tint = ((receivers + DARK) / (value + DARK)) * ((_tint(donors) + DARK) / (_tint(receivers) + DARK))
    return np.asarray(np.clip(value * tint / tint.max(axis=1, keepdims=True), 0, 1), dtype=np.float32)


def exchange_background(receivers: Pixels, donors: Pixels) -> Pixels:
    """Give images the background of others, wherever neither has its object, with soft edges."""
    weight = softened(_object(receivers) | _object(donors))[:, None]
    return np.asarray(receivers * weight + donors * (1 - weight), dtype=np.float32)


def exchange_place(receivers: Pixels, donors: Pixels) -> Pixels:
    """Move what is in images to where it is in others; what becomes empty takes the border's median colour.

    An object is elsewhere only if its centre is more than a tenth of the image's side away: less is a matter of shape.
    """
    shifts = np.round(_centre(donors) - _centre(receivers)).astype(np.int64)
    near = np.abs(shifts).max(axis=1) <= ELSEWHERE * max(receivers.shape[2:])
    shifts[near] = 0
    moved = np.broadcast_to(_border(receivers), receivers.shape).copy()
    height, width = receivers.shape[2:]
    for row, (down, right) in enumerate(shifts):
        top, bottom = max(0, down), min(height, height + down)
        left, end = max(0, right), min(width, width + right)
        moved[row, :, top:bottom, left:end] = receivers[row, :, top - down : bottom - down, left - right : end - right]
    return moved


def exchange_brightness(receivers: Pixels, donors: Pixels) -> Pixels:
    """Make images as bright as others, all pixels by one factor; what is bright counts, not how much of it there is."""
    return np.asarray(np.clip(receivers * (_level(donors) / _level(receivers)), 0, 1), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Region:
    """A part of the image that receivers are given of donors, with soft edges: the same part for all.

    Attributes
    ----------
    inside : ndarray of bool, shape (H, W)
    """

    inside: NDArray[np.bool_]

    def __call__(self, receivers: Pixels, donors: Pixels) -> Pixels:
        """Give images what others have in the region."""
        weight = softened(self.inside[None])[:, None]
        return np.asarray(donors * weight + receivers * (1 - weight), dtype=np.float32)


PROPERTIES: dict[str, Property] = {
    "colour": exchange_colour,
    "background": exchange_background,
    "place": exchange_place,
}  # that the test for a shortcut asks for
GIVEN: dict[str, Property] = {**PROPERTIES, "brightness": exchange_brightness}  # that a repair can exchange


def paired(exchange: Property | OfRows, receivers: IntArray, donors: IntArray) -> Property:
    """Return an exchange between rows of a split, whether it asks for more than their pixels or not."""
    return exchange.at(receivers, donors) if isinstance(exchange, OfRows) else exchange


def softened(inside: NDArray[np.bool_]) -> Pixels:
    """Return weights in [0, 1], shape (n, H, W): 1 inside, and falling to 0 around it."""
    height, width = inside.shape[1:]
    soft = ndimage.gaussian_filter(inside.astype(np.float32), (0, FEATHER * height, FEATHER * width), mode="nearest")
    return np.asarray(np.clip(1.5 * soft, 0, 1))


def _level(images: Pixels) -> Pixels:
    """Return how bright what is bright is: the mean brightness weighted by itself, at least 0.05, (n, 1, 1, 1)."""
    value = images.max(axis=1, keepdims=True)
    level = np.square(value).sum(axis=(2, 3), keepdims=True) / (value.sum(axis=(2, 3), keepdims=True) + 1e-6)
    return np.asarray(np.maximum(level, DARK), dtype=np.float32)


def _tint(images: Pixels) -> Pixels:
    """Return the mean colour of each image, weighted by brightness, over its largest channel: shape (n, C, 1, 1)."""
    weight = images.max(axis=1, keepdims=True)
    mean = (images * weight).sum(axis=(2, 3), keepdims=True) / (weight.sum(axis=(2, 3), keepdims=True) + 1e-6)
    return np.asarray(mean / (mean.max(axis=1, keepdims=True) + 1e-6), dtype=np.float32)


def _border(images: Pixels) -> Pixels:
    """Return the median colour of each image's outermost pixels, shape (n, C, 1, 1)."""
    edges = (images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1])
    return np.asarray(np.median(np.concatenate(edges, axis=2), axis=2)[:, :, None, None], dtype=np.float32)


def _object(images: Pixels) -> NDArray[np.bool_]:
    """Return where each image's object is, shape (n, H, W): the largest connected part that stands out of the border.

    What stands out is parted from the rest by the threshold of Otsu (1979), and the part widened by a pixel.
    """
    distance = np.abs(images - _border(images)).max(axis=1)
    stands_out = distance > otsu(distance.reshape(len(distance), -1))[:, None, None]
    found = np.zeros_like(stands_out)
    for row, (mask, weight) in enumerate(zip(stands_out, distance, strict=True)):
        parts, number = ndimage.label(mask, np.ones((3, 3)))
        if number:
            mass = np.bincount(parts.ravel(), weights=weight.ravel())
            mass[0] = 0
            found[row] = parts == mass.argmax()
    return np.asarray(ndimage.binary_dilation(found, np.ones((1, 3, 3))))


def otsu(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the threshold of each row that parts its values into the two most different kinds."""
    ordered = np.sort(values, axis=1).astype(np.float64)
    below, n = np.cumsum(ordered, axis=1)[:, :-1], ordered.shape[1]
    count = np.arange(1, n)[None]
    apart = below / count - (ordered.sum(axis=1, keepdims=True) - below) / (n - count)
    best = (count * (n - count) * apart**2).argmax(axis=1)
    rows = np.arange(len(ordered))
    return np.asarray((ordered[rows, best] + ordered[rows, best + 1]) / 2)


def _centre(images: Pixels) -> NDArray[np.float64]:
    """Return where the middle of what stands out of the border is, (row, column) in pixels, shape (n, 2)."""
    away = np.abs(images - _border(images)).mean(axis=1).astype(np.float64)
    away[away <= 0.5 * away.max(axis=(1, 2), keepdims=True)] = 0
    total = away.sum(axis=(1, 2)) + 1e-9
    rows, columns = np.mgrid[: away.shape[1], : away.shape[2]]
    return np.stack([(away * rows).sum(axis=(1, 2)) / total, (away * columns).sum(axis=(1, 2)) / total], axis=1)
