"""Build a classifier, and treat any classifier as features followed by a linear head.

Little is asked of a user's model: that it returns logits, or probabilities made of logits. How it ends is found by
running it once and reading its operations backwards (:mod:`exmap.model.ending`).
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from exmap.config import ModelSettings
from exmap.data.dataset import Split
from exmap.errors import CheckpointError, SettingsError, unknown_name
from exmap.model.batches import computed_batches, is_first
from exmap.model.classifier import unwrapped
from exmap.model.ending import LastLayer
from exmap.model.head import ending_with, find_head, reader
from exmap.model.replace import replace_head
from exmap.model.running import eager, evaluation_mode, images_at_once, model_device, model_input, to_tensor
from exmap.model.small_maps import small_maps_as_products
from exmap.records import Listener, Outputs, Progress, silent
from exmap.runtime import torch_seed

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


RESNETS = {"resnet18": "ResNet18_Weights", "resnet34": "ResNet34_Weights", "resnet50": "ResNet50_Weights"}


def build_model(settings: ModelSettings, n_classes: int, *, seed: int) -> nn.Module:
    """Build a classifier; where its weights are random, they depend on `seed` alone.

    Parameters
    ----------
    settings : ModelSettings
        ``stem="3x3"`` is the paper's network for small images: a 3 x 3 stride-1 convolution and no max-pooling.
        ``pretrained`` takes torchvision's ImageNet weights (version 1, the paper's) for all but the last layer.
    n_classes : int
    seed : int

    Raises
    ------
    SettingsError
        For an unknown architecture.
    CheckpointError
        If the ImageNet weights can neither be found nor downloaded.
    """
    if settings.name not in RESNETS:
        raise SettingsError(unknown_name("model", settings.name, RESNETS))
    from torchvision import models

    with torch_seed(seed):
        model: nn.Module = getattr(models, settings.name)(num_classes=n_classes)
        if settings.stem == "3x3":
            stem = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
            model.conv1 = stem
            model.maxpool = nn.Identity()
    if settings.pretrained:
        _load_imagenet(model, getattr(models, RESNETS[settings.name]).IMAGENET1K_V1)
    return model


def _load_imagenet(model: nn.Module, weights: Any) -> None:
    """Load torchvision's weights, from its cache or by download, into all but the last layer."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
        missing, unknown = model.load_state_dict(state, strict=False)
    except Exception as error:  # no network, a damaged file, weights of another network: each has its own kind
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"the ImageNet weights could not be loaded ({reason}); put {weights.url} into {folder}, or set "
            "model.pretrained=false"
        ) from error
    if unknown or any(not name.startswith("fc.") for name in missing):
        raise CheckpointError(
            f"the ImageNet weights in {folder} must be those of the network, but they lack "
            f"{', '.join(missing[:3]) or 'nothing'} and have {', '.join(unknown[:3]) or 'nothing'} too much; delete "
            "the file there"
        )


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
        If the model fails on the images, or does not return logits.
    """
    first = split.images.batch(np.arange(min(2, len(split)), dtype=np.int64))
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

        def compute(_: slice, images: NDArray[np.float32]) -> list[torch.Tensor]:
            return [tensor.float() for tensor in read(model_input(model, images))]

        shapes = [tensor.shape[1] for tensor in compute(slice(0), first)]
        features, logits = (np.empty((count, width), dtype=np.float32) for width in shapes)
        for part, made in computed_batches(split, batch_size or images_at_once(split), compute, fabric):
            features[part], logits[part] = made
            listen(Progress(f"features ({split.name})", part.stop, len(split)))
    return Outputs(features, logits)
