"""Sources to compare with: classes alone, the error set of JTT (Liu et al., 2021), random groups, and the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from exmap.groups.assign import crossed_groups
from exmap.groups.clustered import ExMapGroups
from exmap.groups.source import CLASS_LABELS, TRUE_GROUPS, TRUE_LABELS
from exmap.methods import Part
from exmap.records import Explained, Groups
from exmap.registry import SOURCES
from exmap.runtime import generator
from exmap.settings import Settings

__all__ = ["MISTAKES", "ClassGroups", "ErrorSetGroups", "OracleGroups", "RandomGroups"]

MISTAKES = ("right", "wrong")


@SOURCES.register
@dataclass(frozen=True)
class ClassGroups:
    """One group per class: the control that knows of no shortcut."""

    name: ClassVar[str] = "classes"
    explains: ClassVar[bool] = False

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        """Return the classes as groups."""
        names = tuple(f"class {name}" for name in explained.class_names)
        return Groups(explained.labels, names, self.name, (CLASS_LABELS,), classes=tuple(range(len(names))))


@SOURCES.register
@dataclass(frozen=True)
class ErrorSetGroups:
    """Each class split into what the classifier gets right and wrong (the error set of JTT)."""

    name: ClassVar[str] = "error_set"
    explains: ClassVar[bool] = False

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        """Return the groups; a class without errors is one group."""
        wrong = (~explained.correct).astype(np.int64)
        return crossed_groups(explained.labels, wrong, explained.class_names, source=self.name, part_names=MISTAKES)


@SOURCES.register
@dataclass(frozen=True)
class RandomGroups:
    """ExMap's groups, shuffled inside each class: the control with the same sizes and no content.

    Parameters
    ----------
    like : str
        The source whose sizes are taken, as ``exmap bench`` writes it.
    """

    like: str = ExMapGroups.name
    name: ClassVar[str] = "random"
    sections: ClassVar[tuple[str, ...]] = ExMapGroups.sections

    @classmethod
    def from_settings(cls, settings: Settings, options: Mapping[str, Any]) -> RandomGroups:
        """Return the source; options are those of the groups whose sizes it takes."""
        return cls(str(Part(ExMapGroups.name, tuple(sorted(options.items())))))

    @staticmethod
    def option_names(options: Mapping[str, Any]) -> set[str]:
        """Return the names of its options: those of the groups whose sizes it takes."""
        return ExMapGroups.option_names(options)

    @property
    def needs(self) -> tuple[str, ...]:
        """The groups whose sizes it takes."""
        return (self.like,)

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        """Return groups of the same sizes with random members."""
        like: Groups = explained.given[self.like]
        rng = generator(seed, self.name)
        index = like.index.copy()
        for label in np.unique(explained.labels):
            rows = np.flatnonzero(explained.labels == label)
            index[rows] = index[rng.permutation(rows)]
        return Groups(index, like.names, self.name, like.labels_used, classes=like.classes, parts=like.parts)


@SOURCES.register
@dataclass(frozen=True)
class OracleGroups:
    """The true groups themselves, as an upper reference."""

    name: ClassVar[str] = "oracle"
    explains: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = (TRUE_GROUPS,)

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        """Return the true groups."""
        truth = explained.given[TRUE_GROUPS]
        return Groups(truth.index, truth.names, self.name, (TRUE_LABELS,))
