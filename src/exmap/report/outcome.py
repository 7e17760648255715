"""What a report says of an analysis in sentences and bars: its headline, remarks, accuracies, and choice of groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from exmap.auto import AUTO
from exmap.evaluation import group_table
from exmap.groups import EDITED, ExMapGroups
from exmap.methods import ERM
from exmap.records import GroupTable, IntArray
from exmap.report import story
from exmap.report.cards import Comparison, Interval
from exmap.report.choice_card import ChoiceCard
from exmap.report.percentages import percent
from exmap.report.story import NO_EVIDENCE
from exmap.results import AutoRecord, MethodResult, Results
from exmap.runtime import generator
from exmap.settings import Settings

if TYPE_CHECKING:
    from exmap.analysis import Analysis

__all__ = [
    "accuracy_by_group",
    "choice",
    "comparisons",
    "headline",
    "is_whole_network",
    "labels_used",
    "measured_images",
    "remarks",
    "same_groups",
    "shown_method",
    "unusual_method",
    "was_judged",
    "worst_found",
]

HELD_OUT = "held-out images"  # each is predicted by a last layer that was fitted to the others


def accuracy_by_group(analysis: Analysis, predicted: IntArray, name: str) -> list[Interval]:
    """Return the accuracy on the images of each pseudo-group; `name` is that of the intervals' random numbers."""
    groups = analysis.pseudo_groups
    table = _table(
        analysis.settings, predicted, analysis.explained.labels, groups.index, groups.names, "bootstrap", name
    )
    rows = zip(table.accuracy.tolist(), table.low.tolist(), table.high.tolist(), strict=True)
    return [Interval(*row) for row in rows]


def _table(
    settings: Settings, predicted: IntArray, labels: IntArray, index: IntArray, names: Sequence[str], *name: str
) -> GroupTable:
    return group_table(
        predicted,
        labels,
        index,
        names,
        rng=generator(settings.seed, "report", *name),
        bootstrap=settings.evaluate.bootstrap,
        confidence=settings.evaluate.confidence,
    )


def headline(analysis: Analysis, before: Sequence[Interval]) -> str:
    """State what was found: the result of the test for a shortcut, or else how a class splits, and what came of it.

    Parameters
    ----------
    analysis : Analysis
    before : sequence of Interval
        From :func:`accuracy_by_group`, with what the classifier predicts.
    """
    record, name = _record(analysis), shown_method(analysis)
    first = "" if name is None else analysis.fits[name].first_line
    if record is None:
        sentences = [_split_in_groups(analysis, before), _on_test_images(analysis), _test_it(analysis)]
    else:
        to_look_at = "" if record.found else f"The groups of heatmaps below are for inspection only: {NO_EVIDENCE}"
        sentences = [story.finding(record), _what_was_done(analysis, record), to_look_at]
    return " ".join(filter(None, (first, *sentences)))


def _record(analysis: Analysis) -> AutoRecord | None:
    """Return what the test for a shortcut says; None where there was none."""
    return None if analysis.results is None else analysis.results.auto


def _split_in_groups(analysis: Analysis, before: Sequence[Interval]) -> str:
    explained, groups = analysis.explained, analysis.pseudo_groups
    in_order = sorted(range(len(before)), key=lambda group: (groups.classes[group], before[group].value))
    split = [group for group in in_order if groups.classes.count(groups.classes[group]) > 1]
    if not split:
        return "No class splits into several groups of heatmaps."
    weakest = min(split, key=lambda group: before[group].value)
    label, accuracy = groups.classes[weakest], before[weakest]
    of_class, members = explained.labels == label, groups.index == weakest
    right = float(explained.correct[of_class & ~members].mean())
    splits = (
        f"Class {explained.class_names[label]} splits into {groups.classes.count(label)} groups of heatmaps: on "
        f"{members.sum():,} of its {of_class.sum():,} images the model is right {_spoken(accuracy.value)} of the time"
    )
    if accuracy.high is not None and accuracy.high >= right:
        return f"{splits}, which is not clearly less than on the others ({_spoken(right)})."
    return f"{splits}, on the others {_spoken(right)}."


def _test_it(analysis: Analysis) -> str:
    """State that nothing was tested, and what would test it; a run has a folder, other analyses have not."""
    how = "exmap auto RUN_DIR" if analysis.grouping else "groups.auto=true"
    return f"No test for a shortcut was made; {how} makes one."


def _what_was_done(analysis: Analysis, record: AutoRecord) -> str:
    """State what retraining on the chosen groups did, or that the classifier is left as it is."""
    name = shown_method(analysis)
    fit = None if name is None else analysis.fits[name]
    if not record.repaired or (fit is not None and fit.left_alone):
        done = "" if fit is not None and fit.first_line else "The classifier is left as it is."
        return " ".join(filter(None, (done, _on_test_images(analysis))))
    what = "The last layer" if fit is None or fit.heads else "The network" if fit.repairs else "The whole network"
    same = "" if record.found else " anyway"
    done = f"{what} was retrained on the chosen groups{same}"
    before, after = _measured(analysis)
    if before is None or after is None:
        return f"{done}."
    found = worst_found(analysis)
    if found is not None and found.after is not None:
        worst = _change("the worst of them", found.before.value, found.after.value)
        return f"{done}, which {worst} on {measured_images(analysis)}."
    by = "class" if before.by_class else "group"
    name = f"the worst {by} of the {measured_images(analysis)}"
    return f"{done}, which {_change(name, before.worst_group_accuracy, after.worst_group_accuracy)}."


def _change(name: str, before: float, after: float) -> str:
    """Return what a repair does to an accuracy, as a part of a sentence."""
    first, then = _spoken(before), _spoken(after)
    return f"leaves {name} at {first}" if first == then else f"takes {name} from {first} to {then}"


def measured_images(analysis: Analysis) -> str:
    """Return what the images are called that accuracies are measured on."""
    return HELD_OUT if analysis.task.cross_fitted else "test images"


def was_judged(analysis: Analysis) -> bool:
    """Return whether the first line states accuracies of classes: those by which the repair was judged."""
    name = shown_method(analysis)
    return name is not None and any(each.images for each in analysis.fits[name].harm)


def worst_found(analysis: Analysis) -> Comparison | None:
    """Return the worst of the chosen groups before and after; None where these images were fitted to."""
    name, groups, record = shown_method(analysis), analysis.groups.get(AUTO), _record(analysis)
    if groups is None or record is None or not record.found or not analysis.task.cross_fitted:
        return None
    labels = analysis.explained.labels
    predicted = [analysis.explained.predicted, *([] if name is None else [analysis.fits[name].predicted])]
    tables = [
        _table(analysis.settings, each, labels, groups.index, groups.names, "found", str(number))
        for number, each in enumerate(predicted)
    ]
    if not (tables[0].count > 0).any():
        return None
    worst = [int(np.nanargmin(table.accuracy)) for table in tables]
    at = [
        Interval(float(table.accuracy[g]), float(table.low[g]), float(table.high[g]))
        for table, g in zip(tables, worst, strict=True)
    ]
    title = f"Worst group that was found: {groups.names[worst[0]]}"
    if len(worst) > 1 and worst[0] != worst[1]:
        title += f" before, {groups.names[worst[1]]} after"
    return Comparison(title, *at)


def _on_test_images(analysis: Analysis) -> str:
    before, after = _measured(analysis)
    if before is None:
        return ""
    by = "class" if before.by_class else "group"
    if after is None or before.worst_group_accuracy == after.worst_group_accuracy:
        where = measured_images(analysis)
        return f"On {where} the worst {by} is right {_spoken(before.worst_group_accuracy)} of the time."
    worst = (_spoken(result.worst_group_accuracy) for result in (before, after))
    return f"On {measured_images(analysis)} retraining takes the worst {by} from {' to '.join(worst)}."


def shown_method(analysis: Analysis) -> str | None:
    """Return the method whose repair is shown; None where the classifier is shown as it is.

    Where a test for a shortcut was made, that is the repair by the chosen groups, and there is none where the test
    leaves the classifier as it is. Without a test it is the repair by ExMap's groups.
    """
    record = _record(analysis)
    if record is None:
        return analysis.method
    return analysis.method_of(AUTO) if record.repaired else None


def _measured(analysis: Analysis) -> tuple[MethodResult | None, MethodResult | None]:
    """Return what was measured before retraining, and after the repair that is shown."""
    methods = {} if analysis.results is None else analysis.results.methods
    name = shown_method(analysis)
    return methods.get(ERM), None if name is None else methods.get(name)


def _spoken(share: float) -> str:
    """Return a share in whole per cent, where that calls nothing 0 or 100 that is not."""
    whole = f"{100 * share:.0f}"
    if whole in ("0", "100", "nan"):
        return percent(share).replace(">\xa0", "over ").replace("<\xa0", "under ")
    return f"{whole}\xa0%"


def remarks(analysis: Analysis) -> list[str]:
    """Return what a reader must know: what has not been done yet, and what is not as usual."""
    said = [*_not_yet(analysis), *_warned(analysis), *_edited(analysis), *_of_own_groups(analysis)]
    said += _by_channels(analysis)
    name = shown_method(analysis)
    fit = None if name is None else analysis.fits[name]
    if fit is not None and fit.left_alone:
        said.append(f"Nothing was retrained, so accuracies before and after are equal: {fit.left_alone}.")
    return said


def _not_yet(analysis: Analysis) -> list[str]:
    said = []
    if analysis.method is None and _record(analysis) is None:
        said.append("Nothing was retrained yet, so the page shows the classifier as it is.")
    if analysis.results is None:
        said.append("Nothing was evaluated on test images yet; all accuracies are on the images that were grouped.")
    return said


def _warned(analysis: Analysis) -> list[str]:
    """State how many warnings there are, where the page lists them further down."""
    record = _record(analysis)
    count = 0 if record is None else len(story.warnings(record))
    if not count:
        return []
    said = "There is 1 warning" if count == 1 else f"There are {count:,} warnings"
    return [f"{said}, listed under \u201cIs there a shortcut?\u201d."]


def _of_own_groups(analysis: Analysis) -> list[str]:
    """State what retraining on ExMap's own groups gave, where the page shows another repair, or none."""
    record, name, results = _record(analysis), analysis.method_of(ExMapGroups.name), analysis.results
    if record is None or results is None or name is None or name == shown_method(analysis):
        return []
    if analysis.fits[name].left_alone or not {ERM, name} <= set(results.methods) or same_groups(analysis):
        return []
    before, after = (_spoken(results.methods[each].worst_group_accuracy) for each in (ERM, name))
    by = "class" if results.methods[ERM].by_class else "group"
    why = "" if record.found else ", although the test found no shortcut"
    return [
        f"For comparison, the run also retrained on the groups of its own clustering settings ({name}){why}: the worst "
        f"{by} of the {measured_images(analysis)} goes from {before} to {after}."
    ]


def same_groups(analysis: Analysis) -> bool | None:
    """Return whether the chosen grouping is the shown one, whatever its groups are called; None if not known."""
    chosen = analysis.groups.get(AUTO)
    if chosen is None:
        return None
    shown = analysis.pseudo_groups.index
    both = np.unique(np.stack([shown, chosen.index]), axis=1).shape[1]
    return bool(both == len(np.unique(shown)) == len(np.unique(chosen.index)))


def _which_groups(analysis: Analysis, record: AutoRecord) -> str:
    """State which groups are shown and which were chosen, unless they are the same."""
    same = same_groups(analysis)
    if record.chosen is None or same:
        return ""
    shown = "The groups shown here come from the run's own clustering settings"
    if same is None:
        return f"{shown}; the chosen grouping is {record.chosen}."
    if record.repaired:
        return f"{shown}; the repair used the chosen grouping, {record.chosen}, which differs."
    return f"{shown}; the chosen grouping, {record.chosen}, differs, and nothing was retrained on it."


def _edited(analysis: Analysis) -> list[str]:
    """State what retraining on the groups that a person edited gave, where there are such."""
    name = analysis.method_of(EDITED)
    if name is None or analysis.results is None or name not in analysis.results.methods:
        return []
    accuracy = analysis.results.methods[name].worst_group_accuracy
    return [
        "The groups below are as found. After retraining on what a person made of them, the worst group of the "
        f"{measured_images(analysis)} is right {percent(accuracy)} of the time."
    ]


def _by_channels(analysis: Analysis) -> list[str]:
    """State that something else than pixels was clustered."""
    if analysis.settings.cluster.representation != "channels":
        return []
    layer = analysis.explained.maps().check.get("layer")
    where = f"layer {layer}" if layer else "an inner layer"
    return [
        f"Images were grouped by the relevance of the channels of {where}, not by that of pixels; the map and what is "
        "typical of a group go by the channels, too. Pictures show pixels."
    ]


def labels_used(analysis: Analysis) -> dict[str, tuple[str, ...]]:
    """Return the kinds of labels by step, of the method that repairs by ExMap's groups, or else of the classifier."""
    before, after = _measured(analysis)
    result = after or before
    return {} if result is None else {step.replace("_", " "): used for step, used in result.labels_used.items()}


def is_whole_network(analysis: Analysis) -> bool:
    """Return whether not the last layer alone was retrained."""
    name = shown_method(analysis)
    return name is not None and analysis.fits[name].network is not None


def unusual_method(analysis: Analysis) -> str:
    """Return the method that repairs the classifier, where that is not the last layer on ExMap's groups."""
    name = shown_method(analysis)
    usual = name == analysis.method_of(ExMapGroups.name) and not is_whole_network(analysis)
    return "" if name is None or usual else name


def comparisons(analysis: Analysis) -> list[Comparison]:
    """Return the worst group and the mean on the test split, before and after retraining; none before evaluation."""
    before, after = _measured(analysis)
    if before is None:
        return []
    labels, settings = analysis.task.test.labels, analysis.settings
    mean_after, name = None, shown_method(analysis)
    if after is not None and name is not None:
        mean_after = _mean(analysis.fits[name].predicted, labels, settings)
    mean = Comparison(f"All {measured_images(analysis)}", _mean(analysis.test.predicted, labels, settings), mean_after)
    return [*filter(None, [worst_found(analysis)]), _worst(before, after), mean]


def _worst(before: MethodResult, after: MethodResult | None) -> Comparison:
    """Return the worst group on the test split before and after retraining."""
    title = f"Worst {'class' if before.by_class else 'group'}: {before.worst_group}"
    if after is not None and before.worst_group != after.worst_group:
        title += f" before, {after.worst_group} after"
    return Comparison(title, _worst_interval(before), None if after is None else _worst_interval(after))


def _worst_interval(result: MethodResult) -> Interval:
    group = result.worst
    return Interval(result.worst_group_accuracy, *((None, None) if group is None else (group.low, group.high)))


def _mean(predicted: IntArray, labels: IntArray, settings: Settings) -> Interval:
    table = _table(settings, predicted, labels, np.zeros_like(labels), ["all"], "mean")
    return Interval(float(table.accuracy[0]), float(table.low[0]), float(table.high[0]))


def choice(analysis: Analysis) -> ChoiceCard | None:
    """Return which grouping was chosen without group labels, and why; None where none was chosen."""
    record = _record(analysis)
    if analysis.results is None or record is None:
        return None
    name = shown_method(analysis)
    return ChoiceCard(
        record,
        _of_chosen_groups(analysis, analysis.results) if record.repaired else (),
        which_groups=_which_groups(analysis, record),
        left_alone="" if name is None else analysis.fits[name].left_alone,
        repairs=() if name is None else analysis.fits[name].repairs,
    )


def _of_chosen_groups(analysis: Analysis, results: Results) -> list[Comparison]:
    """Return what retraining on the chosen groups gave: the last layer, and where it was done more than it."""
    names = [name for name in analysis.fits if name.startswith(f"{AUTO}+") or name.endswith(f"@{AUTO}")]
    names = [name for name in names if name in results.methods]
    rows = [_worst(results.methods[ERM], results.methods[name]) for name in names]
    if len(rows) < 2:
        return rows
    fits = [analysis.fits[name] for name in names]
    kept = ("The repair that was kept" if fit.repairs else "The last layer" if fit.heads else "" for fit in fits)
    parts = (part or "The whole network" for part in kept)
    return [replace(row, name=f"{part}. {row.name}") for part, row in zip(parts, rows, strict=True)]
