"""Simple properties of each image, computed from its pixels alone: what a shortcut is often made of.

Each family is a matrix with a row per image. A tint, a mark at the border or stripes at an angle show in one of them,
whatever a classifier makes of it:

==============  ====================================================================================================
colour          mean colour of what is bright, histogram of hues, how saturated and how bright that is
brightness      mean, standard deviation and quantiles of the grey values
sharpness       how strong edges are, and how the power of the image falls off over six octaves of frequency
orientation     histograms of the directions of gradients, strong and faint ones, and of the power spectrum
border          mean colour and standard deviation of each of 20 tiles along the border
layout          where things are: centre, extent and share of what differs from the border, and a 4 x 4 thumbnail
background      colour and texture of the outer part, of the inner part, and their difference
==============  ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from exmap.data.dataset import Images, Split, batch_slices
from exmap.errors import DataError
from exmap.records import IntArray, Listener, Progress, silent

__all__ = ["FAMILIES", "Floats", "Properties", "averaged", "image_properties", "rim"]

Floats = NDArray[np.float32]

LARGEST = 224  # pixels on a side; larger images are averaged down to it
SMALL = 64  # pixels on a side, for what needs no fine detail
ANGLES = 12  # bins over 180 degrees
HUES = 12
TILES = 6  # along a side; those at the border are a sixth of the image deep
BATCH_PIXELS = 4_000_000  # values of one batch: 16 MB, and a few times as much while it is worked on
TINY = np.float32(1e-6)


@dataclass(frozen=True, eq=False, repr=False)
class Properties:
    """Families of properties of the same images.

    Attributes
    ----------
    matrices : mapping of str to ndarray of float32, shape (N, d)
        By family; a row per image, and as many columns as the family has properties.
    blocks : mapping of str to tuple of int
        How many columns of each family, one block after the other, belong together and have one unit.
    """

    matrices: Mapping[str, Floats]
    blocks: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        for name, matrix in self.matrices.items():
            if matrix.shape != (len(self), sum(self.blocks[name])):
                raise DataError(f"{name} must have {len(self)} rows and its blocks' columns, got shape {matrix.shape}")

    def __len__(self) -> int:
        return len(next(iter(self.matrices.values()), ()))

    def __repr__(self) -> str:
        return f"Properties({len(self):,} images, {', '.join(self.matrices)})"

    def __getitem__(self, name: str) -> Floats:
        return self.matrices[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the families."""
        return tuple(self.matrices)

    def rows(self, rows: IntArray) -> Properties:
        """Return the properties of some of the images."""
        return Properties({name: matrix[rows] for name, matrix in self.matrices.items()}, self.blocks)

    def standardised(self, name: str) -> Floats:
        """Return a family as points whose Euclidean distances mean something: to cluster, or to fit a model to.

        Columns are centred. Those of one block are divided by one number, so that a border tile that hardly varies
        stays small beside one that does, and each block has a mean squared length of 1; 0 where nothing varies.

        Returns
        -------
        ndarray of float32, shape (N, d)
        """
        centred = self.matrices[name].astype(np.float64)
        centred -= centred.mean(axis=0)
        for columns in np.split(np.arange(centred.shape[1]), np.cumsum(self.blocks[name])[:-1]):
            size = np.sqrt(np.square(centred[:, columns]).sum(axis=1).mean())
            centred[:, columns] *= 1 / size if size > 1e-5 else 0.0
        return centred.astype(np.float32)


def image_properties(images: Images | Split, *, batch_size: int | None = None, listen: Listener = silent) -> Properties:
    """Compute all families of properties.

    Parameters
    ----------
    images : Images or Split
        Of 1 or 3 channels and any size. They are read a batch at a time, as one looks at them (``pixels``): what is not
        finite is black.
    batch_size : int, optional
        Images at once; by default as many as make 4 million values.
    listen : Listener

    Returns
    -------
    Properties
        With the families of :data:`FAMILIES`; deterministic. Images of one channel are taken as grey.

    Raises
    ------
    DataError
        For no images, another number of channels, fewer than 4 pixels on a side, or values that are not finite as one
        looks at them.

    Examples
    --------
    >>> from exmap.data.dataset import ArrayImages
    >>> pixels = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    >>> pixels[1, 0] = 255
    >>> found = image_properties(ArrayImages(pixels))
    >>> found["brightness"].shape, round(float(found["brightness"][1, 0]), 3)
    ((2, 7), 0.333)
    """
    images = images.images if isinstance(images, Split) else images
    channels, height, width = images.shape
    if channels not in (1, 3) or min(height, width) < 4 or not len(images):
        raise DataError(
            "properties need at least one image, and images of 1 or 3 channels and at least 4 x 4 pixels, got "
            f"{len(images)} of {channels} x {height} x {width}"
        )
    size = batch_size or max(1, BATCH_PIXELS // (channels * height * width))
    made: dict[str, list[tuple[Floats, ...]]] = {name: [] for name in FAMILIES}
    for part in batch_slices(len(images), size):
        view = _View.of(images.pixels(np.arange(part.start, part.stop, dtype=np.int64)))
        for name, family in FAMILIES.items():
            made[name].append(family(view))
        listen(Progress("properties", part.stop, len(images)))
    matrices = {name: np.concatenate([np.hstack(part) for part in parts]) for name, parts in made.items()}
    return Properties(matrices, {name: tuple(block.shape[1] for block in made[name][0]) for name in made})


@dataclass(frozen=True, eq=False)
class _View:
    """A batch as the families look at it: grey of at most 224 pixels (n, H, W), colours of at most 64 (n, 3, h, w)."""

    grey: Floats
    small: Floats

    @classmethod
    def of(cls, pixels: Floats) -> _View:
        if not np.isfinite(pixels).all():
            raise DataError("properties need pixels that are finite numbers; look for broken images")
        height, width = pixels.shape[2:]
        small = averaged(pixels, min(SMALL, height), min(SMALL, width))
        small = np.repeat(small, 3, axis=1) if small.shape[1] == 1 else small
        return cls(averaged(pixels.mean(axis=1), min(LARGEST, height), min(LARGEST, width)), small)


def averaged(values: Floats, rows: int, columns: int) -> Floats:
    """Return the means over tiles that cover the last two axes evenly, shape (..., rows, columns)."""
    down, across = (_shares(*pair) for pair in ((rows, values.shape[-2]), (columns, values.shape[-1])))
    return np.asarray(down @ values @ across.T, dtype=np.float32)


def _shares(tiles: int, pixels: int) -> Floats:
    """Return which share of each tile each pixel is, shape (tiles, pixels); rows sum to 1."""
    edges, starts = np.linspace(0, pixels, tiles + 1), np.arange(pixels)
    shares = np.maximum(np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts), 0)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), dtype=np.float32)


def _colour(view: _View) -> tuple[Floats, ...]:
    brightest = view.small.max(axis=1)
    chroma = brightest - view.small.min(axis=1)  # 0 for grey, 1 for a pure colour
    light = brightest.sum(axis=(1, 2)) + TINY
    colour = view.small.sum(axis=(2, 3)) / (view.small.sum(axis=(1, 2, 3))[:, None] + TINY)
    red, green, blue = np.moveaxis(view.small, 1, 0)
    hue = np.arctan2(np.sqrt(np.float32(3)) * (green - blue), 2 * red - green - blue) / (2 * np.pi) % 1
    hues = _histogram(hue * HUES, chroma, HUES) / (chroma.sum(axis=(1, 2)) + 0.02 * light)[:, None]
    saturated = (brightest * (chroma > 0.25 * brightest)).sum(axis=(1, 2)) / light
    level = np.square(brightest).sum(axis=(1, 2)) / light  # of what is bright: tells white from grey
    share = np.stack([saturated, chroma.sum(axis=(1, 2)) / light, level], axis=1)
    return (np.hstack([np.where(light[:, None] > 2 * TINY, colour - 1 / 3, 0), hues, share]).astype(np.float32),)


def _brightness(view: _View) -> tuple[Floats, ...]:
    flat = view.small.mean(axis=1).reshape(len(view.small), -1)
    quantiles = np.quantile(flat, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1).T
    return (np.column_stack([flat.mean(axis=1), flat.std(axis=1), quantiles]).astype(np.float32),)


def _sharpness(view: _View) -> tuple[Floats, ...]:
    power, radius, _ = _spectrum(view.grey)
    edges = 0.5 * np.array([0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, np.inf])
    rings = np.stack([(radius > low) & (radius <= high) for low, high in pairwise(edges)])
    shares = power @ rings.reshape(len(rings), -1).T.astype(np.float32)
    shares /= shares.sum(axis=1, keepdims=True) + TINY
    contrast = view.grey.std(axis=(1, 2)) + np.float32(1e-3)
    edge = np.abs(_laplacian(view.grey)).mean(axis=(1, 2))
    strength = np.log(np.stack([edge, edge / contrast], axis=1) + np.float32(1e-3))
    return np.log(shares + np.float32(1e-3)), strength


def _orientation(view: _View) -> tuple[Floats, ...]:
    halved = averaged(view.grey, *(min(LARGEST // 2, pixels) for pixels in view.grey.shape[1:]))
    down, across = halved[:, 2:, 1:-1] - halved[:, :-2, 1:-1], halved[:, 1:-1, 2:] - halved[:, 1:-1, :-2]
    strength = np.hypot(down, across)
    angle = np.arctan2(down, across) / np.pi % 1 * ANGLES
    faint = strength * (strength < 0.15) * (strength > 0.01)
    found = [_histogram(angle, weight, ANGLES) for weight in (strength, faint)]
    power, radius, direction = _spectrum(view.grey)
    used = (radius > 0.08) & (radius <= 0.5)
    ring = np.digitize(radius[used], np.linspace(0.08, 0.5, 6))
    used_power = power[:, used.ravel()]
    for number in np.unique(ring):  # each ring's power by its own mean: what stands out, not what is strong
        used_power[:, ring == number] /= used_power[:, ring == number].mean(axis=1, keepdims=True) + TINY
    wedge = np.floor(direction[used] / np.pi * ANGLES + 0.5).astype(int) % ANGLES
    peaks = np.zeros((len(power), ANGLES), dtype=np.float32)
    for number in np.unique(wedge):
        peaks[:, number] = used_power[:, wedge == number].max(axis=1)
    return (*(each / (each.sum(axis=1, keepdims=True) + TINY) for each in found), np.log1p(peaks))


def _border(view: _View) -> tuple[Floats, ...]:
    mean, square = (averaged(values, TILES, TILES) for values in (view.small, np.square(view.small)))
    deviation = np.sqrt(np.maximum(square - np.square(mean), 0)).mean(axis=1)
    outside = rim(TILES, TILES)
    return mean[:, :, outside].reshape(len(mean), -1), deviation[:, outside]


def _layout(view: _View) -> tuple[Floats, ...]:
    height, width = view.small.shape[2:]
    around = np.median(view.small[:, :, rim(height, width)], axis=2)
    weight = np.abs(view.small - around[:, :, None, None]).mean(axis=1)
    total = weight.sum(axis=(1, 2))
    blank = (total < 1e-3)[:, None]
    centre, extent = np.zeros((2, len(weight), 2), dtype=np.float32)
    for column, (axis, pixels) in enumerate(((2, height), (1, width))):
        at = ((np.arange(pixels) + 0.5) / pixels - 0.5).astype(np.float32)
        along = weight.sum(axis=axis) / np.maximum(total, TINY)[:, None]
        centre[:, column] = along @ at
        extent[:, column] = np.sqrt(np.maximum(along @ np.square(at) - np.square(along @ at), 0))
    thumbnail = averaged(weight, 4, 4).reshape(len(weight), -1)
    return np.where(blank, 0, centre), np.where(blank, 0, extent), thumbnail


def _background(view: _View) -> tuple[Floats, ...]:
    height, width = view.small.shape[2:]
    y, x = np.meshgrid(*((np.arange(size) + 0.5) / size * 2 - 1 for size in (height, width)), indexing="ij")
    inner = np.maximum(np.abs(y), np.abs(x)) < 0.6
    rough = np.abs(_laplacian(view.small.mean(axis=1)))
    colours = [view.small[:, :, part].mean(axis=2) for part in (~inner, inner)]
    textures = [view.small[:, :, part].std(axis=2).mean(axis=1) for part in (~inner, inner)]
    textures += [rough[:, part].mean(axis=1) for part in (~inner, inner)]
    parts = averaged(view.small, 3, 3)[:, :, rim(3, 3)].reshape(len(rough), -1)
    return (*colours, colours[0] - colours[1], np.stack(textures, axis=1), parts)


_ALL = (_colour, _brightness, _sharpness, _orientation, _border, _layout, _background)
FAMILIES: Mapping[str, Callable[[_View], tuple[Floats, ...]]] = {family.__name__[1:]: family for family in _ALL}


def rim(height: int, width: int) -> NDArray[np.bool_]:
    """Return where the outermost elements of an array are, shape (height, width)."""
    return np.pad(np.zeros((height - 2, width - 2), dtype=bool), 1, constant_values=True)


def _histogram(position: NDArray[np.floating], weight: NDArray[np.floating], bins: int) -> Floats:
    """Return weighted histograms over a circle; each value is shared between the two nearest bins, shape (n, bins)."""
    n = len(position)
    flat, mass = position.reshape(n, -1), weight.reshape(n, -1)
    low = np.floor(flat).astype(np.int64)
    part = flat - low
    first, total = np.arange(n)[:, None] * bins, np.zeros(n * bins)
    for step, share in ((0, 1 - part), (1, part)):
        total += np.bincount((first + (low + step) % bins).ravel(), (mass * share).ravel(), minlength=n * bins)
    return total.reshape(n, bins).astype(np.float32)


def _laplacian(grey: Floats) -> Floats:
    """Return four times each pixel minus its four neighbours, 0 beyond the outermost pixels repeated."""
    p = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return np.asarray(4 * grey - p[:, 2:, 1:-1] - p[:, :-2, 1:-1] - p[:, 1:-1, 2:] - p[:, 1:-1, :-2])


def _spectrum(grey: Floats) -> tuple[Floats, Floats, Floats]:
    """Return power (n, frequencies), and of each frequency cycles per pixel and direction in [0, pi)."""
    height, width = grey.shape[1:]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]).astype(np.float32)
    centred = (grey - grey.mean(axis=(1, 2), keepdims=True)) * window
    power = np.square(np.abs(fft.rfft2(centred))).reshape(len(grey), -1)
    down, across = np.meshgrid(fft.fftfreq(height), fft.rfftfreq(width), indexing="ij")
    return power.astype(np.float32), np.hypot(down, across), np.arctan2(down, across) % np.pi
