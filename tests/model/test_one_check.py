"""One check of a classifier against a split, whoever runs it: nothing it gets wrong goes on without a word."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from own_classifiers import D, Own, vectors, with_linear
from torch import nn

import exmap
from exmap.data import Split, array_split
from exmap.errors import DataError
from exmap.explain import compute_heatmaps, explain_split
from exmap.model import check_fits, check_inputs, collect_outputs
from exmap.model.running import evaluation_mode
from exmap.records import Groups
from exmap.settings import TrainSettings

ONE_EPOCH = TrainSettings(epochs=1, batch_size=8, select="last")


def split_of(n: int = 24, classes: int = 3, *, bad: list[int] | None = None) -> Split:
    images = np.random.default_rng(5).random((n, 3, 16, 16), dtype=np.float32)
    images[bad or [], 1, 2, 3] = np.nan
    return array_split(images, np.arange(n) % classes, class_names=[f"class {c}" for c in range(classes)])


def classes_of(split: Split) -> Groups:
    return Groups(split.labels, split.class_names, "classes", ("class labels",), classes=tuple(range(split.n_classes)))


def linear(out: int = 3) -> nn.Module:
    return with_linear(lambda own, x: own.fc(own.body(x)), out)().eval()


RUNS: dict[str, Callable[[nn.Module, Split], Any]] = {
    "evaluate": exmap.evaluate,
    "ExMap": lambda model, split: exmap.ExMap(n_clusters=2).infer(model, split),
    "GEORGE": lambda model, split: exmap.GEORGE(n_clusters=2).infer(model, split),
    "DFR": lambda model, split: exmap.DFR(strengths=(1.0,), subsamples=1).fit(model, split, classes_of(split)),
    "SUBG": lambda model, split: exmap.SUBG(train=ONE_EPOCH).fit(model, split, classes_of(split)),
    "JTT": lambda model, split: exmap.JTT(train=ONE_EPOCH).fit(model, split, None),
    "explain_split": explain_split,
    "compute_heatmaps": compute_heatmaps,
    "collect_outputs": collect_outputs,
    "train": lambda model, split: exmap.GroupDRO(train=ONE_EPOCH).fit(model, split, classes_of(split)),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("out", "words"), [(7, "outputs 7 classes, the data set has 3"), (2, "outputs 2 classes")])
def test_other_outputs_than_classes_are_refused_by_all(run: str, out: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        RUNS[run](linear(out), split_of())


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda x: x, "must be a torch.nn.Module .* got a function"),
        (nn.Linear, "got the class Linear; build it"),
        ("resnet18", "got the text 'resnet18'"),
        ({"weight": torch.zeros(1)}, "got a dict; build the model, and give it these weights"),
    ],
    ids=["function", "class", "text", "weights"],
)
def test_what_is_no_model_is_told_what_it_is(run: str, what: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        RUNS[run](what, split_of())


def late(own: Any, x: torch.Tensor) -> torch.Tensor:
    """Something else for batches than for the two images that are looked at first."""
    return own.fc(own.body(x)) * (1 + (len(x) > 2) * torch.rand(len(x), 1))


MIXED: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "mean of the batch": lambda own, x: own.fc(own.body(x - x.mean(dim=0))),
    "batch norm that trains": lambda own, x: own.fc(F.batch_norm(own.body(x), None, None, training=True)),
    "rows moved": lambda own, x: own.fc(own.body(x)).roll(1, 0),
    "softmax over images": lambda own, x: own.fc(own.body(x)).softmax(dim=0),
    "wrong reshape": lambda own, x: own.fc(own.body(x)).T.reshape(len(x), 3),
    "random in large batches": late,
}


@pytest.mark.parametrize("kind", MIXED)
@pytest.mark.parametrize("run", ["evaluate", "explain_split", "collect_outputs", "DFR"])
def test_a_model_that_mixes_images_is_refused(kind: str, run: str) -> None:
    model = with_linear(MIXED[kind])().eval()
    words = "whatever images are beside it in a batch, but its logits change by up to"
    if run == "DFR":  # or there is no last layer to retrain
        words += "|needs logits that a linear map makes of features"
    with pytest.raises(DataError, match=words):
        RUNS[run](model, split_of())


def test_the_operation_that_mixes_images_is_named() -> None:
    body = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), vectors())
    model = Own(lambda own, x: own.fc(own.body(x)), body=body, fc=nn.Linear(D, 3)).eval()
    with pytest.raises(DataError, match=r"first in the operation batch_norm in module 'body.0'; use what was learned"):
        check_fits(model, split_of())


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(3), nn.GroupNorm(1, 3), nn.BatchNorm2d(3)])
def test_what_normalises_each_image_by_itself_passes(norm: nn.Module) -> None:
    model = Own(lambda own, x: own.fc(own.body(own.norm(x))), norm=norm, body=vectors(), fc=nn.Linear(D, 3)).eval()
    collect_outputs(model, split_of())


def spoiled(value: float) -> nn.Module:
    """Return a model that gives `value` for a few of the images, none of them among the first."""

    def run(own: Any, x: torch.Tensor) -> torch.Tensor:
        z = own.fc(own.body(x)).clone()
        z[x[:, 0, 0, 0] > 0.8] = value
        return z

    return with_linear(run)().eval()


@pytest.mark.parametrize("run", ["evaluate", "explain_split", "collect_outputs", "ExMap", "GEORGE"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_of_later_images_that_are_not_finite_are_named(run: str, value: float) -> None:
    split = split_of()
    first = int(np.flatnonzero(split.images.batch(np.arange(24))[:, 0, 0, 0] > 0.8)[0])
    assert first > 1
    with pytest.raises(DataError, match=rf"of the first 24 images of split val are NaN or infinite \(val/{first}[,)]"):
        RUNS[run](spoiled(value), split)


@pytest.mark.parametrize("bad", [[0], [5], [0, 1, 23]])
def test_images_that_are_no_numbers_are_never_right(bad: list[int]) -> None:
    split, model = split_of(bad=bad), linear()
    outputs = collect_outputs(model, split)
    assert np.flatnonzero(outputs.predicted < 0).tolist() == bad
    wanted = collect_outputs(model, split_of()).predicted
    rest = np.setdiff1d(np.arange(24), bad)
    assert np.array_equal(outputs.predicted[rest], wanted[rest])
    table = exmap.evaluate(model, split)
    assert table.mean == pytest.approx(np.mean((wanted == split.labels)[rest]) * len(rest) / 24)
    names = ", ".join(f"val/{row}" for row in bad)
    assert table.notes == (f"{len(bad)} of 24 images have pixels that are not finite, and count as wrong: {names}",)
    assert table.notes[0] in str(table)
    assert table.notes[0] in table._repr_html_()
    groups = exmap.ExMap(n_clusters=2).infer(model, split)
    assert np.flatnonzero(groups.index < 0).tolist() == bad


def test_images_of_which_none_is_finite_are_refused() -> None:
    with pytest.raises(DataError, match="the images hold NaN or infinity"):
        exmap.evaluate(linear(), split_of(bad=list(range(24))))


def test_one_logit_is_told_by_its_sign_and_a_hidden_probability_is_refused() -> None:
    split = split_of(classes=2)
    model, x = linear(1), torch.from_numpy(split.images.batch(np.arange(24)))
    with torch.no_grad():
        values = model(x)[:, 0]
        model.fc.weight /= values.std()
        model.fc.bias.copy_((model.fc.bias - values.quantile(0.5)) / values.std())
        model.fc.weight *= 4
        model.fc.bias *= 4
        z = model(x)[:, 0].numpy()
    assert np.array_equal(collect_outputs(model, split).predicted, z > 0)
    unseen = Own(lambda own, x: 1 / (1 + torch.exp(-own.model(x))), model=model).eval()
    for run in ("evaluate", "explain_split"):
        with pytest.raises(DataError, match=r"only output must be a logit, .* like probabilities; return the logit"):
            RUNS[run](unseen, split)
    seen = Own(lambda own, x: own.model(x).sigmoid(), model=model).eval()
    assert np.array_equal(collect_outputs(seen, split).predicted, z > 0)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda own, x: own.fc(own.body(x)).to_sparse(), "found a sparse tensor"),
        (
            lambda own, x: own.fc(own.body(x))[: max(2, len(x) - 1)],
            r"found a tensor of shape \(23, 3\) .* for 24 images",
        ),
        (lambda own, x: own.fc(own.body(x)).repeat(1, 1 + (len(x) > 2)), "returned 3 for each .* and 6 for each of 24"),
        (lambda own, x: own.fc(own.body(x[: 24 if len(x) < 9 else 1 / 0])), r"\(24, 3, 16, 16\) .*ZeroDivisionError"),
    ],
    ids=["sparse", "too few rows", "more columns", "an error"],
)
def test_answers_that_change_with_the_batch_are_told_in_a_sentence(run: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        collect_outputs(with_linear(run)().eval(), split_of())


class Steps(nn.Module):
    """Draws from every generator, changes its buffers and torch's default kind of numbers, and may fail."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.body, self.fc, self.fails = vectors(), nn.Linear(D, 3), fails
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(D))
        self.register_buffer("variance", torch.ones(D))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
        torch.set_default_dtype(torch.float64)
        self.seen += len(x)
        F.batch_norm(self.body(x), self.mean, self.variance, training=True)
        if self.fails and len(x) > 2:
            raise ValueError("no")
        return self.fc(self.body(x))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("run", ["evaluate", "explain_split", "compute_heatmaps", "GEORGE", "DFR"])
def test_all_is_as_it_was_after_every_call_and_error(run: str, fails: bool) -> None:
    model = Steps(fails).train()
    model.fc.weight.grad = torch.ones(3, D)
    model.body.eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generators = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with pytest.raises(DataError, match="ValueError: no") if fails else nullcontext():
        RUNS[run](model, split_of())
    kind = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert kind == torch.float32
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.array_equal(np.random.get_state()[1], generators[1])
    assert random.getstate() == generators[2]
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.fc.weight.grad, torch.ones(3, D))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("draw", [lambda: np.random.rand(), random.random, lambda: torch.rand(1).item()])
def test_models_that_draw_from_any_generator_are_found(draw: Callable[[], float]) -> None:
    model = with_linear(lambda own, x: own.fc(own.body(x)) + draw())().eval()
    with pytest.raises(DataError, match="from call to call"):
        check_inputs(model, split_of().first_images(), 3)


def test_buffers_written_to_are_put_back_in_inference_mode_too() -> None:
    model = Steps(fails=False)
    with torch.inference_mode(), evaluation_mode(model):
        model(torch.rand(2, 3, 16, 16))
        assert model.seen.item() == 2
    torch.set_default_dtype(torch.float32)
    assert model.seen.item() == 0
    assert torch.equal(model.variance, torch.ones(D))


def test_a_hook_that_raises_on_the_way_back_is_told() -> None:
    def no(*_: Any) -> None:
        raise ValueError("no way back")

    model = linear()
    model.fc.register_full_backward_hook(no)
    exmap.evaluate(model, split_of())
    for run in ("ExMap", "compute_heatmaps", "SUBG"):
        with pytest.raises(
            DataError, match=r"while gradients were computed \(ValueError: no way back\); look at hooks"
        ):
            RUNS[run](model, split_of())


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_other_kinds_of_numbers_are_worked_with(kind: torch.dtype) -> None:
    split, model = split_of(), linear()
    wanted = collect_outputs(model, split).logits
    assert np.abs(collect_outputs(model.to(kind), split).logits - wanted).max() < 0.05
    assert len(RUNS["ExMap"](model, split)) == 24


@pytest.mark.parametrize("run", ["evaluate", "ExMap", "DFR", "SUBG"])
def test_a_model_without_values_is_told(run: str) -> None:
    model = linear()
    model.fc.weight = nn.Parameter(torch.empty(3, D, device="meta"))
    with pytest.raises(DataError, match=r"'fc.weight' is on the meta device, without values; load the weights"):
        RUNS[run](model, split_of())


@pytest.mark.parametrize("explainer", ["lrp", "grad_cam", "occlusion"])
def test_heatmaps_of_a_batch_leave_buffers_and_switches_and_refuse_what_has_no_values(explainer: str) -> None:
    images = split_of().images.batch(np.arange(4))
    model = linear()
    model.register_buffer("seen", torch.zeros(1))
    model.run = lambda own, x: (own.seen.add_(x.mean()), own.fc(own.body(x)))[1]
    exmap.heatmaps(model, images, explainer)
    assert not model.seen.requires_grad
    assert model.seen.item() == 0
    model.fc.weight = nn.Parameter(torch.empty(3, D, device="meta"))
    with pytest.raises(DataError, match="on the meta device"):
        exmap.heatmaps(model, images, explainer)


def test_a_model_that_switches_gradients_off_is_not_trained_and_they_stay_on() -> None:
    def run(own: Any, x: torch.Tensor) -> torch.Tensor:
        torch.set_grad_enabled(False)
        return own.fc(own.body(x))

    with pytest.raises(DataError, match="must be trainable"):
        RUNS["SUBG"](with_linear(run)().eval(), split_of())
    assert torch.is_grad_enabled()


def test_an_output_of_inference_mode_is_evaluated_and_not_explained() -> None:
    model = with_linear(torch.inference_mode()(lambda own, x: own.fc(own.body(x))))().eval()
    exmap.evaluate(model, split_of())
    with pytest.raises(DataError, match="through gradients"):
        RUNS["ExMap"](model, split_of())
