"""The engine's rules beside others' implementations, and beside slow second versions written from the papers.

Sources: Bach et al. (2015) for epsilon, Ali et al. (2022) and Achtibat et al. (AttnLRP, 2024) for transformers; the
packages zennit, Captum and LXT, where they support the network.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from slow_rules import SUMS, slow_composite
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import resnet18

from exmap.explain.engine import propagate
from families import FAMILIES, images_for, trained_like

DOUBLE = torch.float64


def assert_close(found: Tensor, wanted: Tensor, share: float) -> None:
    """Relevance differs by at most a share of its largest value, image by image."""
    assert found.shape == wanted.shape
    largest = wanted.double().flatten(1).abs().amax(dim=1)
    assert (largest > 0).all()
    distance = (found.double() - wanted.double()).flatten(1).abs().amax(dim=1)
    assert (distance <= share * largest).all(), f"off by {float((distance / largest).max()):.2g} of the maximum"


def gradient_times_input(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x times the gradient of the largest logit, and that logit."""
    x = x.clone().requires_grad_()
    top = model(x).amax(dim=1)
    (gradient,) = torch.autograd.grad(top.sum(), x)
    return (x * gradient).detach(), top.detach()


# ReLU networks, without and with biases ------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def plain_net(bias: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, stride=2, bias=bias),
        nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 10, bias=bias), nn.ReLU(),
        nn.Linear(10, 4, bias=bias),
    )  # fmt: skip


def grouped_net(bias: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=bias), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6, dilation=2, padding=2, bias=bias),
        nn.ReLU(), nn.Conv2d(6, 8, 1, bias=bias), nn.ReLU(), nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=bias), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4, bias=bias),
    )  # fmt: skip


def residual_net(bias: bool) -> nn.Sequential:
    body = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1, bias=bias), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1, bias=bias))
    down = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1, bias=bias), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, bias=bias))
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.ReLU(), Residual(body), nn.ReLU(),
        Residual(down, nn.Conv2d(6, 8, 1, 2, bias=bias)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4, bias=bias),
    )  # fmt: skip


NETS: dict[str, Callable[[bool], nn.Sequential]] = {
    "plain": plain_net, "grouped": grouped_net, "residual": residual_net,
}  # fmt: skip


def net(kind: str, bias: bool, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = NETS[kind](bias).double().eval()
    if bias:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0, 0.3)
    return model


def pixels(n: int = 3, side: int = 12, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", NETS)
def test_epsilon_on_a_relu_network_without_biases_is_gradient_times_input(kind: str, seed: int) -> None:
    model, x = net(kind, False, seed), pixels()
    wanted, top = gradient_times_input(model, x)
    found = propagate(model, x, composite="epsilon")
    assert_close(found.values, wanted, 1e-12)
    assert_close(found.values.sum(dim=(1, 2, 3))[:, None], top[:, None], 1e-9)
    assert found.constants.abs().max() == 0


@pytest.mark.parametrize("kind", NETS)
def test_constants_hold_exactly_what_the_biases_add(kind: str) -> None:
    """Each bias times its gradient, image by image."""
    model, x = net(kind, True), pixels()
    found = propagate(model, x, composite="epsilon")
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    for i in range(len(x)):
        gradients = torch.autograd.grad(model(x[i : i + 1]).max(), biases)
        wanted = sum(float((b.detach() * g).sum()) for b, g in zip(biases, gradients, strict=True))
        assert float(found.constants[i]) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    "name", ["torchvision/resnet18", "torchvision/densenet121", "timm/resnet50d", "torchvision/vgg16_bn"]
)
def test_epsilon_through_batch_normalisation_is_gradient_times_input(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    family = FAMILIES[name]
    model = trained_like(family.build(0).double(), images_for(family, 6, dtype=DOUBLE))
    x = images_for(family, 2, seed=3, dtype=DOUBLE)
    wanted, top = gradient_times_input(model, x)
    found = propagate(model, x, composite="epsilon")
    assert_close(found.values, wanted, 1e-9)
    assert_close(found.constants[:, None], (top - wanted.sum(dim=(1, 2, 3)))[:, None], 1e-9)


# The symmetric gamma rule --------------------------------------------------------------------------------------------


def transposed(layer: Callable[[Tensor], Tensor], x: Tensor, share: Tensor) -> Tensor:
    """Return the layer's transpose applied to `share`."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(layer(x), x, share)[0]


def quotient(upper: Tensor, total: Tensor) -> Tensor:
    return torch.where(total == 0, 0.0, upper / torch.where(total == 0, 1.0, total))


def with_parts(layer: nn.Module, sign: int, bias: int) -> nn.Module:
    """Return the layer with weights of one sign, and the biases of one sign or none."""

    def part(tensor: Tensor, keep: int) -> Tensor:
        return tensor.clamp(min=0) if keep > 0 else tensor.clamp(max=0) if keep < 0 else torch.zeros_like(tensor)

    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.copy_(part(layer.weight, sign))
        if layer.bias is not None:
            layer.bias.copy_(part(layer.bias, bias))
    return layer


def gamma_step(layer: nn.Module, x: Tensor, upper: Tensor, gamma: float) -> Tensor:
    """Section 4 of the paper: alpha and beta favour the sign of contributions that dominates an output."""
    plus, minus = x.clamp(min=0), x.clamp(max=0)
    positive = [(with_parts(layer, 1, 1), plus), (with_parts(layer, -1, 0), minus)]
    negative = [(with_parts(layer, -1, -1), plus), (with_parts(layer, 1, 0), minus)]
    with torch.no_grad():
        p = sum(part(values) for part, values in positive)
        n = sum(part(values) for part, values in negative)
    alpha, beta = 1 + gamma * (p >= n.abs()), 1 + gamma * (p < n.abs())
    share = quotient(upper, alpha * p + beta * n)
    relevance = torch.zeros_like(x)
    for parts, weight in ((positive, alpha), (negative, beta)):
        for part, values in parts:
            relevance += values * transposed(part, values, weight * share)
    return relevance


def in_proportion(function: Callable[[Tensor], Tensor], x: Tensor, upper: Tensor) -> Tensor:
    """Share relevance in proportion to contributions (epsilon = 0): linear layers, pooling."""
    with torch.no_grad():
        output = function(x)
    return x * transposed(function, x, quotient(upper, output))


def slow_relevance(model: nn.Module, x: Tensor, upper: Tensor, gamma: float) -> Tensor:
    """Propagate layer by layer, from the top, through sequences and residual blocks."""
    if isinstance(model, nn.Sequential):
        inputs = [x]
        with torch.no_grad():
            for layer in model:
                inputs.append(layer(inputs[-1]))
        for layer, values in zip(reversed(list(model)), reversed(inputs[:-1]), strict=True):
            upper = slow_relevance(layer, values, upper, gamma)
        return upper
    if isinstance(model, Residual):
        with torch.no_grad():
            one, other = model.body(x), model.shortcut(x)
        share = quotient(upper, one + other)
        return slow_relevance(model.body, x, share * one, gamma) + slow_relevance(
            model.shortcut, x, share * other, gamma
        )
    if isinstance(model, (nn.ReLU, nn.Identity, nn.Flatten)):
        return upper.reshape(x.shape)
    if isinstance(model, (nn.Conv2d, nn.ConvTranspose2d)):
        return gamma_step(model, x, upper, gamma)
    return in_proportion(model, x, upper)


def start(logits: Tensor) -> Tensor:
    """Return the logit of the predicted class at its place, and zeros."""
    chosen = logits.argmax(dim=1, keepdim=True)
    return torch.zeros_like(logits).scatter(1, chosen, logits.gather(1, chosen)).detach()


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("kind", NETS)
def test_symmetric_gamma_is_the_papers_formula(kind: str, bias: bool) -> None:
    model, x = net(kind, bias), pixels()
    wanted = slow_relevance(model, x, start(model(x)), 4.0)
    found = propagate(model, x, composite="symmetric_gamma")
    assert_close(found.values, wanted, 1e-9)
    total = found.values.sum(dim=(1, 2, 3)) + found.constants
    assert_close(total[:, None], found.explained[:, None], 1e-9)


def merged(model: nn.Module) -> nn.Module:
    """Return a copy of a torchvision ResNet with batch normalisation merged into the convolutions before it."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        for convolution, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")):
            if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
                setattr(module, norm, nn.Identity())
        if isinstance(getattr(module, "downsample", None), nn.Sequential):
            module.downsample = nn.Sequential(fuse_conv_bn_eval(*module.downsample))
    return model


def used_resnet(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = resnet18(num_classes=4).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model


def zennits(model: nn.Module, x: Tensor, composite: Any, upper: Callable[[Tensor], Tensor] = start) -> Tensor:
    from zennit.attribution import Gradient

    with Gradient(model=model, composite=composite) as attributor:
        return attributor(x, upper)[1].detach()


def test_symmetric_gamma_on_a_resnet_18_is_that_of_four_modified_passes() -> None:
    model = used_resnet(0)
    x = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    wanted = zennits(merged(model).double(), x.double(), slow_composite(4.0, SUMS, stabilizer=1e-12))
    for dtype, share in ((torch.float32, 1e-3), (DOUBLE, 1e-6)):
        found = propagate(model.to(dtype), x.to(dtype), composite="symmetric_gamma")
        assert_close(found.values, wanted, share)


# zennit --------------------------------------------------------------------------------------------------------------

RELEVANCE = (
    "epsilon_plus",
    "epsilon_alpha2_beta1",
    "epsilon_plus_flat",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
)
GRADIENTS = ("guided_backprop", "deconvnet", "beta_smooth")


def zennit_composite(name: str, canonizers: Sequence[Any] = ()) -> Any:
    composites = pytest.importorskip("zennit.composites")
    options: dict[str, Any] = {"epsilon": 1e-9} if "epsilon" in name else {}
    if "box" in name:
        options.update(low=torch.zeros(1), high=torch.ones(1))
    return composites.COMPOSITES[name](canonizers=list(canonizers), **options)


def one(logits: Tensor) -> Tensor:
    return F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits)


class SmallVgg(nn.Module):
    """Each layer a module of its own, used once, as zennit and Captum need it."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=bias), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, bias=bias), nn.ReLU(),
            nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(3),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(8, 12, bias=bias), nn.ReLU(), nn.Linear(12, 4, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


def small_vgg(bias: bool = True) -> nn.Module:
    torch.manual_seed(3)
    model = SmallVgg(bias).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that no output is as small as a stabiliser
    return model


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("name", [*RELEVANCE, "excitation_backprop"])
def test_composites_named_after_zennits_give_what_zennits_give(name: str, bias: bool) -> None:
    model, x = small_vgg(bias), pixels(4, seed=5).sigmoid()
    wanted = zennits(model, x, zennit_composite(name))
    assert_close(propagate(model, x, composite=name).values, wanted, 1e-4)


@pytest.mark.parametrize("name", GRADIENTS)
def test_composites_that_change_gradients_give_what_zennits_give(name: str) -> None:
    model, x = small_vgg(), pixels(4, seed=5)
    assert_close(propagate(model, x, composite=name).values, zennits(model, x, zennit_composite(name), one), 1e-9)


def small_vgg_bn() -> nn.Sequential:
    torch.manual_seed(4)
    layers: list[nn.Module] = []
    for a, b in ((3, 6), (6, 6), (6, 8)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4)).double()
    return trained_like(model, pixels(16))


@pytest.mark.parametrize("name", RELEVANCE)
def test_with_batch_normalisation_merged_composites_give_what_zennits_give(name: str) -> None:
    canonizers = pytest.importorskip("zennit.canonizers")
    model, x = small_vgg_bn(), pixels(4, seed=5).sigmoid()
    wanted = zennits(copy.deepcopy(model), x, zennit_composite(name, [canonizers.SequentialMergeBatchNorm()]))
    assert_close(propagate(model, x, composite=name).values, wanted, 1e-3)  # zennit's merge may drop an epsilon


# Captum --------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_epsilon_is_captums(bias: bool) -> None:
    attr = pytest.importorskip("captum.attr")
    model, x = small_vgg(bias), pixels(3)
    target = model(x).argmax(dim=1)
    wanted = attr.LRP(copy.deepcopy(model)).attribute(x.clone(), target=target).detach()
    assert_close(propagate(model, x, composite="epsilon").values, wanted, 1e-6)


@pytest.mark.filterwarnings("ignore")
def test_z_plus_on_convolutions_is_captums_where_no_input_is_negative() -> None:
    attr = pytest.importorskip("captum.attr")
    rules = pytest.importorskip("captum.attr._utils.lrp_rules")
    model, x = small_vgg(bias=False), pixels(3).sigmoid()
    theirs = copy.deepcopy(model)
    for layer in theirs.modules():
        if isinstance(layer, nn.Conv2d):
            layer.rule = rules.Alpha1_Beta0_Rule()
    wanted = attr.LRP(theirs).attribute(x.clone(), target=model(x).argmax(dim=1)).detach()
    assert_close(propagate(model, x, composite="epsilon_plus").values, wanted, 1e-4)


# Transformers: rows of an image of one channel are the tokens --------------------------------------------------------

ROWS, WIDTH, HEADS = 5, 8, 2


def halves(a: Tensor, b: Tensor, times: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A product whose gradient is shared equally: the uniform rule of AttnLRP (Proposition 3.2, 3.3)."""
    return 0.5 * times(a, b.detach()) + 0.5 * times(a.detach(), b)


def passed(x: Tensor, y: Tensor) -> Tensor:
    """What an activation that is zero at zero passes on: relevance as it is."""
    return x * torch.where(x == 0, 0.0, y / torch.where(x == 0, 1.0, x)).detach()


class Slow:
    """Operations whose plain gradient times input is the rule: Ali et al. (2022), or AttnLRP (2024)."""

    def __init__(self, attnlrp: bool) -> None:
        self.attnlrp = attnlrp

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.attnlrp:
            return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).detach() @ v
        scores = halves(q, k, lambda a, b: a @ b.mT) / math.sqrt(q.shape[-1])
        return halves(scores.softmax(-1), v, torch.matmul)

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        spread = (x.var(dim=-1, unbiased=False, keepdim=True) + norm.eps).sqrt().detach()
        return (x - x.mean(dim=-1, keepdim=True)) / spread * norm.weight + norm.bias

    def rms_norm(self, x: Tensor, norm: nn.RMSNorm) -> Tensor:
        eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt().detach() * norm.weight

    def group_norm(self, x: Tensor, norm: nn.GroupNorm) -> Tensor:
        rows = x.mT.unflatten(1, (norm.num_groups, -1))
        spread = (rows.var(dim=(2, 3), unbiased=False, keepdim=True) + norm.eps).sqrt().detach()
        rows = ((rows - rows.mean(dim=(2, 3), keepdim=True)) / spread).flatten(1, 2).mT
        return rows * norm.weight + norm.bias

    def gelu(self, x: Tensor) -> Tensor:
        return passed(x, F.gelu(x))

    def silu(self, x: Tensor) -> Tensor:
        return passed(x, F.silu(x))

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return halves(a, b, torch.mul)

    def gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x).detach()


class Fast:
    """The same operations as users write them."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return norm(x)

    def rms_norm(self, x: Tensor, norm: nn.RMSNorm) -> Tensor:
        return norm(x)

    def group_norm(self, x: Tensor, norm: nn.GroupNorm) -> Tensor:
        return norm(x.mT).mT

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def silu(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class Fused(Fast):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Einsum(Fast):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
        return torch.einsum("bhij,bhjd->bhid", F.softmax(scores, dim=-1), v)


class Transformer(nn.Module):
    """One block with everything, over rows; `how` does the operations that have rules."""

    def __init__(self, how: Any, bias: bool = True) -> None:
        super().__init__()
        self.how = how
        self.n1, self.n2, self.n3 = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH), nn.GroupNorm(2, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias), nn.Linear(WIDTH, WIDTH, bias)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH, bias), nn.Linear(2 * WIDTH, WIDTH, bias)
        self.gated, self.back = nn.Linear(WIDTH, 2 * WIDTH, bias), nn.Linear(WIDTH, WIDTH, bias)
        self.squeeze, self.head = nn.Linear(WIDTH, WIDTH, bias), nn.Linear(WIDTH, 4, bias)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(self.how.attend(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, image: Tensor) -> Tensor:
        how, x = self.how, image.squeeze(1)
        x = x + self.attention(how.layer_norm(x, self.n1))
        x = x + self.down(how.gelu(self.up(how.rms_norm(x, self.n2))))
        a, b = self.gated(how.group_norm(x, self.n3)).chunk(2, dim=-1)
        x = x + self.back(how.product(how.silu(a), b))
        x = x * how.gate(self.squeeze(x.mean(dim=1, keepdim=True)))
        return self.head(x.mean(dim=1))


def transformer(how: Any, seed: int = 0, bias: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    model = Transformer(how, bias).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(float("weight" in name), 0.3)
            else:
                parameter.mul_(2)
    return model


def tokens(n: int = 3) -> Tensor:
    return torch.randn(n, 1, ROWS, WIDTH, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)


WAYS = {"products": Fast, "fused": Fused, "einsum": Einsum}


@pytest.mark.parametrize("way", WAYS)
def test_held_attention_and_statistics_are_those_of_ali_et_al(way: str) -> None:
    """Probabilities, statistics and gates detached, everything else a gradient: the equality is exact."""
    x = tokens()
    wanted, top = gradient_times_input(transformer(Slow(attnlrp=False)), x)
    found = propagate(transformer(WAYS[way]()), x, composite="epsilon")
    assert torch.allclose(found.explained, top)
    assert_close(found.values, wanted, 1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_attnlrp_is_the_papers_propositions(way: str) -> None:
    x = tokens()
    wanted, _ = gradient_times_input(transformer(Slow(attnlrp=True)), x)
    assert_close(propagate(transformer(WAYS[way]()), x, composite="attnlrp").values, wanted, 1e-9)


class Attention(nn.Module):
    """Attention alone, by whatever `attend` is."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.attend = attend
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.head = nn.Linear(WIDTH, 4, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        x = image.squeeze(1)
        return self.head(self.attend(self.q(x), self.k(x), self.v(x)).sum(dim=1))


def attention(attend: Callable[..., Tensor]) -> nn.Module:
    torch.manual_seed(1)
    model = Attention(attend).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def test_attnlrp_of_one_attention_is_its_equations_written_in_relevance() -> None:
    """Softmax: R_i = x_i (R'_i - s_i sum R'). Products: half to each factor, in proportion. No gradient is used."""
    model, image = attention(Fast().attend), tokens()
    x, w = image.squeeze(1), {name: parameter.detach() for name, parameter in model.named_parameters()}
    q, k, v = (x @ w[f"{name}.weight"].T for name in "qkv")
    scores = q @ k.mT / math.sqrt(WIDTH)
    s = scores.softmax(-1)
    out = s @ v
    logits = out.sum(dim=1) @ w["head.weight"].T
    chosen = logits.argmax(dim=1)
    r_out = out * w["head.weight"][chosen][:, None]  # the sum over rows and the head share in proportion
    r_s, r_v = s * (quotient(r_out, 2 * out) @ v.mT), v * (s.mT @ quotient(r_out, 2 * out))
    r_scores = scores * (r_s - s * r_s.sum(-1, keepdim=True))
    share = quotient(r_scores, 2 * scores) / math.sqrt(WIDTH)
    r_q, r_k = q * (share @ k), k * (share.mT @ q)
    wanted = sum(
        x * (quotient(r, y) @ w[f"{name}.weight"]) for name, y, r in (("q", q, r_q), ("k", k, r_k), ("v", v, r_v))
    )
    for attend in (Fast().attend, F.scaled_dot_product_attention):
        found = propagate(attention(attend), image, composite="attnlrp")
        assert found.target.tolist() == chosen.tolist()
        assert_close(found.values, wanted[:, None], 1e-9)


def test_attnlrp_of_attention_layer_norm_and_products_is_lxts() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lxt = pytest.importorskip("lxt.explicit.functional")

    class Lxt(Fast):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = lxt.matmul(q, k.mT, False, 1e-12)
            return lxt.matmul(lxt.softmax(scores, -1, None, math.sqrt(q.shape[-1])), v, False, 1e-12)

    class LxtBlock(nn.Module):
        def __init__(self, how: Any, step: Callable[..., Tensor], theirs: bool) -> None:
            super().__init__()
            self.how, self.step, self.theirs = how, step, theirs
            self.norm = nn.LayerNorm(WIDTH)
            self.q, self.k, self.v, self.up, self.gate = (nn.Linear(WIDTH, WIDTH) for _ in range(5))
            self.head = nn.Linear(WIDTH, 4)

        def forward(self, image: Tensor) -> Tensor:
            x = image.squeeze(1)
            norm = self.norm
            y = lxt.layer_norm(x, norm.weight, norm.bias, norm.eps) if self.theirs else norm(x)
            heard = self.how.attend(*(self.step(y, layer) for layer in (self.q, self.k, self.v)))
            x = lxt.add2(x, heard, False, 1e-12) if self.theirs else x + heard
            a, b = self.step(x, self.up), self.step(x, self.gate)
            x = lxt.mul2(a, b) if self.theirs else a * b
            pooled = lxt.mean(x, 1, False, 1e-12) if self.theirs else x.mean(dim=1)
            return self.step(pooled, self.head)

    def made(how: Any, step: Callable[..., Tensor], theirs: bool) -> nn.Module:
        torch.manual_seed(0)
        return LxtBlock(how, step, theirs).double().eval()

    x = tokens()
    theirs = made(Lxt(), lambda y, layer: lxt.linear_epsilon(y, layer.weight, layer.bias, 1e-12), True)
    ours = made(Fast(), lambda y, layer: layer(y), False)
    leaf = x.clone().requires_grad_()
    logits = theirs(leaf)
    logits.backward(start(logits))  # what travels in LXT's explicit graph is relevance
    assert_close(propagate(ours, x, composite="attnlrp").values, leaf.grad, 1e-4)  # its layer norm has a stabiliser


# One function written in two ways gets one map -----------------------------------------------------------------------


def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def _glu(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return a * torch.sigmoid(b)


def _layer_norm(x: Tensor) -> Tensor:
    rows = x.permute(0, 2, 3, 1)
    centred = rows - rows.mean(-1, keepdim=True)
    return (centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)).permute(0, 3, 1, 2)


def _group_norm(x: Tensor) -> Tensor:
    rows = x.reshape(len(x), 2, -1)
    variance, mean = torch.var_mean(rows, dim=2, keepdim=True, correction=0)
    return ((rows - mean) * torch.rsqrt(variance + 1e-5)).reshape(x.shape)


def _instance_norm(x: Tensor) -> Tensor:
    return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()


def _rms_norm(x: Tensor) -> Tensor:
    rows = x.movedim(1, -1)
    return (rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-5)).movedim(-1, 1)


def _by_channels(norm: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: norm(x.movedim(1, -1), (8,), eps=1e-5).movedim(-1, 1)


def _softmax(x: Tensor, dim: int = -1) -> Tensor:
    e = torch.exp(x - x.amax(dim, keepdim=True))
    return e / e.sum(dim, keepdim=True)


def _attention(softmax: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    def attend(x: Tensor) -> Tensor:
        rows = x.flatten(2).mT
        return (softmax(rows @ rows.mT * 0.3, dim=-1) @ rows).mT.reshape(x.shape)

    return attend


def _batch_norm(x: Tensor) -> Tensor:
    mean, variance = torch.linspace(-1, 1, 8, dtype=x.dtype), torch.linspace(0.5, 2, 8, dtype=x.dtype)
    return F.batch_norm(x, mean, variance, eps=1e-5)


def _batch_norm_by_hand(x: Tensor) -> Tensor:
    mean, variance = torch.linspace(-1, 1, 8, dtype=x.dtype), torch.linspace(0.5, 2, 8, dtype=x.dtype)
    return (x - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + 1e-5)


TWINS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "SiLU": (F.silu, lambda x: x * torch.sigmoid(x)),
    "SiLU, gate first": (F.silu, lambda x: x.sigmoid().mul(x)),
    "SiLU by exp": (F.silu, lambda x: x / (1 + torch.exp(-x))),
    "GELU": (F.gelu, lambda x: 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))),
    "GELU, cdf first": (F.gelu, lambda x: x * (torch.erf(x / math.sqrt(2.0)) + 1) * 0.5),
    "GELU with tanh": (lambda x: F.gelu(x, approximate="tanh"), _gelu_tanh),
    "Mish": (F.mish, _mish),
    "Hardswish": (F.hardswish, lambda x: x * F.relu6(x + 3) / 6),
    "Hardswish by clamp": (F.hardswish, lambda x: x * (x / 6 + 0.5).clamp(0, 1)),
    "GLU": (lambda x: F.glu(x, dim=1), _glu),
    "ReLU": (F.relu, lambda x: x * (x > 0)),
    "ReLU by clamp": (F.relu, lambda x: x.clamp(min=0)),
    "ReLU by maximum": (F.relu, lambda x: torch.maximum(x, torch.zeros_like(x))),
    "ReLU by where": (F.relu, lambda x: torch.where(x > 0, x, 0.0)),
    "LeakyReLU": (lambda x: F.leaky_relu(x, 0.2), lambda x: torch.max(x, 0.2 * x)),
    "square": (lambda x: x * x, lambda x: x**2),
    "cube": (lambda x: x**3, lambda x: x * x * x),
    "layer norm": (_by_channels(F.layer_norm), _layer_norm),
    "group norm": (lambda x: F.group_norm(x, 2, eps=1e-5), _group_norm),
    "instance norm": (lambda x: F.instance_norm(x, eps=1e-5), _instance_norm),
    "RMS norm": (_by_channels(F.rms_norm), _rms_norm),
    "batch norm": (_batch_norm, _batch_norm_by_hand),
    "normalize": (F.normalize, lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)),
    "normalize by root": (F.normalize, lambda x: x * torch.rsqrt((x * x).sum(1, keepdim=True))),
    "attention": (_attention(torch.softmax), _attention(_softmax)),
    "average": (lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: x.sum((2, 3), keepdim=True) / 25),
    "average, halved": (lambda x: x.mean((2, 3)), lambda x: torch.einsum("bchw->bc", x).mul(0.04)),
    "extreme": (lambda x: F.adaptive_max_pool2d(x, 1), lambda x: x.flatten(2).max(dim=2).values[..., None, None]),
    "sum": (lambda x: x + 0.5 * x.flip(2), lambda x: torch.add(x, x.flip(2), alpha=0.5)),
    "1x1 convolution": (lambda x: F.conv2d(x, WEIGHT[..., None, None]), lambda x: F.linear(x.movedim(1, -1), WEIGHT)),
    "1x1 convolution by einsum": (
        lambda x: F.conv2d(x, WEIGHT[..., None, None]), lambda x: torch.einsum("oc,bchw->bohw", WEIGHT, x),
    ),
    "1x1 convolution by matmul": (
        lambda x: F.conv2d(x, WEIGHT[..., None, None]), lambda x: (WEIGHT @ x.flatten(2)).unflatten(2, (5, 5)),
    ),
    "depthwise convolution by shifts": (
        lambda x: F.conv2d(x, torch.ones(8, 1, 1, 3, dtype=x.dtype), groups=8),
        lambda x: x[..., :-2] + x[..., 1:-1] + x[..., 2:],
    ),
}  # fmt: skip
WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(9), dtype=DOUBLE)


class Around(nn.Module):
    """A convolution, a function of its maps, and a linear layer over what is left of them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.stem, self.head = nn.Conv2d(3, 8, 3, bias=False), nn.LazyLinear(4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.stem(x))
        y = y.movedim(-1, 1) if y.ndim == 4 and y.shape[1] == y.shape[2] == 5 != y.shape[3] else y
        return self.head(y.flatten(1))


def around(function: Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    model = Around(function).double().eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.stem.weight.mul_(3)
        model(pixels(1, 7))
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(1)))
    return model


UNLIKE = ("batch norm", "convolution")  # gamma is for convolutions, and batch normalisation is a part of them


@pytest.mark.parametrize("composite", ["epsilon", "symmetric_gamma"])
@pytest.mark.parametrize("name", TWINS)
def test_a_function_written_in_two_ways_has_one_map(name: str, composite: str) -> None:
    if composite == "symmetric_gamma" and any(word in name for word in UNLIKE):
        return
    one, other = (around(function) for function in TWINS[name])
    x = pixels(3, 7)
    wanted = propagate(one, x, composite=composite)
    found = propagate(other, x, composite=composite)
    assert torch.allclose(found.explained, wanted.explained)
    assert_close(found.values, wanted.values, 1e-6)
