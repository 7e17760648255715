"""The rules of one convolution or linear layer, beside a second version written from the formulas.

The second version writes the layer as a dense matrix in double precision, every contribution x_j w_jk a number of its
own, and shares each output's relevance among them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from exmap.explain.engine import Engine, propagate
from exmap.explain.maps import AlphaBeta, Box, Epsilon, Flat, Gamma, LinearMap, MapRule, Weights, apply_rule
from exmap.explain.rules import Composite

DOUBLE = torch.float64
LAYERS: dict[str, tuple[Callable[[bool], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda b: nn.Conv2d(2, 3, 3, bias=b), (2, 5, 4)),
    "pointwise": (lambda b: nn.Conv2d(3, 4, 1, bias=b), (3, 3, 3)),
    "stride and padding": (lambda b: nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=b), (2, 6, 5)),
    "two strides": (lambda b: nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(0, 1), bias=b), (2, 5, 5)),
    "groups": (lambda b: nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=b), (4, 4, 4)),
    "depthwise": (lambda b: nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=b), (3, 4, 4)),
    "dilation": (lambda b: nn.Conv2d(2, 3, 2, dilation=2, padding=1, bias=b), (2, 5, 5)),
    "reflect": (lambda b: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", bias=b), (2, 4, 5)),
    "same": (lambda b: nn.Conv2d(2, 3, (1, 3), padding="same", bias=b), (2, 4, 4)),
    "same, dilation": (lambda b: nn.Conv2d(2, 3, 3, dilation=2, padding="same", bias=b), (2, 5, 5)),
    "same, even kernel": (lambda b: nn.Conv2d(2, 3, (2, 4), padding="same", bias=b), (2, 4, 4)),
    "same and circular": (lambda b: nn.Conv2d(2, 2, 3, padding="same", padding_mode="circular", bias=b), (2, 2, 3)),
    "valid": (lambda b: nn.Conv2d(2, 3, 2, padding="valid", bias=b), (2, 4, 4)),
    "transposed": (lambda b: nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1, bias=b), (3, 3, 3)),
    "transposed groups": (lambda b: nn.ConvTranspose2d(4, 4, 2, groups=2, dilation=2, bias=b), (4, 3, 3)),
    "one dimension": (lambda b: nn.Conv1d(3, 4, 3, stride=2, padding=2, bias=b), (3, 9)),
    "one dimension, reflect": (lambda b: nn.Conv1d(2, 3, 3, padding=2, padding_mode="reflect", bias=b), (2, 7)),
    "one dimension, transposed": (lambda b: nn.ConvTranspose1d(3, 2, 3, stride=2, bias=b), (3, 4)),
    "three dimensions": (lambda b: nn.Conv3d(2, 2, 2, padding=1, bias=b), (2, 3, 2, 3)),
    "three dimensions, transposed": (lambda b: nn.ConvTranspose3d(2, 2, 2, bias=b), (2, 2, 2, 2)),
    "linear": (lambda b: nn.Linear(7, 5, bias=b), (7,)),
    "linear, tokens": (lambda b: nn.Linear(4, 5, bias=b), (6, 4)),
    "linear, maps": (lambda b: nn.Linear(4, 3, bias=b), (2, 3, 4)),
}
KINDS: dict[str, MapRule] = {
    "epsilon": Epsilon(), "gamma": Gamma(4.0), "weak gamma": Gamma(0.25), "z-plus": AlphaBeta(1, 0),
    "alpha-beta": AlphaBeta(2, 1), "flat": Flat(), "box": Box(-3.0, 4.0),
}  # fmt: skip
FIRST = ("flat", "box")  # rules of a first layer alone: relevance is not in proportion to the input
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


class Weighted(nn.Module):
    """A layer, and a sum over its outputs with weights g: what comes back to the outputs is g, image by image."""

    def __init__(self, layer: nn.Module, g: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("g", g)

    def forward(self, x: Tensor) -> Tensor:
        total = (self.layer(x) * self.g).flatten(1).sum(dim=1)
        return torch.stack([total, -total], dim=1)


def composite(kind: str | MapRule) -> Composite:
    chosen = KINDS[kind] if isinstance(kind, str) else kind
    if isinstance(chosen, (Flat, Box)):
        return Composite("tested", first=chosen)
    return Composite("tested", convolution=chosen, linear=chosen)


def found_by(kind: str | MapRule, layer: nn.Module, x: Tensor, g: Tensor, engine: Engine | None = None) -> Any:
    return propagate(Weighted(layer, g), x, composite=composite(kind), target=0, engine=engine)


def dense(layer: nn.Module, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the layer as a matrix, (inputs j, outputs k), and its bias by output, (outputs k)."""
    layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        bias = layer(torch.zeros(1, *shape, dtype=DOUBLE)).flatten()
        units = torch.eye(int(np.prod(shape)), dtype=DOUBLE).reshape(-1, *shape)
        return (layer(units).flatten(1) - bias).numpy(), bias.numpy()


def connected(layer: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """Return how often output k sees input j."""
    ones = copy.deepcopy(layer)
    with torch.no_grad():
        ones.weight.fill_(1)
        if ones.bias is not None:
            ones.bias.zero_()
    return dense(ones, shape)[0]


def over(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.where(total == 0, 0.0, part / np.where(total == 0, 1.0, total))


def shares(rule: MapRule, c: np.ndarray, w: np.ndarray, b: np.ndarray, sees: np.ndarray) -> tuple[Any, Any]:
    """Return the share of each output's relevance that each input gets, (j, k), and the bias, (k,)."""
    plus, minus = np.maximum(c, 0), np.minimum(c, 0)
    b_plus, b_minus = np.maximum(b, 0), np.minimum(b, 0)
    p, n = plus.sum(axis=0) + b_plus, minus.sum(axis=0) + b_minus
    if isinstance(rule, Epsilon):
        return over(c, p + n), over(b, p + n)
    if isinstance(rule, Gamma):
        alpha, beta = 1 + rule.gamma * (p >= np.abs(n)), 1 + rule.gamma * (p < np.abs(n))
        total = alpha * p + beta * n
        return over(alpha * plus + beta * minus, total), over(alpha * b_plus + beta * b_minus, total)
    if isinstance(rule, AlphaBeta):
        above, below = p + rule.stabilizer, n - rule.stabilizer
        inputs = rule.alpha * plus / above - rule.beta * minus / below
        return inputs, rule.alpha * b_plus / above - rule.beta * b_minus / below
    if isinstance(rule, Flat):
        return sees / (sees.sum(axis=0) + rule.stabilizer), 0 * b
    assert isinstance(rule, Box)
    inputs = c - rule.low * np.maximum(w, 0) - rule.high * np.minimum(w, 0)
    total = inputs.sum(axis=0)
    return inputs / (total + np.copysign(rule.stabilizer, total)), 0 * b


def slow(rule: MapRule, layer: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Return relevance of inputs and of the bias, per image: R_k = z_k g_k shared out among contributions."""
    shape = tuple(x.shape[1:])
    w, bias = dense(layer, shape)
    sees = connected(layer, shape) if isinstance(rule, Flat) else w
    relevance, held = np.zeros((len(x), w.shape[0])), np.zeros(len(x))
    for i, (image, upper) in enumerate(zip(x.double().flatten(1).numpy(), g.double().flatten(1).numpy(), strict=True)):
        contributions = image[:, None] * w
        given = (contributions.sum(axis=0) + bias) * upper
        inputs, constant = shares(rule, contributions, w, bias, sees)
        relevance[i], held[i] = inputs @ given, constant @ given
    return torch.from_numpy(relevance).reshape(x.shape), torch.from_numpy(held)


def padded_by_itself(layer: nn.Module) -> bool:
    return getattr(layer, "padding_mode", "zeros") != "zeros"


def slow_relevance(rule: MapRule, layer: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`slow`; padding that copies pixels is a step of its own: a copy's relevance goes to its pixel."""
    if not padded_by_itself(layer):
        return slow(rule, layer, x, g)
    layer = copy.deepcopy(layer)
    source = torch.arange(x[0].numel(), dtype=DOUBLE).reshape(1, *x.shape[1:])
    source = nn.functional.pad(source, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)[0].long()
    layer.padding_mode, layer.padding = "zeros", (0,) * len(layer.kernel_size)
    padded, held = slow(rule, layer, x.flatten(1)[:, source], g)
    relevance = torch.zeros(x.shape, dtype=DOUBLE).flatten(1)
    for i in range(len(x)):
        relevance[i].index_add_(0, source.flatten(), padded[i].flatten())
    return relevance.reshape(x.shape), held


def assert_close(found: Tensor, wanted: Tensor, share: float = 1e-9) -> None:
    assert found.shape == wanted.shape
    largest, deviation = float(wanted.abs().max()), float((found.double() - wanted.double()).abs().max())
    assert deviation <= share * largest + 1e-30, f"off by {deviation / largest:.2g} of the largest"


def drawn(kind: str, bias: bool, mixed: bool, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a layer, inputs of both signs or none negative, and what comes back to the outputs."""
    build, shape = LAYERS[kind]
    torch.manual_seed(seed)
    layer = build(bias).double()
    x = torch.randn(2, *shape, dtype=DOUBLE)
    x = x if mixed else x.relu()
    return layer, x, torch.randn_like(layer(x)).detach()


# A first layer's rule is for pixels: not where padding copies them, or is a step of its own.
CASES = [
    (kind, layer)
    for kind in KINDS
    for layer in LAYERS
    if kind not in FIRST or not any(word in layer for word in ("reflect", "circular", "even"))
]


@pytest.mark.parametrize(("kind", "layer"), CASES)
def test_a_rule_is_its_formula_written_out_with_contributions(kind: str, layer: str) -> None:
    for bias, mixed in ((False, False), (True, True)):
        made, x, g = drawn(layer, bias, mixed)
        found = found_by(kind, made, x, g)
        wanted, held = slow_relevance(KINDS[kind], made, x, g)
        assert_close(found.values, wanted)
        if kind not in FIRST:
            assert_close(found.constants, held)
        with torch.no_grad():
            assert_close(found.logits[:, 0], Weighted(made, g)(x)[:, 0], 1e-12)


@pytest.mark.parametrize("layer", LAYERS)
def test_relevance_of_positive_outputs_alone_takes_one_way_back_and_is_the_same(layer: str) -> None:
    made, x, g = drawn(layer, True, False)
    with torch.no_grad():
        g = torch.where(made(x) > 0, g, 0.0)
    wanted, held = slow_relevance(Gamma(4.0), made, x, g)
    found = found_by("gamma", made, x, g)
    assert_close(found.values, wanted)
    assert_close(found.constants, held)


def test_one_number_by_hand() -> None:
    layer = nn.Conv2d(2, 1, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([3.0, -1.0]).reshape(1, 2, 1, 1))
        layer.bias.fill_(1.0)
    found = found_by("gamma", layer, torch.ones(1, 2, 1, 1), torch.full((1, 1, 1, 1), 19.0 / 3))
    # z = 3 and g = 19 / 3, so R = 19; P = 3 + 1, N = -1, alpha = 5, beta = 1: shares 5 * 3 / 19, -1 / 19, 5 / 19.
    assert found.values.flatten().tolist() == pytest.approx([15.0, -1.0], rel=1e-5)
    assert float(found.constants[0]) == pytest.approx(5.0, rel=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FIRST])
def test_an_all_zero_input_gets_no_relevance(kind: str) -> None:
    found = found_by(kind, nn.Conv2d(2, 3, 3, bias=False), torch.zeros(1, 2, 4, 4), torch.ones(1, 3, 2, 2))
    assert torch.equal(found.values, torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "epsilon"])  # whose parts cancel in the sum alone
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_an_output_of_exactly_zero_has_no_relevance_to_share(kind: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(2, 1, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    found = found_by(kind, layer, torch.ones(1, 2, dtype=dtype), torch.full((1, 1), 1e20, dtype=dtype))
    assert torch.equal(found.values, torch.zeros(1, 2, dtype=dtype))


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e4, 1e12])
def test_gamma_needs_no_stabiliser_however_small_or_large_activations_are(scale: float) -> None:
    layer, x, g = drawn("plain", False, True)
    found = found_by("gamma", layer.float(), x.float() * scale, g.float())
    assert_close(found.values / scale, slow(Gamma(4.0), layer, x, g)[0], 1e-4)


@pytest.mark.parametrize("layer", LAYERS)
def test_gamma_zero_is_the_epsilon_rule(layer: str) -> None:
    made, x, g = drawn(layer, True, True)
    one, other = (found_by(rule, made, x, g) for rule in (Gamma(0.0), Epsilon()))
    assert_close(one.values, other.values)
    assert_close(one.constants, other.constants)


@pytest.mark.parametrize("kind", ["epsilon", "gamma"])
def test_input_and_bias_are_the_logit_in_single_precision(kind: str) -> None:
    for layer in LAYERS:
        made, x, g = drawn(layer, True, True)
        found = found_by(kind, made.float(), x.float(), g.float())
        assert found.values.dtype == torch.float32
        assert float(found.error().max()) < 1e-4


@pytest.mark.parametrize(("kernel", "options"), [
    (3, {"padding": 1}), (3, {"padding": 1, "stride": 2}), (7, {"padding": 3, "stride": 2}), (1, {"stride": 2}),
    (3, {"padding": 2, "dilation": 2}), (3, {"padding": 1, "groups": 2}), ((1, 3), {"padding": (0, 1), "bias": False}),
    (3, {"padding": "same"}),
])  # fmt: skip
def test_small_maps_as_matrices_are_the_convolution(
    kernel: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in ((1, 1), (2, 1), (2, 2), (1, 4), (3, 2)):
        _assert_matrix_is_convolution(size, kernel, options, monkeypatch)


def _assert_matrix_is_convolution(size: tuple[int, int], kernel: Any, options: Any, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 4, kernel, **options).double()
    small: set[bool] = set()
    usual = LinearMap.is_small
    for kind, mixed in (("gamma", True), ("alpha-beta", False)):
        x = torch.randn(2, 2, *size, dtype=DOUBLE)
        x = x if mixed else x.relu()
        g = torch.randn_like(layer(x)).detach()
        with monkeypatch.context() as patch:
            patch.setattr(LinearMap, "is_small", lambda m, *a: small.add(usual(m, *a)) or usual(m, *a))
            by_matrix = found_by(kind, layer, x, g)
            patch.setattr(LinearMap, "is_small", lambda *_: False)
            by_convolution = found_by(kind, layer, x, g)
        assert_close(by_matrix.values, by_convolution.values, 1e-12)
        assert_close(by_matrix.logits, by_convolution.logits, 1e-12)
        assert_close(by_matrix.constants, by_convolution.constants, 1e-12)
    few = size[0] * size[1] <= 4 and layer.groups == 1
    assert small == {few and size[0] * size[1] <= layer.weight[0, 0].numel()}


def test_small_maps_of_one_and_three_dimensions() -> None:
    torch.manual_seed(0)
    for layer, shape in ((nn.Conv1d(2, 3, 3, padding=1), (2, 2)), (nn.Conv3d(2, 3, 3, padding=1), (2, 1, 2, 2))):
        x = torch.randn(2, *shape)
        assert LinearMap((1,) * (x.ndim - 2)).is_small(x, layer.weight)
        g = torch.randn_like(layer(x)).detach()
        assert_close(found_by("gamma", layer, x, g).values, slow(Gamma(4.0), layer, x, g)[0], 1e-5)


# --- with batch normalisation ------------------------------------------------------------------------------------


def normalised(conv: nn.Module, affine: bool, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    norms = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    norm = norms[conv.weight.ndim - 2](conv.out_channels, affine=affine)
    nn.init.normal_(norm.running_mean, std=0.3)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias, std=0.3)
    return nn.Sequential(conv, norm).double().eval()


def fused(pair: nn.Sequential) -> nn.Module:
    conv, norm = copy.deepcopy(pair)
    if norm.weight is None:  # torch's function wants them
        norm.weight, norm.bias = nn.Parameter(torch.ones_like(norm.running_var)), nn.Parameter(0 * norm.running_mean)
    return fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.modules.conv._ConvTransposeNd))


@pytest.mark.parametrize(
    "layer", ["plain", "stride and padding", "groups", "same, even kernel", "transposed", "one dimension",
              "three dimensions"]
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_batch_normalisation_and_the_convolution_before_it_are_one_map(kind: str, layer: str) -> None:
    for bias, affine in ((False, True), (True, False)):
        conv, x, g = drawn(layer, bias, True)
        pair = normalised(conv, affine)
        found, wanted = found_by(kind, pair, x, g), found_by(kind, fused(pair), x, g)
        assert_close(found.values, wanted.values)
        assert_close(found.logits, wanted.logits)
        assert_close(found.constants, wanted.constants, 1e-8)


class Also(nn.Module):
    """What the convolution makes goes through batch normalisation, and past it."""

    def __init__(self, pair: nn.Sequential) -> None:
        super().__init__()
        self.conv, self.norm = pair

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y).relu() + y


class Apart(nn.Module):
    """The same with two convolutions, one of them merged by hand."""

    def __init__(self, pair: nn.Sequential) -> None:
        super().__init__()
        self.merged, self.conv = fused(pair), pair[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.merged(x).relu() + self.conv(x)


@pytest.mark.parametrize("kind", ["gamma", "z-plus"])
def test_what_is_used_beside_batch_normalisation_too_has_the_convolutions_own_rule(kind: str) -> None:
    conv, x, g = drawn("stride and padding", True, True)
    pair = normalised(conv, True)
    engine = Engine(composite(kind))
    wanted = found_by(kind, Apart(pair), x, g)
    for _ in range(3):  # the second time the convolution's own rule is not prepared for on the way there
        found = found_by(kind, Also(pair), x, g, engine)
        assert_close(found.values, wanted.values)
        assert_close(found.constants, wanted.constants)


def test_a_convolution_that_is_changed_before_batch_normalisation_is_not_merged() -> None:
    class Changed(nn.Module):
        def __init__(self, pair: nn.Sequential, in_place: bool) -> None:
            super().__init__()
            (self.conv, self.norm), self.in_place = pair, in_place

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y = y.relu_() if self.in_place else y.relu()
            return self.norm(y)

    conv, x, g = drawn("plain", True, True)
    pair = normalised(conv, True)
    one, other = (found_by("gamma", Changed(pair, way), x, g) for way in (True, False))
    assert_close(one.values, other.values, 1e-12)
    assert float(one.error().max()) < 1e-9


def test_one_batch_normalisation_after_two_convolutions() -> None:
    class Twice(nn.Module):
        def __init__(self, one: nn.Module, other: nn.Module, norm: nn.Module) -> None:
            super().__init__()
            self.one, self.other, self.norm = one, other, norm

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.other(self.norm(self.one(x)).relu()))

    torch.manual_seed(0)
    one, other = (normalised(nn.Conv2d(3, 3, 3), True) for _ in range(2))
    other[1] = one[1]
    x, g = torch.randn(2, 3, 7, 7, dtype=DOUBLE), torch.randn(2, 3, 3, 3, dtype=DOUBLE)
    found = found_by("gamma", Twice(one[0], other[0], one[1]), x, g)
    wanted = found_by("gamma", nn.Sequential(fused(one), nn.ReLU(), fused(other)), x, g)
    assert_close(found.values, wanted.values)
    assert_close(found.constants, wanted.constants)


@pytest.mark.parametrize("kind", ["gamma", "alpha-beta", "z-plus"])
@pytest.mark.parametrize("norm", [False, True], ids=["convolution", "batch normalisation"])
def test_a_relu_that_overwrites_the_output_changes_nothing(kind: str, norm: bool) -> None:
    conv, x, _ = drawn("stride and padding", True, True)
    layers = list(normalised(conv, True)) if norm else [conv]
    one, other = (nn.Sequential(*layers, nn.ReLU(inplace=way), nn.Conv2d(3, 2, 2).double()) for way in (True, False))
    one[-1] = other[-1]
    g = torch.randn_like(other(x)).detach()
    found, wanted = found_by(kind, one, x, g), found_by(kind, other, x, g)
    assert torch.equal(found.values, wanted.values)
    assert torch.equal(found.constants, wanted.constants)


# --- kept from batch to batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_batch_is_explained_as_the_first(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *normalised(nn.Conv2d(2, 4, 3, padding=1), True), nn.ReLU(inplace=True),
        *normalised(nn.Conv2d(4, 4, 3, padding=1, bias=False), False, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 2),
        nn.Flatten(), nn.Linear(8, 3),
    ).double().eval()  # fmt: skip
    x, engine = torch.rand(3, 2, 3, 3, dtype=DOUBLE), Engine(composite(kind))
    first = propagate(model, x, engine=engine, target=1)
    size = len(engine.kept)
    other = propagate(model, x.flip(0)[:2], engine=engine, target=1)
    again = propagate(model, x, engine=engine, target=1)
    assert torch.equal(first.values, again.values)
    assert_close(other.values, first.values.flip(0)[:2], 1e-12)
    assert len(engine.kept) == size


class SharedWeights(nn.Module):
    """One weight with two biases, and with none."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 3) if linear else torch.randn(3, 3, 3, 3))
        self.one, self.other = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
        self.run = nn.functional.linear if linear else nn.functional.conv2d

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(x, self.weight, self.one).relu()
        x = self.run(x, self.weight, self.other).relu()
        return self.run(x, self.weight)


@pytest.mark.parametrize("linear", [False, True], ids=["convolution", "linear"])
def test_a_weight_that_is_used_with_several_biases_keeps_each(linear: bool) -> None:
    model = SharedWeights(linear).double()
    x = torch.randn(2, 3, dtype=DOUBLE) if linear else torch.randn(2, 3, 8, 8, dtype=DOUBLE)
    with torch.no_grad():
        y = model(x)
    found = found_by("gamma", model, x, torch.ones_like(y))
    assert_close(found.logits[:, 0], y.flatten(1).sum(dim=1), 1e-12)
    assert float(found.error().max()) < 1e-9


@pytest.mark.parametrize("kind", ["gamma", "z-plus"])
def test_what_is_derived_of_computed_weights_is_not_kept_for_ever(kind: str) -> None:
    torch.manual_seed(0)
    conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    model = nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU()).double().eval()
    x, g = torch.randn(2, 2, 5, 5, dtype=DOUBLE), torch.randn(2, 3, 3, 3, dtype=DOUBLE)
    engine = Engine(composite(kind))
    sizes = []
    for _ in range(4):
        found_by(kind, model, x, g, engine)
        sizes.append(len(engine.kept) + len(engine.kept.get("normalised", ())))
    assert sizes[1] == sizes[3]


def test_a_rule_of_ones_own() -> None:
    """The w-square rule: in proportion to the squares of weights, whatever the input."""

    class Square(MapRule):
        def there(self, weights: Weights, x: Tensor, z: Tensor, positive: bool) -> tuple[Tensor, ...]:
            squares = weights.variant("squares", torch.square)
            return (z / weights.run("squares", squares, torch.ones_like(x)),)

        def back(self, weights: Weights, g: Tensor, x: Tensor, positive: bool, kept: Any) -> tuple[Tensor, None]:
            return weights.back("squares", weights.variant("squares", torch.square), kept[0] * g, x), None

    layer, x, g = drawn("plain", False, True)
    found = propagate(Weighted(layer, g), x, composite=Composite("w-square", first=Square()), target=0)
    w, _ = dense(layer, tuple(x.shape[1:]))
    z = x.flatten(1).numpy() @ w
    wanted = (z * g.flatten(1).numpy() / (w**2).sum(axis=0)) @ (w**2).T
    assert_close(found.values, torch.from_numpy(wanted).reshape(x.shape))


def test_a_rule_can_be_applied_by_itself() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(4, 3, dtype=DOUBLE), torch.randn(4, dtype=DOUBLE)
    x = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    noted: list[Tensor] = []
    weights = Weights(LinearMap(), weight, bias)
    values = x.detach()
    for late in (False, True):
        y = apply_rule(Gamma(1.0), weights, x, lambda: values @ weight.T + bias, noted.append, late=late)
        (g,) = torch.autograd.grad(y.sum(), x)
        layer = nn.Linear(3, 4).double()
        layer.load_state_dict({"weight": weight, "bias": bias})
        wanted, held = slow(Gamma(1.0), layer, values, torch.ones(2, 4))
        assert_close(values * g, wanted)
        assert_close(noted[-1], held)
