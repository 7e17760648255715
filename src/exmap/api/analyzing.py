"""Explain, group, repair and measure a classifier of your own in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from exmap.analysis import Analysis
from exmap.data import Split, Task
from exmap.data.given import as_split
from exmap.data.labels import named_again
from exmap.errors import DataError, SettingsError
from exmap.explain import make_explainer
from exmap.groups import ExMapGroups, check_channels
from exmap.methods import Part, method_with, parse_part
from exmap.model import check_fits
from exmap.model.answers import check_class_order
from exmap.model.classifier import check_module
from exmap.model.named import ChosenOutputs, check_outputs
from exmap.pipeline.checks import check_before_work
from exmap.pipeline.memory import analyze_in_memory
from exmap.records import Listener, silent
from exmap.runtime import generator
from exmap.settings import Settings, change_settings

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Prepared", "analyze", "prepare"]

USUAL = ("groups.sources=[exmap]", "groups.auto=true")
NAMED = 5  # classes in an error
HEATMAP_SIDE = 28  # pixels of the heatmaps of larger images, where their size is not given


def analyze(
    model: nn.Module,
    images: Any,
    *,
    test: Any = None,
    train: Any = None,
    classes: Sequence[str] | None = None,
    transform: Callable[..., Any] | None = None,
    outputs: Sequence[int] | None = None,
    learner: str | None = None,
    sources: Sequence[str] | None = None,
    settings: Settings | Sequence[str] = (),
    explainer: Any = None,
    clusterer: Any = None,
    auto: bool | None = None,
    seed: int | None = None,
    listen: Listener = silent,
) -> Analysis:
    """Explain a classifier, test it for shortcuts, group its images, repair it, and measure the repair.

    Parameters
    ----------
    model : torch.nn.Module
        Any classifier: see :func:`exmap.model.logits_of` for what it may return. It stays as it is.
    images : Split, Task, data set, DataLoader, or (images, labels)
        Labelled images to explain and group, preferably images that the model was not trained on: a torch data set such
        as torchvision's ImageFolder, a DataLoader, a Hugging Face data set, or arrays; see
        :func:`exmap.data.given.as_split`. If a Task is given, its validation split is explained and its test split
        is measured.
    test : likewise, optional
        Images to measure on. Without them all of `images` are measured, in parts (``evaluate.folds``): each part by
        what was fitted to the others. For learners that retrain the whole network, a random half of each class is kept
        for measuring instead.
    train : likewise, optional
        The images that the model was trained on; learners that retrain the whole network need them.
    classes : sequence of str, optional
        Names of the classes, in the order of the model's outputs; by default those of the data set.
    transform : callable, optional
        Turns a PIL image into the model's input, if the data set holds PIL images.
    outputs : sequence of int, optional
        Which of the model's outputs are the classes, if it has more outputs than that.
    learner : str, optional
        The repair, as ``exmap bench`` writes it: ``dfr``, ``afr``, ``subg[smallest_group=3]``. By default that of the
        settings, ``dfr``.
    sources : sequence of str, optional
        Sources of groups to compare. ExMap's is always among them, and is the only one by default.
    settings : Settings or sequence of str
        Other settings of the chain; a sequence holds ``section.key=value`` items, as ``exmap run --set`` takes them.
    explainer : object, optional
        An explainer to use in place of relevance propagation; see :class:`ExMap`.
    clusterer : object, optional
        An estimator with scikit-learn's ``fit(X)`` and ``labels_``, in place of spectral clustering.
    auto : bool, optional
        Whether the classifier is tested for shortcuts, and one grouping is chosen among many without group labels. True
        by default, unless `settings` is a Settings object that says otherwise.
    seed : int, optional
        By default that of the settings, 0.
    listen : callable
        Is called with the progress of long steps: ``listen=print`` shows it.

    Returns
    -------
    Analysis
        With ``report(path)``, ``findings()``, ``groups``, ``repair()``, ``compare(model, images)`` and ``results``.

    Raises
    ------
    SettingsError
        For an unknown name or option, and for a learner of the whole network without `train`.
    DataError
        For a model that does not fit the images, or cannot be explained.

    Examples
    --------
    >>> analysis = exmap.analyze(model, dataset)  # doctest: +SKIP
    >>> analysis.report("report.html")  # doctest: +SKIP
    >>> fixed = analysis.repair()  # doctest: +SKIP
    """
    prepared = prepare(
        model,
        images,
        test=test,
        train=train,
        classes=classes,
        transform=transform,
        outputs=outputs,
        learner=learner,
        sources=sources,
        settings=settings,
        explainer=explainer,
        clusterer=clusterer,
        auto=auto,
        seed=seed,
        listen=listen,
    )
    return analyze_in_memory(prepared.model, prepared.task, prepared.settings, **prepared.given)


@dataclass(frozen=True)
class Prepared:
    """A classifier, images and settings that fit together.

    Attributes
    ----------
    model : torch.nn.Module
    task : Task
    settings : Settings
    given : mapping
        The other arguments of :func:`exmap.pipeline.memory.analyze_in_memory`.
    """

    model: nn.Module
    task: Task
    settings: Settings
    given: Mapping[str, Any]


def prepare(
    model: nn.Module,
    images: Any,
    *,
    test: Any = None,
    train: Any = None,
    classes: Sequence[str] | None = None,
    transform: Callable[..., Any] | None = None,
    outputs: Sequence[int] | None = None,
    learner: str | None = None,
    sources: Sequence[str] | None = None,
    settings: Settings | Sequence[str] = (),
    explainer: Any = None,
    clusterer: Any = None,
    auto: bool | None = None,
    seed: int | None = None,
    listen: Listener = silent,
) -> Prepared:
    """Check what :func:`analyze` is given, and make a task and settings of it."""
    check_module(model)
    if test is not None and test is images:
        raise SettingsError(
            "test= must be other images than those that are analyzed, got the same; leave it out, and all are measured "
            "in parts"
        )
    if isinstance(settings, str):
        settings = (settings,)
    if classes is not None:
        classes = _names(classes)
    given = settings if isinstance(settings, Settings) else change_settings(Settings(), [*USUAL, *settings])
    changes: dict[str, Any] = {"seed": seed, "groups__auto": auto}
    if sources is not None:
        changes["groups__sources"] = list(dict.fromkeys(("exmap", *sources)))
    if learner is not None:
        part = parse_part(learner)
        changes |= {"retrain__learner": part.name, **{f"retrain__{key}": value for key, value in part.options}}
    chosen = change_settings(given, **changes)

    def split(each: Any, name: str) -> Split:
        return as_split(each, name=name, class_names=classes, transform=transform)

    if isinstance(images, Task):
        task = images
    else:
        grouped = split(images, "val")
        task = _as_task(
            grouped,
            None if test is None else _in_classes(split(test, "test"), grouped.class_names),
            None if train is None else _in_classes(split(train, "train"), grouped.class_names),
            halves=_trains_networks(chosen),
            seed=chosen.seed,
        )
    if chosen.explain.size is None and min(task.val.images.shape[1:]) > 2 * HEATMAP_SIDE:
        chosen = change_settings(chosen, explain__size=HEATMAP_SIDE)
    check_channels(chosen.cluster, chosen.explain)
    own = None if explainer is None else make_explainer(explainer)
    if outputs is not None:
        model = ChosenOutputs(model, _numbers(outputs, task.n_classes))
    check_fits(
        model, task.val, gradient=getattr(own or make_explainer(chosen.explain.explainer), "needs_gradient", True)
    )
    check_before_work(chosen, task, rehearse=False)
    if classes is None:
        check_class_order(model, task.val, how="classes=", seed=chosen.seed, listen=listen)
    return Prepared(
        model,
        task,
        chosen,
        {
            "explainer": own,
            "clusterer": clusterer,
            "whole_networks": isinstance(images, Task) or train is not None,
            "listen": listen,
        },
    )


def _names(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the classes as texts, each once."""
    if isinstance(classes, str):
        raise SettingsError(f"classes are given as a list of names, got the text {classes!r}; write [...]")
    names = tuple(map(str, classes))
    if (again := named_again(names)) is not None:
        raise SettingsError(f"each class must be named once, but classes= names {again!r} again; leave it out")
    return names


def _numbers(outputs: Sequence[int], n_classes: int) -> tuple[int, ...]:
    """Return the numbers of the chosen outputs, one for each class."""
    numbers = outputs if isinstance(outputs, Iterable) and not isinstance(outputs, str) else (outputs,)
    found = [n.item() if isinstance(n, np.integer) else n for n in numbers]
    if not found or any(type(n) is not int for n in found):
        raise SettingsError(f"outputs are given as a list of whole numbers, got {outputs!r}; write [5, 7]")
    check_outputs(found, n_classes)
    return tuple(found)


def _in_classes(split: Split, names: tuple[str, ...]) -> Split:
    """Return another set in the classes of the first: by their names, or by number where they have none.

    Raises
    ------
    DataError
        If it has other classes.
    """
    if split.class_names == names:
        return split
    if set(split.class_names) <= set(names):
        place = [names.index(name) for name in split.class_names]
    elif len(split.class_names) <= len(names) and split.class_names == tuple(map(str, range(len(split.class_names)))):
        place = list(range(len(split.class_names)))
    else:
        theirs, ours = (
            ", ".join(each[:NAMED]) + (", ..." if each[NAMED:] else "") for each in (split.class_names, names)
        )
        raise DataError(
            f"all sets must have the same classes, but {split.name} has {theirs} and the images {ours}; leave out the "
            "images of other classes, or name all by classes="
        )
    return replace(split, labels=np.array(place, dtype=np.int64)[split.labels], class_names=names)


def _trains_networks(settings: Settings) -> bool:
    """Return whether the learner retrains the whole network, which is too much to do once for each part."""
    return method_with(parse_part(settings.retrain.learner), Part(ExMapGroups.name)).whole_network


def _as_task(images: Split, test: Split | None, train: Split | None, *, halves: bool, seed: int) -> Task:
    """Return a task of the images that are given; without others they are measured by cross-fitting, or in halves."""
    grouped = replace(images, name="val")
    if test is None and halves:
        rng = generator(seed, "analyze", "halves")
        turn = np.empty(len(images), dtype=np.int64)
        for label in np.unique(images.labels):
            rows = np.flatnonzero(images.labels == label)
            turn[rng.permutation(rows)] = np.arange(len(rows))
        grouped, test = grouped.rows(np.flatnonzero(turn % 2 == 0)), grouped.rows(np.flatnonzero(turn % 2 == 1))
    task = Task(
        "images",
        replace(grouped, name="train", truth=None) if train is None else replace(train, name="train"),
        grouped,
        grouped if test is None else replace(test, name="test"),
        notes=tuple(dict.fromkeys(note for one in (images, train, test) if one is not None for note in one.notes)),
        cross_fitted=test is None,
    )
    task.check()
    return task
