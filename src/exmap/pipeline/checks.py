"""What can be known once the data are open is refused before anything is trained or explained."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from exmap.cluster import make_clusterer
from exmap.data import ArrayImages, Split, Task
from exmap.errors import SettingsError
from exmap.explain import explain_split
from exmap.explain.work import check_target
from exmap.groups.assign import FEWEST_TO_CLUSTER
from exmap.groups.source import make_source
from exmap.methods import parse_part
from exmap.model import initial_model
from exmap.records import IntArray
from exmap.registry import CLUSTERERS, LEARNERS
from exmap.runtime import child_seed
from exmap.settings import ClusterSettings, Settings, check_own_options

__all__ = ["check_before_work", "check_clustering"]

REHEARSED = 2  # images of noise


def check_before_work(settings: Settings, task: Task, *, rehearse: bool = True) -> None:
    """Refuse settings that the data, or the classifier, do not allow.

    Parameters
    ----------
    settings : Settings
    task : Task
        With its images, or as a run recorded it.
    rehearse : bool
        Whether two images of noise are explained with the classifier as it begins: an explainer's options, class,
        layer and patch are then checked as they will be used.

    Raises
    ------
    SettingsError
        In one sentence; what depends on a classifier's weights is not looked at.
    """
    check_own_options(settings)
    explained = task.split(settings.groups.split)
    side, size = min(explained.images.shape[1:]), settings.explain.size
    if size is not None and size > side:
        raise SettingsError(f"explain.size must be at most the image's side of {side} pixels, got {size}; lower it")
    kept = side if size is None else size
    check_target(settings.explain, task.n_classes)
    _check_learner(settings)
    for name, clustering, reduced in _clusterings(settings):
        check_clustering(clustering, explained.labels, name)
        if reduced is not None and reduced > kept:
            raise SettingsError(
                f"the source {name} reduces heatmaps, which have {kept} pixels a side, to {reduced}; give it a smaller "
                "size"
            )
    if task.cross_fitted and settings.evaluate.folds > len(explained):
        raise SettingsError(
            f"evaluate.folds must be at most the number of images, {len(explained)}, got {settings.evaluate.folds}; "
            "lower it"
        )
    if rehearse:
        _rehearse(settings, explained)


def check_clustering(clustering: ClusterSettings, labels: IntArray, name: str = "exmap") -> None:
    """Refuse more clusters, or neighbours, than images that are clustered together.

    Parameters
    ----------
    clustering : ClusterSettings
    labels : ndarray of int64, shape (N,)
        Classes of the images.
    name : str
        The source of groups, for errors.

    Raises
    ------
    SettingsError
    """
    if not callable(getattr(make_clusterer(clustering, 0), "fit", None)):
        raise SettingsError(
            f"a clustering method must be a class with scikit-learn's fit(X), but {clustering.method} is not; choose "
            f"one of {', '.join(CLUSTERERS.names())}, or another"
        )
    together = np.unique(labels, return_counts=True)[1] if clustering.scope == "local" else np.array([len(labels)])
    together = together[together >= FEWEST_TO_CLUSTER]  # fewer are one cluster
    if not len(together):
        return
    fewest, where = int(together.min()), "class" if clustering.scope == "local" else "split"
    for setting, wanted in (("n_clusters", clustering.n_clusters), ("n_neighbors", clustering.n_neighbors)):
        if wanted is not None and wanted > fewest:
            raise SettingsError(
                f"{setting} must be at most the number of images that are clustered together, {fewest} in the smallest "
                f"{where}, got {wanted} for the groups of {name}; lower it"
            )


def _clusterings(settings: Settings) -> Iterator[tuple[str, ClusterSettings, int | None]]:
    """Yield the sources that cluster: name, how they cluster, and the side that they reduce heatmaps to."""
    for text in settings.groups.sources:
        source = make_source(parse_part(text), settings)
        clustering = getattr(source, "clustering", None)
        if isinstance(clustering, ClusterSettings):
            yield text, clustering, getattr(source, "size", None)


def _check_learner(settings: Settings) -> None:
    """Make the learner as it will be made, and see that it can work in so many processes."""
    part = parse_part(settings.retrain.learner)
    options = {**settings.retrain.options, **dict(part.options)}
    learner = LEARNERS.build(part.name, options, seed=0, train=settings.train, runtime=settings.runtime)
    if getattr(learner, "one_process", False) and settings.runtime.processes > 1:
        raise SettingsError(
            f"{part.name} keeps track of samples or groups from batch to batch and trains in one process, got "
            f"{settings.runtime.processes}; set runtime.devices=1"
        )


def _rehearse(settings: Settings, explained: Split) -> None:
    model = initial_model(settings.model, explained.n_classes, seed=child_seed(settings.seed, "model"))
    pixels = np.random.default_rng(0).integers(0, 256, (REHEARSED, *explained.images.shape), dtype=np.uint8)
    labels = np.zeros(REHEARSED, dtype=np.int64)
    noise = Split(explained.name, ArrayImages(pixels), labels, ("0", "1"), explained.class_names)
    try:
        explain_split(model.eval(), noise, settings.explain)
    except SettingsError as error:
        raise SettingsError(f"the settings of explain do not fit the images or the model: {error}") from error
    except Exception:  # of the weights, which training is to change; where it is of the model, explaining tells
        return
