"""Look at a classifier and a few of its images for seconds, before all images are opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exmap.data.catalog import read_images
from exmap.data.decode import decode_whole
from exmap.data.one_set import labelled_set
from exmap.data.reading import read_image
from exmap.data.table import OpenedTable
from exmap.errors import DataError
from exmap.explain import make_explainer
from exmap.model import check_fits, initial_model
from exmap.pipeline.opening import preprocess_of
from exmap.records import silent
from exmap.settings import Settings

if TYPE_CHECKING:
    from exmap.data.table import ImageTable

__all__ = ["first_look"]

LOOKED_AT = 16  # images, some of which may be broken


def first_look(settings: Settings) -> tuple[int, ...] | None:
    """Refuse a classifier that cannot be worked with on the labelled images that settings name.

    The list of the images is read, the classifier is built with its weights, and is given a few images, each made an
    input as all of them will be.

    Parameters
    ----------
    settings : Settings
        With ``data.one_set``.

    Returns
    -------
    tuple of int or None
        Shape of the classifier's input; None where no image of the few can be read.

    Raises
    ------
    ExMapError
        For labels, weights, a transform or a classifier that will not do, in one sentence.
    """
    table = labelled_set(read_images(settings.data), settings.data)
    preprocess = preprocess_of(settings)
    model = initial_model(settings.model, len(table.class_names), seed=settings.seed)
    few = _readable(table)
    if few is None:
        return None
    images = settings.images.model_copy(update={"workers": 0, "cache": "never"})
    opened = OpenedTable.of(few, images, preprocess=preprocess, listen=silent)
    split = opened.split("val", np.arange(len(few.names)))
    gradient = getattr(make_explainer(settings.explain.explainer), "needs_gradient", True)
    check_fits(model, split, gradient=gradient)
    return split.images.shape


def _readable(table: ImageTable) -> ImageTable | None:
    """Return a table of two of the images that can be read; None where there is none among a few."""
    rows: list[int] = []
    for row in np.unique(np.linspace(0, len(table.names) - 1, LOOKED_AT).astype(np.int64)).tolist():
        try:
            decode_whole(*read_image(table.files, table.names[row], table.masks[row] if table.masks else ""))
        except DataError:  # it is named when all are opened
            continue
        rows.append(row)
        if len(rows) == 2:
            break
    return table.take(np.array(rows, dtype=np.int64)) if rows else None
