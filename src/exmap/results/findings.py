"""What an audit found, as findings.json holds it: the verdict, what it rests on, and what a repair gives."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat

from exmap.results.choice import ClassFinding, LastLayerVerdict, PropertyReliance
from exmap.results.description import StrategyDescription
from exmap.results.part import Number, Part

__all__ = ["Accuracy", "AuditedImages", "AuditedModel", "Change", "Findings", "GroupFinding", "RepairFinding"]


class Accuracy(Part):
    """An accuracy with its interval."""

    value: Number = Field(description="In [0, 1]; null where there are no images.")
    low: Number = Field(description="Lower end of the bootstrap interval over images.")
    high: Number = Field(description="Upper end of that interval.")


class Change(Part):
    """Accuracy on some images before and after the repair."""

    name: str = Field(description="Name of the group or the class; all images are called all.")
    images: int = Field(ge=0, description="How many images.")
    before: Accuracy = Field(description="Of the classifier as it is.")
    after: Accuracy | None = Field(
        None, description="Of the repaired one, on images that it was not fitted to; null where nothing was repaired."
    )


class GroupFinding(Change):
    """One group of images that was found: what is known of it."""

    class_name: str = Field(description="Class of its images; empty where it is of no one class.")
    description: StrategyDescription | None = Field(
        None, description="How its images differ from the others of their class; null where images were not at hand."
    )


class AuditedModel(Part):
    """The classifier."""

    name: str = Field(description="As it was given, for example timm:resnet50, or its class.")
    weights: str = Field("", description="The file of its weights, where one was given.")
    digest: str = Field("", description="SHA-256 of that file.")
    classes: tuple[str, ...] = Field(description="Its classes, in the order of its outputs.")
    outputs: tuple[int, ...] = Field((), description="Which of its outputs these are, where it has others.")


class AuditedImages(Part):
    """The labelled images."""

    name: str = Field(description="Name of the set.")
    source: str = Field("", description="Where it was read from.")
    images: int = Field(ge=0, description="Images that were explained and grouped.")
    by_class: dict[str, int] = Field(description="The same by class.")
    test_images: int = Field(ge=0, description="Images of the second set, which were measured on; 0 without one.")
    skipped: dict[str, str] = Field({}, description="Images that were left out, each with the reason.")
    ignored: dict[str, int] = Field({}, description="Files that are no images, by kind: how many were passed over.")


class RepairFinding(Part):
    """What was done about it."""

    repaired: bool = Field(description="Whether the classifier was retrained on the groups that were found.")
    why: str = Field(description="What was done and why, in a sentence.")
    last_layer: LastLayerVerdict | None = Field(
        None, description="Whether the last layer is enough, and the gain on images it was not fitted to."
    )
    minority_images: int | None = Field(
        None, description="Images that go against the shortcut, in the class where they are fewest; null without one."
    )
    enough_images: bool | None = Field(
        None, description="Whether these are enough to say what the repair gives; null where that was not looked at."
    )
    model: str = Field("", description="Where the repaired classifier was written.")


class Findings(Part):
    """All that an audit found.

    Examples
    --------
    The verdict in a program::

        findings = Findings.from_json(json.loads(Path("audit/findings.json").read_text()))
        findings.verdict, findings.summary
    """

    file_name: ClassVar[str] = "findings.json"
    made_by: ClassVar[str] = "exmap audit"

    format: Literal[1] = Field(1, description="Format of the file.")
    verdict: Literal["shortcut", "none", "cannot say"] = Field(
        description="shortcut: one was found in some class; none: classes were tested and none was found; cannot say: "
        "no class could be tested."
    )
    first_line: str = Field(
        "", description="What must be read before any figure: which classes the repair makes worse, and what was done."
    )
    summary: str = Field(description="The verdict in a sentence or two.")
    shortcuts: tuple[str, ...] = Field((), description="What the shortcut is, one sentence per class that has one.")
    warnings: tuple[str, ...] = Field((), description="What may be a shortcut that no image goes against.")
    model: AuditedModel = Field(description="The classifier.")
    data: AuditedImages = Field(description="The images.")
    classes: dict[str, ClassFinding] = Field(description="What the test for a shortcut says, by class.")
    exchanges: tuple[PropertyReliance, ...] = Field((), description="What predictions follow, by property and class.")
    overall: Change = Field(description="Accuracy on all images that were measured on.")
    measured: tuple[Change, ...] = Field(
        description="Accuracy by class, or by the groups that were named for evaluation, of the images measured on."
    )
    measured_on: str = Field(description="Which images were measured on, in words.")
    grouping: str = Field("", description="The grouping that was chosen; empty where none could be.")
    groups: tuple[GroupFinding, ...] = Field(
        description="The groups that were found, the weakest first. Their accuracies before were seen when they were "
        "found, so the lowest is flattered by chance; repair.last_layer.gain is free of that."
    )
    repair: RepairFinding = Field(description="What was done about it.")
    notes: tuple[str, ...] = Field((), description="What else to know, a sentence each.")
    seconds: NonNegativeFloat | None = Field(None, description="Seconds of work, all steps together.")
    made_with: dict[str, str] = Field({}, description="Versions, commit and machine.")

    @property
    def found(self) -> bool:
        """Whether a shortcut was found."""
        return self.verdict == "shortcut"

    def __repr__(self) -> str:
        said = f"{self.first_line} " if self.first_line else ""
        return f"{said}Findings({self.verdict}: {self.summary})"

    __str__ = __repr__

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row per group: class, images, accuracy before and after, and its sentence."""
        import pandas as pd

        rows = [
            {
                "group": each.name,
                "class": each.class_name,
                "images": each.images,
                "before": each.before.value,
                "after": None if each.after is None else each.after.value,
                "sentence": "" if each.description is None else each.description.sentence,
            }
            for each in self.groups
        ]
        return pd.DataFrame(rows)
