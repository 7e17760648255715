from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from exmap.data import Split, array_split
from exmap.data.dataset import ArrayImages
from exmap.errors import DataError, NumericalError, SettingsError
from exmap.explain import composite_names, compute_heatmaps, explain_split, explainer_names, reduce_maps, rules
from exmap.explain.engine import Call, Engine, propagate
from exmap.model import collect_outputs
from exmap.records import Progress
from exmap.settings import ExplainSettings

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


def residual() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    halve = nn.Sequential(nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
    blocks = BasicBlock(8, 8), BasicBlock(8, 16, stride=2, downsample=halve), Bottleneck(16, 4)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "residual": residual,
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
) -> tuple[np.ndarray, np.ndarray]:
    """Return relevance before reduction, one image at a time in double precision, and its share of the logit."""
    model = copy.deepcopy(model).eval().double()
    made = [
        propagate(model, torch.from_numpy(image[None]).double(), composite=composite, target=int(chosen))
        for image, chosen in zip(images, target, strict=True)
    ]
    share = np.array([float(one.values.sum() / one.explained) for one in made])
    return torch.cat([one.values * one.explained.sign() for one in made]).numpy(), share


def peak_one(raw: np.ndarray) -> np.ndarray:
    return raw / np.abs(raw).max(axis=(1, 2, 3), keepdims=True)


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


@pytest.mark.parametrize(("kind", "composite"), [("residual", "symmetric_gamma"), ("plain", "epsilon_plus")])
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


@pytest.mark.parametrize("kind", ["plain", "residual"])
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
    settings = ExplainSettings(composite=composite, tolerance=10.0)  # some have stabilisers
    maps = compute_heatmaps(build("plain"), images_split(), settings)
    assert maps.values.shape == (7, 3, SIDE, SIDE)
    assert maps.finite.all()
    assert not maps.zero.any()
    assert np.abs(maps.values).max(axis=(1, 2, 3)).tolist() == [1.0] * 7


@pytest.mark.parametrize("explainer", explainer_names())
def test_every_explainer_runs(explainer: str) -> None:
    model, split = build("plain"), images_split()
    before = snapshot(model)
    maps, outputs = explain_split(model, split, ExplainSettings(explainer=explainer, batch_size=4))
    assert_same(before, snapshot(model))
    assert maps.values.shape == (7, 3, SIDE, SIDE)
    assert maps.finite.all()
    assert np.abs(maps.values).max(axis=(1, 2, 3)).tolist() == (1.0 - maps.zero).tolist()  # Grad-CAM cuts negatives
    wanted = collect_outputs(model, split)
    np.testing.assert_allclose(outputs.features, wanted.features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outputs.logits, wanted.logits, rtol=1e-3, atol=1e-4)
    assert maps.target.tolist() == outputs.predicted.tolist()


def test_an_unknown_explainer_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"unknown explainer 'lpr'.*did you mean 'lrp'"):
        compute_heatmaps(build("plain"), images_split(), ExplainSettings(explainer="lpr"))


@pytest.mark.parametrize(("kind", "signed"), [("plain", False), *((kind, True) for kind in NETWORKS)])
def test_heatmaps_shares_and_conservation_error_follow_from_raw_relevance(kind: str, signed: bool) -> None:
    model, split = build(kind), images_split(signed=signed)
    maps = compute_heatmaps(model, split)
    raw, share = raw_relevance(model, split.images.batch(np.arange(len(split))), maps.target)
    np.testing.assert_allclose(maps.values, peak_one(raw), atol=1e-4)
    np.testing.assert_allclose(maps.input_share, share, rtol=1e-2, atol=1e-4)
    assert maps.conservation_error.dtype == np.float32
    assert maps.conservation_error.max() < 1e-3


def test_what_speaks_for_a_negative_logit_is_positive_too() -> None:
    model, split = build("plain"), images_split()
    with torch.no_grad():
        model[-1].bias.fill_(-50)
    maps, outputs = explain_split(model, split)
    assert (outputs.logits < 0).all()
    made = propagate(model.eval(), torch.from_numpy(split.images.batch(np.arange(7))))
    np.testing.assert_allclose(maps.values, peak_one(-made.values.numpy()), atol=1e-5)


OTHERS = [("plain", "guided_backprop"), ("residual", "epsilon_alpha2_beta1")]


@pytest.mark.parametrize(("kind", "composite"), [*((kind, "symmetric_gamma") for kind in NETWORKS), *OTHERS])
def test_one_pass_makes_heatmaps_and_outputs(kind: str, composite: str) -> None:
    model, split = build(kind), images_split(12, signed=True)
    settings = ExplainSettings(composite=composite, batch_size=5, tolerance=10.0)  # some have stabilisers
    before = snapshot(model)
    maps, outputs = explain_split(model, split, settings)
    assert_same(before, snapshot(model))
    assert maps.values.tobytes() == compute_heatmaps(model, split, settings).values.tobytes()
    wanted = collect_outputs(model, split)
    np.testing.assert_allclose(outputs.features, wanted.features, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outputs.logits, wanted.logits, rtol=1e-3, atol=1e-4)
    assert (outputs.features.dtype, outputs.logits.dtype) == (np.float32, np.float32)
    assert maps.target.tolist() == outputs.predicted.tolist()
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(split.images.batch(np.arange(12))))
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-3, atol=1e-4)


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


@pytest.mark.parametrize("end", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1), nn.Sigmoid()])
def test_what_a_model_says_before_a_probability_is_explained(end: nn.Module) -> None:
    plain_model, split = build("plain"), images_split()
    wanted, outputs_wanted = explain_split(plain_model, split)
    maps, outputs = explain_split(nn.Sequential(plain_model, end), split)
    assert np.array_equal(maps.values, wanted.values)
    np.testing.assert_allclose(outputs.logits, outputs_wanted.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs.features, outputs_wanted.features, rtol=1e-5, atol=1e-6)


def test_a_model_without_a_last_linear_layer_has_its_logits_for_features() -> None:
    torch.manual_seed(0)
    model, split = nn.Sequential(plain(), nn.ReLU()), images_split()
    _, outputs = explain_split(model, split)
    assert np.array_equal(outputs.features, outputs.logits)


def test_the_target_is_predicted_true_or_given() -> None:
    model, split = build("plain"), images_split()
    images = split.images.batch(np.arange(7))
    predicted = model.eval()(torch.from_numpy(images)).argmax(dim=1).numpy()
    for target, wanted in (("predicted", predicted), ("true", split.labels), (2, np.full(7, 2))):
        maps = compute_heatmaps(model, split, ExplainSettings(target=target))
        assert maps.target.dtype == np.int64
        assert maps.target.tolist() == wanted.tolist()
        np.testing.assert_allclose(maps.values, peak_one(raw_relevance(model, images, wanted)[0]), atol=1e-4)


def test_the_margin_is_that_of_the_predicted_class_over_the_next() -> None:
    model, split = build("plain"), images_split()
    maps, outputs = explain_split(model, split, ExplainSettings(target="margin"))
    assert maps.target.tolist() == outputs.predicted.tolist()
    images = torch.from_numpy(split.images.batch(np.arange(7)))
    order = np.argsort(-outputs.logits, axis=1)
    one, other = (propagate(model, images, target=torch.from_numpy(order[:, i].copy())).values for i in (0, 1))
    np.testing.assert_allclose(maps.values, peak_one((one - other).numpy()), atol=1e-4)
    assert maps.conservation_error.max() < 1e-3


@pytest.mark.parametrize("target", [3, 12])
def test_a_target_outside_the_classes_is_refused(target: int) -> None:
    with pytest.raises(SettingsError, match=rf"explain\.target must be .* a class in \[0, 2\], got {target}"):
        compute_heatmaps(build("plain"), images_split(), ExplainSettings(target=target))


@pytest.mark.parametrize(("kind", "signed"), [("plain", False), ("residual", True)])
def test_the_batch_size_does_not_change_heatmaps(kind: str, signed: bool) -> None:
    model, split = build(kind), images_split(signed=signed)
    whole = compute_heatmaps(model, split)
    for size in (1, 3, 7):
        parts = compute_heatmaps(model, split, ExplainSettings(batch_size=size))
        np.testing.assert_allclose(parts.values, whole.values, atol=1e-5)
        np.testing.assert_allclose(parts.conservation_error, whole.conservation_error, atol=1e-3)
        np.testing.assert_allclose(parts.input_share, whole.input_share, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "residual"])
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
    raw, _ = raw_relevance(model, split.images.batch(np.arange(7)), maps.target)
    np.testing.assert_allclose(maps.values, reduce_maps(torch.from_numpy(raw), 3)[0], atol=1e-4)
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
    with pytest.raises(DataError, match=r"the weights '0.weight' hold NaN or infinity; load other weights"):
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
    assert not maps.input_share.any()
    np.testing.assert_allclose(maps.conservation_error, 0, atol=1e-6)  # the bias is all of the logit


@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_pixels_outside_the_range_are_refused_where_the_rule_needs_it(shift: float) -> None:
    whole = images_split()
    split = array_split(whole.images.batch(np.arange(7)) + np.float32(shift), whole.labels)
    with pytest.raises(DataError, match=r"composite epsilon_gamma_box needs pixels in \[0, 1\], found"):
        compute_heatmaps(build("plain"), split, ExplainSettings(composite="epsilon_gamma_box"))
    assert compute_heatmaps(build("plain"), split).finite.all()


def test_an_unknown_composite_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"unknown composite 'epsilon_pluss'.*did you mean 'epsilon_plus'"):
        compute_heatmaps(build("plain"), images_split(), ExplainSettings(composite="epsilon_pluss"))


def test_heatmaps_can_be_computed_where_gradients_are_switched_off() -> None:
    model, split = build("plain"), images_split()
    wanted = compute_heatmaps(model, split)
    with torch.no_grad():
        maps = compute_heatmaps(model, split)
    assert np.array_equal(maps.values, wanted.values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_half_precision_has_the_heatmaps_of_a_float32_model_of_its_weights(dtype: torch.dtype) -> None:
    model, split = build("plain").to(dtype), images_split()
    maps = compute_heatmaps(model, split)
    assert all(p.dtype == dtype for p in model.parameters())
    wanted = compute_heatmaps(copy.deepcopy(model).float(), split).values
    np.testing.assert_allclose(maps.values, wanted, atol=1e-2)  # the images are rounded to the model's kind


def test_a_model_in_double_precision_has_the_same_heatmaps() -> None:
    model, split = build("plain"), images_split()
    wanted = compute_heatmaps(model, split).values
    np.testing.assert_allclose(compute_heatmaps(model.double(), split).values, wanted, atol=1e-5)


# --- by channel, and the check of the first images ----------------------------------------------------------------


def test_relevance_by_channel_of_an_inner_layer_is_kept() -> None:
    model, split = build("residual"), images_split(signed=True)
    maps = compute_heatmaps(model, split, ExplainSettings(layer="2", batch_size=3))
    images = torch.from_numpy(split.images.batch(np.arange(7)))
    made = propagate(model, images, layers=["2"])
    vectors = (made.layers["2"].sum(dim=(2, 3)) * made.explained.sign()[:, None]).numpy()
    np.testing.assert_allclose(maps.channels, vectors / np.abs(vectors).max(axis=1, keepdims=True), atol=1e-4)
    assert maps.check["layer"] == "2"


def test_the_layer_is_chosen_at_three_quarters_of_the_depth_or_none_is_kept() -> None:
    split = images_split()
    maps = compute_heatmaps(build("residual"), split)
    assert maps.check["layer"].startswith("2")  # after seven of nine linear maps; the next block after all but one
    assert maps.channels.shape == (7, 16)
    assert np.abs(maps.channels).max(axis=1) == pytest.approx(np.ones(7))
    none = compute_heatmaps(build("plain"), split, ExplainSettings(layer="none"))
    assert none.channels is None
    assert none.check["layer"] is None


def test_the_first_images_are_checked_and_the_record_says_so() -> None:
    maps = compute_heatmaps(build("plain"), images_split())
    assert maps.check["explainer"] == "lrp"
    assert maps.check["composite"] == "symmetric_gamma"
    assert maps.check["images"] == 4
    assert maps.check["error"] < 1e-4
    other = compute_heatmaps(build("plain"), images_split(), ExplainSettings(explainer="occlusion"))
    assert other.check["explainer"] == "occlusion"


def test_relevance_that_does_not_add_up_is_refused_with_what_breaks_it_unless_that_is_allowed() -> None:
    usual = rules.RULES["relu"]
    try:

        @rules.rule("wrong", "relu")
        def _wrong(call: Call, engine: Engine) -> object:
            output = call.run()
            output.register_hook(lambda g: 3 * g)
            return output

        with pytest.raises(NumericalError, match=r"must add up to the logit within 0\.001 .* relu \(rule: wrong\)"):
            compute_heatmaps(build("plain"), images_split())
        maps = compute_heatmaps(build("plain"), images_split(), ExplainSettings(tolerance=1e6))
        assert maps.check["error"] > 1e-3
        assert maps.conservation_error.max() > 1e-3
    finally:
        rules.RULES["relu"] = usual


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_images_or_none(n: int) -> None:
    whole = images_split()
    split = array_split(whole.images.array[:n], whole.labels[:n], class_names=whole.class_names)
    maps = compute_heatmaps(build("plain"), split)
    assert maps.values.shape == (n, 3, SIDE, SIDE)
    if n:
        assert len(explain_split(build("plain"), split)[1].logits) == n


# --- by the plain gradient: of a linear model it can be written down ----------------------------------------------


def linear_model(side: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 3)).eval()


@pytest.mark.parametrize("explainer", ["gradient_x_input", "lrp"])
@pytest.mark.parametrize("target", ["predicted", "true", 2])
def test_of_a_linear_model_relevance_is_the_input_times_the_weights(target: str | int, explainer: str) -> None:
    model, rng = linear_model(), np.random.default_rng(0)
    split = array_split(rng.random((7, 3, 4, 4)).astype(np.float32), np.arange(7) % 3)
    settings = ExplainSettings(target=target, batch_size=2, explainer=explainer, composite="epsilon")
    maps, outputs = explain_split(model, split, settings)
    chosen = {"predicted": outputs.predicted, "true": split.labels}.get(str(target), np.full(7, 2))
    products = split.images.array.reshape(7, -1) * model[1].weight.detach().numpy()[chosen]
    products *= np.sign(outputs.logits[np.arange(7), chosen])[:, None]
    np.testing.assert_allclose(maps.flat(), products / np.abs(products).max(axis=1, keepdims=True), atol=1e-6)
    reduced = compute_heatmaps(model, split, ExplainSettings(size=2, explainer=explainer))
    assert reduced.flat().shape == (7, 12)
    np.testing.assert_allclose(np.abs(reduced.flat()).max(axis=1), 1, atol=1e-6)
