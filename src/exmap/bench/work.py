"""What a bench computes, task by task: the run that cells share, the groups, the fits.

The tasks of one data set and seed share a run folder: the classifier and the heatmaps are those of ``exmap run``, made
by its own stages; what is only needed here lies beside them, in stages of their own. A fit measures one cell for every
way of choosing from it.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import nn

from exmap import stages
from exmap.artifacts import read_groups, read_heatmaps, read_outputs, write_groups, write_outputs
from exmap.auto.choice import AUTO
from exmap.bench.grid import Cell
from exmap.bench.methods import ERM, Method, Part, text_of
from exmap.config import Settings, change_settings
from exmap.data import Split, Task, build_task
from exmap.explain import reduce_heatmaps
from exmap.groups import (
    ClassGroups,
    EIILGroups,
    ErrorSetGroups,
    Evidence,
    ExMapGroups,
    GeorgeGroups,
    GroupSource,
    OracleGroups,
    RandomGroups,
    XRMGroups,
)
from exmap.model import collect_outputs, find_last_layer, initial_model, replace_head, save_weights
from exmap.model.training import train_model
from exmap.model.twins import train_twins
from exmap.records import Groups, Listener, Outputs, Progress
from exmap.retrain import AFR, LEARNERS, Head, Selection
from exmap.store import RunFolder, StagePart, digest_of, read_json, save_arrays, write_json

__all__ = [
    "NEEDS",
    "CellPlace",
    "Need",
    "choose_grouping",
    "explain_other",
    "fit_cells",
    "infer_groups",
    "prepare_run",
    "reference_outputs",
    "twins_outputs",
]

REFERENCE_EPOCHS = 1  # of the early-stopped classifier that EIIL looks at
REFERENCE, TWINS, CHOICE = "reference", "twins", "choice"  # stages that one source needs


@dataclass(frozen=True)
class CellPlace:
    """Where the results of a cell lie.

    Attributes
    ----------
    folder : Path
        Of the bench.
    cell : Cell
    """

    folder: Path
    cell: Cell

    @property
    def path(self) -> Path:
        """The JSON file; the file of what was classified right stands beside it."""
        return self.folder / "cells" / self.cell.dataset / f"{slug(str(self.cell.method))}-seed{self.cell.seed}.json"

    @property
    def identity(self) -> str:
        """What the cell depends on: the settings of its run, the seed and the method."""
        tree = stages.identity_part(self.cell.settings)
        return digest_of({"settings": tree, "method": str(self.cell.method)})

    def read(self) -> dict[str, Any] | None:
        """Return the finished cell, or None if there is none or it was made otherwise."""
        found = read_json(self.path)
        whole = isinstance(found, dict) and found.get("identity") == self.identity and found.get("status") == "done"
        return found if whole and self.path.with_suffix(".safetensors").is_file() else None

    def write(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write the JSON file, and return what stands in it."""
        cell = self.cell
        head = {"format": 1, "dataset": cell.dataset, "method": str(cell.method), "seed": cell.seed}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {**head, **result, "identity": self.identity})
        written: dict[str, Any] = read_json(self.path)
        return written


def slug(text: str) -> str:
    """Return a name for files: readable, and another one for another text.

    Examples
    --------
    >>> slug("exmap+dfr")
    'exmap+dfr'
    >>> slug("exmap[size=7]+dfr")
    'exmap_size=7_+dfr-3035'
    """
    plain = re.sub(r"[^A-Za-z0-9+@=.,_-]", "_", text)
    return plain if plain == text and len(text) <= 80 else f"{plain[:80]}-{digest_of(text)[:4]}"


def _job(folder: Path, settings: Settings, listen: Listener) -> stages.Job:
    return stages.Job(settings, build_task(settings.data, settings.images, listen=listen), RunFolder(folder), listen)


def prepare_run(folder: Path, settings: Settings, *, listen: Listener) -> None:
    """Train the classifier and explain the split that is grouped, as ``exmap explain`` does."""
    run, settings = stages.open_run(folder, settings)
    stages.run_stages(run, settings, until="explain", listen=listen, say=lambda _: None)


def _shared(job: stages.Job, name: str, identity: Mapping[str, Any], make: Callable[[StagePart], None]) -> None:
    """Make something that several cells share, unless it is there."""
    trained = job.run.record("train") or {}
    identity = {"train": trained.get("identity"), **identity}
    if not job.run.is_finished(name, identity):
        with job.run.begin(name, identity) as part:
            make(part)


def explain_other(folder: Path, settings: Settings, split: str, *, listen: Listener) -> None:
    """Explain a split that the run itself does not group: the training split for whole-network learners, say."""
    job = _job(folder, change_settings(settings, groups__split=split), listen)
    identity = {"explain": settings.explain.model_dump(mode="json"), "split": split}
    _shared(job, f"explain-{split}", identity, lambda part: stages.explain(job, part))


def reference_outputs(folder: Path, settings: Settings, *, listen: Listener) -> None:
    """Train a classifier for a short while only, and keep what it says of training and validation split (EIIL)."""
    job = _job(folder, settings, listen)

    def make(part: StagePart) -> None:
        task, short = job.task, settings.train.model_copy(update={"epochs": REFERENCE_EPOCHS})
        model = initial_model(settings.model, task.n_classes, seed=job.seed("model"))
        train_model(model, task.train, None, short, settings.runtime, seed=job.seed("train"), listen=listen)
        write_outputs({s.name: collect_outputs(model, s, listen=listen) for s in (task.train, task.val)}, part.path)

    _shared(job, REFERENCE, {"epochs": REFERENCE_EPOCHS}, make)


def twins_outputs(folder: Path, settings: Settings, *, listen: Listener) -> None:
    """Train XRM's two networks, and keep a prediction that is wrong where either of them is."""
    job = _job(folder, settings, listen)

    def make(part: StagePart) -> None:
        task = job.task
        model = initial_model(settings.model, task.n_classes, seed=job.seed("model"))
        twins = train_twins(
            model, task.train, task.val, settings.train, settings.runtime, seed=job.seed("twins"), listen=listen
        )
        predicted = {task.train.name: twins.train_predicted, task.val.name: twins.val_predicted}
        save_arrays(
            {name: values.astype(np.int64) for name, values in predicted.items()}, part.path / "twins.safetensors"
        )

    _shared(job, TWINS, {}, make)


def choose_grouping(folder: Path, settings: Settings, *, listen: Listener) -> None:
    """Choose a grouping among many, and say whether there is a shortcut at all, as ``groups.auto`` does."""
    job = _job(folder, settings, listen)
    judged = job.run.stage(explained_in(settings, job.task.val.name))
    identity = {
        "explain": settings.explain.model_dump(mode="json"),
        "auto": settings.auto.model_dump(mode="json"),
        "seed": settings.seed,
    }
    _shared(job, CHOICE, identity, lambda part: stages.choose_grouping(job, part, judged))


@dataclass(frozen=True)
class Need:
    """What one source needs beside heatmaps and features: the stage, the task that makes it, and how that is called."""

    stage: str
    title: str
    make: Callable[..., None]
    judged: bool = False  # whether the validation split must be explained for it


NEEDS = {
    EIILGroups.name: Need(REFERENCE, "early-stopped classifier", reference_outputs),
    XRMGroups.name: Need(TWINS, "twin networks", twins_outputs),
    AUTO: Need(CHOICE, "choice of a grouping", choose_grouping, judged=True),
}


def infer_groups(folder: Path, settings: Settings, part: Part, split: str, *, listen: Listener) -> None:
    """Infer the groups that a source makes of a split."""
    job = _job(folder, settings, listen)
    chosen = _split(job.task, split)

    def make(place: StagePart) -> None:
        start, explained = time.perf_counter(), job.run.stage(explained_in(settings, split))
        evidence = stages.gather_evidence(chosen, explained)
        if part.name == AUTO:
            groups = stages.chosen_groups(job, job.run.stage(CHOICE), chosen, explained)
        else:
            source, evidence = _source(job, part, chosen, evidence)
            groups = source.infer(evidence, seed=job.seed("groups"))
        note = write_groups(groups, chosen, evidence.predicted, place.path)
        write_json(place.path / "clusters.json", {groups.source: note, "seconds": time.perf_counter() - start})

    identity = {
        "explain": settings.explain.model_dump(mode="json"),
        "cluster": settings.cluster.model_dump(mode="json"),
        "george": settings.groups.george.model_dump(mode="json"),
        "seed": settings.seed,
    }
    if (need := NEEDS.get(part.name)) is not None:
        identity[need.stage] = (job.run.record(need.stage) or {}).get("identity")
    _shared(job, groups_in(part, split), identity, make)


def explained_in(settings: Settings, split: str) -> str:
    """Return the name of the stage that explained a split."""
    return "explain" if split == settings.groups.split else f"explain-{split}"


def groups_in(part: Part, split: str) -> str:
    """Return the name of the stage that holds a source's groups of a split."""
    return f"groups-{split}-{slug(str(part))}"


def _split(task: Task, name: str) -> Split:
    return task.train if name == "train" else task.val


def _source(job: stages.Job, part: Part, split: Split, evidence: Evidence) -> tuple[GroupSource, Evidence]:
    """Return a source of groups, and the evidence as its options want it."""
    options = dict(part.options)
    if (size := options.pop("size", None)) is not None and evidence.heatmaps is not None:
        maps = read_heatmaps(job.run.stage(explained_in(job.settings, split.name))).values
        evidence = replace(evidence, heatmaps=reduce_heatmaps(maps, size))
    if part.name == OracleGroups.name:
        return stages.oracle_source(split), evidence
    if part.name == EIILGroups.name:
        outputs = read_outputs(job.run.stage(REFERENCE), split.name)
        return EIILGroups(outputs.logits, **options), evidence
    if part.name == XRMGroups.name:
        predicted = load_file(job.run.stage(TWINS) / "twins.safetensors")[split.name]
        return XRMGroups(predicted), evidence
    settings = with_options(job.settings, part)
    exmap = ExMapGroups(settings.cluster)
    if part.name == ExMapGroups.name:
        return exmap, evidence
    if part.name == GeorgeGroups.name:
        return GeorgeGroups(settings.groups.george), evidence
    if part.name == RandomGroups.name:
        return RandomGroups(exmap.infer(evidence, seed=job.seed("groups"))), evidence
    return ClassGroups() if part.name == ClassGroups.name else ErrorSetGroups(), evidence


def with_options(settings: Settings, part: Part) -> Settings:
    """Return settings with the options of a clustered source in them.

    Raises
    ------
    SettingsError
        For a value out of its range.
    """
    section = {GeorgeGroups.name: "groups.george", ExMapGroups.name: "cluster", RandomGroups.name: "cluster"}
    if part.name not in section:
        return settings
    sizes = [f"explain.size={value}" for key, value in part.options if key == "size"]
    others = [f"{section[part.name]}.{key}={text_of(value)}" for key, value in part.options if key != "size"]
    return change_settings(settings, [*sizes, *others])


def fit_cells(
    folder: Path, run_folder: Path, cells: tuple[Cell, ...], keep_models: bool, *, listen: Listener
) -> list[dict[str, Any]]:
    """Fit a learner once, choose from it by every cell's selection, and write the cells.

    Parameters
    ----------
    folder : Path
        Of the bench.
    run_folder : Path
    cells : tuple of Cell
        They differ in their selection alone.
    keep_models : bool
        Whether the weights are kept too (of a last layer's first repeat).
    """
    first = cells[0]
    job = _job(run_folder, first.settings, listen)
    start = time.perf_counter()
    fitted = _fitted(job, cells)
    seconds = time.perf_counter() - start
    results = []
    for cell, found in zip(cells, fitted, strict=True):
        place = CellPlace(folder, cell)
        if keep_models:
            path = folder / "models" / cell.dataset / place.path.with_suffix(".safetensors").name
            path.parent.mkdir(parents=True, exist_ok=True)
            save_weights(found.model(), path)
        results.append(_measured(job, place, found, seconds))
    return results


@dataclass(frozen=True)
class _Fitted:
    """What came of a fit: predictions of R repeats for the test split, shape (R, N), notes, and the model."""

    predicted: NDArray[np.int64]
    notes: Mapping[str, Any]
    model: Callable[[], nn.Module]


def _fitted(job: stages.Job, cells: tuple[Cell, ...]) -> list[_Fitted]:
    """Fit, and return what came of it for each cell."""
    method, settings, task = cells[0].method, job.settings, job.task
    tested = read_outputs(job.run.stage("explain"), task.test.name)
    if (left_alone := _left_alone(job, method)) or method.learner.name == ERM:
        return [_Fitted(tested.predicted[None], left_alone, partial(stages.trained_model, job)) for _ in cells]
    kind: Any = LEARNERS[method.learner.name]
    fields = {field.name for field in dataclasses.fields(kind)}
    options = {key: value for key, value in settings.retrain.model_dump().items() if key in fields}
    options |= dict(method.learner.options)
    if not method.whole_network:
        return [_heads(job, cell, kind, options, tested) for cell in cells]
    learner = kind(
        train=settings.train.model_copy(update={"select": "worst_class"}),
        runtime=settings.runtime,
        seed=job.seed("learner", kind.name),
        **options,
    )
    groups = None if method.source is None else _groups(job, method.source, task.train)
    selections = [Selection(task.val, _groups(job, cell.method.selection, task.val)) for cell in cells]
    model = initial_model(settings.model, task.n_classes, seed=job.seed("model"))
    models = learner.fit_choices(model, task.train, groups, selections, listen=job.listen)
    results = []
    for fitted, history in zip(models, learner.history_, strict=True):
        epoch = max((row["epoch"] for row in history if row["kept"]), default=None)
        notes = {"epoch": epoch, "notes": list(learner.notes_)}
        predicted = collect_outputs(fitted, task.test, listen=job.listen).predicted[None]
        results.append(_Fitted(predicted, notes, partial(copy.copy, fitted)))
    return results


def _left_alone(job: stages.Job, method: Method) -> dict[str, Any]:
    """Return why the classifier is left as it is where groups are chosen and no shortcut was found, else nothing."""
    if method.source is None or method.source.name != AUTO:
        return {}
    record = read_json(job.run.stage(CHOICE) / "auto.json")
    return {} if record["repaired"] else {"notes": ["the classifier is left as it is", *record["remarks"]]}


def _heads(job: stages.Job, cell: Cell, kind: Any, options: Mapping[str, Any], tested: Outputs) -> _Fitted:
    """Fit every repeat of a last-layer learner."""
    grouped, method = job.grouped, cell.method
    outputs = read_outputs(job.run.stage("explain"), grouped.name)
    part = method.source or method.selection
    groups = None if part is None else _groups(job, part, grouped)
    model = stages.trained_model(job)
    last = find_last_layer(model, grouped.images.batch(np.arange(2, dtype=np.int64)))
    given: dict[str, Any] = {}
    if kind is AFR:
        given["head"] = Head(*last.by_class())
    predicted, heads = [], []
    for repeat in range(job.settings.retrain.repeats):
        learner = kind(**options, seed=job.seed("retrain", repeat))
        head = learner.fit_head(outputs.features, grouped.labels, groups, n_classes=grouped.n_classes, **given)
        predicted.append(head.predict(tested.features))
        heads.append(head)
        job.listen(Progress("retrain", repeat + 1, job.settings.retrain.repeats, "heads"))
    notes = {"chosen": [dict(head.chosen) for head in heads], "notes": list(heads[0].notes)}
    return _Fitted(np.stack(predicted), notes, lambda: replace_head(model, last, heads[0].weight, heads[0].bias))


def _groups(job: stages.Job, part: Part | None, split: Split) -> Groups:
    assert part is not None
    return read_groups(job.run.stage(groups_in(part, split.name)), part.name)


def _measured(job: stages.Job, place: CellPlace, found: _Fitted, seconds: float) -> dict[str, Any]:
    """Write a cell: what was classified right first, then what was measured."""
    cell, test = place.cell, job.task.test
    method, settings = cell.method, cell.settings
    index, _ = stages.reported_groups(test)
    place.path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"correct": (found.predicted == test.labels).astype(np.uint8), "group": index}
    save_arrays(arrays, place.path.with_suffix(".safetensors"))
    shared = ["train", explained_in(settings, settings.groups.split)]
    result: dict[str, Any] = {
        "status": "done",
        **stages.measure_on_test(job.task, settings, found.predicted, str(method)),
        **found.notes,
        "labels_used": _labels_used(job, method),
    }
    part, used = next(iter(method.groupings(settings.groups.split)), (None, ""))
    if part is not None and part.name == ClassGroups.name and method.source is None:
        part = None  # a choice by classes says nothing of groups
    if part is not None:
        split = _split(job.task, used)
        stage = groups_in(part, split.name)
        note = read_json(job.run.stage(stage) / "clusters.json")
        result["n_clusters"] = [fit["n_clusters"] for fit in note[part.name]["fits"]]
        result["groups_of"] = split.name
        if (agreement := stages.agreement_with_truth(_groups(job, part, split), split)) is not None:
            result["group_inference"] = agreement
        shared.append(explained_in(settings, split.name))

    def seconds_of(stage: str) -> float:
        return float((job.run.record(stage) or {}).get("seconds", 0.0))

    own = 0.0 if part is None else note["seconds"]
    if part is not None and (need := NEEDS.get(part.name)) is not None:
        own += seconds_of(need.stage)
    result["seconds"] = {
        "shared": round(sum(map(seconds_of, dict.fromkeys(shared))), 3),
        "groups": round(own, 3),
        "fit": round(seconds, 3),
    }
    return place.write(result)


def _labels_used(job: stages.Job, method: Method) -> dict[str, list[str]]:
    def named(part: Part | None) -> list[str]:
        if part is None or part.name == ClassGroups.name:
            return ["class labels"]
        return ["true groups"] if part.name == OracleGroups.name else [f"{part} groups"]

    chosen = stages.selection_labels(job.settings) if method.learner.name == ERM else named(method.selection)
    return {
        "training": ["class labels"],
        "fitting": named(method.source),
        "selection": chosen,
        "evaluation": stages.evaluation_labels(job.task),
    }
