from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exmap.data import Split, Task, array_split
from exmap.errors import NumericalError
from exmap.model import FitState, collect_outputs, fit
from exmap.model.fit import EmpiricalRisk
from exmap.model.training import FileCheckpoint
from exmap.records import Progress, silent
from exmap.runtime import make_fabric, torch_seed
from exmap.settings import RuntimeSettings, TrainSettings

FABRIC = make_fabric(RuntimeSettings(accelerator="cpu", precision="32-true"))
Row = dict[str, object]


class Net(nn.Module):
    """Batch normalisation, dropout, and a convolution whose layout in memory matters (several channels, 3 x 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(128, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x)))))
        return self.head(self.drop(x.flatten(1)))


def net(seed: int = 0) -> Net:
    with torch_seed(seed):
        return Net()


def train(
    model: nn.Module,
    task: Task,
    seed: int = 0,
    checkpoint: object = None,
    listen=silent,
    objective: object = None,
    **settings,
) -> list[Row]:
    chosen = TrainSettings(**{"epochs": 4, "batch_size": 32, "learning_rate": 0.03, **settings})
    about = {"fabric": FABRIC, "seed": seed, "objective": objective, "checkpoint": checkpoint, "listen": listen}
    (history,), (weights,) = fit(model, task.train, task.val, chosen, **about)
    model.load_state_dict(weights)
    return history


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Memory:
    """A checkpoint that keeps a copy of every state."""

    def __init__(self) -> None:
        self.states: list[FitState] = []

    def load(self) -> FitState | None:
        return None

    def save(self, state: FitState) -> None:
        parts = (state.weights, state.momentum, *state.best)
        weights, momentum, *best = ({n: t.clone() for n, t in part.items()} for part in parts)
        self.states.append(FitState(state.epoch, weights, momentum, best, [list(rows) for rows in state.history]))


class Stopped(Exception):
    pass


class StopAfter(FileCheckpoint):
    """A run that is killed right after it saved its k-th epoch."""

    def __init__(self, path: Path, epoch: int) -> None:
        super().__init__(path)
        self.epoch = epoch

    def save(self, state: FitState) -> None:
        super().save(state)
        if state.epoch == self.epoch:
            raise Stopped


@pytest.fixture(scope="module")
def noisy(three_classes: Task) -> Task:
    """So noisy that accuracy goes up and down."""
    splits = []
    for seed, split in enumerate((three_classes.train, three_classes.val)):
        rng = np.random.default_rng(seed)
        images = split.images.batch(np.arange(len(split)))
        splits.append(array_split((images + rng.normal(0, 1, images.shape)).astype(np.float32), split.labels))
    return Task("noisy", *splits, splits[1])


def test_a_planted_task_is_learned(three_classes: Task) -> None:
    model = net()
    train(model, three_classes)
    predicted = collect_outputs(model, three_classes.val).predicted
    assert np.mean(predicted == three_classes.val.labels) > 0.8


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(three_classes: Task) -> None:
    models = [net(), net(), net()]
    histories = [train(m, three_classes, seed=s, epochs=2) for m, s in zip(models, (5, 5, 6), strict=True)]
    assert equal(state(models[0]), state(models[1]))
    assert histories[0] == histories[1]
    assert not torch.equal(models[0].head.weight, models[2].head.weight)


@pytest.mark.parametrize(("stop", "select"), [(1, "worst_class"), (2, "last"), (3, "mean")])
def test_a_run_continued_after_any_epoch_ends_as_one_that_was_never_stopped(
    noisy: Task, tmp_path: Path, stop: int, select: str
) -> None:

    whole = Memory()
    model = net()
    history = train(model, noisy, checkpoint=whole, select=select, learning_rate=0.05)
    with pytest.raises(Stopped):
        train(net(), noisy, checkpoint=StopAfter(tmp_path / "c", stop), select=select, learning_rate=0.05)
    continued = net(99)
    checkpoint = FileCheckpoint(tmp_path / "c")
    assert train(continued, noisy, checkpoint=checkpoint, select=select, learning_rate=0.05) == history
    last = checkpoint.load()
    assert last is not None
    assert last.history == [history]
    for kind in ("weights", "momentum"):
        assert equal(getattr(last, kind), getattr(whole.states[-1], kind)), kind
    assert equal(last.best[0], whole.states[-1].best[0])
    assert equal(state(continued), state(model))


def test_a_run_stopped_inside_an_epoch_continues_from_the_epoch_before(three_classes: Task, tmp_path: Path) -> None:

    def stop_inside_epoch_3(progress: Progress) -> None:
        if progress.done > 2.5 * len(three_classes.train):
            raise Stopped

    checkpoint = FileCheckpoint(tmp_path / "c")
    with pytest.raises(Stopped):
        train(net(), three_classes, checkpoint=checkpoint, listen=stop_inside_epoch_3, select="last")
    stopped = checkpoint.load()
    assert stopped is not None
    assert stopped.epoch == 2
    model, continued = net(), net(99)
    history = train(model, three_classes, select="last")
    assert train(continued, three_classes, checkpoint=checkpoint, select="last") == history
    assert equal(state(continued), state(model))


@dataclass(frozen=True)
class Shifted(EmpiricalRisk):
    """Every image is made a little brighter or darker, at random, and the first batches are kept."""

    seen: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def images(self, batch: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.seen.append((batch, rows))
        return batch + rng.normal(0, 0.2, (len(rows), 1, 1, 1)).astype(np.float32)


def test_an_objective_may_change_images_and_a_continued_run_changes_them_alike(
    three_classes: Task, tmp_path: Path
) -> None:
    objective, task = Shifted(len(three_classes.train)), three_classes
    whole, stopped, plain = net(), net(), net()
    train(whole, task, objective=objective, select="last")
    batch, rows = objective.seen[1]
    np.testing.assert_array_equal(batch, task.train.images.batch(rows))
    with pytest.raises(Stopped):
        train(stopped, task, objective=objective, select="last", checkpoint=StopAfter(tmp_path / "c", 2))
    train(stopped, task, objective=objective, select="last", checkpoint=FileCheckpoint(tmp_path / "c"))
    train(plain, task, select="last")
    assert equal(state(whole), state(stopped))
    assert not equal(state(whole), state(plain))


def test_a_finished_run_is_read_again_without_another_step(three_classes: Task, tmp_path: Path) -> None:
    model, again = net(), net(99)
    history = train(model, three_classes, epochs=2, checkpoint=FileCheckpoint(tmp_path / "c"))
    heard: list[Progress] = []
    assert (
        train(again, three_classes, epochs=2, checkpoint=FileCheckpoint(tmp_path / "c"), listen=heard.append) == history
    )
    assert equal(state(again), state(model))
    assert heard == []


def test_a_run_without_momentum_can_be_kept(three_classes: Task, tmp_path: Path) -> None:
    history = train(net(), three_classes, epochs=1, momentum=0.0, checkpoint=FileCheckpoint(tmp_path / "c"))
    assert len(history) == 1


@pytest.mark.parametrize("select", ["worst_class", "mean", "last"])
def test_the_model_is_left_with_the_first_epoch_of_the_best_score(noisy: Task, select: str) -> None:
    model, kept = net(), Memory()
    history = train(model, noisy, checkpoint=kept, select=select, epochs=5, learning_rate=0.05)
    scores = [row[{"worst_class": "val_worst_class", "mean": "val_mean", "last": "epoch"}[select]] for row in history]
    best = int(np.argmax(scores))
    assert equal(state(model), kept.states[best].weights)
    assert [row["kept"] for row in history] == [s > max(scores[:i], default=-1) for i, s in enumerate(scores)]
    if select == "last":
        assert best == 4


def test_selection_by_worst_class_and_by_mean_can_choose_different_epochs(noisy: Task) -> None:
    kept = {}
    for select in ("worst_class", "mean"):
        history = train(net(), noisy, select=select, epochs=5, learning_rate=0.05)
        kept[select] = max(row["epoch"] for row in history if row["kept"])
        assert kept[select] == 1 + int(np.argmax([row[f"val_{select}"] for row in history]))
    assert kept["worst_class"] != kept["mean"]


def test_each_epoch_leaves_a_row_that_can_be_checked(three_classes: Task) -> None:
    model = net()
    history = train(model, three_classes, select="last", epochs=3)
    keys = ["epoch", "train_loss", "learning_rate", "val_mean", "val_worst_class", "score", "kept"]
    assert [list(row) for row in history] == [keys] * 3
    assert [row["epoch"] for row in history] == [1, 2, 3]
    right = collect_outputs(model, three_classes.val).predicted == three_classes.val.labels
    assert history[-1]["val_mean"] == pytest.approx(right.mean())
    by_class = [right[three_classes.val.labels == c].mean() for c in range(3)]
    assert history[-1]["val_worst_class"] == pytest.approx(min(by_class))
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_the_reported_loss_is_the_mean_over_the_images_that_were_used() -> None:
    split = array_split(np.zeros((9, 3, 16, 16), dtype=np.float32), [0, 1, 2] * 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    history = train(model, Task("t", split, split, split), epochs=1, batch_size=4, learning_rate=1e-12)
    assert history[0]["train_loss"] == pytest.approx(math.log(3))


def test_batches_of_one_image_are_refused_or_trained_on(three_classes: Task) -> None:
    model = net()
    before = model.head.weight.detach().clone()
    try:
        train(model, three_classes, epochs=1, batch_size=1)
    except ValueError:
        return
    assert not torch.equal(model.head.weight, before)


def test_progress_counts_the_images_of_all_epochs(three_classes: Task) -> None:
    heard: list[Progress] = []
    train(net(), three_classes, epochs=2, batch_size=100, listen=heard.append)
    assert [p.done for p in heard] == [100, 200, 240, 340, 440, 480]
    assert {(p.task, p.total) for p in heard} == {("train", 480)}
    assert (heard[0].note, heard[-1].note) == ("epoch 1/2", "epoch 2/2")


@pytest.mark.parametrize("epochs", [1, 3, 7])
def test_the_learning_rate_follows_half_a_cosine(three_classes: Task, epochs: int) -> None:
    history = train(net(), three_classes, epochs=epochs, batch_size=240, learning_rate=0.02)
    expected = [0.01 * (1 + math.cos(math.pi * epoch / epochs)) for epoch in range(epochs)]
    assert [row["learning_rate"] for row in history] == pytest.approx(expected, rel=1e-12)


def test_the_steps_are_those_of_plain_sgd_written_by_hand(three_classes: Task) -> None:
    def plain() -> nn.Sequential:
        with torch_seed(0):
            return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(294, 3))

    model, by_hand = plain(), plain()
    train(model, three_classes, epochs=3, batch_size=240, select="last", weight_decay=0.01, learning_rate=0.05)
    images = torch.from_numpy(three_classes.train.images.batch(np.arange(240)))
    labels = torch.from_numpy(three_classes.train.labels)
    momentum = [torch.zeros_like(p) for p in by_hand.parameters()]
    for epoch in range(3):
        rate = 0.05 * (1 + math.cos(math.pi * epoch / 3)) / 2
        loss = nn.functional.cross_entropy(by_hand(images), labels)
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        with torch.no_grad():
            for p, g, m in zip(by_hand.parameters(), gradients, momentum, strict=True):
                m.mul_(0.9).add_(g + 0.01 * p)
                p.sub_(rate * m)
    for found, expected in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_frozen_layers_stay_as_they_are(three_classes: Task) -> None:
    model = net()
    model.conv1.weight.requires_grad_(False)
    before = state(model)
    train(model, three_classes, epochs=1)
    assert torch.equal(model.conv1.weight, before["conv1.weight"])
    assert not torch.equal(model.conv2.weight, before["conv2.weight"])


def test_weights_of_five_dimensions_are_trained_like_others(three_classes: Task) -> None:
    class Deep(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, 1, 8, 8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.norm(self.conv1(x)))
            x = (x[:, None] * self.scale[..., : x.shape[2], : x.shape[3]])[:, 0]
            return self.head(torch.relu(self.conv2(x)).flatten(1))

    model = Deep()
    train(model, three_classes, epochs=1)
    assert not torch.equal(model.scale, torch.ones(1, 1, 8, 8, 8))
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("broken", ["rate", "pixels"])
def test_a_loss_that_is_not_finite_stops_with_what_to_do(three_classes: Task, broken: str) -> None:
    rate = 1000.0 if broken == "rate" else 0.01
    images = np.array(three_classes.train.images.batch(np.arange(60)))
    if broken == "pixels":
        images[3] = np.nan
    split: Split = array_split(images, three_classes.train.labels[:60])
    with pytest.raises(NumericalError) as caught:
        train(net(), Task("bad", split, split, split), learning_rate=rate, batch_size=20)
    epoch = 2 if broken == "rate" else 1
    assert str(caught.value) == (
        f"the training loss of epoch {epoch} is nan; it must be finite: lower train.learning_rate (now {rate:g}) or "
        "set runtime.precision=32-true"
    )


def test_training_touches_no_global_generator(three_classes: Task) -> None:
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = net()
    train(first, three_classes, epochs=1)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    second = net()
    with torch_seed(77):  # and depends on none
        train(second, three_classes, epochs=1)
    assert equal(state(first), state(second))
