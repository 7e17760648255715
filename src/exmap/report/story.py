"""What the test for a shortcut says, in words that agree with each other: for the report page and the command line.

Every sentence is made of the test's record alone, so that a headline, the titles of sections and a verdict cannot say
different things of one classifier.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from exmap.auto import words
from exmap.results import AutoRecord, ClassFinding

__all__ = [
    "EXCHANGE_COLUMNS",
    "EXCHANGE_NOTE",
    "NO_EVIDENCE",
    "Exchange",
    "about_class",
    "badge",
    "exchange_rows",
    "exchanges",
    "finding",
    "groups_of_class",
    "last_layer",
    "title",
    "verdict",
    "warnings",
]

NAMES_SHOWN = 5  # classes in a sentence
BADGES = {True: "shortcut found", False: "no shortcut found", None: "not tested"}
NO_EVIDENCE = (
    "differences in accuracy between them are no evidence of a shortcut, because hard images form groups, too."
)
EXCHANGE_COLUMNS = ("property", "class", "pairs", "margin moved", "turned", "control", "p", "followed")
EXCHANGE_NOTE = (
    "Each image is given the property of an image that is called another class; in the control, of one of its own "
    "class. Margin moved: the share of the margin that moves beyond the control. Turned: the share of images whose "
    "prediction turns to the other class. Whether a property that predictions follow is a shortcut or part of the "
    "class, only those who know the images can say."
)


class Exchange(Protocol):
    """What became of predictions when images were given a property of other images.

    Attributes
    ----------
    property, class_name : str
    pairs : int
    moved, moved_low : float
        Share of the margin that moves with the property of an image that is called another class, beyond the control;
        and the lower end of its interval.
    turned, turned_control : float in [0, 1]
        Share of images whose prediction turns to the other class, and that in the control.
    p_value : float in [0, 1]
    relied_on : bool
    why : str
    """

    property: str
    class_name: str
    pairs: int
    moved: float | None
    moved_low: float | None
    turned: float | None
    turned_control: float | None
    p_value: float | None
    relied_on: bool
    why: str


def exchanges(record: AutoRecord) -> Sequence[Exchange]:
    """Return which properties of images were exchanged; none in records without."""
    found: Sequence[Exchange] = getattr(record, "exchanges", ())
    return found


def warnings(record: AutoRecord) -> Sequence[str]:
    """Return the warnings, a sentence each; none in records without."""
    found: Sequence[str] = getattr(record, "warnings", ())
    return found


def finding(record: AutoRecord) -> str:
    """State in which classes a shortcut was found, with the evidence, or that none was found, as the test says.

    Examples
    --------
    >>> from exmap.results import ClassFinding
    >>> nothing = dict.fromkeys(("chosen", "runner_up", "confidence", "judged_on", "reliance", "repair"))
    >>> record = AutoRecord(
    ...     **(nothing | {"chosen": "classes"}), candidates=(), data_curve=(), repaired=False, why="", remarks=(),
    ...     shortcut={"cat": ClassFinding.nothing(False, ""), "dog": ClassFinding.nothing(None, "")},
    ... )
    >>> finding(record)
    'No shortcut was found in the 1 of 2 classes that could be tested.'
    """
    return " ".join((*_finding(record, _followed(record)), *filter(None, [words.mislabelled(record)])))


def _finding(record: AutoRecord, follows: str) -> Iterable[str]:
    found = {name: row for name, row in record.shortcut.items() if row.found}
    if found:
        yield from _found(found, len(record.shortcut))
        others = _followed(record, said={(getattr(row, "property", ""), name) for name, row in found.items()})
        if others and follows:
            yield f"Predictions follow {others}{', too' if others != follows else ''}."
        return
    if _tested(record):
        none = f"No shortcut was found {_where_tested(record)}"
        yield f"{none}, but {_may_be_one(follows)}" if follows else f"{none}."
        return
    yield record.why if record.chosen is None and record.why else "No class was tested for a shortcut."
    if follows:
        yield f"But {_may_be_one(follows)}"


def _found(found: dict[str, ClassFinding], of_classes: int) -> Iterable[str]:
    """Yield the classes with a shortcut, and the evidence for the clearest one."""
    name, row = min(found.items(), key=lambda item: (_or(item[1].p_value, 2.0), -_or(item[1].effect, 0.0)))
    said = f"A shortcut was found in {_listed([f'class {each}' for each in found])}"
    evidence = _evidence(row)
    if len(found) == 1:
        yield f"{said}: {evidence}." if evidence else f"{said}."
        return
    yield f"{said} ({len(found)} of {of_classes} classes)."
    if evidence:
        yield f"The evidence is clearest in class {name}: {evidence}."


def _evidence(row: ClassFinding) -> str:
    """Return the evidence for a shortcut in a class as a part of a sentence; empty where there are no such images."""
    if row.effect is None or not row.images:
        return ""
    name = getattr(row, "property", "")
    group = f"a group of {row.images:,} of its images"
    if name:
        group = f"{row.images:,} of its images, whose {name} speaks for another class,"
    elif row.conductance is not None:
        group = f"{row.images:,} of its images, whose heatmaps stand apart,"
    follows = f"predictions follow {name}, and " if name else ""
    points = f"{100 * row.effect:.0f} points more often than on the rest of the class"
    return f"{follows}the classifier errs on {group} {points}"


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _tested(record: AutoRecord) -> int:
    """Return the number of classes that were tested."""
    return sum(row.found is not None for row in record.shortcut.values())


def _where_tested(record: AutoRecord) -> str:
    tested, of = _tested(record), len(record.shortcut)
    if tested < of:
        return f"in the {tested:,} of {of:,} classes that could be tested"
    return f"in any of the {of:,} classes" if of > 1 else f"in class {next(iter(record.shortcut))}"


def _followed(record: AutoRecord, said: Collection[tuple[str, str]] = ()) -> str:
    """Return the properties that predictions follow and in which classes, as a part of a sentence; empty for none.

    `said` is what is not to be said again: pairs of property and class.
    """
    classes: dict[str, list[str]] = {}
    for each in exchanges(record):
        if each.relied_on and (each.property, each.class_name) not in said:
            classes.setdefault(each.property, []).append(each.class_name)
    return _listed([_in_classes(name, list(filter(None, of))) for name, of in classes.items()])


def _in_classes(name: str, classes: list[str]) -> str:
    return f"{name} ({'class' if len(classes) == 1 else 'classes'} {_listed(classes)})" if classes else name


def _may_be_one(follows: str) -> str:
    return f"predictions follow {follows}, which may be a shortcut."


def verdict(record: AutoRecord, left_alone: str = "") -> str:
    """State whether there is a shortcut and what was done about it, in short.

    Parameters
    ----------
    record : AutoRecord
    left_alone : str
        Why the classifier could not be retrained; empty where it was, or was not to be.
    """
    retrained = record.repaired and not left_alone
    if record.chosen is None or (_tested(record) and retrained == (record.found or record.repaired)):
        said = words.verdict(record)
    elif retrained:
        said = f"{' '.join(_finding(record, ''))} The classifier was retrained on the chosen groups anyway."
    else:
        why = f": {left_alone}" if left_alone else ""
        said = f"{' '.join(_finding(record, ''))} The classifier is left as it is{why}."
    if follows := _followed(record):
        said += f" Predictions follow {follows}." if record.found else f" But {_may_be_one(follows)}"
    return said


def last_layer(record: AutoRecord) -> str:
    """State whether retraining the last layer is enough, where there is something to repair; empty if not measured."""
    said = words.last_layer(record)
    if not said or record.found:
        return said
    return f"The test found no shortcut to repair. If you repair by the chosen groups anyway: {said}"


def title(record: AutoRecord) -> str:
    """Return the title of the section that shows groups: only a shortcut makes strategies of them."""
    return "Strategies" if record.found else "Groups of heatmaps"


def badge(record: AutoRecord, class_name: str) -> str:
    """Return what the test says of a class, in two or three words."""
    row = record.shortcut.get(class_name)
    return BADGES[None if row is None else row.found]


def groups_of_class(record: AutoRecord, class_name: str, count: int) -> str:
    """Return how many groups a class has, and what these are called."""
    if count > 1 and badge(record, class_name) == BADGES[True]:
        return f"{count} strategies"
    return f"{count} {'group' if count == 1 else 'groups'} of heatmaps"


def about_class(record: AutoRecord, class_name: str, count: int) -> str:
    """Return the evidence for a shortcut in a class, beside its groups; empty where none was found."""
    row = record.shortcut.get(class_name)
    if row is None or not row.found:
        return ""
    said = row.why
    if row.candidate:
        said += f" That group is one of the grouping {row.candidate}; the groups here may divide the class otherwise."
    return said if count > 1 else f"{said} The run's own clustering did not divide this class."


def exchange_rows(record: AutoRecord) -> list[tuple[str, ...]]:
    """Return the cells of the table of exchanges, by :data:`EXCHANGE_COLUMNS`."""
    return [
        (
            each.property,
            each.class_name or "all",
            f"{each.pairs:,}",
            _moved(each),
            _share(each.turned),
            _share(each.turned_control),
            _p_value(each.p_value),
            "yes" if each.relied_on else "no",
        )
        for each in exchanges(record)
    ]


def _moved(each: Exchange) -> str:
    low = _share(each.moved_low)
    return _share(each.moved) + (f" (at least {low})" if low else "")


def _share(value: float | None) -> str:
    return "" if value is None or value != value else f"{100 * value:.0f}\xa0%"


def _p_value(value: float | None) -> str:
    if value is None or value != value:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _listed(names: Sequence[str]) -> str:
    """Return names as a part of a sentence, the first few of many."""
    if len(names) > NAMES_SHOWN:
        return f"{', '.join(names[:NAMES_SHOWN])} and {len(names) - NAMES_SHOWN} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
