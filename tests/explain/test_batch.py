"""One call explains one batch: what it takes, what it returns, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import exmap
from exmap.errors import DataError, SettingsError
from exmap.explain import BatchHeatmaps, explainer_names, make_explainer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).eval()


X = np.random.default_rng(0).normal(size=(5, 3, 7, 7)).astype(np.float32)


@pytest.mark.parametrize("name", explainer_names())
def test_heatmaps_are_those_of_the_explainer(name: str) -> None:
    model = network()
    made = exmap.heatmaps(model, X, name)
    wanted = make_explainer(name).explain(model, torch.from_numpy(X), "predicted")
    np.testing.assert_allclose(made.values, wanted.values.numpy(), atol=1e-6)
    np.testing.assert_allclose(made.explained, wanted.explained.numpy(), rtol=1e-5)
    np.testing.assert_allclose(made.constants, wanted.constants.numpy(), atol=1e-5)
    assert made.values.dtype == np.float32
    assert made.target.dtype == np.int64
    assert made.shape == (5, 3, 7, 7)
    assert len(made) == 5
    parts = exmap.heatmaps(model, X, name, batch_size=2)
    np.testing.assert_allclose(parts.values, made.values, atol=1e-6)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, torch.float16, torch.bfloat16, torch.float64])
def test_any_kind_of_floating_point_images(kind: Any) -> None:
    given = torch.from_numpy(X).to(kind) if isinstance(kind, torch.dtype) else X.astype(kind)
    made = exmap.heatmaps(network(), given)
    np.testing.assert_allclose(made.values, exmap.heatmaps(network(), X).values, atol=0.05)
    double = exmap.heatmaps(network().double(), given)
    assert double.values.dtype == np.float32
    assert double.explained.dtype == np.float64


def test_one_image_is_a_batch_of_one() -> None:
    one = exmap.heatmaps(network(), X[2], target=1)
    assert one.shape == (1, 3, 7, 7)
    np.testing.assert_allclose(one.values[0], exmap.heatmaps(network(), X, target=1).values[2], atol=1e-6)


def test_images_stay_as_they_are() -> None:
    model, tensor, array = network(), torch.from_numpy(X.copy()), X.copy()
    exmap.heatmaps(model, tensor)
    exmap.heatmaps(model, array)
    assert not tensor.requires_grad
    assert np.array_equal(tensor.numpy(), X)
    assert np.array_equal(array, X)
    array.setflags(write=False)
    exmap.heatmaps(model, array)


@pytest.mark.parametrize("target", [1, np.int64(1), np.array(1), [1] * 5, np.ones(5, np.uint8), torch.ones(5).long()])
def test_targets_of_many_kinds(target: Any) -> None:
    made = exmap.heatmaps(network(), X, target=target, batch_size=2)
    assert made.target.tolist() == [1] * 5
    np.testing.assert_allclose(made.explained, made.logits[:, 1])
    margin = exmap.heatmaps(network(), X, target="margin")
    best = np.sort(margin.logits, axis=1)
    np.testing.assert_allclose(margin.explained, best[:, -1] - best[:, -2], rtol=1e-5)


def test_shares_and_constants_sum_to_the_logit() -> None:
    made = exmap.heatmaps(network(), X, target=2)
    np.testing.assert_allclose(made.values.sum(axis=(1, 2, 3)) + made.constants, made.explained, atol=1e-5)
    np.testing.assert_allclose(made.input_share, 1 - made.constants / made.explained, atol=1e-4)
    dead = network()
    with torch.no_grad():
        dead[4].weight.zero_()
        dead[4].bias.zero_()
    assert np.isnan(exmap.heatmaps(dead, X, target=2).input_share).all()


def test_layers_composites_and_options() -> None:
    model = network()
    made = exmap.heatmaps(model, X, composite="epsilon", layers=("0", "4"), batch_size=3)
    assert {name: value.shape for name, value in made.layers.items()} == {"0": (5, 4, 7, 7), "4": (5, 3)}
    assert not np.allclose(made.values, exmap.heatmaps(model, X, gamma=2.0).values)
    coarse = exmap.heatmaps(model, X, "occlusion", patch=7)
    assert np.ptp(coarse.values, axis=(1, 2, 3)).max() < 1e-6
    with pytest.raises(SettingsError, match="unknown option of explainer occlusion 'composite'"):
        exmap.heatmaps(model, X, "occlusion", composite="epsilon")
    with pytest.raises(SettingsError, match=r"unknown option of explainer grad_cam 'layers'.*did you mean 'layer'"):
        exmap.heatmaps(model, X, "grad_cam", layers=["0"])


def test_functions_and_objects() -> None:
    model = network()
    made = exmap.heatmaps(lambda x: model(x).detach().numpy(), X.astype(np.float64), "occlusion")
    np.testing.assert_allclose(made.values, exmap.heatmaps(model, X, "occlusion").values, atol=1e-6)

    class Mine:
        def explain(self, model: Any, x: torch.Tensor, target: Any) -> Any:
            return make_explainer("lrp").explain(model, x, target)

    own = exmap.heatmaps(model, X, Mine())
    np.testing.assert_allclose(own.values, exmap.heatmaps(model, X).values, atol=1e-6)
    assert "by Mine" in repr(own)
    with pytest.raises(DataError, match=r"must be a torch.nn.Module for explanations by gradients, .*'occlusion'"):
        exmap.heatmaps(lambda x: model(x), X)


def test_captums_objects() -> None:
    attr = pytest.importorskip("captum.attr")
    model = network()
    made = exmap.heatmaps(model, X, attr.InputXGradient(model), target=1)
    np.testing.assert_allclose(made.values, exmap.heatmaps(model, X, "gradient_x_input", target=1).values, atol=1e-6)
    assert "by InputXGradient" in repr(made)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (
            (X * 50).astype(np.uint8),
            "images must be floating-point numbers, scaled as the model was trained, got uint8; ",
        ),
        (torch.ones(2, 3, 7, 7, dtype=torch.int64), "scaled as the model was trained, got int64"),
        (X > 0, "got bool"),
        (X.astype(np.complex64), "got complex64"),
        (X[0, 0], r"images must have shape \(n, C, H, W\), or \(C, H, W\) for one, got \(7, 7\)"),
        (X[:, :, :, :, None], r"got \(5, 3, 7, 7, 1\)"),
        (X[:0], r"images must be at least one, of at least one pixel, got shape \(0, 3, 7, 7\)"),
        (np.where(np.arange(5)[:, None, None, None] < 3, X, np.nan), "2 of 5 hold NaN or infinity, image 3 first"),
        ([X[0], X[1, :, :4]], "found images of several shapes; bring them to one size"),
    ],
)
def test_images_that_do_not_serve_are_refused(images: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        exmap.heatmaps(network(), images)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("true", 'target must be "predicted", "margin", a class, or one class for each image, got \'true\''),
        (True, "as whole numbers, got True of kind bool"),
        (1.0, "as whole numbers, got 1.0 of kind float64"),
        (np.ones(5), "of kind float64"),
        (np.ones(5, bool), "of kind bool"),
        (None, "as whole numbers, got None"),
        ([0, 1], r"got an array of shape \(2,\) for 5 images"),
        (np.ones((5, 1), int), r"got an array of shape \(5, 1\)"),
        (3, r"target must be a class in \[0, 2\], because the model has 3 outputs, got 3 to 3"),
        ([0, 1, 2, 0, -1], r"class in \[0, 2\].*got -1 to 2"),
    ],
)
def test_targets_that_do_not_serve_are_refused(target: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        exmap.heatmaps(network(), X, target=target)


def test_other_bad_input() -> None:
    with pytest.raises(SettingsError, match="batch_size must be a whole number of at least 1, got 0"):
        exmap.heatmaps(network(), X, batch_size=0)
    with pytest.raises(SettingsError, match=r"unknown explainer 'lrpp' \(did you mean 'lrp'\?\)"):
        exmap.heatmaps(network(), X, "lrpp")
    with pytest.raises(DataError, match=r"the model failed on images of shape .*3 channels"):
        exmap.heatmaps(network(), X[:, :1])


def test_the_record_behaves_like_an_array_and_shows_itself() -> None:
    made = exmap.heatmaps(network(), np.repeat(X, 2, axis=0), layers=["0"])
    assert np.asarray(made) is made.values
    assert np.array(made) is not made.values
    assert np.asarray(made, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="need a copy"):
        np.asarray(made, dtype=np.float64, copy=False)
    share = float(np.median(made.input_share))
    assert repr(made) == f"BatchHeatmaps(10 x 3 x 7 x 7, by lrp, median input share {share:.2f}, layers 0)"
    page = made._repr_html_()
    assert page.count("<tr>") == 9
    assert "and 2 more" in page
    hostile = BatchHeatmaps(
        made.values, made.target, made.logits, made.explained, made.constants, {"<b>": made.values}, "<script>"
    )
    assert not re.search(r"<(script|b)>", hostile._repr_html_())
