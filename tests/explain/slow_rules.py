"""The symmetric gamma rule from its formula, on zennit's own machinery: what the fast rules are checked against."""

from __future__ import annotations

import torch
from zennit.composites import LayerMapComposite, layer_map_base
from zennit.core import BasicHook, ParamMod, stabilize
from zennit.rules import Epsilon
from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer
from zennit.types import Convolution, Linear

SUMS = [ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()]


def four_passes(gamma: float, stabilizer: float = 1e-6) -> BasicHook:
    """The same rule on zennit's own machinery: one modified pass for each pair of signs of input and weight."""

    def part(sign: int, bias: bool) -> ParamMod:
        def modify(parameter: torch.Tensor, name: str) -> torch.Tensor:
            if name == "bias" and not bias:
                return torch.zeros_like(parameter)
            return parameter.clamp(min=0) if sign > 0 else parameter.clamp(max=0)

        return ParamMod(modify)

    def shares(upper: torch.Tensor, outputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        p, n = outputs[0] + outputs[1], outputs[2] + outputs[3]
        alpha, beta = 1 + gamma * (p >= n.abs()).to(p), 1 + gamma * (p < n.abs()).to(p)
        share = upper / stabilize(alpha * p + beta * n, stabilizer)
        return alpha * share, alpha * share, beta * share, beta * share

    return BasicHook(
        input_modifiers=[lambda x: x.clamp(min=0), lambda x: x.clamp(max=0)] * 2,
        param_modifiers=[part(1, True), part(-1, False), part(-1, True), part(1, False)],
        gradient_mapper=shares,
    )


def slow_composite(gamma: float, canonizers: list | None = None, stabilizer: float = 1e-6) -> LayerMapComposite:
    rules = [(Convolution, four_passes(gamma, stabilizer)), (Linear, Epsilon(epsilon=stabilizer))]
    return LayerMapComposite(layer_map=[*layer_map_base(stabilizer), *rules], canonizers=canonizers or [])
