"""The learner that changes normalisation layers and the last layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from planted_groups import RUNTIME, SHORT, biased, net, state, true_groups
from torch import nn

from exmap.errors import SettingsError
from exmap.model import collect_outputs
from exmap.retrain import Norms, Selection
from exmap.retrain.norms import estimate_statistics
from exmap.runtime import torch_seed

SPLIT, VAL = biased(large=60, small=10), biased(large=30, small=8, seed=1)
TRUE = true_groups(SPLIT)
QUICK: dict[str, Any] = {"strengths": (0.1,), "subsamples": 2}
STATISTICS = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
SCALES, HEAD = {"norm.weight", "norm.bias"}, {"head.weight", "head.bias"}


def learner_of(**options: Any) -> Norms:
    return Norms(SHORT, RUNTIME, **QUICK, **options)


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, STATISTICS | SCALES | HEAD),
        ({"statistics": False}, SCALES | HEAD),
        ({"scales": False}, STATISTICS | HEAD),
    ],
)
def test_what_changes_is_what_is_asked_for(options: dict[str, bool], names: set[str]) -> None:
    model = net()
    learner = learner_of(**options)
    fitted = learner.fit(model, SPLIT, TRUE, selection=Selection(VAL, true_groups(VAL)))
    assert changed(state(model), fitted) == names
    assert len(learner.history_) == 1
    assert len(learner.history_[0]) == (SHORT.epochs if options.get("scales", True) else 0)
    assert all(parameter.requires_grad for parameter in fitted.parameters())


def test_statistics_are_means_over_the_batches_drawn() -> None:
    model, rows = net().eval(), np.arange(40)
    assert estimate_statistics(model, SPLIT, rows, batch_size=20) == 1
    with torch.no_grad():
        maps = model.conv(torch.from_numpy(SPLIT.images.batch(rows)))
    wanted = [torch.stack([part.mean((0, 2, 3)) for part in maps.split(20)]).mean(0)]
    wanted.append(torch.stack([part.var((0, 2, 3)) for part in maps.split(20)]).mean(0))
    assert torch.allclose(model.norm.running_mean, wanted[0], atol=1e-5)
    assert torch.allclose(model.norm.running_var, wanted[1], atol=1e-5)
    assert model.norm.momentum == 0.1
    assert not any(module.training for module in model.modules())


def test_balanced_draws_make_the_statistics() -> None:
    model = net()
    fitted = learner_of(scales=False).fit(model, SPLIT, TRUE)
    index = TRUE.index
    with torch.no_grad():
        maps = model.eval().conv(torch.from_numpy(SPLIT.images.batch(np.arange(len(SPLIT))))).mean((2, 3))
    by_group = torch.stack([maps[index == group].mean(0) for group in np.unique(index)]).mean(0)
    gap, other = ((fitted.get_buffer("norm.running_mean") - each).abs().max() for each in (by_group, maps.mean(0)))
    assert gap < other


def test_notes_say_what_was_done() -> None:
    learner = learner_of()
    learner.fit(net(), SPLIT, TRUE)
    assert learner.notes_[:2] == (
        f"running statistics of 1 normalisation layers were re-estimated from {len(SPLIT)} balanced draws",
        "8 scales and shifts of normalisation layers were trained",
    )


def test_a_network_without_normalisation_has_its_last_layer_fitted() -> None:
    with torch_seed(0):
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    learner = learner_of(scales=False)
    fitted = learner.fit(model, SPLIT, TRUE)
    assert changed(state(model), fitted) == {"3.weight", "3.bias"}
    assert learner.notes_[0].startswith("the network has no batch normalisation with running statistics")
    assert collect_outputs(fitted, VAL).logits.shape == (len(VAL), 3)


def test_nothing_to_change_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^norms must change statistics or scales, got statistics=False"):
        Norms(statistics=False, scales=False)
