"""An analysis with a test for a shortcut, to what an audit found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from exmap.auto import AUTO
from exmap.errors import DataError
from exmap.evaluation import group_table
from exmap.methods import ERM
from exmap.records import Groups, GroupTable, IntArray
from exmap.report import story
from exmap.report.outcome import shown_method
from exmap.results import AutoRecord, StrategyDescription, repairs_in_words
from exmap.results.findings import (
    Accuracy,
    AuditedImages,
    AuditedModel,
    Change,
    Findings,
    GroupFinding,
    RepairFinding,
)
from exmap.runtime import generator
from exmap.settings import Settings

if TYPE_CHECKING:
    from exmap.analysis import Analysis, Fit
    from exmap.data import Task

__all__ = ["findings_of"]

NEEDS_TRAINING_IMAGES = (
    " That needs the training images, which were not given here; in Python: exmap.analyze(model, images, "
    'train=training_images, settings=["auto.repair=auto"]).'
)


def findings_of(
    analysis: Analysis, *, model: AuditedModel | None = None, source: str = "", saved: str = ""
) -> Findings:
    """Return what an audit found.

    Parameters
    ----------
    analysis : Analysis
        Evaluated, with ``groups.auto``.
    model : AuditedModel, optional
        What the classifier is; by default its class.
    source : str
        Where the images were read from.
    saved : str
        Where the repaired classifier was written.

    Raises
    ------
    DataError
        If no test for a shortcut was made.
    """
    results = analysis.results
    record = None if results is None else results.auto
    if results is None or record is None:
        raise DataError("findings need the test for a shortcut; make it with auto=True, or exmap auto RUN_DIR")
    settings, explained, task = analysis.settings, analysis.explained, analysis.task
    groups = analysis.groups.get(AUTO, analysis.pseudo_groups)
    name = shown_method(analysis)
    fit = None if name is None or analysis.fits[name].left_alone else analysis.fits[name]
    described = {each.group: each for each in analysis.descriptions.get(groups.source, ())}
    return Findings(
        verdict=_verdict(record),
        first_line="" if name is None else analysis.fits[name].first_line,
        summary=story.finding(record),
        shortcuts=_shortcuts(record, described.values()),
        warnings=story.warnings(record),
        model=model or AuditedModel(name=type(analysis.network()).__name__, classes=explained.class_names),
        data=AuditedImages(
            name=task.name,
            source=source,
            images=len(explained),
            by_class=dict(zip(explained.class_names, _counts(explained.labels, explained.class_names), strict=True)),
            test_images=0 if task.cross_fitted else len(task.test),
            skipped=dict(task.skipped),
            ignored={kind: len(names) for kind, names in task.ignored.items()},
        ),
        classes=record.shortcut,
        exchanges=record.exchanges,
        overall=_overall(settings, analysis, fit),
        measured=_measured(analysis, name if fit is not None else None),
        measured_on=_measured_on(settings, task),
        grouping=record.chosen or "",
        groups=_groups(settings, analysis, groups, fit, described),
        repair=_repair(record, fit, analysis, saved),
        notes=(*task.notes, *(each.why for each in record.mislabelled)),
        seconds=results.seconds.get("total") if results.seconds else None,
        made_with=dict(analysis.made_by),
    )


def _verdict(record: AutoRecord) -> str:
    if record.found:
        return "shortcut"
    return "none" if any(row.found is not None for row in record.shortcut.values()) else "cannot say"


def _counts(labels: IntArray, names: Sequence[str]) -> list[int]:
    return [int(count) for count in np.bincount(labels, minlength=len(names))]


def _shortcuts(record: AutoRecord, described: Collection[StrategyDescription]) -> tuple[str, ...]:
    """Return the sentence of the group that goes against each shortcut, or that of its class."""
    said = []
    for name, row in record.shortcut.items():
        if not row.found:
            continue
        of_class = [each for each in described if each.class_name == name]
        against = [each for each in of_class if each.images == row.images] or sorted(of_class, key=lambda e: e.images)
        sentence = against[0].sentence if against else ""
        said.append(sentence or f"In class {name}: {row.why}")
    return tuple(said)


def _accuracies(
    settings: Settings, predicted: IntArray, labels: IntArray, index: IntArray, names: Sequence[str], title: str
) -> list[Accuracy]:
    table: GroupTable = group_table(
        predicted,
        labels,
        index,
        names,
        rng=generator(settings.seed, "findings", title),
        bootstrap=settings.evaluate.bootstrap,
        confidence=settings.evaluate.confidence,
    )
    rows = zip(table.accuracy.tolist(), table.low.tolist(), table.high.tolist(), strict=True)
    return [Accuracy(value=value, low=low, high=high) for value, low, high in rows]


def _overall(settings: Settings, analysis: Analysis, fit: Fit | None) -> Change:
    labels = analysis.task.test.labels
    one, all_ = np.zeros_like(labels), ["all"]
    return Change(
        name="all",
        images=len(labels),
        before=_accuracies(settings, analysis.test.predicted, labels, one, all_, "all")[0],
        after=None if fit is None else _accuracies(settings, fit.predicted, labels, one, all_, "all")[0],
    )


def _measured(analysis: Analysis, name: str | None) -> tuple[Change, ...]:
    """Return the accuracies by class, or by true group, that results hold."""
    assert analysis.results is not None
    methods = analysis.results.methods
    before, after = methods[ERM].group_accuracy, {} if name is None else methods[name].group_accuracy
    return tuple(
        Change(
            name=group,
            images=row.count,
            before=Accuracy(value=row.value, low=row.low, high=row.high),
            after=Accuracy(value=after[group].value, low=after[group].low, high=after[group].high)
            if group in after
            else None,
        )
        for group, row in before.items()
    )


def _measured_on(settings: Settings, task: Task) -> str:
    if task.cross_fitted:
        return (
            f"the same {len(task.val):,} images, in {settings.evaluate.folds} parts: each part by a last layer that "
            "was fitted to the others"
        )
    return f"{len(task.test):,} images of a second set"


def _groups(
    settings: Settings,
    analysis: Analysis,
    groups: Groups,
    fit: Fit | None,
    described: Mapping[int, StrategyDescription],
) -> tuple[GroupFinding, ...]:
    explained, counts = analysis.explained, groups.counts()
    before = _accuracies(settings, explained.predicted, explained.labels, groups.index, groups.names, "before")
    after: Sequence[Accuracy | None] = [None] * len(counts)
    if fit is not None and analysis.task.cross_fitted:  # else all of these images were fitted to
        after = _accuracies(settings, fit.predicted, explained.labels, groups.index, groups.names, "after")
    found = [
        GroupFinding(
            name=name,
            class_name=_class_of(groups, number, explained.class_names),
            images=int(counts[number]),
            before=before[number],
            after=after[number],
            description=described.get(number),
        )
        for number, name in enumerate(groups.names)
        if counts[number]
    ]
    return tuple(sorted(found, key=lambda group: group.before.value))


def _class_of(groups: Groups, number: int, class_names: Sequence[str]) -> str:
    return class_names[groups.classes[number]] if groups.classes else ""


def _repair(record: AutoRecord, fit: Fit | None, analysis: Analysis, saved: str) -> RepairFinding:
    found = [row.images for row in record.shortcut.values() if row.found and row.images]
    last = record.repair
    name = shown_method(analysis)
    left_alone = "" if name is None else analysis.fits[name].left_alone
    kept = "" if name is None else repairs_in_words(analysis.fits[name].repairs)
    last_layer = story.last_layer(record) if record.found else ""
    if last_layer and last is not None and last.last_layer_suffices is False and analysis.task.cross_fitted:
        last_layer += NEEDS_TRAINING_IMAGES
    return RepairFinding(
        repaired=fit is not None,
        why=" ".join(filter(None, (story.verdict(record, left_alone), last_layer, kept))),
        last_layer=last,
        minority_images=min(found) if found else None,
        enough_images=None if last is None or not found else last.images_needed is None,
        model=saved,
    )
