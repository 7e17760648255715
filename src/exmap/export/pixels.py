"""Images and heatmaps as pictures of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_bytes", "enlarged", "heatmap_colours", "in_colour"]


def in_colour(images: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return images, shape (n, C, H, W), with three channels: as they are, or grey, the mean of theirs."""
    if images.shape[1] == 3:
        return np.asarray(images, dtype=np.float32)
    return np.repeat(images.mean(axis=1, keepdims=True, dtype=np.float32), 3, axis=1)


def as_bytes(images: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return images in [0, 1] as bytes; what is outside is clipped."""
    return np.asarray(np.rint(np.clip(images, 0, 1) * 255), dtype=np.uint8)


def heatmap_colours(heatmaps: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return heatmaps, shape (n, C, h, w), summed over channels, as colours, shape (n, h, w, 3).

    Red is for the explained class, blue against it, white is zero; each map's largest absolute value has full colour.

    Examples
    --------
    >>> heatmap_colours(np.array([[[[2.0, 0.0, -2.0]]]])).tolist()
    [[[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]]
    """
    total = heatmaps.sum(axis=1, dtype=np.float32)
    peak = np.abs(total).max(axis=(1, 2), keepdims=True, initial=0)
    value = total / np.where(peak > 0, peak, 1)
    return as_bytes(np.stack([1 + np.minimum(value, 0), 1 - np.abs(value), 1 - np.maximum(value, 0)], axis=-1))


def enlarged(maps: NDArray[np.floating[Any]], height: int, width: int) -> NDArray[np.float32]:
    """Return maps, shape (n, C, h, w), in another size: each pixel takes the value of the nearest."""
    rows = (np.arange(height) + 0.5) * maps.shape[2] // height
    columns = (np.arange(width) + 0.5) * maps.shape[3] // width
    return np.asarray(maps[:, :, rows.astype(np.int64)[:, None], columns.astype(np.int64)], dtype=np.float32)
