"""What a model returns and is wrapped in."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from own_classifiers import WRAPPERS, ends_in, linear
from torch import nn
from torch.overrides import TorchFunctionMode

from exmap.errors import DataError
from exmap.model import check_differentiable, logits_of, unwrapped

Z = torch.tensor([[1.0, 2.0, 4.0], [3.0, 2.0, 1.0]])
Outputs = namedtuple("Outputs", ["logits", "aux_logits"])


@pytest.mark.parametrize(
    "output",
    [
        Z,
        (Z,),
        [Z, None],
        (Z, torch.ones(()), [Z]),
        {"logits": Z, "features": Z},
        {"scores": Z, "loss": torch.ones(2), "maps": torch.ones(2, 3, 4, 4)},
        SimpleNamespace(logits=Z, hidden=Z),
        Outputs(Z, Z),
        Z[:, :, None, None],
        (Z[:, None], torch.ones(2, dtype=torch.int64)),
    ],
)
def test_logits_are_found_in_what_a_model_returns(output: Any) -> None:
    assert torch.equal(logits_of(output), Z)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1, 1)])
def test_one_logit_becomes_two_of_the_same_probability(shape: tuple[int, ...]) -> None:
    z = torch.tensor([3.0, -0.5])
    logits = logits_of({"out": z.reshape(shape)})
    assert torch.allclose(logits.softmax(dim=1)[:, 1], z.sigmoid())
    assert logits.argmax(dim=1).tolist() == [1, 0]


def test_one_image_may_have_lost_its_dimension() -> None:
    assert torch.equal(logits_of(Z[0], 1), Z[:1])
    assert torch.equal(logits_of(torch.tensor(2.0), 1), torch.tensor([[-1.0, 1.0]]))
    assert logits_of(Z[0]).shape == (3, 2)


def test_logits_keep_their_gradient_and_any_mode_is_obeyed() -> None:
    class Counts(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    z = torch.ones(2, requires_grad=True)
    with Counts() as counts:
        logits = logits_of((z * 1,))
    assert counts.calls > 0
    assert torch.autograd.grad(logits[:, 1].sum(), z)[0].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ((Z, Z), r"tuple of \[0\] \(2, 3\).* of which 2 could be the logits; .* under the name logits"),
        ({"a": Z, "b": Z[:, :2]}, "dict of a .* 2 could be"),
        (Z.argmax(1), "shape .2,. and kind torch.int64"),
        (torch.ones(2, 3, 4, 4), r"shape \(2, 3, 4, 4\)"),
        (None, "found NoneType"),
        ("text", "found str"),
        ({"loss": torch.ones(())}, "dict of loss"),
    ],
)
def test_what_is_no_logits_is_named(output: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        logits_of(output)


def test_rows_must_be_images() -> None:
    with pytest.raises(DataError, match="for 3 images"):
        logits_of(Z, 3)


def test_wrappers_come_off_and_stay_as_they_are() -> None:
    model = ends_in(linear())()
    wrapped = model
    for wrap in WRAPPERS.values():
        wrapped = wrap(wrapped)
    assert isinstance(unwrapped(wrapped), nn.Sequential)
    assert unwrapped(model) is model
    assert unwrapped(WRAPPERS["compiled"](nn.DataParallel(model))) is model
    own = nn.Module()
    own.module = model
    assert unwrapped(own) is model  # without a forward of its own
    check_differentiable(WRAPPERS["compiled"](model))


@pytest.mark.filterwarnings("ignore")
def test_what_has_no_gradients_is_refused_with_what_to_give() -> None:
    model = ends_in(linear())().eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    Session = type("InferenceSession", (), {"__module__": "onnxruntime.capi"})
    for given, words in (
        (torch.jit.script(model), "scripted model .* give the model it was scripted from, or .*occlusion"),
        (torch.jit.trace(model, torch.zeros(1, 3, 16, 16)), "scripted model"),
        (nn.Sequential(torch.jit.script(model)), "scripted model .*its module '0'"),
        (nn.DataParallel(quantised), "quantised model .* the floating-point model it was quantised from"),
        (Session(), "a model of onnxruntime .* the torch model it was exported from"),
        (lambda x: x, "must be a torch.nn.Module"),
    ):
        with pytest.raises(DataError, match=words):
            check_differentiable(given)
