"""Explain, group, repair and measure a classifier of your own in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from exmap.analysis import Analysis
from exmap.api.chain import check_fits
from exmap.data import Split, Task
from exmap.explain import make_explainer
from exmap.groups import check_channels
from exmap.methods import parse_part
from exmap.pipeline.memory import analyze_in_memory
from exmap.records import Listener, silent
from exmap.runtime import generator
from exmap.settings import Settings, change_settings

if TYPE_CHECKING:
    from torch import nn

__all__ = ["analyze"]

ONLY_EXMAP = ("groups.sources=[exmap]",)
HEATMAP_SIDE = 28  # pixels of the heatmaps of larger images, where their size is not given


def analyze(
    model: nn.Module,
    images: Split | Task,
    *,
    test: Split | None = None,
    train: Split | None = None,
    learner: str | None = None,
    sources: Sequence[str] | None = None,
    settings: Settings | Sequence[str] = (),
    explainer: Any = None,
    clusterer: Any = None,
    auto: bool | None = None,
    seed: int | None = None,
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
    learner : str, optional
        What repairs the classifier, as ``exmap bench`` writes it: ``dfr``, ``afr``, ``subg[smallest_group=3]``;
        by default that of the settings, ``dfr``.
    sources : sequence of str, optional
        Sources of groups to compare; ExMap's is always among them, and by default alone.
    settings : Settings or sequence of str
        Other settings of the chain; a sequence holds ``section.key=value`` items, as ``exmap run --set`` takes them.
    explainer : object, optional
        In the place of relevance propagation; see :class:`ExMap`.
    clusterer : object, optional
        An estimator with scikit-learn's ``fit(X)`` and ``labels_``, in the place of spectral clustering.
    auto : bool, optional
        Whether a grouping is also chosen among many, without group labels; by default as in the settings.
    seed : int, optional
        By default that of the settings, 0.
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
    given = settings if isinstance(settings, Settings) else change_settings(Settings(), [*ONLY_EXMAP, *settings])
    changes: dict[str, Any] = {"seed": seed, "groups__auto": auto}
    if sources is not None:
        changes["groups__sources"] = list(dict.fromkeys(("exmap", *sources)))
    if learner is not None:
        part = parse_part(learner)
        changes |= {"retrain__learner": part.name, **{f"retrain__{key}": value for key, value in part.options}}
    chosen = change_settings(given, **changes)
    task = images if isinstance(images, Task) else _as_task(images, test, train, chosen.seed)
    if chosen.explain.size is None and min(task.val.images.shape[1:]) > 2 * HEATMAP_SIDE:
        chosen = change_settings(chosen, explain__size=HEATMAP_SIDE)
    check_channels(chosen.cluster, chosen.explain)
    own = None if explainer is None else make_explainer(explainer)
    check_fits(
        model, task.val, gradient=getattr(own or make_explainer(chosen.explain.explainer), "needs_gradient", True)
    )
    return analyze_in_memory(
        model,
        task,
        chosen,
        explainer=own,
        clusterer=clusterer,
        whole_networks=isinstance(images, Task) or train is not None,
        listen=listen,
    )


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
        "images",
        replace(grouped, name="train", truth=None) if train is None else replace(train, name="train"),
        grouped,
        replace(test, name="test"),
    )
    task.check()
    return task
