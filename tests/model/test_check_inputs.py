"""Bad models and images: one sentence with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from own_classifiers import HEADS, IMAGES, Own, ends_in, linear, made, numbers, vectors, with_linear
from torch import nn

from exmap.errors import DataError
from exmap.model import check_inputs

NAMES = ["cat", "dog", "emu"]


class AlwaysOn(nn.Dropout):
    def train(self, mode: bool = True) -> AlwaysOn:
        self.training = True
        return self


class OtherSize(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("Input image size (16*16) doesn't match model (32*32).\nmore")


def with_nan() -> nn.Module:
    model = ends_in(linear())()
    model.get_parameter("1.weight").data[0, 0] = float("nan")
    return model


def whole_numbers() -> nn.Module:
    weight = nn.Parameter(torch.ones(3, 768, dtype=torch.int64), requires_grad=False)
    return Own(lambda own, x: F.linear(x.flatten(1), own.weight.float()), weight=weight)


def no_gradient(own: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return own.fc(own.body(x))


BAD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout in forward": (
        with_linear(lambda own, x: own.fc(F.dropout(own.body(x), 0.5))),
        "change by up to .* from call to call .*by the operation dropout; make it depend on self.training",
    ),
    "dropout that stays on": (ends_in(AlwaysOn, linear()), "by the operation dropout in module '1'"),
    "noise": (with_linear(lambda own, x: own.fc(own.body(x + torch.randn_like(x)))), "by the operation randn_like"),
    "nan in weights": (with_nan, "2 of 2 images are not: the weights '1.weight' hold NaN"),
    "nan in an operation": (
        with_linear(lambda own, x: own.fc((own.body(x) - 9).sqrt())),
        "the operation sqrt makes them first",
    ),
    "another number of channels": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1)),
        r"failed on images of shape \(2, 3, 16, 16\) .*; give images with 1 channel, as .* or a model for 3",
    ),
    "another size": (OtherSize, r"shape \(2, 3, 16, 16\) .*\(AssertionError: Input image .* \(32\*32\)\); give images"),
    "too many classes": (
        ends_in(linear(1000)),
        r"outputs 1000 classes, the data set has 3 \(cat, dog, emu\): which ones\? .*model\(x\)\[:, ",
    ),
    "too few classes": (ends_in(linear(2)), "outputs 2 classes, the data set has 3 .*give a model with 3"),
    "one logit": (ends_in(linear(1)), "outputs 2 classes, the data set has 3"),
    "detached": (with_linear(lambda own, x: own.fc(own.body(x).detach())), "must depend on the images .*detach"),
    "no_grad": (with_linear(no_gradient), "must depend on the images through gradients"),
    "rounded": (with_linear(lambda own, x: own.fc(own.body((x * 255).round()))), "gradient is zero everywhere"),
    "numpy": (
        with_linear(lambda own, x: torch.from_numpy(np.tanh(own.fc(own.body(x)).numpy()))),
        "Can't call numpy.*look in forward for detach",
    ),
    "classes, not logits": (with_linear(lambda own, x: own.fc(own.body(x)).argmax(1)), "torch.int64 .*before softmax"),
    "whole numbers": (whole_numbers, r"must be floating-point numbers, found int64; .*model.float\(\)"),
    "no weights": (lambda: ends_in(linear())().to("meta"), "is on the meta device"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_will_not_do_is_said_in_a_sentence(kind: str) -> None:
    make, words = BAD[kind]
    state = torch.get_rng_state()
    model = make()
    torch.set_rng_state(state)
    with pytest.raises(DataError, match=words):
        check_inputs(model, IMAGES, 3, NAMES)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_that_are_no_numbers_are_named() -> None:
    with pytest.raises(DataError, match="the images hold NaN"):
        check_inputs(made("linear"), np.full_like(IMAGES, np.nan), 3)


@pytest.mark.parametrize("kind", [kind for kind in HEADS if "weight norm" not in kind])
def test_good_models_pass(kind: str) -> None:
    model = made(kind)
    classes = 2 if "one" in kind and "place" not in kind else 3
    check_inputs(model, IMAGES, classes)
    check_inputs(model, IMAGES[:1], classes)


def test_a_model_that_writes_to_its_input_passes_and_the_images_stay() -> None:
    before = IMAGES.copy()
    check_inputs(with_linear(lambda own, x: own.fc(own.body(x.mul_(2))))(), IMAGES, 3)
    assert np.array_equal(IMAGES, before)


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_model_is_checked_where_no_gradient_is_asked() -> None:
    model = torch.jit.script(ends_in(linear())().eval())
    check_inputs(model, IMAGES, 3, gradient=False)
    with pytest.raises(DataError, match="scripted"):
        check_inputs(model, IMAGES, 3)
    with pytest.raises(DataError, match="which ones"):
        check_inputs(model, IMAGES, 2, gradient=False)


def test_a_constant_model_passes() -> None:
    check_inputs(Own(lambda own, x: own.bias + 0 * x.flatten(1)[:, :3], bias=numbers(3), body=vectors()), IMAGES, 3)
