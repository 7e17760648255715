"""Names of a user's files and classes: they may hold what a terminal would obey, and need not even be text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["printable", "textual_path"]

TURNS = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # the direction of writing


def printable(text: str, keep: str = "") -> str:
    r"""Return a text with control characters, turns of direction and broken characters written out.

    Parameters
    ----------
    text : str
    keep : str
        Characters that stay, such as the end of a line.

    Examples
    --------
    >>> print(printable("a" + chr(27) + "[31m"))
    a\x1b[31m
    """
    if text.isprintable() and not TURNS.intersection(text):
        return text
    return "".join(c if c in keep or not _is_obeyed(c) else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def textual_path(path: Path) -> Iterator[Path]:
    """Give a path to a file for a library that accepts only text: file names are bytes and need not be UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield Path(f"/dev/fd/{file.fileno()}")
        return
    yield path


def _is_obeyed(character: str) -> bool:
    return character in TURNS or unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
