"""What a person makes of inferred groups: renamed, merged, given back to their class, or made anew of images."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from exmap.errors import SettingsError, unknown_name
from exmap.records import Explained, Groups, IntArray
from exmap.settings import Edits, GroupEdit, Selection

__all__ = ["EDITED", "edit_groups", "edited_labels"]

EDITED = "exmap-edited"  # source of the groups that a person edited

BY_HAND = "a person's edits"


def edit_groups(groups: Groups, edits: Edits, explained: Explained | None = None) -> Groups:
    """Return the groups as a person wants them.

    First single images: those that are left out leave their groups, and those whose label is corrected go to the
    largest group that their class has in the end, or form one where it has none. Then selections: their images leave
    the groups they are in, and form one group in each class that has some of them. Then merges: a group's images go
    where it is merged into, and on from there if that is merged, too. Then, class by class, what is marked as no
    shortcut joins the largest group that is not, by sizes after the merges; of equally large ones the first. Where all
    groups of a class are marked, they become one, beside what was selected of that class. Then names. Groups that
    remain keep their order, those of selections come last, and other unassigned samples stay so.

    Parameters
    ----------
    groups : Groups
        With the class of each group.
    edits : Edits
        Groups that are not listed stay as they are.
    explained : Explained, optional
        The images that are grouped; needed where single images are edited.

    Returns
    -------
    Groups
        Of the source ``SOURCE-edited``, with the edits among the labels used.

    Raises
    ------
    SettingsError
        For a group or an image that is not there, an image in two selections, a merge into another class or in a
        circle, a class all of whose groups are marked, and two groups of one name.

    Examples
    --------
    >>> from exmap.groups import crossed_groups
    >>> groups = crossed_groups(np.array([0, 0, 0]), np.array([0, 1, 1]), ("a",), source="exmap")
    >>> edit = GroupEdit(group="class a / cluster 0", merge_into="class a / cluster 1")
    >>> print(edit_groups(groups, Edits(format=1, source="exmap", grouping="", edits=(edit,))))
    exmap-edited: 1 groups of 3 samples
      class a / cluster 1, n = 3
    """
    by_group = {edit.group: edit for edit in edits.edits}
    wanted = [(edit.group, edit.merge_into) for edit in edits.edits]
    for name in (name for pair in wanted for name in pair if name is not None):
        if name not in groups.names:
            raise SettingsError(unknown_name("group", name, groups.names))
    if explained is None and edits.of_images:
        raise SettingsError("edits of single images need the images they are of, but none were given; pass explained")
    relabelled = out = np.zeros(len(groups), dtype=np.bool_)
    if explained is not None:
        labels = edited_labels(edits, explained.ids, explained.labels, explained.class_names, explained.split)
        relabelled, explained = labels != explained.labels, replace(explained, labels=labels)
        out = np.isin(np.arange(len(groups)), _rows_named(edits.leave_out, explained.ids, explained.split, "leave_out"))
    chosen = _selected(edits, explained, len(groups))
    if (clash := out & (chosen.index >= 0)).any() and explained is not None:
        raise SettingsError(
            f"an image is either selected or left out, but {explained.ids[int(clash.argmax())]!r} is both; take it "
            "out of one"
        )
    left = replace(groups, index=np.where((chosen.index < 0) & ~out & ~relabelled, groups.index, -1))
    goes_to = _after_marks(left, by_group, _after_merges(groups, by_group), chosen.classes)
    moved = np.append(goes_to, -1)[left.index]  # the last one is for -1: unassigned
    kept = np.unique(moved[moved >= 0])
    names = (*(_name(groups.names[number], by_group) for number in kept), *chosen.names)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingsError(f"edited groups must have names of their own, but {twice!r} is given twice; change one")
    index = np.where(moved < 0, -1, np.searchsorted(kept, moved))
    index = np.where(chosen.index < 0, index, len(kept) + chosen.index).astype(np.int64)
    used = (*groups.labels_used, BY_HAND)
    classes = (*(groups.classes[number] for number in kept), *chosen.classes)
    if explained is not None:
        for row in np.flatnonzero(relabelled & (index < 0) & ~out):
            label = int(explained.labels[row])
            if label not in classes:
                names, classes = (*names, f"class {explained.class_names[label]}"), (*classes, label)
            sizes = np.bincount(index[index >= 0], minlength=len(names))
            index[row] = max((n for n, own in enumerate(classes) if own == label), key=lambda n: (sizes[n], -n))
    return Groups(index, names, f"{groups.source}-edited", used, groups.clusters, classes=classes)


def _selected(edits: Edits, explained: Explained | None, count: int) -> Groups:
    """Return what was selected as groups, one in each class that has some of the images; all others are unassigned."""
    index = np.full(count, -1, dtype=np.int64)
    names: list[str] = []
    classes: list[int] = []
    number_of = {} if explained is None else {name: number for number, name in enumerate(explained.ids)}
    for selection in edits.selections:
        assert explained is not None
        rows = _rows_of(selection, number_of, explained.split)
        if len(clash := rows[index[rows] >= 0]):
            raise SettingsError(
                f"an image can be in one selection, but {explained.ids[clash[0]]!r} is in {names[index[clash[0]]]!r} "
                f"and in {selection.name!r}; take it out of one"
            )
        labels = explained.labels[rows]
        for label in np.unique(labels).tolist():
            index[rows[labels == label]] = len(names)
            several = len(np.unique(labels)) > 1
            names.append(f"class {explained.class_names[label]} / {selection.name}" if several else selection.name)
            classes.append(label)
    return Groups(index, tuple(names), BY_HAND, (), classes=tuple(classes))


def _rows_of(selection: Selection, number_of: Mapping[str, int], split: str) -> IntArray:
    """Return the images of a selection, ascending."""
    for _, last in selection.ranges:
        if last >= len(number_of):
            raise SettingsError(
                f"the {len(number_of)} images of the {split} split have rows 0 to {len(number_of) - 1}, but selection "
                f"{selection.name!r} has row {last}; select images of this run"
            )
    _check_names(selection.images, number_of, split, f"selection {selection.name!r}")
    ranges = [np.arange(first, last + 1, dtype=np.int64) for first, last in selection.ranges]
    named = np.array([number_of[name] for name in selection.images], dtype=np.int64)
    return np.unique(np.concatenate([*ranges, named]))


def edited_labels(
    edits: Edits, ids: Sequence[str], labels: IntArray, class_names: Sequence[str], split: str = "grouped"
) -> IntArray:
    """Return the labels of images as a person corrected them.

    Parameters
    ----------
    edits : Edits
    ids : sequence of str
    labels : ndarray of int64, shape (N,)
    class_names : sequence of str
    split : str
        Name of the images' split, for the error.

    Raises
    ------
    SettingsError
        For an image or a class that is not there.
    """
    rows = _rows_named(tuple(edits.relabel), ids, split, "relabel")
    for name in edits.relabel.values():
        if name not in class_names:
            raise SettingsError(unknown_name("class", name, class_names))
    corrected = labels.copy()
    corrected[rows] = [list(class_names).index(name) for name in edits.relabel.values()]
    return corrected


def _rows_named(names: Sequence[str], ids: Sequence[str], split: str, where: str) -> IntArray:
    """Return the rows of images by their ids."""
    number_of = {name: number for number, name in enumerate(ids)} if names else {}
    _check_names(names, number_of, split, where)
    return np.array([number_of[name] for name in names], dtype=np.int64)


def _check_names(names: Iterable[str], number_of: Mapping[str, int], split: str, where: str) -> None:
    for name in names:
        if name not in number_of:
            close = difflib.get_close_matches(name, number_of, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise SettingsError(f"{where} must hold ids of images of the {split} split, but {name!r} is none{hint}")


def _after_merges(groups: Groups, by_group: Mapping[str, GroupEdit]) -> IntArray:
    """Return the group that each group's images are in when all merges are followed, shape (G,)."""
    ends, class_of = [], dict(zip(groups.names, groups.classes, strict=True))
    for start in groups.names:
        way = [start]
        while (edit := by_group.get(way[-1])) is not None and edit.merge_into is not None:
            if class_of[edit.merge_into] != class_of[start]:
                same = [name for name in groups.names if class_of[name] == class_of[start] and name != edit.group]
                raise SettingsError(
                    f"groups can be merged within a class only, but {edit.group!r} goes into {edit.merge_into!r}; "
                    f"choose one of {', '.join(same) or 'none: it is the only group of its class'}"
                )
            way.append(edit.merge_into)
            if way.count(way[-1]) > 1:
                raise SettingsError(f"merges must end in a group that stays, but they go round: {' -> '.join(way)}")
        ends.append(groups.names.index(way[-1]))
    return np.array(ends, dtype=np.int64)


def _after_marks(
    groups: Groups, by_group: Mapping[str, GroupEdit], merged: IntArray, selected: Collection[int]
) -> IntArray:
    """Return the same once groups that are marked as no shortcut have joined the largest of their class.

    In a class of which something was `selected`, all may be marked: then they join the largest of them.
    """
    sizes = np.bincount(merged, weights=groups.counts(), minlength=len(groups.names))
    there = [number for number in np.unique(merged).tolist() if sizes[number]]
    marked = {number for number in there if _is_marked(groups.names[number], by_group)}
    goes_to = merged.copy()
    for number in marked:
        own = groups.classes[number]
        same = [n for n in there if groups.classes[n] == own]
        others = [n for n in same if n not in marked] or (same if own in selected else [])
        if not others:
            raise SettingsError(
                f"at least one group of a class must stay, but all of that of {groups.names[number]!r} are marked "
                "not_a_shortcut; unmark one, or merge them"
            )
        goes_to[merged == number] = max(others, key=lambda n: (sizes[n], -n))
    return goes_to


def _is_marked(name: str, by_group: Mapping[str, GroupEdit]) -> bool:
    return name in by_group and by_group[name].not_a_shortcut


def _name(name: str, by_group: Mapping[str, GroupEdit]) -> str:
    edit = by_group.get(name)
    return name if edit is None or edit.name is None else edit.name
