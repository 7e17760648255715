"""Settings of what comes after the groups: retraining, evaluation, and a person's edits."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from exmap.registry import LEARNERS, Registry
from exmap.settings.section import ChoosingSection, Count, Section

__all__ = ["Edits", "EvaluateSettings", "GroupEdit", "RetrainSettings", "Selection"]

ROWS = re.compile(r"\s*[0-9]{1,12}(-[0-9]{1,12})?\s*")


def _readable(value: str) -> str:
    if not value.strip() or not value.isprintable() or value.strip() == "unassigned":
        raise ValueError("a group's name must be printable, not blank, and not unassigned")
    return value.strip()


GroupName = Annotated[str, AfterValidator(_readable)]


class RetrainSettings(ChoosingSection):
    """How the classifier is repaired once there are groups.

    Options of the learner stand beside these settings, for example ``retrain.subsamples`` with ``dfr``; their defaults
    are those of the learner's class.

    Attributes
    ----------
    learner : str
        A registered learner, or a dotted path ``package.module:Class``.
    repeats : int
        Number of last layers that a learner of the last layer fits, each with its own seed.
    most_images : int
        Images that last layers are fitted to. Of more, a random sample of each class and predicted class stands for
        all.
    """

    registry: ClassVar[Registry] = LEARNERS
    choice: ClassVar[str] = "learner"

    learner: str = "dfr"
    repeats: int = Field(5, ge=1, le=10_000)
    most_images: int = Field(100_000, ge=1_000, le=1_000_000_000)


class EvaluateSettings(Section):
    """Bootstrap intervals of the group accuracies.

    Attributes
    ----------
    bootstrap : int
        Number of bootstrap draws of the test images.
    confidence : float in (0, 1)
        Share of the draws that an interval covers.
    folds : int
        Number of parts for cross-fitting a single labelled set; each part is measured with a last layer that was fitted
        to the others.
    """

    bootstrap: Count = 1000
    confidence: float = Field(0.95, gt=0, lt=1)
    folds: int = Field(5, ge=2, le=10_000)


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
    name: GroupName | None = None
    merge_into: str | None = None
    not_a_shortcut: bool = False


class Selection(Section):
    """Images that a person put together: a group of their own, one in each class that has some of them.

    Attributes
    ----------
    name : str
        What the group is to be called.
    rows : str
        Numbers of the images in the grouped split, counted from 0, as ``3, 5-9, 14``.
    images : tuple of str
        The ids of images, beside the rows or in their place.
    """

    name: GroupName
    rows: str = ""
    images: tuple[str, ...] = ()

    @field_validator("rows")
    @classmethod
    def _numbers(cls, value: str) -> str:
        if not value.strip():
            return ""
        for part in value.split(","):
            numbers = [int(number) for number in part.split("-")] if ROWS.fullmatch(part) else []
            if not numbers or numbers[0] > numbers[-1]:
                raise ValueError(
                    f"rows must be numbers from 0 and ranges of them, as in '3, 5-9, 14', but {part.strip()!r} is none"
                )
        return value.strip()

    @model_validator(mode="after")
    def _some(self) -> Selection:
        if not self.rows and not self.images:
            raise ValueError(f"selection {self.name!r} must have rows or images, but has neither")
        return self

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The first and the last row of each range."""
        parts = [[int(number) for number in part.split("-")] for part in self.rows.split(",") if part]
        return tuple((part[0], part[-1]) for part in parts)


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
    selections : tuple of Selection
        Groups that the person made of images.
    relabel : mapping of str to str
        The class of images whose label is wrong, by their ids. They are retrained on as images of that class, in its
        largest group unless a selection has them.
    leave_out : tuple of str
        Ids of images that are not to be retrained on; they are in no group.
    """

    format: Literal[1]
    source: Literal["exmap"]
    grouping: str
    edits: tuple[GroupEdit, ...]
    selections: tuple[Selection, ...] = ()
    relabel: dict[str, str] = Field(default_factory=dict)
    leave_out: tuple[str, ...] = ()

    @property
    def of_images(self) -> bool:
        """Whether single images are edited, so that the images of the groups are needed."""
        return bool(self.selections or self.relabel or self.leave_out)

    @model_validator(mode="after")
    def _one_each(self) -> Edits:
        names = [edit.group for edit in self.edits]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"each group may be listed once, but {twice!r} is listed {names.count(twice)} times")
        if both := next((name for name in self.leave_out if name in self.relabel), None):
            raise ValueError(f"an image is either relabelled or left out, but {both!r} is both; take it out of one")
        return self
