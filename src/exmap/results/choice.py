"""What is written of a choice among groupings: auto.json, and ``auto`` in results.json."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, NonNegativeFloat, model_validator

from exmap.results.part import Part, Share

__all__ = [
    "AutoRecord",
    "ClassFinding",
    "DataCurvePoint",
    "DoubtfulLabels",
    "LastLayerVerdict",
    "PropertyReliance",
    "Reliance",
    "ScoredGrouping",
]


class PropertyReliance(Part):
    """How far predictions of one class's images follow a property of the image that is exchanged."""

    property: str = Field(description="What was exchanged: colour, background or place.")
    class_name: str = Field(description="Class of the images that received it, all classified right.")
    pairs: int = Field(ge=1, description="Exchanges: each gives an image the property of two others, in turn.")
    moved: float = Field(
        description="How much further the margin moves with the property of an image that is taken for another class "
        "than with that of one taken for its own, as a share of the image's own margin: mean."
    )
    moved_low: float = Field(description="Lower end of the one-sided 95 % interval of that mean.")
    turned: Share = Field(description="Share of images whose prediction turns to the other class.")
    turned_control: Share = Field(description="The same with the property of an image taken for their own class.")
    p_value: Share = Field(
        description="Of the null hypothesis that the mean is at most a fifth, corrected for all properties and classes."
    )
    relied_on: bool = Field(description="Whether that p-value is at most 0.05.")
    why: str = Field("", description="In one sentence.")


class ClassFinding(Part):
    """What the test for a shortcut says of one class.

    Its evidence is a group of images: those whose exchanged property votes for another class, or, where images were
    not at hand, a cluster of heatmaps that stands apart.
    """

    found: bool | None = Field(
        description="Whether a shortcut was found at the level asked for; null where not tested."
    )
    p_value: Share | None = Field(
        description="The largest of what its evidence needs, corrected for all tests; 1 where there is no evidence to "
        "test, null where not tested."
    )
    effect: float | None = Field(
        description="Error rate of the group less that of the rest of the class, in [-1, 1]; null where there is none."
    )
    effect_low: float | None = Field(
        description="Lower end of that difference, from one-sided 95 % intervals of both rates; null likewise."
    )
    images: int = Field(ge=0, description="Images in the group; 0 where there is none.")
    conductance: Share | None = Field(
        description="Share of its edges in the graph of neighbours that leave it; null where it is no cluster."
    )
    candidate: str = Field(description="The grouping that the group is of; empty where there is none.")
    property: str = Field("", description="The property that predictions follow; empty where none was found.")
    restored: Share | None = Field(
        None,
        description="Share of the group's wrong images that are classified right with a property of the rest of their "
        "class in place of their own; null where it was not measured.",
    )
    restored_matched: Share | None = Field(
        None, description="The same of images of the rest of the class that are about as hard; null likewise."
    )
    why: str = Field(description="The reason, in one sentence.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, tree: Any) -> Any:
        """Take a class that was not tested as files hold it that leave out what there is nothing to say of."""
        if isinstance(tree, dict) and tree.get("found", True) is None:
            return {"effect_low": None, "images": 0, "conductance": None, "candidate": "", **tree}
        return tree

    @classmethod
    def nothing(cls, found: bool | None, why: str) -> ClassFinding:
        """Return what is said of a class without a cluster that stands apart, or of one that was not tested."""
        return cls(
            found=found,
            p_value=None if found is None else 1.0,
            effect=None,
            effect_low=None,
            images=0,
            conductance=None,
            candidate="",
            why=why,
        )


class DoubtfulLabels(Part):
    """Images of one class that look mislabelled: they look like another class in all respects."""

    class_name: str = Field(description="The class that their labels say.")
    looks_like: str = Field(description="The class that they are taken for.")
    images: tuple[str, ...] = Field(description="Their ids.")
    told_apart: Share = Field(
        description="How well the class's doubtful images are told from images of the classes that they look like, on "
        "images left out: the largest area under the curve by margins, features, heatmaps and pixels. 0.5 is not at "
        "all, and above 0.7 they are not named."
    )

    @property
    def why(self) -> str:
        """The reason, in one sentence."""
        some = f"{len(self.images):,} images" if len(self.images) > 1 else "1 image"
        look = "look" if len(self.images) > 1 else "looks"
        return (
            f"{some} of {self.class_name!r} {look} mislabelled: taken for {self.looks_like!r} as surely as images of "
            f"{self.looks_like!r} are, and not told from these by features, heatmaps or pixels."
        )


class ScoredGrouping(Part):
    """A grouping that was weighed."""

    name: str = Field(description="As exmap bench writes sources, for example exmap[size=7,scope=global,gap=relative].")
    also: tuple[str, ...] = Field(description="Other names of the same grouping.")
    score: float = Field(
        le=0, description="Minus the mean reliance of its last layer on all others' groups; 0 is best."
    )
    groups: int = Field(ge=1, description="Groups that have images.")
    like_chosen: float = Field(
        description="Adjusted mutual information with the chosen grouping, within classes; 1 for the same groups."
    )
    eligible: bool = Field(description="Whether it may be chosen: not where it restates the classifier's errors.")


class Reliance(Part):
    """How much last layers rely on the groups of all groupings, on average."""

    classifier: NonNegativeFloat = Field(
        description="The classifier's own; in standard deviations of a class's margins."
    )
    chosen: NonNegativeFloat = Field(description="That of the last layer fitted to the chosen groups.")


class LastLayerVerdict(Part):
    """Whether retraining the last layer is enough, and what it gains.

    Records of earlier versions have no `images_needed` and no gain.
    """

    last_layer_suffices: bool | None = Field(
        description="False where some group is behind the rest of its class by a one-sided test at 95 %, and by more "
        "than 10 points; null where the worst group has too few images for that test to notice 20 points in 80 % of "
        "cases, and is not too good for 20 points either; true otherwise."
    )
    before: Share | None = Field(
        description="Accuracy of the worst group with the classifier as it is; null where nothing was measured."
    )
    after: Share | None = Field(
        description="Accuracy of the group that decided, with a last layer that was retrained on other images; null "
        "likewise."
    )
    group: str = Field(
        description="The group that decided: the one most clearly behind where the last layer does not suffice, else "
        "the least accurate one afterwards; empty where nothing was measured."
    )
    images: int = Field(ge=0, description="Images in it.")
    images_needed: int | None = Field(
        default=None,
        ge=1,
        description="Where its images are too few: how many would give the test a power of 80 %; null otherwise, and "
        "where the rest of its class is too small for any number of them.",
    )
    gain: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="What the accuracy of the worst group gains on images that the last layer was not fitted to. One "
        "half of the images picks the worst group, before and after, and the other half measures it, so it may differ "
        "a little from after less before; null where nothing was measured.",
    )
    gain_low: float | None = Field(
        default=None, ge=-1, le=1, description="Lower end of the 90 % interval of the gain; null likewise."
    )
    gain_high: float | None = Field(
        default=None, ge=-1, le=1, description="Upper end of the 90 % interval of the gain; null likewise."
    )
    why: str = Field(
        description="In a sentence or two; where the last layer does not suffice, also what would, and where its "
        "images are too few, how many would be enough."
    )


class DataCurvePoint(Part):
    """What so many images would have given."""

    images: int = Field(ge=1, description="Images that last layers were fitted to.")
    smallest_group: NonNegativeFloat = Field(description="Images of its smallest group, mean over draws.")
    worst_group_accuracy: Share = Field(
        description="Accuracy of the worst chosen group on other images, mean over draws."
    )
    spread: NonNegativeFloat = Field(description="Standard deviation of that accuracy over draws.")


class AutoRecord(Part):
    """Which grouping was chosen without group labels, whether there is a shortcut, and what would repair it.

    Where nothing can be concluded all that may be null is null, no class was tested, and `why` says the reason.
    """

    file_name: ClassVar[str] = "auto.json"
    made_by: ClassVar[str] = "exmap auto RUN_DIR"

    chosen: str | None = Field(description="Name of the chosen grouping; null where nothing can be concluded.")
    runner_up: str | None = Field(
        description="The best grouping that is not almost the same as the chosen one; null where there is none."
    )
    confidence: Share | None = Field(
        description="Chance that the chosen grouping is within 2 points of worst-group accuracy of the best one that "
        "may be chosen; 0.8 means right in 80 % of such choices."
    )
    judged_on: str | None = Field(description="Images it was judged on: held-out halves, or the validation split.")
    reliance: Reliance | None = Field(description="What the classifier relies on as it is, and with the chosen groups.")
    candidates: tuple[ScoredGrouping, ...] = Field(
        description="All groupings that were weighed, in the order in which they would be chosen: those that an "
        "experiment found a shortcut in, then the others, each by falling score; those that cannot be chosen last."
    )
    shortcut: dict[str, ClassFinding] = Field(description="What the test for a shortcut says, by class.")
    repair: LastLayerVerdict | None = Field(description="Whether retraining the last layer is enough.")
    data_curve: tuple[DataCurvePoint, ...] = Field(
        description="Accuracy of the worst chosen group by number of images, which rises."
    )
    exchanges: tuple[PropertyReliance, ...] = Field(
        (), description="What predictions follow, by property and class; empty where images were not at hand."
    )
    warnings: tuple[str, ...] = Field(
        (),
        description="Properties that tell the class by themselves and that predictions follow, a sentence each: "
        "shortcuts that hardly any image goes against.",
    )
    mislabelled: tuple[DoubtfulLabels, ...] = Field(
        (),
        description="Images that look mislabelled, by class and by the class they look like: they are left out of the "
        "test for a shortcut and of the chosen groups.",
    )
    repaired: bool = Field(
        description="Whether the last layer is retrained on the chosen groups; false: left as it is."
    )
    why: str = Field(description="Reason for the choice, or why nothing can be concluded, in one sentence.")
    remarks: tuple[str, ...] = Field(description="What to know beside it, a sentence each.")

    @property
    def found(self) -> bool:
        """Whether a shortcut was found in any class."""
        return any(finding.found for finding in self.shortcut.values())

    def __repr__(self) -> str:
        found = "a shortcut found" if self.found else "no shortcut found"
        return f"AutoRecord({self.chosen or 'nothing chosen'}, {found}, {len(self.candidates)} groupings)"

    __str__ = __repr__

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row per grouping that was weighed."""
        import pandas as pd

        return pd.DataFrame([dict(each) for each in self.candidates])
