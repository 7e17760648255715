"""The Python front door: load, train, infer groups, retrain, evaluate, analyze; nothing here touches a run folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from exmap.analysis import Analysis
from exmap.auto import AutoChoice, choose_groups
from exmap.data import Split, Task, build_task, dataset_names
from exmap.errors import SettingsError, unknown_name
from exmap.evaluation import group_table
from exmap.explain import explain_split, make_explainer
from exmap.groups import ExMapGroups, GeorgeGroups, check_channels
from exmap.model import check_inputs, collect_outputs, initial_model
from exmap.model.training import train_model
from exmap.pipeline.memory import analyze_in_memory
from exmap.records import Explained, Groups, GroupTable, Heatmaps, Listener, Outputs, silent
from exmap.runtime import child_seed, generator
from exmap.settings import (
    ClusterSettings,
    ExplainSettings,
    ImageSettings,
    Settings,
    change_settings,
    load_settings,
    preset_names,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = ["GEORGE", "ExMap", "analyze", "evaluate", "load", "train"]


def load(name: str, *, data_dir: str | Path | None = None, listen: Listener = silent, **changes: Any) -> Task:
    """Load a data set by its own name or a preset's.

    Parameters
    ----------
    name : str
        A data set's name (``exmap data list`` shows them) or a preset's. ``folder`` and ``table`` are your own images.
    data_dir : path, optional
        Folder of the data set's files; by default that in the environment variable EXMAP_DATA_DIR.
    listen : Listener
        Called with progress while image files are opened for the first time.
    **changes
        Other settings of the data, for example ``correlation=0.5`` or ``table="labels.csv"``, and of the images, for
        example ``resize=128, crop=112``.

    Examples
    --------
    >>> load("digits").train.class_names
    ('digit 0-4', 'digit 5-9')
    """
    folder = data_dir or os.environ.get("EXMAP_DATA_DIR") or None
    if name in preset_names():
        source: str = name
    elif name in dataset_names():
        source, changes = "digits", {"name": name, **changes}
    else:
        raise SettingsError(unknown_name("data set", name, {*dataset_names(), *preset_names()}))
    sections = {key: "images" if key in ImageSettings.model_fields else "data" for key in changes}
    fields = {f"{sections[key]}__{key}": value for key, value in changes.items()}
    settings = load_settings(source, (), data__dir=folder, **fields)
    return build_task(settings.data, settings.images, listen=listen)


def train(task: Task, settings: Settings | None = None, *, seed: int = 0, listen: Listener = silent) -> nn.Module:
    """Train a classifier by empirical risk minimisation.

    Parameters
    ----------
    task : Task
    settings : Settings, optional
        Its model, train and runtime sections are used. By default the preset of the task's name, or plain defaults.
    seed : int
    listen : Listener

    Returns
    -------
    torch.nn.Module
        In evaluation mode, with the weights of the epoch of best worst-class validation accuracy.
    """
    if settings is None:
        settings = load_settings(task.name) if task.name in preset_names() else Settings()
    model = initial_model(settings.model, task.n_classes, seed=child_seed(seed, "model"))
    train_model(
        model,
        task.train,
        task.val,
        settings.train,
        settings.runtime,
        seed=child_seed(seed, "train"),
        listen=listen,
    )
    return model.eval()


@dataclass
class ExMap:
    """Pseudo-groups from clustered heatmaps (Chakraborty, Sletten and Kampffmeyer, CVPR 2024).

    Parameters
    ----------
    scope : "global" or "local"
        Cluster all samples and cross with the class, or cluster inside each class.
    method : str
        ``spectral`` (number of clusters by the eigengap), ``kmeans`` or ``umap_kmeans``.
    n_clusters, n_neighbors : int, optional
        None lets the method choose.
    gap : "relative" or "absolute"
        Which eigengap chooses the number of clusters; "absolute" is the authors'.
    size : int, optional
        Side in pixels the heatmaps are reduced to; None keeps the image's.
    composite : str
        Rules of relevance propagation, by name; "auto" takes the default of the model's kind.
    target : "predicted", "true", "margin" or int
        The class that is explained; "margin" is the predicted class against the runner-up.
    explainer : str or object
        What explains: ``lrp``, another name of :func:`exmap.explain.explainer_names`, or an object with
        ``explain(model, x, target)`` or Captum's ``attribute(inputs, target=...)``.
    layer : str
        For ``lrp``: the module whose relevance by channel is kept in ``heatmaps_.channels``; "auto" takes one at three
        quarters of the depth, "none" keeps nothing.
    representation : "pixels" or "channels"
        What is clustered: the relevance of pixels, or that of the layer's channels.
    clusterer : object, optional
        An estimator with scikit-learn's ``fit(X)`` and ``labels_``, in the place of `method`; it is cloned.
    seed : int
    auto : bool
        Whether many groupings are weighed and one is chosen without group labels, as ``groups.auto`` does in a run.
        It weighs scopes, clusterings and numbers of clusters itself, so those and the representation are left at
        their defaults; heatmaps are of the given explainer, size, composite and target.

    Attributes
    ----------
    heatmaps_ : Heatmaps
    outputs_ : Outputs
        Features and logits. Both are set by :meth:`infer`.
    choice_ : AutoChoice
        With `auto`: what was chosen and why (``choice_.record``), and whether there is a shortcut to be repaired at all
        (``choice_.repair``). Set by :meth:`infer`.

    Examples
    --------
    >>> finder = ExMap(auto=True)
    >>> groups = finder.infer(model, task.val)  # doctest: +SKIP
    >>> if finder.choice_.repair:  # doctest: +SKIP
    ...     model = DFR().fit(model, task.val, groups)
    """

    scope: Literal["global", "local"] = "global"
    method: str = "spectral"
    n_clusters: int | None = None
    gap: Literal["relative", "absolute"] = "relative"
    n_neighbors: int | None = None
    size: int | None = None
    composite: str = "auto"
    target: Literal["predicted", "true", "margin"] | int = "predicted"
    explainer: str | Any = "lrp"
    layer: str = "auto"
    representation: Literal["pixels", "channels"] = "pixels"
    clusterer: Any = None
    seed: int = 0
    auto: bool = False
    heatmaps_: Heatmaps = field(init=False, repr=False)
    outputs_: Outputs = field(init=False, repr=False)
    choice_: AutoChoice = field(init=False, repr=False)

    def infer(self, model: nn.Module, split: Split, *, listen: Listener = silent) -> Groups:
        """Explain and cluster the images of a split; the model stays as it is.

        Parameters
        ----------
        model : torch.nn.Module
            Any classifier: see :func:`exmap.model.logits_of` for what it may return.
        split : Split
            Usually the validation split. Its true groups are not looked at. With `auto`, images that the model was not
            trained on: it is right on those it was.
        listen : Listener

        Raises
        ------
        SettingsError
            For an unknown name, or a clustering that `auto` would ignore.
        DataError
            For a model that does not fit the split, or cannot be explained; see :func:`exmap.model.check_inputs`.
        """
        if self.auto:
            self._check_auto()
        explain = self._settings()
        own = None if isinstance(self.explainer, str) else make_explainer(self.explainer)
        needs_gradient = getattr(own or make_explainer(explain.explainer), "needs_gradient", True)
        _check(model, split, gradient=needs_gradient)
        self.heatmaps_, self.outputs_ = explain_split(model, split, explain, explainer=own, listen=listen)
        explained = _explained(split, self.outputs_, self.heatmaps_)
        if self.auto:
            self.choice_ = choose_groups(explained, seed=child_seed(self.seed, "auto"), listen=listen)
            return self.choice_.groups
        source = ExMapGroups(_clustering(self), clusterer=self.clusterer)
        return source.infer(explained, seed=child_seed(self.seed, "groups"))

    def _settings(self) -> ExplainSettings:
        """Return the settings of the heatmaps."""
        made = change_settings(
            Settings(),
            explain__explainer=self.explainer if isinstance(self.explainer, str) else "lrp",
            explain__composite=self.composite,
            explain__target=self.target,
            explain__layer=self.layer,
            explain__size=self.size,
        )
        check_channels(_clustering(self), made.explain)
        return made.explain

    def _check_auto(self) -> None:
        """Refuse a clustering that would not be made."""
        usual, names = ExMap(), ("scope", "method", "n_clusters", "n_neighbors", "gap", "representation", "clusterer")
        if ignored := [f"{name}={value!r}" for name in names if (value := getattr(self, name)) != getattr(usual, name)]:
            raise SettingsError(
                f"ExMap(auto=True) weighs scopes, methods and numbers of clusters itself and would ignore "
                f"{', '.join(ignored)}; leave that out, or auto"
            )


@dataclass
class GEORGE:
    """Pseudo-groups from clustered features (Sohoni et al., 2020): the same chain without heatmaps.

    Parameters
    ----------
    scope, method, n_clusters, gap, n_neighbors, seed
        As for :class:`ExMap`; the absolute eigengap gives the many clusters GEORGE's paper wants.
    """

    scope: Literal["global", "local"] = "local"
    method: str = "spectral"
    n_clusters: int | None = None
    gap: Literal["relative", "absolute"] = "absolute"
    n_neighbors: int | None = None
    seed: int = 0

    def infer(self, model: nn.Module, split: Split, *, listen: Listener = silent) -> Groups:
        """Cluster the penultimate features of a split; the model stays as it is."""
        _check(model, split, gradient=False)
        outputs = collect_outputs(model, split, listen=listen)
        explained = _explained(split, outputs, None)
        return GeorgeGroups(_clustering(self)).infer(explained, seed=child_seed(self.seed, "groups"))


def _explained(split: Split, outputs: Outputs, maps: Heatmaps | None) -> Explained:
    return Explained(split.name, split.ids, split.labels, split.class_names, outputs, maps)


def _check(model: nn.Module, split: Split, *, gradient: bool = True) -> None:
    """Refuse a model that cannot be worked with on the split, before any work."""
    images = split.images.batch(np.arange(min(2, len(split)), dtype=np.int64))
    check_inputs(model, images, split.n_classes, split.class_names, gradient=gradient)


def _clustering(chosen: ExMap | GEORGE) -> ClusterSettings:
    """Return the settings of the clustering that a source of groups was constructed with."""
    return change_settings(
        Settings(),
        cluster__method=chosen.method,
        cluster__scope=chosen.scope,
        cluster__n_clusters=chosen.n_clusters,
        cluster__gap=chosen.gap,
        cluster__n_neighbors=chosen.n_neighbors,
        cluster__representation=getattr(chosen, "representation", "pixels"),
    ).cluster


def evaluate(model: nn.Module, split: Split, groups: Groups | None = None, *, seed: int = 0) -> GroupTable:
    """Return the model's accuracy by group, with counts and bootstrap intervals.

    Parameters
    ----------
    model : torch.nn.Module
        Any classifier: see :func:`exmap.model.logits_of` for what it may return.
    split : Split
    groups : Groups, optional
        Groups of this split to report by; by default its true groups, or its classes where it has none.
    seed : int
        Of the bootstrap.
    """
    if groups is not None:
        index, names = groups.index, groups.names
    elif split.truth is not None:
        index, names = split.true_groups().index, split.true_groups().names
    else:
        index, names = split.labels, split.class_names
    _check(model, split, gradient=False)
    predicted = collect_outputs(model, split).predicted
    return group_table(np.asarray(predicted), split.labels, index, names, rng=generator(seed, "bootstrap"))


def analyze(
    model: nn.Module,
    images: Split | Task,
    *,
    test: Split | None = None,
    train: Split | None = None,
    learner: str = "dfr",
    sources: Sequence[str] = ("exmap",),
    settings: Settings | Sequence[str] = (),
    explainer: Any = None,
    clusterer: Any = None,
    auto: bool = False,
    seed: int = 0,
    listen: Listener = silent,
) -> Analysis:
    """Explain a classifier, group its images, repair it by the groups, and measure what that gives.

    Parameters
    ----------
    model : torch.nn.Module
        Any classifier: see :func:`exmap.model.logits_of` for what it may return. It stays as it is.
    images : Split or Task
        What is explained and grouped, best images that the model was not trained on. Of a task its validation split
        is explained, and its test split is for measuring.
    test : Split, optional
        Images to measure on. Without them a random half of each class of `images` is kept for that.
    train : Split, optional
        What the model was trained on; for learners that retrain the whole network.
    learner : str
        What repairs the classifier, as ``exmap bench`` writes it: ``dfr``, ``afr``, ``subg[smallest_group=3]``.
    sources : sequence of str
        Sources of groups to compare; ExMap's is always among them.
    settings : Settings or sequence of str
        Other settings of the chain; a sequence holds ``section.key=value`` items, as ``exmap run --set`` takes them.
    explainer : object, optional
        In the place of relevance propagation; see :class:`ExMap`.
    clusterer : object, optional
        An estimator with scikit-learn's ``fit(X)`` and ``labels_``, in the place of spectral clustering.
    auto : bool
        Whether a grouping is also chosen among many, without group labels.
    seed : int
    listen : Listener

    Returns
    -------
    Analysis
        With ``report(path)``, ``to_frame()``, ``repaired()`` and ``results``.

    Raises
    ------
    SettingsError
        For an unknown name or option, and for a learner of the whole network without `train`.
    DataError
        For a model that does not fit the images, or cannot be explained.

    Examples
    --------
    >>> analysis = exmap.analyze(model, task)  # doctest: +SKIP
    >>> analysis.report("report.html")  # doctest: +SKIP
    >>> fixed = analysis.repaired()  # doctest: +SKIP
    """
    task = images if isinstance(images, Task) else _as_task(images, test, train, seed)
    chosen = settings if isinstance(settings, Settings) else change_settings(Settings(), settings)
    names = list(dict.fromkeys(("exmap", *sources)))
    changes: dict[str, Any] = {"groups__sources": names, "groups__auto": auto, "retrain__learner": learner}
    if chosen.explain.size is None and min(task.val.images.shape[1:]) > 2 * HEATMAP_SIDE:
        changes["explain__size"] = HEATMAP_SIDE
    chosen = change_settings(chosen, seed=seed, **changes)
    check_channels(chosen.cluster, chosen.explain)
    own = None if explainer is None else make_explainer(explainer)
    _check(model, task.val, gradient=getattr(own or make_explainer(chosen.explain.explainer), "needs_gradient", True))
    return analyze_in_memory(
        model,
        task,
        chosen,
        explainer=own,
        clusterer=clusterer,
        whole_networks=isinstance(images, Task) or train is not None,
        listen=listen,
    )


HEATMAP_SIDE = 28  # pixels of the heatmaps of larger images, where their size is not given


def _as_task(images: Split, test: Split | None, train: Split | None, seed: int) -> Task:
    """Return a task of the images that are given, with a random half of each class kept for measuring if need be."""
    grouped = replace(images, name="val")
    if test is None:
        rng = generator(seed, "analyze", "halves")
        turn = np.empty(len(images), dtype=np.int64)
        for label in np.unique(images.labels):
            rows = np.flatnonzero(images.labels == label)
            turn[rng.permutation(rows)] = np.arange(len(rows))
        grouped, test = grouped.rows(np.flatnonzero(turn % 2 == 0)), grouped.rows(np.flatnonzero(turn % 2 == 1))
    task = Task(
        "images", replace(grouped if train is None else train, name="train"), grouped, replace(test, name="test")
    )
    task.check()
    return task
