"""The steps that fit methods: last layers, whole networks, and the repair that a choice of groups asks for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from exmap.analysis import Fit
from exmap.auto import AUTO, REPAIRED_BY
from exmap.errors import SettingsError
from exmap.groups import EDITED, edited_labels
from exmap.methods import ERM, Method, Part
from exmap.model import save_weights
from exmap.pipeline import files
from exmap.pipeline.disk import slug
from exmap.pipeline.fitting import fit_last_layer, fit_whole_network, harm_of_repair, repair_network
from exmap.pipeline.graph import DATA, Work
from exmap.pipeline.plan import TEST, TRAIN, Plan
from exmap.pipeline.plan_groups import CHOICE, add_choice, add_edited, add_groups
from exmap.pipeline.provenance import options_in_use
from exmap.registry import LEARNERS
from exmap.retrain import Cheapest

__all__ = ["REPAIRED", "add_methods", "add_repair", "add_repaired", "fit_name"]

REPAIR, REPAIRED = "repair", "repaired"
NOT_REPAIRED = "the choice of groups leaves the model alone, so the last layer is the classifier's own"


def fit_name(method: Method) -> str:
    """Return the name of the step that fits a method; methods that differ in their choice alone share a training."""
    shared = replace(method, selection=None) if method.whole_network else method
    return f"fit-{slug(str(shared))}"


def add_methods(plan: Plan, methods: Sequence[Method]) -> list[str]:
    """Add the steps that fit methods; those that differ in their choice alone are one training."""
    together: dict[str, list[Method]] = defaultdict(list)
    for method in methods:
        if method.learner.name != ERM:
            together[fit_name(method)].append(method)
    return [_fit(plan, name, of_one) for name, of_one in together.items()]


def _fit(plan: Plan, name: str, methods: list[Method]) -> str:
    """Add the step that fits methods which differ in their choice alone."""
    method = methods[0]
    if method.whole_network:
        return _fit_network(plan, name, methods)
    part = method.source or method.selection
    groups = None if part is None else _groups_of(plan, part, plan.split)
    of_choice = part == Part(AUTO)

    def make(work: Work) -> Any:
        left_alone = NOT_REPAIRED if of_choice and not work[CHOICE].repair else ""
        split, edits = work.task.split(plan.split), plan.settings.edits
        if part == Part(EDITED) and edits is not None:
            labels = edited_labels(edits, split.ids, split.labels, split.class_names, split.name)
            split = replace(split, labels=labels)
        return {
            str(method): fit_last_layer(
                method,
                plan.settings,
                work[TRAIN],
                split,
                work[plan.explained].outputs,
                None if groups is None else work[groups],
                None if plan.cross_fitted else work[TEST],
                left_alone=left_alone,
                listen=work.listen,
            )
        }

    needs = [TRAIN, TEST, plan.explained, *filter(None, [groups]), *([add_choice(plan)] if of_choice else [])]
    return _add_fit(plan, name, method, make, needs, images=False)


def _groups_of(plan: Plan, part: Part, split: str) -> str:
    if part == Part(EDITED) and split != plan.split:
        raise SettingsError(
            f"the edits are of groups of the {plan.split} split, but {plan.settings.retrain.learner} also needs those "
            f"of the {split} split; set retrain.learner=dfr, or remove the edits with edits=null"
        )
    return add_edited(plan) if part == Part(EDITED) else add_groups(plan, part, split)


def _fit_network(plan: Plan, name: str, methods: list[Method]) -> str:
    source, settings = methods[0].source, plan.settings
    groups = None if source is None else _groups_of(plan, source, "train")
    selections = {m.selection: _groups_of(plan, m.selection, "val") for m in methods if m.selection is not None}
    chosen = [method for method in methods if Part(AUTO) in (method.source, method.selection)]

    def make(work: Work) -> dict[str, Fit]:
        fits, fitted = {}, methods
        if chosen and not work[CHOICE].repair:
            left = Fit(work[TEST].predicted[None], notes=(NOT_REPAIRED,), left_alone=NOT_REPAIRED)
            fits = {str(method): left for method in chosen}
            fitted = [method for method in methods if method not in chosen]
        if not fitted:
            return fits
        return fits | fit_whole_network(
            fitted,
            settings,
            lambda: plan.begin(work),
            work.task,
            None if groups is None else work[groups],
            {part: work[step] for part, step in selections.items()},
            classifier=work[TRAIN],
            tested=work[TEST],
            listen=work.listen,
        )

    needs = [DATA, TRAIN, TEST, *filter(None, [groups]), *selections.values(), *([add_choice(plan)] if chosen else [])]
    return _add_fit(plan, name, methods[0], make, needs, images=True)


def _kept(plan: Plan) -> dict[str, Any]:
    """Return how fits are saved and loaded."""
    return {
        "save": lambda _, fits, folder: files.save_fits(fits, folder),
        "load": lambda work, folder: files.load_fits(folder, plan.network, len(work.task.test)),
    }


def _add_fit(
    plan: Plan, name: str, method: Method, make: Callable[[Work], Any], needs: Iterable[str], *, images: bool
) -> str:
    depends = plan.training
    if not method.whole_network:
        folds = ["evaluate.folds"] if plan.cross_fitted else []
        depends = plan.settings_of("seed", "retrain.repeats", *folds)
        depends |= plan.most_images("retrain.most_images", plan.split)
    return plan.add(
        name,
        "retrain",
        str(method),
        make,
        **_kept(plan),
        needs=needs,
        settings={
            "method": name,
            "options": options_in_use(LEARNERS, method.learner.name, plan.settings.retrain.options),
            **depends,
        },
        images=images,
    )


def add_repaired(plan: Plan, fit: str, method: Method, repair: str | None = None) -> str:
    """Add the weights of the classifier that a method repaired, as a file that loads into the same architecture.

    With the step `repair`, what was chosen there takes the method's place, where something was.
    """

    def make(work: Work) -> nn.Module:
        chosen: dict[str, Fit] = {} if repair is None else work[repair]
        fitted: Fit = chosen.get(REPAIRED_BY) or work[fit][str(method)]
        return fitted.repaired(work[TRAIN], work.task.split(plan.split))

    return plan.add(
        REPAIRED,
        "retrain",
        "repaired classifier",
        make,
        save=lambda _, model, folder: save_weights(model, folder / "model.safetensors"),
        load=lambda _, folder: plan.network(folder),
        needs=(TRAIN, fit, *filter(None, [repair])),
        settings={"method": str(method)},
    )


def add_repair(plan: Plan, fit: str) -> str:
    """Add the choice among repairs on the chosen groups, which is made where the last layer is seen not to suffice."""
    choice, settings = add_choice(plan), plan.settings
    groups, selection = (add_groups(plan, Part(AUTO), split) for split in ("train", "val"))

    def make(work: Work) -> Any:
        record = work[choice].record
        if not record.repaired or record.repair is None or record.repair.last_layer_suffices is not False:
            return {}
        fitted = repair_network(
            settings,
            work.task,
            work[groups],
            work[selection],
            classifier=work[TRAIN],
            tested=work[TEST],
            listen=work.listen,
        )
        return {REPAIRED_BY: fitted}

    return plan.add(
        REPAIR,
        "retrain",
        "cheapest repair on the chosen groups",
        make,
        **_kept(plan),
        needs=(choice, fit, DATA, TRAIN, TEST),
        asks=(groups, selection),
        settings={
            **plan.training,
            **plan.settings_of("auto.repair"),
            "harm": harm_of_repair(settings),
            "method": REPAIRED_BY,
            "options": options_in_use(LEARNERS, Cheapest.name, {}),
        },
        images=True,
    )
