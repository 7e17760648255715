"""The last steps of a run: how far to trust heatmaps and groups, what every method achieves, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exmap.analysis import Fit, reported_groups
from exmap.auto import AUTO
from exmap.data import Split, Task
from exmap.data.missing import MissingImages
from exmap.describe import describe
from exmap.draw import save_strategies
from exmap.evaluation import group_agreement, measure
from exmap.groups import EDITED, ClassGroups, ExMapGroups
from exmap.groups.source import CLASS_LABELS, TRUE_LABELS
from exmap.methods import ERM, Method, Part
from exmap.pipeline.disk import write_json
from exmap.pipeline.graph import DATA, Work, seed_of
from exmap.pipeline.kept import kept_json
from exmap.pipeline.plan import TEST, TRAIN, Plan
from exmap.pipeline.plan_groups import CHOICE, add_choice
from exmap.records import Groups
from exmap.report.compose import write_page
from exmap.results import (
    GroupInference,
    MethodResult,
    Results,
    StrategyDescription,
    Trust,
    descriptions_from_json,
)
from exmap.runtime import generator
from exmap.settings import Settings
from exmap.trust import measure_trust

__all__ = ["add_outcome", "described_name", "agreement_with_truth", "labels_of", "labels_used", "measure_on_test"]

TRUST, EVALUATE, REPORT = "trust", "evaluate", "report"


def measure_on_test(task: Task, settings: Settings, predicted: NDArray[np.int64], name: str) -> MethodResult:
    """Return what is reported of a method's predictions, shape (R, N), by true group or, without those, by class."""
    test, truth = task.test, task.test.truth
    index, names = reported_groups(test)
    train_index, train_names = reported_groups(task.train)
    counts = np.bincount(train_index, minlength=len(names)) if train_names == names else None
    return measure(
        predicted,
        test.labels,
        index,
        names,
        rng=generator(settings.seed, "bootstrap", name),
        train_counts=counts,
        attributes=() if truth is None else truth.attributes,
        coordinates=None if truth is None else truth.coordinates,
        bootstrap=settings.evaluate.bootstrap,
        confidence=settings.evaluate.confidence,
    )


def agreement_with_truth(groups: Groups, split: Split) -> GroupInference | None:
    """Return how well groups follow the true groups of their split, or None where those are not known."""
    if split.truth is None:
        return None
    truth = split.true_groups()
    return group_agreement(groups.index, truth.index, split.labels, truth.names)


def labels_used(settings: Settings, task: Task, **steps: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the kinds of labels that each step of a method used."""
    selected = () if settings.train.select == "last" else (CLASS_LABELS,)
    reported = (CLASS_LABELS,) if task.test.truth is None else (TRUE_LABELS,)
    given = {name: tuple(labels) for name, labels in steps.items()}
    return {"training": (CLASS_LABELS,), "epoch_selection": selected, **given, "evaluation": reported}


def labels_of(part: Part | None, *, oracle: bool) -> tuple[str, ...]:
    """Return the kind of labels that a choice by the worst group of a source uses.

    Parameters
    ----------
    part : Part or None
        The source; None, and classes, are the class labels.
    oracle : bool
        Whether the source sees the true groups.
    """
    if part is None or part.name == ClassGroups.name:
        return (CLASS_LABELS,)
    return (TRUE_LABELS,) if oracle else (f"{part} groups",)


def add_outcome(plan: Plan, groups: Mapping[str, str], methods: Sequence[Method], fits: Sequence[str]) -> None:
    """Add the steps ``trust``, ``evaluate`` and ``report`` to a plan.

    Parameters
    ----------
    plan : Plan
    groups : mapping of str to str
        The steps that infer groups of the explained split, by source.
    methods : sequence of Method
    fits : sequence of str
        The steps that fit them.
    """
    settings = plan.settings
    _add_trust(plan, groups[ExMapGroups.name])
    described = [
        _add_description(plan, source, groups[source]) for source in (ExMapGroups.name, AUTO) if source in groups
    ]
    chosen = [add_choice(plan)] if settings.groups.auto else []

    def evaluate(work: Work) -> Results:
        return evaluated(settings, work, plan.explained, groups, methods, fits, trust=work[TRUST])

    needs = (DATA, TEST, plan.explained, TRUST, *groups.values(), *fits, *chosen)
    plan.add(
        EVALUATE,
        "evaluate",
        "results",
        evaluate,
        save=lambda _, results, folder: write_json(folder / "results.json", results.to_json()),
        load=lambda _, folder: Results.from_json(kept_json(folder / "results.json"), where=folder / "results.json"),
        needs=needs,
        settings=plan.settings_of("seed", "evaluate"),
    )

    def report(work: Any) -> None:
        analysis = work.analysis()
        write_page(analysis, work.folder / "report.html", listen=work.listen)
        save_strategies(analysis, work.folder / "strategies.png")

    plan.add(REPORT, "report", "report", report, needs=(EVALUATE, *described, *needs), looks=True)


def described_name(source: str) -> str:
    """Return the name of the step that describes a source's groups."""
    return f"describe-{source}"


def _add_description(plan: Plan, source: str, groups: str) -> str:
    """Add the step that says how the images of each group differ from the others of their class."""
    chosen = [add_choice(plan)] if plan.settings.groups.auto else []

    def make(work: Work) -> tuple[StrategyDescription, ...]:
        return describe(
            work[plan.explained],
            work[groups],
            work.task.split(plan.split),
            record=work[CHOICE].record if chosen else None,
            seed=seed_of(work, "describe"),
            listen=work.listen,
        )

    return plan.add(
        described_name(source),
        "evaluate",
        f"description of the groups by {source}",
        make,
        save=lambda _, rows, folder: write_json(folder / "descriptions.json", [each.to_json() for each in rows]),
        load=lambda _, folder: descriptions_from_json(
            kept_json(folder / "descriptions.json", list), where=folder / "descriptions.json"
        ),
        needs=(DATA, plan.explained, groups, *chosen),
        settings=plan.settings_of("seed"),
        looks=True,
    )


def _add_trust(plan: Plan, groups: str) -> None:
    settings, split = plan.settings, plan.split

    def make(work: Work) -> Trust:
        images = work.task.split(split)
        return measure_trust(
            work[plan.explained],
            work[groups],
            settings,
            model=lambda: work[TRAIN],
            split=None if isinstance(images.images, MissingImages) else images,
            clusterer=plan.clusterer,
            listen=work.listen,
        )

    plan.add(
        TRUST,
        "evaluate",
        "trust",
        make,
        save=lambda _, trust, folder: write_json(folder / "trust.json", trust.to_json()),
        load=lambda _, folder: Trust.from_json(kept_json(folder / "trust.json"), where=folder / "trust.json"),
        needs=(plan.explained, groups),
        settings=plan.settings_of("seed", "cluster", "explain"),
        looks=True,
    )


def evaluated(
    settings: Settings,
    work: Work,
    explained: str,
    groups: Mapping[str, str],
    methods: Sequence[Method],
    fits: Sequence[str],
    *,
    trust: Trust,
) -> Results:
    """Return what every method achieves on the test split, and how well groups follow the true ones."""
    task, tested = work.task, work[TEST]
    grouped = task.split(settings.groups.split)
    inferred: dict[str, Groups] = {source: work[name] for source, name in groups.items()}
    known = {str(method): method for method in methods}
    measured = {
        ERM: measure_on_test(task, settings, tested.predicted[None], ERM).changed(
            labels_used=labels_used(settings, task)
        )
    }
    for name in fits:
        for method, fit in work[name].items():
            measured[method] = _measured(task, settings, method, known.get(method), fit, inferred)
    agreement = {}
    for source, found in inferred.items():
        if (value := agreement_with_truth(found, grouped)) is not None:
            counts = dict(zip(found.names, found.counts().tolist(), strict=True))
            agreement[source] = value.changed(groups=counts)
    maps = work[explained].maps()
    clustered = {name: found for name, found in inferred.items() if name not in (AUTO, EDITED)}  # not made of others
    return Results(
        first_lines=tuple(f"{name}: {row.first_line}" for name, row in measured.items() if row.first_line),
        dataset=task.name,
        preset=settings.preset,
        seed=settings.seed,
        grouped_split=grouped.name,
        skipped_images=dict(task.skipped),
        data_notes=tuple(task.notes),
        methods=measured,
        group_inference=agreement,
        clusters={name: found.clusters.notes for name, found in clustered.items() if found.clusters},
        heatmaps={**maps.health(), "check": maps.check},
        auto=work[CHOICE].record if settings.groups.auto else None,
        trust=trust,
    )


def _measured(
    task: Task, settings: Settings, name: str, method: Method | None, fit: Fit, groups: Mapping[str, Groups]
) -> MethodResult:
    """Return what a fit achieves, with the labels it used and how it was chosen."""
    seed_name = "repair" if method is None else name
    result = measure_on_test(task, settings, fit.predicted, seed_name)
    more: dict[str, Any] = {"labels_used": _labels_of(settings, task, method, groups), "notes": fit.notes}
    more |= {"harm": fit.harm, "first_line": fit.first_line, "repairs": fit.repairs}
    more["left_alone"] = fit.left_alone
    if fit.heads:
        more["strengths"] = tuple(head.strength for head in fit.heads)
        if any(head.strength is None and head.chosen for head in fit.heads):  # other hyperparameters than a strength
            more["chosen"] = tuple(dict(head.chosen) for head in fit.heads)
    if fit.epoch is not None and method is not None:
        more["epoch"] = fit.epoch
    return result.changed(**more)


def _labels_of(
    settings: Settings, task: Task, method: Method | None, groups: Mapping[str, Groups]
) -> dict[str, tuple[str, ...]]:
    """Return the kinds of labels that each step of a method used; None is the repair of the whole network."""
    if method is None:
        return labels_used(settings, task, groups=(CLASS_LABELS,), tuning=(f"{AUTO} groups",))
    part = method.source or method.selection
    used = (CLASS_LABELS,) if part is None or str(part) not in groups else groups[str(part)].labels_used
    if not method.whole_network:
        tuned = f"{part} groups" if part is not None and TRUE_LABELS not in used else TRUE_LABELS
        return labels_used(settings, task, groups=used, tuning=(CLASS_LABELS,) if part is None else (tuned,))
    chosen = method.selection
    oracle = chosen is not None and str(chosen) in groups and TRUE_LABELS in groups[str(chosen)].labels_used
    return {**labels_used(settings, task, groups=used), "epoch_selection": labels_of(chosen, oracle=oracle)}
