"""What holds of nested settings whatever they are: digests tell them apart, and differences are named."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from exmap.pipeline.disk import differences, digest_of

KEYS = st.text("abc", min_size=1, max_size=2)
LEAVES = st.integers() | st.text(max_size=4) | st.lists(st.integers(), max_size=2)
TREES = st.dictionaries(KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3)), max_size=4)


def turned(tree: Any) -> Any:
    """Return the tree with its keys in the opposite order."""
    return {key: turned(tree[key]) for key in reversed(tree)} if isinstance(tree, dict) else tree


def leaves(tree: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in tree.items():
        found += leaves(value, (*above, key)) if isinstance(value, dict) else [(*above, key)]
    return found


@given(TREES, TREES)
def test_trees_without_a_difference_are_those_of_one_digest(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert differences(one, turned(one)) == []
    assert digest_of(one) == digest_of(turned(one))
    assert (differences(one, other) == []) == (digest_of(one) == digest_of(other)) == (one == other)
    assert len(differences(one, other)) == len(differences(other, one))


@given(TREES.filter(leaves), st.data())
def test_a_changed_value_is_named_by_its_dotted_path(tree: dict[str, Any], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(leaves(tree)))
    changed = copy.deepcopy(tree)
    there, part = tree, changed
    for key in path[:-1]:
        there, part = there[key], part[key]
    part[path[-1]] = ["another"]
    assert differences(tree, changed) == [f"{'.'.join(path)} ({there[path[-1]]!r} there, ['another'] here)"]
