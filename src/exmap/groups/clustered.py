"""Groups by clustering: ExMap clusters heatmaps, GEORGE (Sohoni et al., 2020) clusters features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from exmap.cluster.rows import finite_rows, row_blocks
from exmap.errors import DataError, SettingsError
from exmap.groups.assign import cluster_samples, crossed_groups
from exmap.groups.source import CLASS_LABELS
from exmap.methods import text_of
from exmap.records import Explained, Groups
from exmap.registry import CLUSTERERS, SOURCES
from exmap.runtime import child_seed
from exmap.settings import ClusterSettings, ExplainSettings, Settings, change_settings

__all__ = ["ExMapGroups", "GeorgeGroups", "check_channels", "check_george", "explained_vectors", "scaled_features"]


@SOURCES.register
@dataclass(frozen=True)
class ExMapGroups:
    """Clusters of heatmaps, or of the relevance of channels, crossed with the class (ExMap, section 4).

    Parameters
    ----------
    clustering : ClusterSettings
    size : int, optional
        Side in pixels to which heatmaps are reduced before they are clustered; whoever explains reduces them.
    clusterer : object, optional
        With scikit-learn's ``fit(X)`` and ``labels_``, in place of the one that `clustering` names.
    """

    clustering: ClusterSettings = ClusterSettings()
    size: int | None = None
    clusterer: Any = None
    name: ClassVar[str] = "exmap"
    needs: ClassVar[tuple[str, ...]] = ()
    sections: ClassVar[tuple[str, ...]] = ("cluster",)

    @classmethod
    def from_settings(cls, settings: Settings, options: Mapping[str, Any]) -> ExMapGroups:
        """Return the source that the section ``cluster`` describes, with options."""
        clustering, size = _with_options(settings, "cluster", options)
        if clustering.representation == "channels" and size is not None:
            raise SettingsError(
                "size reduces heatmaps of pixels, and representation=channels clusters none, got "
                f"size={size}; leave size out"
            )
        return cls(clustering, size)

    @staticmethod
    def option_names(options: Mapping[str, Any]) -> set[str]:
        """Return the names of its options; those of the clustering method are among them."""
        return {*_clustering_options(options), "size"}

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        """Return the pseudo-groups; images without a finite heatmap are unassigned."""
        vectors = explained_vectors(explained, self.clustering.representation)
        return _clustered(self, vectors, explained, seed)


@SOURCES.register
@dataclass(frozen=True)
class GeorgeGroups:
    """Clusters of features divided by their largest absolute value (GEORGE, as ExMap's supplement has it).

    Parameters
    ----------
    clustering : ClusterSettings
    clusterer : object, optional
        As for :class:`ExMapGroups`.
    """

    clustering: ClusterSettings = ClusterSettings(scope="local", gap="absolute")
    clusterer: Any = None
    name: ClassVar[str] = "george"
    needs: ClassVar[tuple[str, ...]] = ()
    sections: ClassVar[tuple[str, ...]] = ("groups.george",)

    @classmethod
    def from_settings(cls, settings: Settings, options: Mapping[str, Any]) -> GeorgeGroups:
        """Return the source that the section ``groups.george`` describes, with options."""
        return cls(_with_options(settings, "groups.george", options)[0])

    @staticmethod
    def option_names(options: Mapping[str, Any]) -> set[str]:
        """Return the names of its options; those of the clustering method are among them."""
        return _clustering_options(options) - {"representation"}

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        """Return the pseudo-groups; images without finite features are unassigned."""
        check_george(self.clustering)
        return _clustered(self, scaled_features(explained.features), explained, seed)


def _with_options(settings: Settings, section: str, options: Mapping[str, Any]) -> tuple[ClusterSettings, int | None]:
    """Return a section of the settings with options in it, and the size of heatmaps, which is checked as well."""
    size = options.get("size")
    given = [] if size is None else [f"explain.size={size}"]
    given += [f"{section}.{key}={text_of(value)}" for key, value in options.items() if key != "size"]
    changed: Any = change_settings(settings, given) if given else settings
    for name in section.split("."):
        changed = getattr(changed, name)
    clustering: ClusterSettings = changed
    return clustering, size


def _clustering_options(options: Mapping[str, Any]) -> set[str]:
    method = str(options.get("method", ClusterSettings().method))
    return {*ClusterSettings.model_fields, *CLUSTERERS.options(method)}


def _clustered(
    source: ExMapGroups | GeorgeGroups, vectors: NDArray[np.float32], explained: Explained, seed: int
) -> Groups:
    usable = finite_rows(vectors)
    if isinstance(source, ExMapGroups):
        usable &= explained.maps().finite
    clusters = cluster_samples(
        vectors,
        explained.labels,
        source.clustering,
        seed=child_seed(seed, source.name),
        usable=usable,
        clusterer=source.clusterer,
    )
    return crossed_groups(
        explained.labels,
        clusters.labels,
        explained.class_names,
        source=source.name,
        labels_used=(CLASS_LABELS,),
        clusters=clusters,
    )


def check_channels(clustering: ClusterSettings, explain: ExplainSettings) -> None:
    """Refuse to cluster channels whose relevance would not be kept."""
    if clustering.representation == "channels" and (explain.explainer != "lrp" or explain.layer == "none"):
        raise SettingsError(
            "cluster.representation=channels needs the relevance of an inner layer, which explain.explainer=lrp with "
            f"explain.layer=auto or a module's name gives, got explain.explainer={explain.explainer} and "
            f"explain.layer={explain.layer}; change these, or set cluster.representation=pixels"
        )


def check_george(clustering: ClusterSettings) -> None:
    """Refuse settings of GEORGE's clustering that are for heatmaps."""
    if clustering.representation != "pixels":
        raise SettingsError(
            f"the george source clusters features and takes no representation, got {clustering.representation!r}; "
            "leave groups.george.representation out, or set cluster.representation, which is ExMap's"
        )


def explained_vectors(explained: Explained, representation: str) -> NDArray[np.float32]:
    """Return what ExMap clusters: heatmaps of pixels, or the relevance of an inner layer's channels.

    Raises
    ------
    DataError
        If there are none.
    """
    maps = explained.maps()
    if representation == "channels":
        if maps.channels is None:
            raise DataError(
                "clustering by channels needs the relevance of an inner layer, and there is none: set explain.layer to "
                "auto or to a module's name with explain.explainer=lrp, or set cluster.representation=pixels"
            )
        return maps.channels
    return maps.flat()


def scaled_features(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features, shape (N, D), which may lie on disk, each image's divided by their largest absolute value."""
    scaled = np.empty(features.shape, dtype=np.float32)
    for block in row_blocks(*features.shape):
        peak = np.abs(features[block]).max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # infinity over infinity is no number, and left out as such
            scaled[block] = features[block] / np.where(peak > 0, peak, 1)
    return scaled
