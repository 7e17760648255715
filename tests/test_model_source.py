"""Models by a word, and their check by command: what is printed, what is written, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exmap.errors import DataError, SettingsError
from exmap.model_source import build_named, check_named
from running import Give, command, finished_run

OWN = """
from torch import nn

class Classifier(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def build():
    return Classifier()

def sized(n, *, width=3):
    return Classifier()

def broken():
    raise RuntimeError("no such file\\nas you see")

def number():
    return 3

names = "cat", "dog"
ready = Classifier()
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own_model.py"
    path.write_text(OWN)
    return path


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Give:
    monkeypatch.chdir(tmp_path)
    return lambda *words: command(monkeypatch, capsys, "check-model", *words)


def test_a_model_that_is_explained_right_is_exit_code_0_and_can_be_kept_as_json(
    own: Path, give: Give, tmp_path: Path
) -> None:
    said = give("own_model.py:build", "--channels", "1", "--size", "8", "--json", tmp_path / "found.json")
    assert (said.code, said.err) == (0, "")
    assert "Images: 4 of random normal numbers, 1 x 8 x 8; give --images for your own" in said.out
    assert "The model is explained right." in said.out
    assert "conv2d" in said.out
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["format"], found["passed"], found["composite"]) == (1, True, "symmetric_gamma")
    assert found["error"] < 1e-6
    assert len(found["input_share"]) == 4
    assert {"name": "linear", "rule": "linear map", "count": 1} in found["operations"]


def test_a_model_that_is_not_explained_right_is_exit_code_1(own: Path, give: Give) -> None:
    Path("recurrent.py").write_text(
        "from torch import nn\n\n\n"
        "class Rows(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.rows, self.head = nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 2)\n\n"
        "    def forward(self, x):\n"
        "        return self.head(self.rows(x[:, 0])[0][:, -1])\n\n\n"
        "def build():\n    return Rows()\n"
    )
    said = give("recurrent.py:build", "--channels", "1", "--size", "8")
    assert said.code == 1
    assert "The model is not explained right." in said.out
    assert "the first operation that breaks it is lstm" in said.out


def test_rules_that_promise_no_sum_are_refused(own: Path, give: Give) -> None:
    said = give("own_model.py:build", "--channels", "1", "--size", "8", "--composite", "guided_backprop")
    assert said.code == 2
    assert "promises no sum" in said.err


def test_a_run_s_classifier_is_checked_on_its_validation_images(
    give: Give, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = finished_run(tmp_path_factory)
    said = give(folder)
    assert said.code == 0
    assert f"Model: the classifier of {folder}" in said.out
    assert "Images: 8 validation images of the run" in said.out


def test_weights_and_images_of_ones_own_are_taken(own: Path, tmp_path: Path) -> None:
    model, generator = build_named(f"{own}:build").model, torch.Generator().manual_seed(5)
    state = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "own.safetensors")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).random((9, 1, 6, 7)))
    plain = check_named(f"{own}:build", images=tmp_path / "images.npy")
    loaded = check_named(f"{own}:build", images=tmp_path / "images.npy", weights=tmp_path / "own.safetensors")
    assert plain.images == loaded.images == f"8 of {tmp_path / 'images.npy'}"
    assert len(plain.found.input_share) == 8
    assert not np.allclose(plain.found.input_share, loaded.found.input_share)


def test_the_same_word_builds_the_same_weights_and_leaves_the_generator_alone(own: Path) -> None:
    before = torch.get_rng_state()
    one, other = (build_named(f"{own}:build").model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), before)


def test_torchvision_and_timm_build_by_name_with_the_classes_asked_for() -> None:
    vision = build_named("torchvision:resnet18", classes=5)
    assert isinstance(vision.model, nn.Module)
    assert vision.model.fc.out_features == 5
    pytest.importorskip("timm")
    small = build_named("timm:resnet18.a1_in1k", channels=1, classes=3)
    assert small.model.conv1.in_channels == 1
    assert small.model.fc.out_features == 3
    assert small.size == 224


def test_a_hugging_face_folder_is_built_with_its_weights_where_there_are_any(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    config.num_labels = 3
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(tmp_path / "whole")
    config.save_pretrained(tmp_path / "alone")
    whole, alone = (build_named(f"hf:{tmp_path / name}") for name in ("whole", "alone"))
    state = whole.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert (whole.size, whole.channels) == (16, 3)
    assert "random weights" in alone.about
    assert alone.model.classifier.out_features == 3
    assert check_named(f"hf:{tmp_path / 'alone'}").images.startswith("4 of random normal numbers, 3 x 16 x 16")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (
            ["nothing"],
            "a model is given as a run folder, torchvision:NAME, timm:NAME, hf:FOLDER_OR_ID, onnx:FILE",
        ),
        (["own_model.py"], "is named by the function or class that makes it, such as own_model.py:"),
        (["torchvision:resnet81"], "unknown model of torchvision 'resnet81' (did you mean 'resnet18'"),
        (["hf:nowhere"], "hf: needs a folder with config.json, found none in nowhere"),
        (["."], "is not a run folder"),
        (["none.py:build"], "the file none.py of none.py:build does not exist"),
        (["no_such_package.models:build"], "there is no module 'no_such_package' to import"),
        (["own_model.py:biuld"], "unknown function 'biuld' (did you mean 'build'"),
        (["own_model:biuld"], "unknown function 'biuld' (did you mean 'build'"),
        (["own_model.py:sized"], "must be a function without arguments that returns a model, but it needs n;"),
        (["own_model.py:broken"], "own_model.py:broken failed with RuntimeError: no such file; run it by itself"),
        (["own_model.py:number"], "own_model.py:number must return a torch.nn.Module, got int"),
        (["own_model.py:names"], "must be a function that returns a model, got tuple"),
        (["own_model.py:build", "--size", "0"], "--size must be at least 1, got 0"),
        (["own_model.py:build", "--size", "8"], "the model failed on images of shape (2, 3, 8, 8)"),
        (
            ["own_model.py:build", "--composite", "epsilonn", "--channels", "1", "--size", "8"],
            "did you mean 'epsilon'?",
        ),
        (["own_model.py:build", "--weights", "none.safetensors"], "weights file none.safetensors does not exist"),
        (["own_model.py:build", "--images", "none.npy"], "the file of images none.npy does not exist"),
        (["own_model.py:build", "--images", "own_model.py"], "own_model.py must be a .npy file of numbers"),
        (
            ["own_model.py:build", "--images", "bytes.npy"],
            "must hold floating-point images of shape (n, C, H, W), found",
        ),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(
    own: Path, give: Give, tmp_path: Path, words: list[str], hint: str
) -> None:
    np.save(tmp_path / "bytes.npy", np.zeros((2, 8, 8, 1), dtype=np.uint8))
    said = give(*words)
    assert said.code == 2
    assert said.is_one_sentence(), said.err
    assert hint in said.err


def test_a_file_that_fails_while_it_is_read_is_said_and_a_module_of_a_file_is_a_model(
    own: Path, tmp_path: Path
) -> None:
    assert isinstance(build_named(f"{own}:ready").model, nn.Module)
    bad = tmp_path / "bad.py"
    bad.write_text("import no_such_library\n")
    with pytest.raises(DataError, match=r"bad.py failed with ModuleNotFoundError: No module named 'no_such_library'"):
        build_named(f"{bad}:build")


def test_a_package_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SettingsError, match=r"timm is not installed; install it with pip install 'exmap\[timm\]'"):
        build_named("timm:resnet18")
