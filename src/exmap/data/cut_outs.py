"""Cut-outs from pictures and masks, scaled and blended into a background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from exmap.data.regular import open_regular
from exmap.errors import DataError

Bytes = NDArray[np.uint8]

__all__ = ["blend", "read_cut_out", "paste", "read", "scaled"]


KEPT = 128  # a pixel of at least this alpha belongs to the cut-out; softer ones are blended, but do not count


def blend(cut_out: Bytes, background: Bytes) -> Bytes:
    """Lay a cut-out on a background: ``background * (1 - alpha) + cut_out * alpha``, rounded.

    Parameters
    ----------
    cut_out : ndarray of uint8, shape (H, W, 4)
    background : ndarray of uint8, shape (H, W, 3)

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Examples
    --------
    >>> blend(np.array([[[200, 200, 200, 51]]], dtype=np.uint8), np.array([[[0, 100, 200]]], dtype=np.uint8))
    array([[[ 40, 120, 200]]], dtype=uint8)
    """
    alpha = cut_out[..., 3:] / np.float32(255)
    return np.rint(background * (1 - alpha) + cut_out[..., :3] * alpha).astype(np.uint8)


def scaled(cut_out: Image.Image, longer: float) -> Image.Image:
    """Crop a cut-out to what it keeps and scale its longer side."""
    kept = cut_out.crop(cut_out.getchannel("A").point(lambda value: 255 * (value >= KEPT)).getbbox())
    width, height = (max(1, round(edge * longer / max(kept.size))) for edge in kept.size)
    return kept.resize((width, height), Image.Resampling.LANCZOS)


def paste(canvas: Bytes, cut_out: Image.Image, left: int, top: int) -> None:
    """Lay a cut-out on a part of the canvas, in place."""
    place = np.s_[top : top + cut_out.height, left : left + cut_out.width]
    canvas[place] = blend(np.asarray(cut_out), canvas[place])


def read_cut_out(path: Path, mask_path: Path | None) -> Image.Image:
    """Read a cut-out with its mask, or with its own transparency, as RGBA."""
    image, transparent = read(path)
    if mask_path:
        mask = read(mask_path)[0].convert("L")
        if mask.size != image.size:
            raise DataError(
                f"{mask_path} must have the size of {path}, {image.width} x {image.height} pixels, found "
                f"{mask.width} x {mask.height}; give the mask of this image"
            )
        image.putalpha(mask)
    elif not transparent:
        raise DataError(
            f"{path} must have transparency or a mask of the same stem, but has neither; cut it out, or name the "
            "folder of its masks"
        )
    brightest = np.asarray(image)[..., 3].max()
    if brightest < KEPT:
        raise DataError(
            f"{mask_path or path} must keep something (white, or opaque: {KEPT} to 255), but its highest value is "
            f"{brightest}; give another mask or remove the image"
        )
    return image


def read(path: Path) -> tuple[Image.Image, bool]:
    """Read an image upright as RGBA, and whether the file has transparency."""
    try:
        with open_regular(path) as file, Image.open(file) as image:
            mode, transparent = image.mode, "A" in image.getbands() or "transparency" in image.info
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); replace or remove it") from error
    if mode[0] in "IF":
        raise DataError(f"{path} must have 8 bits per channel, found mode {mode}; convert it")
    return upright, transparent
