"""The last linear map of every form of classifier: found, read, replaced in a copy."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from own_classifiers import HEADS, IMAGES, WRAPPERS, D, Own, ends_in, linear, made, maps, vectors, with_linear
from torch import nn

from exmap.data import Split, array_split
from exmap.errors import DataError, SettingsError
from exmap.model import (
    LastLayer,
    as_classifier,
    collect_outputs,
    features_and_logits,
    find_head,
    find_head_or_none,
    find_last_layer,
    replace_head,
    unwrapped,
)
from exmap.model.running import evaluation_mode, model_input

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*torch.jit.*")
LOW = {"bfloat16": 0.05, "float16": 0.005}


@pytest.fixture(autouse=True)
def _own_generator() -> Any:
    with torch.random.fork_rng(devices=[]):
        yield


def split_of(model: nn.Module) -> Split:
    """Return images with as many classes as the model has."""
    with evaluation_mode(model), torch.no_grad():
        count = as_classifier(model, IMAGES)(model_input(model, IMAGES)).shape[1]
    return array_split(IMAGES, np.arange(6) % 2, class_names=[f"class {n}" for n in range(count)])


def other_head(layer: LastLayer) -> tuple[np.ndarray, np.ndarray]:
    """Return random weights, for two classes of one logit as DFR's: half for one, half against the other."""
    rng = np.random.default_rng(3)
    if layer.n_logits == 1:
        half = rng.normal(size=layer.in_features + 1).astype(np.float32)
        return np.stack([-half[:-1], half[:-1]]), np.array([-half[-1], half[-1]])
    return rng.normal(size=layer.weight.shape).astype(np.float32), rng.normal(size=3).astype(np.float32)


def assert_replaced(model: nn.Module, tolerance: float = 1e-5) -> nn.Module:
    """Check that features times weights are the logits, before and after another head is put in; return the copy."""
    split = split_of(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer = find_last_layer(model, IMAGES)
    outputs = collect_outputs(model, split, batch_size=4)
    weight, bias = layer.by_class()
    size = 1 + np.abs(outputs.logits).max()
    assert outputs.features.shape == (6, layer.in_features)
    assert np.abs(outputs.features @ weight.T + bias - outputs.logits).max() < tolerance * size
    weight, bias = other_head(layer)
    changed = replace_head(model, layer, weight, bias)
    again = collect_outputs(changed, split, batch_size=4)
    wanted = outputs.features @ weight.T + bias
    assert np.abs(again.logits - wanted).max() < tolerance * (1 + np.abs(wanted).max())
    assert np.array_equal(again.features, outputs.features)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(1)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in before.items())
    return changed


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_of_every_form_is_found_read_and_replaced(kind: str) -> None:
    model, (_, name, same_class) = made(kind), HEADS[kind]
    assert find_head(model, IMAGES) == name
    changed = assert_replaced(model, LOW.get(kind, 1e-5))
    assert (type(changed) is type(unwrapped(model)) or isinstance(model, torch.fx.GraphModule)) == same_class
    kinds = {p.dtype for p in model.parameters()}
    assert {p.dtype for p in changed.parameters()} == kinds
    assert copy.deepcopy(changed) is not changed


@pytest.mark.parametrize("kind", ["linear", "softmax", "one probability", "convolution, mean, softmax", "mlp"])
def test_the_name_alone_serves_where_nothing_but_pooling_follows(kind: str) -> None:
    model = made(kind)
    layer = find_last_layer(model, IMAGES)
    weight, bias = other_head(layer)
    first, second = (replace_head(model, head, weight, bias) for head in (layer, HEADS[kind][1]))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_looked_through(wrapper: str) -> None:
    model = made("softmax")
    wrapped = WRAPPERS[wrapper](model).eval()
    outputs, plain = (collect_outputs(one, split_of(model)) for one in (wrapped, model))
    assert np.array_equal(outputs.logits, plain.logits)
    name = find_head(wrapped, IMAGES)
    assert wrapped.get_submodule(name) is unwrapped(wrapped).get_submodule("1")
    weight, bias = other_head(find_last_layer(model, IMAGES))
    changed = replace_head(wrapped, name, weight, bias)
    assert type(changed) is nn.Sequential
    assert torch.equal(changed.get_parameter("1.weight"), torch.from_numpy(weight))
    assert_replaced(wrapped)


@pytest.mark.parametrize("part", ["compiled", "DataParallel"])
def test_parts_may_be_wrapped(part: str) -> None:
    model = nn.Sequential(WRAPPERS[part](vectors()), WRAPPERS[part](nn.Linear(D, 3))).eval()
    with torch.no_grad():
        model(torch.from_numpy(IMAGES))  # compiled now
    assert_replaced(model)


def test_an_exported_program_is_a_model() -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(made("linear"), (torch.from_numpy(IMAGES),), dynamic_shapes=({0: batch},))
    assert_replaced(program.module())


@pytest.mark.parametrize("how", ["lora", "dora", "modules_to_save", "bfloat16"])
def test_adapters_of_peft_are_linear_layers(how: str) -> None:
    peft = pytest.importorskip("peft")
    changes: dict[str, Any] = {"modules_to_save": ["3"]} if how == "modules_to_save" else {}
    config = peft.LoraConfig(
        target_modules="1" if changes else "1|3", init_lora_weights=False, use_dora=how == "dora", **changes
    )
    model = peft.get_peft_model(made("mlp"), config).eval()
    model = model.bfloat16() if how == "bfloat16" else model
    assert find_head(model, IMAGES).startswith("base_model.model.3")
    assert type(assert_replaced(model, LOW.get(how, 1e-5))) is type(model)


def test_hugging_face_models() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=3, **sizes)
    resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    for config, name in ((vit, "classifier"), (resnet, "classifier.1")):
        model = transformers.AutoModelForImageClassification.from_config(config).eval()
        assert find_head(model, IMAGES) == name
        assert type(assert_replaced(model)) is type(model)


def test_timm_models() -> None:
    timm = pytest.importorskip("timm")
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = timm.models.VisionTransformer(num_classes=3, **small, global_pool="avg").eval()
    assert find_head(model, IMAGES) == "head"
    assert_replaced(model)
    two = timm.models.deit.VisionTransformerDistilled(num_classes=3, **small).eval()
    assert find_head_or_none(two, IMAGES) is None  # the mean of two heads on two tokens


NO_HEAD = {
    "relu": (
        lambda: nn.Sequential(maps(), nn.Conv2d(D, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "relu",
    ),
    "maximum": (lambda: nn.Sequential(maps(), nn.Conv2d(D, 3, 1), nn.AdaptiveMaxPool2d(1)), "adaptive_max_pool2d"),
    "mean of two": (with_linear(lambda own, x: own.fc(own.body(x)) + own.fc(own.body(x).tanh())), "add"),
}


@pytest.mark.parametrize("kind", NO_HEAD)
def test_without_a_last_linear_map_features_are_logits_and_retraining_says_why(kind: str) -> None:
    make, operation = NO_HEAD[kind]
    model = make().eval()
    assert find_head_or_none(model, IMAGES) is None
    outputs = collect_outputs(model, split_of(model))
    assert np.array_equal(outputs.features, outputs.logits)
    with pytest.raises(DataError, match=rf"made by the operation {operation}.*groups and report work.*head="):
        find_last_layer(model, IMAGES)


def test_a_named_layer_makes_logits_of_its_own_input() -> None:
    model = NO_HEAD["relu"][0]().eval()
    layer = find_last_layer(model, IMAGES, "1")
    features = collect_outputs(model, split_of(model), head="1").features
    assert features.shape == (6, D)
    with torch.no_grad():
        pooled = model[0](torch.from_numpy(IMAGES)).mean((2, 3)).numpy()
    assert np.abs(features - pooled).max() < 1e-6
    weight, bias = np.eye(3, D, dtype=np.float32), np.arange(3, dtype=np.float32)
    changed = replace_head(model, layer, weight, bias)
    with torch.no_grad():
        logits = changed(torch.from_numpy(IMAGES)).numpy()
    assert np.abs(logits - (features @ weight.T + bias)).max() < 1e-5


def test_a_wrong_name_is_answered_with_the_likely_one() -> None:
    with pytest.raises(SettingsError, match=r"unknown head .fd. \(did you mean .fc.\?\)"):
        find_head(made("temperature"), IMAGES, "fd")
    with pytest.raises(DataError, match="must run when the model does"):
        find_head(Own(lambda own, x: own.body(x), body=vectors(), spare=nn.Linear(D, 3)), IMAGES, "spare")


def test_a_layer_that_also_makes_the_features_is_not_replaced() -> None:
    twice = nn.Linear(D, D)
    model = nn.Sequential(vectors(), twice, nn.ReLU(), twice)
    assert find_head(model, IMAGES) == "1"
    with pytest.raises(DataError, match="runs 2 times in forward"):
        replace_head(model, find_last_layer(model, IMAGES), np.eye(D, dtype=np.float32), np.zeros(D, dtype=np.float32))


@pytest.mark.parametrize("kind", ["one logit", "function", "matmul", "convolution, then mean", "three of six"])
def test_another_number_of_classes_can_be_put_in(kind: str) -> None:
    model = made(kind)
    outputs = collect_outputs(model, split_of(model))
    weight = np.random.default_rng(0).normal(size=(5, D)).astype(np.float32)
    changed = replace_head(model, find_last_layer(model, IMAGES), weight, np.ones(5, dtype=np.float32))
    logits = collect_outputs(changed, split_of(changed)).logits
    assert np.abs(logits - (outputs.features @ weight.T + 1)).max() < 1e-5


@pytest.mark.parametrize(
    "kind", ["softmax", "one probability", "sigmoids in place", "log of softmax", "dict", "linear"]
)
def test_a_classifier_gives_logits_with_gradients(kind: str) -> None:
    model = made(kind)
    x = torch.from_numpy(IMAGES).requires_grad_()
    logits = as_classifier(model, IMAGES)(x)
    assert (as_classifier(model, IMAGES) is model) == (kind == "linear")
    wanted = collect_outputs(model, split_of(model)).logits
    assert np.abs(logits.detach().numpy() - wanted).max() < 1e-6
    (slope,) = torch.autograd.grad(logits[:, -1].sum(), x)
    assert bool(slope.any())


def test_features_and_logits_of_one_batch() -> None:
    model = made("convolution, mean, softmax")
    features, logits = features_and_logits(model, torch.from_numpy(IMAGES))
    outputs = collect_outputs(model, split_of(model))
    assert np.abs(features.detach().numpy() - outputs.features).max() < 1e-6
    assert np.abs(logits.detach().numpy() - outputs.logits).max() < 1e-6


def test_what_is_not_seen_has_no_head_but_outputs() -> None:
    model = torch.jit.script(ends_in(linear())().eval())
    assert find_head_or_none(model, IMAGES) is None
    assert collect_outputs(model, split_of(model)).logits.shape == (6, 3)
