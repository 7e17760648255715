"""What a training computes with is decided once, kept where it is interrupted, and said in results.json."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from exmap.data import Task
from exmap.pipeline import trained_on
from exmap.pipeline.trained_on import forget_training, training_here
from exmap.precision import Precision, PrecisionChoice
from exmap.results import Results, TrainedOn
from exmap.settings import RuntimeSettings, TrainSettings
from running import results_of


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make this another device, on which another precision is quickest, each time it is asked."""
    made: list[Precision] = ["bf16-mixed", "32-true", "16-mixed"]
    choices = iter([PrecisionChoice(precision, "as it was timed") for precision in made])
    monkeypatch.setattr(trained_on, "quickest_precision", lambda *_: next(choices))
    monkeypatch.setattr(trained_on, "device_name", lambda _: "One")
    return monkeypatch


def test_a_training_keeps_its_precision_on_the_same_device_alone(
    machine: pytest.MonkeyPatch, three_classes: Task, tmp_path: Path
) -> None:
    def again(runtime: RuntimeSettings | None = None) -> TrainedOn:
        return training_here(
            nn.Identity(), three_classes.train, TrainSettings(), runtime or RuntimeSettings(), tmp_path
        )

    assert again() == TrainedOn(device="One", precision="bf16-mixed", why="as it was timed", threads=1)
    assert again().precision == "bf16-mixed"
    machine.setattr(trained_on, "device_name", lambda _: "Another")
    assert again().precision == "32-true"
    assert again().device == "Another"
    (tmp_path / "trained_on.json").write_text('{"device": "Another", "precision": "none"}')
    assert again().precision == "16-mixed"
    forget_training(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_results_say_how_the_classifier_was_trained(finished: Path) -> None:
    tree = results_of(finished)
    assert tree["trained_on"]["precision"] == "32-true"
    assert tree["trained_on"]["threads"] == 1
    assert Results.from_json(tree).trained_on == TrainedOn(**tree["trained_on"])
    assert not (finished / "train" / "trained_on.json").exists()
