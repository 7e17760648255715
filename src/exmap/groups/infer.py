"""Where groups come from: one small class per source, all behind ``infer(evidence) -> Groups``.

ExMap clusters heatmaps; GEORGE (Sohoni et al., 2020) clusters features; the error set is JTT's (Liu et al., 2021);
classes alone and random clusters are controls. The oracle is the only one that holds true groups, and holds them
itself: the evidence that every source is given has no place for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from exmap.config import ClusterSettings, ExplainSettings
from exmap.errors import DataError, SettingsError
from exmap.groups.assign import cluster_samples, groups_from_clusters
from exmap.records import Groups, IntArray
from exmap.runtime import child_seed, generator

__all__ = [
    "ClassGroups",
    "ErrorSetGroups",
    "Evidence",
    "ExMapGroups",
    "GeorgeGroups",
    "GroupSource",
    "OracleGroups",
    "RandomGroups",
    "check_channels",
    "check_george",
    "explained_vectors",
    "scaled_features",
    "source_names",
    "split_classes",
]

CLASS_LABELS = "class labels"
MISTAKES = ("right", "wrong")


@dataclass(frozen=True)
class Evidence:
    """All that a source of groups may look at: what the classifier does with one split.

    Attributes
    ----------
    labels : ndarray of int64, shape (N,)
        Class labels.
    predicted : ndarray of int64, shape (N,)
    class_names : tuple of str
    heatmaps : ndarray of float32, shape (N, C * h * w), or None
    usable : ndarray of bool, shape (N,), or None
        False where the heatmap was not finite.
    features : ndarray of float32, shape (N, D), or None
    channels : ndarray of float32, shape (N, C), or None
        Relevance of an inner layer's channels.
    """

    labels: IntArray
    predicted: IntArray
    class_names: tuple[str, ...]
    heatmaps: NDArray[np.float32] | None = None
    usable: NDArray[np.bool_] | None = None
    features: NDArray[np.float32] | None = None
    channels: NDArray[np.float32] | None = None


class GroupSource(Protocol):
    """The seam: evidence in, groups out; the same seed gives the same groups."""

    name: ClassVar[str]

    def infer(self, evidence: Evidence, *, seed: int) -> Groups:
        """Return one group per sample."""
        ...


@dataclass(frozen=True)
class ExMapGroups:
    """Clusters of heatmaps, or of the relevance of channels, crossed with the class (ExMap, section 4)."""

    clustering: ClusterSettings = ClusterSettings()
    name: ClassVar[str] = "exmap"

    def infer(self, evidence: Evidence, *, seed: int) -> Groups:
        """Return the pseudo-groups; samples without a finite heatmap are unassigned."""
        vectors = explained_vectors(evidence, self.clustering.representation)
        seed = child_seed(seed, self.name)
        return _clustered(self.name, vectors, evidence.usable, evidence, self.clustering, seed)


def check_channels(clustering: ClusterSettings, explain: ExplainSettings) -> None:
    """Refuse to cluster channels whose relevance would not be kept."""
    if clustering.representation == "channels" and (explain.explainer != "lrp" or explain.layer == "none"):
        raise SettingsError(
            "cluster.representation=channels needs the relevance of an inner layer, which explain.explainer=lrp with "
            f"explain.layer=auto or a module's name gives, got explain.explainer={explain.explainer} and "
            f"explain.layer={explain.layer}; change these, or set cluster.representation=pixels"
        )


def explained_vectors(evidence: Evidence, representation: str) -> NDArray[np.float32]:
    """Return what ExMap clusters: heatmaps of pixels, or the relevance of an inner layer's channels.

    Raises
    ------
    DataError
        If the evidence has none.
    """
    if representation == "channels":
        if evidence.channels is None:
            raise DataError(
                "clustering by channels needs the relevance of an inner layer, and there is none: set explain.layer to "
                "auto or to a module's name with explain.explainer=lrp, or set cluster.representation=pixels"
            )
        return evidence.channels
    if evidence.heatmaps is None:
        raise DataError("the exmap source needs heatmaps, and the evidence has none; explain the split first")
    return evidence.heatmaps


@dataclass(frozen=True)
class GeorgeGroups:
    """Clusters of features divided by their largest absolute value (GEORGE, as ExMap's supplement has it)."""

    clustering: ClusterSettings = ClusterSettings(scope="local", gap="absolute")
    name: ClassVar[str] = "george"

    def infer(self, evidence: Evidence, *, seed: int) -> Groups:
        """Return the pseudo-groups."""
        check_george(self.clustering)
        if evidence.features is None:
            raise DataError("the george source needs features, and the evidence has none; collect outputs first")
        scaled = scaled_features(evidence.features)
        return _clustered(self.name, scaled, None, evidence, self.clustering, child_seed(seed, self.name))


def check_george(clustering: ClusterSettings) -> None:
    """Refuse settings of GEORGE's clustering that are for heatmaps."""
    if clustering.representation != "pixels":
        raise SettingsError(
            f"the george source clusters features and takes no representation, got {clustering.representation!r}; "
            "leave groups.george.representation out, or set cluster.representation, which is ExMap's"
        )


def scaled_features(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features, shape (N, D), each sample's divided by their largest absolute value."""
    peak = np.abs(features).max(axis=1, keepdims=True)
    return np.asarray(features / np.where(peak > 0, peak, 1), dtype=np.float32)


def _clustered(
    name: str,
    vectors: NDArray[np.float32],
    usable: NDArray[np.bool_] | None,
    evidence: Evidence,
    settings: ClusterSettings,
    seed: int,
) -> Groups:
    clusters = cluster_samples(vectors, evidence.labels, settings, seed=seed, usable=usable)
    index, names = groups_from_clusters(evidence.labels, clusters.labels, evidence.class_names)
    return Groups(index, names, name, (CLASS_LABELS,), clusters)


@dataclass(frozen=True)
class ClassGroups:
    """One group per class: the control that knows of no shortcut."""

    name: ClassVar[str] = "classes"

    def infer(self, evidence: Evidence, *, seed: int) -> Groups:
        """Return the classes as groups."""
        return Groups(
            evidence.labels, tuple(f"class {name}" for name in evidence.class_names), self.name, (CLASS_LABELS,)
        )


@dataclass(frozen=True)
class ErrorSetGroups:
    """Each class split into what the classifier gets right and wrong (the error set of JTT)."""

    name: ClassVar[str] = "error_set"

    def infer(self, evidence: Evidence, *, seed: int) -> Groups:
        """Return the groups; a class without errors is one group."""
        wrong = (evidence.predicted != evidence.labels).astype(np.int64)
        index, names = split_classes(evidence.labels, wrong, evidence.class_names, MISTAKES)
        return Groups(index, names, self.name, (CLASS_LABELS,))


def split_classes(
    labels: IntArray, parts: IntArray, class_names: tuple[str, ...], part_names: tuple[str, ...]
) -> tuple[IntArray, tuple[str, ...]]:
    """Cross classes with named parts, as :func:`groups_from_clusters` does with numbered clusters.

    Examples
    --------
    >>> split_classes(np.array([0, 0, 1]), np.array([0, 1, 1]), ("cat", "dog"), MISTAKES)
    (array([0, 1, 2]), ('class cat / right', 'class cat / wrong', 'class dog / wrong'))
    """
    index, names = groups_from_clusters(labels, parts, class_names)
    kinds = {f"cluster {number}": name for number, name in enumerate(part_names)}
    return index, tuple(f"{left} / {kinds[right]}" for left, right in (name.rsplit(" / ", 1) for name in names))


@dataclass(frozen=True)
class RandomGroups:
    """Another source's groups, shuffled inside each class: the control with the same sizes and no content."""

    like: Groups
    name: ClassVar[str] = "random"

    def infer(self, evidence: Evidence, *, seed: int) -> Groups:
        """Return groups of the sizes of `like` with random members."""
        rng = generator(seed, self.name)
        index = self.like.index.copy()
        for label in np.unique(evidence.labels):
            rows = np.flatnonzero(evidence.labels == label)
            index[rows] = index[rng.permutation(rows)]
        return Groups(index, self.like.names, self.name, self.like.labels_used)


@dataclass(frozen=True)
class OracleGroups:
    """The true groups themselves, as an upper reference."""

    index: IntArray
    names: tuple[str, ...]
    name: ClassVar[str] = "oracle"

    def infer(self, evidence: Evidence, *, seed: int) -> Groups:
        """Return the true groups."""
        return Groups(self.index, self.names, self.name, ("true groups",))


def source_names() -> list[str]:
    """Return the names of all sources, sorted."""
    sources = (ExMapGroups, GeorgeGroups, ClassGroups, ErrorSetGroups, RandomGroups, OracleGroups)
    return sorted(source.name for source in sources)
