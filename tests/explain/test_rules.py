"""Rules on whole networks: composites beside zennit's, ways of writing a network, the table of rules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from slow_rules import SUMS, slow_composite
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck
from zennit import rules as zennits
from zennit.attribution import Gradient
from zennit.composites import COMPOSITES as ZENNITS
from zennit.composites import LayerMapComposite
from zennit.types import Convolution

from exmap.errors import SettingsError
from exmap.explain import composite_names, make_composite
from exmap.explain.engine import propagate
from exmap.explain.maps import AlphaBeta, Epsilon, Gamma
from exmap.explain.rules import COMPOSITES, RULES, UNKNOWN, Composite

DOUBLE = torch.float64


def assert_close(found: Tensor, wanted: Tensor, share: float = 1e-9) -> None:
    assert found.shape == wanted.shape
    largest, deviation = float(wanted.abs().max()), float((found.double() - wanted.double()).abs().max())
    assert largest > 0
    assert deviation <= share * largest, f"off by {deviation / largest:.2g} of the largest"


def by_zennit(model: nn.Module, x: Tensor, composite: Any, start: Tensor) -> Tensor:
    with Gradient(model=model, composite=composite) as attributor:
        return attributor(x, start)[1].detach()


# --- single layers, beside zennit's rules ------------------------------------------------------------------------


class Weighted(nn.Module):
    """The sum of a layer's outputs with weights g."""

    def __init__(self, layer: nn.Module, g: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("g", g)

    def forward(self, x: Tensor) -> Tensor:
        total = (self.layer(x) * self.g).flatten(1).sum(dim=1)
        return torch.stack([total, -total], dim=1)


LAYERS = {
    "plain": (lambda b: nn.Conv2d(2, 3, 3, bias=b), (2, 5, 4)),
    "stride and padding": (lambda b: nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=b), (2, 6, 5)),
    "groups, dilation": (lambda b: nn.Conv2d(4, 4, 3, padding=2, groups=2, dilation=2, bias=b), (4, 4, 4)),
    "transposed": (lambda b: nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1, bias=b), (3, 3, 3)),
    "three dimensions": (lambda b: nn.Conv3d(2, 2, 2, padding=1, bias=b), (2, 3, 2, 3)),
}


@pytest.mark.parametrize("mixed", [False, True], ids=["non-negative", "mixed signs"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_rules_that_zennit_has_give_what_zennits_give(kind: str, bias: bool, mixed: bool) -> None:
    build, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer = build(bias).double()
    x = torch.randn(2, *shape, dtype=DOUBLE)
    x = x if mixed else x.relu()
    g = torch.randn_like(layer(x)).detach()
    for ours, theirs in (
        (AlphaBeta(1, 0), zennits.ZPlus()),
        (AlphaBeta(2, 1), zennits.AlphaBeta(2, 1)),
        (Gamma(0.25), zennits.Gamma(0.25, stabilizer=1e-12)),
        (Epsilon(), zennits.Epsilon(epsilon=1e-12)),
    ):
        found = propagate(Weighted(layer, g), x, composite=Composite("tested", convolution=ours), target=0)
        relevance = (layer(x) * g).detach()
        wanted = by_zennit(layer, x, LayerMapComposite(layer_map=[(Convolution, theirs)]), relevance)
        assert_close(found.values, wanted, 1e-8)


# --- composites on a residual network, beside zennit's machinery -------------------------------------------------


def randomise_batch_norm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)


def residual() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    halve = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
    blocks = BasicBlock(8, 8), BasicBlock(8, 16, stride=2, downsample=halve), Bottleneck(16, 4)
    model = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).double().eval()
    randomise_batch_norm(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # so that no output is as small as a stabiliser
    return model


def merged(model: nn.Module) -> nn.Module:
    """Return a copy with each batch normalisation in the convolution before it, and an identity in its place."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for convolution, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")):
            pair = module._modules.get(convolution), module._modules.get(norm)
            if isinstance(pair[0], nn.Conv2d) and isinstance(pair[1], nn.BatchNorm2d):
                module._modules[convolution], module._modules[norm] = fuse_conv_bn_eval(*pair), nn.Identity()
    return model


GRADIENTS = ("deconvnet", "guided_backprop")  # beta_smooth: zennit's keeps one input per ReLU
SHARED = sorted({*COMPOSITES} & {*ZENNITS} - {*GRADIENTS, "beta_smooth"})


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", [*SHARED, *GRADIENTS, "symmetric_gamma"])
def test_composites_give_what_zennits_machinery_gives(name: str, signed: bool) -> None:
    torch.manual_seed(0)
    bounded = name == "epsilon_gamma_box"
    x = torch.rand(3, 3, 12, 12, dtype=DOUBLE) - (0.5 if signed and not bounded else 0)
    model = residual()
    options: dict[str, Any] = {"low": torch.zeros(1), "high": torch.ones(1)} if bounded else {}
    if "epsilon" in name:
        options["epsilon"] = 1e-9
    slow = ZENNITS[name](canonizers=SUMS, **options) if name in ZENNITS else slow_composite(4.0, SUMS, 1e-12)
    target = torch.arange(3)
    with torch.no_grad():
        logits = model(x)
    start = torch.eye(3, dtype=DOUBLE) * (1 if name in GRADIENTS else logits.gather(1, target[:, None]))
    found = propagate(model, x, composite=name, target=target)
    assert_close(found.values, by_zennit(merged(model), x, slow, start), 1e-3)


def test_zennits_names_that_are_here_are_those_of_the_old_package() -> None:
    assert {
        "epsilon_gamma_box", "epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_alpha2_beta1_flat",
        "excitation_backprop", "guided_backprop", "deconvnet", "beta_smooth", "symmetric_gamma",
    } <= set(composite_names())  # fmt: skip


def vgg_like(inplace: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=inplace), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=inplace),
        nn.Flatten(), nn.Linear(4 * 16, 3),
    )  # fmt: skip


def images(n: int = 3, side: int = 6) -> Tensor:
    return torch.randn(n, 3, side, side, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0, 100.0])
def test_gamma_reaches_the_rule(gamma: float) -> None:
    torch.manual_seed(0)
    model, x = vgg_like(False).double(), images()
    start = torch.diag(model(x).diagonal().detach())
    found = propagate(model, x, composite=make_composite("symmetric_gamma", gamma=gamma), target=torch.arange(3))
    assert_close(found.values, by_zennit(model, x, slow_composite(gamma, stabilizer=1e-12), start), 1e-6)


# --- ways of writing the same network ----------------------------------------------------------------------------


class Functional(nn.Module):
    """In-place steps that are no modules."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 36, 3)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.first(x), 0.3, inplace=self.inplace).abs()
        y = self.second(x)
        if self.inplace:
            y += x
        else:
            y = y + x
        return self.head(torch.relu(y).flatten(1))


@pytest.mark.parametrize("composite", sorted(COMPOSITES))
@pytest.mark.parametrize("build", [vgg_like, Functional])
def test_networks_that_change_activations_in_place_get_the_same_heatmaps(build: type, composite: str) -> None:
    torch.manual_seed(0)
    model, plain = build(True).double(), build(False).double()
    plain.load_state_dict(model.state_dict())
    x = images().sigmoid()
    one, other = (propagate(m, x, composite=composite, target=torch.arange(3)) for m in (model, plain))
    assert_close(one.values, other.values, 1e-12)
    assert_close(one.logits, other.logits, 1e-12)


class Shared(nn.Module):
    """Uses one convolution twice, or two that are equal."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other, self.head = one, other, nn.Linear(3 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.one(x).relu()).relu().flatten(1))


@pytest.mark.parametrize("composite", ["symmetric_gamma", "epsilon", "epsilon_alpha2_beta1_flat"])
def test_a_convolution_that_is_used_twice_has_each_uses_own_relevance(composite: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    shared = Shared(conv, conv).double()
    apart = Shared(conv, copy.deepcopy(conv)).double()
    apart.head = shared.head
    found, wanted = (propagate(model, images(), composite=composite) for model in (shared, apart))
    assert_close(found.values, wanted.values)


class Standardised(nn.Conv2d):
    """A convolution whose weights are not what it computes with."""

    def computed(self) -> Tensor:
        return self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.computed(), self.bias)


def test_a_convolution_that_computes_its_weights_is_explained_by_those_it_computed() -> None:
    torch.manual_seed(0)
    conv, rest = Standardised(3, 4, 3), [nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    model = nn.Sequential(conv, *rest).double()
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), *rest).double()
    with torch.no_grad():
        plain[0].weight.copy_(conv.computed())
        plain[0].bias.copy_(conv.bias)
    assert_close(propagate(model, images()).values, propagate(plain, images()).values)


def test_a_residual_block_of_another_kind_is_explained_as_it_is() -> None:
    class Halved(BasicBlock):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    torch.manual_seed(0)
    halved, plain = (
        nn.Sequential(kind(3, 3), nn.Flatten(), nn.Linear(108, 3)).double() for kind in (Halved, BasicBlock)
    )
    plain.load_state_dict(halved.state_dict())
    with torch.no_grad():
        plain[-1].weight /= 2
    found, wanted = (propagate(model, images()) for model in (halved, plain))
    assert_close(found.logits, wanted.logits, 1e-12)
    assert_close(found.values, wanted.values, 1e-12)


# --- names and the table -----------------------------------------------------------------------------------------


def test_an_unknown_composite_is_refused_with_the_closest_name() -> None:
    with pytest.raises(SettingsError, match=r"unknown composite 'symetric_gamma'.*did you mean 'symmetric_gamma'"):
        make_composite("symetric_gamma")


def test_composite_names_are_sorted_and_are_the_composites_own() -> None:
    assert composite_names() == sorted(COMPOSITES)
    assert all(name == composite.name for name, composite in COMPOSITES.items())


def test_gamma_is_for_the_symmetric_gamma_rule_alone() -> None:
    assert make_composite("symmetric_gamma").convolution == Gamma(4.0)
    assert make_composite("symmetric_gamma", gamma=1.5).convolution == Gamma(1.5)
    assert make_composite("epsilon_plus", gamma=1.5) == COMPOSITES["epsilon_plus"]
    assert COMPOSITES["symmetric_gamma"].convolution == Gamma(4.0)


def test_which_composites_promise_a_sum_and_which_need_pixels_in_a_range() -> None:
    exact = {name for name, composite in COMPOSITES.items() if composite.exact and composite.times_input}
    assert exact == {"symmetric_gamma", "epsilon", "attention_gamma", "attnlrp", "attnlrp_gamma"}
    assert [name for name in COMPOSITES if COMPOSITES[name].bounded] == ["epsilon_gamma_box"]


def test_the_table_can_be_read() -> None:
    for operation in ("conv2d", "linear", "add", "mul", "softmax", "gelu", "sigmoid", "batch_norm", "layer_norm"):
        assert operation in RULES
    for operation, rule in RULES.items():
        assert operation == operation.strip()
        assert rule.name
    assert "no rule known" in UNKNOWN.name
