"""Figures as functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["strategies_figure"]

Row = tuple[str, NDArray[np.float32], NDArray[np.float32]]


def strategies_figure(rows: Sequence[Row], *, columns: int = 6) -> Figure:
    """Show sample images with their heatmaps, one row per group.

    Parameters
    ----------
    rows : sequence of (title, images, heatmaps)
        images : ndarray of float32, shape (n, C, H, W), in [0, 1]; heatmaps : shape (n, C, h, w), in [-1, 1]. Channels
        of a heatmap are summed; red speaks for the explained class, blue against it.
    columns : int
        Samples shown per row.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown and not saved.
    """
    figure = Figure(figsize=(1.1 * 2 * columns + 2.2, 1.25 * max(len(rows), 1) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(len(rows), 1), 2 * columns, squeeze=False)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_frame_on(False)
    for line, (title, images, maps) in zip(axes, rows, strict=False):
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        for number, (image, heat) in enumerate(zip(images[:columns], maps[:columns], strict=True)):
            picture = np.clip(image.transpose(1, 2, 0), 0, 1)
            total = heat.sum(axis=0)
            peak = float(np.abs(total).max()) or 1.0
            line[2 * number].imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray")
            line[2 * number + 1].imshow(total, cmap="bwr", vmin=-peak, vmax=peak)
    figure.suptitle(
        "What the classifier looks at: image | relevance (red for, blue against); the groups it gets wrong most, first",
        fontsize=10,
    )
    return figure
