"""A small analysis for tests, without training: a classifier whose weights look at the patch more than at the bar."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from exmap.analysis import Analysis, Fit
from exmap.data import Split, Task, planted_shortcut
from exmap.data.missing import MissingImages
from exmap.evaluation import measure
from exmap.explain import explain_split
from exmap.groups import ExMapGroups, edit_groups
from exmap.model import collect_outputs
from exmap.records import Explained, Groups
from exmap.results import AutoRecord, Results
from exmap.retrain import Head
from exmap.runtime import generator
from exmap.settings import Edits, GroupEdit, Settings, load_settings
from exmap.trust import measure_trust

SIDE, PATCH = 12, 3
IMAGES = 90  # of the grouped split
HOSTILE = "<img src=x onerror=alert(1)>.jpg"
WRITTEN = Path(__file__).parent / "written" / "results.json"
SMALL = ("cluster.scope=local", "evaluate.bootstrap=50", "explain.layer=none")


class Looks(nn.Module):
    """Features: K of the patch's colour and K of the bar's angle; the last layer weighs the two."""

    def __init__(self, task: Task, patch: float) -> None:
        super().__init__()
        images, labels = task.train.images.batch(np.arange(len(task.train))), task.train.labels
        k = task.n_classes
        templates = np.stack([images[labels == c].mean(axis=0) - images.mean(axis=0) for c in range(k)])
        colours, bars = templates.copy(), templates.copy()
        colours[:, :, PATCH:], colours[:, :, :, PATCH:] = 0, 0
        bars[:, :, :PATCH, :PATCH] = 0
        weight = np.concatenate([each / np.abs(each).sum() for each in (*colours, *bars)]).reshape(2 * k, -1)
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], 2 * k), nn.ReLU())
        self.head = nn.Linear(2 * k, k)
        with torch.no_grad():
            self.features[1].weight.copy_(torch.from_numpy(weight))
            self.features[1].bias.fill_(0.5)  # all features are positive
            self.head.weight.copy_(torch.from_numpy(last_layer(k, patch).weight))
            self.head.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def last_layer(k: int, patch: float) -> Head:
    """Return the last layer that weighs the patch against the bar, whose weight is 1."""
    weight = np.concatenate([patch * np.eye(k), np.eye(k)], axis=1).astype(np.float32)
    return Head(weight - weight.mean(axis=0), np.zeros(k, dtype=np.float32), strength=0.1)


@cache
def sample_analysis(n_classes: int = 2, *, network: bool = False, hostile: bool = False) -> Analysis:
    """Return an analysis with images, true groups, fits, results and trust.

    Parameters
    ----------
    n_classes : int
    network : bool
        Whether the whole network is repaired and not the last layer.
    hostile : bool
        Whether names of classes and images would do harm where they are not escaped.
    """
    task = planted_shortcut(n_classes, (60 * n_classes, IMAGES, IMAGES), correlation=0.75, side=SIDE, noise=0.5)
    if hostile:
        task = renamed(task)
    learner = "exmap+subg" if network else "exmap+dfr"
    settings = load_settings("digits", SMALL)
    model = Looks(task, 0.3).eval()
    maps, outputs = explain_split(model, task.val, settings.explain)
    val = task.val
    explained = Explained("val", val.ids, val.labels, val.class_names, outputs, maps)
    groups = ExMapGroups(settings.cluster).infer(explained, seed=0)
    test = collect_outputs(model, task.test)
    if network:
        repaired = Looks(task, 0.2).eval()
        fit = Fit(collect_outputs(repaired, task.test).predicted[None], network=repaired, epoch=1)
    else:
        heads = tuple(last_layer(n_classes, patch) for patch in (0.2, 0.15))
        fit = Fit(np.stack([head.predict(test.features) for head in heads]), heads)
    fits = {learner: fit}
    truth = val.true_groups()
    return Analysis(
        settings,
        task,
        explained,
        test,
        {ExMapGroups.name: groups},
        network=lambda: model,
        oracle=Groups(truth.index, truth.names, "oracle", ("true groups",)),
        fits=fits,
        results=results_of(task, settings, {"erm": test.predicted[None], learner: fit.predicted}, explained),
        trust=measure_trust(explained, groups, settings, model=lambda: model, split=val),
        made_by={"python": "3.12", "machine": "Linux"},
        grouping="0123abcd",
    )


def renamed(task: Task) -> Task:
    """Return the task with names that would do harm in a page where they are not escaped."""

    def split(old: Split) -> Split:
        classes = (f"<b>{old.class_names[0]}</b>", *old.class_names[1:])
        return replace(old, ids=(HOSTILE, *old.ids[1:]), class_names=classes)

    return replace(task, train=split(task.train), val=split(task.val), test=split(task.test))


def results_of(task: Task, settings: Settings, predicted: dict[str, Any], explained: Explained) -> Results:
    """Return what was measured of predictions by method."""
    truth = task.test.true_groups()
    methods = {}
    for name, classes in predicted.items():
        measured = measure(
            classes,
            task.test.labels,
            truth.index,
            truth.names,
            rng=generator(0, name),
            train_counts=task.train.true_groups().counts(),
            bootstrap=50,
        )
        used = {"training": ("class labels",), "epoch_selection": (), "evaluation": ("true groups",)}
        methods[name] = measured.changed(labels_used=used)
    maps = explained.maps()
    return Results(
        dataset=task.name,
        preset=settings.preset,
        seed=settings.seed,
        grouped_split="val",
        skipped_images={},
        methods=methods,
        group_inference={},
        clusters={},
        heatmaps={**maps.health(), "check": {"layer": None, **maps.check}},
        seconds={"train": 61.0, "explain": 2.5, "total": 63.5},
    )


def without_images(analysis: Analysis, *, truth: bool = True) -> Analysis:
    """Return the analysis as it is where the data are not at hand."""

    def split(old: Split) -> Split:
        images = MissingImages(len(old), old.images.shape, "were not found")
        return replace(old, images=images, truth=old.truth if truth else None)

    task = analysis.task
    task = replace(task, train=split(task.train), val=split(task.val), test=split(task.test))
    trust = None if analysis.trust is None else analysis.trust.changed(gradient=None)
    return replace(
        analysis,
        task=task,
        trust=trust,
        oracle=analysis.oracle if truth else None,
        no_images="the data are not at hand: they were not found; say where they are with --data-dir",
    )


def with_edits(analysis: Analysis) -> Analysis:
    """Return the analysis after a person renamed a group, and a repair by what that made."""
    edit = GroupEdit(group=analysis.pseudo_groups.names[0], name="looks at the bar")
    edits = Edits(format=1, source="exmap", grouping=analysis.grouping, edits=(edit,))
    return with_method(
        replace(
            analysis,
            settings=analysis.settings.model_copy(update={"edits": edits}),
            groups={**analysis.groups, "exmap-edited": edit_groups(analysis.pseudo_groups, edits)},
        ),
        "exmap-edited+dfr",
    )


def with_choice(analysis: Analysis) -> Analysis:
    """Return the analysis with a choice of groups, and the repair by these."""
    assert analysis.results is not None
    record = AutoRecord.from_json(json.loads(WRITTEN.read_text())["auto"])
    chosen = with_method(analysis, "auto+dfr")
    assert chosen.results is not None
    return replace(chosen, results=chosen.results.changed(auto=record))


def with_method(analysis: Analysis, name: str) -> Analysis:
    """Return the analysis with another method that does what its own one does."""
    assert analysis.method is not None
    assert analysis.results is not None
    fits = {**analysis.fits, name: analysis.fits[analysis.method]}
    methods = {**analysis.results.methods, name: analysis.results.methods[analysis.method]}
    return replace(analysis, fits=fits, results=analysis.results.changed(methods=methods))
