"""What has the same pixels at the same place in most images of a group, and in few of the others.

A watermark, a ruler, a time stamp: a hospital's token in the corner of its X-rays. It is looked for in every second
image and counted in the rest, so that a place found by chance is not counted as one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from exmap.describe.compare import LEVEL
from exmap.describe.measures import Floats, colour_words
from exmap.describe.relevance import Relevance, where_in_words
from exmap.records import IntArray
from exmap.results import ConstantPatch

__all__ = ["Bytes", "FoundPatch", "find_patches"]

Bytes = NDArray[np.uint8]

FEWEST = 6  # images of a group, and of the others
SAME = 16  # of 255, that a pixel may be off
USUAL = 0.9, 0.7, 0.55  # share of the images that have a pixel of it, in the order in which it is tried
BEYOND = 0.35  # how much more that is than of the others
WHOLE = 0.8  # share of its pixels that an image must have
LEAST_PIXELS, LEAST_AREA, LARGEST_AREA = 4, 0.002, 0.4
STANDS_OUT = 20  # of 255, that its colour differs from what is around it
RING = 2  # pixels around it
LIKE = 0.5, 0.3  # share of images that have it, from which it is named, and how much more than of the others


@dataclass(frozen=True, eq=False)
class _Place:
    """Pixels of a patch: where, and what they are in the images that have it."""

    mask: NDArray[np.bool_]
    pixels: Bytes  # (3, H, W)

    def had_by(self, small: Bytes, rows: IntArray) -> NDArray[np.bool_]:
        """Return which images have it."""
        inside = small[rows][:, :, self.mask].astype(np.int16) - self.pixels[:, self.mask].astype(np.int16)
        same: NDArray[np.bool_] = (np.abs(inside) <= SAME).all(axis=1).mean(axis=1) >= WHOLE
        return same


@dataclass(frozen=True, eq=False)
class FoundPatch:
    """A patch as it is described, and images without it."""

    described: ConstantPatch
    place: _Place

    def painted_over(self, small: Bytes) -> Bytes:
        """Return pictures in which the place has the colour of what is around it, with the patch or without."""
        painted = small.copy()
        covered = ndimage.binary_dilation(self.place.mask, np.ones((3, 3)))
        ring = ndimage.binary_dilation(covered, np.ones((3, 3)), iterations=RING) & ~covered
        around = np.median(painted[:, :, ring], axis=2).astype(np.uint8)
        painted[:, :, covered] = around[:, :, None]
        return painted


def find_patches(
    small: Bytes, group: IntArray, others: IntArray, *, relevance: Relevance | None = None, tests: int = 1
) -> list[FoundPatch]:
    """Return a patch that the group has and the others lack, and one that the others have and it lacks.

    Parameters
    ----------
    small : ndarray of uint8, shape (N, 3, H, W)
    group, others : ndarray of int64
        Rows of it.
    relevance : Relevance, optional
        Of the same rows.
    tests : int
        Groups in which one is looked for.
    """
    if min(len(group), len(others)) < FEWEST:
        return []
    found = []
    for have, lack, lacking in ((group, others, False), (others, group, True)):
        place = _search(small, have[::2], lack[::2])
        if place is None:
            continue
        counts = [place.had_by(small, rows[1::2]) for rows in (group, others)]
        share, other = (float(had.mean()) for had in counts)
        table = [[int(had.sum()), int((~had).sum())] for had in counts]
        p_value = min(1.0, 2 * tests * float(stats.fisher_exact(table).pvalue))
        usual, beyond = max(share, other), abs(share - other)
        if usual < LIKE[0] or beyond < LIKE[1] or (share > other) == lacking or p_value > LEVEL:
            continue
        box = _box(place.mask)
        held = float("nan") if relevance is None else relevance.in_box(_having(place, small, have), box)
        described = ConstantPatch(
            where=where_in_words(*box),
            looks=_looks(place),
            top=box[0],
            left=box[1],
            bottom=box[2],
            right=box[3],
            lacking=lacking,
            share=share,
            share_others=other,
            relevance=held if held != held else min(max(held, 0.0), 1.0),
            p_value=p_value,
        )
        found.append(FoundPatch(described, place))
    return found


def _having(place: _Place, small: Bytes, rows: IntArray) -> IntArray:
    return np.asarray(rows[place.had_by(small, rows)])


def _search(small: Bytes, have: IntArray, lack: IntArray) -> _Place | None:
    """Return the largest part that most of some images have and few of the others; first what nearly all of them have.

    So that what merely lies beside a patch, the same in many images, is not taken for a part of it.
    """
    usual = np.median(small[have], axis=0).astype(np.uint8)
    shares = [_same(small, rows, usual) for rows in (have, lack)]
    for most in USUAL:
        place = _largest((shares[0] >= most) & (shares[0] - shares[1] >= BEYOND), usual)
        if place is not None:
            return place
    return None


def _largest(found: NDArray[np.bool_], usual: Bytes) -> _Place | None:
    """Return the largest connected part that is neither tiny nor most of the image, and that one can see."""
    parts, number = ndimage.label(found, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=number + 1)[1:]
    height, width = found.shape
    least = max(LEAST_PIXELS, LEAST_AREA * height * width)
    for part in np.argsort(-sizes, kind="stable").tolist():
        if not least <= sizes[part] <= LARGEST_AREA * height * width:
            continue
        mask = parts == part + 1
        ring = ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=RING) & ~mask
        inside, around = (np.median(usual[:, where], axis=1) for where in (mask, ring))
        if np.abs(inside - around).max() >= STANDS_OUT or _drawn(usual, mask):
            return _Place(mask, usual)
    return None


def _same(small: Bytes, rows: IntArray, usual: Bytes) -> NDArray[np.float64]:
    """Return the share of images whose pixel is the usual one, shape (H, W)."""
    total = np.zeros(usual.shape[1:])
    for start in range(0, len(rows), 256):
        off = np.abs(small[rows[start : start + 256]].astype(np.int16) - usual.astype(np.int16))
        total += (off <= SAME).all(axis=1).sum(axis=0)
    return total / max(len(rows), 1)


def _drawn(usual: Bytes, mask: NDArray[np.bool_]) -> bool:
    """Return whether there is something to see within it, such as letters."""
    inside = usual[:, mask].astype(np.float64)
    return bool(inside.std(axis=1).max() >= STANDS_OUT)


def _box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Return top, left, bottom and right as shares of the image's sides."""
    (height, width), (rows, columns) = mask.shape, np.nonzero(mask)
    return (
        float(rows.min() / height),
        float(columns.min() / width),
        float((rows.max() + 1) / height),
        float((columns.max() + 1) / width),
    )


def _looks(place: _Place) -> str:
    """Return what a patch looks like, in a word or two."""
    inside: Floats = place.pixels[:, place.mask].astype(np.float32) / np.float32(255)
    mean = inside.mean(axis=1)
    name, value = colour_words(mean[None])[0], float(mean.max())
    if inside.std(axis=1).max() > 0.2:
        return f"patterned {name}" if name not in ("grey", "white", "black") else "patterned"
    if name in ("grey", "white", "black"):
        return {"white": "bright", "black": "black"}.get(name, "bright grey" if value > 0.55 else "dark grey")
    return f"dark {name}" if value < 0.4 else name
