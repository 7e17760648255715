"""Settings of what comes after the groups: retraining, evaluation, and a person's edits."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from exmap.registry import LEARNERS, Registry
from exmap.settings.section import ChoosingSection, Section

__all__ = ["Edits", "EvaluateSettings", "GroupEdit", "RetrainSettings"]


class RetrainSettings(ChoosingSection):
    """How the classifier is repaired once there are groups.

    Options of the learner stand beside these settings, for example ``retrain.subsamples`` with ``dfr``; their defaults
    are those of the learner's class.

    Attributes
    ----------
    learner : str
        A registered learner, or a dotted path ``package.module:Class``.
    repeats : int
        How many heads a learner of the last layer fits, each with a seed of its own.
    """

    registry: ClassVar[Registry] = LEARNERS
    choice: ClassVar[str] = "learner"

    learner: str = "dfr"
    repeats: int = Field(5, ge=1)


class EvaluateSettings(Section):
    """Bootstrap intervals of the group accuracies.

    Attributes
    ----------
    bootstrap : int
        Draws of the test images.
    confidence : float in (0, 1)
        Share of the draws that an interval holds.
    folds : int
        Where there is one labelled set alone: parts of it, of which each is measured with a last layer that was fitted
        to the others.
    """

    bootstrap: int = Field(1000, ge=1)
    confidence: float = Field(0.95, gt=0, lt=1)
    folds: int = Field(5, ge=2)


class GroupEdit(Section):
    """What a person decided about one group.

    Attributes
    ----------
    group : str
        Its name, as the clustering gave it.
    name : str or None
        What it is to be called. The name of a group that is merged into another goes with it.
    merge_into : str or None
        Another group of the same class, by the name the clustering gave it; its images go there.
    not_a_shortcut : bool
        Whether its images join the largest group of the class that is not so marked. A merge comes first.
    """

    group: str
    name: str | None = Field(None, min_length=1)
    merge_into: str | None = None
    not_a_shortcut: bool = False

    @field_validator("name")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.strip() or not value.isprintable() or value.strip() == "unassigned":
            raise ValueError("a group's name must be printable, not blank, and not unassigned")
        return value.strip()


class Edits(Section):
    """What a person decided about the groups of a run: the file that ``exmap retrain --edits`` reads.

    Attributes
    ----------
    format : 1
    source : "exmap"
        Whose groups are edited.
    grouping : str
        Identity of the clustering they were seen in; edits of another one are refused.
    edits : tuple of GroupEdit
        At most one per group.
    """

    format: Literal[1]
    source: Literal["exmap"]
    grouping: str
    edits: tuple[GroupEdit, ...]

    @model_validator(mode="after")
    def _one_each(self) -> Edits:
        names = [edit.group for edit in self.edits]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"each group may be listed once, but {twice!r} is listed {names.count(twice)} times")
        return self
