"""The report's section on the chosen grouping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from exmap.auto import words
from exmap.report import story
from exmap.report.cards import Comparison
from exmap.report.charts import data_chart, score_chart
from exmap.report.percentages import percent
from exmap.results import AutoRecord, RepairTrial, ScoredGrouping, repairs_in_words

__all__ = ["ChoiceCard"]


@dataclass(frozen=True)
class ChoiceCard:
    """Which grouping was chosen without group labels, and what else was found on the way.

    Attributes
    ----------
    record : AutoRecord
    outcomes : sequence of Comparison
        The worst group of the test images before, and after retraining on the chosen groups; empty where the
        classifier is left as it is.
    which_groups : str
        Which groups the page shows and which ones were chosen, where these differ; else empty.
    left_alone : str
        Why the classifier could not be retrained; empty where it was, or was not to be.
    repairs : sequence of RepairTrial
        Where a repair was chosen among several: all of them.
    """

    record: AutoRecord
    outcomes: Sequence[Comparison] = ()
    which_groups: str = ""
    left_alone: str = ""
    repairs: Sequence[RepairTrial] = ()

    @property
    def verdict(self) -> str:
        """Whether there is a shortcut, and what was done about it."""
        return story.verdict(self.record, self.left_alone)

    @property
    def groups_title(self) -> str:
        """The title of the section that shows groups."""
        return story.title(self.record)

    def badge(self, class_name: str) -> str:
        """Return what the test says of a class, in two or three words."""
        return story.badge(self.record, class_name)

    def groups_of_class(self, class_name: str, count: int) -> str:
        """Return how many groups a class has, and what these are called."""
        return story.groups_of_class(self.record, class_name, count)

    def about_class(self, class_name: str, count: int) -> str:
        """Return the evidence for a shortcut in a class; empty where none was found."""
        return story.about_class(self.record, class_name, count)

    @property
    def warnings(self) -> Sequence[str]:
        """What the test warns of, a sentence each."""
        return story.warnings(self.record)

    @property
    def exchanges(self) -> list[tuple[str, ...]]:
        """The cells of the table of what predictions follow."""
        return story.exchange_rows(self.record)

    @property
    def exchange_columns(self) -> tuple[str, ...]:
        """The titles of its columns."""
        return story.EXCHANGE_COLUMNS

    @property
    def exchange_note(self) -> str:
        """How to read it."""
        return story.EXCHANGE_NOTE

    @property
    def exchange_reasons(self) -> list[str]:
        """What each exchange says, in a sentence."""
        return [each.why for each in story.exchanges(self.record) if each.why]

    @property
    def remarks(self) -> list[str]:
        """What to know beside the verdict."""
        return words.remarks(self.record)

    @property
    def confidence(self) -> str:
        """How sure the choice is; empty where nothing was chosen."""
        return words.confidence(self.record)

    @property
    def last_layer(self) -> str:
        """Whether retraining the last layer is enough; empty where it was not measured."""
        return story.last_layer(self.record)

    @property
    def kept_repair(self) -> str:
        """Which of several repairs was kept, and what a dearer one would give; empty where none was chosen so."""
        return repairs_in_words(self.repairs)

    @property
    def more_images(self) -> str:
        """Whether more images would help; empty where it was not measured."""
        return words.more_images(self.record)

    @property
    def as_is(self) -> float | None:
        """Score of the classifier as it is, 0 is best; None where nothing was weighed."""
        return None if self.record.reliance is None else -self.record.reliance.classifier

    def standing(self, grouping: ScoredGrouping) -> str:
        """Return whether a grouping is the chosen one, the runner-up, or may not be chosen."""
        return self._mark(grouping) if grouping.eligible else "cannot be chosen"

    def _mark(self, grouping: ScoredGrouping) -> str:
        marks = {self.record.chosen: "chosen", self.record.runner_up: "runner-up"}
        return marks.get(grouping.name, "")

    @property
    def scores(self) -> Markup | None:
        """A chart of all scores; None where nothing was weighed."""
        weighed = self.record.candidates
        if not weighed or self.as_is is None:
            return None
        marks = [self._mark(each) for each in weighed]
        marked = "".join(
            f"; {mark} {each.name} {each.score:.2f}" for mark, each in zip(marks, weighed, strict=True) if mark
        )
        return score_chart(
            np.array([each.score for each in weighed]),
            marks,
            np.array([each.eligible for each in weighed]),
            f"Scores of {len(weighed)} groupings{marked}; the classifier as it is {self.as_is:.2f}",
            as_is=self.as_is,
        )

    @property
    def curve(self) -> Markup | None:
        """A chart of the worst chosen group by number of images; None for fewer than two points."""
        points = self.record.data_curve
        if len(points) < 2:
            return None
        said = ", ".join(f"{percent(point.worst_group_accuracy)} with {point.images:,} images" for point in points)
        return data_chart(
            [point.images for point in points],
            [point.smallest_group for point in points],
            np.array([point.worst_group_accuracy for point in points]),
            np.array([point.spread for point in points]),
            f"The worst chosen group is right {said}",
        )
