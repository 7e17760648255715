"""A model and a split in, heatmaps out: batch by batch into one array, with checks that say whether to trust them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.data.dataset import Split
from exmap.errors import NumericalError, SettingsError
from exmap.explain.check import check_model
from exmap.explain.engine import Relevance, full_precision, propagate
from exmap.explain.explainers import LRP, Explainer, make_explainer
from exmap.explain.layers import by_channel, layer_at, unit_peak, whole_layers
from exmap.explain.reduce import reduce_maps
from exmap.model.batches import computed_batches, is_first
from exmap.model.classifier import check_differentiable, unwrapped, without_wrappers
from exmap.model.ending import Ending, LastLayer
from exmap.model.head import ending_with, reader
from exmap.model.running import evaluation_mode, explained_at_once, model_input
from exmap.model.tail import pooled
from exmap.records import Heatmaps, IntArray, Listener, Outputs, Progress, silent
from exmap.registry import EXPLAINERS
from exmap.settings import ExplainSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["compute_heatmaps", "explain_split", "given_target"]

CHECKED = 4  # of the first images are looked at one by one
DEPTH = 0.75  # of the layer whose channels are kept
Allocate = Callable[[tuple[int, ...]], NDArray[np.float32]]


def compute_heatmaps(
    model: nn.Module,
    split: Split,
    settings: ExplainSettings | None = None,
    *,
    explainer: Any = None,
    allocate: Allocate | None = None,
    fabric: Fabric | None = None,
    listen: Listener = silent,
) -> Heatmaps:
    """Explain every image of a split, by default by layer-wise relevance propagation (ExMap, section 4.1).

    Maps hold shares of the explained logit: what speaks for it is positive, whatever the logit's sign.

    Parameters
    ----------
    model : torch.nn.Module
        Any classifier; it stays as it is.
    split : Split
    settings : ExplainSettings, optional
    explainer : object, optional
        In the place of the one that the settings name: with ``explain(model, x, target)`` or Captum's
        ``attribute(inputs, target=...)``.
    allocate : callable, optional
        Returns a zeroed float32 array of the given shape to write to batch by batch, for example a memory map: no
        more than a batch of heatmaps is then in memory.
    fabric : Fabric, optional
        Launched, for several processes; all come here with the same model. This process alone by default.
    listen : Listener

    Returns
    -------
    Heatmaps
        Where relevance is not finite the map is zero and `finite` is False. With several processes the first has all
        images, the others none.

    Raises
    ------
    SettingsError
        For an unknown explainer or composite, a target outside the classes, or a size above the image's.
    DataError
        For pixels outside [0, 1] with a composite that is bounded by them.
    NumericalError
        If no map is finite, or relevance of the first images does not add up to their logits.
    """
    return _explained(model, split, settings, None, explainer, allocate, fabric, listen, reading=False)[0]


def explain_split(
    model: nn.Module,
    split: Split,
    settings: ExplainSettings | None = None,
    *,
    head: str | None = None,
    explainer: Any = None,
    allocate: Allocate | None = None,
    fabric: Fabric | None = None,
    listen: Listener = silent,
) -> tuple[Heatmaps, Outputs]:
    """Return heatmaps, and the features and logits that they are propagated from, of one pass over the images.

    Parameters
    ----------
    model, split, settings, explainer, allocate, fabric, listen
        As for :func:`compute_heatmaps`.
    head : str, optional
        Name of the last linear layer; found if not given. Where there is none, features are the logits.

    Returns
    -------
    heatmaps : Heatmaps
        Where predicted classes are explained, its targets are those of `outputs`.
    outputs : Outputs
        Those of :func:`exmap.model.collect_outputs`, up to rounding.

    Raises
    ------
    DataError
        If the named head is none; and what :func:`compute_heatmaps` raises.
    """
    maps, outputs = _explained(model, split, settings, head, explainer, allocate, fabric, listen, reading=True)
    none = np.zeros((0, max(1, split.n_classes)), dtype=np.float32)  # no images, or another process has them
    return maps, Outputs(*outputs) if outputs else Outputs(none, none)


def _explained(
    model: nn.Module,
    split: Split,
    settings: ExplainSettings | None,
    head: str | LastLayer | None,
    own: Any,
    allocate: Allocate | None,
    fabric: Fabric | None,
    listen: Listener,
    *,
    reading: bool,
) -> tuple[Heatmaps, list[NDArray[np.float32]]]:
    """Return heatmaps and, if `reading`, features and logits."""
    settings = settings or ExplainSettings()
    explainer = _explainer(settings) if own is None else make_explainer(own)  # refuses unknown names first
    _check_target(settings, split)
    channels, height, width = split.images.shape
    if settings.size is not None:
        reduce_maps(torch.zeros(1, 1, height, width), settings.size)  # refuses a size that is too large
        height = width = settings.size
    if isinstance(explainer, LRP):
        check_differentiable(model)
    prepared = full_precision(unwrapped(model))
    head = without_wrappers(model, head) if isinstance(head, str) else head
    first = split.first_images()
    layer = _layer(explainer, prepared, model_input(prepared, first), settings)
    with ExitStack() as stack:
        read = stack.enter_context(_reading(prepared, first, head, explainer)) if reading else None
        work = _Work(explainer, prepared, split, settings, layer, read)
        arrays = _Arrays((channels, height, width), allocate)
        for part, made in computed_batches(
            split, settings.batch_size or explained_at_once(split), work.compute, fabric
        ):
            arrays.write(part, made, len(split))
            listen(Progress(f"heatmaps ({split.name})", part.stop, len(split)))
    heatmaps = arrays.heatmaps(work.check, is_first(fabric))
    if len(heatmaps) and not heatmaps.finite.any():
        raise NumericalError(
            f"heatmaps must be finite, but all {len(split)} hold NaN or infinity; check the model's weights, or choose "
            "another explain.composite"
        )
    return heatmaps, arrays.rest


class _Arrays:
    """Arrays that batches of results are written to, made when the first batch shows their shapes."""

    NAMES = ("values", "target", "conservation_error", "finite", "zero", "input_share", "channels")

    def __init__(self, shape: tuple[int, int, int], allocate: Allocate | None) -> None:
        self.shape, self.allocate = shape, allocate or _zeros
        self.arrays: list[NDArray[Any]] = []

    def write(self, part: slice, made: Sequence[NDArray[Any]], count: int) -> None:
        """Write the results of one batch."""
        if not self.arrays:
            self.arrays = [self.allocate((count, *self.shape))]
            self.arrays += [np.empty((count, *array.shape[1:]), dtype=array.dtype) for array in made[1:]]
        for array, rows in zip(self.arrays, made, strict=True):
            array[part] = rows

    @property
    def rest(self) -> list[NDArray[np.float32]]:
        """What was written beside heatmaps."""
        return self.arrays[len(self.NAMES) :]

    def heatmaps(self, check: dict[str, Any], first: bool) -> Heatmaps:
        """Return the record; empty in processes that are given no results."""
        if not self.arrays:
            values = self.allocate((0, *self.shape)) if first else _zeros((0, *self.shape))
            nothing = np.zeros(0, dtype=np.float32)
            return Heatmaps(values, nothing.astype(np.int64), nothing, nothing > 0, nothing > 0, nothing, check=check)
        *arrays, channels = self.arrays[: len(self.NAMES)]
        values, target, error, finite, zero, share = arrays
        kept = channels if channels.shape[1] else None
        return Heatmaps(values, target, error, finite, zero, share, kept, check)


class _Read:
    """Features and logits: of the pass that the explainer makes, where that is one, or else of a pass of their own."""

    def __init__(self, layer: LastLayer | None, read: Any) -> None:
        self.layer, self.read = layer, read
        self.seen: list[torch.Tensor] = []

    def keep(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what the last linear map is given."""
        values = (*args, *kwargs.values())
        self.seen.append(next(value for value in values if isinstance(value, torch.Tensor)).detach())

    def __call__(self, model: nn.Module, x: torch.Tensor, made: Relevance) -> list[torch.Tensor]:
        """Return features (n, D) and logits (n, K) of the batch that was explained."""
        if self.read is not None:
            with torch.inference_mode(), evaluation_mode(model):
                return [tensor.float() for tensor in self.read(x)]
        if self.layer is None:
            return [made.logits.float(), made.logits.float()]
        last = self.seen[-self.layer.runs :][self.layer.run]
        return [pooled(last, self.layer.axis, self.layer.tail.positions).float(), made.logits.float()]


@contextmanager
def _reading(
    model: nn.Module, first: NDArray[np.float32], head: str | LastLayer | None, explainer: Explainer
) -> Iterator[_Read]:
    """Give what reads features and logits inside the block."""
    ending: Ending = ending_with(model, first, head)
    layer = ending.layer
    if not isinstance(explainer, LRP) or (layer is not None and layer.site is not None):
        with reader(model, ending) as read:
            yield _Read(layer, read)
        return
    found = _Read(layer, None)
    hook = None
    if layer is not None:
        hook = model.get_submodule(layer.name).register_forward_pre_hook(found.keep, with_kwargs=True)
    try:
        yield found
    finally:
        if hook is not None:
            hook.remove()


@dataclass
class _Work:
    """What is done with each batch of images."""

    explainer: Explainer
    model: nn.Module
    split: Split
    settings: ExplainSettings
    layer: str | None
    read: _Read | None
    check: dict[str, Any] = field(default_factory=dict)

    def compute(self, part: slice, images: NDArray[np.float32]) -> list[torch.Tensor]:
        """Return one row per image of each array."""
        given = given_target(self.settings, self.split.labels[part])
        x = model_input(self.model, images)
        target = given if isinstance(given, str) else torch.from_numpy(given)
        if self.read is not None:
            self.read.seen.clear()
        made = self.explainer.explain(self.model, x, target)
        said = [] if self.read is None else self.read(self.model, x, made)
        if part.start == 0:
            self.check = _first_check(self.explainer, self.model, x, made, self.settings) | {"layer": self.layer}
        sign = torch.where(made.explained < 0, -1.0, 1.0)
        if not _is_relevance(self.explainer):
            sign = torch.ones_like(sign)
        maps, finite, zero = reduce_maps((made.values * sign[:, None, None, None]).float(), self.settings.size)
        share = made.values.flatten(1).sum(dim=1).cpu().double() / made.explained.cpu().double()
        vectors = torch.zeros(len(x), 0) if self.layer is None else self._by_channel(made, sign, x.shape)
        return [maps, made.target, made.error().float(), finite, zero, share.float(), vectors, *said]

    def _by_channel(self, made: Relevance, sign: torch.Tensor, image: torch.Size) -> torch.Tensor:
        assert self.layer is not None
        relevance = by_channel(made.layers[self.layer], image) * sign[:, None]
        return unit_peak(torch.nan_to_num(relevance, 0.0, 0.0, 0.0)).float()


def _explainer(settings: ExplainSettings) -> Explainer:
    """Return the explainer that the settings name, with its options; of the shared settings, with those it has."""
    if settings.explainer == "lrp":
        return LRP(composite=settings.composite, gamma=settings.gamma)
    options = settings.options
    if "layer" in EXPLAINERS.options(settings.explainer) and settings.layer not in ("auto", "none"):
        options["layer"] = settings.layer
    return make_explainer(settings.explainer, **options)


def _is_relevance(explainer: Explainer) -> bool:
    """Return whether maps are relevance of a logit, whose sign is that of the logit."""
    return not isinstance(explainer, LRP) or explainer.rules is None or explainer.rules.times_input


def _layer(explainer: Explainer, model: nn.Module, x: torch.Tensor, settings: ExplainSettings) -> str | None:
    """Return the layer whose channels are kept, after telling the explainer of it."""
    if not isinstance(explainer, LRP) or settings.layer == "none" or len(x) == 0:
        return None
    composite = explainer.rules_for(model, x)
    if not composite.times_input:
        return None
    if settings.layer == "auto":
        found = layer_at(whole_layers(model, x, composite), DEPTH)
        path = None if found is None else found.path
    else:
        path = settings.layer
    if path is not None:
        explainer.layers = (path,)
    return path


def _first_check(
    explainer: Explainer, model: nn.Module, x: torch.Tensor, made: Relevance, settings: ExplainSettings
) -> dict[str, Any]:
    """Explain the first images one by one, and refuse to go on where relevance does not add up to the logit."""
    if not isinstance(explainer, LRP) or explainer.rules is None or not explainer.rules.times_input:
        named = settings.explainer if isinstance(explainer, type(_explainer(settings))) else type(explainer).__name__
        return {"explainer": named}
    errors = []
    for i in range(min(CHECKED, len(x))):
        target = "margin" if settings.target == "margin" else int(made.target[i])
        error = float(propagate(model, x[i : i + 1], composite=explainer.rules, target=target).error()[0])
        if np.isfinite(error):
            errors.append(error)
    worst = max(errors, default=0.0)
    limit = settings.tolerance
    if worst > limit and explainer.rules.exact:  # stabilisers take relevance, and that is their rule
        found = check_model(model, x[:CHECKED], composite=explainer.rules)
        where = f"; {found.first_break}" if found.first_break else ""
        raise NumericalError(
            f"relevance of input and constants must add up to the logit within {limit:g} of it, but is off by "
            f"{worst:.3g} on the first images{where}; see exmap.check_model, choose another explain.explainer, or "
            "raise explain.tolerance to go on all the same"
        )
    return {"explainer": "lrp", "composite": explainer.rules.name, "images": len(errors), "error": worst}


def _zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.zeros(shape, dtype=np.float32)


def _check_target(settings: ExplainSettings, split: Split) -> None:
    if isinstance(settings.target, int) and not 0 <= settings.target < split.n_classes:
        raise SettingsError(
            f"explain.target must be predicted, true, margin, or a class in [0, {split.n_classes - 1}], got "
            f"{settings.target}"
        )


def given_target(settings: ExplainSettings, labels: IntArray) -> IntArray | str:
    """Return the classes to explain, or the word for what depends on the logits."""
    if settings.target in ("predicted", "margin"):
        return str(settings.target)
    return np.full(len(labels), settings.target, dtype=np.int64) if isinstance(settings.target, int) else labels
