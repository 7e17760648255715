from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from exmap.config import ExplainSettings
from exmap.data import Split, array_split
from exmap.explain import input_gradient_maps
from exmap.runtime import torch_seed


def linear_model(side: int = 4) -> nn.Module:
    with torch_seed(0):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 3)).eval()


def some_images(n: int = 7, side: int = 4) -> Split:
    rng = np.random.default_rng(0)
    return array_split(rng.random((n, 3, side, side)).astype(np.float32), np.arange(n) % 3)


@pytest.mark.parametrize("target", ["predicted", "true", 2])
def test_of_a_linear_model_it_is_the_input_times_the_weights(target: str | int) -> None:
    model, split = linear_model(), some_images()
    rows = np.array([5, 1, 3])
    maps, finite = input_gradient_maps(model, split, rows, ExplainSettings(target=target, batch_size=2))
    weight = model[1].weight.detach().numpy()
    images = split.images.batch(rows)
    with torch.no_grad():
        predicted = model(torch.from_numpy(images)).argmax(dim=1).numpy()
    explained = {"predicted": predicted, "true": split.labels[rows]}.get(str(target), np.full(3, 2))
    products = images.reshape(3, -1) * weight[explained]
    np.testing.assert_allclose(maps, products / np.abs(products).max(axis=1, keepdims=True), atol=1e-6)
    assert finite.all()


def test_maps_are_reduced_as_heatmaps_are() -> None:
    maps, _ = input_gradient_maps(linear_model(), some_images(), np.arange(7), ExplainSettings(size=2))
    assert maps.shape == (7, 12)
    np.testing.assert_allclose(np.abs(maps).max(axis=1), 1, atol=1e-6)


def test_gradients_that_are_not_finite_are_flagged_and_zero() -> None:
    model = linear_model()
    with torch.no_grad():
        model[1].weight[:, 0] = float("inf")
    maps, finite = input_gradient_maps(model, some_images(), np.arange(7), ExplainSettings(target=0))
    assert not finite.any()
    assert not maps.any()


def test_the_model_stays_as_it_is() -> None:
    model = linear_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    input_gradient_maps(model, some_images(), np.arange(7))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
