"""Models by a word: what is built, with which outputs, names and preprocessing, and what is refused."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from exmap.data import array_split
from exmap.errors import CheckpointError, DataError, ExMapError, SettingsError
from exmap.model import (
    build_model,
    check_inputs,
    collect_outputs,
    find_last_layer,
    initial_model,
    load_weights,
    replace_head,
    save_weights,
)
from exmap.model.named import has_weights, kind_of, needs_gradient_free, own_class_names, own_preprocess
from exmap.registry import MODELS
from exmap.runtime import torch_seed
from exmap.settings import ModelSettings
from word_models import IMAGES, SIDE, Net, hugging_face, logits, net, onnx_file, own_file, script_file


def settings(name: str, **changes: Any) -> ModelSettings:
    return ModelSettings(name=name, **changes)


def words(folder: Path) -> dict[str, tuple[str, int]]:
    """Return a word of each kind, and the number of its outputs."""
    own = own_file(folder)
    hugging_face(folder / "vit")
    return {
        "torchvision": ("torchvision:resnet18", 3),
        "googlenet": ("torchvision:googlenet", 3),
        "timm": ("timm:resnet18.a1_in1k", 3),
        "hf": (f"hf:{folder / 'vit'}", 3),
        "function": (f"{own}:five", 5),
        "sized": (f"{own}:sized", 4),
        "module": (f"{own}:ready", 2),
        "onnx": (f"onnx:{onnx_file(net(), folder / 'net.onnx')}", 5),
        "fixed_onnx": (f"onnx:{onnx_file(net(), folder / 'two.onnx', batch=4)}", 5),
        "torchscript": (f"torchscript:{script_file(net(), folder / 'net.pt')}", 5),
        "traced": (f"torchscript:{script_file(net(), folder / 'traced.pt', trace=True)}", 5),
    }


KINDS = (
    "torchvision",
    "googlenet",
    "timm",
    "hf",
    "function",
    "sized",
    "module",
    "onnx",
    "fixed_onnx",
    "torchscript",
    "traced",
)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    return words(tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_by_a_word_is_read_repaired_copied_and_kept_as_any_other(
    kind: str, known: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    name, n = known[kind]
    side = 64 if kind in ("torchvision", "googlenet", "timm") else SIDE
    images = np.random.default_rng(1).random((5, 3, side, side), dtype=np.float32)
    one = settings(name)
    assert MODELS.get(name) is not None
    before = torch.get_rng_state()
    model = build_model(one, n, seed=3).eval()
    assert torch.equal(torch.get_rng_state(), before)
    check_inputs(model, images, n, gradient=not needs_gradient_free(one))
    outputs = collect_outputs(model, array_split(images, np.arange(5) % n))
    assert np.abs(outputs.logits - logits(model, images)).max() < 1e-5
    layer = find_last_layer(model, images)
    rng = np.random.default_rng(2)
    weight, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((n, layer.in_features), n))
    repaired = replace_head(model, layer, weight, bias)
    assert type(repaired) is type(model)
    assert np.abs(logits(repaired, images) - (outputs.features @ weight.T + bias)).max() < 1e-3
    assert np.array_equal(logits(model, images), logits(copy.deepcopy(model), images))
    assert np.array_equal(logits(model, images), logits(pickle.loads(pickle.dumps(model)), images))
    save_weights(repaired, tmp_path / "kept.safetensors")  # as a run keeps it
    again = build_model(one, n, seed=0)
    load_weights(again, tmp_path / "kept.safetensors")
    assert np.array_equal(logits(again, images), logits(repaired, images))


@pytest.mark.parametrize("kind", ["function", "hf", "onnx", "torchscript"])
def test_chosen_outputs_are_classes_in_their_order(kind: str, known: dict[str, tuple[str, int]]) -> None:
    name, n = known[kind]
    whole = logits(build_model(settings(name), n, seed=0))
    one = settings(name, outputs=(2, 0))
    model = build_model(one, 2, seed=0)
    assert np.allclose(logits(model), whole[:, [2, 0]], atol=1e-6)
    layer = find_last_layer(model, IMAGES)
    assert layer.weight.shape[0] == 2
    other = logits(replace_head(model, layer, layer.weight + 1, layer.bias))
    features = collect_outputs(model, array_split(IMAGES, np.arange(6) % 2)).features
    assert np.allclose(other, features @ (layer.weight + 1).T + layer.bias, atol=1e-4)
    for outputs, hint in (
        ((0, 9), f"0 to {n - 1}, got 9"),
        ((1, 1), "different numbers"),
        ((0, 1, 2), "one output for each"),
    ):
        with pytest.raises(ExMapError, match=hint):
            check_inputs(build_model(settings(name, outputs=outputs), 2, seed=0), IMAGES, 2, gradient=False)


def test_outputs_of_a_file_of_weights_are_the_rows_of_its_last_layer(tmp_path: Path) -> None:
    own, whole = own_file(tmp_path), net(6)
    torch.save({"state_dict": {f"model.{k}": v for k, v in whole.state_dict().items()}}, tmp_path / "last.ckpt")
    for function in ("sized", "five"):
        one = settings(f"{own}:{function}", weights=tmp_path / "last.ckpt", outputs=(4, 1))
        if function == "five":  # brings five outputs of its own
            with pytest.raises(CheckpointError, match="another number of classes, 6 where the model has 5"):
                initial_model(one, 2, seed=0)
            continue
        assert np.allclose(logits(initial_model(one, 2, seed=0)), logits(whole)[:, [4, 1]], atol=1e-6)
    with pytest.raises(CheckpointError, match=r"another number of classes, 6 where the model has 2.*--outputs"):
        initial_model(settings(f"{own}:sized", weights=tmp_path / "last.ckpt"), 2, seed=0)
    with pytest.raises(CheckpointError, match="the outputs must be 0 to 5, got 4, 7"):
        initial_model(settings(f"{own}:sized", weights=tmp_path / "last.ckpt", outputs=(4, 7)), 2, seed=0)


def test_one_output_of_a_file_becomes_two_classes(tmp_path: Path) -> None:
    own, one = own_file(tmp_path), net(1)
    torch.save(one.state_dict(), tmp_path / "one.pt")
    model = initial_model(settings(f"{own}:sized", weights=tmp_path / "one.pt"), 2, seed=0)
    z = logits(one)[:, 0]
    assert np.allclose(logits(model), np.stack([-z / 2, z / 2], axis=1), atol=1e-6)


def test_the_names_of_the_classes_are_the_models_own_and_in_the_order_of_the_outputs(
    known: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    assert own_class_names(settings(known["hf"][0])) == ("cat", "dog", "fox")
    assert own_class_names(settings(known["hf"][0], outputs=(2, 0))) == ("fox", "cat")
    assert own_class_names(settings(known["function"][0])) == ("a", "b", "c", "d", "e")
    assert own_class_names(settings("torchvision:resnet50", outputs=(954, 950))) == ("banana", "orange")
    assert own_class_names(settings("timm:resnet50.a1_in1k", outputs=(954, 950))) == ("banana", "orange")
    for name in ("resnet18", "torchvision:resnet50", "timm:resnet50", known["onnx"][0], known["sized"][0]):
        assert own_class_names(settings(name)) is None
    hugging_face(tmp_path / "unnamed", names=("LABEL_0", "LABEL_1"))
    assert own_class_names(settings(f"hf:{tmp_path / 'unnamed'}")) is None


def test_the_preprocessing_is_the_models_own(known: dict[str, tuple[str, int]], tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 250), "white")
    vision = own_preprocess(settings("torchvision:efficientnet_b3"))
    assert vision is not None
    assert vision(image).shape == (3, 300, 300)
    assert vision.mean == (0.485, 0.456, 0.406)
    small = own_preprocess(settings("timm:vit_tiny_patch16_224", img_size=96))
    assert small is not None
    assert small(image).shape == (3, 96, 96)
    assert small.mean == (0.5, 0.5, 0.5)
    processed = own_preprocess(settings(known["hf"][0]))
    assert processed is not None
    assert np.array_equal(processed(image), np.ones((3, SIDE, SIDE), dtype=np.float32))
    own = own_preprocess(settings(known["function"][0]))
    assert own is not None
    assert np.array_equal(own(image), np.full((3, 16, 16), 0.5, dtype=np.float32))
    for name in ("tiny", known["sized"][0], known["onnx"][0], known["torchscript"][0]):
        assert own_preprocess(settings(name)) is None
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((Path(known["hf"][0][3:]) / "config.json").read_text())
    assert own_preprocess(settings(f"hf:{tmp_path / 'bare'}")) is None


def test_what_brings_weights_and_what_has_no_gradient_is_known(
    known: dict[str, tuple[str, int]], tmp_path: Path
) -> None:
    with_weights = {kind for kind in KINDS if has_weights(settings(known[kind][0]))}
    assert with_weights == {"hf", "function", "sized", "module", "onnx", "fixed_onnx", "torchscript", "traced"}
    assert {kind for kind in KINDS if needs_gradient_free(settings(known[kind][0]))} == {
        "onnx", "fixed_onnx", "torchscript", "traced",
    }  # fmt: skip
    assert has_weights(settings("timm:hf-hub:somebody/something"))
    assert not has_weights(settings("resnet18"))
    assert kind_of("resnet18") == ""
    model = build_model(settings(known["onnx"][0]), 5, seed=0)
    with pytest.raises(DataError, match=r"has no gradients that torch can follow.*explain.explainer=occlusion"):
        check_inputs(model, IMAGES, 5)


def test_a_module_in_the_users_file_is_copied_and_stays_as_it_is(known: dict[str, tuple[str, int]]) -> None:
    name = known["module"][0]
    model, ready = build_model(settings(name), 2, seed=0), MODELS.get(name)
    assert model is not ready
    with torch.no_grad():
        model.fc.weight.zero_()
    assert ready.fc.weight.abs().sum() > 0


def test_options_of_a_word_are_those_of_its_builder(known: dict[str, tuple[str, int]]) -> None:
    assert set(MODELS.options("timm:resnet18")) == {"in_chans", "img_size", "global_pool"}
    assert set(MODELS.options(known["sized"][0])) == {"width"}
    grey = build_model(settings("timm:resnet18", in_chans=1), 2, seed=0)
    assert grey.conv1.in_channels == 1
    with pytest.raises(ValueError, match="did you mean 'width'"):
        build_model(settings(known["sized"][0], widht=3), 2, seed=0)


def test_weights_in_pytorch_model_bin_and_a_configuration_alone_are_built(tmp_path: Path) -> None:
    model = hugging_face(tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").unlink()
    alone = build_model(settings(f"hf:{tmp_path / 'vit'}"), 4, seed=0)
    assert logits(alone).shape == (6, 4)
    assert not has_weights(settings(f"hf:{tmp_path / 'vit'}"))
    torch.save(model.state_dict(), tmp_path / "vit" / "pytorch_model.bin")
    assert np.allclose(logits(build_model(settings(f"hf:{tmp_path / 'vit'}"), 3, seed=0)), logits(model), atol=1e-6)


REFUSED = [
    ("torchvision:resnet81", "unknown model of torchvision 'resnet81' (did you mean 'resnet18'"),
    ("timm:resnte18", "unknown model of timm 'resnte18' (did you mean 'resnet18'"),
    ("timm:resnet18.no_such_tag", "could not be built"),
    ("hf:nowhere", "hf: needs a folder with config.json, found none in nowhere"),
    ("hf:no_such/model", "there is no folder no_such/model with config.json, and the model of that id could not be"),
    ("timm:hf-hub:no_such/model", "timm's hf-hub:no_such/model could not be loaded"),
    ("onnx:none.onnx", "the ONNX file none.onnx does not exist"),
    ("torchscript:none.pt", "the TorchScript file none.pt does not exist"),
    ("onnx:mine.py", "mine.py must be a whole ONNX file"),
    ("torchscript:mine.py", "mine.py must be a file that torch.jit.save wrote"),
    ("none.py:build", "the file none.py of none.py:build does not exist"),
    ("mine.py:fiev", "unknown function 'fiev' (did you mean 'five'"),
    ("no_such_package.models:build", "there is no module 'no_such_package'"),
    ("mine.py:prepare", "it needs image"),
    ("mine.py:boxes", "found boxes of a detection model"),
    ("vit", "a folder that save_pretrained wrote is named with hf: before it, got vit; give hf:vit"),
    ("vat", "unknown model 'vat'"),
    ("hf:multi", "problem_type=multi_label_classification"),
    ("hf:detector", "could not be built by AutoModelForImageClassification"),
    ("hf:body", "they lack classifier.bias, classifier.weight, so that its last layer would be random"),
    ("hf:vit", "has 4 outputs, and the data have 3 classes; name the outputs"),
    ("onnx:five.onnx", "has 5 outputs, and the data have 3 classes; name the outputs"),
    ("onnx:two_inputs.onnx", "must take one batch of images"),
]  # fmt: skip


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    folder = tmp_path_factory.mktemp("bad")
    own_file(folder)
    hugging_face(folder / "vit", names=("a", "b", "c", "d"))
    hugging_face(folder / "multi", problem_type="multi_label_classification")
    transformers.DetrConfig(use_pretrained_backbone=False).save_pretrained(folder / "detector")
    whole = hugging_face(folder / "body")
    whole.vit.save_pretrained(folder / "body")
    onnx_file(net(5), folder / "five.onnx")
    two_inputs(folder / "two_inputs.onnx")
    return folder


def two_inputs(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "g", values[:2], values[2:])
    onnx.save(helper.make_model(graph), str(path))


@pytest.mark.parametrize(("word", "hint"), REFUSED)
def test_what_cannot_be_built_is_one_sentence(word: str, hint: str, bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bad)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # which else asks again for half a minute
    with pytest.raises(ExMapError) as caught:
        check_inputs(build_model(settings(word), 3, seed=0), IMAGES, 3, gradient=False)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_and_pretrained_are_refused_where_a_file_has_its_own(known: dict[str, tuple[str, int]]) -> None:
    for kind in ("onnx", "torchscript"):
        with pytest.raises(SettingsError, match="has its own weights"):
            build_model(settings(known[kind][0], weights=Path("w.pt")), 5, seed=0)
        with pytest.raises(SettingsError, match=r"model.pretrained is for models of torchvision and timm"):
            build_model(settings(known[kind][0], pretrained=True), 5, seed=0)


def test_the_file_says_the_same_as_the_model_it_was_made_of(tmp_path: Path) -> None:
    whole = net()
    endings: dict[str, nn.Module] = {
        "plain": whole,
        "soft": nn.Sequential(whole, nn.Softmax(1)),
        "bare": net(bias=False),
    }
    for name, model in endings.items():
        path = onnx_file(model, tmp_path / f"{name}.onnx", batch=4)
        made = build_model(settings(f"onnx:{path}"), 5, seed=0)
        assert np.allclose(logits(made), logits(model if name == "bare" else whole), atol=1e-6), name
        assert find_last_layer(made, IMAGES).name == "head"
    without = onnx_file(nn.Sequential(whole, nn.Tanh()), tmp_path / "tanh.onnx")
    made = build_model(settings(f"onnx:{without}"), 5, seed=0)
    assert np.allclose(logits(made), np.tanh(logits(whole)), atol=1e-6)
    with pytest.raises(DataError, match="needs logits that a linear map makes"):
        find_last_layer(made, IMAGES)
    path = script_file(nn.Sequential(whole, nn.Tanh()), tmp_path / "tanh.pt")
    made = build_model(settings(f"torchscript:{path}"), 5, seed=0)
    assert np.allclose(logits(made), np.tanh(logits(whole)), atol=1e-6)
    assert not list(made.parameters())


def test_channels_last_files_are_given_channels_last(tmp_path: Path) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Last().eval(), (torch.zeros(1, SIDE, SIDE, 3),), str(tmp_path / "last.onnx"), dynamo=False)
    made = build_model(settings(f"onnx:{tmp_path / 'last.onnx'}"), 5, seed=0)
    assert np.allclose(logits(made), logits(Last().inner), atol=1e-6)
    assert isinstance(Last().inner, Net)


def test_another_process_finds_the_class_of_a_users_file(known: dict[str, tuple[str, int]], tmp_path: Path) -> None:
    name, n = known["function"]
    model = build_model(settings(name), n, seed=0)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    code = (
        "import pickle, sys, exmap.runtime\n"
        "model = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(type(model).__name__, model.classes, model.preprocess(None).mean().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "model.pickle"], capture_output=True, text=True)
    assert done.stdout == "Net ['a', 'b', 'c', 'd', 'e'] 0.5\n", done.stderr


def whole_resnet(n: int = 1000) -> nn.Module:
    from torchvision import models

    with torch_seed(4):
        return models.resnet18(num_classes=n).eval()


def test_the_librarys_own_weights_are_taken_with_the_outputs_that_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet18_Weights

    whole, word = whole_resnet(), "torchvision:resnet18"
    images = np.random.default_rng(1).random((2, 3, 64, 64), dtype=np.float32)
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, **_: whole.state_dict())
    chosen = build_model(settings(word, pretrained=True, outputs=(954, 950)), 2, seed=0)
    assert np.allclose(logits(chosen, images), logits(whole, images)[:, [954, 950]], atol=1e-5)
    new = build_model(settings(word, pretrained=True), 3, seed=0)
    assert torch.equal(new.conv1.weight, whole.conv1.weight)
    assert new.fc.out_features == 3
    same = build_model(settings(word, pretrained=True), 1000, seed=0)
    assert np.allclose(logits(same, images), logits(whole, images), atol=1e-5)

    def gone(self: Any, **_: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", gone)
    with pytest.raises(CheckpointError, match=r"weights of resnet18 could not be loaded .*no route to host"):
        build_model(settings(word, pretrained=True), 3, seed=0)


def test_a_folder_of_timm_brings_weights_names_and_preprocessing(tmp_path: Path) -> None:
    import timm

    with torch_seed(0):
        whole = timm.create_model("test_resnet", num_classes=4).eval()
    config = {"label_names": ["a", "b", "c", "d"], "mean": (0.5, 0.4, 0.3), "input_size": (3, 64, 64)}
    timm.models.save_for_hf(whole, tmp_path / "mine", safe_serialization=True, model_config=config)
    word = f"timm:local-dir:{tmp_path / 'mine'}"
    images = np.random.default_rng(1).random((2, 3, 64, 64), dtype=np.float32)
    assert has_weights(settings(word))
    assert np.allclose(logits(build_model(settings(word), 4, seed=0), images), logits(whole, images), atol=1e-5)
    chosen = settings(word, outputs=(3, 1))
    assert np.allclose(logits(build_model(chosen, 2, seed=0), images), logits(whole, images)[:, [3, 1]], atol=1e-5)
    assert own_class_names(chosen) == ("d", "b")
    prepared = own_preprocess(chosen)
    assert prepared is not None
    assert prepared(Image.new("RGB", (90, 80))).shape[0] == 3
    with pytest.raises(DataError, match="has 4 outputs, and the data have 3 classes; name the outputs"):
        build_model(settings(word), 3, seed=0)
