"""A repaired classifier in the form it came in, opened again by its own library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from exmap.errors import DataError, RunFolderError
from exmap.export.repaired import Saved, save_repaired
from exmap.model import find_last_layer, initial_model, replace_head
from exmap.settings import ModelSettings
from word_models import IMAGES, hugging_face, logits, net, onnx_file, own_file, script_file

Array = np.ndarray[Any, Any]


def repaired_as(settings: ModelSettings, n: int, folder: Path, **more: Any) -> tuple[Saved, nn.Module, Array]:
    """Repair a model with drawn numbers, save it, and return what was saved, the model, and the repaired logits."""
    model = initial_model(settings, n, seed=0).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer = find_last_layer(model, IMAGES)
    rng = np.random.default_rng(5)
    weight, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((n, layer.in_features), n))
    repaired = replace_head(model, layer, weight, bias)
    saved = save_repaired(model, repaired, settings, folder, images=IMAGES, **more)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert saved.folder == folder
    assert saved.gap < 1e-4
    record = json.loads((folder / "repaired.json").read_text())
    assert (record["format"], record["form"], record["notes"]) == (1, saved.form, list(saved.notes))
    assert not list(folder.parent.glob("*.part*"))
    assert not list(folder.glob("*.part*"))
    return saved, model, logits(repaired)


def applied(saved: Saved, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Run the lines that put the new head into a model of the user's."""
    monkeypatch.chdir(saved.folder)
    assert (saved.folder / "apply_head.py").read_text() == saved.snippet
    space: dict[str, Any] = {"model": model}
    exec(saved.snippet, space)
    found: nn.Module = space["model"]
    return found


def test_a_hugging_face_folder_opens_as_one_with_its_names_and_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    own = hugging_face(tmp_path / "vit")
    saved, _, wanted = repaired_as(ModelSettings(name=f"hf:{tmp_path / 'vit'}"), 3, tmp_path / "out")
    assert saved.form == "a Hugging Face folder"
    opened = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert np.allclose(logits(opened), wanted, atol=1e-5)
    assert opened.config.id2label == {0: "cat", 1: "dog", 2: "fox"}
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path / "out").size["height"] == 16
    assert np.allclose(logits(applied(saved, own, monkeypatch)), wanted, atol=1e-5)
    assert saved.opens.startswith("transformers.AutoModelForImageClassification.from_pretrained(")


def test_chosen_outputs_go_back_among_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    own = hugging_face(tmp_path / "vit", names=("a", "b", "c", "d"))
    before = logits(own)
    saved, _, wanted = repaired_as(ModelSettings(name=f"hf:{tmp_path / 'vit'}", outputs=(3, 1)), 2, tmp_path / "out")
    opened = logits(transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out"))
    assert np.allclose(opened[:, [3, 1]], wanted, atol=1e-5)
    assert np.allclose(opened[:, [0, 2]], before[:, [0, 2]], atol=1e-6)
    after = logits(applied(saved, own, monkeypatch))
    assert np.allclose(after, opened, atol=1e-5)
    assert load_file(tmp_path / "out" / "head.safetensors")["weight"].shape == (2, 8)


@pytest.mark.parametrize("ending", ["ckpt", "safetensors", "pth"])
def test_weights_are_written_with_the_users_own_names_container_and_kind(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, trained, path = own_file(tmp_path), net(3, seed=7), tmp_path / f"best.{ending}"
    state = {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
    if ending == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 3, "model_ema": state}, path)
    before = path.read_bytes()
    settings = ModelSettings(name=f"{own}:sized", weights=path)
    saved, _, wanted = repaired_as(settings, 3, tmp_path / "out")
    assert saved.model == tmp_path / "out" / f"repaired.{ending}"
    assert path.read_bytes() == before
    if ending == "safetensors":
        again = load_file(saved.model)
    else:
        whole = torch.load(saved.model, weights_only=True)
        again = whole["model"]
        assert whole["epoch"] == 3
        assert torch.equal(whole["model_ema"]["module.fc.weight"], trained.fc.weight)
        assert saved.notes == (
            "Your file also holds weights as model_ema; these are as they were, and the repaired ones are model.",
        )
    assert again.keys() == state.keys()
    fresh = net(3)
    fresh.load_state_dict({name.removeprefix("module."): tensor for name, tensor in again.items()})
    assert np.allclose(logits(fresh), wanted, atol=1e-5)
    assert np.allclose(logits(applied(saved, trained, monkeypatch)), wanted, atol=1e-5)


def test_rows_of_a_wider_file_and_of_a_wider_function_are_written_and_the_others_stay(tmp_path: Path) -> None:
    own, wide = own_file(tmp_path), net(5, seed=7)
    torch.save(wide.state_dict(), tmp_path / "w.pt")
    for number, function in enumerate(("sized", "five")):
        settings = ModelSettings(name=f"{own}:{function}", weights=tmp_path / "w.pt", outputs=(4, 0))
        saved, _, wanted = repaired_as(settings, 2, tmp_path / f"out{number}")
        fresh = net(5)
        fresh.load_state_dict(torch.load(saved.model, weights_only=True))
        assert np.allclose(logits(fresh)[:, [4, 0]], wanted, atol=1e-5), function
        assert np.array_equal(logits(fresh)[:, 1:4], logits(wide)[:, 1:4]), function


def test_one_output_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, one = own_file(tmp_path), net(1, seed=7)
    torch.save(one.state_dict(), tmp_path / "w.pt")
    saved, _, wanted = repaired_as(ModelSettings(name=f"{own}:sized", weights=tmp_path / "w.pt"), 2, tmp_path / "out")
    fresh = net(1)
    fresh.load_state_dict(torch.load(saved.model, weights_only=True))
    assert np.allclose(logits(fresh)[:, 0], wanted[:, 1] - wanted[:, 0], atol=1e-5)
    assert np.allclose(logits(applied(saved, one, monkeypatch)), logits(fresh), atol=1e-5)


def test_a_function_that_brings_its_weights_gets_a_file_and_a_registered_name_too(tmp_path: Path) -> None:
    own = own_file(tmp_path)
    saved, model, wanted = repaired_as(ModelSettings(name=f"{own}:ready"), 2, tmp_path / "out")
    assert saved.model.name == "repaired.safetensors"
    model.load_state_dict(load_file(saved.model))
    assert np.allclose(logits(model), wanted, atol=1e-5)
    saved, model, wanted = repaired_as(ModelSettings(name="tiny"), 2, tmp_path / "tiny")
    model.load_state_dict(load_file(saved.model))
    assert np.allclose(logits(model), wanted, atol=1e-5)


def test_a_layer_without_bias_gets_one_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_file(tmp_path)
    saved, model, wanted = repaired_as(ModelSettings(name=f"{own}:without_bias"), 3, tmp_path / "out")
    assert saved.notes == ("The last layer had no bias; the repaired one has.",)
    assert "fc.bias" in load_file(saved.model)
    assert np.allclose(logits(applied(saved, model, monkeypatch)), wanted, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is")
@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [(), (4, 0)])
def test_a_model_in_a_file_is_written_as_such_a_file(
    kind: str, bias: bool, outputs: tuple[int, ...], tmp_path: Path
) -> None:
    import onnxruntime

    own = net(5, seed=7, bias=bias)
    ended = nn.Sequential(own, nn.Softmax(1)) if kind == "onnx" else own
    path = onnx_file(ended, tmp_path / "net.onnx") if kind == "onnx" else script_file(own, tmp_path / "net.pt")
    n = len(outputs) or 5
    saved, _, wanted = repaired_as(ModelSettings(name=f"{kind}:{path}", outputs=outputs), n, tmp_path / "out")
    if kind == "onnx":
        session = onnxruntime.InferenceSession(str(saved.model))
        found = np.log(session.run(None, {"x": IMAGES})[0])
        found, wanted = (each - each[:, -1:] for each in (found[:, list(outputs)] if outputs else found, wanted))
    else:
        found = torch.jit.load(str(saved.model))(torch.from_numpy(IMAGES)).detach().numpy()
        if outputs:
            assert np.allclose(found[:, 1:4], logits(own)[:, 1:4], atol=1e-5)
            found = found[:, list(outputs)]
    assert np.allclose(found, wanted, atol=1e-4)
    assert saved.program is None


def test_a_program_takes_any_number_of_images(tmp_path: Path) -> None:
    own = own_file(tmp_path)
    hugging_face(tmp_path / "vit")
    for number, (name, n) in enumerate(((f"{own}:five", 5), (f"hf:{tmp_path / 'vit'}", 3))):
        saved, _, wanted = repaired_as(ModelSettings(name=name), n, tmp_path / f"out{number}", export=True)
        assert saved.program == saved.folder / "repaired.pt2"
        program = torch.export.load(saved.program).module()
        for count in (1, 3, 6):
            assert np.allclose(program(torch.from_numpy(IMAGES[:count])).detach(), wanted[:count], atol=1e-5)
    path = onnx_file(net(), tmp_path / "net.onnx")
    saved, _, _ = repaired_as(ModelSettings(name=f"onnx:{path}"), 5, tmp_path / "out", export=True)
    assert saved.program is None
    assert saved.notes == ("There is no program of torch.export: a model in a file is a program already.",)


COSINE = """
import torch
import torch.nn.functional as F
from torch import nn


class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.directions = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return 3 * F.linear(F.normalize(self.body(x)), F.normalize(self.directions))


class Normed(Cosine):
    def __init__(self):
        super().__init__()
        self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))

    def forward(self, x):
        return self.fc(self.body(x))
"""


def test_a_last_layer_that_is_none_is_kept_in_a_program_and_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cosine.py").write_text(COSINE)
    saved, _, wanted = repaired_as(ModelSettings(name=f"{tmp_path / 'cosine.py'}:Cosine"), 3, tmp_path / "out")
    assert "cannot hold the new one" in saved.notes[0]
    assert saved.program is None or saved.program.is_file()
    assert 'logits = features @ head["weight"].T + head["bias"]' in saved.snippet
    saved, model, wanted = repaired_as(ModelSettings(name=f"{tmp_path / 'cosine.py'}:Normed"), 3, tmp_path / "normed")
    assert "put one into your own model" in saved.notes[0]
    assert np.allclose(logits(applied(saved, model, monkeypatch)), wanted, atol=1e-5)


def test_all_weights_may_have_changed(tmp_path: Path) -> None:
    own = own_file(tmp_path)
    settings = ModelSettings(name=f"{own}:five")
    model = initial_model(settings, 5, seed=0)
    trained = net(5, seed=11)
    other = initial_model(settings, 5, seed=0).eval()
    other.load_state_dict(trained.state_dict())
    saved = save_repaired(model, other, settings, tmp_path / "out", images=IMAGES)
    assert (saved.head, saved.snippet) == (None, "")
    assert np.array_equal(load_file(saved.model)["body.0.weight"], trained.body[0].weight.detach())


def test_a_folder_of_other_files_is_refused_and_an_earlier_one_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"")
    with pytest.raises(RunFolderError, match="needs a new folder, an empty one or an earlier one"):
        repaired_as(ModelSettings(name="tiny"), 2, tmp_path / "mine")
    repaired_as(ModelSettings(name="tiny"), 2, tmp_path / "out")
    repaired_as(ModelSettings(name="tiny"), 3, tmp_path / "out")
    with pytest.raises(DataError, match="must be of the same kind as the model, but it lacks"):
        save_repaired(net(), nn.Flatten(), ModelSettings(name="tiny"), tmp_path / "other", images=IMAGES)
    assert not (tmp_path / "other").exists()
