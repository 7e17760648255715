"""An analysis as a notebook shows it: what was found, its groups as cards, and tables of methods and of groups."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from exmap.auto import AUTO
from exmap.cluster import similarity_to_means
from exmap.data.missing import MissingImages
from exmap.groups import ExMapGroups
from exmap.records import Explained, IntArray
from exmap.report import outcome
from exmap.report.description_card import chosen_descriptions, described, group_title
from exmap.report.percentages import percent
from exmap.report.sprites import heat_tiles, on_white, picture_tiles

if TYPE_CHECKING:
    from exmap.analysis import Analysis

__all__ = ["analysis_html"]

NUMBER = ' style="text-align: right"'
TEXT = ' style="text-align: left"'
ROW = "display: flex; flex-wrap: wrap; gap: 0.8em; margin: 0.8em 0"
CARD = "border: 1px solid #8886; border-radius: 0.5em; padding: 0.7em; max-width: 25em; overflow-wrap: anywhere"
MOST_CARDS = 12
THUMBNAILS, THUMBNAIL, GAP = 5, 72, 1  # in a card, and pixels of each and between them
MOST_COMPARED = 2_000


def analysis_html(analysis: Analysis) -> str:
    """Return HTML without styles or scripts of its own; all text is escaped.

    Parameters
    ----------
    analysis : Analysis
        Perhaps without retraining or evaluation.
    """
    before = outcome.accuracy_by_group(analysis, analysis.explained.predicted, "before")
    parts = [f"<p><strong>{escape(outcome.headline(analysis, before))}</strong></p>"]
    parts += [f"<p>{escape(remark)}</p>" for remark in outcome.remarks(analysis)]
    parts.append(_cards(analysis))
    if analysis.results is not None:
        parts.append(analysis.results._repr_html_())
    right = [interval.value for interval in before]
    parts.append(_groups(analysis, right))
    return f"<div>{''.join(parts)}</div>"


def _cards(analysis: Analysis) -> str:
    """Return a card for each group: how right the classifier is on it, what its images are like, and a few of them.

    The groups are the chosen ones of classes with a shortcut, or else those of ExMap.
    """
    cards = [_card(analysis, AUTO, each.group) for each in chosen_descriptions(analysis)[:MOST_CARDS]]
    if not cards:
        groups = analysis.pseudo_groups
        sizes = groups.counts()
        shown = [group for group in range(len(groups.names)) if sizes[group]][:MOST_CARDS]
        cards = [_card(analysis, ExMapGroups.name, group) for group in shown]
    return f'<div style="{ROW}">{"".join(cards)}</div>'


def _card(analysis: Analysis, source: str, group: int) -> str:
    groups, explained = analysis.groups[source], analysis.explained
    rows = np.flatnonzero(groups.index == group)
    card = described(analysis, source).get(group)
    title = groups.names[group] if card is None else group_title(card.description)
    right = percent(float(explained.correct[rows].mean()))
    said = "" if card is None else f'<p style="margin: 0.3em 0">{escape(card.sentence)}</p>'
    typical = _typical(explained, rows) if card is None else np.array(card.description.prototypes, dtype=np.int64)
    return (
        f'<div style="{CARD}"><strong>{escape(title)}</strong><br>{len(rows):,} images, {right} right{said}'
        f"{_thumbnails(analysis, typical[:THUMBNAILS], title)}</div>"
    )


def _typical(explained: Explained, rows: IntArray) -> IntArray:
    """Return the images whose heatmaps are most like the mean of theirs."""
    maps = explained.maps()
    some = rows[maps.finite[rows] & ~maps.zero[rows]][:MOST_COMPARED]
    vectors = np.asarray(maps.values[some]).reshape(len(some), -1)
    alike = similarity_to_means(vectors, vectors.mean(axis=0, keepdims=True))[:, 0] if len(some) else np.zeros(0)
    return np.asarray(some[np.argsort(-alike, kind="stable")])


def _thumbnails(analysis: Analysis, rows: IntArray, title: str) -> str:
    """Return a picture of images above their heatmaps, or of the heatmaps alone where images are not at hand."""
    if not len(rows):
        return ""
    shades = heat_tiles(np.asarray(analysis.explained.maps().values[rows]))
    strips = [on_white(shades)]
    images = analysis.grouped.images
    if not isinstance(images, MissingImages):
        strips.insert(0, picture_tiles(images.pixels(rows)))
    side = THUMBNAIL * len(rows)
    apart = [np.pad(strip, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255) for strip in strips]
    shown = [Image.fromarray(np.concatenate(list(strip), axis=1)) for strip in apart]
    sized = [each.resize((side, round(side * each.height / each.width)), Image.Resampling.NEAREST) for each in shown]
    whole = np.concatenate([np.asarray(each) for each in sized])
    buffer = BytesIO()
    Image.fromarray(whole).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    what = "typical heatmaps" if len(strips) == 1 else "typical images, and their heatmaps"
    return (
        f'<img src="data:image/png;base64,{data}" alt="{escape(what)} of {escape(title)}" width="{side}" '
        'style="max-width: 100%">'
    )


def _groups(analysis: Analysis, right: Sequence[float]) -> str:
    """Return the table of pseudo-groups, those of a class together, the weakest first."""
    groups, truth, explained = analysis.pseudo_groups, analysis.oracle, analysis.explained
    counts = groups.counts()
    rows = []
    for group in sorted(range(len(groups.names)), key=lambda group: (groups.classes[group], right[group])):
        row = [groups.names[group], f"{counts[group]:,}", percent(right[group])]
        if truth is not None:
            of_group = np.bincount(truth.index[groups.index == group], minlength=len(truth.names))
            most = int(of_group.argmax())
            row.append(f"{truth.names[most]} ({percent(of_group[most] / counts[group])})")
        rows.append(row)
    titles = ["group", "images", "right", *(["mostly"] if truth is not None else [])]
    caption = (
        f"{len(groups.names)} groups of {len(explained):,} images ({explained.split} split), with the share that the "
        "classifier gets right"
    )
    return _table(caption, titles, rows)


def _table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose second and third columns are numbers."""
    style = (TEXT, NUMBER, NUMBER, TEXT)
    head = "".join(f"<th{each}>{escape(title)}</th>" for title, each in zip(titles, style, strict=False))
    body = "".join(
        "<tr>" + "".join(f"<td{each}>{escape(cell)}</td>" for cell, each in zip(row, style, strict=False)) + "</tr>"
        for row in rows
    )
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
