from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from exmap.data import Task, array_split
from exmap.errors import DataError, SettingsError
from exmap.model import build_model, collect_outputs, find_head, replace_head
from exmap.records import Progress
from exmap.runtime import torch_seed
from exmap.settings import ModelSettings

IMAGES = np.random.default_rng(0).random((4, 3, 16, 16), dtype=np.float32)


class OddlyNamed(nn.Module):
    """The head is declared first, is not called fc, and another linear layer runs after the features' one."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.zz_answer = nn.Linear(12, 3, bias=bias)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.squeeze = nn.Sequential(nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.zz_answer(self.squeeze(self.body(x)))


def nested() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), nn.Sequential(nn.ReLU(), nn.Linear(5, 3)))


MODELS = {
    "resnet": (lambda: build_model(ModelSettings(), 3, seed=0), "fc"),
    "small-image resnet": (lambda: build_model(ModelSettings(stem="3x3"), 3, seed=0), "fc"),
    "odd name": (OddlyNamed, "zz_answer"),
    "nested": (nested, "1.1"),
    "linear only": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), "1"),
    "no bias": (lambda: OddlyNamed(bias=False), "zz_answer"),
}


def made(kind: str, seed: int = 0) -> nn.Module:
    with torch_seed(seed):
        model: nn.Module = MODELS[kind][0]()
    return model


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", MODELS)
def test_the_head_is_found_whatever_it_is_called(kind: str) -> None:
    assert find_head(made(kind), IMAGES) == MODELS[kind][1]


def test_a_layer_that_follows_the_head_but_changes_nothing_is_allowed() -> None:
    assert find_head(nn.Sequential(nn.Flatten(), nn.Linear(768, 3), nn.Dropout(0.5)), IMAGES) == "1"


def test_a_model_that_ends_in_something_else_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 3), nn.ReLU()).train()
    with pytest.raises(DataError, match=r"logits made by the operation relu in module '2'; groups .* work .* head="):
        find_head(model, IMAGES)
    assert n_hooks(model) == 0
    assert model.training


def test_a_linear_layer_over_more_than_vectors_is_refused() -> None:
    with pytest.raises(DataError, match=r"found a tensor of shape \(2, 3, 16, 5\)"):
        find_head(nn.Sequential(nn.Linear(16, 5)), IMAGES)


@pytest.mark.parametrize("kind", MODELS)
def test_features_times_the_head_are_the_logits(kind: str, three_classes: Task) -> None:
    model = made(kind)
    head = model.get_submodule(MODELS[kind][1])
    val = array_split(three_classes.val.images.array[:30], three_classes.val.labels[:30])  # type: ignore[attr-defined]
    outputs = collect_outputs(model, val, batch_size=7)
    bias = 0 if head.bias is None else head.bias.detach().numpy()
    again = outputs.features @ head.weight.detach().numpy().T + bias
    assert np.abs(again - outputs.logits).max() < 1e-5
    assert (outputs.features.dtype, outputs.logits.dtype) == (np.float32, np.float32)
    with torch.no_grad():
        direct = model.eval()(torch.from_numpy(val.images.batch(np.arange(30)))).numpy()
    assert np.abs(direct - outputs.logits).max() < 1e-5


def test_outputs_are_float32_whatever_the_model_computes_in() -> None:
    class Half(OddlyNamed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.bfloat16())

    outputs = collect_outputs(Half().bfloat16(), array_split(IMAGES, [0, 1, 2, 0]))
    assert (outputs.features.dtype, outputs.logits.dtype) == (np.float32, np.float32)


def test_reading_a_model_leaves_modes_weights_hooks_and_generators_as_they_were() -> None:
    model = made("odd name").train()
    model.get_submodule("body.1").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before, state = copy.deepcopy(model), torch.get_rng_state()
    find_head(model, IMAGES)
    collect_outputs(model, array_split(IMAGES, [0, 1, 2, 0]))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert same_weights(model, before)
    assert n_hooks(model) == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_and_hooks_are_restored_after_an_error() -> None:
    model = made("odd name").train()
    split = array_split(np.zeros((4, 1, 16, 16), dtype=np.float32), [0, 1, 2, 0])
    with pytest.raises(DataError, match="channels"):
        find_head(model, split.images.batch(np.arange(4)))
    with pytest.raises(DataError, match="channels"):
        collect_outputs(model, split, head="zz_answer")
    assert n_hooks(model) == 0
    assert all(module.training for module in model.modules())


def test_progress_is_told_after_each_batch() -> None:
    heard: list[Progress] = []
    collect_outputs(made("nested"), array_split(IMAGES, [0, 1, 2, 0], name="test"), batch_size=3, listen=heard.append)
    assert heard == [Progress("features (test)", 3, 4), Progress("features (test)", 4, 4)]


@pytest.mark.parametrize("kind", MODELS)
def test_a_replaced_head_is_in_a_copy_and_the_model_stays_as_it_was(kind: str) -> None:
    model, before = made(kind), made(kind)
    name = MODELS[kind][1]
    old = model.get_submodule(name)
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(4, old.in_features)).astype(np.float32)
    bias = rng.normal(size=4).astype(np.float32)
    changed = replace_head(model, name, weight, bias)
    assert same_weights(model, before)
    assert find_head(changed, IMAGES) == name
    head = changed.get_submodule(name)
    assert np.array_equal(head.weight.detach().numpy(), weight)
    assert np.array_equal(head.bias.detach().numpy(), bias)
    others = {n: t for n, t in changed.state_dict().items() if not n.startswith(f"{name}.")}
    assert all(torch.equal(tensor, before.state_dict()[n]) for n, tensor in others.items())
    features = collect_outputs(model, array_split(IMAGES, [0, 1, 2, 0])).features
    split = array_split(IMAGES, [0, 1, 2, 0], class_names=[*"abcd"])
    assert np.abs(collect_outputs(changed, split).logits - (features @ weight.T + bias)).max() < 1e-4
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(1)
    assert same_weights(model, before)


def test_a_model_that_is_its_head_can_be_replaced() -> None:
    head = nn.Linear(5, 3)
    changed = replace_head(head, "", np.ones((2, 5), dtype=np.float32), np.zeros(2, dtype=np.float32))
    assert isinstance(changed, nn.Linear)
    assert (changed.out_features, head.out_features) == (2, 3)


def test_replacing_a_head_touches_no_global_generator() -> None:
    model = nn.Linear(5, 3)
    before = torch.get_rng_state()
    replace_head(model, "", np.ones((2, 5), dtype=np.float32), np.zeros(2, dtype=np.float32))
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_depend_on_the_seed_alone_and_touch_no_global_generator() -> None:
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = build_model(ModelSettings(stem="3x3"), 3, seed=1)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    with torch_seed(99):
        torch.rand(5)
        again = build_model(ModelSettings(stem="3x3"), 3, seed=1)
    assert same_weights(first, again)
    other = build_model(ModelSettings(stem="3x3"), 3, seed=2)
    assert not torch.equal(first.get_parameter("conv1.weight"), other.get_parameter("conv1.weight"))


def test_the_papers_stem_keeps_small_images_large() -> None:
    small, plain = (build_model(ModelSettings(stem=stem), 2, seed=0) for stem in ("3x3", "imagenet"))
    assert small.get_parameter("conv1.weight").shape == (64, 3, 3, 3)
    assert plain.get_parameter("conv1.weight").shape == (64, 3, 7, 7)
    stem = nn.Sequential(small.get_submodule("conv1"), small.get_submodule("maxpool"))
    assert stem(torch.zeros(1, 3, 28, 28)).shape == (1, 64, 28, 28)


def test_an_unknown_architecture_is_answered_with_the_known_one() -> None:
    with pytest.raises(SettingsError, match=r"unknown model 'resnet81' \(did you mean 'resnet18'\?\)"):
        build_model(ModelSettings.model_construct(name="resnet81"), 2, seed=0)  # type: ignore[arg-type]
