"""The networks that a name stands for: torchvision's ResNets, and one small enough to try things out with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from exmap.errors import CheckpointError
from exmap.registry import MODELS
from exmap.settings import ModelSettings

__all__ = ["resnet18", "resnet34", "resnet50", "tiny"]


@MODELS.register
def resnet18(settings: ModelSettings, n_classes: int) -> nn.Module:
    """Return ResNet-18 (He et al., 2016), with the stem and the weights that the settings ask for."""
    return _resnet("resnet18", settings, n_classes)


@MODELS.register
def resnet34(settings: ModelSettings, n_classes: int) -> nn.Module:
    """Return ResNet-34, as :func:`resnet18`."""
    return _resnet("resnet34", settings, n_classes)


@MODELS.register
def resnet50(settings: ModelSettings, n_classes: int) -> nn.Module:
    """Return ResNet-50, as :func:`resnet18`."""
    return _resnet("resnet50", settings, n_classes)


@MODELS.register
def tiny(n_classes: int) -> nn.Module:
    """Return three convolutions with batch normalisation and 32 features: for trying things out, and for tests.

    It learns coloured digits in seconds on a processor. Its results say nothing about the networks that people use.
    """
    return nn.Sequential(
        *_layer(3, 16, stride=1),
        *_layer(16, 32, stride=2),
        *_layer(32, 32, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, n_classes),
    )


def _layer(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


def _resnet(name: str, settings: ModelSettings, n_classes: int) -> nn.Module:
    """Return one of torchvision's ResNets; its ImageNet weights are those of version 1, which the paper uses."""
    from torchvision import models

    model: nn.Module = getattr(models, name)(num_classes=n_classes)
    if settings.stem == "3x3":
        stem = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        model.conv1 = stem
        model.maxpool = nn.Identity()
    if settings.pretrained:
        _load_imagenet(model, models.get_model_weights(name).IMAGENET1K_V1)
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
