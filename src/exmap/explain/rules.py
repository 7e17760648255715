"""Which relevance rule goes on which layer, by name; and the one rule zennit does not have.

The paper's composite: epsilon rule on linear layers, the symmetric gamma rule on convolutions, relevance passed
through activations and normalised over residual sums and average pooling, batch normalisation merged into
convolutions first. Every composite that zennit registers can be named as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from zennit.canonizers import Canonizer
from zennit.composites import COMPOSITES, LayerMapComposite, layer_map_base
from zennit.core import Composite, Hook, ParamMod
from zennit.rules import Epsilon
from zennit.types import Convolution, Linear

from exmap.errors import SettingsError, unknown_name

__all__ = ["SymmetricGamma", "composite_names", "make_composite", "sum_canonizers"]

STABILIZER = 1e-6
NEEDS_PIXEL_RANGE = ("epsilon_gamma_box",)  # composites whose first rule is bounded by the images' range
SYMMETRIC_GAMMA = "symmetric_gamma"


class SymmetricGamma(Hook):  # type: ignore[misc]
    r"""The symmetric gamma rule: whichever sign of contribution dominates an output is favoured by gamma.

    With contributions :math:`x_j w_{jk}`, :math:`P_k = \sum_j (x_j w_{jk})^+ + b_k^+` and
    :math:`N_k = \sum_j (x_j w_{jk})^- + b_k^-`,

    .. math::
        \alpha_k = 1 + \gamma [P_k \ge |N_k|], \quad \beta_k = 1 + \gamma [P_k < |N_k|]

        R_j = \sum_k \frac{\alpha_k (x_j w_{jk})^+ + \beta_k (x_j w_{jk})^-}{stab(\alpha_k P_k + \beta_k N_k)} R_k

    Where the layer's input is found to be non-negative, as after a ReLU, half of the terms vanish, and
    :math:`N_k = z_k - P_k` with the output :math:`z_k` of the forward pass: one extra forward and two backward
    convolutions. Otherwise all terms are computed.

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
        self._version = 0

    def copy(self) -> SymmetricGamma:
        """Return a hook of the same settings, for another layer."""
        return SymmetricGamma(self.gamma, self.stabilizer)

    def forward(self, module: nn.Module, input: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """Keep the layer's input and output of the forward pass."""
        self.stored_tensors["input"] = input[0]
        self.stored_tensors["output"] = output
        self._version = output._version

    def backward(
        self, module: nn.Module, grad_input: tuple[torch.Tensor | None, ...], grad_output: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the relevance of the layer's input, given that of its output."""
        x = self.stored_tensors["input"].detach()
        z = self.stored_tensors["output"].detach()
        if z._version != self._version:  # changed in place since: the output is no longer what the layer made
            z = _apply(module, x, None, None)
        with torch.no_grad():
            relevance = self._relevance(module, x, z, grad_output[0])
        return tuple(relevance if g is not None and g.shape == relevance.shape else None for g in grad_input)

    def _relevance(self, module: nn.Module, x: torch.Tensor, z: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        assert isinstance(module.weight, torch.Tensor)
        positive, negative = module.weight.clamp(min=0), module.weight.clamp(max=0)
        mixed = not bool((x >= 0).all())  # NaN in one image must not hide the signs of another
        if mixed:
            x_plus, x_minus = x.clamp(min=0), x.clamp(max=0)
            p = _apply(module, x_plus, positive, 1) + _apply(module, x_minus, negative, 0)
        else:
            x_plus, p = x, _apply(module, x, positive, 1)
        above = z >= 0  # P >= |N|, since z = P + N
        total = z + self.gamma * torch.where(above, p, z - p)  # alpha P + beta N
        share = upper / (total + torch.where(total < 0, -self.stabilizer, self.stabilizer))
        strong = (1 + self.gamma) * share
        alpha, beta = torch.where(above, strong, share), torch.where(above, share, strong)
        relevance = x_plus * (_transpose(module, x, positive, alpha) + _transpose(module, x, negative, beta))
        if mixed:
            relevance += x_minus * (_transpose(module, x, negative, alpha) + _transpose(module, x, positive, beta))
        return relevance


def _apply(module: nn.Module, x: torch.Tensor, weight: torch.Tensor | None, bias_sign: int | None) -> torch.Tensor:
    """Run the layer with another weight, and with its bias, the bias's positive part (1) or none (0)."""

    def modify(parameter: torch.Tensor, name: str) -> torch.Tensor:
        if name == "weight":
            return parameter if weight is None else weight
        return parameter if bias_sign is None else parameter.clamp(min=0) * bias_sign

    with ParamMod(modify)(module) as modified:
        output: torch.Tensor = modified.forward(x)
    return output


def _transpose(module: nn.Module, x: torch.Tensor, weight: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Return the layer's transpose, with another weight, applied to `upper`; x gives the shape alone."""
    conv: Any = module
    if getattr(conv, "padding_mode", "") == "zeros" and not isinstance(conv.padding, str):
        moved: torch.Tensor = torch.ops.aten.convolution_backward(
            upper,
            x,
            weight,
            None,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.transposed,
            conv.output_padding,
            conv.groups,
            (True, False, False),
        )[0]
        return moved
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        output = _apply(module, x, weight, 0)
    return torch.autograd.grad(output, x, upper)[0]


def composite_names() -> list[str]:
    """Return the names of all composites: the paper's, and those zennit registers."""
    return sorted({SYMMETRIC_GAMMA, *COMPOSITES})


def sum_canonizers(model: nn.Module) -> list[Canonizer]:
    """Return the canonizers that make the residual sums of torchvision's ResNets layers of their own."""
    from torchvision.models.resnet import BasicBlock, Bottleneck
    from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer

    if any(isinstance(module, BasicBlock | Bottleneck) for module in model.modules()):
        return [ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()]
    return []


def make_composite(name: str, model: nn.Module, *, gamma: float = 4.0) -> Composite:
    """Return a composite by name, with the canonizers that fit `model`, whose batch normalisation is merged already.

    Parameters
    ----------
    name : str
        ``symmetric_gamma`` or one of zennit's. Composites bounded by the pixels' range take it to be [0, 1].
    model : torch.nn.Module
    gamma : float
        For ``symmetric_gamma`` alone.

    Raises
    ------
    SettingsError
        For an unknown name.
    """
    canonizers = sum_canonizers(model)
    if name == SYMMETRIC_GAMMA:
        table = [
            *layer_map_base(STABILIZER),
            (Convolution, SymmetricGamma(gamma)),
            (Linear, Epsilon(epsilon=STABILIZER)),
        ]
        return LayerMapComposite(layer_map=table, canonizers=canonizers)
    if name not in COMPOSITES:
        raise SettingsError(unknown_name("composite", name, composite_names()))
    bounds = {"low": torch.zeros(1), "high": torch.ones(1)} if name in NEEDS_PIXEL_RANGE else {}
    return COMPOSITES[name](canonizers=canonizers, **bounds)
