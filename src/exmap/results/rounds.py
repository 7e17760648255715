"""What came of repairing a classifier round by round, until no shortcut is found: rounds.json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from exmap.results.choice import AutoRecord
from exmap.results.part import FORMAT, Number, Part, Share

__all__ = ["FoundShortcut", "Round", "Rounds"]


class FoundShortcut(Part):
    """A shortcut that the test found in one class."""

    class_name: str = Field(description="The class.")
    property: str = Field(
        "", description="The property of images that predictions follow; empty where a cluster of heatmaps shows it."
    )
    images: NonNegativeInt = Field(description="Images of the class that go against the shortcut.")
    p_value: Share | None = Field(description="Of the test, corrected for all tests of the round.")
    why: str = Field(description="The evidence, in a sentence or two.")


class Round(Part):
    """One round: what was found of the classifier that the round before left, and what its repair gave."""

    number: PositiveInt = Field(description="1 is the classifier as it was trained.")
    folder: str = Field("", description="Its run folder, below the first one; empty for the first, and in memory.")
    found: tuple[FoundShortcut, ...] = Field(description="The shortcuts that the test found; empty where it is silent.")
    chosen: str | None = Field(description="Name of the chosen grouping; null where nothing can be concluded.")
    groups: NonNegativeInt = Field(
        description="Groups that the repair was given: the chosen ones, crossed with those of the rounds before; 0 "
        "where no shortcut was found."
    )
    crossed: bool = Field(description="Whether they were crossed with groups of the rounds before.")
    worst_group: str = Field(
        description="Of the groups that a shortcut was found in, in this round or the last one that found any: the "
        "least accurate on the held-out images, as the round found the classifier; empty where none was found so far."
    )
    before: Share | None = Field(description="Accuracy in it; null likewise.")
    after: Share | None = Field(
        description="Accuracy in the worst of the same groups after the repair; null where there was none."
    )
    fitted: bool = Field(
        description="Whether the repair was fitted to these same images, so that `after` flatters it; the next round "
        "and the test images tell. Of a network only the epoch is chosen by them."
    )
    method: str = Field("", description="What repaired it; empty where it was left as it is.")
    left_alone: str = Field("", description="Why it was left as it is; empty where it was repaired.")
    first_line: str = Field(
        "", description="What must be read before any figure: classes that the repair makes worse; empty for none."
    )
    test_worst_before: Number = Field(
        description="Accuracy in the worst group on the test images, before: by true groups where they are known (for "
        "evaluation alone), else by classes."
    )
    test_worst_after: Number = Field(description="The same after the repair.")
    test_mean_before: Number = Field(description="Accuracy over the test images, before.")
    test_mean_after: Number = Field(description="The same after the repair.")

    @property
    def in_words(self) -> str:
        """Classes and properties of the shortcuts that were found; empty where there are none."""
        return ", ".join(f"{each.class_name} ({each.property or 'a cluster of heatmaps'})" for each in self.found)


class Rounds(Part):
    """A classifier repaired round by round: each explains what the one before left, and repairs what it finds."""

    file_name: ClassVar[str] = "rounds.json"
    made_by: ClassVar[str] = "exmap run ... --rounds N"

    format: int = Field(FORMAT, description="Of this file.")
    dataset: str = Field(description="Name of the data set.")
    seed: int = Field(description="Of the run.")
    asked: PositiveInt = Field(description="Rounds that were asked for, at most.")
    rounds: tuple[Round, ...] = Field(min_length=1, description="Those that were made, in order.")
    stopped: Literal["silent", "nothing concluded", "left alone", "limit"] = Field(
        description="Why no more were made: the test found no shortcut; it could not be made; the repair left the "
        "classifier as it was, so that a further round would find the same; or as many were made as were asked for, "
        "and what is left after the last repair was not tested."
    )
    why: str = Field(description="What was found in each round, and why it stopped, in a few words.")

    def __repr__(self) -> str:
        return f"Rounds({len(self.rounds)} of {self.asked}, stopped: {self.stopped})"

    __str__ = __repr__

    @property
    def first_lines(self) -> tuple[str, ...]:
        """What must be read before any figure, round by round: classes that repairs make worse."""
        return tuple(f"Round {each.number}: {each.first_line}" for each in self.rounds if each.first_line)

    def to_frame(self) -> Any:
        """Return a pandas DataFrame, a row per round."""
        import pandas as pd

        rows = [dict(each) | {"found": each.in_words} for each in self.rounds]
        return pd.DataFrame(rows)

    @classmethod
    def of(cls, rounds: Iterable[Round], record: AutoRecord, **given: Any) -> Rounds:
        """Return the record of some rounds.

        Parameters
        ----------
        rounds : iterable of Round
        record : AutoRecord
            Of the last one.
        **given
            `dataset`, `seed` and `asked`.
        """
        made = tuple(rounds)
        stopped = why_stopped(record, made[-1].left_alone) or "limit"
        return cls(rounds=made, stopped=stopped, why=_why(made, stopped, record.why), **given)


def found_in(record: AutoRecord) -> tuple[FoundShortcut, ...]:
    """Return the shortcuts that a test found, by class."""
    return tuple(
        FoundShortcut(class_name=name, property=each.property, images=each.images, p_value=each.p_value, why=each.why)
        for name, each in record.shortcut.items()
        if each.found
    )


def why_stopped(record: AutoRecord, left_alone: str) -> Literal["silent", "nothing concluded", "left alone"] | None:
    """Return why there is no further round after one, or None where there may be."""
    if record.chosen is None:
        return "nothing concluded"
    if not record.found:
        return "silent"
    return "left alone" if left_alone else None


def _why(rounds: tuple[Round, ...], stopped: str, why: str) -> str:
    said = "; ".join(f"round {each.number} found {each.in_words or 'no shortcut'}" for each in rounds)
    last = rounds[-1]
    ends = {
        "silent": "it stopped because the test finds none any more"
        if len(rounds) > 1
        else "there was nothing to repair",
        "nothing concluded": f"it stopped because the test could not be made ({why.rstrip('.')})",
        "left alone": f"it stopped because that repair left the classifier as it was ({last.left_alone.rstrip('.')})",
        "limit": f"it stopped because {len(rounds)} round{'s were' if len(rounds) > 1 else ' was'} asked for, and what "
        "is left after the last repair was not tested",
    }
    return f"{said[:1].upper()}{said[1:]}; {ends[stopped]}."
