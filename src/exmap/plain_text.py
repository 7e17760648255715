"""Text of a user's data on a terminal: names of files and classes may hold what a terminal would obey."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

TURNS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # the direction of writing


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


def _is_obeyed(character: str) -> bool:
    return character in TURNS or unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
