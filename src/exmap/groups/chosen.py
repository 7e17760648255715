"""The groups that were chosen among many, without group labels (``groups.auto``), as a source like all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from exmap.records import Explained, Groups
from exmap.registry import SOURCES

__all__ = ["ChosenGroups"]


@SOURCES.register
@dataclass(frozen=True)
class ChosenGroups:
    """What :func:`exmap.auto.choose_groups` chose."""

    name: ClassVar[str] = "auto"
    needs: ClassVar[tuple[str, ...]] = ("choice",)

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        """Return the chosen groups of this split."""
        chosen: Groups = explained.given["choice"]
        return chosen
