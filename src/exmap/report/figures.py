"""Images beside their heatmaps, as in the paper's figures 4 and 5 and its supplement's figure 2."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from exmap.errors import DataError
from exmap.report.drawing import LEGEND, give_title, picture_grid, plain, show_heatmap, show_image

__all__ = ["comparison_figure", "mistakes_figure", "strategies_figure"]

Row = tuple[str, NDArray[np.float32], NDArray[np.float32]]
Pictures = NDArray[np.floating[Any]]
STRATEGIES = (
    "What the classifier looks at: image | relevance (red for, blue against); the groups it gets wrong most, first"
)
SIDE = 1.1  # of a picture, in inches
FINE = 7  # size of captions


def strategies_figure(rows: Sequence[Row], *, columns: int = 6, title: str = STRATEGIES) -> Figure:
    """Show sample images with their heatmaps, one row per group.

    Parameters
    ----------
    rows : sequence of (title, images, heatmaps)
        images : ndarray of float32, shape (n, C, H, W), in [0, 1]; heatmaps : shape (n, C, h, w), in [-1, 1]. Channels
        of a heatmap are summed; red speaks for the explained class, blue against it.
    columns : int
        Samples shown per row.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
        Not shown and not saved.
    """
    wide = float(np.clip(1 / _aspect(rows[0][1]), 0.55, 2)) if rows else 1.0
    size = (SIDE * wide * 2 * columns + 2.2, 1.25 * max(len(rows), 1) + 0.5)
    figure, axes = picture_grid(len(rows), 2 * columns, size)
    for line, (name, images, maps) in zip(axes, rows, strict=False):
        line[0].set_ylabel(plain(name), rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
        for number, (image, heat) in enumerate(zip(images[:columns], maps[:columns], strict=True)):
            show_image(line[2 * number], image)
            show_heatmap(line[2 * number + 1], heat, image)
    give_title(figure, title, 10)
    return figure


def comparison_figure(
    images: Pictures,
    before: Pictures,
    after: Pictures,
    *,
    titles: Sequence[str],
    said_before: Sequence[str],
    said_after: Sequence[str],
    title: str = "",
    names: tuple[str, str] = ("trained", "repaired"),
) -> Figure:
    """Show images, and under each its heatmaps by two classifiers (ExMap, figure 4).

    Parameters
    ----------
    images : ndarray of float, shape (n, C, H, W), in [0, 1]
    before, after : ndarray of float, shape (n, C, h, w)
        Heatmaps of the same images by the first and the second classifier.
    titles : sequence of str, length n
        What each image is.
    said_before, said_after : sequence of str, length n
        What each classifier takes it for.
    title : str
    names : (str, str)
        Of the classifiers.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown and not saved.

    Raises
    ------
    DataError
        If the arrays and texts are not of one length.
    """
    _same_length(
        images=images, before=before, after=after, titles=titles, said_before=said_before, said_after=said_after
    )
    captions = [[_narrow(text) for text in texts] for texts in (titles, said_before, said_after)]
    lines = sum(max((text.count("\n") + 1 for text in texts), default=1) for texts in captions)
    height = 3 * SIDE * _aspect(images) + 0.13 * lines + 0.9
    figure, axes = picture_grid(3, len(images), (0.6 + SIDE * max(len(images), 1), height))
    for ax, label in zip(axes[:, 0], ("image", *names), strict=True):
        ax.set_ylabel(plain(label), fontsize=9, parse_math=False)
    for number in range(len(images)):
        show_image(axes[0, number], images[number])
        show_heatmap(axes[1, number], before[number], images[number])
        show_heatmap(axes[2, number], after[number], images[number])
        for ax, texts in zip(axes[:, number], captions, strict=True):
            ax.set_title(texts[number], fontsize=FINE, parse_math=False, pad=2)
    give_title(figure, f"{title}\n{LEGEND}".strip())
    return figure


def mistakes_figure(
    images: Pictures, heatmaps: Pictures, captions: Sequence[str], *, title: str = "", columns: int = 4
) -> Figure:
    """Show misclassified images, each with its heatmap beside it (ExMap supplement, figure 2).

    Parameters
    ----------
    images : ndarray of float, shape (n, C, H, W), in [0, 1]
    heatmaps : ndarray of float, shape (n, C, h, w)
    captions : sequence of str, length n
    title : str
    columns : int
        Images in a row.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown and not saved.

    Raises
    ------
    DataError
        If the arrays and captions are not of one length.
    """
    _same_length(images=images, heatmaps=heatmaps, captions=captions)
    columns = min(columns, max(len(images), 1))
    lines = math.ceil(len(images) / columns)
    size = (2 * 1.3 * columns + 0.2, max(lines, 1) * (1.3 * _aspect(images) + 0.45) + 0.5)
    figure, axes = picture_grid(lines, 2 * columns, size)
    for number, caption in enumerate(captions):
        left, right = axes[number // columns, 2 * (number % columns) :][:2]
        show_image(left, images[number])
        show_heatmap(right, heatmaps[number], images[number])
        left.set_title(plain(caption, 44), fontsize=FINE, parse_math=False, loc="left", pad=2)
    give_title(figure, f"{title}\n{LEGEND}".strip())
    return figure


def _narrow(text: str) -> str:
    """Break a caption into at most three lines as wide as a picture."""
    return "\n".join(textwrap.wrap(plain(text, 500), 19, max_lines=3, placeholder="…"))


def _aspect(images: Pictures) -> float:
    """Return height over width of the images."""
    return float(images.shape[2] / images.shape[3]) if images.ndim == 4 and images.shape[3] else 1.0


def _same_length(**parts: Any) -> None:
    lengths = {name: len(part) for name, part in parts.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"a figure needs one entry per image in each of its parts, got {lengths}")
