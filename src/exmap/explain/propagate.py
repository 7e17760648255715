"""Relevance rules that cost little more than a gradient: each replaces its layer by a function with another backward.

zennit's hooks leave the layer's gradient in place, have it computed, and throw it away. A :class:`Rule` puts its own
function in the place of the layer's `forward`, so that what autograd runs backward *is* the rule. It is registered and
removed as zennit's hooks are, and can stand beside them.

The rules for convolutions rest on one identity. With contributions :math:`c = x_j w_{jk}`, :math:`c^+ = (c + |c|) / 2`
and :math:`c^- = (c - |c|) / 2`, so sums over positive and negative contributions are sums over :math:`c`, which is the
layer itself, and over :math:`|c| = |x_j| |w_{jk}|`, which is the layer with the absolute values of input, weight and
bias: one more convolution, whatever the signs of the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from zennit.core import Hook, RemovableHandle, RemovableHandleList

from exmap.explain.layers import LinearMap, padded

__all__ = ["STABILIZER", "AlphaBeta", "Pass", "ResidualSum", "Rule", "Share", "SymmetricGamma"]

STABILIZER = 1e-6


class Rule(Hook):  # type: ignore[misc]
    """A relevance rule in the place of a layer's `forward`; subclasses say what it computes there and back."""

    def register(self, module: nn.Module) -> RemovableHandleList:
        """Put the rule in the place of the module's `forward` until the handle is removed."""
        self.prepare(module)
        self._module = module
        module.forward = self.run
        return RemovableHandleList([RemovableHandle(self)])

    def remove(self) -> None:
        """Give the module its own `forward` back."""
        super().remove()
        vars(self._module).pop("forward", None)

    def run(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Run the layer."""
        output: torch.Tensor = _Propagate.apply(self, *inputs)
        return output

    def prepare(self, module: nn.Module) -> None:
        """Compute what depends on the layer's weights alone."""

    def there(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return the layer's output and what the way back needs."""
        raise NotImplementedError

    def back(self, upper: torch.Tensor, *kept: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the relevance of each input, given that of the output."""
        raise NotImplementedError


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: Rule, *inputs: torch.Tensor) -> torch.Tensor:
        output, kept = rule.there(*inputs)
        ctx.rule = rule
        ctx.save_for_backward(*kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upper: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *ctx.rule.back(upper[0], *ctx.saved_tensors)


class Pass(Rule):
    """Relevance passes a ReLU unchanged."""

    def there(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return the positive part; the way back needs nothing."""
        return inputs[0].relu(), ()

    def back(self, upper: torch.Tensor, *kept: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what came."""
        return (upper,)


class Share(Rule):
    """Relevance of a sum of two is shared out in proportion to them: :math:`R_i = x_i R / stab(x_1 + x_2)`."""

    def there(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return the sum; the way back needs both terms, not the sum, which a ReLU after it may overwrite."""
        one, other = inputs
        return one + other, (one, other)

    def back(self, upper: torch.Tensor, *kept: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the share of each term."""
        one, other = kept
        share = one + other
        share += share.new_full((), STABILIZER).copysign(share)
        torch.div(upper, share, out=share)
        return one * share, share.mul_(other)


class ResidualSum(nn.Module):
    """The sum of a residual block, as a layer that can have a rule."""

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return the sum."""
        return one + other


class _ConvolutionRule(Rule):
    """A rule for convolutions. Padding is no part of it: every copy of a pixel hands its relevance to that pixel."""

    def run(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Pad as the layer does, and run it."""
        return super().run(padded(self._module, inputs[0]))

    def prepare(self, module: nn.Module) -> None:
        """Take the layer's weights as they are now."""
        conv: Any = module
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
        self.set_weights(conv, conv.weight.detach(), bias.detach())

    def set_weights(self, conv: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Compute the weights that the rule needs."""
        raise NotImplementedError


class SymmetricGamma(_ConvolutionRule):
    r"""The symmetric gamma rule: whichever sign of contribution dominates an output is favoured by gamma.

    With contributions :math:`x_j w_{jk}`, :math:`P_k = \sum_j (x_j w_{jk})^+ + b_k^+` and
    :math:`N_k = \sum_j (x_j w_{jk})^- + b_k^-`,

    .. math::
        \alpha_k = 1 + \gamma [P_k \ge |N_k|], \quad \beta_k = 1 + \gamma [P_k < |N_k|]

        R_j = \sum_k \frac{\alpha_k (x_j w_{jk})^+ + \beta_k (x_j w_{jk})^-}{stab(\alpha_k P_k + \beta_k N_k)} R_k

    Since :math:`z_k = P_k + N_k` is the layer's output, and :math:`a_k = P_k - N_k` that of absolute values, with the
    sign :math:`s_k` of :math:`z_k` this is

    .. math::
        R_j = \sum_k \frac{(1 + \gamma / 2) x_j w_{jk} + s_k \gamma / 2 |x_j w_{jk}|}
                          {stab((1 + \gamma / 2) z_k + s_k \gamma / 2 a_k)} R_k

    which is one more convolution forward and two backward. They are one where no input is negative and no relevance
    comes from a negative output, as between two ReLUs: :math:`s_k = 1`, and the weights can be added up beforehand.

    Parameters
    ----------
    gamma : float, at least 0
        4 in the paper; 0 is the epsilon rule.
    stabilizer : float
        Added to the denominator, away from zero.
    """

    def __init__(self, gamma: float = 4.0, stabilizer: float = STABILIZER) -> None:
        super().__init__()
        self.gamma = gamma
        self.stabilizer = stabilizer

    def copy(self) -> SymmetricGamma:
        """Return a rule of the same settings, for another layer."""
        return SymmetricGamma(self.gamma, self.stabilizer)

    def set_weights(self, conv: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Take absolute values, times gamma / 2; the stabilizer is added with the bias."""
        sizes = self.gamma / 2 * weight.abs()
        self._layer, self._bias = LinearMap(conv, weight), bias
        self._sizes, self._sizes_bias = LinearMap(conv, sizes), self.gamma / 2 * bias.abs() + self.stabilizer
        self._favoured = LinearMap(conv, (1 + self.gamma / 2) * weight + sizes)

    def there(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return the layer's output; the way back needs its input and the denominator."""
        x = inputs[0]
        output = self._layer(x, self._bias)
        total = self._sizes(_size(x), self._sizes_bias).copysign_(output).add_(output, alpha=1 + self.gamma / 2)
        return output, (x, total)

    def back(self, upper: torch.Tensor, *kept: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the relevance of the layer's input."""
        x, total = kept
        share = torch.div(upper, total, out=total)  # nothing else needs the denominator: memory is what this waits for
        signed = share.copysign(upper)  # what a denominator without its sign would give
        if _none_negative(x) and torch.equal(share, signed):
            return (self._favoured.transpose(share, x).mul_(x),)
        relevance = self._sizes.transpose(signed, x).mul_(_size(x))
        return (relevance.addcmul_(self._layer.transpose(share, x), x, value=1 + self.gamma / 2),)


class AlphaBeta(_ConvolutionRule):
    r"""The alpha-beta rule (Bach et al., 2015), in zennit's form, where biases count with their sign.

    .. math::
        R_j = \sum_k \left(\alpha \frac{(x_j w_{jk})^+}{stab(P_k)} - \beta \frac{(x_j w_{jk})^-}{stab(N_k)}\right) R_k

    Where no input is negative, half of the convolutions are of zeros, and left out.

    Parameters
    ----------
    alpha, beta : float, at least 0
        Their difference is 1; (1, 0) is the z-plus rule.
    stabilizer : float
        Added to the denominators, away from zero.
    """

    def __init__(self, alpha: float = 2.0, beta: float = 1.0, stabilizer: float = STABILIZER) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.stabilizer = stabilizer

    def copy(self) -> AlphaBeta:
        """Return a rule of the same settings, for another layer."""
        return AlphaBeta(self.alpha, self.beta, self.stabilizer)

    def set_weights(self, conv: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Part the weights by sign; the stabilizer is added with the bias."""
        self._layer, self._bias = LinearMap(conv, weight), bias
        self._plus, self._plus_bias = LinearMap(conv, weight.clamp(min=0)), bias.clamp(min=0) + self.stabilizer
        self._minus, self._minus_bias = LinearMap(conv, weight.clamp(max=0)), bias.clamp(max=0) - self.stabilizer

    def there(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return the layer's output; the way back needs its input, and the denominator for each sign."""
        x = inputs[0]
        above, below = (x, None) if _none_negative(x) else (x.clamp(min=0), x.clamp(max=0))
        totals = [self._plus(above, self._plus_bias)]
        if self.beta:
            totals.append(self._minus(above, self._minus_bias))
        if below is not None:
            for total, part in zip(totals, (self._minus, self._plus), strict=False):
                total += part(below)
        output = totals[0] + totals[1] if self.beta else self._layer(x, self._bias)  # the stabilizers cancel
        return output, (x, *totals)

    def back(self, upper: torch.Tensor, *kept: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the relevance of the layer's input."""
        x, *totals = kept
        shares = [upper * factor / total for factor, total in zip((self.alpha, -self.beta), totals, strict=False)]
        if _none_negative(x):
            return (self._back(shares, self._plus, self._minus, x).mul_(x),)
        relevance = self._back(shares, self._plus, self._minus, x).mul_(x.clamp(min=0))
        return (relevance.addcmul_(self._back(shares, self._minus, self._plus, x), x.clamp(max=0)),)

    @staticmethod
    def _back(shares: list[torch.Tensor], one: LinearMap, other: LinearMap, x: torch.Tensor) -> torch.Tensor:
        moved = one.transpose(shares[0], x)
        return moved if len(shares) == 1 else moved.add_(other.transpose(shares[1], x))


def _none_negative(x: torch.Tensor) -> bool:
    return bool(x.amin() >= 0)  # false where x holds NaN


def _size(x: torch.Tensor) -> torch.Tensor:
    """Return the absolute value: x itself, where that is the same."""
    return x if _none_negative(x) else x.abs()
