"""A model and a split in, heatmaps out: batch by batch into one array, with checks that say whether to trust them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from zennit.attribution import Gradient

from exmap.config import ExplainSettings
from exmap.data.dataset import Split
from exmap.errors import DataError, NumericalError, SettingsError, unknown_name
from exmap.explain.canonize import canonized_copy, model_dtype
from exmap.explain.reduce import reduce_maps
from exmap.explain.rules import NEEDS_PIXEL_RANGE, make_composite
from exmap.model.backbone import find_head, model_device, to_tensor
from exmap.model.batches import computed_batches, is_first
from exmap.records import Heatmaps, IntArray, Listener, Outputs, Progress, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["compute_heatmaps", "explain_split", "given_target"]

PRECISIONS = ("32-true", "bf16-true")
Allocate = Callable[[tuple[int, ...]], NDArray[np.float32]]


def compute_heatmaps(
    model: nn.Module,
    split: Split,
    settings: ExplainSettings | None = None,
    *,
    allocate: Allocate | None = None,
    precision: str = "32-true",
    fabric: Fabric | None = None,
    listen: Listener = silent,
) -> Heatmaps:
    """Explain every image of a split by layer-wise relevance propagation (ExMap, section 4.1; Bach et al., 2015).

    Relevance starts as 1 at the explained class and 0 elsewhere.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (n, C, H, W) to (n, K) logits. A copy of it is explained; the model itself is not touched.
    split : Split
    settings : ExplainSettings, optional
    allocate : callable, optional
        Returns a zeroed float32 array of the given shape to write to batch by batch, for example a memory map: no
        more than a batch of heatmaps is then in memory.
    precision : {"32-true", "bf16-true"}
        "bf16-true" computes in bfloat16; "32-true" as the model does, in float64 if its weights are.
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
        For an unknown composite or precision, a target outside the classes, or a size above the image's.
    DataError
        For pixels outside [0, 1] with a composite that is bounded by them.
    NumericalError
        If no map is finite.
    """
    return _explained(model, split, settings, None, allocate, precision, fabric, listen)[0]


def explain_split(
    model: nn.Module,
    split: Split,
    settings: ExplainSettings | None = None,
    *,
    head: str | None = None,
    allocate: Allocate | None = None,
    fabric: Fabric | None = None,
    listen: Listener = silent,
) -> tuple[Heatmaps, Outputs]:
    """Return heatmaps, and the features and logits that they are propagated from, of one pass over the images.

    Parameters
    ----------
    model, split, settings, allocate, fabric, listen
        As for :func:`compute_heatmaps`.
    head : str, optional
        Name of the last linear layer; found by :func:`exmap.model.find_head` if not given.

    Returns
    -------
    heatmaps : Heatmaps
        Where predicted classes are explained, its targets are those of `outputs`.
    outputs : Outputs
        Those of :func:`exmap.model.collect_outputs`, up to rounding.

    Raises
    ------
    DataError
        If the model does not end in a linear layer; and what :func:`compute_heatmaps` raises.
    """
    if head is None:
        head = find_head(model, split.images.batch(np.arange(min(2, len(split)), dtype=np.int64)))
    maps, (features, logits) = _explained(model, split, settings, head, allocate, "32-true", fabric, listen)
    return maps, Outputs(features, logits)


def _explained(
    model: nn.Module,
    split: Split,
    settings: ExplainSettings | None,
    head: str | None,
    allocate: Allocate | None,
    precision: str,
    fabric: Fabric | None,
    listen: Listener,
) -> tuple[Heatmaps, list[NDArray[np.float32]]]:
    """Return heatmaps and, if the head is named, features and logits."""
    settings = settings or ExplainSettings()
    composite = make_composite(settings.composite, model, gamma=settings.gamma)  # refuses an unknown name first
    if precision not in PRECISIONS:
        raise SettingsError(unknown_name("precision", precision, PRECISIONS))
    channels, height, width = split.images.shape
    _check_target(settings, split)
    if settings.size is not None:
        reduce_maps(torch.zeros(1, 1, height, width), settings.size)  # refuses a size that is too large
        height = width = settings.size
    count = len(split) if is_first(fabric) else 0
    shape = (count, channels, height, width)
    values = (allocate if allocate and is_first(fabric) else _zeros)(shape)
    target = np.empty(count, dtype=np.int64)
    error = np.empty(count, dtype=np.float32)
    finite = np.empty(count, dtype=np.bool_)
    zero = np.empty(count, dtype=np.bool_)
    device = model_device(model)
    prepared = canonized_copy(model, split.images.batch(np.arange(min(2, len(split)), dtype=np.int64)))
    if precision == "bf16-true":
        prepared = prepared.bfloat16()
    seen: list[torch.Tensor] = []
    outputs: list[NDArray[np.float32]] = []
    if head is not None:
        last: Any = prepared.get_submodule(head)
        last.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
        outputs = [np.empty((count, width), dtype=np.float32) for width in (last.in_features, last.out_features)]
    arrays: list[NDArray[Any]] = [values, target, error, finite, zero, *outputs]

    def compute(part: slice, images: NDArray[np.float32]) -> tuple[torch.Tensor, ...]:
        if settings.composite in NEEDS_PIXEL_RANGE and not 0 <= images.min() <= images.max() <= 1:
            raise DataError(
                f"composite {settings.composite} needs pixels in [0, 1], found {images.min():.3g} to "
                f"{images.max():.3g}; choose a composite without a pixel range, such as symmetric_gamma"
            )
        given = given_target(settings, split.labels[part])
        chosen: list[torch.Tensor] = []

        def start(output: torch.Tensor) -> torch.Tensor:
            explained = output.float().argmax(dim=1) if given is None else torch.from_numpy(given).to(output.device)
            chosen.append(explained)
            return nn.functional.one_hot(explained, output.shape[1]).to(output.dtype)

        seen.clear()
        output, relevance = attributor(to_tensor(images, device).to(model_dtype(prepared)), start)
        total = relevance.double().sum(dim=(1, 2, 3))
        maps, is_finite, is_zero = reduce_maps(relevance.float(), settings.size)
        said = [] if head is None else [seen[-1].float(), output.detach().float()]
        return maps, chosen[-1], (total - 1).abs().float(), is_finite, is_zero, *said

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        Gradient(model=prepared, composite=composite) as attributor,
    ):
        for part, made in computed_batches(split, settings.batch_size, compute, fabric):
            for array, rows in zip(arrays, made, strict=True):
                array[part] = rows
            listen(Progress(f"heatmaps ({split.name})", part.stop, len(split)))
    if count and not finite.any():
        raise NumericalError(
            f"heatmaps must be finite, but all {len(split)} hold NaN or infinity; check the model's weights, or choose "
            "another explain.composite"
        )
    return Heatmaps(values, target, error, finite, zero), outputs


def _zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.zeros(shape, dtype=np.float32)


def _check_target(settings: ExplainSettings, split: Split) -> None:
    if isinstance(settings.target, int) and not 0 <= settings.target < split.n_classes:
        raise SettingsError(
            f"explain.target must be predicted, true, or a class in [0, {split.n_classes - 1}], got {settings.target}"
        )


def given_target(settings: ExplainSettings, labels: IntArray) -> IntArray | None:
    """Return the classes to explain, or None for the predicted ones."""
    if settings.target == "predicted":
        return None
    return np.full(len(labels), settings.target, dtype=np.int64) if isinstance(settings.target, int) else labels
