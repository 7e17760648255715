"""The steps that infer groups, with what single sources need: early-stopped and twin networks, a choice among many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from exmap.auto import AUTO, AutoChoice, Exchanges, choose_groups, experiment
from exmap.data.missing import MissingImages
from exmap.groups import EDITED, ExMapGroups, edit_groups, make_source, needs_of
from exmap.groups.crossed import cross_groups
from exmap.groups.source import TRUE_GROUPS, explains
from exmap.methods import Part, parse_part
from exmap.model import collect_outputs
from exmap.model.training import train_model
from exmap.model.twins import train_twins
from exmap.pipeline import files
from exmap.pipeline.disk import save_arrays, slug
from exmap.pipeline.graph import DATA, Work, seed_of
from exmap.pipeline.kept import kept_arrays
from exmap.pipeline.plan import TRAIN, Plan, explained_name
from exmap.pipeline.provenance import options_in_use, plain_text
from exmap.pipeline.steps import chosen_groups, infer_groups, outputs_share
from exmap.pipeline.store import RunFolder
from exmap.records import Explained, Groups, Outputs
from exmap.registry import CLUSTERERS
from exmap.runtime import in_processes
from exmap.settings import AutoSettings, ClusterSettings

__all__ = ["CHOICE", "add_choice", "add_edited", "add_groups", "groups_name"]

CHOICE, EXCHANGE, REFERENCE, TWINS = "auto", "exchange", "reference", "twins"
REFERENCE_EPOCHS = 1  # of the early-stopped classifier that EIIL looks at
AUTO_SETTINGS = tuple(f"auto.{name}" for name in AutoSettings.model_fields if name not in ("repair", "most_images"))


def groups_name(part: Part, split: str) -> str:
    """Return the name of the step that infers a source's groups of a split."""
    return f"groups-{split}-{slug(str(part))}"


def add_groups(plan: Plan, part: Part, split: str) -> str:
    """Add the step that infers a source's groups of a split, and all that it needs."""
    source: Any = make_source(part, plan.settings)
    seen = plan.explain(split) if split == plan.split or explains(source) else _outputs(plan, split)
    if plan.clusterer is not None and isinstance(source, ExMapGroups):
        source = replace(source, clusterer=plan.clusterer)
    needs = {name: _need(plan, name, split) for name in needs_of(source)}
    earlier = _earlier(plan, split) if part == Part(AUTO) else None

    def given(work: Work) -> dict[str, Any]:
        return {name: _given(plan, work, name, step, split) for name, step in needs.items()}

    def make(work: Work) -> Groups:
        found = infer_groups(source, work[seen], given(work), seed=seed_of(work, "groups"))
        return found if earlier is None else cross_groups(found, earlier.groups(len(found)))

    return plan.add(
        groups_name(part, split),
        "cluster",
        f"groups of {plan.images_of(split)} by {part}",
        make,
        **_kept(seen, split),
        needs=(seen, *needs.values()),
        settings={
            "source": str(part),
            "options": source_record(source),
            **plan.settings_of("seed", *getattr(source, "sections", ())),
            **({} if earlier is None else {"earlier": earlier.identity}),
        },
    )


def _outputs(plan: Plan, split: str) -> str:
    """Add the step that collects what the classifier says of a split that nobody explains, and return its name."""

    def explained(work: Work, outputs: Outputs) -> Explained:
        of = work.task.split(split)
        return Explained(of.name, of.ids, of.labels, of.class_names, outputs)

    def make(work: Work) -> Explained:
        share = partial(outputs_share, split=work.task.split(split), move=work.folder is not None, listen=work.listen)
        return explained(work, in_processes(work.runtime, share, work[TRAIN]))

    def load(work: Work, folder: Path) -> Explained:
        return explained(work, files.load_outputs(folder, len(work.task.split(split))))

    return plan.add(
        f"outputs-{split}",
        "cluster",
        f"outputs of {plan.images_of(split)}",
        make,
        save=lambda _, record, folder: files.save_outputs(record.outputs, folder),
        load=load,
        needs=(DATA, TRAIN),
        images=True,
    )


@dataclass(frozen=True)
class _Earlier:
    """The chosen groups of the round before, of one split.

    Attributes
    ----------
    identity : str
        The digest of what they were made from.
    groups : callable
        Returns them, of so many images.
    """

    identity: str
    groups: Callable[[int], Groups]


def _earlier(plan: Plan, split: str) -> _Earlier | None:
    """Return the chosen groups of the round before; None where there is none, or it has no groups of this split."""
    if plan.earlier is not None:
        given = plan.earlier.get(split)
        return None if given is None else _Earlier("given", lambda _: given)
    if plan.settings.groups.earlier is None:
        return None
    run, name = RunFolder(plan.settings.groups.earlier), groups_name(Part(AUTO), split)
    record = run.record(name)
    if record is None:
        return None

    def groups(images: int) -> Groups:
        with run.reading(name) as folder:
            return files.load_groups(folder, images)

    return _Earlier(record["identity"], groups)


def _kept(explained: str, split: str) -> dict[str, Any]:
    """Return how groups of an explained split are saved and loaded."""
    return {
        "save": lambda work, groups, folder: files.save_groups(groups, work[explained], folder),
        "load": lambda work, folder: files.load_groups(folder, len(work.task.split(split))),
    }


def _need(plan: Plan, name: str, split: str) -> str:
    """Add the step that makes what a source needs."""
    if name == TRUE_GROUPS:
        return DATA
    known = {"reference": _reference, "twins": _twins, "choice": add_choice}
    return known[name](plan) if name in known else add_groups(plan, parse_part(name), split)


def _given(plan: Plan, work: Work, name: str, step: str, split: str) -> Any:
    """Return what a source needs of a split."""
    if name == TRUE_GROUPS:
        return work.task.split(split).true_groups()
    if name == "choice":
        return chosen_groups(
            work[CHOICE],
            work[explained_name(split)],
            plan.split,
            "val",
            seed=plan.settings.seed,
            listen=work.listen,
        )
    record = work[step]
    return record[split] if name in ("reference", "twins") else record


def _reference(plan: Plan) -> str:
    settings = plan.settings

    def make(work: Work) -> dict[str, Outputs]:
        task, short = work.task, settings.train.model_copy(update={"epochs": REFERENCE_EPOCHS})
        model = plan.begin(work)
        train_model(model, task.train, None, short, settings.runtime, seed=seed_of(work, "train"), listen=work.listen)
        return {s.name: collect_outputs(model, s, listen=work.listen) for s in (task.train, task.val)}

    def save(_: Work, record: Mapping[str, Outputs], folder: Path) -> None:
        for name, outputs in record.items():
            (folder / name).mkdir(exist_ok=True)
            files.save_outputs(outputs, folder / name)

    return plan.add(
        REFERENCE,
        "cluster",
        "early-stopped classifier",
        make,
        save=save,
        load=lambda _, folder: {name: files.load_outputs(folder / name) for name in ("train", "val")},
        needs=(DATA,),
        settings={**plan.training, "epochs": REFERENCE_EPOCHS},
        images=True,
    )


def _twins(plan: Plan) -> str:
    settings = plan.settings

    def make(work: Work) -> dict[str, Any]:
        task = work.task
        twins = train_twins(
            plan.begin(work),
            task.train,
            task.val,
            settings.train,
            settings.runtime,
            seed=seed_of(work, "twins"),
            listen=work.listen,
        )
        return {
            "train": twins.train_predicted.astype(np.int64),
            "val": twins.val_predicted.astype(np.int64),
        }

    return plan.add(
        TWINS,
        "cluster",
        "twin networks",
        make,
        save=lambda _, record, folder: save_arrays(record, folder / "twins.safetensors"),
        load=lambda _, folder: kept_arrays(folder / "twins.safetensors", train=(None,), val=(None,)),
        needs=(DATA,),
        settings=plan.training,
        images=True,
    )


def add_exchange(plan: Plan, judged: str) -> str:
    """Add the step that exchanges properties between images, and asks the classifier again."""

    def make(work: Work) -> Exchanges:
        split = work.task.val
        if isinstance(split.images, MissingImages):
            return Exchanges()
        return experiment(split, work[judged], work[TRAIN], seed=seed_of(work, EXCHANGE), listen=work.listen)

    return plan.add(
        EXCHANGE,
        "cluster",
        "exchange of properties",
        make,
        save=lambda _, exchanges, folder: files.save_exchanges(exchanges, folder),
        load=lambda _, folder: files.load_exchanges(folder),
        needs=(judged, TRAIN),
        settings=plan.settings_of("seed"),
        looks=True,
    )


def add_choice(plan: Plan) -> str:
    """Add the step that chooses a grouping without group labels, and says whether there is a shortcut at all."""
    explained, judged = plan.explained, plan.explain("val")  # the classifier knows its training images by heart
    exchange = add_exchange(plan, judged)

    def make(work: Work) -> AutoChoice:
        return choose_groups(
            work[explained],
            judged=None if judged == explained else work[judged],
            exchanges=work[exchange],
            settings=plan.settings.auto,
            seed=seed_of(work, AUTO),
            listen=work.listen,
        )

    return plan.add(
        CHOICE,
        "cluster",
        "choice of a grouping",
        make,
        save=lambda work, choice, folder: files.save_choice(choice, work[explained], work[judged], folder),
        load=lambda _, folder: files.load_choice(folder),
        needs=(explained, judged, exchange),
        settings={
            **plan.settings_of("seed", *AUTO_SETTINGS),
            **plan.most_images("auto.most_images", plan.split, "val"),
        },
    )


def add_edited(plan: Plan) -> str:
    """Add the groups that a person edited."""
    edits = plan.settings.edits
    assert edits is not None
    groups = add_groups(plan, parse_part(edits.source), plan.split)

    def make(work: Work) -> Groups:
        return edit_groups(work[groups], edits, work[plan.explained])

    return plan.add(
        groups_name(Part(EDITED), plan.split),
        "retrain",
        "edited groups",
        make,
        **_kept(plan.explained, plan.split),
        needs=(plan.explained, groups),
        settings=plan.settings_of("edits"),
    )


def source_record(source: Any) -> dict[str, Any]:
    """Return a source's options as JSON-able values, for the identity of its groups."""
    record: dict[str, Any] = {}
    for name in getattr(source, "__dataclass_fields__", {}):
        value = getattr(source, name)
        if isinstance(value, ClusterSettings):
            record[name] = {
                **value.model_dump(mode="json"),
                "options": options_in_use(CLUSTERERS, value.method, value.options),
            }
        else:
            record[name] = plain_text(value)
    return record
