"""Build a classifier, and treat any classifier as features followed by a linear head.

Little is asked of a user's model: that it returns logits, or probabilities made of logits. How it ends is found by
running it once and reading its operations backwards (:mod:`exmap.model.ending`).
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.data.dataset import Split
from exmap.errors import SettingsError
from exmap.model.batches import computed_batches, is_first
from exmap.model.classifier import unwrapped
from exmap.model.ending import LastLayer
from exmap.model.fits import AnswerCheck, check_fits
from exmap.model.head import ending_with, find_head, reader
from exmap.model.named import build_word, check_outputs, kind_of
from exmap.model.named.words import FUNCTION, quiet
from exmap.model.replace import replace_head
from exmap.model.running import eager, evaluation_mode, images_at_once, model_device, model_input, to_tensor
from exmap.model.small_maps import small_maps_as_products
from exmap.records import Listener, Outputs, Progress, silent
from exmap.registry import MODELS
from exmap.runtime import torch_seed
from exmap.settings import ModelSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "build_model",
    "collect_outputs",
    "evaluation_mode",
    "find_head",
    "images_at_once",
    "model_device",
    "replace_head",
    "to_tensor",
]


def build_model(settings: ModelSettings, n_classes: int, *, seed: int) -> nn.Module:
    """Build a classifier; where its weights are random, they depend on `seed` alone.

    Parameters
    ----------
    settings : ModelSettings
        `name` is one of :data:`exmap.registry.MODELS`, ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER_OR_ID``,
        ``onnx:FILE``, ``torchscript:FILE``, or a function at ``package.module:function`` or ``FILE.py:function``. The
        file of `weights` is not read here; see :func:`exmap.model.initial_model`.
    n_classes : int
        Given to functions that take it. With `outputs` their number.
    seed : int

    Raises
    ------
    SettingsError
        For an unknown architecture, a function that returns no module, and ``pretrained`` where it says nothing.
    DataError
        If a folder or a file of a model cannot be used, a function fails, or the model has other outputs.
    CheckpointError
        If weights can neither be found nor downloaded.
    """
    name, kind = settings.name, kind_of(settings.name)
    if settings.outputs:
        check_outputs(settings.outputs, n_classes)
    made = MODELS.get(name)
    function = kind == FUNCTION
    knows = () if function and isinstance(made, nn.Module) else inspect.signature(made).parameters
    if settings.pretrained and ("settings" not in knows or kind in ("hf", "onnx", "torchscript")):
        raise SettingsError(
            f"model.pretrained is for models of torchvision and timm, and {name} takes no settings; set "
            "model.pretrained=false, or load weights in its own function"
        )
    with torch_seed(seed), quiet():
        model = build_word(settings, n_classes)
    if not isinstance(model, nn.Module):
        raise SettingsError(f"the model {name} must be a function that returns a torch.nn.Module, got {model!r:.80}")
    return model


def collect_outputs(
    model: nn.Module,
    split: Split,
    *,
    head: str | LastLayer | None = None,
    batch_size: int | None = None,
    fabric: Fabric | None = None,
    listen: Listener = silent,
) -> Outputs:
    """Run the model over a split and return penultimate features and logits, in order.

    Parameters
    ----------
    model : torch.nn.Module
        Any classifier; returned in the mode it came in.
    split : Split
    head : str or LastLayer, optional
        The last linear layer, by its name or as :func:`find_last_layer` returns it; found if not given.
    batch_size : int, optional
        By default 500, or fewer of large images.
    fabric : Fabric, optional
        Launched, for several processes; all come here with the same model. This process alone by default.
    listen : Listener

    Returns
    -------
    Outputs
        float32 whatever the model computes in. The logits are those before softmax or sigmoid; one logit for two
        classes becomes two. The features are what the last linear map is given, averaged over positions where the
        model averages what the map makes of them. Where no linear map makes the logits, the features are the logits
        themselves. With several processes the first has all images, the others none.

    Raises
    ------
    DataError
        If the model cannot be worked with on the split (:func:`exmap.model.check_fits`), fails on some of its images,
        or does not give each of them a row of finite logits that is the same whatever images are beside it.

    Notes
    -----
    Images with pixels that are not finite numbers may have such features and logits, and then no predicted class.
    """
    check_fits(model, split)
    first = split.first_images()
    ending = ending_with(model, first, head)
    count = len(split) if is_first(fabric) else 0
    layer, inner = ending.layer, unwrapped(model)
    by_name = layer is None or layer.site is None  # else operations are counted, and must be those that were counted
    small_maps = small_maps_as_products(inner, but=layer.name if layer else None) if by_name else nullcontext()
    with (
        torch.inference_mode(),
        evaluation_mode(model),
        eager(inner),
        reader(model, ending) as read,
        small_maps,
    ):
        looked_at = read(model_input(model, first))
        check = AnswerCheck(model, split, looked_at[1])

        def compute(part: slice, images: NDArray[np.float32]) -> list[torch.Tensor]:
            made = read(model_input(model, images))
            check(part, images, made[1])
            return [tensor.float() for tensor in made]

        at_once = batch_size or images_at_once(split, model_device(model))
        features, logits = (np.empty((count, tensor.shape[1]), dtype=np.float32) for tensor in looked_at)
        for part, made in computed_batches(split, at_once, compute, fabric):
            features[part], logits[part] = made
            listen(Progress(f"features ({split.name})", part.stop, len(split)))
    check.whole(logits)
    return Outputs(features, logits)
