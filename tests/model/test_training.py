from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from exmap.data import planted_shortcut
from exmap.errors import CheckpointError
from exmap.model import FitState
from exmap.model.training import FileCheckpoint, train_model
from exmap.model.weights import save_tensors
from exmap.runtime import torch_seed
from exmap.settings import RuntimeSettings, TrainSettings
from hanging import at_most

TWO = RuntimeSettings(accelerator="cpu", devices=2, precision="32-true")
ONE = RuntimeSettings(accelerator="cpu", precision="32-true")
SETTINGS = TrainSettings(epochs=1, batch_size=16, learning_rate=0.05, select="last")


class Small(nn.Module):
    """At module level, so that a spawned process can import it."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.head = nn.Linear(512, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


def small(norm: bool = False) -> Small:
    with torch_seed(0):
        return Small(norm)


@pytest.mark.long
def test_two_processes_end_with_the_weights_of_one_even_where_batches_do_not_divide(tmp_path: Path) -> None:

    task = planted_shortcut(3, (37, 60, 30), seed=1)  # batches of 16, 16 and 5: the last is shared as 3 and 2
    alone, shared = small(), small()
    expected = train_model(alone, task.train, task.val, SETTINGS, ONE, seed=0)
    checkpoint = FileCheckpoint(tmp_path / "c")
    with at_most(1200):
        found = train_model(shared, task.train, task.val, SETTINGS, TWO, seed=0, checkpoint=checkpoint)
    for name, tensor in alone.state_dict().items():
        assert (shared.state_dict()[name] - tensor).abs().max() < 1e-5, name
        assert (tensor - small().state_dict()[name]).abs().max() > 1e-4, name
    assert found[0]["train_loss"] == pytest.approx(expected[0]["train_loss"], abs=1e-5)
    assert found[0]["val_mean"] == pytest.approx(expected[0]["val_mean"], abs=0.02)
    saved = checkpoint.load()
    assert saved is not None
    assert all(torch.equal(tensor, shared.state_dict()[name]) for name, tensor in saved.weights.items())


@pytest.mark.long
def test_two_processes_train_batch_normalisation_with_an_odd_number_of_validation_batches() -> None:

    task = planted_shortcut(3, (36, 60, 30), seed=1)
    model = small(norm=True)
    with at_most(1200):
        history = train_model(model, task.train, task.val, SETTINGS.model_copy(update={"epochs": 2}), TWO, seed=0)
    assert [row["epoch"] for row in history] == [1, 2]
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_one_process_trains_the_model_in_place() -> None:
    task = planted_shortcut(3, (60, 30, 30), seed=1)
    model = small()
    history = train_model(model, task.train, task.val, SETTINGS, ONE, seed=0)
    assert len(history) == 1
    assert not torch.equal(model.head.weight, small().head.weight)
    again = small()
    assert train_model(again, task.train, task.val, SETTINGS, ONE, seed=0) == history
    assert torch.equal(model.head.weight, again.head.weight)


def test_a_checkpoint_file_gives_back_every_part(tmp_path: Path) -> None:
    checkpoint = FileCheckpoint(tmp_path / "c")
    assert checkpoint.load() is None
    state = FitState(
        2,
        {"a.weight": torch.ones(2, 3), "n": torch.tensor(4)},
        {"a.weight": torch.zeros(2, 3)},
        [{"a.weight": torch.full((2, 3), 0.1), "n": torch.tensor(2)}, {"a.weight": torch.full((2, 3), 0.2)}],
        [
            [{"epoch": 1, "train_loss": 0.1 + 0.2, "kept": True}, {"epoch": 2, "train_loss": 1e-300, "kept": False}],
            [{"epoch": 1, "kept": False}, {"epoch": 2, "kept": True}],
        ],
    )
    checkpoint.save(state)
    found = checkpoint.load()
    assert found is not None
    assert (found.epoch, found.history) == (2, state.history)
    pairs = [
        (found.weights, state.weights),
        (found.momentum, state.momentum),
        *zip(found.best, state.best, strict=True),
    ]
    for there, here in pairs:
        assert there.keys() == here.keys()
        assert all(torch.equal(t, here[n]) for n, t in there.items())
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"conv.weight": torch.ones(2)}, {"epoch": "1", "history": "[]"}),
        ({"weights/a": torch.ones(2)}, {}),
        ({"weights/a": torch.ones(2)}, {"epoch": "one", "history": "[]"}),
        ({"weights/a": torch.ones(2)}, {"epoch": "1", "history": "[{"}),
    ],
)
def test_a_file_that_is_no_training_state_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    path = tmp_path / "c"
    save_tensors(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=r"c is not a training state of exmap \(.*\); delete it"):
        FileCheckpoint(path).load()


def test_a_cut_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    FileCheckpoint(path).save(FitState(1, {"a": torch.ones(99)}, {}, {}, []))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="must be a whole safetensors file"):
        FileCheckpoint(path).load()
