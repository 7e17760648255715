"""What every source of groups keeps."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from exmap.explain import explain_split
from exmap.groups import ClassGroups, make_source
from exmap.groups.source import TRUE_GROUPS
from exmap.methods import Part
from exmap.model import collect_outputs
from exmap.records import Explained, Groups
from exmap.registry import SOURCES
from exmap.settings import Settings
from exmap.testing.common import check_pickles, found, must, nothing_drawn, planted, small_model

__all__ = ["check_source"]


def check_source(source: str | type, **options: Any) -> None:
    """Check a source of groups on 90 explained images of three classes.

    Parameters
    ----------
    source : str or class
        A registered name, a dotted path ``package.module:Class``, or a class that can be imported.
    **options
        Its options.

    Raises
    ------
    AssertionError
        For the first promise that it breaks.
    """
    name, kind = found(SOURCES, source)
    must(isinstance(getattr(kind, "name", None), str), f"the source {name} must have a class variable name, a string")
    must(":" in name or kind.name == name, f"the source {name} must be registered under its name, {kind.name!r}")
    made = make_source(Part(name, tuple(sorted(options.items()))), Settings())
    needs = tuple(getattr(made, "needs", ()))
    must(all(isinstance(need, str) for need in needs), f"{name}.needs must be a tuple of names, got {needs!r}")
    must(
        TRUE_GROUPS not in needs or "oracle" in kind.name,
        f"the source {name} asks for the true groups and must say oracle in its name, or do without them",
    )
    what = f"the source {name}"
    check_pickles(what, made)
    explained = _explained(needs)
    before = copy.deepcopy(explained)
    with nothing_drawn(what):
        groups = made.infer(explained, seed=3)
    for key in ("labels", "features", "predicted"):
        must(
            np.array_equal(getattr(explained, key), getattr(before, key)),
            f"{what} must leave what it is given as it is, but changed the {key}",
        )
    _check_groups(what, kind.name, groups, len(explained))
    again = made.infer(explained, seed=3)
    must(np.array_equal(groups.index, again.index), f"{what} must give the same groups for the same seed, but did not")
    must(groups.names == again.names, f"{what} must give the same names for the same seed, but did not")


@cache
def _plain() -> Explained:
    """Return a split that was explained, once for all sources."""
    split = planted().val
    heatmaps, outputs = explain_split(small_model(), split)
    return Explained(split.name, split.ids, split.labels, split.class_names, outputs, heatmaps)


def _explained(needs: tuple[str, ...]) -> Explained:
    """Return an explained split, with what a source asks for."""
    split, plain = planted().val, _plain()
    classes = ClassGroups().infer(plain, seed=0)
    offered: dict[str, Any] = {
        "reference": collect_outputs(small_model(seed=1), split),
        "twins": collect_outputs(small_model(seed=2), split).predicted,
        "choice": Groups(classes.index, classes.names, "auto", classes.labels_used),
        TRUE_GROUPS: split.true_groups(),
    }
    return replace(plain, given={need: offered.get(need, classes) for need in needs})


def _check_groups(what: str, name: str, groups: Any, count: int) -> None:
    must(isinstance(groups, Groups), f"{what} must return exmap.Groups, got {groups!r:.60}")
    must(len(groups) == count, f"{what} must give one group per image, got {len(groups)} for {count} images")
    must(groups.index.dtype == np.int64, f"the index of {what} must be int64, got {groups.index.dtype}")
    must(groups.source == name, f"groups of {what} must say where they come from, {name!r}, got {groups.source!r}")
    must(len(set(groups.names)) == len(groups.names), f"{what} must give each group a name of its own")
    must(
        groups.labels_used and all(isinstance(word, str) for word in groups.labels_used),
        f"groups of {what} must say which labels were used, for example ('class labels',), got {groups.labels_used!r}",
    )
