"""Pseudo-groups of a split by ExMap and by GEORGE, as classes with the settings in their constructor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from exmap.auto import AutoChoice, choose_groups
from exmap.data import Split
from exmap.errors import SettingsError
from exmap.explain import explain_split, make_explainer
from exmap.groups import ExMapGroups, GeorgeGroups, check_channels
from exmap.model import collect_outputs
from exmap.pipeline.checks import check_clustering
from exmap.records import Explained, Groups, Heatmaps, Listener, Outputs, silent
from exmap.runtime import child_seed
from exmap.settings import ClusterSettings, ExplainSettings, Settings, change_settings

if TYPE_CHECKING:
    from torch import nn

__all__ = ["GEORGE", "ExMap"]


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
        An estimator with scikit-learn's ``fit(X)`` and ``labels_``, in place of `method`; it is cloned.
    seed : int
    batch_size : int
        The largest number of images that are explained at once. It is smaller for large images, and where so many would
        fill more than half of the free memory. If memory runs out all the same, batches are halved.
    auto : bool
        Whether one grouping is chosen among many without group labels, as ``groups.auto`` does in a run. It compares
        scopes, clusterings and numbers of clusters itself, so leave those and the representation at their defaults.
        The explainer, size, composite and target of the heatmaps are the given ones.

    Attributes
    ----------
    heatmaps_ : Heatmaps
    outputs_ : Outputs
        Features and logits. Both are set by :meth:`infer`.
    choice_ : AutoChoice
        With `auto`: what was chosen and why (``choice_.record``), and whether there is a shortcut to repair at all
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
    batch_size: int = 100
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
            Usually the validation split. Its true groups are not used. With `auto`, give images that the model was not
            trained on, because it has learned those by heart.
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
        if not self.auto and self.clusterer is None:
            check_clustering(_clustering(self), split.labels)
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
            explain__batch_size=self.batch_size,
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
        check_clustering(_clustering(self), split.labels, GeorgeGroups.name)
        outputs = collect_outputs(model, split, listen=listen)
        explained = _explained(split, outputs, None)
        return GeorgeGroups(_clustering(self)).infer(explained, seed=child_seed(self.seed, "groups"))


def _explained(split: Split, outputs: Outputs, maps: Heatmaps | None) -> Explained:
    return Explained(split.name, split.ids, split.labels, split.class_names, outputs, maps)


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
