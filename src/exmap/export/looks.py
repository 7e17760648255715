"""What tools for looking at images are told of each image: pictures, groups, where its file is."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from exmap.analysis import Analysis
from exmap.auto import AUTO
from exmap.data import Images
from exmap.data.dataset import SomeImages
from exmap.export.pixels import as_bytes, in_colour
from exmap.groups import EDITED, ExMapGroups
from exmap.records import Groups, IntArray

__all__ = ["NO_GROUP", "groups_by_column", "ending_of", "pictures", "saved", "source_files"]

NO_GROUP = "unassigned"
EXACT_BELOW = 64  # pixels: pictures up to this side are kept exactly
QUALITY = 90


def groups_by_column(analysis: Analysis) -> dict[str, Groups]:
    """Return every grouping that is shown, by the name of its column."""
    named = {"group": ExMapGroups.name, "chosen_group": AUTO, "edited_group": EDITED}
    found = {column: analysis.groups[source] for column, source in named.items() if source in analysis.groups}
    return found if analysis.oracle is None else {**found, "true_group": analysis.oracle}


def pictures(analysis: Analysis, rows: IntArray, largest: int) -> list[Image.Image]:
    """Return images as the classifier saw them, at most `largest` pixels a side."""
    found = []
    for pixels in as_bytes(in_colour(analysis.grouped.images.pixels(rows))).transpose(0, 2, 3, 1):
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        picture.thumbnail((largest, largest))  # smaller ones stay as they are
        found.append(picture)
    return found


def ending_of(shape: tuple[int, int, int]) -> str:
    """Return how files of images of a shape end: small ones are kept exactly."""
    return "png" if max(shape[1:]) <= EXACT_BELOW else "jpg"


def saved(picture: Image.Image | NDArray[np.uint8], ending: str) -> bytes:
    """Return a picture as the content of a file."""
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    if ending == "png":
        picture.save(file, "PNG")
    else:
        picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def source_files(images: Images) -> list[str | None]:
    """Return the path of the file of each image; None for images that are in none of their own."""
    if isinstance(images, SomeImages):
        whole = source_files(images.images)
        return [whole[row] for row in images.chosen]
    root, names = getattr(getattr(images, "files", None), "root", None), getattr(images, "names", None)
    if not isinstance(root, Path) or names is None:
        return [None] * len(images)
    paths = [root.absolute() / name for name in names]
    return [str(path) if path.is_file() else None for path in paths]
