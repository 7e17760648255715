"""Layers through which all relevance passes, and relevance by channel there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from exmap.explain.engine import Call, Engine, propagate
from exmap.explain.layers import Layer, by_channel, layer_at, unit_peak, whole_layers
from exmap.explain.rules import Rule, make_composite

DOUBLE = torch.float64


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 16, 16, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model.to(DOUBLE).eval()


def resnet_like() -> nn.Module:
    torch.manual_seed(0)
    halve = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12))
    return randomised(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
            BasicBlock(8, 8), BasicBlock(8, 12, stride=2, downsample=halve), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(12, 4),
        )
    )  # fmt: skip


class VitBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(x)


class Vit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 17, 8))
        self.blocks, self.head = nn.Sequential(VitBlock(), VitBlock()), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.patches(x).flatten(2).transpose(1, 2)
        rows = torch.cat([self.token.expand(len(rows), -1, -1), rows], dim=1) + self.positions
        return self.head(self.blocks(rows)[:, 0])


def vit_like() -> nn.Module:
    torch.manual_seed(0)
    model = Vit()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return randomised(model)


def later_constants(model: nn.Module, x: Tensor, path: str, composite: str) -> float:
    """Return the relevance of the constants of all operations that run after a module has returned."""
    counter = 0

    def count(call: Call, rule: Rule, engine: Engine) -> object:
        nonlocal counter
        counter += 1
        engine.owner = counter
        return rule.run(call, engine)

    ended: list[int] = []
    hook = model.get_submodule(path).register_forward_hook(lambda *_: ended.append(counter))
    engine = Engine(make_composite(composite), audit=count)
    propagate(model, x, engine=engine)
    hook.remove()
    return sum(float(part.sum()) for owner, part in engine.constants.by_owner() if (owner or 0) > ended[-1])


@pytest.mark.parametrize(("build", "composite"), [
    (resnet_like, "symmetric_gamma"), (resnet_like, "epsilon"), (vit_like, "attention_gamma"), (vit_like, "epsilon"),
])  # fmt: skip
def test_at_a_whole_layer_relevance_and_later_constants_are_the_logit(build: type, composite: str) -> None:
    model, x = build(), images(1)
    layers = whole_layers(model, x, make_composite(composite))
    assert layers
    found = propagate(model, x, composite=composite, layers=[layer.path for layer in layers])
    for layer in layers:
        relevance = found.layers[layer.path]
        assert tuple(relevance.shape[1:]) == layer.shape
        total = float(relevance.sum()) + later_constants(model, x, layer.path, composite)
        assert total == pytest.approx(float(found.explained[0]), rel=1e-6), layer.path


def test_whole_layers_of_a_resnet_are_its_stem_and_blocks_and_what_follows() -> None:
    layers = whole_layers(resnet_like(), images(), make_composite("symmetric_gamma"))
    shapes = {layer.path: layer.shape for layer in layers}
    assert shapes["1"] == (8, 16, 16)
    assert shapes["2"] == (12, 8, 8)
    assert "0" in shapes or "0.2" in shapes
    inner = {"1.conv1", "1.bn2", "2.downsample", "2.conv2", "1.bn1"}  # parallel to something, or half of one map
    assert not inner & set(shapes) - {"1.bn1"}
    depths = [layer.depth for layer in layers]
    assert depths == sorted(depths)
    assert 0 < depths[0] < depths[-1] == 1


def test_whole_layers_of_a_transformer_are_its_blocks() -> None:
    layers = {layer.path: layer for layer in whole_layers(vit_like(), images(), make_composite("attention_gamma"))}
    assert layers["blocks.0"].shape == (17, 8)
    assert not {"blocks.0.norm", "blocks.0.mlp", "blocks.1.attention"} & set(layers)
    assert "blocks" in layers  # of modules with the same output the outermost
    assert "blocks.1" not in layers


def test_the_model_has_no_hooks_afterwards() -> None:
    model = resnet_like()
    whole_layers(model, images(), make_composite("epsilon"))
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layer_at_takes_the_nearest_depth_with_positions() -> None:
    layers = [
        Layer("stem", 0.1, (8, 16, 16)), Layer("middle", 0.5, (8, 8, 8)), Layer("late", 0.8, (17, 8)),
        Layer("head", 1.0, (4,)),
    ]  # fmt: skip
    assert [layer_at(layers, depth).path for depth in (0.0, 0.45, 0.75, 1.0)] == ["stem", "middle", "late", "late"]
    assert layer_at([layers[-1]], 0.5) is None
    assert layer_at([], 0.5) is None


@pytest.mark.parametrize(("shape", "axis"), [
    ((2, 5, 4, 4), 1), ((2, 4, 4, 5), 3), ((2, 5, 4, 2), 1), ((2, 4, 2, 5), 3), ((2, 7, 5), 2), ((2, 5), 1),
    ((2, 5, 1, 1), 1), ((2, 5, 3, 4), 1),
])  # fmt: skip
def test_by_channel_sums_over_positions_wherever_the_channels_are(shape: tuple[int, ...], axis: int) -> None:
    relevance = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    image = torch.Size((2, 3, 16, 8 if shape[1:3] == (4, 2) or shape[2:] == (4, 2) else 16))
    wanted = relevance.movedim(axis, 1).reshape(2, shape[axis], -1).sum(dim=2)
    torch.testing.assert_close(by_channel(relevance, image), wanted)


def test_by_channel_keeps_the_sum_and_does_not_mind_where_things_are() -> None:
    model, x = resnet_like(), images()
    one, other = (propagate(model, y, layers=["2"], target=1).layers["2"] for y in (x, x.flip(3)))
    vectors = by_channel(one, x.shape)
    assert vectors.shape == (3, 12)
    torch.testing.assert_close(vectors.sum(dim=1), one.flatten(1).sum(dim=1))
    assert by_channel(other, x.shape).shape == (3, 12)


def test_unit_peak_divides_each_vector_by_its_largest_absolute_value() -> None:
    vectors = torch.tensor([[1.0, -4.0, 2.0], [0.0, 0.0, 0.0], [3e-30, 0.0, 0.0]])
    assert unit_peak(vectors).tolist() == [[0.25, -1.0, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
