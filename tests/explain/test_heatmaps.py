from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from zennit.attribution import Gradient

from exmap.config import ExplainSettings
from exmap.data import Split, array_split
from exmap.data.dataset import ArrayImages
from exmap.errors import DataError, NumericalError, SettingsError
from exmap.explain import composite_names, compute_heatmaps, explain_split, make_composite, reduce_maps
from exmap.explain.canonize import canonized_copy
from exmap.model import collect_outputs
from exmap.records import Progress

SIDE = 8


def images_split(n: int = 7, *, seed: int = 0, signed: bool = False, n_classes: int = 3) -> Split:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, 3, SIDE, SIDE)) if signed else rng.random((n, 3, SIDE, SIDE))
    return array_split(images.astype(np.float32), np.arange(n) % n_classes, class_names=[*"abcdef"][:n_classes])


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
    return model


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(24, 3),
    )


class Dense(nn.Module):
    """Concatenates what each convolution adds, as DenseNet does, and normalises before each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(self.block(4 + 4 * i) for i in range(2))
        self.head = nn.Linear(12, 3)

    @staticmethod
    def block(width: int) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.cat([x, block(x)], dim=1)
        return self.head(x.mean(dim=(2, 3)))


class PreActivation(nn.Module):
    """A residual network that normalises the sum, not the convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(Dense.block(4) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(dim=(2, 3)))


def without_affine() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4, affine=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "resnet18": lambda: resnet18(num_classes=3),
    "dense": Dense,
    "pre-activation": PreActivation,
    "no affine": without_affine,
}
# In "dense" and "pre-activation" a batch normalisation follows a convolution in the module tree, but not in the data.


def build(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(NETWORKS[kind]())


def raw_relevance(
    model: nn.Module, images: np.ndarray, target: np.ndarray, composite: str = "symmetric_gamma"
) -> np.ndarray:
    """Relevance before reduction, one image at a time, straight from zennit."""
    model = canonized_copy(model, images[:2])
    attributor = Gradient(model=model, composite=make_composite(composite, model))
    starts = torch.eye(3)[torch.from_numpy(target)]
    parts = [attributor(torch.from_numpy(x[None]), s[None])[1] for x, s in zip(images, starts, strict=True)]
    return torch.cat(parts).double().numpy()


def snapshot(model: nn.Module) -> dict[str, object]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "identity": {name: id(value) for name, value in model.named_parameters()},
        "requires_grad": {name: value.requires_grad for name, value in model.named_parameters()},
        "grad": {name: value.grad for name, value in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: [len(getattr(module, h)) for h in hooks] for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
    }


def assert_same(before: dict[str, object], after: dict[str, object]) -> None:
    one, other = before.pop("state"), after.pop("state")
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert before == after


@pytest.mark.parametrize("kind", ["plain", "resnet18"])
@pytest.mark.parametrize("composite", ["symmetric_gamma", "epsilon_plus"])
def test_the_model_is_bit_equal_afterwards(kind: str, composite: str) -> None:
    model, split = build(kind), images_split()
    model.train()
    next(iter(model.children())).eval()  # a mixture of modes
    next(model.parameters()).requires_grad_(False)
    x = torch.from_numpy(split.images.batch(np.arange(4)))
    outputs = copy.deepcopy(model).eval()(x)
    before = snapshot(model)
    compute_heatmaps(model, split, ExplainSettings(composite=composite, batch_size=3))
    assert_same(before, snapshot(model))
    assert torch.equal(model.eval()(x), outputs)


class Failing(ArrayImages):
    """Images that cannot be read after the first batch."""

    def batch(self, indices: np.ndarray) -> np.ndarray:
        if indices[0] > 0:
            raise OSError("the disk is gone")
        return super().batch(indices)


@pytest.mark.parametrize("kind", ["plain", "resnet18"])
def test_the_model_is_bit_equal_after_an_error_midway(kind: str) -> None:
    model, whole = build(kind).train(), images_split()
    split = Split("val", Failing(whole.images.array), whole.labels, whole.ids, whole.class_names)
    before = snapshot(model)
    with pytest.raises(OSError, match="the disk is gone"):
        compute_heatmaps(model, split, ExplainSettings(batch_size=3))
    assert_same(before, snapshot(model))


def test_the_model_is_bit_equal_after_a_refusal_of_its_layers() -> None:
    model = build("no affine")
    before = snapshot(model)
    with suppress(Exception):
        compute_heatmaps(model, images_split())
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("composite", composite_names())
def test_every_composite_runs(composite: str) -> None:
    maps = compute_heatmaps(build("plain"), images_split(), ExplainSettings(composite=composite))
    assert maps.values.shape == (7, 3, SIDE, SIDE)
    assert maps.finite.all()
    assert not maps.zero.any()
    assert np.abs(maps.values).max(axis=(1, 2, 3)).tolist() == [1.0] * 7


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_heatmaps_and_conservation_error_follow_from_raw_relevance(kind: str, signed: bool) -> None:
    model, split = build(kind), images_split(signed=signed)
    maps = compute_heatmaps(model, split)
    images = split.images.batch(np.arange(len(split)))
    raw = raw_relevance(model, images, maps.target)
    np.testing.assert_allclose(maps.values, raw / np.abs(raw).max(axis=(1, 2, 3), keepdims=True), atol=1e-5)
    np.testing.assert_allclose(maps.conservation_error, np.abs(raw.sum(axis=(1, 2, 3)) - 1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_function_that_is_explained_is_the_model_itself(kind: str) -> None:
    model, split = build(kind), images_split(12, signed=True)
    seen: list[torch.Tensor] = []
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    hook = head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach().clone()))
    maps = compute_heatmaps(model, split)
    hook.remove()
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(split.images.batch(np.arange(12))))
    np.testing.assert_allclose(torch.cat(seen)[-12:], logits, rtol=1e-3, atol=1e-4)
    assert maps.target.tolist() == logits.argmax(dim=1).tolist()


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("composite", ["symmetric_gamma", "epsilon_alpha2_beta1", "guided_backprop"])
def test_one_pass_makes_heatmaps_and_outputs(kind: str, composite: str) -> None:
    model, split = build(kind), images_split(12, signed=True)
    settings = ExplainSettings(composite=composite, batch_size=5)
    before = snapshot(model)
    maps, outputs = explain_split(model, split, settings)
    assert_same(before, snapshot(model))
    assert maps.values.tobytes() == compute_heatmaps(model, split, settings).values.tobytes()
    wanted = collect_outputs(model, split)
    np.testing.assert_allclose(outputs.features, wanted.features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outputs.logits, wanted.logits, rtol=1e-3, atol=1e-4)
    assert (outputs.features.dtype, outputs.logits.dtype) == (np.float32, np.float32)
    assert maps.target.tolist() == outputs.predicted.tolist()


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


def test_a_heatmap_explains_the_class_that_outputs_name_where_two_are_as_good() -> None:
    model, split = nn.Sequential(Double(), *build("plain").double()), images_split(12)
    with torch.no_grad():
        model[-1].weight.copy_(model[-1].weight[:1].expand(3, -1))
        model[-1].bias.copy_(model[-1].bias[0] + torch.tensor([0, 1, 0], dtype=torch.float64) * 1e-12)
    maps, outputs = explain_split(model, split)
    assert outputs.predicted.tolist() == [0] * 12  # in float32, which outputs are kept in, the first of three equals
    assert maps.target.tolist() == outputs.predicted.tolist()


def test_outputs_want_a_model_that_ends_in_a_linear_layer_and_heatmaps_do_not() -> None:
    model, split = nn.Sequential(build("plain"), nn.Softmax(dim=1)), images_split()
    assert compute_heatmaps(model, split).finite.all()
    with pytest.raises(DataError, match=r"must end in a torch\.nn\.Linear"):
        explain_split(model, split)


def test_the_target_is_predicted_true_or_given() -> None:
    model, split = build("plain"), images_split()
    images = split.images.batch(np.arange(7))
    predicted = model.eval()(torch.from_numpy(images)).argmax(dim=1).numpy()
    for target, wanted in (("predicted", predicted), ("true", split.labels), (2, np.full(7, 2))):
        maps = compute_heatmaps(model, split, ExplainSettings(target=target))
        assert maps.target.dtype == np.int64
        assert maps.target.tolist() == wanted.tolist()
        raw = raw_relevance(model, images, wanted)
        np.testing.assert_allclose(maps.values, raw / np.abs(raw).max(axis=(1, 2, 3), keepdims=True), atol=1e-5)


@pytest.mark.parametrize("target", [3, 12])
def test_a_target_outside_the_classes_is_refused(target: int) -> None:
    with pytest.raises(SettingsError, match=rf"explain\.target must be .* a class in \[0, 2\], got {target}"):
        compute_heatmaps(build("plain"), images_split(), ExplainSettings(target=target))


@pytest.mark.parametrize("kind", ["plain", "resnet18"])
@pytest.mark.parametrize("signed", [False, True])
def test_the_batch_size_does_not_change_heatmaps(kind: str, signed: bool) -> None:
    model, split = build(kind), images_split(signed=signed)
    whole = compute_heatmaps(model, split)
    for size in (1, 3, 7):
        parts = compute_heatmaps(model, split, ExplainSettings(batch_size=size))
        np.testing.assert_allclose(parts.values, whole.values, atol=1e-5)
        np.testing.assert_allclose(parts.conservation_error, whole.conservation_error, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "resnet18"])
def test_heatmaps_are_bit_equal_when_computed_twice(kind: str) -> None:
    model, split = build(kind), images_split()
    one, other = compute_heatmaps(model, split), compute_heatmaps(model, split)
    assert one.values.tobytes() == other.values.tobytes()
    assert one.conservation_error.tobytes() == other.conservation_error.tobytes()


def test_heatmaps_are_written_to_the_given_memory_map(tmp_path: Path) -> None:
    def allocate(shape: tuple[int, ...]) -> np.ndarray:
        return np.lib.format.open_memmap(tmp_path / "maps.npy", mode="w+", dtype=np.float32, shape=shape)

    model, split = build("plain"), images_split()
    maps = compute_heatmaps(model, split, ExplainSettings(size=4, batch_size=2), allocate=allocate)
    assert isinstance(maps.values, np.memmap)
    maps.values.flush()
    wanted = compute_heatmaps(model, split, ExplainSettings(size=4, batch_size=2)).values
    np.testing.assert_array_equal(np.load(tmp_path / "maps.npy"), wanted)


def test_a_size_reduces_the_raw_relevance_by_area() -> None:
    model, split = build("plain"), images_split()
    maps = compute_heatmaps(model, split, ExplainSettings(size=3))
    raw = raw_relevance(model, split.images.batch(np.arange(7)), maps.target)
    np.testing.assert_allclose(maps.values, reduce_maps(torch.from_numpy(raw), 3)[0], atol=1e-5)
    assert maps.flat().shape == (7, 27)


def test_a_size_above_the_image_is_refused() -> None:
    with pytest.raises(SettingsError, match="at most the image's side of 8 pixels, got 9"):
        compute_heatmaps(build("plain"), images_split(), ExplainSettings(size=9))


def test_progress_is_told_after_each_batch() -> None:
    told: list[Progress] = []
    compute_heatmaps(build("plain"), images_split(), ExplainSettings(batch_size=3), listen=told.append)
    assert [(p.done, p.total) for p in told] == [(3, 7), (6, 7), (7, 7)]


def test_weights_that_are_not_numbers_are_refused() -> None:
    model = build("plain")
    nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(NumericalError, match=r"all 7 hold NaN or infinity; check the model's weights"):
        compute_heatmaps(model, images_split())


class ByCorner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x[:, :1, :1, :1].abs()


@pytest.fixture
def divided() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(ByCorner(), plain())


def test_an_image_without_finite_relevance_is_stored_as_zeros(divided: nn.Module) -> None:
    whole = images_split(signed=True)
    images = whole.images.batch(np.arange(7))
    images[2] = 0
    maps = compute_heatmaps(divided, array_split(images, whole.labels))
    assert maps.finite.tolist() == [True, True, False, True, True, True, True]
    assert not maps.values[2].any()
    assert not maps.zero.any()
    assert maps.health()["share_not_finite"] == pytest.approx(1 / 7)


@pytest.mark.parametrize("seed", range(3))
def test_an_image_without_finite_relevance_does_not_touch_its_neighbours(divided: nn.Module, seed: int) -> None:
    whole = images_split(signed=True, seed=seed)
    images = whole.images.batch(np.arange(7))
    images[2] = 0
    maps = compute_heatmaps(divided, array_split(images, whole.labels))
    wanted = compute_heatmaps(divided, whole)
    rest = np.arange(7) != 2

    np.testing.assert_allclose(maps.values[rest], wanted.values[rest], atol=1e-5)


def test_all_zero_maps_are_flagged() -> None:
    model = build("plain")
    nn.init.zeros_(model[-1].weight)
    maps = compute_heatmaps(model, images_split())
    assert maps.zero.all()
    assert maps.finite.all()
    assert not maps.values.any()
    np.testing.assert_allclose(maps.conservation_error, 1)


@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_pixels_outside_the_range_are_refused_where_the_rule_needs_it(shift: float) -> None:
    whole = images_split()
    split = array_split(whole.images.batch(np.arange(7)) + np.float32(shift), whole.labels)
    with pytest.raises(DataError, match=r"composite epsilon_gamma_box needs pixels in \[0, 1\], found"):
        compute_heatmaps(build("plain"), split, ExplainSettings(composite="epsilon_gamma_box"))
    assert compute_heatmaps(build("plain"), split).finite.all()


def test_an_unknown_composite_is_refused() -> None:
    with pytest.raises(SettingsError, match="unknown composite 'epsilon'"):
        compute_heatmaps(build("plain"), images_split(), ExplainSettings(composite="epsilon"))


def test_heatmaps_can_be_computed_where_gradients_are_switched_off() -> None:
    model, split = build("plain"), images_split()
    wanted = compute_heatmaps(model, split)
    with torch.no_grad():
        maps = compute_heatmaps(model, split)
    assert np.array_equal(maps.values, wanted.values)


@pytest.mark.parametrize("kind", ["plain", "resnet18"])
def test_bfloat16_heatmaps_are_roughly_those_of_float32(kind: str) -> None:
    model, split = build(kind), images_split()
    settings = ExplainSettings(target="true")
    rough, fine = (compute_heatmaps(model, split, settings, precision=p).flat() for p in ("bf16-true", "32-true"))
    assert rough.dtype == np.float32
    assert np.corrcoef(rough.ravel(), fine.ravel())[0, 1] > 0.95


def test_a_model_in_double_precision_has_the_same_heatmaps() -> None:
    model, split = build("plain"), images_split()
    wanted = compute_heatmaps(model, split).values
    np.testing.assert_allclose(compute_heatmaps(model.double(), split).values, wanted, atol=1e-5)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(SettingsError, match="unknown precision 'bf16'"):
        compute_heatmaps(build("plain"), images_split(), precision="bf16")
