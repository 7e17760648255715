"""One image file to one array: any mode, any orientation, an optional mask; and the crops that are taken of it."""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from exmap.errors import DataError

__all__ = ["FACTS", "SUFFIXES", "as_rgb", "centre_crop", "decode", "decode_whole", "file_facts", "random_crop"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # what a file holds counts, not its suffix
FACTS = ("bytes", "width", "height", "format", "mode", "camera", "software", "orientation")
KEPT_ABOVE = 200  # of a mask's grey value: the pixel belongs to the foreground (as in Waterbirds FG-Only)
UPRIGHT = {  # what undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Pixels = NDArray[np.uint8]


def decode(data: bytes, side: int, mask: bytes | None = None) -> Pixels:
    """Decode an image and resize it to a square.

    Parameters
    ----------
    data : bytes
        Of the file. Grey, palette, CMYK and 16-bit images become 8-bit RGB, an EXIF orientation is applied, and what
        is transparent is laid over white.
    side : int
        Height and width of the result; the aspect ratio is not kept (as in the Waterbirds loaders of this field).
    mask : bytes, optional
        A grey image of the same size: where it is 200 or less, the image is made black before it is resized.

    Returns
    -------
    ndarray of uint8, shape (side, side, 3)

    Raises
    ------
    DataError
        If the bytes are no whole image, or the mask has another size.
    """
    picture = decode_whole(data, mask, draft=side)
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR))


def decode_whole(data: bytes, mask: bytes | None = None, *, draft: int | None = None) -> Image.Image:
    """Decode an image as :func:`decode` does, in its own size and aspect ratio, to an RGB image.

    Parameters
    ----------
    data, mask : bytes
    draft : int, optional
        A side in pixels: a larger JPEG file may come out smaller, down to that.

    Raises
    ------
    DataError
        As :func:`decode`.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if draft is not None and mask is None and image.format == "JPEG":
                image.draft("RGB", (draft, draft))  # decodes at the next larger eighth: no need to make what is dropped
            picture = _rgb(_upright(image))
    except Exception as error:  # the library raises many kinds for a damaged file
        raise DataError(_reason(error, data)) from error
    return picture if mask is None else _masked(picture, mask)


def file_facts(data: bytes) -> dict[str, Any]:
    """Return what is known of an image file without decoding it.

    Returns
    -------
    dict
        ``bytes``, ``width`` and ``height`` (as stored), ``format``, ``mode``, ``camera``, ``software`` and
        ``orientation`` (EXIF, 1 where it says nothing); None for what cannot be read.
    """
    facts: dict[str, Any] = dict.fromkeys(FACTS)
    facts["bytes"] = len(data)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            tags = image.getexif()
            facts |= {"width": image.width, "height": image.height, "format": image.format, "mode": image.mode}
    except Exception:  # the library raises many kinds for a damaged file
        return facts
    made = (_text(tags.get(tag)) for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    facts["camera"] = " ".join(text for text in made if text) or None
    facts["software"] = _text(tags.get(ExifTags.Base.Software)) or None
    facts["orientation"] = tags.get(ExifTags.Base.Orientation, 1)
    return facts


def _text(value: Any) -> str:
    return str(value).replace("\0", "").strip()[:80] if isinstance(value, (str, int, float)) else ""


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels up to which images are opened"
    text = str(error)
    return text if text else type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # a TIFF file is turned by this already, and says so
    turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range: save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)  # 16 bits; some versions of the library hold them in 32
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("pixels outside 0 to 65535 have no known range: save it with 8 or 16 bits")
    return Image.fromarray((values // 257).astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    image = _eight_bits(image)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        above = image.convert("RGBA")
        white = Image.new("RGBA", above.size, "white")
        image = Image.alpha_composite(white, above)
    return image.convert("RGB")


def as_rgb(image: Image.Image) -> Image.Image:
    """Return a picture of a user's with 8-bit RGB pixels, what is transparent over white.

    Raises
    ------
    DataError
        For pixels without a known range.
    """
    try:
        return _rgb(image)
    except ValueError as error:
        raise DataError(str(error)) from error


def _masked(picture: Image.Image, mask: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(mask), formats=FORMATS) as opened:
            kept = np.asarray(_eight_bits(opened).convert("L")) > KEPT_ABOVE
    except Exception as error:
        raise DataError(f"its mask cannot be read: {_reason(error, mask)}") from error
    pixels = np.array(picture)
    if kept.shape != pixels.shape[:2]:
        raise DataError(
            f"its mask must have its size, but is {kept.shape[1]} x {kept.shape[0]} for an image of "
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
        )
    pixels[~kept] = 0
    return Image.fromarray(pixels)


def centre_crop(images: Pixels, side: int) -> Pixels:
    """Return the centre of images, shape (N, S, S, 3), as a view of shape (N, side, side, 3)."""
    start = (images.shape[1] - side) // 2
    return images[:, start : start + side, start : start + side]


def random_crop(image: Pixels, side: int, area: tuple[float, float], flip: bool, rng: np.random.Generator) -> Pixels:
    """Cut out a random part and resize it, as torchvision's RandomResizedCrop does; then perhaps flip it.

    Parameters
    ----------
    image : ndarray of uint8, shape (S, S, 3)
    side : int
    area : tuple of 2 float in (0, 1]
        Least and largest share of the image's area; the part's aspect ratio is drawn from 3/4 to 4/3, log-uniformly.
    flip : bool
        Whether left and right change places in half of the draws.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of uint8, shape (side, side, 3)
    """
    size = len(image)
    for _ in range(10):
        share = rng.uniform(*area) * size * size
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(share * ratio)), round(math.sqrt(share / ratio))
        if 0 < width <= size and 0 < height <= size:
            break
    else:
        width = height = size
    left, top = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
    box = (int(left), int(top), int(left) + width, int(top) + height)
    part = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box=box)
    cut = np.asarray(part)
    return cut[:, ::-1] if flip and rng.random() < 0.5 else cut
