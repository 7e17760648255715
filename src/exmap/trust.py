"""How far heatmaps and groups can be trusted: sums that hold, groups inferred again, and a plainer explainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exmap.cluster.rows import sample_rows
from exmap.data import Images, Split
from exmap.data.dataset import Request
from exmap.errors import NumericalError
from exmap.evaluation import rerun_agreement, within_class_ari
from exmap.explain import compute_heatmaps
from exmap.groups import ExMapGroups
from exmap.records import Explained, Groups, Heatmaps, IntArray, Listener, silent
from exmap.results import GradientAgreement, Quantiles, Trust
from exmap.runtime import child_seed, generator
from exmap.settings import ExplainSettings, Settings

if TYPE_CHECKING:
    from torch import nn

__all__ = ["measure_trust"]

RERUNS, RERUN_SHARE = 5, 0.8
MOST_IMAGES = 2_000  # whose input times gradient is computed
GRADIENT = "gradient_x_input"
TARGETS = {"predicted": "predicted class", "true": "true class", "margin": "predicted class against the runner-up"}


def measure_trust(
    explained: Explained,
    groups: Groups,
    settings: Settings,
    *,
    model: Callable[[], nn.Module],
    split: Split | None,
    clusterer: Any = None,
    listen: Listener = silent,
) -> Trust:
    """Infer ExMap's groups again from parts of the images, and with input times gradient in the heatmaps' place.

    Parameters
    ----------
    explained : Explained
    groups : Groups
        ExMap's groups of these images.
    settings : Settings
        The seed, and how images were explained and clustered.
    model : callable
        Returns the classifier that was explained; called only where input times gradient is computed.
    split : Split or None
        The explained split with its images; None where these are not at hand, which leaves out input times gradient, as
        does a classifier in a file that has no gradients.
    clusterer : object, optional
        In the place of the one that the settings name, as for :class:`~exmap.groups.ExMapGroups`.
    listen : Listener

    Returns
    -------
    Trust
    """
    maps = explained.maps()
    explainer = str(maps.check.get("explainer", settings.explain.explainer))
    is_gradient = explainer == GRADIENT
    source = ExMapGroups(settings.cluster, clusterer=clusterer)

    def regroup(rows: IntArray, seed: int) -> IntArray:
        return source.infer(explained.rows(rows), seed=seed).index

    rng = generator(settings.seed, "report", "reruns")
    reruns = rerun_agreement(
        regroup, groups.index, explained.labels, rng=rng, reruns=RERUNS, share=RERUN_SHARE, listen=listen
    )
    gradient = None
    if split is not None and not is_gradient and (groups.index >= 0).any():
        network = model()
        if not getattr(network, "gradient_free", False):
            gradient = _gradient_agreement(explained, groups.index, settings, source, network, split, listen)
    return Trust(
        images=len(maps),
        not_finite=int((~maps.finite).sum()),
        all_zero=int(maps.zero.sum()),
        explained_by=_explained_by(explainer, settings.explain, maps),
        is_gradient=is_gradient,
        input_share=None if maps.input_share is None else Quantiles.of(maps.input_share[maps.finite]),
        conservation_error=Quantiles.of(maps.conservation_error[maps.finite]),
        rerun_share=RERUN_SHARE,
        reruns=reruns,
        gradient=gradient,
    )


def _gradient_agreement(
    explained: Explained,
    index: IntArray,
    settings: Settings,
    source: ExMapGroups,
    model: nn.Module,
    split: Split,
    listen: Listener,
) -> GradientAgreement | None:
    """Compare groups of input times gradient, and of the same images' own heatmaps, with those in question.

    None where no input times gradient is finite.
    """
    assigned = np.flatnonzero(index >= 0).astype(np.int64)
    rows = assigned[sample_rows(len(assigned), MOST_IMAGES, generator(settings.seed, "report", "gradient"))]
    rows, maps = _gradient_maps(model, split, rows, settings.explain, listen)
    if maps is None:
        return None
    own = explained.rows(rows)
    seed = child_seed(settings.seed, "report", "gradient")
    pixels = replace(source, clustering=source.clustering.model_copy(update={"representation": "pixels"}))
    by_gradient = pixels.infer(replace(own, heatmaps=maps), seed=seed).index
    again = source.infer(own, seed=seed).index
    return GradientAgreement(
        images=len(rows),
        ari=within_class_ari(by_gradient, index[rows], own.labels),
        own_ari=within_class_ari(again, index[rows], own.labels),
    )


def _gradient_maps(
    model: nn.Module, split: Split, rows: IntArray, explain: ExplainSettings, listen: Listener
) -> tuple[IntArray, Heatmaps | None]:
    """Return rows, and input times gradient of their images, reduced as heatmaps are; only finite ones."""
    ids = tuple(split.ids[row] for row in rows.tolist())
    some = Split(split.name, SomeImages(split.images, rows), split.labels[rows], ids, split.class_names)
    plain = ExplainSettings(
        explainer=GRADIENT, layer="none", target=explain.target, size=explain.size, batch_size=explain.batch_size
    )
    try:
        maps = compute_heatmaps(model, some, plain, listen=listen)
    except NumericalError:  # none is finite
        return rows[:0], None
    finite = maps.finite
    kept = Heatmaps(
        maps.values[finite], maps.target[finite], maps.conservation_error[finite], finite[finite], maps.zero[finite]
    )
    return rows[finite], kept


@dataclass(frozen=True)
class SomeImages:
    """Some of the images of a split, read as those are."""

    images: Images
    rows: IntArray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width in pixels."""
        return self.images.shape

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` of these as the model wants them."""
        return self.images.batch(self.rows[indices])

    def pixels(self, indices: IntArray) -> NDArray[np.float32]:
        """Return the images at `indices` of these as one looks at them."""
        return self.images.pixels(self.rows[indices])

    def stream(self, requests: Iterable[Request]) -> Iterator[NDArray[np.float32]]:
        """Yield the batch of each request in order."""
        return self.images.stream((self.rows[indices], seed) for indices, seed in requests)


def _explained_by(explainer: str, explain: ExplainSettings, maps: Heatmaps) -> str:
    """Return what made the heatmaps, in words."""
    rules = maps.check.get("composite")
    made = f"{explainer} with {rules}" if rules else explainer
    return f"{made}, of the {TARGETS.get(str(explain.target), f'class {explain.target}')}"
