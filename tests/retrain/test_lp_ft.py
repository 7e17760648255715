"""The last layer is fitted on balanced groups, and trained further with the last blocks; all else stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from planted_groups import RUNTIME, TRAIN, biased, planted, same, state, true_groups, worst_accuracy
from torch import nn

import exmap.retrain.partly as partly
from exmap.data import ArrayImages
from exmap.errors import DataError
from exmap.model import collect_outputs, find_last_layer, replace_head
from exmap.model.blocks import last_blocks
from exmap.model.training import train_model
from exmap.records import Progress
from exmap.retrain import DFR, LPFT, Selection
from exmap.retrain.partly import PartlyTrained, from_kept_maps
from exmap.runtime import child_seed, torch_seed
from exmap.settings import TrainSettings

SPLIT, VAL = biased(large=60, small=10), biased(large=30, small=8, seed=1)
TRUE = true_groups(SPLIT)
SHORT = TRAIN.model_copy(update={"epochs": 2})


def learner_of(train: TrainSettings = SHORT, **options: Any) -> LPFT:
    return LPFT(train, RUNTIME, strengths=(0.1,), subsamples=2, **options)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class Chain(nn.Module):
    """A small residual network."""

    def __init__(self, n_classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.stages = nn.ModuleList([Residual(8), Residual(8), Residual(8)])
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(8 * 16, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.fc(self.drop(x.flatten(1)))


class Around(Chain):
    """What the stem makes goes around the last block."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.fc(self.drop((x + y).flatten(1)))


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch_seed(0):
        return kind().eval()


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    old = state(before)
    return {name for name, tensor in after.state_dict().items() if not torch.equal(tensor, old[name])}


# Blocks.


def transformer() -> nn.Module:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(2, 16, 4, stride=4)
            self.place = nn.Parameter(torch.zeros(1, 4, 16))
            layers = [nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3)]
            self.encoder = nn.Sequential(*layers)
            self.norm = nn.LayerNorm(16)
            self.heads = nn.Sequential(nn.Dropout(0.1), nn.Linear(16, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2) + self.place
            return self.heads(self.norm(self.encoder(x)).mean(dim=1))

    return Tokens()


def plain() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
    )


@pytest.mark.parametrize(
    ("kind", "count", "last"),
    [
        (Chain, 1, ("stages.2", "drop")),
        (Chain, 3, ("stages.0", "stages.1", "stages.2", "drop")),
        (Chain, 9, ("stem", "stages.0", "stages.1", "stages.2", "drop")),
        (plain, 1, ("3", "4", "5", "6", "7")),
        (transformer, 1, ("encoder.2", "norm", "heads.0")),
    ],
)
def test_the_last_blocks_are_the_last_modules_with_a_matrix_and_what_follows_them(
    kind: Callable[[], nn.Module], count: int, last: tuple[str, ...]
) -> None:
    model = made(kind)
    before = state(model)
    blocks = last_blocks(model, SPLIT.first_images(), count)
    assert blocks.last == last
    assert not set(blocks.last) & set(blocks.before)
    assert len(blocks.head) == 2
    assert same(model, before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_model_of_one_layer_has_no_blocks() -> None:
    blocks = last_blocks(nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), SPLIT.first_images())
    assert blocks.last == ()
    assert blocks.head == {"1.weight", "1.bias"}


def test_what_the_logits_do_not_depend_on_is_no_block() -> None:
    class Unused(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.old = nn.Linear(128, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for stage in self.stages:
                x = stage(x)
            self.old(x.flatten(1))
            return self.fc(x.flatten(1))

    assert last_blocks(made(Unused), SPLIT.first_images()).last[0] == "stages.2"


# What is trained.


def test_only_the_last_block_and_the_head_change() -> None:
    model = made(Chain)
    fitted = learner_of().fit(model, SPLIT, TRUE)
    names = {name.rpartition(".")[0] for name in changed(model, fitted)}
    assert names == {"stages.2.conv", "stages.2.norm", "fc"}
    two = learner_of(blocks=2).fit(model, SPLIT, TRUE)
    assert {n.rpartition(".")[0] for n in changed(model, two)} - names == {"stages.1.conv", "stages.1.norm"}
    assert all(parameter.requires_grad for parameter in fitted.parameters())


def test_norms_adds_scales_and_shifts_and_leaves_statistics() -> None:
    model = made(Chain)
    learner = learner_of(norms=True)
    names = changed(model, learner.fit(model, SPLIT, TRUE))
    front = {name for name in names if not name.startswith(("stages.2.", "fc."))}
    assert front == {
        f"{norm}.{leaf}" for norm in ("stem.1", "stages.0.norm", "stages.1.norm") for leaf in ("weight", "bias")
    }
    assert not learner.kept_maps_


def test_training_begins_with_the_head_of_dfr() -> None:
    model = made(Chain)
    last = find_last_layer(model, SPLIT.first_images())
    head = DFR((0.1,), subsamples=2, seed=child_seed(5, "probe")).fit_head(
        collect_outputs(model, SPLIT).features, SPLIT.labels, TRUE, n_classes=3
    )
    probed = replace_head(model, last, head.weight, head.bias)
    fitted = learner_of(seed=5, learning_rate=1e-20, weight_decay=0.0).fit(model, SPLIT, TRUE)
    assert all(torch.allclose(fitted.get_parameter(n), p) for n, p in probed.named_parameters())


def test_the_learning_rate_is_a_tenth_unless_it_is_given() -> None:
    assert LPFT(TRAIN, RUNTIME).training.learning_rate == pytest.approx(TRAIN.learning_rate / 10)
    assert LPFT(TRAIN, RUNTIME, learning_rate=0.02).training.learning_rate == 0.02
    assert LPFT(TRAIN, RUNTIME).start == "classifier"


def test_what_is_frozen_stays_in_evaluation_mode() -> None:
    model = made(Chain)
    network = PartlyTrained(model, last_blocks(model, SPLIT.first_images())).train()
    training = {name for name, module in network.model.named_modules() if module.training}
    assert training == {"stages.2", "stages.2.conv", "stages.2.norm", "drop"}
    assert not any(module.training for module in network.eval().modules())


def test_notes_say_what_was_trained_and_what_was_left_out_once() -> None:
    index = np.where(np.arange(len(SPLIT)) % 7 == 0, -1, TRUE.index)
    learner = learner_of()
    learner.fit(made(Chain), SPLIT, replace(TRUE, index=index))
    first, *rest = [note for note in learner.notes_ if "last layer" in note]
    assert first == (
        "after the last layer was fitted, stages.2 and the last layer were trained further: 979 of 2,323 weights"
    )
    assert not rest
    assert sum("in no group" in note for note in learner.notes_) == 1


def test_a_repair_after_training_raises_the_worst_group_more_than_the_head_alone() -> None:
    biased_split, test = biased(large=120, small=8), planted([[60] * 3] * 3, seed=9)
    model, groups, index = made(Chain), true_groups(biased_split), true_groups(test).index
    train_model(model, biased_split, None, TRAIN, RUNTIME, seed=0)
    head = DFR((0.1,), subsamples=2).fit(model, biased_split, groups)
    fitted = learner_of(TRAIN, learning_rate=0.03).fit(model, biased_split, groups)
    before, alone, after = (worst_accuracy(each, test, index) for each in (model, head, fitted))
    assert after > max(before, alone) + 0.1


# Maps that are kept.


def test_kept_maps_give_what_the_images_would(monkeypatch: pytest.MonkeyPatch) -> None:
    model, selection = made(Chain), Selection(VAL, true_groups(VAL))
    kept, whole = learner_of(), learner_of()
    first = kept.fit(model, SPLIT, TRUE, selection=selection)
    monkeypatch.setattr(partly, "available_memory", lambda: 1000)
    second = whole.fit(model, SPLIT, TRUE, selection=selection)
    assert kept.kept_maps_
    assert not whole.kept_maps_
    one, other = (collect_outputs(each, VAL).logits for each in (first, second))
    assert np.allclose(one, other, atol=1e-3 * np.abs(one).max())
    assert [row["kept"] for row in kept.history_[0]] == [row["kept"] for row in whole.history_[0]]


class Cropped(ArrayImages):
    """Images of which training is shown others."""

    def stream(self, requests: Any) -> Any:
        for rows, seed in requests:
            yield self.batch(rows) if seed is None else np.roll(self.batch(rows), seed % 3, axis=3)


@pytest.mark.parametrize("reason", ["a way around", "random crops", "shared weights", "run twice", "images alone"])
def test_maps_are_not_kept_where_that_could_change_a_result(reason: str) -> None:
    split, kind = SPLIT, Chain
    if reason == "a way around":
        kind = Around
    elif reason == "random crops":
        split = replace(SPLIT, images=Cropped(SPLIT.images.batch(np.arange(len(SPLIT)))))
    elif reason == "shared weights":

        class Shared(Chain):
            def __init__(self) -> None:
                super().__init__()
                self.stages[2].conv.weight = self.stages[0].conv.weight

        kind = Shared
    elif reason == "run twice":

        class Twice(Chain):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.stages[1](self.stages[0](self.stem(x)))
                return self.fc(self.stages[2](self.stages[2](x)).flatten(1))

        kind = Twice
    else:

        class Sized(Chain):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if x.shape[1:] != (2, 8, 8):
                    raise ValueError(f"images of 8 pixels, not {tuple(x.shape)}")
                return super().forward(x)

        kind = Sized
    model = made(kind)
    blocks = last_blocks(model, split.first_images())
    assert from_kept_maps(model, blocks, [split], lambda progress: None) is None
    learner = learner_of()
    fitted = learner.fit(model, split, TRUE)
    assert not learner.kept_maps_
    assert np.isfinite(collect_outputs(fitted, VAL).logits).all()


@pytest.mark.parametrize("kind", [transformer, plain])
def test_tokens_and_plain_chains_are_fitted(kind: Callable[[], nn.Module]) -> None:
    fitted = learner_of().fit(made(kind), SPLIT, TRUE, selection=Selection(VAL, true_groups(VAL)))
    assert collect_outputs(fitted, VAL).logits.shape == (len(VAL), 3)


def test_a_dict_of_logits_and_functions_in_forward_are_no_hindrance() -> None:
    class Functional(Chain):
        def forward(self, x: torch.Tensor) -> Any:
            x = self.stem(x)
            for stage in self.stages:
                x = stage(x)
            return {"logits": nn.functional.linear(x.flatten(1), self.fc.weight, self.fc.bias)}

    model = made(Functional)
    names = changed(model, learner_of().fit(model, SPLIT, TRUE))
    assert {name.rpartition(".")[0] for name in names} == {"stages.2.conv", "stages.2.norm", "fc"}


# Refusals.


def test_a_model_without_a_last_linear_map_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3), nn.ReLU())
    with pytest.raises(DataError, match=r"^retraining the last layer needs logits that a linear map makes of features"):
        learner_of().fit(model, SPLIT, TRUE)


def test_selections_of_several_splits_are_refused() -> None:
    other = biased(large=30, small=8, seed=2)
    selections = [Selection(VAL, true_groups(VAL)), Selection(other, true_groups(other))]
    with pytest.raises(DataError, match=r"^selections from one training must be of one split"):
        learner_of().fit_choices(made(Chain), SPLIT, TRUE, selections)


def test_progress_is_told() -> None:
    heard: list[Progress] = []
    learner_of().fit(made(Chain), SPLIT, TRUE, listen=heard.append)
    assert list(dict.fromkeys(p.task for p in heard)) == [
        "features (train)",
        "retrain",
        "maps (train)",
        "train",
    ]
