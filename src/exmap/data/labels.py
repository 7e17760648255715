"""Labels as people write them, in words or numbers: which of them mean one class, and the order of the classes.

One class may be written in several ways where tables of two tools were put together. What surely means the same is one
class, and said: numbers of one value (``1``, ``1.0``, ``01``), truth values (``True``, ``true``; ``Yes``, ``yes``), and
words that differ only in spaces or in how an accent is coded. What may mean the same is refused: words that differ only
in case, and truth values written in two systems (``True`` beside ``1``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import numpy as np

from exmap.errors import DataError
from exmap.records import IntArray

__all__ = ["Labels", "listed", "meaning", "named_again", "read_labels"]

NUMBER = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][+-]?[0-9]{1,2})?")
TRUTH = (("false", "true"), ("no", "yes"), ("0", "1"))
TRUTH_WORDS = frozenset({"false", "true", "no", "yes"})
MISSING = frozenset({"nan", "na", "n/a", "none", "null", "nat", "<na>", "inf", "-inf"})  # where all others are numbers
NAMED = 5  # names in a sentence
NO_LABEL = Decimal(-1)


@dataclass(frozen=True, eq=False)
class Labels:
    """The class of each image.

    Attributes
    ----------
    index : ndarray of int64, shape (N,), in [0, K)
    names : tuple of str
        Of the classes.
    notes : tuple of str
        Sentences on spellings that were taken for one class, and on the order.
    """

    index: IntArray
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_labels(
    texts: Sequence[str],
    what: str,
    *,
    classes: Collection[str] = (),
    told: str = "data.classes",
    order: Literal["number", "text"] = "number",
) -> Labels:
    """Return the class of each text.

    Parameters
    ----------
    texts : sequence of str
        None of them empty.
    what : str
        What they are, for sentences: such as ``column label of images.csv``.
    classes : collection of str
        What the user calls the classes: a text that is one of them is not taken for another.
    told : str
        Where the user can name the classes; empty where nowhere.
    order : "number" or "text"
        How names are sorted that are all numbers; as text, they come as other libraries order folders (0, 1, 10, 2).

    Raises
    ------
    DataError
        For spellings of which nobody but the user knows whether they mean one class.

    Examples
    --------
    >>> read_labels(["10", "9", "10.0"], "labels").names
    ('9', '10')
    >>> read_labels(["10", "9"], "folders", order="text").names
    ('10', '9')
    """
    spelled = sorted(set(texts))
    named = set(classes)
    open_to_doubt = [text for text in spelled if text not in named]
    numeric = bool(spelled) and all(NUMBER.fullmatch(text) for text in spelled)
    if open_to_doubt:
        _check_missing(spelled, what)
        _check_truth(spelled, what)
    groups: dict[Decimal | str, list[str]] = {}
    for text in spelled:
        groups.setdefault(text if text in named else meaning(text), []).append(text)
    _check_case(groups, named, what, told)
    names = {key: _name(key, group, order) for key, group in groups.items()}
    keys = sorted(names, key=lambda key: _place(key, names[key], order if numeric else "text"))
    position = {text: number for number, key in enumerate(keys) for text in groups[key]}
    notes = [*_same(groups, names, what), *_order_note(keys, names, what, order if numeric else None)]
    index = np.fromiter((position[text] for text in texts), dtype=np.int64, count=len(texts))
    return Labels(index, tuple(names[key] for key in keys), tuple(notes))


def meaning(text: str) -> Decimal | str:
    """Return what all spellings of one class share: the value of a number, else the word.

    Examples
    --------
    >>> meaning("01") == meaning("1.0"), meaning("TRUE"), meaning("a  b")
    (True, 'true', 'a b')
    """
    if NUMBER.fullmatch(text):
        return Decimal(text)
    word = " ".join(unicodedata.normalize("NFC", text).split())
    return word.lower() if word.lower() in TRUTH_WORDS else word


def listed(names: Sequence[str]) -> str:
    """Return the first of some names, quoted, and how many more there are."""
    shown = ", ".join(map(repr, names[:NAMED]))
    return shown + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")


def named_again(names: Sequence[str]) -> str | None:
    """Return the first name that stands there for the second time, or None."""
    return next((name for n, name in enumerate(names) if name in names[:n]), None)


def _check_missing(spelled: Sequence[str], what: str) -> None:
    others = [text for text in spelled if not NUMBER.fullmatch(text)]
    if others and len(others) < len(spelled) and all(text.lower() in MISSING for text in others):
        raise DataError(
            f"{what} must have a value for every image, but {listed(others)} stands among numbers; fill it in, or "
            "leave these images out"
        )


def _check_truth(spelled: Sequence[str], what: str) -> None:
    """Refuse truth values in two systems."""
    means = [meaning(text) for text in spelled]
    words = {str(int(key)) if isinstance(key, Decimal) and key in (0, 1) else str(key) for key in means}
    used = [pair for pair in TRUTH if not words.isdisjoint(pair)]
    if len(used) > 1 and all(any(word in pair for pair in TRUTH) for word in words):
        raise DataError(
            f"{what} must be written in one way, but holds {listed(spelled)}, which may or may not mean the same; "
            f"write only {' and '.join(used[0])}"
        )


def _check_case(groups: dict[Decimal | str, list[str]], named: Collection[str], what: str, told: str) -> None:
    """Refuse words that differ only in case, unless the user has named all of them."""
    folded: dict[str, list[str]] = {}
    for key, group in groups.items():
        if isinstance(key, str):
            folded.setdefault(unicodedata.normalize("NFKC", key).casefold(), []).append(group[0])
    twins = [group for group in folded.values() if len(group) > 1 and not all(text in named for text in group)]
    if twins:
        more = f" (and {len(twins) - 1:,} more)" if len(twins) > 1 else ""
        said = " and ".join(map(repr, twins[0][:NAMED]))
        others = f", or name all of them in {told} if they are several" if told else ""
        raise DataError(
            f"{what} must write each name in one way, but {said} differ only in case{more}; write one of them{others}"
        )


def _name(key: Decimal | str, group: Sequence[str], order: str) -> str:
    if isinstance(key, str):
        return group[0] if len(group) == 1 else key
    as_float = "." in group[0] or "e" in group[0].lower()
    if len(group) == 1 and (order == "text" or not as_float):
        return group[0]
    if key == key.to_integral_value():
        return str(int(key))  # also of -0
    return str(key.normalize())


def _place(key: Decimal | str, name: str, order: str) -> tuple[Decimal, str]:
    if order == "number" and isinstance(key, Decimal):
        return key, ""
    return Decimal(0), str(key) if key in TRUTH_WORDS else name


def _same(groups: dict[Decimal | str, list[str]], names: dict[Decimal | str, str], what: str) -> list[str]:
    several = [(names[key], group) for key, group in groups.items() if len(group) > 1]
    if not several:
        return []
    shown = "; ".join(f"{listed(group)} as {name!r}" for name, group in several[:NAMED])
    more = f"; and {len(several) - NAMED:,} more" if len(several) > NAMED else ""
    return [f"Spellings in {what} that mean the same are taken for one: {shown}{more}."]


def _order_note(
    keys: Sequence[Decimal | str], names: dict[Decimal | str, str], what: str, order: str | None
) -> list[str]:
    notes = []
    if order == "text" and list(keys) != sorted(keys, key=lambda key: _place(key, "", "number")):
        shown = ", ".join(names[key] for key in keys[:NAMED])
        notes.append(
            f"The classes of {what} are in the order of their names as text, as other libraries read folders "
            f"({shown}{', ...' if len(keys) > NAMED else ''}); data.classes gives another."
        )
    if NO_LABEL in names and Decimal(0) in names and len(names) > 2:
        notes.append(f"The label -1 in {what} is taken for a class; if it stands for no label, leave these images out.")
    return notes
