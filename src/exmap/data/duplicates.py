"""Images that lie in a data set several times, byte for byte: what that means is said, and nothing is left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from exmap.records import IntArray

__all__ = ["copies_of", "duplicate_notes"]

ORDER = ("train", "val", "test")
NAMED = 5  # pairs in a sentence


def copies_of(digests: Sequence[str]) -> list[list[int]]:
    """Return the rows of each content that comes more than once; an empty digest is none.

    Examples
    --------
    >>> copies_of(["a", "b", "a", "", ""])
    [[0, 2]]
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        if digest:
            rows[digest].append(row)
    return [same for same in rows.values() if len(same) > 1]


def duplicate_notes(
    copies: Sequence[Sequence[int]],
    names: Sequence[str],
    labels: IntArray,
    class_names: Sequence[str],
    splits: Sequence[str],
) -> tuple[str, ...]:
    """Return sentences on images that are the same byte for byte.

    Parameters
    ----------
    copies : sequence of sequence of int
        Rows that are the same.
    names : sequence of str
        One per row.
    labels : ndarray of int64, shape (N,)
    class_names : sequence of str
    splits : sequence of str
        That of each row.
    """
    notes = []
    two_labels = [rows for rows in copies if len({int(labels[row]) for row in rows}) > 1]
    if two_labels:
        pairs = []
        for rows in two_labels:
            first = rows[0]
            other = next(row for row in rows if labels[row] != labels[first])
            shown = [f"{names[row]} ({class_names[labels[row]]})" for row in (first, other)]
            pairs.append(" = ".join(shown))
        notes.append(
            f"{_images(len(two_labels), 'has', 'have')} several labels, byte for byte the same file: {_few(pairs)}; "
            "correct the labels, or leave such images out."
        )
    order = sorted(set(splits), key=lambda split: (ORDER.index(split) if split in ORDER else len(ORDER), split))
    for early, late in combinations(order, 2):
        pairs, again = [], 0
        for rows in copies:
            there = [row for row in rows if splits[row] == early]
            here = [row for row in rows if splits[row] == late]
            if there and here:
                again += len(here)
                pairs.append(f"{names[here[0]]} = {names[there[0]]}")
        if again:
            total = sum(split == late for split in splits)
            notes.append(
                f"{again:,} of {total:,} images of split {late} are copies of images of split {early}, byte for byte "
                f"({_few(pairs)}): what is measured on them says little of other images."
            )
    pairs, again = [], 0
    for rows in copies:
        first_of: dict[tuple[str, int], int] = {}
        for row in rows:
            kind = splits[row], int(labels[row])
            if kind in first_of:
                again += 1
                pairs.append(f"{names[row]} = {names[first_of[kind]]}")
            first_of.setdefault(kind, row)
    if again:
        notes.append(
            f"{_images(again, 'is a copy', 'are copies')} of others of the same class and split, byte for byte "
            f"({_few(pairs)})."
        )
    return tuple(notes)


def _images(count: int, one: str, many: str) -> str:
    return f"{count:,} {'image ' + one if count == 1 else 'images ' + many}"


def _few(pairs: Sequence[str]) -> str:
    more = f" and {len(pairs) - NAMED:,} more" if len(pairs) > NAMED else ""
    return ", ".join(pairs[:NAMED]) + more
