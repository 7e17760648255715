"""The learner that adds low-rank adapters to the last blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from planted_groups import RUNTIME, SHORT, TRAIN, biased, groups_of, planted, state, true_groups, worst_accuracy
from torch import nn

from exmap.model import collect_outputs
from exmap.model.blocks import last_blocks
from exmap.model.training import train_model
from exmap.retrain import DFR, Adapters, Selection
from exmap.retrain.adapters import LowRank
from exmap.retrain.partly import PartlyTrained
from exmap.runtime import torch_seed

SPLIT, VAL = biased(large=60, small=10), biased(large=30, small=8, seed=1)
TRUE = true_groups(SPLIT)
QUICK: dict[str, Any] = {"strengths": (0.1,), "subsamples": 2}


def chain() -> nn.Module:
    """Two convolutions and a dense layer with normalisation and dropout."""
    with torch_seed(0):
        return nn.Sequential(
            *(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)),
        ).eval()


def learner_of(train: Any = SHORT, **options: Any) -> Adapters:
    return Adapters(train, RUNTIME, **QUICK, **options)


def test_only_matrices_of_the_last_blocks_and_the_head_change_and_by_a_low_rank() -> None:
    model = chain()
    learner = learner_of(blocks=2, rank=2)
    fitted = learner.fit(model, SPLIT, TRUE)
    before = state(model)
    changed = {name for name, tensor in fitted.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"3.weight", "8.weight", "11.weight", "11.bias"}
    for name in ("3.weight", "8.weight"):
        added = (fitted.state_dict()[name] - before[name]).flatten(1)
        sizes = torch.linalg.svdvals(added)
        assert sizes[1] > 100 * sizes[2], name
    assert all(parameter.requires_grad for parameter in fitted.parameters())
    assert [type(module) for module in fitted.modules()] == [type(module) for module in model.modules()]


def test_training_begins_with_the_head_of_dfr_and_nothing_added() -> None:
    model = chain()
    network = PartlyTrained(model, last_blocks(model, SPLIT.first_images(), 2))
    low = LowRank(network, 4, seed=0)
    x = torch.from_numpy(SPLIT.images.batch(np.arange(8)))
    assert torch.equal(low(x), model(x))
    again, other = LowRank(network, 4, seed=0), LowRank(network, 4, seed=1)
    assert torch.equal(low.down[0], again.down[0])
    assert not torch.equal(low.down[0], other.down[0])


def test_what_is_merged_says_the_same() -> None:
    model = chain()
    low = LowRank(PartlyTrained(model, last_blocks(model, SPLIT.first_images(), 2)), 4, seed=0)
    with torch_seed(1), torch.no_grad():
        for up in low.up:
            up.normal_()
    x = torch.from_numpy(SPLIT.images.batch(np.arange(8)))
    assert torch.allclose(low.merged()(x), low(x), atol=1e-5)
    assert not torch.allclose(low(x), model(x), atol=0.1)


def test_nothing_is_in_training_mode_and_only_additions_and_head_learn() -> None:
    model = chain()
    low = LowRank(PartlyTrained(model, last_blocks(model, SPLIT.first_images())), 99, seed=0).train()
    assert not any(module.training for module in low.network.modules())
    names = {name for name, parameter in low.named_parameters() if parameter.requires_grad}
    assert names == {"up.0", "down.0", "network.model.11.weight", "network.model.11.bias"}
    assert low.down[0].shape == (16, 128)  # no more than the smaller side
    assert low.size == 16 * 128 + 16 * 16


def test_a_repair_raises_the_worst_group_more_than_the_head_alone() -> None:
    split, test = biased(large=120, small=8), planted([[60] * 3] * 3, seed=9)
    model, groups, index = chain(), true_groups(split), true_groups(test).index
    train_model(model, split, None, TRAIN, RUNTIME, seed=0)
    head = DFR((0.1,), subsamples=2).fit(model, split, groups)
    fitted = learner_of(TRAIN, blocks=2).fit(model, split, groups)
    before, alone, after = (worst_accuracy(each, test, index) for each in (model, head, fitted))
    assert after > max(before, alone)


def test_notes_and_history_and_several_choices() -> None:
    learner = learner_of(rank=3)
    selections = [Selection(VAL, true_groups(VAL)), Selection(VAL, groups_of(VAL.labels))]
    models = learner.fit_choices(chain(), SPLIT, TRUE, selections)
    assert len(models) == len(learner.history_) == 2
    assert learner.kept_maps_
    assert (
        "after the last layer was fitted, it and adapters of rank 3 in 8 were trained further: 432 weights beside the "
        "last layer's" in learner.notes_
    )


def test_a_network_of_one_layer_has_its_head_trained_further() -> None:
    with torch_seed(0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    learner = learner_of()
    fitted = learner.fit(model, SPLIT, TRUE)
    assert collect_outputs(fitted, VAL).logits.shape == (len(VAL), 3)
    assert any("it alone was, as the network has no block before it" in note for note in learner.notes_)


@pytest.mark.parametrize("options", [{"rank": 0}, {"blocks": 0}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        learner_of(**options)
