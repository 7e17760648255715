"""Networks of a few hundred thousand weights that train in half a minute on one core, and how they are trained.

ResNet-18 of half the width, a ViT of four blocks and a ConvNeXt of four, for images of 28 x 28 pixels. All three are
trained by AdamW, since SGD does not start the last two within so few steps.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from exmap.data import Split
from exmap.data.dataset import batch_slices
from exmap.model.backbone import to_tensor
from exmap.runtime import generator, torch_seed

__all__ = ["NETWORKS", "build", "train"]

NETWORKS = ("resnet18", "vit", "convnext")
EPOCHS = {"resnet18": 3, "vit": 6, "convnext": 4}
RATE = 1e-3


def build(name: str, n_classes: int, *, seed: int) -> nn.Module:
    """Build one of the networks with random weights."""
    with torch_seed(seed):
        if name == "resnet18":
            from timm.models.resnet import BasicBlock, ResNet

            return ResNet(BasicBlock, (2, 2, 2, 2), num_classes=n_classes, channels=(32, 64, 128, 256))
        if name == "vit":
            from timm.models.vision_transformer import VisionTransformer

            model: nn.Module = VisionTransformer(
                img_size=28, patch_size=7, embed_dim=64, depth=4, num_heads=4, num_classes=n_classes, weight_init="jax"
            )
            return model
        import timm

        model = timm.create_model(
            "convnext_atto",
            num_classes=n_classes,
            depths=(1, 1, 1, 1),
            dims=(32, 64, 96, 128),
            patch_size=2,
            ls_init_value=0.1,
        )
        model.stages[0].downsample = nn.Identity()
        return model


def train(model: nn.Module, name: str, split: Split, *, seed: int, batch_size: int = 64) -> None:
    """Train by AdamW; the rate rises over the first tenth of the steps and falls to 0 along a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05, fused=True)
    epochs = EPOCHS[name]
    steps = math.ceil(len(split) / batch_size) * epochs
    step = 0
    model.train()
    for epoch in range(epochs):
        order = generator(seed, "order", epoch).permutation(len(split)).astype(np.int64)
        with torch_seed(seed + epoch):
            for part in batch_slices(len(order), batch_size):
                step += 1
                share = min(10 * step / steps, (1 + math.cos(math.pi * step / steps)) / 2)
                optimizer.param_groups[0]["lr"] = RATE * share
                images = to_tensor(split.images.batch(order[part]), torch.device("cpu"))
                loss = nn.functional.cross_entropy(model(images), torch.from_numpy(split.labels[order[part]]))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    model.eval()
