"""What is measured of each image: numbers that a person has a word for, such as brighter, bluer or further left.

Images are taken as one looks at them. Brightness is that of the largest channel, so that it does not change with the
hue. *Background* means the outer fifth of the image on every side, *middle* what is inside it: a rough cut, but one
that needs no knowledge of what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exmap.describe.columns import Column
from exmap.errors import DataError

__all__ = [
    "COLOURS",
    "Floats",
    "MEASURES",
    "Measure",
    "as_columns",
    "averaged",
    "colour_words",
    "measure_pixels",
    "small_side",
]

Floats = NDArray[np.float32]

LARGEST, SMALL = 224, 64  # pixels on a side: for what needs fine detail, and for all else
FRAME = 0.2  # share of the side that the background is deep
LEVELS = 32  # grey values that are told apart for the entropy
FAINT = 0.08  # strength of an edge above which it counts no more: faint stripes are lines, too
TINY = np.float32(1e-6)
DARK = 0.02  # brightness at which a colour counts half
GREY = 0.18  # saturation below which a colour has no hue
REDDISH = ("red", "orange")
ARCS = (15, 45, 70, 165, 195, 260, 300, 345)  # degrees at which a hue's name changes
HUES = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink")
COLOURS = (*HUES, "brown", "black", "grey", "white")


@dataclass(frozen=True)
class Measure:
    """A number of each image, and what one says where it is larger or smaller.

    Attributes
    ----------
    name, topic, unit : str
    more, less : str
        Ends of sentences about several images: "are brighter".
    """

    name: str
    topic: str
    more: str
    less: str
    unit: str = ""


MEASURES: tuple[Measure, ...] = (
    Measure("brightness", "light", "are brighter", "are darker", "0 to 1"),
    Measure("contrast", "contrast", "have more contrast", "have less contrast", "0 to 1"),
    Measure("entropy", "contrast", "have a wider range of greys", "have a narrower range of greys", "bits"),
    Measure("saturation", "strength of colour", "are more colourful", "are paler in colour", "0 to 1"),
    Measure("red against green", "colour", "are redder", "are greener", "-1 to 1"),
    Measure("blue against yellow", "colour", "are bluer", "are yellower", "-1 to 1"),
    Measure("sharpness", "texture", "are sharper", "are more blurred", "logarithm"),
    Measure("detail", "texture", "have more detail", "are smoother", "logarithm"),
    Measure("vertical lines", "lines", "have more vertical lines", "have more horizontal lines", "-1 to 1"),
    Measure(
        "slanting lines",
        "lines",
        "have more lines that rise to the right",
        "have more that fall to the right",
        "-1 to 1",
    ),
    Measure("place across", "place", "have their subject further right", "have their subject further left", "sides"),
    Measure("place down", "place", "have their subject further down", "have their subject further up", "sides"),
    Measure("extent", "size", "have their subject larger", "have their subject smaller", "sides"),
    Measure("top against bottom", "place", "are brighter at the top", "are brighter at the bottom", "-1 to 1"),
    Measure("left against right", "place", "are brighter on the left", "are brighter on the right", "-1 to 1"),
    Measure("background brightness", "light", "have a brighter background", "have a darker background", "0 to 1"),
    Measure(
        "background saturation",
        "strength of colour",
        "have a more colourful background",
        "have a paler background",
        "0 to 1",
    ),
    Measure(
        "background red against green", "colour", "have a redder background", "have a greener background", "-1 to 1"
    ),
    Measure(
        "background blue against yellow", "colour", "have a bluer background", "have a yellower background", "-1 to 1"
    ),
    Measure(
        "background detail", "texture", "have a more detailed background", "have a smoother background", "logarithm"
    ),
    Measure("middle brightness", "light", "are brighter in the middle", "are darker in the middle", "0 to 1"),
    Measure("middle red against green", "colour", "are redder in the middle", "are greener in the middle", "-1 to 1"),
    Measure("middle blue against yellow", "colour", "are bluer in the middle", "are yellower in the middle", "-1 to 1"),
)


def measure_pixels(pixels: Floats) -> tuple[Floats, dict[str, list[str]]]:
    """Measure a batch of images.

    Parameters
    ----------
    pixels : ndarray of float32, shape (n, C, H, W), in [0, 1]
        Of 1 or 3 channels.

    Returns
    -------
    numbers : ndarray of float32, shape (n, M)
        By :data:`MEASURES`.
    colours : dict of str to list of str
        The name of the colour of what is bright, and that of the background.

    Raises
    ------
    DataError
        If a pixel is not a finite number.
    """
    if not np.isfinite(pixels.sum(dtype=np.float64)):
        raise DataError("images must have finite pixels to be described; look for broken ones")
    height, width = pixels.shape[2:]
    small = averaged(pixels, small_side(height), small_side(width))
    small = np.repeat(small, 3, axis=1) if small.shape[1] == 1 else small
    grey = averaged(_brightest(pixels), min(LARGEST, height), min(LARGEST, width))
    frame = _frame(*small.shape[2:])
    whole, back, middle = (_Tint.of(small, part) for part in (np.ones_like(frame), frame, ~frame))
    shade = _brightest(small)
    gradient = _Gradient.of(grey)
    contrast = grey.std(axis=(1, 2))
    top, bottom, left, right = _halves(shade)
    across, down, extent = _layout(small)
    numbers = [
        shade.mean(axis=(1, 2)),
        contrast,
        _entropy(shade),
        whole.saturation,
        whole.red,
        whole.blue,
        np.log(gradient.curvature + 1e-4) - np.log(gradient.strength.mean(axis=(1, 2)) + 1e-3),
        np.log(gradient.strength.mean(axis=(1, 2)) + np.float32(1e-3)),
        gradient.upright,
        gradient.slanting,
        across,
        down,
        extent,
        top - bottom,
        left - right,
        shade[:, frame].mean(axis=1),
        back.saturation,
        back.red,
        back.blue,
        np.log(gradient.strength[:, _frame(*gradient.strength.shape[1:])].mean(axis=1) + np.float32(1e-3)),
        shade[:, ~frame].mean(axis=1),
        middle.red,
        middle.blue,
    ]
    colours = {"colour": whole.names(), "background colour": back.names()}
    return np.column_stack(numbers).astype(np.float32), colours


def _brightest(images: Floats) -> Floats:
    """Return the largest channel of each pixel."""
    largest: Floats = images[:, 0]
    for channel in range(1, images.shape[1]):
        largest = np.maximum(largest, images[:, channel])
    return largest


def averaged(values: Floats, rows: int, columns: int) -> Floats:
    """Return the means over tiles that cover the last two axes evenly, shape (..., rows, columns)."""
    height, width = values.shape[-2:]
    if (height, width) == (rows, columns):
        return values
    if height % rows == 0 and width % columns == 0:  # sums of slices are several times as fast
        down, across = height // rows, width // columns
        thin = _summed([values[..., start::down, :] for start in range(down)])
        return np.asarray(_summed([thin[..., start::across] for start in range(across)]) / (down * across))
    return np.asarray(_shares(rows, height) @ values @ _shares(columns, width).T, dtype=np.float32)


def _summed(parts: Sequence[Floats]) -> Floats:
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


def small_side(side: int) -> int:
    """Return the side of a small picture: at most 64 pixels, and where it can be a whole part of the side.

    Examples
    --------
    >>> small_side(28), small_side(224), small_side(100)
    (28, 56, 50)
    """
    return side if side <= SMALL else side // -(-side // SMALL)


def _shares(tiles: int, pixels: int) -> Floats:
    """Return which share of each tile each pixel is, shape (tiles, pixels); rows sum to 1."""
    edges, starts = np.linspace(0, pixels, tiles + 1), np.arange(pixels)
    shares = np.maximum(np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts), 0)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), dtype=np.float32)


def _frame(height: int, width: int) -> NDArray[np.bool_]:
    """Return what is background, shape (height, width)."""
    inside = np.zeros((height, width), dtype=bool)
    down, across = (max(1, round(FRAME * side)) for side in (height, width))
    inside[down : height - down, across : width - across] = True
    return ~inside


@dataclass(frozen=True, eq=False)
class _Tint:
    """The mean colour of a part of each image, by how bright it is there: what is black has no colour."""

    mean: Floats  # (n, 3), as shares of the brightness
    level: Floats  # brightness of what is bright

    @classmethod
    def of(cls, small: Floats, part: NDArray[np.bool_]) -> _Tint:
        inside = small[:, :, part]
        value = inside.max(axis=1)
        light = value.sum(axis=1) + DARK * part.sum()
        return cls(inside.sum(axis=2) / light[:, None], np.square(value).sum(axis=1) / light)

    @property
    def saturation(self) -> Floats:
        return np.asarray(self.mean.max(axis=1) - self.mean.min(axis=1))

    @property
    def red(self) -> Floats:
        return np.asarray(self.mean[:, 0] - self.mean[:, 1])

    @property
    def blue(self) -> Floats:
        return np.asarray(self.mean[:, 2] - self.mean[:, :2].mean(axis=1))

    def names(self) -> list[str]:
        """Return the name of each colour."""
        return colour_words(self.mean * self.level[:, None])


def colour_words(colours: Floats) -> list[str]:
    """Return the names of colours, float in [0, 1], shape (n, 3).

    Examples
    --------
    >>> colour_words(np.array([[1, 0, 0], [0.1, 0.9, 0.2], [0.4, 0.25, 0.1], [0.9, 0.9, 0.9], [0, 0, 0]], np.float32))
    ['red', 'green', 'brown', 'white', 'black']
    """
    red, green, blue = colours.T
    value, chroma = colours.max(axis=1), colours.max(axis=1) - colours.min(axis=1)
    hue = np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360
    named = []
    for angle, bright, strength in zip(hue, value, chroma, strict=True):
        name = HUES[int(np.searchsorted(ARCS, angle, side="right")) % len(HUES)]
        if bright < 0.12:
            name = "black"
        elif strength < GREY * bright:
            name = "white" if bright > 0.75 else "grey"
        elif name in REDDISH and bright < 0.6 and (name == "orange" or strength < 0.6 * bright):
            name = "brown"
        named.append(name)
    return named


@dataclass(frozen=True, eq=False)
class _Gradient:
    """How the brightness changes: strength (n, H, W), and per image how it curves and which way lines run."""

    strength: Floats
    curvature: Floats
    upright: Floats
    slanting: Floats

    @classmethod
    def of(cls, grey: Floats) -> _Gradient:
        inside = (slice(None), slice(1, -1), slice(1, -1))
        down, across = (grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]) / 2, (grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]) / 2
        around = grey[:, 2:, 1:-1] + grey[:, :-2, 1:-1] + grey[:, 1:-1, 2:] + grey[:, 1:-1, :-2]
        curved = np.abs(4 * grey[inside] - around).mean(axis=(1, 2))
        strength = np.hypot(down, across)
        weight = np.minimum(strength, FAINT) / (np.square(strength) + TINY)  # each edge counts alike, whatever its rise
        total = np.minimum(strength, FAINT).sum(axis=(1, 2)) + TINY
        upright = (weight * (np.square(across) - np.square(down))).sum(axis=(1, 2)) / total
        slanting = (weight * 2 * across * down).sum(axis=(1, 2)) / total
        return cls(strength, curved, upright, slanting)


def _entropy(shade: Floats) -> Floats:
    """Return the entropy of the grey values, in bits."""
    n = len(shade)
    level = np.minimum((shade.reshape(n, -1) * LEVELS).astype(np.int64), LEVELS - 1) + LEVELS * np.arange(n)[:, None]
    share = np.bincount(level.ravel(), minlength=n * LEVELS).reshape(n, LEVELS) / level.shape[1]
    return np.asarray(-(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1), dtype=np.float32)


def _halves(shade: Floats) -> Sequence[Floats]:
    """Return the mean brightness of the upper, lower, left and right half."""
    middle = [side // 2 for side in shade.shape[1:]]
    halves = (shade[:, : middle[0]], shade[:, -middle[0] :], shade[:, :, : middle[1]], shade[:, :, -middle[1] :])
    return [half.mean(axis=(1, 2)) for half in halves]


def _layout(small: Floats) -> tuple[Floats, Floats, Floats]:
    """Return where what differs from the border lies: across and down from the centre, and how far it spreads.

    In sides of the image; 0 where nothing differs.
    """
    height, width = small.shape[2:]
    edge = np.concatenate([small[:, :, 0], small[:, :, -1], small[:, :, :, 0], small[:, :, :, -1]], axis=2)
    weight = np.abs(small - np.median(edge, axis=2)[:, :, None, None]).mean(axis=1)
    total = weight.sum(axis=(1, 2))
    blank = total < 1e-3
    places, spread = [], np.zeros(len(small), dtype=np.float32)
    for axis, side in ((1, width), (2, height)):
        at = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
        along = weight.sum(axis=axis) / np.maximum(total, TINY)[:, None]
        centre = along @ at
        spread += np.maximum(along @ np.square(at) - np.square(centre), 0)
        places.append(np.where(blank, 0, centre))
    return places[0], places[1], np.where(blank, 0, np.sqrt(spread))


def as_columns(numbers: Floats, colours: dict[str, list[str]]) -> list[Column]:
    """Return what was measured of all images as columns that can be compared."""
    found = [
        Column(m.name, "pixels", m.topic, m.more, m.less, m.unit, numbers=numbers[:, i].astype(np.float64))
        for i, m in enumerate(MEASURES)
    ]
    for name, values in colours.items():
        found.append(
            Column(
                name,
                "pixels",
                "colour",
                "have a mostly {} background" if name.startswith("background") else "are mostly {}",
                "less often have a mostly {} background" if name.startswith("background") else "are less often {}",
                "share",
                texts=np.array(values, dtype=object),
            )
        )
    return found
