"""Describe the groups of a classifier's images: what sets each apart from the others of its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exmap.cluster import group_means, similarity_to_means
from exmap.cluster.sampling import by_turns
from exmap.data import Split, batch_slices
from exmap.data.missing import MissingImages
from exmap.describe.columns import Column, file_columns, given_columns
from exmap.describe.compare import Found, as_difference, differences
from exmap.describe.measures import Floats, as_columns, averaged, measure_pixels, small_side
from exmap.describe.patch import Bytes, FoundPatch, find_patches
from exmap.describe.relevance import Relevance, measure_relevance
from exmap.describe.words import followed, is_against, picked, sentence
from exmap.errors import DataError
from exmap.groups.chosen import ChosenGroups
from exmap.records import Explained, Groups, IntArray, Listener, Progress, silent
from exmap.records.base import check_same_length
from exmap.results import AutoRecord, StrategyDescription
from exmap.runtime import generator

__all__ = ["describe"]

Facts = Callable[[IntArray], Mapping[str, Sequence[Any]]]

MOST_IMAGES = 5_000  # that are looked at
PROTOTYPES = 6
BATCH_PIXELS = 1_500_000  # values of one batch: 6 MB, and a few times as much while it is worked on
PAINTED_AT_ONCE = 256  # small pictures
SMALLEST = 8  # side in pixels of images that are measured


def describe(
    explained: Explained,
    groups: Groups,
    split: Split | None = None,
    *,
    files: Facts | None = None,
    metadata: Mapping[str, Sequence[Any]] | None = None,
    record: AutoRecord | None = None,
    seed: int = 0,
    listen: Listener = silent,
) -> tuple[StrategyDescription, ...]:
    """Say of each group what its images have that the others of their class have not.

    Compared are the place of relevance, properties of the images (brightness, colour, sharpness, lines, a patch with
    the same pixels and others), facts of their files, and columns of metadata. No true group is looked at. Where there
    is a patch, properties are those of the images with the patch painted over.

    Parameters
    ----------
    explained : Explained
        Labels, ids and heatmaps of N images; without heatmaps nothing is said of relevance.
    groups : Groups
        Of these images, from any source.
    split : Split, optional
        With the images, where they are at hand. Its ``metadata`` and its images' ``facts`` are used where it has them.
    files : callable, optional
        From row numbers to facts of the files: ``bytes``, ``width``, ``height``, ``format``, ``camera`` and others, one
        value per row. By default ``split.images.facts``, if there is such a method.
    metadata : mapping of str to sequence, optional
        Columns with one value per image. By default ``split.metadata``.
    record : AutoRecord, optional
        What the test for a shortcut says: a property that predictions follow is named first.
    seed : int
        Of the images that are drawn where there are more than 5,000.
    listen : Listener

    Returns
    -------
    tuple of StrategyDescription
        One per group, in the order of ``groups.names``; deterministic.

    Raises
    ------
    DataError
        If the arrays are not of one length, or a pixel is not a finite number.

    Examples
    --------
    >>> from exmap.records import Outputs
    >>> logits = np.zeros((4, 1), dtype=np.float32)
    >>> explained = Explained("val", ("a", "b", "c", "d"), np.zeros(4, int), ("cat",), Outputs(logits, logits))
    >>> groups = Groups(np.zeros(4, int), ("cat",), "classes", (), classes=(0,))
    >>> describe(explained, groups)[0].sentence
    'All images of “cat” are in this group.'
    """
    if len(groups) != len(explained) or (split is not None and len(split) != len(explained)):
        sizes = {"explained": len(explained), "groups": len(groups)} | ({} if split is None else {"split": len(split)})
        raise DataError(f"a description needs the same images in all of its arguments, got {sizes}")
    rows = _drawn(explained, groups, seed)
    known = _Known.of(explained, split, rows, files, metadata, listen)
    pairs = [_members(explained, groups, group, rows) for group in range(len(groups.names))]
    found = [differences(known.columns, *pair) for pair in pairs]
    tests = _tests(found, pairs, 0 if known.relevance is None else known.relevance.tests())
    prototypes = _prototypes(explained, groups)
    made = []
    for group, (pair, differs) in enumerate(zip(pairs, found, strict=True)):
        made.append(_described(explained, groups, group, pair, differs, tests, known, prototypes[group], record))
        listen(Progress("describe", group + 1, len(pairs), "groups"))
    return tuple(made)


Differs = list[tuple[Column, Found]]
Pair = tuple[IntArray, IntArray]


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of the images that were drawn, row by row.

    `small` has their pixels, at most 64 on a side, for patches; None where images are not at hand.
    """

    columns: list[Column]
    relevance: Relevance | None
    small: Bytes | None
    remarks: tuple[str, ...]

    @classmethod
    def of(
        cls,
        explained: Explained,
        split: Split | None,
        rows: IntArray,
        files: Facts | None,
        metadata: Mapping[str, Sequence[Any]] | None,
        listen: Listener,
    ) -> _Known:
        relevance = None if explained.heatmaps is None else measure_relevance(explained.heatmaps, rows)
        columns, remarks = _of_relevance(relevance), []
        small, measured, why = _of_pixels(split, rows, listen)
        columns += measured
        if why:
            remarks.append(why)
        at_hand = split is not None and not isinstance(split.images, MissingImages)
        facts = files or (getattr(split.images, "facts", None) if at_hand and split is not None else None)
        if facts is not None:
            columns += file_columns(facts(rows), len(rows))
        given = getattr(split, "metadata", None) if metadata is None else metadata
        if given:
            for name, values in given.items():
                check_same_length(f"metadata {name}", values=values, images=explained.labels)
            some = {name: [values[row] for row in rows.tolist()] for name, values in given.items()}
            of_metadata, left_out = given_columns(some, len(rows))
            columns += of_metadata
            remarks += left_out
        return cls(columns, relevance, small, tuple(remarks))


def _of_relevance(relevance: Relevance | None) -> list[Column]:
    if relevance is None:
        return []
    more, less = "are looked at in a larger area", "are looked at in a smaller area"
    name, unit = "area with 80 % of the relevance", "share of the image"
    return [Column(name, "place of relevance", "relevance", more, less, unit, numbers=relevance.area)]


def _of_pixels(split: Split | None, rows: IntArray, listen: Listener) -> tuple[Bytes | None, list[Column], str]:
    """Return small pictures, what was measured of the images, and why nothing was."""
    if split is None or isinstance(split.images, MissingImages):
        return None, [], "The images were not at hand, so nothing is said of their colours and patches."
    channels, height, width = split.images.shape
    if channels not in (1, 3) or min(height, width) < SMALLEST:
        shape = f"{channels} x {height} x {width}"
        return None, [], f"Only images of 1 or 3 channels and at least 8 x 8 pixels are measured; these have {shape}."
    size = max(1, BATCH_PIXELS // (channels * height * width))
    numbers, small = [], np.zeros((len(rows), 3, small_side(height), small_side(width)), dtype=np.uint8)
    colours: dict[str, list[str]] = {}
    for part in batch_slices(len(rows), size):
        pixels = split.images.pixels(rows[part])
        measured, named = measure_pixels(pixels)
        numbers.append(measured)
        for name, values in named.items():
            colours.setdefault(name, []).extend(values)
        reduced = averaged(pixels, *small.shape[2:])
        small[part] = np.rint(255 * np.clip(reduced, 0, 1)).astype(np.uint8)
        listen(Progress("look at images", part.stop, len(rows)))
    return small, as_columns(np.concatenate(numbers), colours) if numbers else [], ""


def _drawn(explained: Explained, groups: Groups, seed: int) -> IntArray:
    """Return the rows that are looked at, ascending: all, or of many as many of each group as can be."""
    n = len(explained)
    if n <= MOST_IMAGES:
        return np.arange(n, dtype=np.int64)
    return np.sort(by_turns(groups.index, generator(seed, "describe", "rows"))[:MOST_IMAGES])


def _class_of(groups: Groups, group: int) -> int:
    return groups.classes[group] if groups.classes else -1


def _members(explained: Explained, groups: Groups, group: int, rows: IntArray) -> Pair:
    """Return positions among the drawn rows: the group's, and those of the other images of its class."""
    label = _class_of(groups, group)
    index = groups.index[rows]
    beside = (index != group) & ((explained.labels[rows] == label) if label >= 0 else True)
    return np.flatnonzero(index == group).astype(np.int64), np.flatnonzero(beside).astype(np.int64)


def _tests(found: Sequence[Differs], pairs: Sequence[Pair], of_relevance: int) -> int:
    """Return how many different comparisons there are: of two groups of a class, both ways round are one."""
    seen, tests = set(), 0
    for differs, (group, others) in zip(found, pairs, strict=True):
        key = frozenset((group.tobytes(), others.tobytes()))
        if key not in seen and len(group) and len(others):
            seen.add(key)
            tests += len(differs) + of_relevance
    return max(tests, 1)


def _prototypes(explained: Explained, groups: Groups) -> list[IntArray]:
    """Return, for each group, the rows most like its mean heatmap, or mean features without heatmaps."""
    maps = explained.heatmaps
    vectors = explained.features if maps is None else maps.flat()
    usable = np.ones(len(explained), dtype=bool) if maps is None else maps.finite & ~maps.zero
    index = np.where(usable, groups.index, -1)
    similar = similarity_to_means(vectors, group_means(vectors, index, len(groups.names)))
    found = []
    for group in range(len(groups.names)):
        rows = np.flatnonzero(index == group)
        found.append(rows[np.argsort(-similar[rows, group], kind="stable")][:PROTOTYPES])
    return found


def _described(
    explained: Explained,
    groups: Groups,
    group: int,
    pair: Pair,
    differs: Differs,
    tests: int,
    known: _Known,
    prototypes: IntArray,
    record: AutoRecord | None,
) -> StrategyDescription:
    label = _class_of(groups, group)
    class_name = explained.class_names[label] if label >= 0 else ""
    images = int((groups.index == group).sum())
    beside = (groups.index != group) & ((explained.labels == label) if label >= 0 else True)
    follows = followed(record, class_name)
    chosen = groups.source == ChosenGroups.name and bool(groups.parts)
    against = is_against(record, class_name, groups.parts[group]) if chosen else None
    place = None if known.relevance is None else known.relevance.place(*pair, tests)
    patches: list[FoundPatch] = []
    if known.small is not None:
        patches = find_patches(known.small, *pair, relevance=known.relevance, tests=len(groups.names))
        if patches:
            others_than_pixels = [each for each in differs if each[0].kind != "pixels"]
            differs = _without_patches(patches, known.small, pair) + others_than_pixels
    patch = patches[0].described if patches else None
    all_found = sorted((as_difference(*each, tests) for each in differs), key=lambda each: -abs(each.effect))
    return StrategyDescription(
        group=group,
        name=groups.names[group],
        class_name=class_name,
        images=images,
        others=int(beside.sum()),
        compared=sum(map(len, pair)),
        tested=tests,
        sentence=sentence(
            class_name,
            images,
            int(beside.sum()),
            follows=follows,
            against=against,
            relevance=place,
            patch=patch,
            differences=picked(all_found, follows),
            pixels=known.small is not None,
        ),
        follows=follows,
        against=against,
        relevance=place,
        patch=patch,
        differences=tuple(all_found),
        prototypes=tuple(prototypes.tolist()),
        prototype_ids=tuple(explained.ids[row] for row in prototypes.tolist()),
        remarks=known.remarks,
    )


def _without_patches(patches: Sequence[FoundPatch], small: Bytes, pair: Pair) -> Differs:
    """Return how images differ with patches painted over; else each would be said again, as a brighter corner."""
    group, others = pair
    numbers: list[Floats] = []
    colours: dict[str, list[str]] = {}
    rows = np.concatenate([group, others])
    for part in batch_slices(len(rows), PAINTED_AT_ONCE):
        pictures = small[rows[part]]
        for patch in patches:
            pictures = patch.painted_over(pictures)
        measured, named = measure_pixels(pictures.astype(np.float32) / np.float32(255))
        numbers.append(measured)
        for name, values in named.items():
            colours.setdefault(name, []).extend(values)
    columns = as_columns(np.concatenate(numbers), colours)
    return differences(columns, np.arange(len(group)), np.arange(len(group), len(rows)))
