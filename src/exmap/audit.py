"""Audit a classifier that was trained elsewhere: a run that trains no network, what it found, and a repaired model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exmap.analysis import Analysis
from exmap.api.analyzing import HEATMAP_SIDE
from exmap.data import Split
from exmap.errors import SettingsError
from exmap.export.repaired import Saved, save_repaired
from exmap.model.answers import check_class_order
from exmap.model.named import has_weights, needs_gradient_free, own_class_names
from exmap.pipeline.chain import trained_apart
from exmap.pipeline.disk import digest_of_file, write_json, write_text
from exmap.pipeline.first_look import first_look
from exmap.pipeline.looking import publish
from exmap.pipeline.plan import TRAIN
from exmap.pipeline.runner import StepWork
from exmap.pipeline.runs import open_run, runner_of
from exmap.pipeline.store import RunFolder
from exmap.records import Listener, silent
from exmap.registry import MODELS
from exmap.report.findings import findings_of
from exmap.report.model_card import model_card
from exmap.report.outcome import shown_method
from exmap.results import Findings
from exmap.results.findings import AuditedModel
from exmap.settings import DataSettings, Settings, change_settings, load_settings, parse_settings

__all__ = ["Audit", "audit_settings", "run_audit"]

BEFORE_WORK = {"data", "train"}  # steps that take no time where nothing is trained
CHECKED = 8  # images on which a model that was written is compared
MODEL, FINDINGS, CARD = "model", "findings.json", "model_card.md"


@dataclass(frozen=True)
class Audit:
    """What an audit leaves.

    Attributes
    ----------
    findings : Findings
    analysis : Analysis
    saved : Saved or None
        The repaired classifier; None where it was left as it is.
    """

    findings: Findings
    analysis: Analysis
    saved: Saved | None


def audit_settings(
    model: str,
    data: DataSettings,
    *,
    weights: Path | None = None,
    test: Path | None = None,
    transform: str | None = None,
    classes: Sequence[str] = (),
    outputs: Sequence[int] = (),
    groups: Sequence[str] = (),
    label: str | None = None,
    changes: Sequence[str] = (),
    seed: int | None = None,
) -> Settings:
    """Return the settings of a run that audits a classifier: nothing trained, one labelled set, a test for a shortcut.

    Parameters
    ----------
    model : str
        The classifier by a word; see :class:`~exmap.settings.ModelSettings`.
    data : DataSettings
        Where the labelled images are.
    weights : Path, optional
    test : Path, optional
        A second labelled set to measure on; by default parts of the one set are measured with what was fitted to the
        others.
    transform : str, optional
        Of the images; by default the model's own.
    classes : sequence of str, optional
        In the order of the model's outputs; by default the model's own names, or else the labels, sorted.
    outputs : sequence of int, optional
        Which outputs are the classes.
    groups : sequence of str
        Columns of known groups: for evaluation alone.
    label : str, optional
        Column of the labels.
    changes : sequence of str
        Other settings, ``section.key=value``, as ``exmap run --set`` takes them.
    seed : int, optional

    Raises
    ------
    SettingsError
        For a setting that there is none of, a value that is not allowed, and a model without trained weights.
    """
    if data.name == "folder" and (groups or label):
        raise SettingsError(
            f"{'--groups' if groups else '--label'} names columns, and {data.dir} is a folder per class, which has "
            "none; leave it out, or list the images in a table"
        )
    where = {f"data__{name}": getattr(data, name) for name in data.model_fields_set}
    chosen = load_settings(
        "audit",
        changes,
        seed=seed,
        model__name=model,
        model__weights=weights,
        model__outputs=list(outputs) or None,
        images__transform=transform,
        data__test=test,
        data__group_columns=list(groups) or None,
        data__label_column=label,
        **where,
    )
    MODELS.get(chosen.model.name)  # refuses names that there are none of
    if not has_weights(chosen.model):
        raise SettingsError(
            f"the model {model} would have random weights, so an audit would be meaningless; name the file of its "
            "trained weights with --weights"
        )
    if needs_gradient_free(chosen.model) and not any(each.startswith("explain.explainer=") for each in changes):
        chosen = change_settings(chosen, (), explain__explainer="occlusion")
    order = tuple(classes) or own_class_names(chosen.model) or ()
    return change_settings(chosen, (), data__classes=list(order) or None)


def run_audit(
    folder: Path,
    settings: Settings,
    *,
    source: str = "",
    program: bool = False,
    listen: Listener = silent,
    say: Callable[[str], None],
) -> Audit:
    """Audit a classifier in a run folder; an interrupted audit continues from its last finished step.

    Beside the files of a run the folder gets findings.json, model_card.md and, where the last layer was retrained,
    the repaired classifier.

    Parameters
    ----------
    folder : Path
    settings : Settings
        From :func:`audit_settings`.
    source : str
        Where the images come from, in the user's words.
    program : bool
        Whether the repaired classifier is also written as a program of torch.export.
    listen : Listener
    say : callable
        Is told in one line what happens to each step.

    Raises
    ------
    ExMapError
        For whatever cannot be done, in one sentence.
    """
    if settings.train.epochs:
        raise SettingsError(f"an audit trains no network: train.epochs must be 0, got {settings.train.epochs}")
    if not (settings.groups.auto and settings.data.one_set):
        which = "data.one_set" if settings.groups.auto else "groups.auto"
        raise SettingsError(f"an audit tests one labelled set for shortcuts: {which} must be true; leave it out")
    if learner := trained_apart(settings):
        raise SettingsError(f"an audit trains no network, but {learner} does; choose retrain.learner=dfr or afr")
    shape = first_look(settings)
    if shape is not None and settings.explain.size == HEATMAP_SIDE and min(shape[1:]) < HEATMAP_SIDE:
        settings = change_settings(settings, (), explain__size=min(shape[1:]))
    run, settings = _opened(folder, settings)
    runner = runner_of(run, settings, look=True, runtime=None, listen=listen, say=say)
    runner.bring_up(runner.graph.until("train"))
    model, split = runner.record(TRAIN), runner.task(images=True).val
    order = check_class_order(
        model, split, how="--classes", chosen=bool(settings.data.classes), seed=settings.seed, listen=listen
    )
    if order.is_wrong:
        say(f"Warning: {order.in_words(split.class_names)}; check --classes, or the names that the model states")
    else:
        _, height, width = split.images.shape
        say(
            f"The classifier is right on {order.accuracy:.1%} of {order.images:,} images, which it is given as "
            f"{width} x {height} pixels. If you know another figure, check the preprocessing (--transform) and the "
            "order of the classes first."
        )
    runner.bring_up(step for step in runner.graph.until("report") if step.name != TRAIN)
    publish(run, runner.graph)
    assert runner.gather is not None
    analysis = runner.gather(StepWork(runner, images=True))
    saved = _save(analysis, folder / MODEL, split, program=program)
    place = "" if saved is None else MODEL
    findings = findings_of(analysis, model=_audited(settings, split), source=source, saved=place)
    write_json(folder / FINDINGS, findings.to_json())
    write_text(folder / CARD, model_card(findings))
    return Audit(findings, analysis, saved)


def _opened(folder: Path, settings: Settings) -> tuple[RunFolder, Settings]:
    """Open the folder of an audit; one that has ended before its work began may be given other settings."""
    begun = not (folder / "settings.yaml").is_file() or any(
        item.is_dir() and item.name.partition(".")[0] not in BEFORE_WORK for item in folder.iterdir()
    )
    if not begun:
        before = parse_settings(RunFolder(folder).settings() or {})
        begun = bool(before.train.epochs) or not before.data.one_set  # a classifier was trained in it
    return open_run(folder, settings, change=not begun)


def _save(analysis: Analysis, folder: Path, split: Split, *, program: bool) -> Saved | None:
    """Write the repaired classifier in the form it came in; None where it was left as it is."""
    method = shown_method(analysis)
    if method is None or analysis.fits[method].left_alone:
        return None
    images = split.images.batch(np.arange(min(CHECKED, len(split)), dtype=np.int64))
    return save_repaired(
        analysis.network(),
        analysis.repair(method),
        analysis.settings.model,
        folder,
        images=images,
        export=program,
    )


def _audited(settings: Settings, split: Split) -> AuditedModel:
    weights = settings.model.weights
    return AuditedModel(
        name=settings.model.name,
        weights="" if weights is None else str(weights),
        digest="" if weights is None else digest_of_file(weights),
        classes=split.class_names,
        outputs=settings.model.outputs,
    )
