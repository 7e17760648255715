"""What a person makes of inferred groups: renamed, merged, or given back to their class where no shortcut is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from exmap.errors import SettingsError, unknown_name
from exmap.records import Groups, IntArray
from exmap.settings import Edits, GroupEdit

__all__ = ["EDITED", "edit_groups"]

EDITED = "exmap-edited"  # source of the groups that a person edited

BY_HAND = "a person's edits"


def edit_groups(groups: Groups, edits: Edits) -> Groups:
    """Return the groups as a person wants them.

    First merges: a group's images go where it is merged into, and on from there if that is merged, too. Then, class by
    class, what is marked as no shortcut joins the largest group that is not, by sizes after the merges; of equally
    large ones the first. Then names. Groups that remain keep their order, and unassigned samples stay so.

    Parameters
    ----------
    groups : Groups
        With the class of each group.
    edits : Edits
        Groups that are not listed stay as they are.

    Returns
    -------
    Groups
        Of the source ``SOURCE-edited``, with the edits among the labels used.

    Raises
    ------
    SettingsError
        For a group that is not there, a merge into another class or in a circle, a class all of whose groups are
        marked, and two groups of one name.

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
    goes_to = _after_marks(groups, by_group, _after_merges(groups, by_group))
    kept = np.unique(goes_to)
    names = tuple(_name(groups.names[number], by_group) for number in kept)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingsError(f"edited groups must have names of their own, but {twice!r} is given twice; change one")
    place = np.full(len(groups.names) + 1, -1, dtype=np.int64)  # the last one is for -1: unassigned
    place[:-1] = np.searchsorted(kept, goes_to)
    used = (*groups.labels_used, BY_HAND)
    classes = tuple(groups.classes[number] for number in kept)
    return Groups(place[groups.index], names, f"{groups.source}-edited", used, groups.clusters, classes=classes)


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


def _after_marks(groups: Groups, by_group: Mapping[str, GroupEdit], merged: IntArray) -> IntArray:
    """Return the same once groups that are marked as no shortcut have joined the largest of their class."""
    sizes = np.bincount(merged, weights=groups.counts(), minlength=len(groups.names))
    marked = {number for number in merged.tolist() if _is_marked(groups.names[number], by_group)}
    goes_to = merged.copy()
    for number in marked:
        own = groups.classes[number]
        others = [n for n in np.unique(merged).tolist() if n not in marked and groups.classes[n] == own]
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
