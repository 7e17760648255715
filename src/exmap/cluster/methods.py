"""Clusterers by name: a table from name to a builder of estimators with scikit-learn's contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exmap.cluster.kmeans import SampledKMeans
from exmap.cluster.spectral import SpectralEigengap
from exmap.cluster.umap_kmeans import UmapKMeans
from exmap.config import ClusterSettings
from exmap.errors import SettingsError, unknown_name

__all__ = ["clusterer_names", "make_clusterer"]

DEFAULT_CLUSTERS = 2  # of the methods that cannot choose: the smallest number that can reveal a shortcut

_BUILDERS: dict[str, Callable[[ClusterSettings, int], Any]] = {
    "spectral": lambda s, seed: SpectralEigengap(s.n_clusters, gap=s.gap, n_neighbors=s.n_neighbors, random_state=seed),
    "kmeans": lambda s, seed: SampledKMeans(s.n_clusters or DEFAULT_CLUSTERS, random_state=seed),
    "umap_kmeans": lambda s, seed: UmapKMeans(
        s.n_clusters or DEFAULT_CLUSTERS, n_neighbors=s.n_neighbors, random_state=seed
    ),
}


def clusterer_names() -> list[str]:
    """Return the registered names, sorted."""
    return sorted(_BUILDERS)


def make_clusterer(settings: ClusterSettings, seed: int) -> Any:
    """Return an unfitted estimator: ``fit(X)`` sets ``labels_``.

    Raises
    ------
    SettingsError
        For an unknown method.
    """
    if settings.method not in _BUILDERS:
        raise SettingsError(unknown_name("clustering method", settings.method, _BUILDERS))
    return _BUILDERS[settings.method](settings, seed)
