"""Groups in a plane of heatmaps: true ones beside pseudo-groups, as in the supplement's figure 3."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from exmap.errors import DataError
from exmap.records import IntArray
from exmap.report.drawing import give_title, plain

__all__ = ["embedding_figure"]

Panel = tuple[str, IntArray, Sequence[str]]
# Okabe and Ito, told apart by all eyes, black left for what is in no group; after eight groups with another marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#8C564B")
MARKERS = "o^sDvPX*<>"
LISTED = 16  # groups in a legend; the largest


def embedding_figure(points: NDArray[np.floating], panels: Sequence[Panel], *, title: str = "") -> Figure:
    """Show the same points once per panel, coloured by that panel's groups; small groups lie on top, drawn larger.

    Parameters
    ----------
    points : ndarray of float, shape (N, 2)
        For example from :func:`exmap.cluster.embed`. Rows with NaN are left out.
    panels : sequence of (title, index, names)
        index : ndarray of int64, shape (N,), position in `names`, or -1 for none.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
        Not shown and not saved. Points are pixels in a PDF, so it stays small; text stays text.

    Raises
    ------
    DataError
        If there are not two coordinates and one group number per sample.
    """
    lengths = [len(index) for _, index, _ in panels]
    if points.ndim != 2 or points.shape[1] != 2 or any(length != len(points) for length in lengths):
        raise DataError(
            f"a figure of an embedding needs points of shape (N, 2) and N group numbers per panel, got {points.shape} "
            f"and {lengths}"
        )
    listed = max((min(len(names), LISTED + 1) for _, _, names in panels), default=0)
    columns = max(len(panels), 1)
    figure = Figure(figsize=(4.4 * columns, 4.3 + 0.19 * (listed + 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    placed = np.isfinite(points).all(axis=1)
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_color("#BBBBBB")
    for ax, (name, index, names) in zip(axes, panels, strict=False):
        ax.set_title(plain(name), fontsize=10, parse_math=False)
        _scatter(ax, points[placed], index[placed], names)
    if title:
        give_title(figure, title, 10)
    return figure


def _scatter(ax: Axes, points: NDArray[np.floating], index: IntArray, names: Sequence[str]) -> None:
    """Draw the groups from the largest to the smallest, which also gives the colours, and name the largest."""
    sizes = np.bincount(index + 1, minlength=len(names) + 1)
    order = [g for g in np.argsort(-sizes, kind="stable").tolist() if sizes[g]]
    ranks = {g: rank for rank, g in enumerate(g for g in order if g)}
    listed = [g for g in order if ranks.get(g, 0) < LISTED]
    for place, g in enumerate(order):
        rows = index == g - 1
        small = sizes[g] < 0.1 * len(points)
        ax.scatter(
            points[rows, 0],
            points[rows, 1],
            s=(6 if len(points) > 1000 else 14) * (2.2 if small else 1),
            c="#000000" if g == 0 else COLOURS[ranks[g] % len(COLOURS)],
            marker="x" if g == 0 else MARKERS[ranks[g] // len(COLOURS) % len(MARKERS)],
            linewidths=0.8 if g == 0 else 0.25 * small,
            edgecolors=None if g == 0 else "white",
            label=f"{plain(names[g - 1], 40) if g else 'no group'}, n = {sizes[g]:,}" if g in listed else "_",
            rasterized=True,
            zorder=2 + place,
        )
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        legend = ax.legend(
            handles,
            labels,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.02),
            fontsize=7.5,
            frameon=False,
            ncols=1,
            title=f"and {len(order) - len(listed)} smaller groups" if len(order) > len(listed) else None,
            title_fontsize=7.5,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        for handle in legend.legend_handles:
            handle.set_sizes([22])  # type: ignore[union-attr]
