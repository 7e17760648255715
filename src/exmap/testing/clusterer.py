"""What every clusterer keeps: scikit-learn's contract, and a seed that decides all."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from exmap.cluster import as_clusterer
from exmap.registry import CLUSTERERS
from exmap.testing.common import check_options, check_pickles, found, must, nothing_drawn

__all__ = ["check_clusterer"]


def check_clusterer(clusterer: Any, **options: Any) -> None:
    """Check a clusterer on 60 points around three centres.

    Parameters
    ----------
    clusterer : str, class or estimator
        A registered name, a dotted path ``package.module:Class``, a class that can be imported, or an estimator.
    **options
        Its options; not for an estimator.

    Raises
    ------
    AssertionError
        For the first promise that it breaks.

    Examples
    --------
    >>> from sklearn.cluster import HDBSCAN
    >>> check_clusterer(HDBSCAN(min_cluster_size=5, copy=True))
    """
    if isinstance(clusterer, str | type):
        name, _ = found(CLUSTERERS, clusterer)
        check_options(CLUSTERERS, name, options)
        made = [CLUSTERERS.build(name, options, random_state=seed) for seed in (0, 0)]
    else:
        name, made = type(clusterer).__name__, [as_clusterer(clusterer, 0) for _ in range(2)]
    what = f"the clusterer {name}"
    first, second = made
    _check_settings(what, first)
    check_pickles(what, first)
    data = points()
    kept, before = data.copy(), dict(first.get_params())
    with nothing_drawn(what):
        same = first.fit(data)
    must(same is first, f"fit of {what} must return the estimator itself, got {same!r:.60}")
    must(np.array_equal(data, kept), f"{what} must leave the data as they are, but changed them")
    must(first.get_params() == before, f"fit of {what} must change no setting, but changed some; results end in _")
    _check_labels(what, first.labels_, len(data))
    must(
        np.array_equal(first.labels_, second.fit(data).labels_),
        f"{what} must give the same labels for the same random_state, but gave others",
    )
    _check_labels(f"{what}, given float32,", clone(first).fit(data.astype(np.float32)).labels_, len(data))


def points() -> NDArray[np.float64]:
    """Return 60 points around three centres."""
    rng = np.random.default_rng(0)
    centres = np.repeat([0.0, 4.0, 9.0], [25, 20, 15])
    return np.asarray(centres[:, None] + rng.normal(0, 0.8, (60, 3)))


def _check_settings(what: str, estimator: Any) -> None:
    for method in ("fit", "get_params", "set_params"):
        must(
            callable(getattr(estimator, method, None)),
            f"{what} must have {method}, as scikit-learn's estimators have; derive it from BaseEstimator",
        )
    must(not hasattr(estimator, "labels_"), f"{what} must have no labels_ before it is fitted")
    settings = estimator.get_params()
    must(
        clone(estimator).get_params() == settings,
        f"{what} must be clonable: its constructor must keep each parameter as it is, under its own name",
    )
    takes = inspect.signature(type(estimator)).parameters
    must(set(settings) <= set(takes), f"{what} must take all its settings in the constructor")


def _check_labels(what: str, labels: Any, count: int) -> None:
    labels = np.asarray(labels)
    must(labels.shape == (count,), f"labels_ of {what} must have shape ({count},), got {labels.shape}")
    must(np.issubdtype(labels.dtype, np.integer), f"labels_ of {what} must be integers, got {labels.dtype}")
    seen = np.unique(labels[labels >= 0]).tolist()
    must(labels.min() >= -1, f"labels_ of {what} must be -1, for unassigned, or more, got {labels.min()}")
    must(seen == list(range(len(seen))), f"labels_ of {what} must count from 0 without gaps, got {seen}")
