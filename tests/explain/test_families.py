"""Every kind of classifier in `families.py`: relevance of the input plus that of constants is the logit."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from exmap.errors import ExMapError
from exmap.explain.engine import propagate
from exmap.explain.rules import COMPOSITES
from families import FAMILIES, PACKAGES, Family, images_for, trained_like


def named(verdict: str) -> list[Any]:
    """Return the families of a verdict; the very large ones are for the tier of tests that takes long."""
    chosen = [family for family in FAMILIES.values() if family.verdict == verdict]
    return [pytest.param(f.name, marks=[pytest.mark.long] if f.heavy else []) for f in chosen]


EXACT, FLAGGED = named("exact"), named("flagged")
DIMENSIONS = (1, 2, 3)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def as_made(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a network of a family with random weights, as its package makes it."""
    family = FAMILIES[name]
    if family.source != "own":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(PACKAGES[family.source])
    return family.build(seed=0).to(dtype)


def built(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a network of a family with weights and statistics of a trained one's kind."""
    return trained_like(as_made(name, dtype), images_for(FAMILIES[name], 6, seed=1, dtype=dtype))


BY_VALUE = ("own/routed tokens",)  # rows of the batch are picked by values: constants are not told apart by image


def explain(model: nn.Module, images: torch.Tensor, composite: str = "epsilon") -> Any:
    return propagate(model, images, composite=composite, target="predicted")


def shares(found: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return found.values.double().sum(dim=DIMENSIONS), found.constants.double()


def assert_conserved(found: Any, tolerance: float) -> None:
    """The input's share plus the constants' is the explained logit, to a share of the larger of the two."""
    inputs, constants = shares(found)
    assert found.values.isfinite().all()
    assert found.constants.isfinite().all()
    distance = (inputs + constants - found.explained.double()).abs()
    largest = torch.maximum(inputs.abs(), constants.abs())
    assert (distance <= tolerance * largest + 1e-30).all(), f"off by {float((distance / largest).max()):.2g} of it"


def assert_explained(family: Family, model: nn.Module, images: torch.Tensor, found: Any, tolerance: float) -> None:
    """What is explained is what the network says outside: its logits, and the largest of them."""
    logits = family.logits(model, images).double()
    scale = float(logits.abs().max()) + 1e-30
    if family.name == "own/one logit":  # classes 0 and 1 have -z / 2 and z / 2, or none and z
        wanted = family.logits(model, images)[:, 1].abs() * 2
        ratio = found.explained.double().abs() / wanted
        assert torch.allclose(ratio, ratio.new_tensor(0.5), atol=tolerance) or torch.allclose(
            ratio, ratio.new_tensor(1.0), atol=tolerance
        )
        return
    assert found.target.tolist() == logits.argmax(dim=1).tolist()
    assert (found.explained.double() - logits.amax(dim=1)).abs().max() <= tolerance * scale
    assert (found.logits.double() - logits).abs().max() <= tolerance * scale


@pytest.mark.parametrize("name", EXACT)
def test_input_and_constants_are_the_logit(name: str) -> None:
    """In double precision, with nothing left at zero or one; and an image alone has the relevance it has in a batch."""
    family, model = FAMILIES[name], built(name)
    images = images_for(family, 1 if name in BY_VALUE else 3, seed=2, dtype=torch.float64)
    found = explain(model, images)
    assert found.values.shape == images.shape
    assert_conserved(found, 1e-6)
    assert_explained(family, model, images, found, 1e-9)
    if len(images) == 1:
        return
    alone = explain(model, images[1:2])
    assert (found.values[1] - alone.values[0]).abs().max() <= 1e-6 * found.values[1].abs().max()
    largest = float(torch.stack([part.abs()[1] for part in shares(found)]).max())
    assert abs(float(found.constants[1]) - float(alone.constants[0])) <= 1e-6 * largest


@pytest.mark.parametrize("name", EXACT)
def test_a_new_network_in_single_precision_is_explained_and_left_alone(name: str) -> None:
    """By the symmetric gamma rule, with the zeros and ones that a new network has."""
    family, model = FAMILIES[name], as_made(name, torch.float32)
    images = images_for(family, 1 if name in BY_VALUE else 2, seed=2)
    found = assert_left_alone(family, model, images)
    assert found.values.dtype == torch.float32
    assert_conserved(found, 1e-3)


def state(model: nn.Module) -> dict[str, Any]:
    """Return everything about a network that a user could find changed."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    modules = dict(model.named_modules())
    return {
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: p.grad is None for name, p in model.named_parameters()},
        "identities": {name: id(p) for name, p in [*model.named_parameters(), *model.named_buffers()]},
        "modes": {name: m.training for name, m in modules.items()},
        "hooks": {name: [list(getattr(m, hook)) for hook in hooks] for name, m in modules.items()},
        "attributes": {name: sorted(vars(m)) for name, m in modules.items()},
        "classes": {name: (type(m), type(m).forward) for name, m in modules.items()},
    }


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in [*model.named_parameters(), *model.named_buffers()]}


def assert_untouched(model: nn.Module, before: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    assert state(model) == before
    for name, tensor in weights_of(model).items():
        assert torch.equal(tensor, weights[name]), name


def assert_left_alone(family: Family, model: nn.Module, images: torch.Tensor) -> Any:
    """Explain by the symmetric gamma rule; network and images stay bit for bit, a third of the parameters frozen."""
    given, parameters = images.clone(), [p for p in model.parameters() if p.is_leaf and p.is_floating_point()]
    flags = [p.requires_grad for p in parameters]
    for k, parameter in enumerate(parameters):
        parameter.requires_grad_(k % 3 != 0)
    before, weights, logits = state(model), weights_of(model), family.logits(model, images)
    found = None
    try:
        found = explain(model, images, "symmetric_gamma")
        assert found.values.isfinite().all()
        assert_explained(family, model, images, found, 1e-4 if family.verdict == "exact" else 1e-2)
    except ExMapError:
        assert family.verdict == "flagged"
    finally:
        assert_untouched(model, before, weights)
        assert torch.equal(images, given)
        assert images.requires_grad is False
        assert torch.equal(family.logits(model, images), logits)
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
    return found


@pytest.mark.parametrize("name", FLAGGED)
def test_a_network_without_a_rule_stays_as_it_was(name: str) -> None:
    family = FAMILIES[name]
    assert_left_alone(family, built(name, torch.float32), images_for(family, 2, seed=2))


@pytest.mark.parametrize("name", FLAGGED)
def test_what_has_no_rule_is_refused_or_its_error_is_seen(name: str) -> None:
    """Nobody promises a sum here, but a figure that is off has to be known to be off."""
    from exmap import check_model

    family, model = FAMILIES[name], built(name)
    images = images_for(family, 2, seed=2, dtype=torch.float64)
    try:
        found = explain(model, images)
    except ExMapError:
        return
    inputs, constants = shares(found)
    distance = (inputs + constants - found.explained).abs() / torch.maximum(inputs.abs(), constants.abs())
    assert check_model(model, images).passed == bool((distance <= 1e-6).all())


MODES = ("torchvision/resnet18", "torchvision/convnext_tiny", "own/TransformerEncoderLayer", "own/BatchNorm2d")


@pytest.mark.parametrize("name", MODES)
def test_a_network_left_in_training_mode_is_explained_in_evaluation_mode_and_put_back(name: str) -> None:
    family = FAMILIES[name]
    model = trained_like(family.build(seed=1), images_for(family, 6, seed=1))
    images = images_for(family, 2, seed=2)
    wanted = explain(model, images)
    model.train()
    next(m for m in model.modules() if not list(m.children())).eval()
    before, weights = state(model), weights_of(model)
    found = explain(model, images)
    assert_untouched(model, before, weights)
    assert torch.equal(found.values, wanted.values)


@pytest.mark.parametrize("name", ["own/y += x", "timm/vit_tiny", "transformers/swin"])
def test_under_no_grad_and_inference_mode_it_is_the_same(name: str) -> None:
    family, model = FAMILIES[name], built(name)
    images = images_for(family, 2, seed=2, dtype=torch.float64)
    wanted = explain(model, images)
    with torch.no_grad():
        assert torch.equal(explain(model, images).values, wanted.values)
    with torch.inference_mode():
        found = explain(model, images_for(family, 2, seed=2, dtype=torch.float64))
    assert torch.equal(found.values, wanted.values)


OTHERS = (
    "torchvision/vit_b_16", "timm/resnet18", "timm/nf_resnet", "transformers/swin", "transformers/convnext",
    "own/slices in place", "own/padding same", "own/old weight norm",
)  # fmt: skip


@pytest.fixture(scope="module", params=OTHERS)  # of the module: pytest then runs all composites of a network together
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    """Return a network, and images for it with pixels in [0, 1], for which the box rule is."""
    name = request.param
    return built(name, torch.float32), (images_for(FAMILIES[name], 2, seed=2) / 8 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("composite", sorted(COMPOSITES))
def test_every_composite_runs_on_every_kind_and_stays_finite(
    network: tuple[nn.Module, torch.Tensor], composite: str
) -> None:
    found = explain(*network, composite)
    assert found.values.isfinite().all()
    assert found.values.abs().sum() > 0


def additive(model: nn.Module) -> list[nn.Parameter]:
    """Return what a network adds: biases, tokens, positions."""
    words = ("bias", "token", "pos_embed", "position")
    kept = ("relative", "table")  # inside a softmax, which is held constant
    return [
        p for name, p in model.named_parameters()
        if any(word in name for word in words) and not any(word in name for word in kept)
    ]  # fmt: skip


BARE = (
    "torchvision/resnet18", "torchvision/densenet121", "torchvision/convnext_tiny", "torchvision/vit_b_16",
    "torchvision/swin_t", "timm/resnet50d", "timm/vit_tiny", "timm/mixer", "timm/poolformer", "transformers/vit",
    "transformers/convnext", "transformers/dinov2", "own/attention: einsum", "own/MLP: SwiGLU",
    "own/squeeze-excitation", "own/GroupNorm", "own/TransformerEncoderLayer, norm first",
    "own/MultiheadAttention: batch first", "own/RMSNorm",
)  # fmt: skip


@pytest.mark.parametrize("name", BARE)
def test_without_anything_added_the_input_holds_all_of_the_logit(name: str) -> None:
    """Or else the sum could be right because what is missing is called a constant's."""
    family = FAMILIES[name]
    if family.source != "own":
        pytest.importorskip(PACKAGES[family.source])
    images = images_for(family, 6, seed=1, dtype=torch.float64)
    model = trained_like(family.build(seed=0).double(), images)
    with torch.no_grad():
        for parameter in additive(model):
            parameter.zero_()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.zero_()
    found = explain(model, images[:3])
    assert (shares(found)[0] - found.explained).abs().max() <= 1e-6 * found.explained.abs().max()
    assert found.constants.abs().max() <= 1e-6 * found.explained.abs().max()


def test_the_predicted_class_is_explained_or_the_one_asked_for() -> None:
    family = FAMILIES["own/x + f(x)"]
    model, images = family.build(seed=0).double(), images_for(family, 3, dtype=torch.float64)
    logits = family.logits(model, images)
    for target in (2, torch.tensor([0, 4, 1])):
        found = propagate(model, images, composite="epsilon", target=target)
        wanted = torch.as_tensor(target).expand(3)
        assert found.target.tolist() == wanted.tolist()
        assert torch.allclose(found.explained, logits.gather(1, wanted[:, None])[:, 0])
        assert_conserved(found, 1e-9)
    margin = propagate(model, images, composite="epsilon", target="margin")
    top = logits.topk(2, dim=1).values
    assert torch.allclose(margin.explained, top[:, 0] - top[:, 1])
    assert_conserved(margin, 1e-9)
