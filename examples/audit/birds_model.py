"""The network of the bird classifier, and how its images are made ready: what an auditor of it is given to name."""

from __future__ import annotations

from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torchvision import transforms

CLASSES = ["landbird", "waterbird"]
SIZE = 96

eval_transform = transforms.Compose(
    [
        transforms.Resize(108),
        transforms.CenterCrop(SIZE),
        transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ]
)


def build() -> nn.Module:
    """Return EfficientNet-lite0 with two outputs, and random weights."""
    return EfficientNet.from_name("efficientnet-lite0", num_classes=len(CLASSES), image_size=(SIZE, SIZE))
