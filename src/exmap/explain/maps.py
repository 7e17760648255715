r"""Linear maps of the data, and the relevance rules that weigh their contributions by sign.

A rule here belongs to one call of a convolution or a linear layer with weights :math:`w` and bias :math:`b`. It takes
the place of the call's gradient: relevance is the input times what the rule sends backward, :math:`R_j = x_j g_j`.
With :math:`z_k = \sum_j x_j w_{jk} + b_k`, the relevance of an output is :math:`R_k = z_k g_k`.

The rules rest on one identity. With contributions :math:`c = x_j w_{jk}`, :math:`c^+ = (c + |c|) / 2` and
:math:`c^- = (c - |c|) / 2`, so sums over positive and negative contributions are sums over :math:`c`, which is the
layer itself, and over :math:`|c| = |x_j| |w_{jk}|`, the layer with absolute values: one more pass, whatever the signs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from exmap.explain.linear_map import LinearMap, Weights, blocks, held_by, none_negative, output_shape

__all__ = [
    "STABILIZER",
    "AlphaBeta",
    "Box",
    "Epsilon",
    "Flat",
    "Gamma",
    "LinearMap",
    "MapRule",
    "Weights",
    "apply_rule",
]

STABILIZER = 1e-6  # of the alpha-beta, flat and box rules; the others need none
TINY = 1e-30  # keeps 0 / 0 away without changing anything else


class MapRule:
    """A rule for one call of a linear map. Subclasses are frozen dataclasses: what they hold is their setting."""

    merges_normalisation = True

    def there(self, weights: Weights, x: torch.Tensor, z: torch.Tensor, positive: bool) -> tuple[torch.Tensor, ...]:
        """Return what the way back needs beside `x`, given the output `z`: new tensors, as `z` may be overwritten.

        `positive` says that no entry of `x` is negative.
        """
        raise NotImplementedError

    def back(
        self, weights: Weights, g: torch.Tensor, x: torch.Tensor, positive: bool, kept: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return g of the input, and the relevance of the bias as :func:`held_by` has it, or None without a bias."""
        raise NotImplementedError


@dataclass(frozen=True)
class Epsilon(MapRule):
    r"""The epsilon rule with epsilon = 0: :math:`g_j = \sum_k w_{jk} g_k`, the gradient itself (Bach et al., 2015).

    It needs no computation of its own, so calls with this rule run as they are.
    """

    merges_normalisation = False


@dataclass(frozen=True)
class Gamma(MapRule):
    r"""The symmetric gamma rule: whichever sign of contribution dominates an output is favoured by gamma.

    With contributions :math:`x_j w_{jk}`, :math:`P_k = \sum_j (x_j w_{jk})^+ + b_k^+` and
    :math:`N_k = \sum_j (x_j w_{jk})^- + b_k^-`, ExMap's authors propagate

    .. math::
        R_j = \sum_k \frac{\alpha_k (x_j w_{jk})^+ + \beta_k (x_j w_{jk})^-}{\alpha_k P_k + \beta_k N_k} R_k, \quad
        \alpha_k = 1 + \gamma [P_k \ge |N_k|], \quad \beta_k = 1 + \gamma [P_k < |N_k|]

    With the output :math:`z_k = P_k + N_k`, its sign :math:`s_k`, and :math:`a_k = P_k - N_k`, this is

    .. math::
        g_j = \sum_k \left[(1 + \gamma / 2) w_{jk} + s_k \gamma / 2 \, sign(x_j) |w_{jk}|\right]
              \frac{z_k}{d_k} g_k, \quad d_k = (1 + \gamma / 2) z_k + s_k \gamma / 2 \, a_k

    The factor :math:`z_k / d_k` lies in [0, 1 / (1 + gamma)]: nothing is divided by a small number.

    Attributes
    ----------
    gamma : float, at least 0
        4 in the paper; 0 is the epsilon rule.
    """

    gamma: float = 4.0

    def there(self, weights: Weights, x: torch.Tensor, z: torch.Tensor, positive: bool) -> tuple[torch.Tensor, ...]:
        """Return the factors, with the outputs' signs."""
        half = self.gamma / 2
        sizes = weights.variant(("sizes", half), lambda w: half * w.abs())
        bias = weights.offset(("sizes", half), lambda b: half * b.abs() + TINY)
        total = weights.run(("sizes", half), sizes, x if positive else x.abs(), bias)
        for outputs, part in blocks(z, total):
            part.add_(outputs.abs(), alpha=1 + half)  # |d|: d has the sign of z
            torch.div(outputs, part, out=part)
        return (total,)

    def back(
        self, weights: Weights, g: torch.Tensor, x: torch.Tensor, positive: bool, kept: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return g of the input in one pass where no input is negative and no g comes from a negative output."""
        half, factor = self.gamma / 2, kept[0]
        plain, same = torch.empty_like(factor), True  # |z / d| g
        for factors, upper, part in blocks(factor, g, plain):
            signed = factors * upper
            torch.copysign(signed, upper, out=part)
            same = same and torch.equal(signed, part)
        constant = weights.bias
        if same and positive:
            favoured = weights.variant(("favoured", half), lambda w: (1 + half) * w + half * w.abs())
            moved = weights.back(("favoured", half), favoured, plain, x)
            if constant is None:
                return moved, None
            return moved, held_by(weights.map, plain, (1 + half) * constant + half * constant.abs())
        signed = plain if same else factor * g
        sizes = weights.variant(("sizes", half), lambda w: half * w.abs())
        moved = weights.back(("sizes", half), sizes, signed, x)
        if not positive:
            moved = moved.mul_(x.sign())
        moved = moved.add_(weights.back("weight", weights.weight, plain, x), alpha=1 + half)
        if constant is None:
            return moved, None
        held = held_by(weights.map, plain, (1 + half) * constant)
        return moved, held + held_by(weights.map, signed, half * constant.abs())


@dataclass(frozen=True)
class AlphaBeta(MapRule):
    r"""The alpha-beta rule (Bach et al., 2015), in zennit's form, where biases count with their sign.

    .. math::
        R_j = \sum_k \left(\alpha \frac{(x_j w_{jk})^+}{stab(P_k)} - \beta \frac{(x_j w_{jk})^-}{stab(N_k)}\right) R_k

    Attributes
    ----------
    alpha, beta : float, at least 0
        Their difference is 1; (1, 0) is the z-plus rule.
    stabilizer : float
        Added to the denominators, away from zero.
    """

    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float = STABILIZER

    def there(self, weights: Weights, x: torch.Tensor, z: torch.Tensor, positive: bool) -> tuple[torch.Tensor, ...]:
        """Return z over the sum of contributions of each sign, with alpha and beta."""
        above, below = (x, None) if positive else (x.clamp(min=0), x.clamp(max=0))
        plus, minus = self._parts(weights)
        bias = weights.bias
        kept = []
        for sign, (one, other), factor in ((1, ("plus", "minus"), self.alpha), (-1, ("minus", "plus"), -self.beta)):
            if not factor:
                continue
            part = {"plus": plus, "minus": minus}
            total = weights.run(one, part[one], above)
            if below is not None:
                total += weights.run(other, part[other], below)
            if bias is not None:
                total += (bias.clamp(min=0) if sign > 0 else bias.clamp(max=0)).view(output_shape(weights.map, total))
            kept.append(torch.div(z, total.add_(sign * self.stabilizer)).mul_(factor))
        return tuple(kept)

    def back(
        self, weights: Weights, g: torch.Tensor, x: torch.Tensor, positive: bool, kept: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return g of the input: each sign of weights for each sign of inputs."""
        plus, minus = self._parts(weights)
        shares = [factor * g for factor in kept]
        bias = None
        if weights.bias is not None:
            bias = held_by(weights.map, shares[0], weights.bias.clamp(min=0))
            if len(shares) > 1:
                bias = bias + held_by(weights.map, shares[1], weights.bias.clamp(max=0))
        above = weights.back("plus", plus, shares[0], x)
        if len(shares) > 1:
            above = above.add_(weights.back("minus", minus, shares[1], x))
        if positive:
            return above, bias
        below = weights.back("minus", minus, shares[0], x)
        if len(shares) > 1:
            below = below.add_(weights.back("plus", plus, shares[1], x))
        return torch.where(x < 0, below, above), bias

    @staticmethod
    def _parts(weights: Weights) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            weights.variant("plus", lambda w: w.clamp(min=0)),
            weights.variant("minus", lambda w: w.clamp(max=0)),
        )


@dataclass(frozen=True)
class Flat(MapRule):
    """The flat rule of a first layer: relevance is spread evenly over the inputs that an output sees."""

    stabilizer: float = STABILIZER
    merges_normalisation = True

    def there(self, weights: Weights, x: torch.Tensor, z: torch.Tensor, positive: bool) -> tuple[torch.Tensor, ...]:
        """Return z over the number of inputs."""
        ones = weights.variant("ones", torch.ones_like)
        return (z / (weights.run("ones", ones, torch.ones_like(x)) + self.stabilizer),)

    def back(
        self, weights: Weights, g: torch.Tensor, x: torch.Tensor, positive: bool, kept: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the relevance of the input, which need not be in proportion to it."""
        ones = weights.variant("ones", torch.ones_like)
        return weights.back("ones", ones, kept[0] * g, x), None


@dataclass(frozen=True)
class Box(MapRule):
    r"""The box rule of a first layer whose inputs lie in [low, high] (Montavon et al., 2017).

    .. math::
        R_j = \sum_k \frac{x_j w_{jk} - l w_{jk}^+ - h w_{jk}^-}{stab(\sum_j \ldots)} R_k
    """

    low: float = 0.0
    high: float = 1.0
    stabilizer: float = STABILIZER

    def there(self, weights: Weights, x: torch.Tensor, z: torch.Tensor, positive: bool) -> tuple[torch.Tensor, ...]:
        """Return z over the stabilised sum of contributions."""
        plus, minus = AlphaBeta._parts(weights)
        low, high = torch.full_like(x, self.low), torch.full_like(x, self.high)
        bias = weights.bias
        total = z - weights.run("plus", plus, low) - weights.run("minus", minus, high)
        if bias is not None:
            shape = output_shape(weights.map, z)
            total -= bias.view(shape)
            total += bias.view(shape) - bias.clamp(min=0).view(shape) - bias.clamp(max=0).view(shape)
        return (z / (total + total.new_full((), self.stabilizer).copysign(total)),)

    def back(
        self, weights: Weights, g: torch.Tensor, x: torch.Tensor, positive: bool, kept: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the relevance of the input, which need not be in proportion to it."""
        plus, minus = AlphaBeta._parts(weights)
        share = kept[0] * g
        moved = weights.back("weight", weights.weight, share, x) * x
        moved -= self.low * weights.back("plus", plus, share, x)
        moved -= self.high * weights.back("minus", minus, share, x)
        return moved, None


def apply_rule(
    rule: MapRule,
    weights: Weights,
    x: torch.Tensor,
    output: Callable[[], torch.Tensor],
    note_bias: Callable[[torch.Tensor], None] | None,
    *,
    late: bool = False,
    deposit: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the map's output, with the rule in place of its gradient.

    Parameters
    ----------
    rule : MapRule
    weights : Weights
    x : Tensor
        Input of the map.
    output : callable
        Computes the map's output, without a gradient.
    note_bias : callable, optional
        Is given the relevance of the bias by output on the way back.
    late : bool
        Compute what the rule needs on the way back only, for outputs that are not expected to have one.
    deposit : callable, optional
        Makes g of the relevance of a first layer's input: is given relevance and input.
    """
    result: torch.Tensor = _Map.apply(x, rule, weights, output, note_bias, late, deposit)
    return result


class _Map(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, rule: MapRule, weights: Weights, output: Any, note: Any, late: bool, deposit: Any
    ) -> torch.Tensor:
        z: torch.Tensor = output()
        ctx.rule, ctx.weights, ctx.output, ctx.note, ctx.deposit = rule, weights, output, note, deposit
        ctx.late, ctx.positive = late, none_negative(x)
        ctx.save_for_backward(x, *(() if late else rule.there(weights, x, z, ctx.positive)))
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upper: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *kept = ctx.saved_tensors
        if ctx.late:
            kept = ctx.rule.there(ctx.weights, x, ctx.output(), ctx.positive)
        g, bias = ctx.rule.back(ctx.weights, upper[0], x, ctx.positive, tuple(kept))
        if bias is not None and ctx.note is not None:
            ctx.note(bias)
        return ctx.deposit(g, x) if ctx.deposit is not None else g, None, None, None, None, None, None
