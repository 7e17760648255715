"""`check_model`: it passes what is right, and names the first operation that is not."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import exmap
from exmap import check_model
from exmap.errors import DataError
from exmap.explain import rules
from exmap.explain.check import ModelCheck
from exmap.explain.engine import Call, Engine
from exmap.explain.rules import RULES


def images(n: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Small(nn.Module):
    """A stem, whatever `block` does with its maps, positions averaged, a head."""

    def __init__(self, block: Callable[[Any, Tensor], Tensor] | None = None, **parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU()
        self.head, self.block = nn.Linear(6, 4), block
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        y = self.act(self.norm(self.stem(x)))
        y = y if self.block is None else self.block(self, y)
        return self.head(y.mean(dim=(2, 3)) if y.ndim == 4 else y.mean(dim=1))


def line_of(function: Callable[..., Any], text: str) -> str:
    """Return ``file:line`` of the first line of a function that holds a text."""
    lines, start = inspect.getsourcelines(function)
    return f"test_check_model.py:{start + next(i for i, line in enumerate(lines) if text in line)}"


@pytest.fixture(scope="module")
def right() -> ModelCheck:
    return check_model(Small(), images())


def test_a_model_that_is_explained_right_passes(right: ModelCheck) -> None:
    assert right.passed
    assert right.reasons == ()
    assert right.first_break is None
    assert right.exact
    assert right.error < 1e-12
    assert right.error_float32 < 1e-4
    assert right.logits_difference < 1e-5
    assert right.alone_difference < 1e-4
    assert right.composite == "symmetric_gamma"
    assert right.cost > 0
    assert right.memory > 0
    assert right.memory_per_image > 0


def test_shares_of_input_and_constants_are_the_logit(right: ModelCheck) -> None:
    assert right.input_share.shape == (4,)
    assert float(right.input_share.mean()) + sum(right.shares.values()) == pytest.approx(1, abs=1e-9)
    assert right.shares["biases"] != 0
    assert right.shares["tokens and positions"] == 0


def test_tokens_and_positions_have_a_share_of_their_own() -> None:
    class WithPositions(Small):
        def __init__(self) -> None:
            super().__init__(lambda s, y: y.flatten(2).mT + s.positions)
            self.positions = nn.Parameter(torch.randn(1, 64, 6))

    found = check_model(WithPositions(), images(2))
    assert found.passed
    assert found.shares["tokens and positions"] != 0


def test_it_lists_each_operation_with_its_rule_and_how_often(right: ModelCheck) -> None:
    table = {row.name: (row.rule, row.count) for row in right.operations}
    assert table == {
        "conv2d": ("linear map", 1), "batch_norm": ("affine map", 1), "gelu": ("passed on", 1),
        "mean": ("gradient", 1), "linear": ("linear map", 1),
    }  # fmt: skip


def test_it_prints_well(right: ModelCheck) -> None:
    rows = str(right).splitlines()
    assert rows[0] == "The model is explained right."
    names = ("sum of relevance", "share of the logit", "logits", "alone, in a batch", "cost", "rules")
    for row, name in zip(rows[1:7], names, strict=True):
        assert row.startswith(name)
    assert "conv2d" in rows[7]
    assert max(map(len, rows)) < 120


@pytest.fixture
def wrong_gelu() -> Iterator[None]:
    usual = RULES["gelu"]

    @rules.rule("wrong", "gelu")
    def _wrong(call: Call, engine: Engine) -> Any:
        return call.run()

    yield
    RULES["gelu"] = usual


@pytest.mark.usefixtures("wrong_gelu")
def test_the_first_operation_with_a_wrong_rule_is_named_with_module_and_line() -> None:
    model = Small(lambda s, y: s.later(y), later=nn.Sequential(nn.ReLU(), nn.GELU()))
    found = check_model(model, images())
    assert not found.passed
    assert found.first_break is not None
    assert (found.first_break.operation, found.first_break.rule, found.first_break.module) == ("gelu", "wrong", "act")
    assert found.first_break.line == line_of(Small.forward, "self.act(")
    assert found.first_break.error > 1e-6
    said = str(found)
    assert "The model is not explained right." in said
    assert "gelu (rule: wrong) in module 'act', test_check_model.py:" in said
    assert "occlusion" in said


@pytest.mark.usefixtures("wrong_gelu")
def test_the_break_is_found_in_nested_modules_and_functions() -> None:
    def block(s: Any, y: Tensor) -> Tensor:
        return y + F.gelu(
            y,
        )

    class Plain(Small):
        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(self.norm(self.stem(x)))
            return self.head(y.mean(dim=(2, 3)))

    found = check_model(Plain(inner=nn.Sequential(nn.ReLU(), nn.Sequential(nn.GELU(), nn.ReLU()))), images(2))
    assert found.first_break is not None
    assert found.first_break.module == "inner.1.0"
    own = Small(block)
    own.act = nn.ReLU()
    found = check_model(own, images(2))
    assert found.first_break is not None
    assert found.first_break.module in ("", "the model itself")
    assert found.first_break.line == line_of(block, "F.gelu(")


@pytest.mark.usefixtures("wrong_gelu")
def test_a_view_that_is_an_attribute_before_the_break_is_not_blamed() -> None:
    model = Small(lambda s, y: F.gelu(y.flatten(2).mT.relu()))
    model.act = nn.ReLU()
    found = check_model(model, images(2))
    assert found.first_break is not None
    assert found.first_break.operation == "gelu"


@pytest.mark.usefixtures("wrong_gelu")
@pytest.mark.parametrize("before", [
    lambda s, y: y.add_(1).relu_(), lambda s, y: torch.cat([y, y], dim=2).chunk(2, dim=2)[0],
    lambda s, y: y * torch.sigmoid(y), lambda s, y: (y[:, :2].mul_(2), y)[1], lambda s, y: y / y.norm(),
    lambda s, y: F.layer_norm(y, (8, 8)), lambda s, y: F.max_pool2d(y, 2),
], ids=["in place", "cat and chunk", "gate", "view in place", "norm", "layer norm", "pooling"])  # fmt: skip
def test_what_comes_before_the_break_is_not_blamed(before: Callable[[Any, Tensor], Tensor]) -> None:
    model = Small(lambda s, y: F.gelu(before(s, y)))
    model.act = nn.Identity()
    found = check_model(model, images(2))
    assert found.first_break is not None
    assert (found.first_break.operation, found.first_break.rule) == ("gelu", "wrong")


def test_an_lstm_is_named() -> None:
    model = Small(lambda s, y: s.lstm(y.flatten(2).transpose(1, 2))[0], lstm=nn.LSTM(6, 6, batch_first=True))
    found = check_model(model, images(2))
    assert not found.passed
    assert found.first_break is not None
    assert (found.first_break.operation, found.first_break.module) == ("lstm", "lstm")


def curve(x: Tensor) -> Tensor:
    return x * torch.tanh(x) + 0.5


def without_warning(make: Callable[..., Any], *args: Any) -> Any:
    """Call torch.jit, which says that it is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args)


def test_a_scripted_function_is_found_though_it_cannot_be_seen() -> None:
    scripted = without_warning(torch.jit.script, curve)

    def block(s: Any, y: Tensor) -> Tensor:
        y = scripted(y)
        return y.relu()

    found = check_model(Small(block), images(2))
    assert not found.passed
    assert found.first_break is not None
    assert "cannot be seen" in found.first_break.rule
    assert found.first_break.line == f"before {line_of(block, 'y.relu()')}"


def test_an_operation_without_a_rule_is_named() -> None:
    model = Small(lambda s, y: torch.linalg.inv(y[:, :, :6, :6] + 9 * torch.eye(6)))
    found = check_model(model, images(2))
    assert not found.passed
    assert found.first_break is not None
    assert found.first_break.operation == "linalg_inv"
    assert "no rule known" in found.first_break.rule


def test_a_model_that_looks_at_the_whole_batch_is_told() -> None:
    found = check_model(Small(lambda s, y: y - 0.5 * y.mean(dim=0)), images())
    assert not found.passed
    assert found.alone_difference > 0.01
    assert any("depends on the batch it is in" in reason for reason in found.reasons)
    assert not any("float64" in reason for reason in found.reasons)
    single = check_model(Small(lambda s, y: y - 0.5 * y.mean(dim=0)), images(1))
    assert single.alone_difference == 0


@pytest.mark.parametrize("block", [
    lambda s, y: F.dropout(y, 0.5), lambda s, y: y + 0.1 * torch.randn(1),
], ids=["dropout", "noise"])  # fmt: skip
def test_outputs_that_change_from_call_to_call_are_told(block: Callable[[Any, Tensor], Tensor]) -> None:
    with pytest.raises(DataError, match="from call to call"):
        check_model(Small(block), images())


def test_logits_that_are_not_numbers_are_told() -> None:
    with pytest.raises(DataError, match="logits must be finite"):
        check_model(Small(lambda s, y: y * torch.nan), images())


ENDS: dict[str, Callable[[Tensor], Any]] = {
    "softmax": lambda z: z.softmax(dim=1), "log_softmax": lambda z: z.log_softmax(dim=1), "sigmoid": torch.sigmoid,
    "log of softmax": lambda z: z.softmax(dim=1).log(), "exp of log_softmax": lambda z: z.log_softmax(dim=1).exp(),
    "tuple": lambda z: (z, z.sum()), "dict": lambda z: {"logits": z}, "one logit": lambda z: z[:, 0],
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_every_ending_passes(end: str) -> None:
    class Ended(Small):
        def forward(self, x: Tensor) -> Any:
            return ENDS[end](super().forward(x))

    found = check_model(Ended(), images(2))
    assert found.passed, found.reasons


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_in_other_kinds_of_numbers_pass(dtype: torch.dtype) -> None:
    model = Small().to(dtype)
    for x in (images(2), images(2).to(dtype)):
        found = check_model(model, x)
        assert found.passed, found.reasons
        assert found.exact
    assert model.stem.weight.dtype == dtype


def test_images_may_be_an_array_and_the_first_eight_are_used() -> None:
    found = check_model(Small(), images(12).numpy())
    assert len(found.input_share) == 8
    assert check_model(Small(), images(12).double().numpy()).passed


@pytest.mark.parametrize("composite", ["epsilon", "attnlrp", exmap.explain.make_composite("attention_gamma")])
@pytest.mark.parametrize("target", ["margin", 2])
def test_composite_and_target_can_be_chosen(composite: Any, target: Any) -> None:
    found = check_model(Small(), images(2), composite=composite, target=target)
    assert found.passed, found.reasons
    assert found.composite == getattr(composite, "name", composite)


def test_a_composite_with_stabilisers_passes_with_a_tolerance() -> None:
    assert not check_model(Small(), images(2), composite="epsilon_alpha2_beta1").passed
    assert check_model(Small(), images(2), composite="epsilon_alpha2_beta1", tolerance=10.0).passed


def test_a_wrapped_model_is_looked_at_inside() -> None:
    for wrapped in (nn.DataParallel(Small()), torch.optim.swa_utils.AveragedModel(Small())):
        assert check_model(wrapped, images(2)).passed


def test_a_model_that_cannot_be_copied_is_checked_as_it_is() -> None:
    class Stubborn(Small):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("no copies")

    found = check_model(Stubborn(), images(2))
    assert found.passed, found.reasons
    assert not found.exact
    assert "the model's own precision" in str(found)


def test_a_model_that_fixes_its_kind_of_numbers_is_checked_in_it() -> None:
    class Fixed(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) @ torch.eye(4)

    found = check_model(Fixed(), images(2))
    assert found.passed, found.reasons
    assert not found.exact


def test_the_model_its_gradients_and_the_images_stay_as_they_were() -> None:
    model = Small().train()
    model.stem.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags, x = [p.requires_grad for p in model.parameters()], images()
    given = x.clone()
    check_model(model, x)
    assert torch.equal(x, given)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(module.training for module in model.modules())
    assert torch.equal(model.head.bias.grad, torch.ones(4))
    assert all(p.grad is None for p in model.parameters() if p is not model.head.bias)
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.usefixtures("wrong_gelu")
def test_the_model_stays_as_it_was_where_a_break_is_found() -> None:
    model = Small().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_model(model, images(2))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("given", "said"), [
    (torch.zeros(0, 3, 8, 8), r"images must be .* shape \(n, C, H, W\) with n at least 1, got \(0, 3, 8, 8\)"),
    (torch.zeros(3, 8, 8), r"images must be .* got \(3, 8, 8\)"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "images must be an array of floating-point numbers .*uint8"),
    (np.zeros((2, 3, 8, 8), dtype=np.int64), "images must be an array of floating-point numbers .*int64"),
    (torch.full((2, 3, 8, 8), torch.nan), "images must be finite"),
    (torch.full((2, 3, 8, 8), torch.inf), "images must be finite"),
    ("a path", "images must be an array"), (None, "images must be an array"), ([1, 2], "images must be an array"),
    (torch.zeros(2, 1, 8, 8), "the model failed on images of shape .* give images with 3 channels"),
])  # fmt: skip
def test_images_that_cannot_be_used_are_refused_in_a_sentence(given: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_model(Small(), given)


def test_a_size_that_the_model_cannot_take_is_refused_in_a_sentence() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), nn.Linear(4 * 16, 3))
    with pytest.raises(DataError, match="the model failed on images of shape"):
        check_model(model, torch.zeros(2, 3, 4, 4))
    with pytest.raises(DataError, match="the model failed on images of shape"):
        check_model(model, torch.zeros(2, 3, 9, 9))


def test_a_model_that_overwrites_what_its_gradient_needs_is_refused_in_a_sentence() -> None:
    """It can be run, but not trained: no way by gradients explains it."""

    def block(s: Any, y: Tensor) -> Tensor:
        z = torch.sigmoid(y)
        y = z.sqrt()
        y.mul_(z.mean())
        return y + s.stem.weight.mean() * y.exp_()

    with pytest.raises(DataError, match="in place"):
        check_model(Small(block), images(2))


@pytest.mark.parametrize("model", ["traced", "a path", lambda x: x])
def test_a_model_without_gradients_is_refused_with_the_remedy(model: Any) -> None:
    if model == "traced":
        model = without_warning(torch.jit.trace, nn.Flatten(), images(1))
    with pytest.raises(DataError, match="explainer='occlusion'"):
        check_model(model, images(2))
