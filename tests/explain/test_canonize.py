from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import densenet121, resnet18

from exmap.explain.canonize import canonized_copy


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


class SharedInput(nn.Module):
    """The convolution's output goes to the batch normalisation and past it: merging would change the model."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.head((self.norm(y) + y).mean(dim=(2, 3)))


class NormTwice(nn.Module):
    """One batch normalisation after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.two(self.norm(self.one(x)).relu())).mean(dim=(2, 3)))


def affine_free() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(3600, 3))


def assert_same_function(one: nn.Module, other: nn.Module, images: np.ndarray) -> None:
    x = torch.from_numpy(images)
    with torch.no_grad():
        torch.testing.assert_close(one(x), other(x), rtol=1e-3, atol=1e-4)


def count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in model.modules())


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda: resnet18(num_classes=3), 0),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(3600, 3)
            ),
            0,
        ),
        (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4624, 3)), 0),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), 0),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 3)), 1),
        (SharedInput, 1),
        (NormTwice, 1),
    ],
)
def test_what_can_be_merged_is_merged_and_the_copy_computes_the_same(build: type, left: int) -> None:
    torch.manual_seed(0)
    model = randomised(build())
    images = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    copied = canonized_copy(model, images)
    with torch.no_grad():
        torch.testing.assert_close(
            copied(torch.from_numpy(images)), model(torch.from_numpy(images)), rtol=1e-3, atol=1e-4
        )
    assert count_norms(copied) == left
    assert copied is not model


def test_a_densenet_keeps_the_norms_that_follow_a_concatenation() -> None:
    torch.manual_seed(0)
    model = randomised(densenet121(num_classes=3))
    images = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    copied = canonized_copy(model, images)
    with torch.no_grad():
        torch.testing.assert_close(
            copied(torch.from_numpy(images)), model(torch.from_numpy(images)), rtol=1e-3, atol=1e-4
        )
    assert 0 < count_norms(copied) < count_norms(model)
