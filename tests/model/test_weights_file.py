"""Files of weights as people have them: containers, prefixes, averages, objects; what fits, and what is said if not."""

from __future__ import annotations

import argparse
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from exmap.errors import CheckpointError
from exmap.model import load_weights
from exmap.model.weights_file import WeightsFile
from word_models import Net, net

State = dict[str, torch.Tensor]


def renamed(state: State, prefix: str) -> State:
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def other(state: State) -> State:
    """Return other numbers in the same tensors."""
    return {name: tensor + 1 for name, tensor in state.items()}


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone = model


class Marked:
    """An object of a class that is not loaded."""

    def __init__(self) -> None:
        self.values = [1, 2]


WRITTEN: dict[str, tuple[Callable[[State], Any], tuple[str, ...], str]] = {
    "plain": (lambda s: s, (), ""),
    "module.": (lambda s: renamed(s, "module."), (), "module."),
    "compiled": (lambda s: renamed(s, "_orig_mod."), (), "_orig_mod."),
    "compiled and parallel": (lambda s: renamed(s, "module._orig_mod."), (), "module._orig_mod."),
    "compiled inside": (lambda s: {f"net.{n}".replace("body", "body._orig_mod"): t for n, t in s.items()}, (), "net."),
    "lightning": (
        lambda s: {
            "epoch": 4,
            "global_step": 90,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": renamed(s, "model.") | {"criterion.weight": torch.ones(5)},
            "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}}],
            "hyper_parameters": {"lr": 0.1},
        },
        ("state_dict",),
        "model.",
    ),
    "lightning's arguments": (
        lambda s: {"state_dict": renamed(s, "model."), "hyper_parameters": argparse.Namespace(), "mark": Marked()},
        ("state_dict",),
        "model.",
    ),
    "timm": (lambda s: {"state_dict_ema": other(s), "state_dict": s, "arch": "x"}, ("state_dict",), ""),
    "an average alone": (lambda s: {"model_ema": {"module": s}, "args": {"ema": True}}, ("model_ema", "module"), ""),
    "student and teacher": (lambda s: {"student": s, "teacher": other(s)}, ("student",), ""),
    "average beside": (lambda s: renamed(other(s), "ema_model.") | renamed(s, "online_model."), (), "online_model."),
    "checkpoint": (lambda s: {"model": renamed(s, "module."), "optimizer": {"state": {}}}, ("model",), "module."),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_file_is_read_however_its_names_are_wrapped(kind: str, tmp_path: Path) -> None:
    make, container, prefix = WRITTEN[kind]
    model, trained = net(5, seed=1), net(5, seed=2)
    torch.save(make(trained.state_dict()), tmp_path / "w.ckpt")
    found = WeightsFile.read(tmp_path / "w.ckpt", model)
    assert (found.kind, found.container, found.prefix) == ("torch", container, prefix)
    load_weights(model, tmp_path / "w.ckpt")
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", [*WRITTEN, "safetensors"])
def test_a_file_is_written_again_with_another_last_layer_and_all_else_as_it_was(kind: str, tmp_path: Path) -> None:
    model, trained = net(5, seed=1), net(5, seed=2)
    path = tmp_path / "w.pt"
    if kind == "safetensors":
        save_file(renamed(trained.half().state_dict(), "net."), path, {"made": "by me"})
    else:
        torch.save(WRITTEN[kind][0](trained.state_dict()), path)
    new = {"fc.weight": torch.full((5, 4), 2.0), "fc.bias": torch.arange(5.0)}
    found = WeightsFile.read(path, model)
    content, left = found.changed(new)
    assert left == (("hyper_parameters", "mark") if kind == "lightning's arguments" else ())
    if kind == "safetensors":
        assert found.metadata == {"made": "by me"}
        save_file(content, tmp_path / "again")
        assert load_file(tmp_path / "again")["net.fc.weight"].dtype == torch.float16
    else:
        torch.save(content, tmp_path / "again")
        whole = torch.load(tmp_path / "again", weights_only=True)
        if kind == "lightning":
            assert (whole["epoch"], whole["hyper_parameters"]) == (4, {"lr": 0.1})
            assert torch.equal(whole["state_dict"]["criterion.weight"], torch.ones(5))
    load_weights(model, tmp_path / "again")
    state = trained.float().state_dict() | new
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_rows_of_a_wider_file_are_changed_and_the_others_stay(tmp_path: Path) -> None:
    wide, model = net(6, seed=1), net(2, seed=2)
    save_file(wide.state_dict(), tmp_path / "wide")
    load_weights(model, tmp_path / "wide", outputs=(4, 1))
    assert torch.equal(model.fc.weight, wide.fc.weight[[4, 1]])
    content, _ = WeightsFile.read(tmp_path / "wide", model).changed({"fc.bias": torch.tensor([7.0, 8.0])}, (4, 1))
    expected = wide.fc.bias.detach().clone()
    expected[4], expected[1] = 7, 8
    assert torch.equal(content["fc.bias"], expected)
    assert torch.equal(content["fc.weight"], wide.fc.weight)


def test_one_row_is_changed_by_the_difference_of_two(tmp_path: Path) -> None:
    torch.save(net(1).state_dict(), tmp_path / "one")
    model = net(2)
    load_weights(model, tmp_path / "one", halved=True)
    content, _ = WeightsFile.read(tmp_path / "one", model).changed({"fc.bias": torch.tensor([1.0, 4.0])})
    assert torch.equal(content["fc.bias"], torch.tensor([3.0]))
    with pytest.raises(CheckpointError, match="another number of classes, 1 where the model has 2"):
        load_weights(model, tmp_path / "one")


def test_a_model_around_that_of_the_file_is_filled(tmp_path: Path) -> None:
    trained, model = net(5, seed=2), Wrapped(net(5, seed=1))
    torch.save({"state_dict": renamed(trained.state_dict(), "module.")}, tmp_path / "w")
    torch.save(trained.state_dict(), tmp_path / "inner")
    for name in ("inner",):
        load_weights(model, tmp_path / name)
        assert torch.equal(model.backbone.fc.weight, trained.fc.weight)
        content, _ = WeightsFile.read(tmp_path / name, model).changed({"backbone.fc.bias": torch.zeros(5)})
        assert content["fc.bias"].abs().sum() == 0


def test_a_module_that_was_saved_whole_is_read_without_its_class(tmp_path: Path) -> None:
    trained, model = nn.Sequential(net(5, seed=2), nn.BatchNorm1d(5)), nn.Sequential(net(5), nn.BatchNorm1d(5))
    trained[1].running_mean.fill_(3)
    torch.save(trained, tmp_path / "whole.pt")
    torch.save({"model": trained, "epoch": 3}, tmp_path / "inside.pt")
    for name in ("whole.pt", "inside.pt"):
        load_weights(model, tmp_path / name)
        state = trained.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_what_counts_nothing_may_be_missing_or_too_much(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    state = model.state_dict()
    del state["1.num_batches_tracked"]
    save_file(state | {"0.total_ops": torch.ones(1)}, tmp_path / "w")
    load_weights(model, tmp_path / "w")


def refusal(model: nn.Module, path: Path) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_of_other_models_are_refused_in_one_sentence(tmp_path: Path) -> None:
    def written(content: Any) -> Path:
        torch.save(content, tmp_path / "w.pt")
        return tmp_path / "w.pt"

    state = net(5).state_dict()
    said = refusal(
        net(5), written({"state_dict": renamed({k: v for k, v in state.items() if "fc" not in k}, "model.")})
    )
    assert (
        "has no layer 'fc.weight', which the model has with shape (5, 4) (2 are missing, among them 'fc.bias')" in said
    )
    said = refusal(net(5), written(renamed(state | {"fc2.bias": torch.ones(2), "fc3.bias": torch.ones(2)}, "m.")))
    assert (
        "has a layer 'm.fc2.bias' of shape (2,) that the model lacks (2 are too much, among them 'm.fc3.bias')" in said
    )
    said = refusal(net(2), written(state))
    assert "another number of classes, 5 where the model has 2 (layer 'fc.weight' has shape (5, 4) there" in said
    said = refusal(net(5), written({"conv1.weight": torch.ones(3), "x": {"y.z": torch.ones(2)}}))
    assert (
        "no name in it is one of the model's: it has 'conv1.weight', the model 'body.0.weight', 'body.0.bias'" in said
    )
    assert "must hold the weights of a model by name, but holds a dict of 'epoch'" in refusal(
        net(5), written({"epoch": 3})
    )
    assert "but holds a Tensor" in refusal(net(5), written(torch.ones(3)))
    said = refusal(net(5), written({**state, "body.0.weight": torch.ones(8, 3, 5, 5)}))
    assert said.startswith("layer 'body.0.weight' has shape (4, 3, 3, 3) in the model and (8, 3, 5, 5) in ")


def test_a_program_of_torchscript_is_named_as_such(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(net(5)), str(tmp_path / "s.pt"))
    assert "is a TorchScript program, not a file of weights; give it as the model, torchscript:" in refusal(
        net(5), tmp_path / "s.pt"
    )


def test_a_cut_file_of_torch_is_refused(tmp_path: Path) -> None:
    torch.save(net(5).state_dict(), tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:900])
    assert "must be a whole file of weights that can be read without executing anything" in refusal(
        net(5), tmp_path / "w.pt"
    )


class Trap:
    """Runs a function of the interpreter's own when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def test_functions_in_a_file_are_never_called_though_its_weights_are_read(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"state_dict": net(5, seed=2).state_dict(), "extra": Trap(marker)}, tmp_path / "w.pt")
    model = Net(5)
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model.fc.weight, net(5, seed=2).fc.weight)
    assert not marker.exists()
    torch.load(tmp_path / "w.pt", weights_only=False)  # the trap was live
    assert marker.exists()
