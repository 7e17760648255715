from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from exmap.model.small_maps import small_maps_as_products

Conv = Callable[[bool], nn.Conv2d]

# Convolutions with few output positions, and the side of their input.
FEW: dict[str, tuple[Conv, tuple[int, int]]] = {
    "3x3 on 1x1": (lambda b: nn.Conv2d(5, 4, 3, padding=1, bias=b), (1, 1)),
    "3x3 stride 2 on 2x2": (lambda b: nn.Conv2d(5, 4, 3, stride=2, padding=1, bias=b), (2, 2)),
    "3x3 on 2x1": (lambda b: nn.Conv2d(5, 4, 3, stride=(2, 1), padding=1, bias=b), (2, 1)),
    "1x1 on 1x1": (lambda b: nn.Conv2d(5, 4, 1, bias=b), (1, 1)),
    "1x1 stride 2 on 2x2": (lambda b: nn.Conv2d(5, 4, 1, stride=2, bias=b), (2, 2)),
    "2x2 on 2x2": (lambda b: nn.Conv2d(5, 4, 2, bias=b), (2, 2)),
    "5x3 on 1x2": (lambda b: nn.Conv2d(5, 4, (5, 3), stride=2, padding=(2, 1), bias=b), (1, 2)),
    "7x7 stride 4 on 3x3": (lambda b: nn.Conv2d(5, 4, 7, stride=4, padding=3, bias=b), (3, 3)),
    "3x3 on a 2x1 map": (lambda b: nn.Conv2d(5, 4, 3, padding=1, bias=b), (2, 1)),
    "3x3 stride 2 on 4x2": (lambda b: nn.Conv2d(5, 4, 3, stride=2, padding=1, bias=b), (4, 2)),
    "3x3 on 2x2": (lambda b: nn.Conv2d(5, 4, 3, padding=1, bias=b), (2, 2)),
    "3x3 stride 2 on 3x4": (lambda b: nn.Conv2d(5, 4, 3, stride=2, padding=1, bias=b), (3, 4)),
    "4x2 on 1x4": (lambda b: nn.Conv2d(5, 4, (4, 2), padding=(2, 1), stride=(3, 2), bias=b), (1, 4)),
    "1x1 stride 3 on 5x5": (lambda b: nn.Conv2d(5, 4, 1, stride=3, bias=b), (5, 5)),
}
# Convolutions that must take the ordinary way.
ORDINARY: dict[str, tuple[nn.Conv2d, tuple[int, int]]] = {
    "large map": (nn.Conv2d(4, 4, 3, padding=1), (6, 6)),
    "twelve positions": (nn.Conv2d(4, 4, 3, padding=1), (3, 4)),
    "one row of nine": (nn.Conv2d(4, 4, 3, padding=1), (1, 9)),
    "groups": (nn.Conv2d(4, 4, 3, padding=1, groups=2), (1, 1)),
    "dilation": (nn.Conv2d(4, 4, 3, padding=2, dilation=2), (1, 1)),
    "reflect": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (2, 2)),
    "same": (nn.Conv2d(4, 4, 3, padding="same"), (1, 1)),
    "only padding under the kernel": (nn.Conv2d(4, 4, 1, padding=1, stride=4), (2, 2)),
}


def run(conv: nn.Module, x: torch.Tensor, short: bool) -> list[torch.Tensor]:
    """Output and gradients of the input, the weight and the bias."""
    conv, x = copy.deepcopy(conv), x.clone().requires_grad_()
    if short:
        with small_maps_as_products(conv):
            output = conv(x)
    else:
        output = conv(x)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    (output * weights.to(output.dtype)).sum().backward()
    grads = [p.grad for p in conv.parameters() if p.grad is not None]
    assert x.grad is not None
    return [output.detach(), x.grad, *grads]


def assert_close(found: list[torch.Tensor], wanted: list[torch.Tensor], share: float) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        largest = float(other.abs().max())
        assert float((one.float() - other.float()).abs().max()) <= share * largest


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", FEW)
def test_outputs_and_gradients_are_those_of_the_convolution(kind: str, bias: bool, layout: torch.memory_format) -> None:
    build, side = FEW[kind]
    torch.manual_seed(0)
    conv = build(bias).to(memory_format=layout)
    x = torch.randn(7, 5, *side).contiguous(memory_format=layout)
    assert_close(run(conv, x, True), run(conv, x, False), 1e-6)


def test_a_weight_that_meets_only_padding_gets_a_gradient_of_exactly_zero() -> None:
    conv = nn.Conv2d(5, 4, 3, padding=1)
    gradient = run(conv, torch.randn(7, 5, 1, 1), True)[2]
    centre = torch.zeros(3, 3, dtype=torch.bool)
    centre[1, 1] = True
    assert not gradient[:, :, ~centre].any()
    assert (gradient[:, :, centre] != 0).all()


@pytest.mark.parametrize("kind", ORDINARY)
def test_other_convolutions_take_the_ordinary_way_bit_for_bit(kind: str) -> None:
    conv, side = ORDINARY[kind]
    x = torch.randn(3, 4, *side, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(run(conv, x, True), run(conv, x, False), strict=True))


def test_an_image_without_a_batch_axis_takes_the_ordinary_way() -> None:
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(4, 1, 1)
    with small_maps_as_products(conv):
        assert torch.equal(conv(x), nn.functional.conv2d(x, conv.weight, conv.bias, padding=1))


@pytest.mark.parametrize("kind", ["3x3 on 1x1", "3x3 stride 2 on 2x2", "1x1 stride 2 on 2x2"])
def test_mixed_precision_agrees_to_its_own_rounding(kind: str) -> None:
    build, side = FEW[kind]
    torch.manual_seed(0)
    conv, x = build(True), torch.randn(7, 5, *side)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        short, ordinary = run(conv, x, True), run(conv, x, False)
    assert short[0].dtype == torch.bfloat16
    assert [t.dtype for t in short[1:]] == [torch.float32] * 3
    assert_close(short, ordinary, 2e-2)
    assert_close([t.float() for t in short], run(conv, x, False), 2e-2)


def test_frozen_weights_get_no_gradient() -> None:
    conv = nn.Conv2d(5, 4, 3, padding=1)
    conv.weight.requires_grad_(False)
    x = torch.randn(2, 5, 1, 1)
    assert_close(run(conv, x, True), run(conv, x, False), 1e-6)


def test_a_whole_resnet_gives_the_same_logits_and_gradients() -> None:
    torch.manual_seed(0)
    model, x = resnet18(num_classes=3).eval(), torch.randn(4, 3, 28, 28)
    assert_close(run(model, x, True), run(model, x, False), 1e-4)


def attributes(model: nn.Module) -> dict[str, list[str]]:
    return {name: sorted(vars(module)) for name, module in model.named_modules()}


def test_the_model_has_nothing_left_over_afterwards() -> None:
    model = resnet18(num_classes=3).eval()
    before, x = attributes(model), torch.randn(2, 3, 28, 28)
    wanted = model(x)
    with small_maps_as_products(model):
        assert attributes(model) != before
        model(x)
    assert attributes(model) == before
    assert torch.equal(model(x), wanted)


def test_the_model_has_nothing_left_over_after_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3))
    before = attributes(model)
    with pytest.raises(RuntimeError), small_maps_as_products(model):
        model(torch.randn(2, 5, 1, 1))
    assert attributes(model) == before


def test_blocks_may_be_nested() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), torch.randn(2, 3, 1, 1)
    before = attributes(model)
    with small_maps_as_products(model):
        with small_maps_as_products(model):
            inner = model(x)
        assert torch.equal(model(x), inner)
    assert attributes(model) == before


def test_subclasses_of_a_convolution_are_left_alone() -> None:
    class Doubled(nn.Conv2d):
        def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            return 2 * super()._conv_forward(input, weight, bias)

    conv, x = Doubled(3, 4, 3, padding=1), torch.randn(2, 3, 1, 1)
    wanted = conv(x)
    with small_maps_as_products(conv):
        assert torch.equal(conv(x), wanted)


def test_in_bfloat16_the_result_is_near_that_of_float32() -> None:
    """On some processors the library's own convolution is far off here: it reads beyond its input."""
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 512, 3, stride=2, padding=1, bias=False)
    x = torch.randn(32, 256, 4, 2).contiguous(memory_format=torch.channels_last)
    exact = run(conv, x, True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run(conv, x, True)
    assert rounded[0].dtype == torch.bfloat16
    for one, other in zip(rounded, exact, strict=True):
        assert float((one.float() - other).abs().max()) <= 0.02 * float(other.abs().max())
