"""What every function that builds a model keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from exmap.data import array_split
from exmap.errors import DataError
from exmap.model import build_model, check_inputs, collect_outputs, find_last_layer
from exmap.registry import MODELS
from exmap.settings import ModelSettings
from exmap.testing.common import found, must, nothing_drawn, same_weights

__all__ = ["check_model_builder"]


def check_model_builder(model: str | Callable[..., Any], *, n_classes: int = 3, side: int = 32) -> None:
    """Check a function that builds a model on random images.

    Parameters
    ----------
    model : str or callable
        A registered name, a dotted path ``package.module:function``, or a function that can be imported.
    n_classes : int
    side : int
        Of the images, in pixels.

    Raises
    ------
    AssertionError
        For the first promise that it breaks.
    """
    name, _ = found(MODELS, model)
    what, settings = f"the model {name}", ModelSettings(name=name)
    with nothing_drawn(what):
        first, same, other = (build_model(settings, n_classes, seed=seed) for seed in (1, 1, 2))
    must(same_weights(first, same), f"{what} must have the same weights for the same seed, but had others")
    images = np.random.default_rng(0).random((6, 3, side, side), dtype=np.float32)
    classes = tuple(map(str, range(n_classes)))
    try:
        check_inputs(first, images[:2], n_classes, classes)
        last = find_last_layer(first, images[:2])
    except DataError as error:
        raise AssertionError(f"{what} must be a classifier that exmap can work with, but: {error}") from error
    outputs = collect_outputs(first, array_split(images, np.arange(6) % n_classes))
    must(np.isfinite(outputs.logits).all(), f"{what} must give finite logits, but some are NaN or infinite")
    weight, bias = last.by_class()
    must(
        last.kind == "cut" or np.allclose(outputs.features @ weight.T + bias, outputs.logits, atol=1e-3),
        f"{what} must make its logits of the last layer's features, but they differ",
    )
    other.load_state_dict(first.state_dict())
    with torch.inference_mode():
        pair = [each.eval()(torch.from_numpy(images)) for each in (first, other)]
    must(
        all(torch.equal(a, b) for a, b in zip(*map(_tensors, pair), strict=True)),
        f"{what} must be wholly described by its weights, but other weights' model differs after loading these",
    )


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if hasattr(output, "values") else output
    return [value for value in values if isinstance(value, torch.Tensor)]
