"""Many small pictures in one: sheets of equal tiles as data URIs, so that a page needs no other file.

A heatmap's tile is see-through where there is no relevance. Over white its colours are matplotlib's RdBu, red for the
explained class and blue against it; over the image the same tile is the overlay.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from exmap.errors import DataError

__all__ = ["Sheet", "heat_sheet", "heat_tiles", "on_white", "picture_sheet", "picture_tiles"]

LARGEST_SIDE = 64  # pixels of a tile
LEVELS = 15  # shades of either colour
EXACT_BELOW = 1200  # pixels of a tile: small pictures are kept exactly, larger ones as photographs
QUALITY = 75


@dataclass(frozen=True)
class Sheet:
    """Tiles of one size in rows.

    Attributes
    ----------
    uri : str
        A WebP picture as a data URI.
    count, columns, rows : int
        Number of tiles, and how they lie; a tile's number counts along the rows.
    width, height : int
        Of a tile, in pixels.
    """

    uri: str
    count: int
    columns: int
    rows: int
    width: int
    height: int

    def place(self, number: int) -> str:
        """Return the CSS ``background-position`` of a tile, for a background as large as the whole sheet.

        Raises
        ------
        DataError
            If there is no such tile.
        """
        if not 0 <= number < self.count:
            raise DataError(f"a sheet of {self.count} tiles has no tile {number}; count from 0")
        row, column = divmod(number, self.columns)
        return f"{_percent(column, self.columns)} {_percent(row, self.rows)}"


def _percent(number: int, of: int) -> str:
    return f"{100 * number / max(of - 1, 1):.4f}".rstrip("0").rstrip(".") + "%"


def picture_tiles(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return images as small RGB tiles.

    Parameters
    ----------
    images : ndarray of float32, shape (n, C, H, W), in [0, 1]
        Of one or three channels; of others, the first. What lies outside the range is clipped.

    Returns
    -------
    ndarray of uint8, shape (n, h, w, 3)
    """
    channels = images if images.shape[1] == 3 else np.repeat(images[:, :1], 3, axis=1)
    shades = np.rint(np.clip(np.nan_to_num(channels), 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    size = _tile_size(*images.shape[2:])
    tiles = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BOX)) for one in shades]
    return np.stack(tiles) if tiles else np.zeros((0, size[1], size[0], 3), dtype=np.uint8)


def heat_tiles(maps: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return heatmaps as small tiles of shades, each relative to its own largest relevance.

    Parameters
    ----------
    maps : ndarray of float32, shape (n, C, h, w)
        Channels are summed.

    Returns
    -------
    ndarray of int8, shape (n, h, w), in [-15, 15]
    """
    total = np.nan_to_num(maps).sum(axis=1)
    size = _tile_size(*total.shape[1:])
    small = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BOX)) for one in total.astype(np.float32)]
    tiles = np.stack(small) if small else np.zeros((0, size[1], size[0]), dtype=np.float32)
    peak = np.abs(tiles).max(axis=(1, 2), keepdims=True, initial=0)
    return np.rint(LEVELS * tiles / np.where(peak > 0, peak, 1)).astype(np.int8)


def _tile_size(height: int, width: int) -> tuple[int, int]:
    """Return the width and height of the tile of a picture."""
    scale = min(1.0, LARGEST_SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def picture_sheet(tiles: NDArray[np.uint8]) -> Sheet:
    """Return a sheet of RGB tiles, shape (n, h, w, 3)."""
    return _sheet(tiles, "RGB", lossless=tiles.shape[1] * tiles.shape[2] < EXACT_BELOW)


def heat_sheet(tiles: NDArray[np.int8]) -> Sheet:
    """Return a sheet of tiles of shades, shape (n, h, w), see-through where there is no relevance."""
    return _sheet(_shades()[tiles.astype(np.int64) + LEVELS], "RGBA", lossless=True)


def on_white(tiles: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return tiles of shades in their colours over white, shape (n, h, w, 3)."""
    shades = _shades()[tiles.astype(np.int64) + LEVELS].astype(np.float32)
    alpha = shades[..., 3:] / 255
    over: NDArray[np.uint8] = np.rint(shades[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return over


def _shades() -> NDArray[np.uint8]:
    """Return the colour of each shade, shape (2 * LEVELS + 1, 4), as see-through as white in it allows."""
    solid = colormaps["RdBu_r"](np.linspace(0, 1, 2 * LEVELS + 1))[:, :3]
    solid[LEVELS] = 1
    alpha = 1 - solid.min(axis=1, keepdims=True)
    colour = np.where(alpha > 0, (solid - (1 - alpha)) / np.where(alpha > 0, alpha, 1), 0)
    shades: NDArray[np.uint8] = np.rint(255 * np.hstack([colour, alpha])).astype(np.uint8)
    return shades


def _sheet(tiles: NDArray[np.uint8], mode: str, *, lossless: bool) -> Sheet:
    count, height, width, depth = tiles.shape
    columns = max(1, math.ceil(math.sqrt(count)))  # of the count alone: sheets of as many tiles lie alike
    rows = max(1, math.ceil(count / columns))
    grid = np.zeros((rows * columns, height, width, depth), dtype=np.uint8)
    grid[:count] = tiles
    whole = grid.reshape(rows, columns, height, width, depth).swapaxes(1, 2)
    picture = Image.fromarray(whole.reshape(rows * height, columns * width, depth), mode)
    buffer = BytesIO()
    picture.save(buffer, "WEBP", lossless=lossless, quality=QUALITY, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Sheet(uri, count, columns, rows, width, height)
