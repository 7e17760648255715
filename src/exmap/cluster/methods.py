"""Estimators that cluster, by the name of the settings, or from an object with scikit-learn's contract."""

from __future__ import annotations

import copy
from typing import Any

from sklearn.base import clone

from exmap.errors import SettingsError
from exmap.registry import CLUSTERERS
from exmap.settings import ClusterSettings

__all__ = ["as_clusterer", "clusterer_names", "make_clusterer"]

SHARED = ("n_clusters", "gap", "n_neighbors")  # settings that several methods have as an option


def clusterer_names() -> list[str]:
    """Return the registered names, sorted."""
    return CLUSTERERS.names()


def make_clusterer(settings: ClusterSettings, seed: int) -> Any:
    """Return an unfitted estimator: ``fit(X)`` sets ``labels_``.

    Parameters
    ----------
    settings : ClusterSettings
        Of ``n_clusters``, ``gap`` and ``n_neighbors`` the method is given those that it has and that are set; for the
        others its own defaults hold.
    seed : int
        Its ``random_state``.

    Raises
    ------
    SettingsError
        For an unknown method or option, and for a number of clusters or neighbours that the method does not take.
    """
    known = CLUSTERERS.options(settings.method)
    shared = {name: value for name in SHARED if (value := getattr(settings, name)) is not None}
    for name in ("n_clusters", "n_neighbors"):
        if name in shared and name not in known:
            raise SettingsError(
                f"the clustering method {settings.method} has no {name}, got {shared[name]}; leave cluster.{name} out"
            )
    options = {name: value for name, value in shared.items() if name in known}
    return CLUSTERERS.build(settings.method, {**options, **settings.options}, random_state=seed)


def as_clusterer(clusterer: Any, seed: int) -> Any:
    """Return an unfitted copy of an estimator that is given as an object.

    Parameters
    ----------
    clusterer : object
        With scikit-learn's ``fit(X)``, which sets ``labels_``; -1 in it leaves a sample unassigned. It stays as it is.
    seed : int
        The copy's ``random_state``, where it has one that is not set.

    Raises
    ------
    SettingsError
        If it cannot be fitted.

    Examples
    --------
    >>> from sklearn.cluster import KMeans
    >>> as_clusterer(KMeans(3), seed=7)
    KMeans(n_clusters=3, random_state=7)
    """
    if isinstance(clusterer, type) or not callable(getattr(clusterer, "fit", None)):
        raise SettingsError(
            f"a clusterer must be one of {', '.join(clusterer_names())}, or an object with fit(X) that sets labels_, "
            f"got {clusterer!r:.80}; give an instance"
        )
    if not callable(getattr(clusterer, "get_params", None)):
        return copy.deepcopy(clusterer)
    made = clone(clusterer)
    if made.get_params().get("random_state", seed) is None:
        made.set_params(random_state=seed)
    return made
