"""Last-layer learners on classifiers that do not simply end in a linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exmap import evaluate
from exmap.data import Split, array_split
from exmap.errors import DataError
from exmap.model import collect_outputs
from exmap.records import Groups
from exmap.retrain import AFR, DFR, ClassBalanced

QUICK: dict[str, Any] = {"strengths": (1.0,), "subsamples": 2}


def split(n_classes: int = 2) -> Split:
    """Images whose class is the channel that is bright."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % n_classes
    images = rng.random((60, 3, 8, 8), dtype=np.float32)
    images[np.arange(60), labels] += 0.5
    return array_split(images, labels, class_names=tuple("abc"[:n_classes]))


def pooled(*last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, *last).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "one logit": lambda: pooled(nn.Linear(6, 1)),
    "one probability": lambda: pooled(nn.Linear(6, 1), nn.Sigmoid()),
    "probabilities": lambda: pooled(nn.Linear(6, 2), nn.Softmax(dim=1)),
    "weight norm": lambda: pooled(nn.utils.parametrizations.weight_norm(nn.Linear(6, 2))),
    "float64": lambda: pooled(nn.Linear(6, 2)).double(),
    "bfloat16": lambda: pooled(nn.Linear(6, 2)).bfloat16(),
    "float16": lambda: pooled(nn.Linear(6, 2)).half(),
    "convolution": lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.AdaptiveAvgPool2d(1)),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "learner", [DFR(**QUICK), ClassBalanced(**QUICK), AFR(gammas=(1.0,), lambdas=(0.0,), steps=50)]
)
def test_every_last_layer_learner_fits_every_form(kind: str, learner: Any) -> None:
    data, model = split(), MODELS[kind]()
    groups = Groups(data.labels, ("a", "b"), "classes", ())
    fitted = learner.fit(model, data, groups)
    features = collect_outputs(model, data).features
    wanted = features @ learner.head_.weight.T + learner.head_.bias
    found = collect_outputs(fitted, data).logits
    size = {"bfloat16": 0.05, "float16": 0.01}.get(kind, 1e-4) * (1 + np.abs(wanted).max())
    assert np.abs((found - wanted) - (found - wanted).mean(axis=1, keepdims=True)).max() < size
    if not isinstance(learner, AFR):
        assert evaluate(fitted, data).mean > 0.9


def test_a_model_of_other_classes_is_refused() -> None:
    data = split()
    with pytest.raises(DataError, match="the model outputs 10 classes, the data set has 2"):
        DFR(**QUICK).fit(pooled(nn.Linear(6, 10)), data, Groups(data.labels, ("a", "b"), "classes", ()))


def test_a_network_without_a_last_linear_map_is_retrained_where_a_layer_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    data = split()
    groups = Groups(data.labels, ("a", "b"), "classes", ())
    with pytest.raises(DataError, match=r"made by the operation relu in module '3'; groups and report work"):
        DFR(**QUICK).fit(model, data, groups)
    assert evaluate(DFR(**QUICK).fit(model, data, groups, head="2"), data).mean > 0.9
    assert evaluate(ClassBalanced(**QUICK).fit(model, data, head="2"), data).mean > 0.9
    with pytest.raises(DataError, match=r"AFR starts from the last layer's own weights.*use DFR"):
        AFR().fit(model, data, groups, head="2")


def test_one_logit_is_evaluated_by_its_sign() -> None:
    data, model = split(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    with torch.no_grad():
        model[-1].weight.copy_(torch.tensor([[-10.0, 10.0, 0.0]]))
        model[-1].bias.fill_(0.0)
    assert evaluate(model, data).mean == 1
