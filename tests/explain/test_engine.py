"""The engine, operation by operation: on a tiny function of the pixels, and between two layers of a small network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import exmap
from exmap.errors import DataError, SettingsError
from exmap.explain import rules
from exmap.explain.engine import Call, Engine, composite_for, operation_name, propagate
from exmap.explain.rules import COMPOSITES, DEFAULT, DEFAULT_ATTENTION, RULES, make_composite

DOUBLE = torch.float64
HALF = 0.5
Function = Callable[[Tensor], Tensor]


def assert_close(found: Tensor, wanted: Tensor | float, share: float = 1e-9) -> None:
    wanted = torch.as_tensor(wanted, dtype=DOUBLE).expand_as(found)
    assert float((found.double() - wanted).abs().max()) <= share * max(1.0, float(wanted.abs().max()))


# --- a function of a few numbers: what each rule is, in numbers ---------------------------------------------------


class Of(nn.Module):
    """The logit is a function of four numbers, a, b, c and d, each of them (n,)."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        logit = self.function(*x.flatten(1).clone().unbind(1))
        return torch.stack([logit, -logit], dim=1)


NUMBERS = torch.tensor([[0.7, -1.3, 2.1, 0.4], [-0.2, 0.9, -0.6, 1.5]], dtype=DOUBLE).reshape(2, 1, 2, 2)
A, B, C, D = NUMBERS.flatten(1).unbind(1)


def shared(function: Callable[..., Tensor], composite: str = "epsilon") -> tuple[list[Tensor], Tensor]:
    """Return the relevance of a, b, c and d, and of constants; it adds up."""
    found = propagate(Of(function), NUMBERS, composite=composite, target=0)
    assert torch.equal(found.explained, function(*NUMBERS.flatten(1).clone().unbind(1)))
    assert float(found.error().max()) < 1e-12
    return list(found.values.flatten(1).unbind(1)), found.constants


S = torch.sigmoid
TABLE: dict[str, tuple[Callable[..., Tensor], list[Any], Any]] = {
    # operation: function, relevance of a, b, c, d, and of constants
    "sum": (lambda a, b, c, d: a + b - 2 * c, [A, B, -2 * C, 0], 0),
    "x + 3": (lambda a, b, c, d: a + 3, [A, 0, 0, 0], 3),
    "3 + x": (lambda a, b, c, d: 3 + a, [A, 0, 0, 0], 3),
    "x - 3": (lambda a, b, c, d: a - 3, [A, 0, 0, 0], -3),
    "3 - x": (lambda a, b, c, d: 3 - a, [-A, 0, 0, 0], 3),
    "torch.sub, alpha": (lambda a, b, c, d: torch.sub(a, torch.tensor(3.0), alpha=2), [A, 0, 0, 0], -6),
    "torch.rsub, alpha": (lambda a, b, c, d: torch.rsub(a, 3.0, alpha=2), [-2 * A, 0, 0, 0], 3),
    "torch.add, alpha": (lambda a, b, c, d: torch.add(torch.tensor(3.0), a, alpha=2), [2 * A, 0, 0, 0], 3),
    "x * 3": (lambda a, b, c, d: 3 * a * 2, [6 * A, 0, 0, 0], 0),
    "x / 3": (lambda a, b, c, d: a / 4, [A / 4, 0, 0, 0], 0),
    "ReLU": (lambda a, b, c, d: a.relu() + b.relu(), [A.relu(), B.relu(), 0, 0], 0),
    "leaky ReLU": (lambda a, b, c, d: F.leaky_relu(a, 0.1), [F.leaky_relu(A, 0.1), 0, 0, 0], 0),
    "maximum of data": (lambda a, b, c, d: torch.maximum(a, b), [A * (A > B), B * (B > A), 0, 0], 0),
    "maximum with a number": (
        lambda a, b, c, d: torch.maximum(a, torch.tensor(0.5, dtype=DOUBLE)), [A.clamp(min=0.5) - 0.5, 0, 0, 0], 0.5,
    ),
    "an activation passes on": (lambda a, b, c, d: F.gelu(a) + F.silu(b), [F.gelu(A), F.silu(B), 0, 0], 0),
    "tanh": (lambda a, b, c, d: torch.tanh(a), [A.tanh(), 0, 0, 0], 0),
    "an activation that is not 0 at 0": (lambda a, b, c, d: torch.cos(a), [A.cos() - 1, 0, 0, 0], 1),
    "a gate alone passes on": (lambda a, b, c, d: S(a), [S(A) - HALF, 0, 0, 0], HALF),
    "clamp": (lambda a, b, c, d: a.clamp(-0.5, 0.5), [A.clamp(-0.5, 0.5), 0, 0, 0], 0),
    "clamp from above 0": (lambda a, b, c, d: a.clamp(0.3, 1), [A.clamp(0.3, 1) - 0.3, 0, 0, 0], 0.3),
    "gate held in a product": (lambda a, b, c, d: a * S(b), [A * S(B), 0, 0, 0], 0),
    "gate held, first": (lambda a, b, c, d: S(b) * a, [A * S(B), 0, 0, 0], 0),
    "gate of itself": (lambda a, b, c, d: a * S(a), [F.silu(A), 0, 0, 0], 0),
    "gate, changed by numbers": (lambda a, b, c, d: a * (1 + 2 * S(b)), [A * (1 + 2 * S(B)), 0, 0, 0], 0),
    "exp held": (lambda a, b, c, d: a * b.exp(), [A * B.exp(), 0, 0, 0], 0),
    "product of data": (lambda a, b, c, d: a * b, [A * B / 2, A * B / 2, 0, 0], 0),
    "product of three": (lambda a, b, c, d: torch.einsum("n,n,n->n", a, b, c), [A * B * C / 3] * 3 + [0], 0),
    "x * x": (lambda a, b, c, d: a * a, [A * A, 0, 0, 0], 0),
    "x ** 2": (lambda a, b, c, d: a**2, [A * A, 0, 0, 0], 0),
    "x ** 3": (lambda a, b, c, d: a.pow(3), [A**3, 0, 0, 0], 0),
    "2 ** x": (lambda a, b, c, d: 2**a, [2**A - 1, 0, 0, 0], 1),
    "x ** 0.5 is held": (lambda a, b, c, d: b * (a * a) ** 0.5, [0, B * A.abs(), 0, 0], 0),
    "x ** -1 is held": (lambda a, b, c, d: b * a**-1, [0, B / A, 0, 0], 0),
    "quotient": (lambda a, b, c, d: a / b, [A / B, 0, 0, 0], 0),
    "1 / x takes its gradient": (lambda a, b, c, d: 1 / a, [-1 / A, 0, 0, 0], 2 / A),
    "quotient of gates stays a gate": (
        lambda a, b, c, d: a * (S(b) / (S(b) + S(c))), [A * (S(B) / (S(B) + S(C))), 0, 0, 0], 0,
    ),
    "where": (lambda a, b, c, d: torch.where(a > 0, a, b), [A * (A > 0), B * (A <= 0), 0, 0], 0),
    "where, a number": (lambda a, b, c, d: torch.where(a > 0, a, 2.0), [A * (A > 0), 0, 0, 0], 2.0 * (A <= 0)),
    "masked_fill": (lambda a, b, c, d: a.masked_fill(a > 0, 5), [A * (A <= 0), 0, 0, 0], 5.0 * (A > 0)),
    "threshold": (lambda a, b, c, d: F.threshold(a, 0.1, 0.0), [A * (A > 0.1), 0, 0, 0], 0),
    "lerp, a number": (lambda a, b, c, d: torch.lerp(a, b, 0.25), [0.75 * A, 0.25 * B, 0, 0], 0),
    "cat": (
        lambda a, b, c, d: torch.cat([a[:, None], torch.full((2, 1), 3.0, dtype=DOUBLE)], dim=1).sum(dim=1),
        [A, 0, 0, 0], 3,
    ),
    "stack": (lambda a, b, c, d: torch.stack([a, torch.ones_like(a), b]).sum(dim=0), [A, B, 0, 0], 1),
    "pad": (lambda a, b, c, d: F.pad(a[:, None], (1, 0), value=2.0).sum(dim=1), [A, 0, 0, 0], 2),
    "standard deviation": (
        lambda a, b, c, d: c * torch.stack([a, b]).std(dim=0), [0, 0, C * torch.stack([A, B]).std(dim=0), 0], 0,
    ),
    "norm": (lambda a, b, c, d: a / torch.stack([a, b]).norm(dim=0), [A / torch.hypot(A, B), 0, 0, 0], 0),
    "largest": (
        lambda a, b, c, d: torch.stack([a, b, c]).amax(dim=0),
        [torch.where(A.maximum(B).maximum(C) == one, one, 0.0) for one in (A, B, C)] + [0], 0,
    ),
    "rounding is a constant": (lambda a, b, c, d: a + b.round(), [A, 0, 0, 0], B.round()),
    "straight through": (lambda a, b, c, d: a + (a.round() - a).detach(), [A, 0, 0, 0], A.round() - A),
    "detach": (lambda a, b, c, d: a + b.detach(), [A, 0, 0, 0], B),
    "glu": (lambda a, b, c, d: F.glu(torch.stack([a, b], dim=1), dim=1)[:, 0], [A * S(B), 0, 0, 0], 0),
}  # fmt: skip


@pytest.mark.parametrize("operation", TABLE)
def test_what_an_operations_rule_gives(operation: str) -> None:
    function, inputs, constant = TABLE[operation]
    values, constants = shared(function)
    for value, wanted in zip(values, inputs, strict=True):
        assert_close(value, wanted)
    assert_close(constants, constant)


def test_softmax_is_held_or_takes_its_gradient() -> None:
    def attend(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        p = torch.softmax(torch.stack([a, b], dim=1), dim=1)
        return (p * torch.stack([c, d], dim=1)).sum(dim=1)

    p = torch.softmax(torch.stack([A, B], dim=1), dim=1)
    values, constants = shared(attend)
    for value, wanted in zip(values, [0, 0, p[:, 0] * C, p[:, 1] * D], strict=True):
        assert_close(value, wanted)
    assert_close(constants, 0)
    values, constants = shared(attend, "attnlrp")
    slope = p[:, 0] * p[:, 1]  # of the first probability, by the first score
    for value, wanted in zip(
        values,
        [A * slope * (C - D) / 2, B * slope * (D - C) / 2, p[:, 0] * C / 2, p[:, 1] * D / 2],
        strict=True,
    ):
        assert_close(value, wanted)
    assert_close(constants, (p[:, 0] * C + p[:, 1] * D) / 2 - (A - B) * slope * (C - D) / 2)


def test_a_normalisation_holds_its_statistics() -> None:
    def normed(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return F.layer_norm(torch.stack([a, b, c], dim=1), (3,))[:, 0]

    rows = torch.stack([A, B, C], dim=1)
    spread = (rows.var(dim=1, unbiased=False) + 1e-5).sqrt()
    values, constants = shared(normed)
    for value, wanted in zip(values, [A * 2 / 3 / spread, -B / 3 / spread, -C / 3 / spread, 0], strict=True):
        assert_close(value, wanted)
    assert_close(constants, 0)


@pytest.mark.parametrize(("function", "slope"), [
    (torch.sigmoid, 0.25), (torch.cos, 0.0), (F.gelu, 0.5), (torch.exp, 1.0), (F.softplus, 0.5), (torch.tanh, 1.0),
])  # fmt: skip
def test_near_zero_an_activation_has_the_slope_there(function: Function, slope: float) -> None:
    numbers = torch.tensor([0.0, 1e-12, -1e-9, 1e-30], dtype=DOUBLE).reshape(1, 1, 2, 2)
    found = propagate(Of(lambda *each: sum(map(function, each))), numbers, composite="epsilon", target=0)
    assert_close(found.values * 1e9, slope * numbers * 1e9, 1e-6)
    assert float(found.error().max()) < 1e-9


# --- between two layers: every way of writing it ------------------------------------------------------------------


class Between(nn.Module):
    """A convolution, a function of its maps (n, 6, 8, 8), positions averaged, a linear layer."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.p = nn.Parameter(torch.randn(1, 6, 8, 8))
        self.weight, self.square = nn.Parameter(torch.randn(6, 6, 3, 3)), nn.Parameter(torch.randn(6, 6))
        self.one, self.other = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.rows = nn.Parameter(torch.randn(8, 6))
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("var", torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self, self.stem(x))
        return self.head(y.mean(dim=(2, 3)) if y.ndim == 4 else y)


def pooled(y: Tensor) -> Tensor:
    return y.mean(dim=(2, 3))


def statement(function: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Tensor]:
    """Make a function of one that changes its maps in place."""

    def changed(s: Any, y: Tensor) -> Tensor:
        function(s, y)
        return y

    return changed


def written(key: Any, value: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Tensor]:
    return statement(lambda s, y: y.__setitem__(key, value(s, y)))


def onto_constant(function: Callable[[Tensor, Tensor], Any], number: float) -> Callable[[Any, Tensor], Tensor]:
    def changed(s: Any, y: Tensor) -> Tensor:
        made = torch.full_like(y, number)
        return function(made, y)

    return changed


def accumulated(s: Any, y: Tensor) -> Tensor:
    total = torch.zeros_like(y)
    for part in (y, y.relu(), y * 2):
        total += part
    return total


def swish_in_place(s: Any, y: Tensor) -> Tensor:
    gate = torch.sigmoid(y)
    y *= gate
    return y


def onto_gate(s: Any, y: Tensor) -> Tensor:
    gate = torch.sigmoid(pooled(y))[:, :, None, None].expand_as(y).clone()
    gate *= y
    return gate


def residual_in_place(s: Any, y: Tensor) -> Tensor:
    z = F.conv2d(y.relu(), s.weight, s.one, padding=1)
    z += y
    return z


def softmax_before_change(s: Any, y: Tensor) -> Tensor:
    weights = y.softmax(dim=1)
    y += weights
    return y


FIRST_TWO = (slice(None), slice(0, 2))
WRITTEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "x + p": lambda s, y: y + s.p,
    "p - x": lambda s, y: s.p - y,
    "torch.sub(p, x, alpha)": lambda s, y: torch.sub(s.p, y, alpha=2),
    "x += p": statement(lambda s, y: y.add_(s.p)),
    "x -= p": statement(lambda s, y: y.sub_(s.p, alpha=2)),
    "x += x": statement(lambda s, y: y.add_(y)),
    "x += y": residual_in_place,
    "x += 1 by operator": statement(lambda s, y: y.__iadd__(1)),
    "constant += x": onto_constant(lambda c, y: c.add_(y), 1.0),
    "zeros += x, several": accumulated,
    "constant -= x": onto_constant(lambda c, y: c.sub_(y), 3.0),
    "constant *= x": onto_constant(lambda c, y: c.mul_(y), 3.0),
    "constant /= x": onto_constant(lambda c, y: c.div_(y.abs() + 1), 3.0),
    "x *= gate": swish_in_place,
    "gate *= x": onto_gate,
    "x /= x.abs() + 1": statement(lambda s, y: y.div_(y.abs() + 1)),
    "x *= 2, x.neg_()": statement(lambda s, y: y.mul_(2).neg_()),
    "silu_": statement(lambda s, y: F.silu(y, inplace=True)),
    "silu, inplace by position": statement(lambda s, y: F.silu(y, True)),
    "relu_": statement(lambda s, y: y.relu_()),
    "hardtanh, inplace by position": statement(lambda s, y: F.hardtanh(y, -0.5, 0.5, True)),
    "hardtanh_": statement(lambda s, y: F.hardtanh_(y, -0.5, 0.5)),
    "elu, inplace by position": statement(lambda s, y: F.elu(y, 1.0, True)),
    "hardswish_": statement(lambda s, y: F.hardswish(y, inplace=True)),
    "leaky_relu_": statement(lambda s, y: F.leaky_relu_(y, 0.2)),
    "sigmoid_": statement(lambda s, y: y.sigmoid_()),
    "exp_": statement(lambda s, y: y.exp_()),
    "clamp_": statement(lambda s, y: y.clamp_(0.1, 0.3)),
    "pow_": statement(lambda s, y: y.pow_(2)),
    "x **= 2": statement(lambda s, y: y.__ipow__(2)),
    "sqrt_": statement(lambda s, y: y.abs_().sqrt_()),
    "masked_fill_": statement(lambda s, y: y.masked_fill_(y > 0.3, 1.5)),
    "addcmul_ of parameters": statement(lambda s, y: y.addcmul_(s.p, s.p)),
    "fill_": lambda s, y: torch.cat([y, y.clone().fill_(2.0)], dim=2),
    "copy_": lambda s, y: torch.zeros_like(y).copy_(y * 2),
    "round_": lambda s, y: y.clone().round_() + y,
    "x[:, 0] = 5": written((slice(None), 0), lambda s, y: 5.0),
    "x[:, 0] = x[:, 1]": written((slice(None), 0), lambda s, y: y[:, 1].clone()),
    "x[:, 0] = p": written((slice(None), 0), lambda s, y: s.p[:, 0]),
    "x[:, 0] = gate": written((slice(None), 0), lambda s, y: y[:, 1].sigmoid()),
    "x[mask] = 0": statement(lambda s, y: y.__setitem__(y > 0.2, 0.0)),
    "zeros[...] = x": lambda s, y: statement(lambda _, z: z.__setitem__(FIRST_TWO, y[:, :2]))(s, torch.ones_like(y)),
    "view *= 2": statement(lambda s, y: y[:, :2].mul_(2)),
    "view += 1": statement(lambda s, y: y[:, :2].add_(1.0)),
    "view += p": statement(lambda s, y: y[:, :2].add_(s.p[:, :2])),
    "view -= 1": statement(lambda s, y: y[:, :2].sub_(1.0)),
    "view += x": statement(lambda s, y: y[:, :2].add_(y[:, 2:4].clone())),
    "silu of a view in place": statement(lambda s, y: F.silu(y[:, :2], inplace=True)),
    "cos of a view in place": statement(lambda s, y: y[:, :2].cos_()),
    "gate of a view in place": statement(lambda s, y: y[:, :2].mul_(y[:, 2:4].sigmoid())),
    "fill of a view": statement(lambda s, y: y[:, :2].fill_(3.0)),
    "masked_fill of a view": statement(lambda s, y: y[:, :2].masked_fill_(y[:, 2:4] > 0, 3.0)),
    "round of a view": statement(lambda s, y: y[:, :2].round_()),
    "clamp by data": lambda s, y: torch.clamp(y, min=y.flip(1)),
    "clamp_min by data": lambda s, y: y.clamp_min(y.mean(dim=(2, 3), keepdim=True)),
    "clamp by parameters": lambda s, y: torch.clamp(y, min=s.p),
    "maximum with parameters": lambda s, y: torch.maximum(y, s.p),
    "threshold with a value": lambda s, y: F.threshold(y, 0.1, 20.0),
    "addcmul of data": lambda s, y: torch.addcmul(y, y.relu(), y),
    "addcmul of parameters": lambda s, y: torch.addcmul(y, s.p, y.relu()),
    "addcdiv of data": lambda s, y: torch.addcdiv(y, y.relu(), y.abs() + 1),
    "lerp by a gate": lambda s, y: torch.lerp(y, y.relu(), torch.sigmoid(y)),
    "lerp to parameters by a gate": lambda s, y: torch.lerp(y, s.p, torch.sigmoid(y)),
    "softmax, then changed": softmax_before_change,
    "log sigmoid": lambda s, y: F.logsigmoid(y),
    "log": lambda s, y: (y.abs() + 0.1).log(),
    "logsumexp": lambda s, y: y.logsumexp(dim=1, keepdim=True) + y,
    "atanh": lambda s, y: y.tanh().atanh(),
    "arcsinh": lambda s, y: torch.arcsinh(y),
    "erfinv": lambda s, y: y.tanh().mul(0.9).erfinv(),
    "var": lambda s, y: y.var(dim=1, keepdim=True) + y,
    "var_mean": lambda s, y: sum(torch.var_mean(y, dim=1, keepdim=True)) + y,
    "std_mean": lambda s, y: sum(torch.std_mean(y, dim=1, keepdim=True)) + y,
    "normalize": lambda s, y: F.normalize(y, dim=1),
    "local_response_norm": lambda s, y: F.local_response_norm(y, 3),
    "lp_pool": lambda s, y: F.lp_pool2d(y, 2, 2),
    "instance_norm": lambda s, y: F.instance_norm(y, weight=s.one, bias=s.other),
    "batch_norm": lambda s, y: F.batch_norm(y, s.mean, s.var, s.one, s.other),
    "torch.batch_norm": lambda s, y: torch.batch_norm(y, s.one, s.other, s.mean, s.var, False, 0.1, 1e-5, True),
    "rms_norm": lambda s, y: F.rms_norm(pooled(y), (6,), weight=s.one),
    "attention to learned values": lambda s, y: F.scaled_dot_product_attention(
        y.flatten(2).mT, s.rows, s.rows).mean(dim=1),
    "baddbmm": lambda s, y: torch.baddbmm(s.rows[:6, :6], y.flatten(2), y.flatten(2).mT).mean(dim=1),
    "addmm, numbers": lambda s, y: torch.addmm(s.one, pooled(y), s.square, beta=2, alpha=0.5),
    "addmm_": lambda s, y: torch.zeros(len(y), 6, dtype=y.dtype).addmm_(pooled(y), s.square),
    "bilinear": lambda s, y: F.bilinear(pooled(y), pooled(y).relu(), s.weight.flatten(2)[:, :, :6], s.one),
    "index_add": lambda s, y: torch.ones_like(y).index_add(1, torch.arange(6), y),
    "scatter_add": lambda s, y: torch.ones_like(y).scatter_add(1, torch.zeros_like(y).long(), y),
    "index_put": lambda s, y: torch.ones_like(y).index_put((slice(None).indices(1)[0] + torch.arange(len(y)),), y),
    "einsum of a list": lambda s, y: torch.einsum("nchw,nchw->nchw", [y, y]),
    "fold of unfold": lambda s, y: F.fold(F.unfold(y, 3, padding=1), (8, 8), 3, padding=1),
    "fft": lambda s, y: torch.fft.ifft2(torch.fft.fft2(y) * 1j).imag,
    "by keyword: add": lambda s, y: torch.add(input=y, other=3),
    "by keyword: sub": lambda s, y: torch.sub(input=s.p, other=y),
    "by keyword: mul": lambda s, y: torch.mul(input=y, other=y),
    "by keyword: div": lambda s, y: torch.div(input=y, other=y.abs() + 1),
    "by keyword: pow": lambda s, y: torch.pow(input=y, exponent=2),
    "by keyword: conv2d": lambda s, y: F.conv2d(input=y, weight=s.weight, bias=s.one),
    "by keyword: linear": lambda s, y: F.linear(input=pooled(y), weight=s.square, bias=s.one),
    "by keyword: layer_norm": lambda s, y: F.layer_norm(input=pooled(y), normalized_shape=(6,)),
    "by keyword: group_norm": lambda s, y: F.group_norm(input=y, num_groups=2),
    "by keyword: batch_norm": lambda s, y: F.batch_norm(input=y, running_mean=s.mean, running_var=s.var, weight=s.one),
    "by keyword: softmax": lambda s, y: torch.softmax(input=y, dim=1) * y,
    "by keyword: cat": lambda s, y: torch.cat(tensors=[y, s.p.expand(len(y), 6, 8, 8)], dim=2),
    "by keyword: glu": lambda s, y: F.glu(input=torch.cat([y, y], dim=1), dim=1),
    "by keyword: max": lambda s, y: torch.max(input=y, other=y * 2),
    "by keyword: gelu": lambda s, y: F.gelu(input=y),
    "by keyword: matmul": lambda s, y: torch.matmul(input=pooled(y), other=s.square),
    "by keyword: addmm": lambda s, y: torch.addmm(input=s.one, mat1=pooled(y), mat2=s.square),
    "by keyword: relu": lambda s, y: F.relu(input=y, inplace=True),
}  # fmt: skip
IMAGES = torch.randn(4, 3, 8, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))


def assert_right(model: nn.Module, x: Tensor, composite: str, logits: Tensor | None = None) -> Any:
    """Logits stay, input and constants are the logit, and an image alone has what it has in the batch."""
    with torch.no_grad():
        wanted = model(x.clone()) if logits is None else logits
    found = propagate(model, x, composite=composite, target=1)
    assert_close(found.logits, wanted, 1e-12)
    assert float(found.error().max()) < 1e-9
    alone = [propagate(model, x[i : i + 1], composite=composite, target=1) for i in range(len(x))]
    assert_close(torch.cat([one.values for one in alone]), found.values)
    assert_close(torch.cat([one.constants for one in alone]), found.constants)
    return found


@pytest.mark.parametrize("operation", WRITTEN)
def test_however_it_is_written_the_sum_is_the_logit(operation: str) -> None:
    model = Between(WRITTEN[operation]).to(DOUBLE).eval()
    for composite in ("epsilon", "attnlrp"):
        assert_right(model, IMAGES[:2], composite)


@pytest.mark.parametrize("wider", [
    lambda g, y: g.expand_as(y), lambda g, y: g.expand(y.shape), lambda g, y: g.to(y), lambda g, y: g.type_as(y),
    lambda g, y: torch.broadcast_tensors(g, y)[0], lambda g, y: g.mT.mT, lambda g, y: F.interpolate(g, size=(8, 8)),
    lambda g, y: g.clamp(0, 1), lambda g, y: g.repeat(1, 1, 8, 8), lambda g, y: F.dropout(g, 0.5, False),
], ids=[
    "expand_as", "expand", "to", "type_as", "broadcast_tensors", "mT", "interpolate", "clamp", "repeat", "dropout",
])  # fmt: skip
def test_a_gate_stays_one_however_it_is_brought_into_shape(wider: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`x * y.expand_as(x)` is how most squeeze-excitations are written: all to the signal, none to the gate."""

    def gated(change: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
        return Between(lambda s, y: y * change(torch.sigmoid(F.linear(pooled(y), s.square))[:, :, None, None], y)).to(
            DOUBLE
        )

    wanted = propagate(gated(lambda g, _: g), IMAGES, composite="epsilon").values
    assert_close(propagate(gated(wider), IMAGES, composite="epsilon").values, wanted)


def test_views_that_are_attributes_keep_what_a_tensor_is() -> None:
    def turned(s: Any, y: Tensor) -> Tensor:
        return (torch.sigmoid(pooled(y)).T * pooled(y).T).T

    def straight(s: Any, y: Tensor) -> Tensor:
        return torch.sigmoid(pooled(y)) * pooled(y)

    one, other = (propagate(Between(f).to(DOUBLE), IMAGES, composite="epsilon") for f in (turned, straight))
    assert_close(one.values, other.values)


@pytest.mark.parametrize("composite", sorted(name for name, found in COMPOSITES.items() if found.exact))
def test_exact_composites_add_up_on_a_network_with_everything(composite: str) -> None:
    def everything(s: Any, y: Tensor) -> Tensor:
        y = F.gelu(F.conv2d(y, s.weight, s.one, padding=1)) + y
        rows = F.layer_norm(y.flatten(2).mT, (6,), s.one, s.other)
        rows = rows + F.scaled_dot_product_attention(rows @ s.square, rows, F.linear(rows, s.square, s.other))
        return F.linear(rows, s.square, s.one).relu().mean(dim=1)

    if not COMPOSITES[composite].times_input:
        pytest.skip("its maps are gradients")
    assert_right(Between(everything).to(DOUBLE).eval(), IMAGES, composite)


# --- constants, image by image ------------------------------------------------------------------------------------


class Rows(nn.Module):
    """Patches as tokens (n, S, 8), a block, their mean, a head."""

    def __init__(self, block: Callable[[Any, Tensor], Tensor], patch: int = 4, **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.head = nn.Conv2d(3, 8, patch, stride=patch), nn.Linear(8, 3)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.block = block
        for name, part in parts.items():
            self.add_module(name, part)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 1:
                    parameter.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self, self.patches(x).flatten(2).transpose(1, 2)).mean(dim=1))


def windows(s: Any, t: Tensor) -> Tensor:
    folded = t.reshape(-1, 2, 8)  # n * S / 2 windows of two
    return s.two(s.one(folded).relu()).reshape(t.shape)


def windows_outside(s: Any, t: Tensor) -> Tensor:
    n = len(t)
    folded = t.reshape(n, 2, -1, 8).transpose(0, 1).reshape(2 * n, -1, 8)  # window by window
    return s.two(s.one(folded).relu()).reshape(2, n, -1, 8).transpose(0, 1).reshape(t.shape)


def flattened(s: Any, t: Tensor) -> Tensor:
    return s.one(t.flatten(0, 1)).relu().view(t.shape)


def rows_flattened(s: Any, t: Tensor) -> Tensor:
    turned = t.transpose(0, 1)
    return s.one(turned.reshape(-1, 8)).relu().view(turned.shape).transpose(0, 1)


def rows_first(s: Any, t: Tensor) -> Tensor:
    return s.two(s.one(t.transpose(0, 1)).relu()).transpose(0, 1)


def channels_first(s: Any, t: Tensor) -> Tensor:
    turned = t.permute(2, 0, 1) + s.one.bias[:, None, None]  # (8, n, S)
    return turned.relu().permute(1, 2, 0)


def encoder(first: bool) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=first)

        def block(s: Any, t: Tensor) -> Tensor:
            return s.layer(t) if first else s.layer(t.transpose(0, 1)).transpose(0, 1)

        return Rows(block, layer=layer)

    return made


LAYOUTS: dict[str, Callable[[], nn.Module]] = {
    "windows": lambda: Rows(windows), "windows outside of images": lambda: Rows(windows_outside),
    "tokens flattened": lambda: Rows(flattened), "tokens first, flattened": lambda: Rows(rows_flattened),
    "tokens first": lambda: Rows(rows_first), "channels first": lambda: Rows(channels_first),
    "encoder layer, images first": encoder(True), "encoder layer, tokens first": encoder(False),
}  # fmt: skip


@pytest.mark.parametrize("number", [2, 3, 4])  # 4 tokens: as many as images, twice as many, and neither
@pytest.mark.parametrize("layout", LAYOUTS)
def test_constants_are_each_images_own_whatever_the_layout(layout: str, number: int) -> None:
    assert_right(LAYOUTS[layout]().to(DOUBLE).eval(), IMAGES[:number], "epsilon")


def test_without_counting_constants_nothing_else_changes() -> None:
    model = Between(residual_in_place)
    engine = Engine(make_composite("symmetric_gamma"))
    engine.counting = False
    found = propagate(model, IMAGES.float(), engine=engine)
    assert found.constants.isnan().all()
    assert torch.equal(found.values, propagate(model, IMAGES.float()).values)


def test_error_is_the_distance_of_the_sum_as_a_share_of_its_largest_part() -> None:
    made = exmap.explain.Relevance(
        torch.tensor([3.0, 1.0]).reshape(2, 1, 1, 1), torch.zeros(2, 2), torch.zeros(2).long(),
        torch.tensor([4.0, 2.0]), torch.tensor([1.0, -1.0]),
    )  # fmt: skip
    assert made.error().tolist() == pytest.approx([0.0, 1.0])


# --- which operations, which parameters ---------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "wanted"), [
    (torch.add, ("add", False)), (Tensor.add_, ("add", True)), (Tensor.__add__, ("add", False)),
    (Tensor.__iadd__, ("add", True)), (Tensor.__rsub__, ("rsub", False)), (Tensor.__isub__, ("sub", True)),
    (Tensor.__itruediv__, ("div", True)), (Tensor.__truediv__, ("div", False)), (Tensor.__rtruediv__, ("rdiv", False)),
    (Tensor.__ipow__, ("pow", True)), (Tensor.__rpow__, ("rpow", False)), (Tensor.__matmul__, ("matmul", False)),
    (Tensor.__getitem__, ("getitem", False)), (Tensor.__setitem__, ("setitem", True)),
    (F.relu, ("relu", False)), (torch.relu_, ("relu", True)), (F.silu, ("silu", False)),
    (F.scaled_dot_product_attention, ("scaled_dot_product_attention", False)),
    (torch.linalg.vector_norm, ("linalg_vector_norm", False)), (Tensor.masked_fill_, ("masked_fill", True)),
])  # fmt: skip
def test_an_operations_name_and_whether_it_overwrites(function: Any, wanted: tuple[str, bool]) -> None:
    assert operation_name(function) == wanted


@pytest.mark.parametrize("function", [
    torch.mul, torch.multiply, torch.subtract, torch.divide, torch.true_divide, torch.concat, torch.concatenate,
    torch.absolute, torch.negative, torch.clip, torch.moveaxis, torch.swapdims, torch.arctan, torch.arcsin,
    torch.arcsinh, torch.arctanh, torch.atanh, torch.special.expit, torch.special.softmax, torch.special.log_softmax,
    torch.linalg.matmul, torch.linalg.norm, torch.linalg.vector_norm, F.logsigmoid, F.hardsigmoid, F.softplus,
    torch.broadcast_tensors, Tensor.__mul__, Tensor.__matmul__, Tensor.__rpow__, Tensor.__rtruediv__,
])  # fmt: skip
def test_an_alias_has_a_rule_too(function: Any) -> None:
    assert operation_name(function)[0] in RULES


def test_the_table_can_be_extended() -> None:
    usual = RULES.get("prod")
    model = Between(lambda s, y: y + y.mean(dim=(2, 3), keepdim=True).prod(dim=1, keepdim=True)).to(DOUBLE).eval()
    model.head.weight.data *= 100
    try:

        @rules.rule("shared equally", "prod")
        def _product(call: Call, engine: Engine) -> Any:
            output = call.run()
            output.register_hook(lambda g: g / call.args[0].shape[1])
            return output

        assert_right(model, 3 * IMAGES[:2], "epsilon")
    finally:
        if usual is None:
            del RULES["prod"]
        else:
            RULES["prod"] = usual


class Unregistered(nn.Module):
    """Layers in a plain list, which `parameters()` does not find."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 6, 3).to(DOUBLE), nn.Linear(6, 3).to(DOUBLE)
        self.layers = [nn.Linear(6, 6).to(DOUBLE)]
        self.shift = [torch.randn(6, dtype=DOUBLE, requires_grad=True)]

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](pooled(self.stem(x))).relu()
        return self.head(y * self.shift[0] + self.shift[0])


def test_parameters_that_are_not_registered_are_constants_too() -> None:
    assert_right(Unregistered(), IMAGES, "epsilon")


class Frugal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *upper: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return upper[0] * s * (1 + x * (1 - s))


class Blur(torch.autograd.Function):
    """A linear map that does the same to reversed maps: not a function of each entry for that."""

    @staticmethod
    def kernel(x: Tensor) -> Tensor:
        return torch.full((x.shape[1], 1, 3, 3), 1 / 9, dtype=x.dtype)

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, Blur.kernel(x), padding=1, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *upper: Tensor) -> Tensor:
        return F.conv2d(upper[0], Blur.kernel(upper[0]), padding=1, groups=upper[0].shape[1])


class Centred(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x - x.mean(dim=(2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, *upper: Tensor) -> Tensor:
        return upper[0] - upper[0].mean(dim=(2, 3), keepdim=True)


def test_an_activation_of_the_users_own_passes_relevance_on() -> None:
    usual = vars(torch.autograd.Function).get("apply")
    one, other = (Between(f).to(DOUBLE) for f in (lambda s, y: Frugal.apply(y), lambda s, y: F.silu(y)))
    found = assert_right(one, IMAGES, "symmetric_gamma")
    assert_close(found.values, propagate(other, IMAGES, target=1).values)
    assert vars(torch.autograd.Function).get("apply") is usual


@pytest.mark.parametrize(("function", "plain"), [
    (Blur, lambda s, y: F.conv2d(y, Blur.kernel(y), padding=1, groups=6)),
    (Centred, lambda s, y: y - y.mean(dim=(2, 3), keepdim=True)),
])  # fmt: skip
def test_a_function_of_the_users_own_over_positions_is_not_taken_for_an_activation(function: Any, plain: Any) -> None:
    one, other = (
        Between(f).to(DOUBLE) for f in (lambda s, y: function.apply(y) * y.relu(), lambda s, y: plain(s, y) * y.relu())
    )
    assert_close(
        propagate(one, IMAGES, composite="epsilon").values, propagate(other, IMAGES, composite="epsilon").values
    )


# --- what is explained --------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3), nn.GELU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4),
    )  # fmt: skip


@pytest.mark.parametrize("target", [
    2, np.int64(2), torch.tensor(2), [2, 2, 2, 2], (2, 2, 2, 2), np.full(4, 2), torch.full((4,), 2),
    torch.full((4,), 2, dtype=torch.int32),
])  # fmt: skip
def test_a_class_can_be_given_in_any_form(network: nn.Module, target: Any) -> None:
    found = propagate(network, IMAGES.float(), target=target)
    assert found.target.tolist() == [2] * 4
    assert torch.equal(found.explained, found.logits[:, 2])
    assert torch.equal(found.values, propagate(network, IMAGES.float(), target=2).values)


def test_the_predicted_class_and_the_margin(network: nn.Module) -> None:
    x = IMAGES.float()
    found, margin = (propagate(network, x, target=word) for word in ("predicted", "margin"))
    logits = network.eval()(x)
    top, order = logits.topk(2, dim=1)
    assert found.target.tolist() == margin.target.tolist() == order[:, 0].tolist()
    assert torch.allclose(margin.explained, top[:, 0] - top[:, 1], atol=1e-6)
    runner_up = propagate(network, x, target=order[:, 1])
    assert_close(margin.values, (found.values - runner_up.values).double(), 1e-5)
    assert_close(margin.constants, found.constants - runner_up.constants, 1e-5)


@pytest.mark.parametrize("target", [-1, 4, torch.tensor([0, 1, 2, 4])])
def test_a_class_the_model_does_not_have_is_refused(network: nn.Module, target: Any) -> None:
    with pytest.raises(
        SettingsError, match=r"target must be a class in \[0, 3\], because the model has 4 outputs, got"
    ):
        propagate(network, IMAGES.float(), target=target)


@pytest.mark.parametrize("target", ["best", None, 1.5, torch.tensor([0, 1]), torch.tensor([[0], [1], [2], [3]]), True])
def test_what_is_no_target_is_refused(network: nn.Module, target: Any) -> None:
    with pytest.raises(SettingsError, match="target must be"):
        propagate(network, IMAGES.float(), target=target)


def test_an_unknown_composite_or_layer_is_refused(network: nn.Module) -> None:
    with pytest.raises(SettingsError, match=r"unknown composite 'symmetric'.*symmetric_gamma"):
        propagate(network, IMAGES.float(), composite="symmetric")
    with pytest.raises(SettingsError, match=r"layers must be paths of the model's modules, found no 9"):
        propagate(network, IMAGES.float(), layers=["0", "9"])


@pytest.mark.parametrize("end", [
    lambda z: z.detach(), lambda z: z.argmax(dim=1, keepdim=True).double() * torch.ones(1, 4), lambda z: z.round(),
])  # fmt: skip
def test_a_model_without_a_gradient_is_refused_with_the_remedy(end: Function) -> None:
    class Ended(Between):
        def forward(self, x: Tensor) -> Tensor:
            return end(super().forward(x))

    with pytest.raises(DataError, match=r"must depend on its input .* use explainer=.occlusion"):
        propagate(Ended(lambda s, y: y), IMAGES.float())


ENDS: dict[str, Function] = {
    "softmax": lambda z: z.softmax(dim=1), "log_softmax": lambda z: F.log_softmax(z, dim=1), "sigmoid": torch.sigmoid,
    "sigmoid_": lambda z: z.sigmoid_(), "log of softmax": lambda z: z.softmax(dim=1).log(),
    "exp of log_softmax": lambda z: z.log_softmax(dim=1).exp(), "expit": torch.special.expit,
    "special.softmax": lambda z: torch.special.softmax(z, 1), "softmax, view": lambda z: z.softmax(1).view(-1, 4),
    "softmax, squeeze": lambda z: z[..., None, None].softmax(dim=1).squeeze(-1).squeeze(-1),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_the_logit_before_a_probability_is_explained(end: str) -> None:
    class Ended(Between):
        def forward(self, x: Tensor) -> Tensor:
            return ENDS[end](super().forward(x))

    plain, ended = (kind(lambda s, y: y.relu()).to(DOUBLE) for kind in (Between, Ended))
    found, wanted = propagate(ended, IMAGES), propagate(plain, IMAGES)
    assert torch.equal(found.logits, wanted.logits)
    assert torch.equal(found.values, wanted.values)


def test_a_probability_in_the_middle_is_not_taken_for_the_end() -> None:
    class Scaled(Between):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x).softmax(dim=1)

    model = Scaled(lambda s, y: y).to(DOUBLE)
    found = propagate(model, IMAGES, composite="attnlrp")
    assert_close(found.logits, model(IMAGES).detach())
    assert float(found.error().max()) < 1e-9


# --- layers -------------------------------------------------------------------------------------------------------


def test_relevance_of_layers_comes_with_the_same_pass(network: nn.Module) -> None:
    x = IMAGES.float()
    found = propagate(network, x, layers=["2", "4", "7"], composite="epsilon", target=1)
    assert torch.equal(found.values, propagate(network, x, composite="epsilon", target=1).values)
    assert {path: tuple(part.shape) for path, part in found.layers.items()} == {
        "2": (4, 6, 8, 8), "4": (4, 5, 6, 6), "7": (4, 4),
    }  # fmt: skip
    assert_close(found.layers["7"], found.logits.double() * torch.tensor([0, 1, 0, 0]), 1e-6)
    assert all(len(m._forward_hooks) == 0 for m in network.modules())


def test_relevance_of_a_convolution_before_batch_normalisation_is_not_lost(network: nn.Module) -> None:
    """Both are one map, and what comes out of the convolution has the relevance of what comes out of both."""
    found = propagate(network.double(), IMAGES, layers=["0", "1"], target=1)
    assert float(found.layers["0"].abs().sum()) > 0


def test_a_layer_that_is_overwritten_has_the_relevance_of_what_it_gave() -> None:
    torch.manual_seed(0)
    one, other = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.ReLU(inplace=way), nn.Flatten(), nn.Linear(144, 3))
        for way in (True, False)
    )
    other.load_state_dict(one.state_dict())
    a, b = (propagate(m, IMAGES.float(), layers=["0", "1", "2"]).layers for m in (one, other))
    assert all(torch.equal(a[path], b[path]) for path in ("0", "1", "2"))


# --- the user's model ---------------------------------------------------------------------------------------------


def test_frozen_parameters_hooks_modes_and_gradients_are_as_they_were(network: nn.Module) -> None:
    seen: list[str] = []
    network[0].weight.requires_grad_(False)
    network[3].bias.grad = torch.ones(5)
    network.train()
    network[1].eval()
    network[2].register_forward_hook(lambda *_: seen.append("hook"))
    flags = [parameter.requires_grad for parameter in network.parameters()]
    hooks = [list(module._forward_hooks) for module in network.modules()]
    modes = [module.training for module in network.modules()]
    propagate(network, IMAGES.float(), layers=["2", "4"])
    assert set(seen) == {"hook"}
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert [list(module._forward_hooks) for module in network.modules()] == hooks
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(network[3].bias.grad, torch.ones(5))
    assert all(p.grad is None for p in network.parameters() if p is not network[3].bias)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("where", ["forward", "target"])
def test_after_an_error_everything_is_as_it_was(network: nn.Module, where: str) -> None:
    usual, depth = vars(torch.autograd.Function).get("apply"), torch._C._len_torch_function_stack()
    network[0].weight.requires_grad_(False)
    network.train()
    flags = [parameter.requires_grad for parameter in network.parameters()]
    if where == "forward":
        network[5].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises((DataError, SettingsError)) as caught:
        propagate(network, IMAGES.float(), target=77, layers=["2"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError) == (where == "forward")
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(module.training for module in network.modules())
    assert len(network[2]._forward_hooks) == 0
    assert vars(torch.autograd.Function).get("apply") is usual
    assert torch._C._len_torch_function_stack() == depth


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_around_it_is_the_same(network: nn.Module, mode: Any) -> None:
    wanted = propagate(network, IMAGES.float()).values
    with mode():
        x = IMAGES.float().clone()
        assert torch.equal(propagate(network, x).values, wanted)
        assert not torch.is_grad_enabled()
    assert torch.equal(propagate(network, x).values, wanted)  # in inference mode an inference tensor


def test_weights_made_in_inference_mode_are_explained() -> None:
    with torch.inference_mode():
        model = Between(lambda s, y: y.relu())
    plain = Between(lambda s, y: y.relu())
    wanted = exmap.heatmaps(plain, IMAGES.float())
    assert np.array_equal(exmap.heatmaps(model, IMAGES.float()).values, wanted.values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_half_precision_is_explained_in_float32(network: nn.Module, dtype: torch.dtype) -> None:
    half = network.to(dtype).eval()
    found = exmap.heatmaps(half, IMAGES.float())
    assert found.logits.dtype == np.float32
    assert all(p.dtype == dtype for p in half.parameters())
    wanted = exmap.heatmaps(network.float(), IMAGES.float())
    np.testing.assert_allclose(found.values, wanted.values, atol=1e-5 * np.abs(wanted.values).max())


def test_autocast_around_does_not_make_relevance_coarse(network: nn.Module) -> None:
    wanted = propagate(network, IMAGES.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = propagate(network, IMAGES.float())
    assert float(found.error().max()) < 1e-5
    assert_close(found.values, wanted.values.double(), 1e-5)


def test_the_images_are_not_written_to() -> None:
    class Overwriting(Between):
        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2).sub_(1)
            return super().forward(x)

    x = IMAGES.clone()
    found = propagate(Overwriting(lambda s, y: y).to(DOUBLE), x, composite="epsilon")
    assert torch.equal(x, IMAGES)
    assert not x.requires_grad
    assert float(found.error().max()) < 1e-9


@pytest.mark.parametrize("format_", [torch.contiguous_format, torch.channels_last])
def test_memory_format_and_strides_of_images_do_not_matter(network: nn.Module, format_: Any) -> None:
    wanted = propagate(network, IMAGES.float()).values
    x = IMAGES.float().contiguous(memory_format=format_)
    assert_close(propagate(network, x).values, wanted.double(), 1e-5)
    wide = torch.cat([x, x], dim=3)[..., :8]
    assert_close(propagate(network, wide).values, wanted.double(), 1e-5)


def test_it_is_bit_equal_when_computed_twice(network: nn.Module) -> None:
    one, other = (propagate(network, IMAGES.float()) for _ in range(2))
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.constants, other.constants)


def test_an_engine_that_is_kept_sees_new_batches_of_any_size(network: nn.Module) -> None:
    engine = Engine(make_composite("symmetric_gamma"))
    for n in (4, 1, 3):
        found = propagate(network, IMAGES[:n].float(), engine=engine)
        assert_close(found.values, propagate(network, IMAGES[:n].float()).values.double(), 1e-6)
        assert float(found.error().max()) < 1e-4


def test_the_default_composite_is_that_of_the_models_kind(network: nn.Module) -> None:
    x = IMAGES.float()
    assert composite_for(network, x, "auto").name == DEFAULT
    assert composite_for(LAYOUTS["encoder layer, images first"]().eval(), x, "auto").name == DEFAULT_ATTENTION
    assert composite_for(network, x, "epsilon").name == "epsilon"
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    assert composite_for(linear, x, "auto").name == DEFAULT_ATTENTION


def test_what_does_not_change_with_the_input_has_no_relevance() -> None:
    found = propagate(Between(lambda s, y: 0 * y + s.p).to(DOUBLE), IMAGES, composite="epsilon")
    assert torch.equal(found.values, torch.zeros_like(found.values))
    assert_close(found.constants, found.explained)


def test_nan_in_one_image_stays_there(network: nn.Module) -> None:
    x = IMAGES.float()
    x[1, 0, 0, 0] = math.nan
    found = propagate(network, x)
    rest = [0, 2, 3]
    assert not found.values[1].isfinite().all()
    assert_close(found.values[rest], propagate(network, x[rest]).values.double(), 1e-5)
