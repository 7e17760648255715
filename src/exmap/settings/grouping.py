"""Settings of what groups are made of: heatmaps, clusters, sources, and the choice among groupings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from exmap.registry import CLUSTERERS, EXPLAINERS, Registry
from exmap.settings.section import ChoosingSection, Count, Section, Side

__all__ = ["AutoSettings", "ClusterSettings", "ExplainSettings", "GroupsSettings"]

MOST_CLASSES = 1_000_000


class ExplainSettings(ChoosingSection):
    """Heatmaps: what explains each image, of which class, and how it is reduced.

    Options of the explainer stand beside these settings, for example ``explain.patch`` with ``occlusion``.

    Attributes
    ----------
    explainer : str
        ``lrp`` (layer-wise relevance propagation, as in the paper), another of `exmap.explain.explainer_names()`, or a
        dotted path ``package.module:Class``.
    composite : str
        Rules of relevance propagation: ``auto`` takes the default for the kind of model, which is the paper's
        ``symmetric_gamma`` for convolutional networks.
    gamma : float
        Strength of the symmetric gamma rule; other composites ignore it.
    target : "predicted", "true", "margin" or int
        Class to explain; "margin" explains the predicted class against the runner-up.
    layer : str
        Module whose relevance by channel is kept as well; ``auto`` takes one at three quarters of the depth, ``none``
        keeps nothing. With ``grad_cam``, the module whose maps are shown.
    tolerance : float
        Largest share of the logit that may be missing from the sum of relevance on the first images; above it the run
        stops. Only for explainers that promise a sum.
    size : int or None
        Side in pixels to which heatmaps are reduced by area averaging; None keeps the size of the image.
    batch_size : int
        Largest number of images explained at once; fewer if they are large or would fill more than half of the free
        memory. If memory still runs out, the batch is halved.
    """

    registry: ClassVar[Registry] = EXPLAINERS
    choice: ClassVar[str] = "explainer"

    explainer: str = "lrp"
    composite: str = "auto"
    gamma: float = Field(4.0, ge=0, le=1_000_000)
    target: str | int = "predicted"
    layer: str = "auto"
    tolerance: float = Field(1e-3, gt=0, le=1_000_000)
    size: Side | None = None
    batch_size: Count = 100

    @field_validator("batch_size", mode="before")
    @classmethod
    def _batch_size(cls, value: Any) -> Any:
        return 100 if value is None else value  # as runs had it that were made before there was a number

    @field_validator("target", mode="before")
    @classmethod
    def _target(cls, value: Any) -> Any:
        if value is True:  # YAML reads a bare true as a truth value
            return "true"
        if value in ("predicted", "true", "margin"):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_CLASSES:
            return value
        raise ValueError(f"must be predicted, true, margin or the number of a class, below {MOST_CLASSES:,}")


class ClusterSettings(ChoosingSection):
    """How one representation (heatmaps or features) is clustered.

    Options of the method stand beside these settings, for example ``cluster.fit_most`` with ``kmeans``.

    Attributes
    ----------
    method : str
        A registered clusterer, or a dotted path ``package.module:Class`` of an estimator with scikit-learn's contract.
    scope : "local" or "global"
        Cluster inside each class (local), or cluster all samples and cross the clusters with the class (global).
    n_clusters : int or None
        Number of clusters; None leaves it to the method: spectral clustering uses the eigengap, k-means makes two.
    gap : "relative" or "absolute"
        Eigengap that spectral clustering uses: the largest ratio of eigenvalues, or the authors' largest difference.
    n_neighbors : int or None
        Number of neighbours in the graph (spectral) or in UMAP; None is ``int(ln N)``.
    representation : "pixels" or "channels"
        What is clustered: the relevance of pixels, or of an inner layer's channels (`explain.layer`).
    """

    registry: ClassVar[Registry] = CLUSTERERS
    choice: ClassVar[str] = "method"

    representation: Literal["pixels", "channels"] = "pixels"
    method: str = "spectral"
    scope: Literal["local", "global"] = "global"
    n_clusters: Count | None = None
    gap: Literal["relative", "absolute"] = "relative"
    n_neighbors: int | None = Field(None, ge=2, le=1_000_000)


class GroupsSettings(Section):
    """Which sources of groups are compared, and where.

    Attributes
    ----------
    split : "val" or "train"
        Images that are explained, grouped and retrained on. There are more training images, so small groups have more
        samples, but the model may have memorised them.
    sources : tuple of str
        Sources that infer groups; each is followed by the same retraining.
    george : ClusterSettings
        How GEORGE clusters features: into many clusters, as in its paper.
    auto : bool
        Whether a grouping is also chosen among many without group labels, and used for a repair.
    earlier : Path or None
        The run folder of the round before (``exmap run --rounds``): its chosen groups are crossed with those that are
        chosen here, of each split that both have, so that what was repaired there stays repaired.
    """

    split: Literal["val", "train"] = "val"
    sources: tuple[str, ...] = ("classes", "random", "error_set", "george", "exmap", "oracle")
    george: ClusterSettings = ClusterSettings(scope="local", gap="absolute")
    auto: bool = False
    earlier: Path | None = None


class AutoSettings(Section):
    """When a shortcut counts as found, and how much work a choice takes, where ``groups.auto`` is set.

    Attributes
    ----------
    level : float in (0, 1)
        Share of classifiers without a shortcut in which one may be found by mistake.
    ratio : float, at least 1
        How many times the error rate of the rest of its class a cluster's error rate must be.
    conductance : float in (0, 1]
        Largest share of its edges in the neighbour graph that may leave a cluster that stands apart.
    minority : float in (0, 1]
        Largest share of its class that such a cluster may hold: a shortcut works for most images of a class.
    only_if_found : bool
        Whether the model is left unchanged if no shortcut is found.
    halvings : int
        Largest number of random halvings; last layers are fitted to one half and judged on the other.
    draws : int
        Bootstrap samples behind the confidence of the choice.
    most_images : int
        Images that a choice is made by. Of more, a random sample of each class and predicted class stands for all; the
        others are in no group of the choice.
    repair : "last_layer" or "auto"
        What is retrained; if the last layer does not suffice, auto also tries more expensive repairs on pseudo-groups
        of the training images, and keeps the cheapest one within noise of the best.
    """

    level: float = Field(0.05, gt=0, lt=1)
    ratio: float = Field(2.0, ge=1, le=1_000_000)
    conductance: float = Field(0.02, gt=0, le=1)
    minority: float = Field(0.35, gt=0, le=1)
    only_if_found: bool = True
    halvings: int = Field(6, ge=1, le=10_000)
    draws: Count = 100
    most_images: int = Field(100_000, ge=1_000, le=1_000_000_000)
    repair: Literal["last_layer", "auto"] = "last_layer"
