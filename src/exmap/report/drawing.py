"""What the figures share: images and heatmaps on axes, text as it is, and files that are whole."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["give_title", "picture_grid", "plain", "save_figure", "show_heatmap", "show_image"]

LEGEND = "red speaks for the class that is explained, blue against it"
FORMATS = ("png", "pdf")
UNDATED: dict[str, dict[str, Any]] = {"png": {"Software": None}, "pdf": {"CreationDate": None}}


def plain(text: str, most: int = 60) -> str:
    """Return text that can be drawn: printable, and cut where it is too long; lines stay lines.

    Examples
    --------
    >>> plain("a" + chr(7) + "b")
    'a b'
    """
    lines = ("".join(c if c.isprintable() else " " for c in line) for line in text.split("\n"))
    return "\n".join(line if len(line) <= most else f"{line[: most - 1]}…" for line in lines)


def picture_grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, NDArray[Any]]:
    """Return a figure of at least one axes without ticks or frames, and the axes, shape (rows, columns)."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(rows, 1), max(columns, 1), squeeze=False)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_frame_on(False)
    return figure, axes


def give_title(figure: Figure, text: str, size: float = 9) -> None:
    """Write a title as wide as the figure at most, over as many lines as that takes."""
    letters = int(figure.get_figwidth() * 120 / size)  # a letter is 0.6 of its size wide, a point 1/72 inch
    lines = [part for line in plain(text, 500).split("\n") for part in textwrap.wrap(line, max(letters, 8))]
    figure.suptitle("\n".join(lines), fontsize=size, parse_math=False)


def show_image(ax: Axes, image: NDArray[np.floating[Any]]) -> None:
    """Draw an image, shape (C, H, W), in [0, 1]; what is outside is clipped."""
    picture = np.clip(image.transpose(1, 2, 0), 0, 1)
    ax.imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=1)


def show_heatmap(ax: Axes, heatmap: NDArray[np.floating[Any]], image: NDArray[np.floating[Any]] | None = None) -> None:
    """Draw a heatmap, shape (C, h, w), summed over channels; its largest absolute value has full colour.

    A map that was reduced to a square is stretched to what it explains: its image, shape (C, H, W).
    """
    total = heatmap.sum(axis=0)
    peak = float(np.abs(total).max(initial=0.0)) or 1.0
    height, width = total.shape if image is None else image.shape[1:]
    ax.imshow(total, cmap="bwr", vmin=-peak, vmax=peak, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    ax.set_frame_on(True)  # where relevance is zero, a map is as white as the page
    ax.spines[:].set(color="#DDDDDD", linewidth=0.5)


def save_figure(figure: Figure, stem: Path, formats: Sequence[str] = FORMATS, *, dpi: int = 200) -> list[Path]:
    """Write a figure to ``STEM.png`` and ``STEM.pdf``, each whole or not at all; the same figure gives the same bytes.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    stem : Path
        Without an extension.
    formats : sequence of str
        Of ``png`` and ``pdf``.
    dpi : int
        Of the pixels, also of those in a PDF.

    Returns
    -------
    list of Path
    """
    paths = []
    for kind in formats:
        path = stem.with_name(f"{stem.name}.{kind}")
        part = path.with_name(path.name + ".part")
        with matplotlib.rc_context({"pdf.fonttype": 42}):  # text stays text, in a font cut down to the letters used
            figure.savefig(part, format=kind, dpi=dpi, metadata=UNDATED[kind])
        os.replace(part, path)
        paths.append(path)
    return paths
