"""The report page's static charts: arrays in, SVG text out, in colours that read on light and dark paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["data_chart", "eigenvalue_chart", "score_chart", "share_chart"]

INK = "#010203"  # becomes the colour of the text around the chart
ACCENT, MUTED = "#d1662b", "#7f8c9b"
BINS = 30
# What matplotlib adds for a file of its own: names that repeat from chart to chart, a style for all, fonts of its own.
UNWANTED = (
    "<!--.*?-->",
    "<metadata>.*?</metadata>",
    "<style.*?</style>",
    r'(?<=<g) id="[^"]*"',
    "font-family: [^;]*; ",
)
SIZE = (4.4, 2.5)  # inches; 72 units each


def eigenvalue_chart(values: NDArray[np.float64], n_clusters: int, described: str, *, ratios: bool = False) -> Markup:
    """Show the smallest eigenvalues, with a line through the gap that decides the number of clusters.

    Parameters
    ----------
    values : ndarray of float64, shape (m,), ascending
    n_clusters : int
        The gap lies before eigenvalue ``n_clusters + 1``; it is marked if that one is shown.
    described : str
        What the chart shows, for those who cannot see it.
    ratios : bool
        Whether the gap is one between ratios: the scale is then logarithmic, and what is zero stands at its lower end.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    ax = figure.add_subplot()
    numbers = np.arange(1, len(values) + 1)
    before = numbers <= n_clusters
    if ratios and (values > 0).any():
        floor = values[values > 0].min() / 3
        values = np.maximum(values, floor)
        ax.set_yscale("log")
        ax.set_ylim(floor, 2 * values.max())
    ax.scatter(numbers[before], values[before], color=ACCENT, s=34, zorder=3, clip_on=False)
    ax.scatter(numbers[~before], values[~before], color=MUTED, s=34, zorder=3, clip_on=False)
    if n_clusters < len(values):
        ax.axvline(n_clusters + 0.5, color=ACCENT, linewidth=1, linestyle="--")
        ax.annotate(
            f"the gap: {n_clusters} clusters",
            (n_clusters + 0.5, 0),
            xycoords=ax.get_xaxis_transform(),
            xytext=(5, 5),
            textcoords="offset points",
            va="bottom",
            color=INK,
        )
    ax.set_xticks(numbers)
    ax.set_xlabel("number of the eigenvalue")
    ax.set_ylabel("eigenvalue")
    return _svg(figure, described)


def share_chart(shares: NDArray[np.float32], described: str) -> Markup:
    """Show how much of the explained logit the pixels hold, image by image.

    Parameters
    ----------
    shares : ndarray of float32, shape (N,)
        1 is all of it. Those that are not finite are left out; the outermost hundredth on either side is drawn at the
        edge.
    described : str
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    ax = figure.add_subplot()
    finite = 100 * shares[np.isfinite(shares)].astype(np.float64)
    if len(finite):
        low, high = np.quantile(finite, [0.01, 0.99])
        edges = (min(float(low), 0.0), max(float(high), 100.0))
        ax.hist(np.clip(finite, *edges), bins=BINS, range=edges, color=MUTED)
        ax.axvline(float(np.median(finite)), color=ACCENT, linewidth=1.5, linestyle="--")
    ax.set_xlabel("pixels' share of the logit, % (dashed: median)")
    ax.set_ylabel("images")
    return _svg(figure, described)


def score_chart(
    scores: NDArray[np.float64], marks: Sequence[str], eligible: NDArray[np.bool_], described: str, *, as_is: float
) -> Markup:
    """Show the scores of groupings, the best above; those that may not be chosen are hollow.

    Parameters
    ----------
    scores : ndarray of float64, shape (m,)
        At most 0.
    marks : sequence of str
        What is written beside each; empty for most.
    eligible : ndarray of bool, shape (m,)
    described : str
        What the chart shows, for those who cannot see it.
    as_is : float
        Score of the classifier as it is, a dashed line.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    ax = figure.add_subplot()
    order = np.argsort(-scores, kind="stable").tolist()
    colours = [ACCENT if mark else MUTED for mark in marks]
    for row, number in enumerate(order):
        colour = colours[number]
        ax.scatter(scores[number], row, s=26, color=colour if eligible[number] else "none", edgecolor=colour, zorder=3)
    for place, number in enumerate(number for number in order if marks[number]):
        ax.annotate(
            marks[number],
            (scores[number], order.index(number)),
            xytext=(0.5, 0.95 - 0.13 * place),  # above the points, which fall to the left
            textcoords="axes fraction",
            va="center",
            ha="right",
            color=INK,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.8, "shrinkB": 4},
        )
    ax.axvline(as_is, color=MUTED, linewidth=1, linestyle="--")
    ax.set_xlabel("score (dashed: the classifier as it is)")
    ax.set_ylabel("groupings, by rank")
    ax.set_yticks([])
    ax.invert_yaxis()
    low, high = min(as_is, float(scores.min(initial=0))), float(scores.max(initial=as_is))
    room = 0.05 * (high - low) or 0.1
    ax.set_xlim(low - room, high + room)
    return _svg(figure, described)


def data_chart(
    images: Sequence[int],
    smallest: Sequence[float],
    accuracy: NDArray[np.float64],
    spread: NDArray[np.float64],
    described: str,
) -> Markup:
    """Show the accuracy of the worst group by the number of images that a last layer was fitted to.

    Parameters
    ----------
    images : sequence of int, rising
    smallest : sequence of float
        Images of the smallest group among so many.
    accuracy, spread : ndarray of float64, shape (m,)
        Mean and standard deviation over draws, in [0, 1].
    described : str
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    ax = figure.add_subplot()
    ax.errorbar(images, 100 * accuracy, yerr=100 * spread, color=ACCENT, marker="o", markersize=6, capsize=3)
    ax.set_xscale("log")
    ax.set_xticks(images, [f"{n:,}\n{least:,.0f}" for n, least in zip(images, smallest, strict=True)])
    ax.minorticks_off()
    ax.set_xlabel("images, and how many of them in the smallest group")
    ax.set_ylabel("worst group right, %")
    return _svg(figure, described)


def _svg(figure: Figure, described: str) -> Markup:
    """Return a figure as an SVG element whose lines and words take the colour of the page's text."""
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(INK)
        ax.tick_params(colors=INK, labelsize=9)
        ax.xaxis.label.set_color(INK)
        ax.yaxis.label.set_color(INK)
        ax.patch.set_visible(False)
    figure.patch.set_visible(False)
    FigureCanvasSVG(figure)
    buffer = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": described, "font.family": ["sans-serif"]}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for pattern in UNWANTED:
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    label = Markup('<svg role="img" aria-label="{}" ').format(described)
    return label + Markup(text.removeprefix("<svg "))  # what matplotlib wrote; every word in it is from this file
