"""What is said of a group of images: how they differ from the others of their class, and one sentence made of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from exmap.results.part import Number, Part, Share

__all__ = ["ConstantPatch", "Difference", "RelevancePlace", "StrategyDescription", "descriptions_from_json"]

Kind = Literal["place of relevance", "pixels", "file", "metadata"]


class Difference(Part):
    """How the images of a group differ from the others of their class in one thing that was measured of each image."""

    name: str = Field(description="What was measured, for example brightness, or the name of a column.")
    kind: Kind = Field(description="Where it comes from.")
    topic: str = Field(
        description="Differences of one topic say much the same: colour, light, texture, place, relevance, file, or "
        "the name of a column."
    )
    words: str = Field(description="What it makes of the group's images, for example bluer than the others.")
    value: str = Field(
        "", description="Of what has no order, such as a camera: the value whose share differs most; else empty."
    )
    group: Number = Field(description="Median over the group's images; of a value its share among them.")
    others: Number = Field(description="The same over the other images.")
    unit: str = Field(description="Unit of these two numbers; share for that of a value.")
    effect: float = Field(
        ge=-1,
        le=1,
        description="Rank-biserial correlation: how often an image of the group has more of it than one of the others, "
        "less how often it has less. For the share of a value that is the difference of the two shares.",
    )
    effect_low: float = Field(ge=-1, le=1, description="Lower end of the 95 % interval of the effect.")
    effect_high: float = Field(ge=-1, le=1, description="Upper end of that interval.")
    p_value: Share = Field(
        description="Of the null hypothesis that there is no difference, corrected for all that was tested."
    )
    cramers_v: Share | None = Field(
        None, description="Cramér's V of group and value, corrected for bias; null for what is a number."
    )
    matters: bool = Field(description="Whether p is at most 0.05 and the effect at least a third.")


class RelevancePlace(Part):
    """Where the relevance of a group's heatmaps lies."""

    where: str = Field(description="In words, for example the upper left corner; empty where it is all over the image.")
    area: Share = Field(description="Share of the image that this place is.")
    share: Share = Field(description="Share of the absolute relevance that lies there, mean over the group.")
    share_others: Number = Field(description="The same over the other images; null where there are none.")
    apart: bool = Field(
        description="Whether the group was told from the others by this place; else it is where most relevance lies."
    )
    area_80: Share = Field(description="Smallest share of the image that holds 80 % of the relevance, median.")
    area_80_others: Number = Field(description="The same over the other images; null where there are none.")


class ConstantPatch(Part):
    """A part of the image with the same pixels at the same place in most images of a group, and few of the others."""

    where: str = Field(description="In words, for example the upper left corner.")
    looks: str = Field(description="In words, for example bright or dark red.")
    top: Share = Field(description="Upper edge, as a share of the image's height.")
    left: Share = Field(description="Left edge, as a share of the image's width.")
    bottom: Share = Field(description="Lower edge, as a share of the image's height.")
    right: Share = Field(description="Right edge, as a share of the image's width.")
    lacking: bool = Field(description="Whether it is the others that have it, and the group that lacks it.")
    share: Share = Field(description="Share of the group's images that have it.")
    share_others: Share = Field(description="Share of the other images that have it.")
    relevance: Number = Field(
        description="Share of the absolute relevance that lies in it, mean over the images that have it; null without "
        "heatmaps."
    )
    p_value: Share = Field(
        description="Of the null hypothesis that both shares are one; of images that it was not looked for in, "
        "corrected for the number of groups."
    )


class StrategyDescription(Part):
    """What the images of one group have in common that the other images of their class have not.

    All differences are associations: the group was found by what the classifier does, not by drawing lots.
    """

    made_by: ClassVar[str] = "exmap run"

    group: int = Field(ge=0, description="Number of the group, as in its grouping.")
    name: str = Field(description="Name of the group.")
    class_name: str = Field(description="Class of its images; empty where it is of no one class.")
    images: int = Field(ge=0, description="Images in the group.")
    others: int = Field(ge=0, description="Other images of the class; of a group of no one class all other images.")
    compared: int = Field(ge=0, description="Images of both that were compared: all, or a sample of many.")
    tested: int = Field(ge=0, description="How many things were tested, over all groups; p-values are corrected by it.")
    sentence: str = Field(description="What is to be said of the group, in one sentence.")
    follows: str = Field(
        "",
        description="The property that predictions of this class were seen to follow when it was exchanged between "
        "images; empty where none was.",
    )
    against: bool | None = Field(
        None,
        description="Of groups made by exchanging that property: whether it speaks for another class in these images; "
        "null for other groups.",
    )
    relevance: RelevancePlace | None = Field(None, description="Where relevance lies; null without heatmaps.")
    patch: ConstantPatch | None = Field(None, description="Null where there is none.")
    differences: tuple[Difference, ...] = Field(
        (), description="All that was measured and differs at all, the largest effect first."
    )
    prototypes: tuple[int, ...] = Field(
        (), description="Rows of the images that are most like the group's mean heatmap, the best first."
    )
    prototype_ids: tuple[str, ...] = Field((), description="The ids of these images.")
    remarks: tuple[str, ...] = Field((), description="What could not be measured, a sentence each.")

    @property
    def named(self) -> tuple[Difference, ...]:
        """The differences that matter."""
        return tuple(each for each in self.differences if each.matters)

    def __repr__(self) -> str:
        return f"StrategyDescription({self.name}: {self.sentence})"

    __str__ = __repr__

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row per difference."""
        import pandas as pd

        return pd.DataFrame([dict(each) for each in self.differences])


def descriptions_from_json(
    tree: Sequence[Mapping[str, Any]], *, where: object = None
) -> tuple[StrategyDescription, ...]:
    """Read descriptions from the value of a JSON file: a list, one entry per group.

    Raises
    ------
    RunFolderError
        If they are not as exmap writes them.
    """
    return tuple(StrategyDescription.from_json(each, where=where) for each in tree)
