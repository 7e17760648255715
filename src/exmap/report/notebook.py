"""An analysis as a notebook shows it: what was found in a sentence, and tables of methods and of groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from exmap.report import outcome
from exmap.report.percentages import percent

if TYPE_CHECKING:
    from exmap.analysis import Analysis

__all__ = ["analysis_html"]

NUMBER = ' style="text-align: right"'
TEXT = ' style="text-align: left"'


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
    if analysis.results is not None:
        parts.append(analysis.results._repr_html_())
    right = [interval.value for interval in before]
    parts.append(_groups(analysis, right))
    return f"<div>{''.join(parts)}</div>"


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
