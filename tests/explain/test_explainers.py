"""Explainers agree with their definitions, and with Captum where that has them."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exmap.errors import DataError, SettingsError
from exmap.explain import Relevance, explainer_names, make_explainer
from exmap.explain.explainers import EXPLAINERS, LRP, GradCAM, Occlusion
from exmap.explain.grad_cam import as_maps

SEED = 0


def network(classes: int = 3, bias: bool = True, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=bias),
        activation(),
        nn.MaxPool2d(2) if activation is nn.ReLU else nn.AvgPool2d(2),
        nn.Conv2d(6, 5, 3, padding=1, bias=bias),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, classes, bias=bias),
    ).eval()


def images(n: int = 4, size: tuple[int, int] = (8, 8), channels: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(seed))


class Dot(nn.Module):
    """A linear model, so that every definition has one answer."""

    def __init__(self, classes: int = 3, shape: tuple[int, int, int] = (2, 8, 8)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(SEED)
        self.weight = nn.Parameter(torch.randn(classes, *shape, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(classes, generator=generator, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nchw,kchw->nk", x, self.weight) + self.bias


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> None:
    one, other = one.detach(), other.detach()
    assert one.shape == other.shape
    assert float((one - other).abs().max()) <= tolerance * float(other.abs().max())


def silently(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def scripted() -> Any:
    return silently(lambda: torch.jit.script(network()))


def quantised() -> nn.Module:
    def make() -> nn.Module:
        return torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, dtype=torch.qint8)

    if torch.backends.quantized.engine == "none":
        pytest.skip("torch was built without quantised layers")
    return silently(make)


# --- what holds for all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", explainer_names())
def test_every_explainer_keeps_the_contract(name: str) -> None:
    model, x = network(), images()
    model[0].weight.requires_grad_(False)
    model.train()
    model[2].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    made = make_explainer(name).explain(model, x, "predicted")
    assert isinstance(made, Relevance)
    assert made.values.shape == x.shape
    assert made.values.dtype == torch.float32
    assert torch.isfinite(made.values).all()
    assert not made.values.requires_grad
    with torch.no_grad():
        logits = network()(x)
    torch.testing.assert_close(made.logits, logits)
    assert torch.equal(made.target, logits.argmax(dim=1))
    torch.testing.assert_close(made.explained, logits.amax(dim=1))
    assert made.constants.shape == (4,)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(make_explainer(name).explain(model, x, "predicted").values, made.values)


@pytest.mark.parametrize("name", explainer_names())
@pytest.mark.parametrize("target", ["predicted", "margin", 1])
def test_an_image_alone_is_as_in_a_batch(name: str, target: Any) -> None:
    model, x = network(), images()
    explainer = make_explainer(name)
    whole = explainer.explain(model, x, target)
    for i in range(len(x)):
        alone = explainer.explain(model, x[i : i + 1], target)
        close(alone.values, whole.values[i : i + 1])
        torch.testing.assert_close(alone.explained, whole.explained[i : i + 1])


@pytest.mark.parametrize("name", explainer_names())
def test_margin_is_predicted_minus_runner_up_and_classes_may_differ(name: str) -> None:
    model, x = network(), images()
    margin = make_explainer(name).explain(model, x, "margin")
    best = margin.logits.topk(2, dim=1).values
    torch.testing.assert_close(margin.explained, best[:, 0] - best[:, 1])
    classes = torch.tensor([0, 2, 1, 0])
    several = make_explainer(name).explain(model, x, classes)
    assert torch.equal(several.target, classes)
    for i, label in enumerate(classes.tolist()):
        close(several.values[i : i + 1], make_explainer(name).explain(model, x[i : i + 1], label).values)


@pytest.mark.parametrize("name", explainer_names())
def test_the_logit_before_a_softmax_is_explained(name: str) -> None:
    model, x = network(), images()
    ended = nn.Sequential(*model, nn.Softmax(dim=1)).eval()
    plain, probable = (make_explainer(name).explain(m, x, "predicted") for m in (model, ended))
    torch.testing.assert_close(probable.logits, plain.logits)
    close(probable.values, plain.values)


@pytest.mark.parametrize("name", explainer_names())
def test_half_precision_models_and_one_logit(name: str) -> None:
    x = images()
    half = make_explainer(name).explain(network().bfloat16(), x.bfloat16(), "predicted")
    assert half.values.dtype == torch.float32
    assert torch.isfinite(half.values).all()
    one = make_explainer(name).explain(network(classes=1), x, "predicted")
    assert one.logits.shape == (4, 2)
    torch.testing.assert_close(one.explained, one.logits.amax(dim=1))


@pytest.mark.parametrize("name", explainer_names())
def test_weights_that_changed_are_seen(name: str) -> None:
    model, x = network(), images()
    kept = make_explainer(name)
    kept.explain(model, x, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.01)
    close(kept.explain(model, x, 0).values, make_explainer(name).explain(model, x, 0).values, 1e-7)


@pytest.mark.parametrize("name", explainer_names())
def test_inference_mode_and_data_parallel(name: str) -> None:
    model, x = network(), images()
    wanted = make_explainer(name).explain(model, x, "predicted").values
    with torch.inference_mode():
        close(make_explainer(name).explain(model, x.clone(), "predicted").values, wanted)
    close(make_explainer(name).explain(nn.DataParallel(model), x, "predicted").values, wanted)


@pytest.mark.parametrize("name", [name for name in explainer_names() if EXPLAINERS[name].needs_gradient])  # type: ignore[attr-defined]
@pytest.mark.parametrize("make", [scripted, quantised])
def test_models_without_gradients_are_refused_with_the_remedy(name: str, make: Any) -> None:
    with pytest.raises(DataError, match=r"explainer=.occlusion."):
        make_explainer(name).explain(make(), images(), "predicted")


@pytest.mark.parametrize("name", explainer_names())
def test_a_class_outside_the_models_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"class in \[0, 2\], because the model has 3 outputs, got 3 to 3"):
        make_explainer(name).explain(network(), images(), 3)


# --- gradients ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["predicted", "margin"])
def test_gradient_x_input_is_epsilon_lrp_without_biases(target: str) -> None:
    model, x = network(bias=False), images()
    made = make_explainer("gradient_x_input").explain(model, x, target)
    close(made.values, make_explainer("lrp", composite="epsilon").explain(model, x, target).values)
    torch.testing.assert_close(made.values.sum(dim=(1, 2, 3)), made.explained)
    assert torch.isnan(made.constants).all()


@pytest.mark.parametrize("target", ["predicted", "margin", 2])
@pytest.mark.parametrize("baseline", [0.0, -0.5, [[[0.1]], [[-0.3]]]])
def test_integrated_gradients_are_complete(target: Any, baseline: Any) -> None:
    model, x = network(activation=nn.Tanh).double(), images().double()
    made = make_explainer("integrated_gradients", baseline=baseline).explain(model, x, target)
    start = torch.as_tensor(baseline, dtype=x.dtype).expand(1, 2, 8, 8)
    with torch.no_grad():
        logits, at_start = model(x), model(start)
    rival = logits.topk(2, dim=1).indices[:, 1]
    wanted = at_start[0, made.target] - (at_start[0, rival] if target == "margin" else 0)
    torch.testing.assert_close(made.constants, wanted)
    assert float(made.error().max()) < 1e-10


def test_integrated_gradients_by_hand() -> None:
    model, x = network(activation=nn.Tanh).double(), images(1).double()
    total = torch.zeros_like(x)
    for step in range(50):
        point = ((step + 0.5) / 50 * x).requires_grad_()
        total += torch.autograd.grad(model(point)[0, 1], point)[0] / 50
    made = make_explainer("integrated_gradients", steps=50, quadrature="midpoint").explain(model, x, 1)
    close(made.values, x * total, 1e-12)
    few = make_explainer("integrated_gradients", steps=50, quadrature="midpoint", at_once=1).explain(model, x, 1)
    close(few.values, made.values, 1e-12)


def test_integrated_gradients_are_captums() -> None:
    attr = pytest.importorskip("captum.attr")
    model, x = network().double(), images().double()
    made = make_explainer("integrated_gradients", steps=20).explain(model, x, "predicted")
    theirs = attr.IntegratedGradients(model).attribute(x.clone().requires_grad_(), target=made.target, n_steps=20)
    close(made.values, theirs, 1e-6)  # whose points are in float32


def test_settings_of_integrated_gradients_are_checked() -> None:
    with pytest.raises(SettingsError, match=r"unknown quadrature 'midpont' \(did you mean 'midpoint'\?\)"):
        make_explainer("integrated_gradients", quadrature="midpont")
    with pytest.raises(SettingsError, match="steps must be a whole number of at least 1, got 0"):
        make_explainer("integrated_gradients", steps=0)
    with pytest.raises(SettingsError, match=r"baseline must be a number, or have the shape of an image, \(2, 8, 8\)"):
        make_explainer("integrated_gradients", baseline=np.zeros((3, 8, 8))).explain(network(), images(), 0)


def test_a_model_cut_off_inside_is_refused() -> None:
    class Cut(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.detach().mean(dim=(2, 3))

    with pytest.raises(DataError, match=r'operations that have a gradient, but it does not; use explainer="occlusion"'):
        make_explainer("gradient_x_input").explain(Cut(), images(), 0)
    made = make_explainer("occlusion", patch=8, baseline=0).explain(Cut(), images(), 0)
    torch.testing.assert_close(made.values.sum(dim=(1, 2, 3)), made.explained)


# --- Grad-CAM ----------------------------------------------------------------------------------------------------


def test_grad_cam_by_hand() -> None:
    model, x = network(), images()
    made = make_explainer("grad_cam", layer="3").explain(model, x, 1)
    maps = model[:4](x).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(model[4:](maps)[:, 1].sum(), maps)
    weighted = torch.einsum("nk,nkhw->nhw", slopes.mean(dim=(2, 3)), maps).clamp(min=0)
    wanted = nn.functional.interpolate(weighted[:, None], size=(8, 8), mode="bilinear")
    close(made.values.sum(dim=1, keepdim=True), wanted)
    assert torch.equal(made.values[:, 0], made.values[:, 1])
    signed = make_explainer("grad_cam", layer="3", relu=False).explain(model, x, 1)
    assert float(signed.values.min()) < 0


def test_grad_cam_is_captums() -> None:
    attr = pytest.importorskip("captum.attr")
    model, x = network(), images()
    made = make_explainer("grad_cam", layer="3").explain(model, x, "predicted")
    maps = attr.LayerGradCam(model, model[3]).attribute(x.clone().requires_grad_(), made.target, relu_attributions=True)
    wanted = attr.LayerAttribution.interpolate(maps, (8, 8), "bilinear")
    close(made.values.sum(dim=1, keepdim=True), wanted)


def test_grad_cam_takes_the_last_maps() -> None:
    model, x = network(), images()
    made = make_explainer("grad_cam").explain(model, x, 1)
    assert torch.equal(made.values, make_explainer("grad_cam", layer="4").explain(model, x, 1).values)


class Transformer(nn.Module):
    """A class token, registers, patches of 4 x 4, two blocks; the head reads the class token or the mean."""

    def __init__(self, extra: int, grid: tuple[int, int], pooled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.patches = nn.Conv2d(2, 8, 4, 4)
        self.extra = nn.Parameter(torch.randn(1, extra, 8))
        self.positions = nn.Parameter(torch.randn(1, extra + grid[0] * grid[1], 8))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))
        self.head = nn.Linear(8, 3)
        self.pooled = pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.extra.expand(len(x), -1, -1), x], dim=1) + self.positions
        for norm, qkv in zip(self.norms, self.qkv, strict=False):
            q, k, v = qkv(norm(x)).chunk(3, dim=-1)
            x = x + nn.functional.scaled_dot_product_attention(q, k, v)
        x = self.norms[2](x)
        return self.head(x.mean(dim=1) if self.pooled else x[:, 0])


@pytest.mark.parametrize(
    ("extra", "size", "pooled", "layer"),
    [
        (1, (16, 16), False, "norms.1"),  # only the class token goes on from the last attention
        (5, (12, 12), False, "norms.1"),
        (0, (16, 16), True, "norms.2"),
        (1, (8, 16), True, "norms.2"),
    ],
)
def test_grad_cam_of_tokens(extra: int, size: tuple[int, int], pooled: bool, layer: str) -> None:
    grid = size[0] // 4, size[1] // 4
    model, x = Transformer(extra, grid, pooled).eval(), images(size=size)
    explainer = GradCAM(relu=False)
    made = explainer.explain(model, x, 1)
    assert explainer._found is not None
    assert explainer._found[2][0] == layer
    kept: list[torch.Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output))
    logits = model(x)
    hook.remove()
    (slopes,) = torch.autograd.grad(logits[:, 1].sum(), kept[0])
    maps = torch.einsum("nk,nsk->ns", slopes[:, extra:].mean(dim=1), kept[0][:, extra:]).unflatten(1, grid)
    wanted = nn.functional.interpolate(maps[:, None], size=size, mode="bilinear")
    close(made.values.sum(dim=1, keepdim=True), wanted.detach())


def test_maps_are_recognised() -> None:
    channels_first, channels_last = torch.randn(2, 5, 7, 7), torch.randn(2, 7, 7, 5)
    assert as_maps(channels_first, (28, 28)) is channels_first
    assert torch.equal(as_maps(channels_last, (28, 28)), channels_last.permute(0, 3, 1, 2))  # type: ignore[arg-type]
    tokens = torch.randn(2, 1 + 8, 5)
    found = as_maps(tokens, (28, 56))
    assert found is not None
    assert torch.equal(found[0, :, 1, 2], tokens[0, 1 + 4 + 2])
    for places in (torch.randn(2, 5), torch.randn(2, 5, 1, 1), torch.randn(2, 3, 5), torch.randn(2, 34, 5)):
        assert as_maps(places, (28, 28)) is None


def test_in_place_steps_after_the_layer_change_nothing() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(SEED)
            self.conv, self.norm = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5)
            self.head = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.conv(x))
            y *= 3
            return self.head(y.relu_().mean(dim=(2, 3)))

    model, x = InPlace().eval(), images()
    made = make_explainer("grad_cam", layer="norm", relu=False).explain(model, x, 1)
    maps = model.norm(model.conv(x)).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(model.head((maps * 3).relu().mean(dim=(2, 3)))[:, 1].sum(), maps)
    wanted = torch.einsum("nk,nkhw->nhw", slopes.mean(dim=(2, 3)), maps.detach())[:, None]
    close(made.values.sum(dim=1, keepdim=True), nn.functional.interpolate(wanted, size=(8, 8), mode="bilinear"))


def test_layers_that_have_no_maps_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"layer must be the path of a module of the model, found no 'head'"):
        make_explainer("grad_cam", layer="head").explain(network(), images(), 0)
    with pytest.raises(DataError, match=r"layer must be a module that returns maps .* but '7' returns \(4, 3\)"):
        make_explainer("grad_cam", layer="7").explain(network(), images(), 0)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    with pytest.raises(DataError, match="grad_cam needs a module that returns maps"):
        make_explainer("grad_cam").explain(flat, images(), 0)


# --- occlusion ---------------------------------------------------------------------------------------------------


def by_hand(model: Any, x: torch.Tensor, patch: int, stride: int, fill: torch.Tensor, label: int) -> torch.Tensor:
    """Occlusion written as it is said."""
    side = x.shape[-1]
    starts = [s for s in range(0, side, stride) if s == 0 or s - stride + patch < side]
    values, count = torch.zeros_like(x), torch.zeros_like(x)
    for top, left in itertools.product(starts, starts):
        covered = x.clone()
        place = (..., slice(top, top + patch), slice(left, left + patch))
        covered[place] = fill.expand_as(x)[place]
        drop = (model(x) - model(covered))[:, label]
        values[place] += drop[:, None, None, None] / x[0][place].numel()
        count[place] += 1
    assert (count > 0).all()
    return values / count


@pytest.mark.parametrize(("patch", "stride"), [(1, 1), (2, 2), (3, 3), (3, 1), (5, 2), (8, 8)])
def test_occlusion_by_hand(patch: int, stride: int) -> None:
    model, x = network().double(), images(2).double()
    with torch.no_grad():
        wanted = by_hand(model, x, patch, stride, x.mean(dim=(2, 3), keepdim=True), 1)
    made = make_explainer("occlusion", patch=patch, stride=stride, at_once=7).explain(model, x, 1)
    close(made.values, wanted, 1e-12)


def test_occlusion_of_a_linear_model_is_the_exact_drop() -> None:
    model, x = Dot(), images().double()
    made = Occlusion(patch=(2, 4), baseline=0.25).explain(model, x, "margin")
    rival = made.logits.topk(2, dim=1).indices[:, 1]
    share = ((x - 0.25) * (model.weight[made.target] - model.weight[rival])).detach()
    patches = share.sum(dim=1).unflatten(1, (4, 2)).unflatten(3, (2, 4)).sum(dim=(2, 4))
    wanted = patches.repeat_interleave(2, 1).repeat_interleave(4, 2)[:, None].expand_as(x) / 16
    close(made.values, wanted, 1e-12)
    each = Occlusion(patch=1, baseline=np.zeros((2, 1, 1))).explain(model, x, 0)
    close(each.values, (x * model.weight[0]).sum(dim=1, keepdim=True).expand_as(x).detach() / 2, 1e-12)


def test_default_patches_are_a_seventh_of_the_side() -> None:
    windows = Occlusion()._windows(28, 224)
    assert len(windows) == 49
    assert windows[8] == (slice(4, 8), slice(32, 64))


def numpy_model(x: Any) -> Any:
    if not isinstance(x, np.ndarray):
        raise TypeError("arrays only")
    return network()(torch.from_numpy(x)).detach().numpy()


@pytest.mark.parametrize(
    "make",
    [
        scripted,
        lambda: silently(lambda: torch.jit.freeze(scripted().eval())),
        lambda: silently(lambda: torch.jit.trace(network(), images(1))),
        lambda: lambda x: network()(x),
        lambda: lambda x: {"logits": network()(x).detach().numpy()},
        lambda: lambda x: [network()(x)],
        lambda: numpy_model,
    ],
    ids=["scripted", "frozen", "traced", "function", "mapping of arrays", "list", "numpy"],
)
def test_occlusion_takes_anything_that_answers(make: Any) -> None:
    x = images()
    wanted = make_explainer("occlusion").explain(network(), x, "margin")
    made = make_explainer("occlusion").explain(make(), x, "margin")
    close(made.values, wanted.values, 1e-4)
    torch.testing.assert_close(made.logits, wanted.logits)


def test_occlusion_of_a_quantised_model() -> None:
    x, model = images(), quantised()
    made = make_explainer("occlusion", patch=4, at_once=1).explain(model, x, 1)
    with torch.no_grad():
        wanted = [by_hand(model, one, 4, 4, one.mean(dim=(2, 3), keepdim=True), 1) for one in x.split(1)]
    close(made.values, torch.cat(wanted))


@pytest.mark.parametrize("batch", ["n", 3])
def test_occlusion_of_an_onnx_session(batch: Any) -> None:
    runtime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    weight = Dot().weight.detach().float().flatten(1).T.numpy()
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])],
        "dot",
        [helper.make_tensor_value_info("x", kind, [batch, 2, 8, 8])],
        [helper.make_tensor_value_info("y", kind, [batch, 3])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = images(5)
    made = make_explainer("occlusion", patch=1, baseline=0).explain(session, x, 0)
    wanted = (x * torch.from_numpy(weight[:, 0]).view(2, 8, 8)).sum(dim=1)
    close(made.values.sum(dim=1), wanted, 1e-4)


def test_settings_of_occlusion_are_checked() -> None:
    for options, said in (
        ({"patch": 0}, "patch must be a whole number of at least 1, got 0"),
        ({"patch": (1, 2, 3)}, "patch must be one number or a height and a width"),
        (
            {"patch": 2, "stride": 3},
            r"stride must be at most the patch, \(2, 2\), or pixels are left out, got \(3, 3\)",
        ),
        ({"baseline": "blur"}, "baseline must be \"mean\", a number or an image, got 'blur'"),
    ):
        with pytest.raises(SettingsError, match=said):
            make_explainer("occlusion", **options).explain(network(), images(), 0)
    with pytest.raises(DataError, match="a function from images to logits, got str"):
        Occlusion().explain("model.onnx", images(), 0)
    with pytest.raises(DataError, match=r"the model failed on images of shape \(4, 2, 8, 8\) .* \(KeyError: 'size'\)"):
        Occlusion().explain(lambda x: {}["size"], images(), 0)


# --- names and objects -------------------------------------------------------------------------------------------


def test_captums_objects_are_explainers() -> None:
    attr = pytest.importorskip("captum.attr")
    model, x = network(), images()
    saliency = make_explainer(attr.Saliency(model)).explain(model, x, "predicted")
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).amax(dim=1).sum(), leaf)
    close(saliency.values, gradient.abs())
    assert torch.isnan(saliency.constants).all()
    product = make_explainer(attr.InputXGradient(model)).explain(model, x, 2)
    close(product.values, make_explainer("gradient_x_input").explain(model, x, 2).values)
    assert torch.equal(product.target, torch.full((4,), 2))
    with pytest.raises(SettingsError, match="predicted or classes for Saliency, which explains one output"):
        make_explainer(attr.Saliency(model)).explain(model, x, "margin")


def test_captums_objects_without_a_gradient() -> None:
    attr = pytest.importorskip("captum.attr")
    model, x = scripted(), images()
    made = make_explainer(attr.FeatureAblation(model)).explain(model, x, 1)
    wanted = by_hand(network(), x, 1, 1, torch.zeros(()), 1)
    close(made.values.sum(dim=1)[:, 0, 0], made.values[:, :, 0, 0].sum(dim=1))
    assert made.values.shape == wanted.shape


class Plain:
    """Attributions of a fixed shape, as Captum would return them."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def attribute(self, inputs: torch.Tensor, target: Any) -> Any:
        assert inputs.requires_grad
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


def test_attributions_come_in_the_images_shape() -> None:
    model, x = network(), images()
    one = make_explainer(Plain((torch.ones(4, 1, 8, 8),))).explain(model, x, 0)
    assert torch.equal(one.values, torch.full((4, 2, 8, 8), 0.5))
    array = make_explainer(Plain(np.ones((4, 2, 8, 8)))).explain(model, x, 0)
    assert float(array.values.sum()) == 512
    with pytest.raises(DataError, match=r"Plain must return attributions in the shape .* got \(4, 1, 2, 2\)"):
        make_explainer(Plain(torch.ones(4, 1, 2, 2))).explain(model, x, 0)
    with pytest.raises(DataError, match=r"the explainer Plain failed on images .* \(ValueError: no ReLU\)"):
        make_explainer(Plain(ValueError("no ReLU"))).explain(model, x, 0)


def test_objects_with_explain_and_classes_are_explainers() -> None:
    own = LRP(composite="epsilon")
    assert make_explainer(own) is own
    assert make_explainer(Occlusion, patch=2) == Occlusion(patch=2)
    with pytest.raises(SettingsError, match="got steps beside an object of LRP; set them when it is made"):
        make_explainer(own, steps=3)
    with pytest.raises(SettingsError, match=r"explainer must be one of grad_cam, .* or Captum's attribute"):
        make_explainer(3)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("lpr", {}, r"unknown explainer 'lpr' \(did you mean 'lrp'\?\); choose one of: grad_cam, .*, occlusion"),
        (
            "lrp",
            {"gama": 1.0},
            r"unknown option of explainer lrp 'gama' \(did you mean 'gamma'\?\); choose one of: com",
        ),
        ("gradient_x_input", {"steps": 3}, "explainer gradient_x_input has no options, got steps; leave them out"),
        ("occlusion", {"_predictor": 3}, "unknown option of explainer occlusion '_predictor'"),
        ("lrp", {"composite": "epsilom"}, r"unknown composite 'epsilom' \(did you mean 'epsilon'\?\)"),
    ],
)
def test_unknown_names_and_options_are_refused(name: str, options: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        make_explainer(name, **options)


# --- relevance propagation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [False, True])
def test_lrp_conserves_and_knows_layers(ended: bool) -> None:
    plain, x = network(), images()
    model = nn.Sequential(*plain, nn.LogSoftmax(dim=1)).eval() if ended else plain
    made = LRP(layers=["3", "7"]).explain(nn.DataParallel(model), x, "predicted")
    assert float(made.error().max()) < 1e-5
    assert {path: tuple(value.shape) for path, value in made.layers.items()} == {"3": (4, 5, 4, 4), "7": (4, 3)}
    close(made.layers["7"].sum(dim=1), made.explained)
    with pytest.raises(SettingsError, match=r"layers must be the path of a module of the model, found no 'layer4'"):
        LRP(layers=("layer4",)).explain(model, x, "predicted")


def test_lrp_takes_the_default_rules_of_the_models_kind() -> None:
    model, x = network(), images()
    close(LRP().explain(model, x, 0).values, LRP("symmetric_gamma").explain(model, x, 0).values, 1e-7)
    close(LRP(gamma=1.0).explain(model, x, 0).values, LRP("symmetric_gamma", gamma=1.0).explain(model, x, 0).values)


def test_lrp_with_a_box_needs_pixels_in_it() -> None:
    with pytest.raises(DataError, match=r"composite epsilon_gamma_box needs pixels in \[0, 1\], found -"):
        LRP("epsilon_gamma_box").explain(network(), images(), 0)
    assert LRP("epsilon_gamma_box").explain(network(), images().sigmoid(), 0).values.shape == (4, 2, 8, 8)
