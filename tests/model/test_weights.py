from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from exmap.errors import CheckpointError
from exmap.model import build_model, load_weights, save_weights
from exmap.model.weights import load_tensors, save_tensors
from exmap.settings import ModelSettings


def small(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 3))


def refusal(model: nn.Module, path: Path) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return str(caught.value)


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    saved, loaded = (build_model(ModelSettings(stem="3x3"), 3, seed=s) for s in (0, 10))
    saved.to(memory_format=torch.channels_last)
    saved.get_buffer("bn1.running_mean").normal_(generator=torch.Generator().manual_seed(0))
    assert not torch.equal(saved.get_parameter("fc.weight"), loaded.get_parameter("fc.weight"))
    save_weights(saved, path)
    load_weights(loaded, path)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_tensors_keep_their_types_and_metadata(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3), "b": torch.ones(2, 2, dtype=torch.bfloat16), "c": torch.tensor(1.5)}
    save_tensors(tensors, tmp_path / "t", {"epoch": "3"})
    found, metadata = load_tensors(tmp_path / "t")
    assert metadata == {"epoch": "3"}
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_another_stem_is_refused_with_the_layer_and_both_shapes(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save_weights(build_model(ModelSettings(stem="imagenet"), 3, seed=0), path)
    assert refusal(build_model(ModelSettings(stem="3x3"), 3, seed=0), path) == (
        f"layer 'conv1.weight' has shape (64, 3, 3, 3) in the model and (64, 3, 7, 7) in {path}; the weights belong to "
        "another architecture: build the model they were saved from"
    )


def test_the_first_layer_that_differs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w"
    model = small()
    model[3] = nn.Linear(9, 4)
    save_weights(model, path)
    assert refusal(small(), path).startswith("layer '3.weight' has shape (3, 8) in the model and (4, 9) in ")


def test_a_missing_and_an_extra_layer_are_refused_with_their_shape(tmp_path: Path) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    save_weights(small()[:3], short)
    save_weights(nn.Sequential(*small(), nn.Linear(3, 2)), long)
    assert refusal(small(), short) == (
        f"{short} has no layer '3.weight', which the model has with shape (3, 8) (2 are missing, among them '3.bias'); "
        "it belongs to another architecture: build the model it was saved from"
    )
    message = refusal(small(), long)
    assert message.startswith(f"{long} has a layer '4.")
    assert "that the model lacks (2 are too much, among them '4." in message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    assert refusal(small(), path) == f"weights file {path} does not exist; give an existing safetensors file"


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_cut_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "w"
    save_weights(small(), path)
    path.write_bytes(path.read_bytes()[:kept])
    assert refusal(small(), path).startswith(f"{path} must be a whole safetensors file, but cannot be read (")


class Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_is_refused_and_never_executed(tmp_path: Path) -> None:
    path, marker = tmp_path / "w.pt", tmp_path / "executed"
    torch.save({"0.weight": torch.zeros(2), "trap": Trap(marker)}, path)
    message = refusal(small(), path)
    assert message.startswith(
        f"{path} must be a whole file of weights that can be read without executing anything, but"
    )
    assert message.endswith("save model.state_dict() alone, best by safetensors.torch.save_file")
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the trap was live
    assert marker.exists()


def test_a_file_written_by_safetensors_itself_can_be_loaded(tmp_path: Path) -> None:
    model, other = small(), small()
    save_file(model.state_dict(), tmp_path / "theirs")
    load_weights(other, tmp_path / "theirs")
    save_weights(other, tmp_path / "ours")
    assert torch.equal(load_file(tmp_path / "ours")["0.weight"], model.state_dict()["0.weight"])


def test_a_write_without_room_is_an_os_error_and_leaves_no_file_or_the_old_one(tmp_path: Path) -> None:
    code = (
        "import pathlib, resource, signal, sys, torch\n"
        "from exmap.model.weights import save_weights\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "small, large = torch.nn.Linear(2, 2), torch.nn.Linear(300, 300)\n"
        "new, old = (pathlib.Path(sys.argv[1]) / name for name in ('new', 'old'))\n"
        "save_weights(small, old)\n"
        "before = old.read_bytes()\n"
        "for path in (new, old):\n"
        "    try:\n"
        "        save_weights(large, path)\n"
        "    except OSError:\n"
        "        print('refused', path.exists() and path.read_bytes() == before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["refused False", "refused True"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
