"""What is measured of one method on the test split, and of one source of groups against the true groups."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from exmap.results.part import Number, Part, Share
from exmap.results.repairs import RepairTrial

__all__ = ["ClassAgreement", "ClassHarm", "GroupAccuracy", "GroupInference", "MethodResult"]


class GroupAccuracy(Part):
    """Accuracy on the test images of one group."""

    value: Number = Field(description="Accuracy in [0, 1], mean over repeats; null for an empty group.")
    count: int = Field(ge=0, description="Test images in the group.")
    low: Number = Field(description="Lower end of the bootstrap interval over test images, in [0, 1].")
    high: Number = Field(description="Upper end of that interval, in [0, 1].")


class ClassHarm(Part):
    """What retraining does to a class that it makes worse, or that has no image to retrain on."""

    class_name: str = Field(alias="class", description="The class.")
    images: int = Field(ge=0, description="Its images that were compared; 0 where it has none to retrain on.")
    before: Number = Field(description="Share of them that the classifier is right on, as it was.")
    after: Number = Field(description="The same after retraining on others, had nothing been done about it.")
    p_value: Number = Field(description="One-sided p-value of McNemar's exact test on pairs.")
    harmed: bool = Field(description="Whether it loses more than the worst group gains.")
    kept: bool = Field(False, description="Whether it keeps the classifier's own decision.")

    @classmethod
    def without_images(cls, class_name: str, *, kept: bool = False) -> ClassHarm:
        """Return the record of a class that has no image to retrain on."""
        nan = float("nan")
        return cls(class_name=class_name, images=0, before=nan, after=nan, p_value=nan, harmed=False, kept=kept)


class MethodResult(Part):
    """What is reported of one method on the test split."""

    worst_group_accuracy: Number = Field(
        description="Accuracy in the worst group, in [0, 1]: the mean over repeats of each repeat's worst group."
    )
    worst_group: str = Field(
        description="The group that is worst over all repeats together; empty where none has images."
    )
    mean_accuracy: Number = Field(description="Accuracy over all test images, in [0, 1], mean over repeats.")
    weighted_mean_accuracy: Number = Field(
        description="Mean of the group accuracies, weighted by each group's frequency in the training split; in [0, 1]."
    )
    std: float | None = Field(
        description="Standard deviation (n - 1) of the worst-group accuracy over repeats; null for one repeat."
    )
    repeats: int = Field(ge=1, description="How often the method was fitted, each time with another seed.")
    group_accuracy: dict[str, GroupAccuracy] = Field(
        description="Accuracy by group: the true groups, or the classes where those are not known."
    )
    gaps: dict[str, Number] | None = Field(
        None,
        description="With several shortcuts: accuracy where just the named ones are uncommon, less the weighted mean.",
    )
    labels_used: dict[str, tuple[str, ...]] = Field(
        {}, description="Kinds of labels by step, for example class labels for training, true groups for evaluation."
    )
    strengths: tuple[float | None, ...] | None = Field(
        None, description="DFR's inverse penalty C by repeat; null for a head that was not fitted."
    )
    epoch: int | None = Field(None, description="Epoch of a whole network that was kept, counted as in its history.")
    chosen: tuple[dict[str, Any], ...] | None = Field(
        None, description="Hyperparameters that a last-layer learner chose, by name; one mapping per repeat."
    )
    first_line: str = Field(
        "", description="What must be read before any figure: which classes retraining makes worse, and what was done."
    )
    left_alone: str = Field("", description="Why the classifier was left as it was; empty where it was repaired.")
    harm: tuple[ClassHarm, ...] = Field(
        (), description="Classes that retraining makes worse, and those without an image to retrain on."
    )
    repairs: tuple[RepairTrial, ...] = Field(
        (), description="Where a repair was chosen among several: all of them, the cheapest first."
    )
    notes: tuple[str, ...] | None = Field(
        None, description="What to know of the fit: small groups, unassigned images, fits that did not converge."
    )

    @property
    def worst(self) -> GroupAccuracy | None:
        """Accuracy of the group that is worst over all repeats together; None where no group has images."""
        return self.group_accuracy.get(self.worst_group)

    @property
    def by_class(self) -> bool:
        """Whether the groups it is reported by are the classes, because no others are known."""
        return self.labels_used.get("evaluation") == ("class labels",)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row per group: accuracy with its interval, and the number of test images."""
        import pandas as pd

        rows = [
            {"group": name, "accuracy": g.value, "low": g.low, "high": g.high, "images": g.count}
            for name, g in self.group_accuracy.items()
        ]
        return pd.DataFrame(rows)


class ClassAgreement(Part):
    """How well groups follow the true groups inside one class."""

    label: int = Field(alias="class", ge=0, description="Number of the class.")
    ari: float = Field(ge=-1, le=1, description="Adjusted Rand index.")
    nmi: float = Field(description="Normalised mutual information in [0, 1], up to rounding.")
    minority: str = Field(description="Its smallest true group.")
    minority_count: int = Field(ge=1, description="Images in that group.")
    minority_precision: Share = Field(
        description="Share of that group in the inferred group that matches it best (largest F1)."
    )
    minority_recall: Share = Field(description="Share of that group's images that lie in the inferred group.")


class GroupInference(Part):
    """How well inferred groups follow the true groups of the grouped split; no method ever sees these."""

    ari: Number = Field(
        description="Adjusted Rand index in [-1, 1], inside each class, averaged over classes with several true groups."
    )
    nmi: Number = Field(description="Normalised mutual information in [0, 1], averaged likewise.")
    minority_precision: Number = Field(
        description="Share of a class's smallest true group in the inferred group that matches it best (largest F1), "
        "averaged likewise."
    )
    minority_recall: Number = Field(
        description="Share of that true group's images that lie in the inferred group, averaged likewise."
    )
    by_class: tuple[ClassAgreement, ...] = Field(
        description="The same by class; classes with one true group are left out."
    )
    groups: dict[str, int] | None = Field(None, description="Images in each inferred group, by its name.")
