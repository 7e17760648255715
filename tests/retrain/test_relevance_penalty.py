"""The learner that penalises relevance in the region of the shortcut, here a coloured patch in a corner."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from planted_groups import ERM, RUNTIME, biased, net, true_groups
from torch import nn

from exmap.data import Split, Task, planted_shortcut
from exmap.errors import DataError
from exmap.exchange import Region
from exmap.model import build_model
from exmap.model.fit import Answers
from exmap.model.small_maps import small_maps_as_products
from exmap.retrain import RelevancePenalty
from exmap.retrain import relevance_penalty as module
from exmap.retrain.region import ShortcutRegion
from exmap.retrain.relevance_penalty import RelevanceRisk, WithImages, share_inside
from exmap.retrain.reweight import balanced_draws
from exmap.settings import ModelSettings, TrainSettings

TRAIN = TrainSettings(epochs=4, batch_size=64, learning_rate=0.05, select="last")
PATCH = np.zeros((16, 16), dtype=bool)
PATCH[:4, :4] = True


@pytest.fixture(scope="module")
def task() -> Task:
    return planted_shortcut(2, (400, 100, 200), correlation=0.985, noise=0.7)


@pytest.fixture(scope="module")
def follower(task: Task) -> nn.Module:
    """A classifier that follows the patch."""
    return ERM(TRAIN, RUNTIME).fit(build_model(ModelSettings(name="tiny"), 2, seed=0), task.train)


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def mean_share(model: nn.Module, split: Split) -> float:
    images = torch.from_numpy(split.images.batch(np.arange(100))).requires_grad_()
    labels = torch.from_numpy(split.labels[:100])
    return float(share_inside(model.eval()(images), images, labels, PATCH).mean().detach())


@pytest.mark.parametrize("precision", ["auto", "bf16-mixed"])
def test_relevance_leaves_the_region_of_the_shortcut(precision: Any, task: Task, follower: nn.Module) -> None:
    runtime = RUNTIME.model_copy(update={"precision": precision})
    learner = RelevancePenalty(TRAIN, runtime, steps=30, penalty=1.0)
    fitted = learner.fit(follower, task.train, true_groups(task.train))
    assert learner.region_ is not None
    np.testing.assert_array_equal(learner.region_.inside, PATCH)
    said = "relevance is penalised in float32, not in bf16-mixed, as its gradient is differentiated again"
    assert learner.notes_ == (
        *[said] * (precision == "bf16-mixed"),
        "relevance was penalised in the region of the shortcut, 6% of the image",
    )
    assert mean_share(fitted, task.test) < 0.7 * mean_share(follower, task.test)


def test_the_share_is_that_of_gradient_times_input_of_the_log_probability() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    images, labels = noise(5, 3, 4, 4).double().requires_grad_(), torch.tensor([0, 1, 2, 0, 1])
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[:2, :3] = True
    found = share_inside(model(images), images, labels, inside)
    chosen = model(images).log_softmax(dim=1)[torch.arange(5), labels]
    (slope,) = torch.autograd.grad(chosen.sum(), images)
    relevance = (slope * images).abs().sum(dim=1)
    assert torch.allclose(found.double(), relevance[:, inside].sum(dim=1) / relevance.sum(dim=(1, 2)), atol=1e-5)
    assert found.requires_grad


def test_the_share_is_finite_where_the_classifier_is_certain() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    images = (1e6 * torch.ones(4, 3, 2, 2)).requires_grad_()
    share = share_inside(model(images), images, torch.zeros(4, dtype=torch.int64), torch.eye(2, dtype=torch.bool))
    share.sum().backward()
    assert share.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model[1].parameters() if p.ndim > 1)


def test_the_penalty_is_part_of_every_so_many_th_step() -> None:
    split, images = biased(large=20, small=4), noise(6, 2, 8, 8).requires_grad_()
    logits, labels = net().eval()(images), torch.tensor([0, 1, 2, 0, 1, 2])
    inside = torch.ones(8, 8, dtype=torch.bool)
    risk = RelevanceRisk(balanced_draws(true_groups(split)), inside, penalty=0.5, every=3)
    answers, plain = Answers((logits, images)), float(nn.functional.cross_entropy(logits, labels).detach())
    costs = [float(risk.loss(answers, labels, np.arange(6)).detach()) - plain for _ in range(4)]
    assert costs == pytest.approx([1.5, 0, 0, 1.5], abs=1e-5)


def test_images_are_handed_out_while_training_alone() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: torch.Tensor) -> Any:
            return {"logits": self.inner(x.mul_(2))}

    network, x = WithImages(Overwrites()), noise(4, 2, 8, 8)
    logits, images = network.train()(x)
    assert logits.shape == (4, 3)
    assert torch.equal(images, x)
    torch.autograd.grad(logits.sum(), images)
    assert network.eval()(x.clone())["logits"].shape == (4, 3)


def test_attention_has_a_second_derivative() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(x.flatten(2).transpose(1, 2)).mean(dim=1))

    network = WithImages(Tokens()).train()
    logits, images = network(noise(3, 8, 4, 4))
    share = share_inside(logits, images, torch.tensor([0, 1, 0]), torch.eye(4, dtype=torch.bool))
    share.sum().backward()
    gradient = network.get_parameter("model.head.weight").grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_short_way_of_small_maps_has_the_same_second_derivative(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(2, 8, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    gradients = []
    for way in (nullcontext(), small_maps_as_products(model)):
        model.zero_grad()
        images = noise(5, 2, 2, 2).requires_grad_()
        with way, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(images)
        share_inside(logits, images, torch.tensor([0, 1, 2, 0, 1]), torch.eye(2, dtype=torch.bool)).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    gap = (gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max()
    assert gap < (1e-4 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize(
    ("start", "found", "why"),
    [
        ("initial", None, "a network that is not trained shows no region"),
        ("classifier", ShortcutRegion(None, 0, 0), "relevance gathers nowhere in the image"),
        ("classifier", ShortcutRegion(None, 2, 2), "where relevance gathers may be what images are labelled by"),
        ("classifier", DataError("it has no heatmaps"), "the model cannot be explained: it has no heatmaps"),
    ],
)
def test_without_a_region_it_is_rwg_and_says_why(
    task: Task, follower: nn.Module, monkeypatch: pytest.MonkeyPatch, start: Any, found: Any, why: str
) -> None:
    def region(*given: Any, **options: Any) -> ShortcutRegion:
        if isinstance(found, DataError):
            raise found
        return replace(found)

    monkeypatch.setattr(module, "shortcut_region", region)
    learner = RelevancePenalty(TRAIN, RUNTIME, steps=1, start=start)
    learner.fit(follower, task.train, true_groups(task.train))
    assert learner.region_ is None
    assert learner.notes_ == (
        f"no relevance was penalised, and groups were only drawn equally often, as by rwg: {why}",
    )


def test_parts_left_out_are_said(task: Task, follower: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "shortcut_region", lambda *_, **__: ShortcutRegion(Region(PATCH), 3, 2))
    learner = RelevancePenalty(TRAIN, RUNTIME, steps=1)
    learner.fit(follower, task.train, true_groups(task.train))
    assert learner.notes_[0].endswith(
        "6% of the image; 2 of 3 parts that relevance gathers in were left out, since they may hold what images are "
        "labelled by"
    )
