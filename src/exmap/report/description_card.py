"""What a card says of how its images differ from the others of their class: a sentence, and the numbers behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from exmap.auto import AUTO
from exmap.records import IntArray
from exmap.report import outcome
from exmap.report.cards import Sample
from exmap.results import Difference, StrategyDescription

if TYPE_CHECKING:
    from exmap.analysis import Analysis

__all__ = ["ChosenGroup", "DescriptionCard", "Row", "chosen_descriptions", "chosen_groups", "described", "group_title"]

MOST_ROWS = 12


@dataclass(frozen=True)
class Row:
    """One thing in which the images differ: in words, of these images, of the others, and how clearly.

    `effect` is in [-1, 1], or None where that is no rank correlation.
    """

    words: str
    these: str
    others: str
    effect: float | None
    p_value: float | None
    about: str = ""


@dataclass(frozen=True)
class DescriptionCard:
    """How the images of a group differ from the others of their class."""

    description: StrategyDescription

    @property
    def sentence(self) -> str:
        """What is to be said of the group."""
        return self.description.sentence

    @property
    def rows(self) -> list[Row]:
        """What matters, the clearest first."""
        said = self.description
        rows = []
        if said.relevance is not None and said.relevance.apart:
            place = said.relevance
            these, others = _percent(place.share), _percent(place.share_others)
            rows.append(Row(f"relevance at the {place.where}", these, others, None, None, "share of the relevance"))
        if said.patch is not None:
            patch = said.patch
            about = "share of images that have it"
            if patch.relevance == patch.relevance:
                about += f"; it holds {_percent(patch.relevance)} of their relevance"
            these, others = _percent(patch.share), _percent(patch.share_others)
            rows.append(
                Row(f"{patch.looks} patch at the {patch.where}", these, others, None, patch.p_value, about),
            )
        return rows + [_row(each) for each in said.named[:MOST_ROWS]]

    @property
    def more(self) -> int:
        """How many differences matter beside those of the rows."""
        return max(0, len(self.description.named) - MOST_ROWS)

    @property
    def area(self) -> str:
        """On how much of the image the relevance lies; empty without heatmaps."""
        place = self.description.relevance
        if place is None:
            return ""
        said = f"80\u00a0% of the relevance lies on {_percent(place.area_80)} of the image"
        known = place.area_80_others == place.area_80_others
        said += f" (in the others {_percent(place.area_80_others)})" if known else ""
        if place.where and not place.apart:
            said += (
                f", most of it at the {place.where} ({_percent(place.share)} on {_percent(place.area)} of the image)"
            )
        return f"{said}."

    @property
    def note(self) -> str:
        """How to read the numbers."""
        said = self.description
        sampled = "" if said.compared >= said.images + said.others else f", of which {said.compared:,} were looked at"
        return (
            f"{said.images:,} images against {said.others:,} others{sampled}: medians, or shares of images. Effect: "
            "how often an image of the group has more of it than one of the others, less how often it has less; 1 is "
            "always. Listed is what has an effect of at least a third and p at most 0.05 after correction for the "
            f"{said.tested:,} comparisons that were made. What differs need not be what the classifier reads."
        )


@dataclass(frozen=True)
class ChosenGroup:
    """A group of the chosen grouping, where the page shows the groups of another one.

    Attributes
    ----------
    title : str
    size : int
    share, right : float in [0, 1]
        Of its class, and of its images that are classified right.
    card : DescriptionCard
    prototypes : sequence of Sample
    """

    title: str
    size: int
    share: float
    right: float
    card: DescriptionCard
    prototypes: Sequence[Sample] = ()


def described(analysis: Analysis, source: str) -> dict[int, DescriptionCard]:
    """Return what is known of each group of a source, by its number; empty where nothing was described."""
    found: Sequence[StrategyDescription] = dict(analysis.descriptions).get(source, ())
    return {each.group: DescriptionCard(each) for each in found}


def chosen_descriptions(analysis: Analysis) -> list[StrategyDescription]:
    """Return what is known of the chosen groups of classes with a shortcut, the smallest of each class first.

    None where the page shows these groups anyway.
    """
    record = None if analysis.results is None else analysis.results.auto
    if record is None or outcome.same_groups(analysis):
        return []
    found = [name for name, finding in record.shortcut.items() if finding.found]
    rows = [each.description for each in described(analysis, AUTO).values()]
    inside = [row for row in rows if row.class_name in found and row.images]
    return sorted(inside, key=lambda row: (found.index(row.class_name), row.images))


def chosen_groups(
    analysis: Analysis, samples: Callable[[IntArray], Sequence[Sample]]
) -> Mapping[str, Sequence[ChosenGroup]]:
    """Return the chosen groups of each class with a shortcut; `samples` makes those of rows."""
    groups, made = analysis.groups.get(AUTO), dict[str, list[ChosenGroup]]()
    for each in chosen_descriptions(analysis) if groups is not None else ():
        assert groups is not None
        correct = analysis.explained.correct[groups.index == each.group]
        made.setdefault(each.class_name, []).append(
            ChosenGroup(
                group_title(each),
                each.images,
                each.images / (each.images + each.others),
                float(correct.mean()),
                DescriptionCard(each),
                samples(np.array(each.prototypes, dtype=np.int64)),
            )
        )
    return made


def group_title(each: StrategyDescription) -> str:
    """Return the name of a group, or what its property speaks for where it was made by an exchange."""
    if each.against is None:
        return each.name
    return f"{each.class_name}: {each.follows} speaks for {'another class' if each.against else each.class_name}"


def _row(each: Difference) -> Row:
    about = f"{each.name} ({each.unit})" if each.unit not in ("", each.name) and not each.value else each.name
    if each.cramers_v is not None:
        about += f"; Cram\u00e9r's V {each.cramers_v:.2f}"
    these, others = (_percent(share) if each.value else _number(share) for share in (each.group, each.others))
    return Row(each.words, these, others, each.effect, each.p_value, about)


def _percent(value: float) -> str:
    r"""Return a share in whole per cent.

    Examples
    --------
    >>> [_percent(share).replace("\xa0", " ") for share in (0.5, 0.004, 1.0, float("nan"))]
    ['50 %', '0.4 %', '100 %', '']
    """
    if value != value:
        return ""
    return f"{100 * value:.1f}\u00a0%" if 0 < value < 0.01 else f"{100 * value:.0f}\u00a0%"


def _number(value: float) -> str:
    r"""Return a number with three digits, or as a whole one where it is large.

    Examples
    --------
    >>> _number(0.12345), _number(45678.2), _number(-2.0)
    ('0.123', '45,678', '\u22122')
    """
    text = f"{abs(value):,.0f}" if abs(value) >= 1000 else f"{abs(value):.3g}"
    return f"\u2212{text}" if value < 0 and float(text.replace(",", "")) else text
