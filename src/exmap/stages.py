"""The stages as rows, and the runner that skips what is finished and makes again what its settings changed.

data -> train -> explain -> cluster -> (auto) -> retrain -> (repair) -> (edit) -> evaluate -> report. A row names the
settings a stage depends on and the function that makes its files; the stage before it is its input. Stages in brackets
are in some runs only. What the stages compute is in the packages below. ``docs/run-folder.md`` documents the files.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from joblib import Parallel, cpu_count, delayed
from numpy.typing import NDArray

from exmap.artifacts import (
    HEATMAP_FILES,
    heatmap_file,
    read_groups,
    read_heads,
    read_heatmaps,
    read_outputs,
    write_groups,
    write_heads,
    write_heatmaps,
    write_outputs,
)
from exmap.auto import choose_groups, find_candidates
from exmap.auto.choice import AUTO, JUDGED
from exmap.cluster import make_clusterer
from exmap.config import AutoSettings, RuntimeSettings, Settings, dump_settings, load_edits, parse_settings
from exmap.data import Images, Split, Task, build_task, dataset_names
from exmap.errors import DataError, RunFolderError, SettingsError, unknown_name
from exmap.evaluation import group_agreement, measure
from exmap.explain import composite_names, explain_split, explainer_names
from exmap.groups import (
    ClassGroups,
    ErrorSetGroups,
    Evidence,
    ExMapGroups,
    GeorgeGroups,
    GroupSource,
    OracleGroups,
    RandomGroups,
    check_channels,
    check_george,
    edit_groups,
    source_names,
)
from exmap.model import (
    LastLayer,
    build_model,
    collect_outputs,
    find_last_layer,
    fit,
    initial_model,
    load_weights,
    replace_head,
    save_weights,
)
from exmap.model.batches import is_first
from exmap.model.training import FileCheckpoint
from exmap.records import Groups, Heatmaps, IntArray, Listener, Progress, silent
from exmap.report import strategies_figure
from exmap.reporting import Shown, write_report
from exmap.retrain import DFR, SUBG, Head, Selection
from exmap.retrain.balance import balanced_size
from exmap.runtime import Company, child_seed, generator, in_processes, launched, launched_runtime, process_number
from exmap.store import (
    RunFolder,
    StagePart,
    differences,
    digest_of,
    digest_of_file,
    read_json,
    write_json,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["STAGES", "Stage", "assist_run", "open_run", "report_run", "run_stages", "stage_names", "with_edits"]

NOT_IDENTITY = {  # where things lie, whose content is identity, and how quickly they are read
    "data": ("dir", "download"),
    "images": ("workers", "cache", "cache_dir", "cache_limit_gib"),
    "model": ("weights",),
    "groups": ("auto",),  # a stage of its own, which is there or not
}
WORTH_PROCESSES = 1_000_000  # feature values; below, DFR is quicker than starting processes
ROWS_SHOWN, SAMPLES_SHOWN = 8, 6  # of the picture
NOT_REPAIRED = "the choice of groups leaves the model alone, so the last layer is the classifier's own"
ERM, LEARNER = "erm", "dfr"
EDITED = f"{ExMapGroups.name}-edited"
AUTO_SETTINGS = tuple(f"auto.{name}" for name in AutoSettings.model_fields if name != "repair")
MOST_EPOCHS = 100  # of a repair of the whole network


@dataclass
class Job:
    """What a stage's function is given: the settings, the data, and the folder to read earlier stages from."""

    settings: Settings
    task: Task
    run: RunFolder
    listen: Listener
    runtime: RuntimeSettings | None = None

    @property
    def extraction(self) -> RuntimeSettings:
        """Where images are explained: perhaps by other processes than train, which makes no difference to heatmaps."""
        return self.runtime or self.settings.runtime

    @property
    def grouped(self) -> Split:
        """The split that is explained, grouped and retrained on."""
        return self.task.train if self.settings.groups.split == "train" else self.task.val

    def seed(self, *names: str | int) -> int:
        """Return the seed of one part of the run."""
        return child_seed(self.settings.seed, *names)


@dataclass(frozen=True)
class Stage:
    """One row: a name, the settings it depends on beside those of the stages before it, and what it does.

    A setting is named by its section, or as ``section.key`` where only that one matters. A shared stage is made by all
    processes of a run; the others are made by the first one.
    """

    name: str
    sections: tuple[str, ...]
    make: Callable[[Job, StagePart], None]
    shared: bool = False


class Pace:
    """A listener that passes on what it hears, and knows how many images a second that was.

    Parameters
    ----------
    listen : Listener
    """

    def __init__(self, listen: Listener) -> None:
        self.listen = listen
        self._heard: list[tuple[float, int]] = []  # first and last: when, and how many images were done

    def __call__(self, progress: Progress) -> None:
        """Hear of some images more, and pass it on."""
        self._heard = [*self._heard[:1], (time.monotonic(), progress.done)]
        self.listen(progress)

    @property
    def rate(self) -> float:
        """Images per second between the first and the last batch; NaN for fewer than two."""
        if len(self._heard) < 2:
            return math.nan
        (began, first), (ended, last) = self._heard
        return round((last - first) / max(ended - began, 1e-9), 1)


def _train(job: Job, part: StagePart) -> None:
    """Write model.safetensors (the selected epoch) and history.json; state.safetensors while it runs."""
    part.measured |= in_processes(job.settings.runtime, partial(_train_share, job=job, part=part))


def _train_share(fabric: Fabric, job: Job, part: StagePart) -> dict[str, float]:
    """Train in one of the run's processes; the first writes."""
    settings, first = job.settings, is_first(fabric)
    model = initial_model(settings.model, job.task.n_classes, seed=job.seed("model"))
    checkpoint = FileCheckpoint(part.path / "state.safetensors")
    pace = Pace(job.listen if first else silent)
    (history,), (weights,) = fit(
        model,
        job.task.train,
        job.task.val,
        settings.train,
        fabric=fabric,
        seed=job.seed("train"),
        checkpoint=checkpoint,
        listen=pace,
    )
    if first:
        model.load_state_dict(weights)
        write_json(part.path / "history.json", history)
        save_weights(model, part.path / "model.safetensors")
        checkpoint.path.unlink(missing_ok=True)
    return {"images_per_second": pace.rate}


def explain(job: Job, part: StagePart) -> None:
    """Write heatmaps.npy, heatmaps.parquet, channels.npy (where a layer is kept) and outputs.safetensors."""
    part.measured |= in_processes(job.extraction, partial(_explain_share, job=job, part=part))


def _explain_share(fabric: Fabric, job: Job, part: StagePart, grouped: Split | None = None) -> dict[str, float]:
    """Explain a split, by default the grouped one with outputs of the test split, in one of the run's processes.

    The first one writes, batch by batch.
    """
    others = [job.task.test] if grouped is None else []
    grouped, first = grouped or job.grouped, is_first(fabric)
    model = trained_model(job).to(fabric.device if fabric.device.type != "mps" else "cpu")  # mps has no float64
    pace = Pace(job.listen if first else silent)
    settings, allocate = job.settings.explain, heatmap_file(part.path)
    maps, outputs = explain_split(model, grouped, settings, allocate=allocate, fabric=fabric, listen=pace)
    found = {split.name: collect_outputs(model, split, fabric=fabric, listen=pace.listen) for split in others}
    if first:
        write_heatmaps(maps, grouped.ids, part.path)
        write_outputs({grouped.name: outputs, **found}, part.path)
    return {"images_per_second": pace.rate}


def _cluster(job: Job, part: StagePart) -> None:
    """Write SOURCE.parquet for each source of groups, and clusters.json with what each clustering said."""
    grouped = job.grouped
    evidence = gather_evidence(grouped, job.run.stage("explain"))
    notes: dict[str, Any] = {}
    made: dict[str, Groups] = {}
    for name in _sources(job):
        made[name] = groups = _source(name, job, made).infer(evidence, seed=job.seed("groups"))
        notes[name] = write_groups(groups, grouped, evidence.predicted, part.path)
    write_json(part.path / "clusters.json", notes)


def _auto(job: Job, part: StagePart) -> None:
    """Explain the validation split where another one is grouped, and write what :func:`choose_grouping` finds."""
    grouped, judge = job.grouped, job.task.val
    if grouped is not judge:  # the classifier knows the images it was trained on by heart
        in_processes(job.extraction, partial(_explain_share, job=job, part=part, grouped=judge))
    if process_number() == 0:  # of those launched together; the others have done their share
        choose_grouping(job, part, part.path)


def choose_grouping(job: Job, part: StagePart, explained: Path) -> None:
    """Write auto.parquet (the chosen groups), clusters.json, and auto.json: what was weighed, and what was found.

    `explained` is where the validation split is explained, if another one is grouped.
    """
    grouped, judge = job.grouped, job.task.val
    evidence = gather_evidence(grouped, job.run.stage("explain"))
    shape = read_heatmaps(job.run.stage("explain")).values.shape[1:]
    outputs, judged = read_outputs(job.run.stage("explain"), grouped.name), None
    if grouped is not judge:
        outputs = read_outputs(explained, judge.name)
        judged = (gather_evidence(judge, explained), read_heatmaps(explained).values.shape[1:])
    choice = choose_groups(
        evidence,
        shape,
        judged=judged,
        logits=outputs.logits,
        settings=job.settings.auto,
        seed=job.seed(AUTO),
        listen=job.listen,
    )
    notes = {AUTO: write_groups(choice.groups, grouped, evidence.predicted, part.path)}
    if judged is not None:
        notes[JUDGED] = write_groups(choice.judged, judge, judged[0].predicted, part.path)
    write_json(part.path / "clusters.json", notes)
    write_json(part.path / "auto.json", choice.record)


def chosen_groups(job: Job, choice: Path, split: Split, explained: Path) -> Groups:
    """Return the chosen grouping of a split.

    Parameters
    ----------
    job : Job
    choice : Path
        What :func:`choose_grouping` wrote.
    split : Split
        The one it was chosen for, the one it was judged on, or another, of which it is made anew.
    explained : Path
        Where that other one is explained.

    Raises
    ------
    DataError
        If nothing of the kind can be made of the other split.
    """
    if split is job.grouped:
        return read_groups(choice, AUTO)
    if split is job.task.val:
        return replace(read_groups(choice, JUDGED), source=AUTO)
    name = read_json(choice / "auto.json")["chosen"] or ClassGroups.name
    evidence, shape = gather_evidence(split, explained), read_heatmaps(explained).values.shape[1:]
    known = find_candidates(evidence, shape, seed=job.seed(AUTO, split.name), listen=job.listen).names()
    if name not in known:
        raise DataError(
            f"the chosen grouping {name} cannot be made of the {split.name} split, whose candidates are "
            f"{', '.join(sorted(known))}; give one of those as a source of its own"
        )
    return replace(known[name].groups, source=AUTO)


def _retrain(job: Job, part: StagePart) -> None:
    """Write SOURCE.safetensors (the head of every repeat), heads.json, and model.safetensors: the repaired model."""
    found = {name: read_groups(job.run.stage("cluster"), name) for name in _sources(job)}
    left_alone = {}
    if job.settings.groups.auto:
        found[AUTO] = read_groups(job.run.stage(AUTO), AUTO)
        if not read_json(job.run.stage(AUTO) / "auto.json")["repaired"]:
            left_alone[AUTO] = NOT_REPAIRED
    repaired = AUTO if job.settings.groups.auto else ExMapGroups.name
    _fit_heads(job, part, found, repaired=repaired, left_alone=left_alone)


def _edit(job: Job, part: StagePart) -> None:
    """Write the groups as a person wants them, and what retraining writes for them alone."""
    edits, grouped = job.settings.edits, job.grouped
    assert edits is not None
    groups = edit_groups(read_groups(job.run.stage("cluster"), edits.source), edits)
    predicted = read_outputs(job.run.stage("explain"), grouped.name).predicted
    write_json(part.path / "clusters.json", {EDITED: write_groups(groups, grouped, predicted, part.path)})
    _fit_heads(job, part, {EDITED: groups}, repaired=EDITED)


def _fit_heads(
    job: Job,
    part: StagePart,
    sources: Mapping[str, Groups],
    *,
    repaired: str,
    left_alone: Mapping[str, str] | None = None,
) -> None:
    """Write the heads fitted to each source of groups.

    Sources that are left alone, each with the reason, get the classifier's own head. Where the classifier has no last
    linear layer all are.
    """
    grouped, left_alone = job.grouped, left_alone or {}
    model = trained_model(job)
    last, reason = last_layer(job, model)
    if last is None:
        left_alone = dict.fromkeys(sources, reason)
    features = read_outputs(job.run.stage("explain"), grouped.name).features
    notes: dict[str, Any] = {}
    settings = job.settings.retrain
    learners = [
        DFR(**settings.model_dump(exclude={"repeats"}), seed=job.seed("retrain", repeat))
        for repeat in range(settings.repeats)
    ]
    # Processes, not threads: a fit is many small steps of Python.
    workers = cpu_count() if features.size > WORTH_PROCESSES else 1
    fits = Parallel(workers, return_as="generator")(
        delayed(learner.fit_head)(features, grouped.labels, groups, n_classes=grouped.n_classes)
        for name, groups in sources.items()
        for learner in learners
        if name not in left_alone
    )
    found: dict[str, list[Head]] = {name: [] for name in sources}
    order = [name for name in sources for _ in learners if name not in left_alone]
    for number, (name, head) in enumerate(zip(order, fits, strict=True)):
        found[name].append(head)
        job.listen(Progress(part.name, number + 1, len(order), "heads", name))
    for name, why in left_alone.items():
        found[name] = [_own_head(job, last, why)]
    for name, heads in found.items():
        write_heads(heads, part.path / f"{name}.safetensors")
        notes[name] = [{"strength": h.strength, "tuning": h.tuning, "notes": h.notes} for h in heads]
        if name == repaired:
            mended = model if last is None else replace_head(model, last, heads[0].weight, heads[0].bias)
            save_weights(mended, part.path / "model.safetensors")
    write_json(part.path / "heads.json", notes)


def _repair(job: Job, part: StagePart) -> None:
    """Write repair.json; where the last layer is seen not to suffice, train the whole network on balanced groups.

    Then also model.safetensors and outputs.safetensors, what it says of the test images. The chosen grouping is made of
    the training images, too, and the epoch is chosen by the worst of its groups among the validation images.
    """
    record = read_json(job.run.stage(AUTO) / "auto.json")
    if not record["repaired"] or record["repair"]["last_layer_suffices"] is not False:
        write_json(part.path / "repair.json", {"done": False})
        return
    task, settings = job.task, job.settings
    choice = job.run.stage(AUTO)
    if job.grouped is not task.train:
        in_processes(job.extraction, partial(_explain_share, job=job, part=part, grouped=task.train))
    groups, selection = (chosen_groups(job, choice, split, part.path) for split in (task.train, task.val))
    for name in HEATMAP_FILES:
        (part.path / name).unlink(missing_ok=True)
    learner = SUBG(train=settings.train, runtime=settings.runtime, seed=job.seed("repair"))
    shown = balanced_size(groups.counts(), learner.smallest_group) * len(groups.names)
    learner.epochs = min(math.ceil(settings.train.epochs * len(task.train) / shown), MOST_EPOCHS)  # as many steps
    model = learner.fit(
        initial_model(settings.model, task.n_classes, seed=job.seed("model")),
        task.train,
        groups,
        selection=Selection(task.val, selection),
        listen=job.listen,
    )
    save_weights(model, part.path / "model.safetensors")
    write_outputs({task.test.name: collect_outputs(model, task.test, listen=job.listen)}, part.path)
    counts = dict(zip(groups.names, groups.counts().tolist(), strict=True))
    kept = max((row["epoch"] for row in learner.history_[0] if row["kept"]), default=None)
    write_json(
        part.path / "repair.json",
        {
            "done": True,
            "learner": SUBG.name,
            "epochs": learner.epochs,
            "epoch": kept,
            "groups": counts,
            "notes": list(learner.notes_),
        },
    )


def last_layer(job: Job, model: Any) -> tuple[LastLayer | None, str]:
    """Return the classifier's last linear layer, or None and why it has none."""
    try:
        return find_last_layer(model, job.grouped.images.batch(np.arange(2, dtype=np.int64))), ""
    except DataError as error:
        return None, str(error)


def _own_head(job: Job, last: LastLayer | None, why: str) -> Head:
    """Return the last layer of the classifier as it is; where there is none, one that leaves the logits as they are."""
    if last is not None:
        return Head(*last.by_class(), notes=(why,))
    n_classes = job.grouped.n_classes
    return Head(np.eye(n_classes, dtype=np.float32), np.zeros(n_classes, dtype=np.float32), notes=(why,))


def _evaluate(job: Job, part: StagePart) -> None:
    """Write results.json, which :func:`run_stages` completes with times and puts at the top of the run folder."""
    settings = job.settings
    outputs = read_outputs(job.run.stage("explain"), job.task.test.name)

    def measured(name: str, predicted: NDArray[np.int64], labels_used: Mapping[str, Any]) -> dict[str, Any]:
        return {**measure_on_test(job.task, settings, predicted, name), "labels_used": labels_used}

    fitted = {"training": ["class labels"], "epoch_selection": selection_labels(settings)}
    shown = {"evaluation": evaluation_labels(job.task)}
    methods = {ERM: measured(ERM, outputs.predicted[None], {**fitted, **shown})}
    inference, maps = {}, read_heatmaps(job.run.stage("explain"))
    notes = read_json(job.run.stage("cluster") / "clusters.json")
    heads_notes = read_json(job.run.stage("retrain") / "heads.json")
    names = _sources(job)
    if settings.groups.auto:
        names.append(AUTO)
        notes |= read_json(job.run.stage(AUTO) / "clusters.json")
    if settings.edits is not None:
        names.append(EDITED)
        notes |= read_json(job.run.stage("edit") / "clusters.json")
        heads_notes |= read_json(job.run.stage("edit") / "heads.json")
    for name in names:
        grouping, fitting = {EDITED: ("edit", "edit"), AUTO: (AUTO, "retrain")}.get(name, ("cluster", "retrain"))
        method = f"{name}+{LEARNER}"
        heads = read_heads(job.run.stage(fitting) / f"{name}.safetensors")
        predicted = np.stack([head.predict(outputs.features) for head in heads])
        used = notes[name]["labels_used"]
        tuned = ["true groups"] if name == OracleGroups.name else [f"{name} groups"]
        methods[method] = measured(method, predicted, {**fitted, "groups": used, "tuning": tuned, **shown})
        methods[method]["strengths"] = [row["strength"] for row in heads_notes[name]]
        methods[method]["notes"] = heads_notes[name][0]["notes"]
        groups = read_groups(job.run.stage(grouping), name)
        if (agreement := agreement_with_truth(groups, job.grouped)) is not None:
            inference[name] = {**agreement, "groups": dict(zip(groups.names, groups.counts().tolist(), strict=True))}
    results = {
        "format": 1,
        "dataset": job.task.name,
        "preset": settings.preset,
        "seed": settings.seed,
        "grouped_split": job.grouped.name,
        "skipped_images": dict(job.task.skipped),
        "methods": methods,
        "group_inference": inference,
        "clusters": {name: row["fits"] for name, row in notes.items() if row["fits"]},
        "heatmaps": {**maps.health(), "check": maps.check},
        "weighted_mean_is": "test accuracy of each group, weighted by the group's frequency in the training split",
    }
    if settings.groups.auto:
        results["auto"] = read_json(job.run.stage(AUTO) / "auto.json")
    if _repairs(settings) and (done := read_json(job.run.stage("repair") / "repair.json"))["done"]:
        predicted = read_outputs(job.run.stage("repair"), job.task.test.name).predicted[None]
        used = {**fitted, "groups": ["class labels"], "tuning": [f"{AUTO} groups"], **shown}
        methods[f"{AUTO}+{done['learner']}"] = {**measured("repair", predicted, used), "notes": done["notes"]}
    write_json(part.path / "results.json", results)


def _report(job: Job, part: StagePart) -> None:
    """Write report.html, and strategies.png: what the classifier looks at in the groups it gets wrong most."""
    write_report(job.run, job.settings, shown(job), part.path / "report.html", remarks=(), listen=job.listen)
    groups, grouped = read_groups(job.run.stage("cluster"), ExMapGroups.name), job.grouped
    maps = read_heatmaps(job.run.stage("explain"))
    correct = read_outputs(job.run.stage("explain"), grouped.name).predicted == grouped.labels
    rows = sample_rows(groups, grouped.images, maps, correct, rng=generator(job.settings.seed, "report"))
    strategies_figure(rows, columns=SAMPLES_SHOWN).savefig(part.path / "strategies.png", dpi=130)


def sample_rows(
    groups: Groups,
    images: Images,
    maps: Heatmaps,
    correct: NDArray[np.bool_],
    *,
    rng: np.random.Generator,
    most: int = ROWS_SHOWN,
    samples: int = SAMPLES_SHOWN,
) -> list[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """Return a row per group for :func:`exmap.report.strategies_figure`: the groups that are wrong most, first."""
    members = [np.flatnonzero(groups.index == number) for number in range(len(groups.names))]
    filled = [number for number in range(len(members)) if len(members[number])]
    order = sorted(filled, key=lambda number: correct[members[number]].mean())
    rows = []
    for number in order[:most]:
        picked = np.sort(rng.permutation(members[number])[:samples])
        title = f"{groups.names[number]}\nn = {len(members[number]):,}, right {correct[members[number]].mean():.0%}"
        rows.append((title, images.pixels(picked), np.asarray(maps.values[picked])))
    return rows


def shown(job: Job) -> Shown:
    """Return what the report takes from the data set."""
    return Shown(job.grouped, job.task.test, reported_groups(job.grouped))


STAGES = (
    Stage("train", ("seed", "data", "images", "model", "train", "runtime"), _train, shared=True),
    Stage("explain", ("explain", "groups.split"), explain, shared=True),
    Stage("cluster", ("cluster", "groups"), _cluster),
    Stage(AUTO, AUTO_SETTINGS, _auto, shared=True),  # only in runs that choose their groups
    Stage("retrain", ("retrain",), _retrain),
    Stage("repair", ("auto.repair",), _repair),  # only where more than the last layer may be retrained
    Stage("edit", ("edits",), _edit),  # only in runs whose groups a person edited
    Stage("evaluate", ("evaluate",), _evaluate),
    Stage("report", (), _report),
)


def stage_names() -> list[str]:
    """Return the names of the stages, in order."""
    return [stage.name for stage in STAGES]


def _stages_of(settings: Settings) -> list[Stage]:
    """Return the stages of a run: all, but not the choice of groups or a person's edits where there are none."""
    absent = {"edit": settings.edits is None, AUTO: not settings.groups.auto, "repair": not _repairs(settings)}
    return [stage for stage in STAGES if not absent.get(stage.name)]


def _repairs(settings: Settings) -> bool:
    """Return whether a run may retrain the whole network."""
    return settings.groups.auto and settings.auto.repair == "auto"


def open_run(path: Path, settings: Settings | None = None, *, change: bool = False) -> tuple[RunFolder, Settings]:
    """Open a run folder for settings, or with its own.

    Parameters
    ----------
    path : Path
    settings : Settings, optional
        None reads the folder's own.
    change : bool
        Whether the folder may be given other settings than it was made with; stages they concern are then redone.

    Raises
    ------
    RunFolderError
        If there is no run there, or one made with other settings.
    """
    run = RunFolder(path, create=settings is not None and not change)
    there = run.settings()
    if settings is None:
        assert there is not None
        return run, parse_settings(there)
    _check_names(settings)
    if there is not None and change:
        _check_edits(parse_settings(there), settings)
    if there is not None and not change:
        kept = parse_settings(there)
        if settings.edits is None:  # they are of the run, not of what it was started with
            settings = settings.model_copy(update={"edits": kept.edits})
        if kept.groups.auto:  # likewise
            settings = settings.model_copy(update={"groups": settings.groups.model_copy(update={"auto": True})})
        known = dump_settings(kept)  # with the defaults of settings that are newer than the folder
        found = differences(_without(known), identity_part(settings))
        if found:
            raise RunFolderError(
                f"{path} holds a run made with other settings: {'; '.join(found)}; choose another --out, or change "
                "this run with one of its stages, for example exmap cluster RUN_DIR --set cluster.method=kmeans"
            )
    run.write_settings(dump_settings(settings))
    return run, settings


def with_edits(run: RunFolder, settings: Settings, path: Path) -> Settings:
    """Return the settings of a run with a person's edits of its groups, from a file.

    Raises
    ------
    SettingsError
        If the file is no file of edits, or cannot be applied to the groups.
    RunFolderError
        If the groups are not there, or are not those that were edited.
    """
    edits, record = load_edits(path), run.record("cluster")
    if record is None:
        raise RunFolderError(f"{run.path} has no groups that could be edited; make them with exmap cluster {run.path}")
    given = (read_json(run.stage("train") / "identity.json") or {}).get("before", {})
    if record["identity"] != digest_of(_identities(settings, given)["cluster"]):
        raise RunFolderError(
            f"the groups of {run.path} are not those that its settings make here, with this version of exmap; bring it "
            f"up to date with exmap evaluate {run.path}, look at the groups again and edit those"
        )
    if edits.grouping != record["identity"]:
        raise RunFolderError(
            f"{path} holds edits of other groups than those of {run.path}, which were made since or elsewhere; look at "
            "the groups again and edit those"
        )
    try:
        edit_groups(read_groups(run.stage("cluster"), edits.source), edits)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    return settings.model_copy(update={"edits": edits})


def _check_edits(there: Settings, wanted: Settings) -> None:
    """Refuse settings that change the groups under a person's edits."""
    if wanted.edits is None:
        return
    before = [name for stage in STAGES[: stage_names().index("cluster") + 1] for name in stage.sections]
    old, new = ({name: _setting(identity_part(each), name) for name in before} for each in (there, wanted))
    if found := differences(old, new):
        raise RunFolderError(
            f"a person's edits belong to the groups they were made of, but other settings make others: "
            f"{'; '.join(found)}; take the edits away with --set edits=null, too"
        )


def _identities(settings: Settings, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each stage of a run is made from; `given` are the digests of what comes from outside."""
    tree, before, identities = identity_part(settings), given, {}
    for stage in _stages_of(settings):
        identities[stage.name] = {
            "settings": {name: _setting(tree, name) for name in stage.sections},
            "before": before if stage is STAGES[0] else digest_of(before),
        }
        before = identities[stage.name]
    return identities


def run_stages(
    run: RunFolder,
    settings: Settings,
    *,
    until: str = "report",
    runtime: RuntimeSettings | None = None,
    listen: Listener = silent,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Bring a run up to date until a stage: skip what is finished, make what is missing or was made otherwise.

    Of processes that were launched together this is for the first one; the others call :func:`assist_run`.

    Parameters
    ----------
    run : RunFolder
    settings : Settings
    until : str
        Name of the last stage.
    runtime : RuntimeSettings, optional
        Where images are explained; by default where the classifier is trained.
    listen : Listener
    say : callable
        Is told in one line what happens to each stage.

    Returns
    -------
    dict or None
        The results, once the run is evaluated.
    """
    company, job = _begun(run, settings, runtime, listen)
    _say_reading(job.task, say)
    given: dict[str, Any] = {"inputs": dict(job.task.digests)}
    if settings.model.weights is not None:
        given["weights"] = digest_of_file(settings.model.weights)
    _write_manifest(job)
    identities, stages = _identities(settings, given), _stages_of(settings)
    for name in {stage.name for stage in STAGES} - {stage.name for stage in stages} - {"edit"}:
        run.discard(name)
    if settings.edits is None:
        run.discard("edit")
    elif (now := digest_of(identities["cluster"])) != settings.edits.grouping:
        raise RunFolderError(
            f"the edits of {run.path} are of groups that would now be others, because what they were made from changed "
            f"({settings.edits.grouping[:8]} edited, {now[:8]} here); take the edits away with --set edits=null"
        )
    for stage in stages[: [stage.name for stage in stages].index(until) + 1]:
        identity = identities[stage.name]
        if run.is_finished(stage.name, identity):
            say(f"{stage.name}: finished before, kept")
            continue
        (run.path / "results.json").unlink(missing_ok=True)
        with run.begin(stage.name, identity) as part:
            say(f"{stage.name}: {'continued' if part.resumed else 'started'}")
            if company is not None and stage.shared:
                company.share(stage.name)
            stage.make(job, part)
        for later in stages[stages.index(stage) + 1 :]:
            if not run.is_finished(later.name, identities[later.name]):
                run.discard(later.name)  # made from what has just been replaced
    results = _publish(run, until) if until in ("evaluate", "report") else None
    if company is not None:
        company.share(None)
    return results


def assist_run(path: Path, settings: Settings, *, runtime: RuntimeSettings | None = None) -> None:
    """Do the share of a process that was launched with others, until the first one has brought the run up to date.

    Parameters
    ----------
    path : Path
        The run folder, the same one for all processes, on every host.
    settings, runtime
        As for :func:`run_stages`.

    Raises
    ------
    ProcessError
        If another process ends before the work is done.
    """
    company, job = _begun(path, settings, runtime, silent)
    assert company is not None
    stages = {stage.name: stage for stage in STAGES}
    while (name := company.share()) is not None:
        stages[name].make(job, StagePart(path / f"{name}.part", resumed=False))


def _begun(
    run: RunFolder | Path, settings: Settings, runtime: RuntimeSettings | None, listen: Listener
) -> tuple[Company | None, Job]:
    """Meet the processes that were launched with this one, and read the data."""
    runtime = launched_runtime(runtime or settings.runtime)
    if launched() and _repairs(settings):
        raise SettingsError(
            "auto.repair=auto trains in processes that it starts itself, but these were launched from outside; start "
            "exmap by itself with --devices, or set auto.repair=last_layer"
        )
    company = Company(runtime) if launched() else None

    def read() -> Task:
        return build_task(settings.data, settings.images, listen=listen)

    task = read() if company is None else company.first_of_each_host(read)
    return company, Job(settings, task, RunFolder(run) if isinstance(run, Path) else run, listen, runtime)


def report_run(
    run: RunFolder, settings: Settings, *, listen: Listener = silent, say: Callable[[str], None]
) -> dict[str, Any]:
    """Make the report of an evaluated run anew; nothing is trained, and where the images are not at hand it has none.

    Returns
    -------
    dict
        The results.

    Raises
    ------
    RunFolderError
        If the run is not finished, or its settings were changed since.
    """
    tree, before = identity_part(settings), None
    for stage in _stages_of(settings)[:-1]:
        record, there = run.record(stage.name), read_json(run.stage(stage.name) / "identity.json") or {}
        wanted = json.loads(json.dumps({name: _setting(tree, name) for name in stage.sections}))
        if record is None or there.get("settings") != wanted or (before and there.get("before") != before):
            why = "is not finished" if record is None else "was made with other settings or by an older version"
            raise RunFolderError(
                f"a report needs a whole run, but stage {stage.name} of {run.path} {why}; bring it up to date with: "
                f"exmap evaluate {run.path}"
            )
        before = record["identity"]
    folder, remarks, job = run.stage("report"), [], None
    try:
        task = build_task(settings.data, settings.images, listen=listen)
        inputs = read_json(run.stage(STAGES[0].name) / "identity.json")["before"]["inputs"]
        if dict(task.digests) != inputs:
            raise DataError("the images found are not those of the run")
        job = Job(settings, task, run, listen)
    except (DataError, SettingsError, OSError) as error:
        remarks.append("The images were not at hand when this page was made, so it shows their heatmaps alone.")
        say(f"report: without pictures, because {error}")
    picture = folder / "strategies.png"
    with run.begin("report", {"settings": {}, "before": before}) as part:
        if job is not None:
            _report(job, part)
        else:
            write_report(run, settings, None, part.path / "report.html", remarks=remarks, listen=listen)
            if picture.is_file():
                shutil.copy2(picture, part.path)
    return _publish(run, "report")


def _say_reading(task: Task, say: Callable[[str], None]) -> None:
    """Say how quickly image files were opened, where they just were, and how many were left out."""
    rate = task.reading.get("images_per_second_when_opened", math.nan)
    if not math.isnan(rate):
        kept = "kept decoded" if task.reading["kept_decoded"] else "not kept decoded"
        say(f"data: {task.reading['images']:,} images opened, {rate:,.0f}/s, {kept}")
    if task.skipped:
        say(f"data: {len(task.skipped):,} unreadable images left out; results.json names them")


def _publish(run: RunFolder, until: str) -> dict[str, Any]:
    """Write results.json at the top of the run folder: what evaluation found, with times and memory."""
    results: dict[str, Any] = read_json(run.stage("evaluate") / "results.json")
    records = {stage.name: run.record(stage.name) or {} for stage in STAGES}
    seconds = {name: record["seconds"] for name, record in records.items() if record}
    results["seconds"] = {**seconds, "total": round(sum(seconds.values()), 3)}
    results["images_per_second"] = {
        name: record["images_per_second"] for name, record in records.items() if "images_per_second" in record
    }
    results["peak_memory_mib"] = max(record.get("peak_memory_mib", 0.0) for record in records.values())
    write_json(run.path / "results.json", results)
    return results


def _check_names(settings: Settings) -> None:
    """Refuse unknown names before any work is done."""
    if settings.data.name not in dataset_names():
        raise SettingsError(unknown_name("data set", settings.data.name, dataset_names()))
    for clustering in (settings.cluster, settings.groups.george):
        make_clusterer(clustering, 0)
    _check_explain(settings)
    for source in settings.groups.sources:
        if source not in source_names():
            raise SettingsError(unknown_name("group source", source, source_names()))
    if ExMapGroups.name not in settings.groups.sources:
        raise SettingsError(f"groups.sources must contain exmap, got {', '.join(settings.groups.sources)}; add it")


def _check_explain(settings: Settings) -> None:
    """Refuse unknown explainers and composites, and channels that no explainer would leave."""
    explain = settings.explain
    if explain.explainer not in explainer_names():
        raise SettingsError(unknown_name("explainer", explain.explainer, explainer_names()))
    composites = ["auto", *composite_names()]
    if explain.composite not in composites:
        raise SettingsError(unknown_name("composite", explain.composite, composites))
    check_george(settings.groups.george)
    check_channels(settings.cluster, explain)


def identity_part(settings: Settings) -> dict[str, Any]:
    """Return the settings that decide what a run computes, as plain values."""
    return _without(dump_settings(settings))


def _without(tree: Mapping[str, Any]) -> dict[str, Any]:
    runtime = dict(tree["runtime"])
    runtime["devices"] *= runtime.pop("num_nodes")  # how many processes, wherever they are
    data = {k: v for k, v in tree["data"].items() if k != "graded" or tree["data"]["name"] == k}  # of that set alone
    tree = {**tree, "runtime": runtime, "data": data}
    return {
        section: {k: v for k, v in value.items() if k not in NOT_IDENTITY.get(section, ())}
        if isinstance(value, Mapping)
        else value
        for section, value in tree.items()
        if section != "preset"  # a name for settings, not a setting
    }


def _setting(tree: Mapping[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    return tree[section][key] if key else tree[section]


def _write_manifest(job: Job) -> None:
    """Write where the run came from: versions, commit, digests, seed, machine."""
    packages = ("exmap", "torch", "torchvision", "lightning-fabric", "scikit-learn", "numpy", "umap-learn")
    versions = {name: importlib.metadata.version(name) for name in packages}
    write_json(
        job.run.path / "manifest.json",
        {
            "format": 1,
            "settings": dump_settings(job.settings),
            "seed": job.settings.seed,
            "input_digests": dict(job.task.digests),
            "reading": dict(job.task.reading),
            "versions": {"python": sys.version.split()[0], **versions},
            "git_commit": _git_commit(),
            "device": job.settings.runtime.accelerator,
            "machine": platform.platform(),
        },
    )


def _git_commit() -> str | None:
    """Return the commit of the source tree exmap runs from, or None where that is no git checkout."""
    here = Path(__file__).resolve().parent
    try:
        asked = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None if asked.returncode == 0 else None


def selection_labels(settings: Settings) -> list[str]:
    """Return the labels that the classifier's epoch is chosen by."""
    return [] if settings.train.select == "last" else ["class labels"]


def evaluation_labels(task: Task) -> list[str]:
    """Return the labels that results are reported by."""
    return ["class labels"] if task.test.truth is None else ["true groups"]


def measure_on_test(task: Task, settings: Settings, predicted: NDArray[np.int64], name: str) -> dict[str, Any]:
    """Return what is reported of a method's predictions, shape (R, N), by true group or, without those, by class."""
    test, train = task.test, task.train
    truth = test.truth
    index, names = reported_groups(test)
    train_index, _ = reported_groups(train)
    return measure(
        predicted,
        test.labels,
        index,
        names,
        rng=generator(settings.seed, "bootstrap", name),
        train_counts=np.bincount(train_index, minlength=len(names)),
        attributes=() if truth is None else truth.attributes,
        coordinates=None if truth is None else truth.coordinates,
        bootstrap=settings.evaluate.bootstrap,
        confidence=settings.evaluate.confidence,
    )


def reported_groups(split: Split) -> tuple[IntArray, tuple[str, ...]]:
    """Return the groups that results are reported by, and their names: the true ones, or classes without those."""
    return (split.labels, split.class_names) if split.truth is None else (split.truth.index, split.truth.names)


def agreement_with_truth(groups: Groups, split: Split) -> dict[str, Any] | None:
    """Return how well groups follow the true groups of their split, or None where those are not known."""
    if split.truth is None:
        return None
    truth = split.true_groups()
    return asdict(group_agreement(groups.index, truth.index, split.labels, truth.names))


def oracle_source(split: Split) -> GroupSource:
    """Return the source that holds the true groups of a split."""
    truth = split.true_groups()
    return OracleGroups(truth.index, truth.names)


def gather_evidence(split: Split, folder: Path) -> Evidence:
    """Return what a stage that explained a split left in `folder`: all that sources of groups may look at."""
    outputs, maps = read_outputs(folder, split.name), read_heatmaps(folder)
    return Evidence(
        labels=split.labels,
        predicted=outputs.predicted,
        class_names=split.class_names,
        heatmaps=maps.flat(),
        usable=maps.finite,
        features=outputs.features,
        channels=maps.channels,
    )


def _sources(job: Job) -> list[str]:
    """Return the names of the sources of groups in the order they are inferred; the oracle needs true groups."""
    first = ExMapGroups.name  # random groups take its sizes
    wanted = [first, *(name for name in job.settings.groups.sources if name != first)]
    return [name for name in wanted if name != OracleGroups.name or job.grouped.truth is not None]


def _source(name: str, job: Job, made: Mapping[str, Groups]) -> GroupSource:
    if name == OracleGroups.name:
        return oracle_source(job.grouped)
    builders: dict[str, Callable[[], GroupSource]] = {
        ExMapGroups.name: lambda: ExMapGroups(job.settings.cluster),
        GeorgeGroups.name: lambda: GeorgeGroups(job.settings.groups.george),
        ClassGroups.name: ClassGroups,
        ErrorSetGroups.name: ErrorSetGroups,
        RandomGroups.name: lambda: RandomGroups(made[ExMapGroups.name]),
    }
    return builders[name]()


def trained_model(job: Job) -> Any:
    """Return the classifier that the run trained, in evaluation mode."""
    model = build_model(job.settings.model, job.task.n_classes, seed=0)
    load_weights(model, job.run.stage("train") / "model.safetensors")
    return model.eval()
