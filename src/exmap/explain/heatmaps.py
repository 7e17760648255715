"""A model and a split in, heatmaps out: batch by batch into one array, with checks that say whether to trust them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.data.dataset import Split
from exmap.errors import NumericalError
from exmap.explain.engine import full_precision
from exmap.explain.explainers import make_explainer
from exmap.explain.reduce import reduce_maps
from exmap.explain.work import Work, answer_check, check_target, explainer_of, kept_layer, outputs_reader
from exmap.model.batches import computed_batches, is_first
from exmap.model.classifier import check_module, unwrapped, without_wrappers
from exmap.model.ending import LastLayer
from exmap.model.fits import check_fits
from exmap.model.running import explained_at_once, model_device, model_input
from exmap.records import Heatmaps, Listener, Outputs, Progress, silent
from exmap.settings import ExplainSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["compute_heatmaps", "explain_split"]

Allocate = Callable[[tuple[int, ...]], NDArray[np.float32]]
AllocateOutputs = Callable[[tuple[int, ...], tuple[int, ...]], tuple[NDArray[Any], NDArray[Any]]]


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
        For a model that cannot be worked with on the split (:func:`exmap.model.check_fits`), and for pixels outside
        [0, 1] with a composite that is bounded by them.
    NumericalError
        If no map is finite, or relevance of the first images does not add up to their logits.
    """
    return _explained(model, split, settings, None, explainer, allocate, None, fabric, listen, reading=False)[0]


def explain_split(
    model: nn.Module,
    split: Split,
    settings: ExplainSettings | None = None,
    *,
    head: str | None = None,
    explainer: Any = None,
    allocate: Allocate | None = None,
    allocate_outputs: AllocateOutputs | None = None,
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
    allocate_outputs : callable, optional
        Returns the float32 arrays of the given shapes that features and logits are written to.

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
    ways = allocate, allocate_outputs
    maps, outputs = _explained(model, split, settings, head, explainer, *ways, fabric, listen, reading=True)
    none = np.zeros((0, max(1, split.n_classes)), dtype=np.float32)  # no images, or another process has them
    return maps, Outputs(*outputs) if outputs else Outputs(none, none)


def _explained(
    model: nn.Module,
    split: Split,
    settings: ExplainSettings | None,
    head: str | LastLayer | None,
    own: Any,
    allocate: Allocate | None,
    allocate_outputs: AllocateOutputs | None,
    fabric: Fabric | None,
    listen: Listener,
    *,
    reading: bool,
) -> tuple[Heatmaps, list[NDArray[np.float32]]]:
    """Return heatmaps and, if `reading`, features and logits."""
    settings = settings or ExplainSettings()
    explainer = explainer_of(settings) if own is None else make_explainer(own)  # refuses unknown names first
    check_module(model)
    check_target(settings, split.n_classes)
    channels, height, width = split.images.shape
    at_once = explained_at_once(height, width, settings.batch_size, model_device(model))
    if settings.size is not None:
        reduce_maps(torch.zeros(1, 1, height, width), settings.size)  # refuses a size that is too large
        height = width = settings.size
    check_fits(model, split, gradient=getattr(explainer, "needs_gradient", True))
    prepared = full_precision(unwrapped(model))
    head = without_wrappers(model, head) if isinstance(head, str) else head
    first = split.first_images()
    layer = kept_layer(explainer, prepared, model_input(prepared, first), settings)
    with ExitStack() as stack:
        read = stack.enter_context(outputs_reader(prepared, first, head, explainer)) if reading else None
        work = Work(explainer, prepared, split, settings, layer, read, answer_check(prepared, split, first, reading))
        arrays = _Arrays((channels, height, width), allocate, allocate_outputs)
        for part, made in computed_batches(split, at_once, work.compute, fabric):
            arrays.write(part, made, len(split))
            listen(Progress(f"heatmaps ({split.name})", part.stop, len(split)))
    heatmaps = arrays.heatmaps(work.check, is_first(fabric))
    if len(heatmaps) and not heatmaps.finite.any():
        raise NumericalError(
            f"heatmaps must be finite, but all {len(split)} hold NaN or infinity; check the model's weights, or choose "
            "another explain.composite"
        )
    if work.answers is not None and arrays.rest:
        work.answers.whole(arrays.rest[-1])
    return heatmaps, arrays.rest


class _Arrays:
    """Arrays that batches of results are written to, made when the first batch shows their shapes."""

    NAMES = ("values", "target", "conservation_error", "finite", "zero", "input_share", "channels")

    def __init__(
        self, shape: tuple[int, int, int], allocate: Allocate | None, allocate_outputs: AllocateOutputs | None
    ) -> None:
        self.shape, self.allocate, self.allocate_outputs = shape, allocate or _zeros, allocate_outputs
        self.arrays: list[NDArray[Any]] = []

    def write(self, part: slice, made: Sequence[NDArray[Any]], count: int) -> None:
        """Write the results of one batch."""
        if not self.arrays:
            beside, outputs = made[1 : len(self.NAMES)], made[len(self.NAMES) :]
            if self.allocate_outputs is None:
                beside, outputs = made[1:], []
            self.arrays = [self.allocate((count, *self.shape))]
            self.arrays += [np.empty((count, *array.shape[1:]), dtype=array.dtype) for array in beside]
            if outputs and self.allocate_outputs is not None:
                features, logits = outputs
                self.arrays += self.allocate_outputs((count, *features.shape[1:]), (count, *logits.shape[1:]))
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


def _zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.zeros(shape, dtype=np.float32)
