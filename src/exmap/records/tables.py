"""Tables of records for a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

__all__ = ["html_table", "percent"]


def percent(value: float) -> str:
    """Return a share in per cent; ``none`` where it does not exist."""
    return f"{value:.1%}" if np.isfinite(value) else "none"


def html_table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table for a notebook; all text is escaped, and all columns but the first are numbers."""
    right = ' style="text-align: right"'
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td{right if n else ''}>{escape(cell)}</td>" for n, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
