"""What an audit cannot be made of: one sentence and exit code 2 of the command, an error of exmap's own from Python."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import exmap
from audited import Net, audit, photographs, user
from exmap.data.planted import planted_shortcut
from exmap.errors import DataError, SettingsError
from running import Said
from word_models import hugging_face, onnx_file, script_file

BAD = """
import sys
import torch
import torchvision
from net import Net, plain, prepare, two


def raises():
    raise RuntimeError("no GPU\\nand more")


def wants(path, depth):
    return Net(2)


def gives_a_dict():
    return {"a": 1}


def leaves():
    sys.exit(3)


def detector():
    models = torchvision.models.detection
    return models.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3)


def segments():
    return torch.nn.Conv2d(3, 2, 1)


def small(image):
    return prepare(image)[:, :8, :8]


def picture(image):
    return image


def nan(image):
    return prepare(image) * float("nan")


def fails(image):
    return 1 / 0


def random(image):
    return prepare(image) + torch.rand(1)


def last(image):
    return prepare(image).permute(1, 2, 0)


def sizes(image):
    return prepare(image)[:, : 8 + 8 * (image.getpixel((8, 8))[0] % 2)]


def grey(image):
    return prepare(image)[:1]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the user's files, bad ones among them, and photographs of two classes."""
    folder = user(tmp_path_factory.mktemp("place"))
    (folder / "bad.py").write_text(BAD)
    (folder / "syntax.py").write_text("def build(:\n")
    (folder / "imports.py").write_text("import no_such_library\n")
    photographs(folder / "photos", images=40)
    return folder


@pytest.fixture
def refusal(place: Path, tmp_path: Path) -> Callable[..., str]:
    def refuse(model: str, *words: str | Path, data: Path | str | None = None, weights: Path | None = None) -> str:
        named = model if ":" in model else f"{place / 'bad.py'}:{model}"
        images = place / "photos" if data is None else data
        said: Said = audit(named, images, tmp_path / "out", *words, weights=weights)
        assert said.refused(), said
        assert "explain" not in said.out  # before any work
        return said.err

    return refuse


# Models


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("no_module.sub:build", "there is no module 'no_module'"),
        ("{place}/no.py:build", "no.py of .* does not exist"),
        ("{place}/syntax.py:build", "failed with SyntaxError: invalid syntax"),
        ("{place}/imports.py:build", "failed with ModuleNotFoundError: No module named 'no_such_library'"),
        ("{place}/bad.py:plan", "unknown function 'plan' .did you mean 'plain'"),
        ("raises", "failed with RuntimeError: no GPU; run it by itself"),
        ("wants", "but it needs path, depth"),
        ("gives_a_dict", "must return a torch.nn.Module, got dict"),
        ("leaves", "failed with SystemExit: 3"),
        ("timm:resnt18", "unknown model of timm 'resnt18' .did you mean 'resnet18'"),
        ("torchvision:resnt18", "unknown model of torchvision 'resnt18' .did you mean 'resnet18'"),
        ("torchvision:fasterrcnn_resnet50_fpn", "an image classifier is needed"),
        ("timm:", "unknown model of timm ''"),
        ("torchvision:resnet18", "random weights, .* name the file of its trained weights with --weights"),
        ("hf:./no-such", "hf: needs a folder with config.json, found none"),
        ("onnx:no.onnx", "the ONNX file no.onnx does not exist"),
        ("torchscript:no.pt", "the TorchScript file no.pt does not exist"),
        ("plain", "does not specify its preprocessing; name its transform with --transform"),
    ],
)
def test_models_that_cannot_be_built(place: Path, refusal: Callable[..., str], model: str, said: str) -> None:
    assert _says(said, refusal(model.format(place=place)))


def test_unknown_registered_names_are_refused_before_their_weights_are_asked_for(tmp_path: Path, place: Path) -> None:
    said = audit("resnt18", place / "photos", tmp_path / "out")
    assert said.refused()
    assert "did you mean 'resnet18'" in said.err


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("net.py", "is named by the function or class that makes it, such as .*net.py:.*; net.py has .*two"),
        ("syntax.py", "such as .*syntax.py:build, got .*syntax.py$"),
        ("two.pt", r"two.pt is a file of weights, and the model .* is needed, too: give the file by .*--weights"),
        ("net.onnx", "give onnx:.*net.onnx"),
        ("photos", "give hf:.*photos"),
        ("resnet101", "choose one of: .*resnet18.*, or give torchvision:NAME, timm:NAME"),
    ],
)
def test_models_that_are_named_as_people_do_at_first(place: Path, tmp_path: Path, model: str, said: str) -> None:
    word = model if model == "resnet101" else str(place / model)
    found = audit(word, place / "photos", tmp_path / "out")
    assert found.refused(), found
    assert _says(said, found.err.strip())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("detector", "found boxes of a detection model"),
        ("segments", r"must return logits, .* found a tensor of shape \(2, 2, 16, 16\)"),
    ],
)
def test_models_that_are_no_classifiers(place: Path, refusal: Callable[..., str], model: str, said: str) -> None:
    assert _says(said, refusal(model, "--transform", f"{place}/bad.py:prepare"))


def test_models_in_folders_and_files_that_will_not_do(place: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    hugging_face(tmp_path / "several", ("bar 0", "bar 1"), problem_type="multi_label_classification")
    assert "problem_type=multi_label_classification" in refusal(f"hf:{tmp_path / 'several'}")
    hugging_face(tmp_path / "pets")
    assert "'bar 0', 'bar 1' of photos (40 images) is none of 'cat', 'dog', 'fox'" in refusal(f"hf:{tmp_path / 'pets'}")
    transform = ("--transform", f"{place}/bad.py:prepare")
    (tmp_path / "no.onnx").write_bytes(b"no model")
    assert "must be a whole ONNX file" in refusal(f"onnx:{tmp_path / 'no.onnx'}", *transform)
    file = script_file(nn.Conv2d(3, 2, 1), tmp_path / "segments.pt")
    assert "must return logits" in refusal(f"torchscript:{file}", *transform)
    file = onnx_file(Net(2), tmp_path / "net.onnx")
    assert "has its own weights" in refusal(f"onnx:{file}", *transform, weights=place / "two.pt")
    assert "does not specify" in refusal(f"onnx:{file}")


def test_what_an_id_names_needs_a_network(place: Path, refusal: Callable[..., str], monkeypatch: Any) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "without a network give a folder that save_pretrained wrote" in refusal("hf:nobody/no-model")
    assert "no-data could not be loaded" in refusal("two", data="hf:nobody/no-data", weights=place / "two.pt")


# Weights


def _write_weights(place: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(folder / "executed"),)

    state = torch.load(place / "two.pt", weights_only=True)
    whole = (place / "two.pt").read_bytes()
    found: dict[str, tuple[Any, str]] = {
        "absent.pt": (None, "does not exist"),
        "cut.pt": (whole[:3000], "must be a whole file of weights"),
        "empty.pt": (b"", "must be a whole safetensors file"),
        "text.pt": (b"hello, world", "must be a whole safetensors file"),
        "evil.pkl": (pickle.dumps(Evil()), "read without executing anything"),
        "evil.pt": (Evil(), "read without executing anything"),
        "none.pt": ({"epoch": 3}, "must hold the weights of a model by name, but holds a dict of 'epoch'"),
        "other.pt": (nn.Conv2d(3, 3, 3).state_dict(), "the weights belong to another architecture"),
        "nan.pt": ({name: p * float("nan") for name, p in state.items()}, "hold NaN or infinity"),
    }
    for name, (content, _) in found.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        elif content is not None:
            torch.save(content, folder / name)
    return {name: (folder / name, said) for name, (_, said) in found.items()}


def test_weights_that_are_none_of_the_model(place: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    for path, said in _write_weights(place, tmp_path).values():
        assert said in refusal("two", weights=path)
    assert not (tmp_path / "executed").exists()
    assert "is a folder" in refusal("two", weights=tmp_path)
    other = refusal("two", weights=place / "three.pt")
    assert "another number of classes, 3 where the model has 2" in other
    assert "--outputs" in other


# Transforms


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        ("small", r"the model failed on images of shape \(2, 3, 8, 8\)"),
        ("grey", "give images with 3 channels"),
        ("picture", "must return a tensor of shape .C, H, W., got Image"),
        ("nan", "must return finite numbers"),
        ("fails", "failed with ZeroDivisionError"),
        ("random", "must make the same input of an image each time"),
        ("last", "channels first"),
        ("sizes", "must make inputs of one size"),
        ("leaves", "failed with SystemExit"),
        ("absent", "unknown function 'absent'"),
    ],
)
def test_transforms_that_will_not_do(place: Path, refusal: Callable[..., str], transform: str, said: str) -> None:
    assert _says(said, refusal("plain", "--transform", f"{place}/bad.py:{transform}", weights=place / "two.pt"))


# Classes and outputs


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--classes", "bar 0"), "'bar 1' .did you mean 'bar 0'"),
        (("--classes", "bar 0,bar 1,bar 1"), "names 'bar 1' again"),
        (("--classes", "Bar 0,Bar 1"), "is none of 'Bar 0', 'Bar 1'.* with --classes"),
        (("--classes", "bar 0,bar 1,bar 2"), "the model outputs 2 classes, the data set has 3"),
        (("--outputs", "0,0"), "different numbers"),
        (("--outputs", "0"), "two or more"),
        (("--outputs", "-1,0"), "greater than or equal to 0, got -1"),
        (("--outputs", "a,b"), "--outputs must be whole numbers"),
        (("--outputs", "0,1,2"), "one output for each class of the data, 2, got 3"),
        (("--outputs", "0,7"), "outputs that the model has, 0 to 1, got 7; correct it"),
        (("--groups", "place"), "--groups names columns, .* is a folder per class"),
        (("--label", "place"), "--label names columns"),
        (("--set", "modl.name=x"), "unknown setting 'modl' .did you mean 'model'"),
        (("--set", "train.epochs=3"), "trains no network"),
        (("--set", "groups.auto=false"), "groups.auto must be true"),
        (("--set", "retrain={learner: rwg}"), "trains no network, but retrain.learner=rwg does"),
        (("--test", "no-such-folder"), "there is no no-such-folder"),
    ],
)
def test_options_that_do_not_fit(place: Path, refusal: Callable[..., str], words: tuple[str, ...], said: str) -> None:
    model = f"{place}/net.py:two"
    assert _says(said, refusal(model, *words, weights=place / "two.pt"))


def test_more_outputs_than_classes_point_to_the_option(place: Path, refusal: Callable[..., str]) -> None:
    said = refusal(f"{place}/net.py:three", weights=place / "three.pt")
    assert "the model outputs 3 classes, the data set has 2 (bar 0, bar 1): which ones?" in said
    assert "--outputs 5,7" in said


# Images


@pytest.fixture
def told(place: Path, tmp_path: Path, refusal: Callable[..., str]) -> Callable[..., str]:
    """Return what is said of folders with so many images."""

    def tell(counts: dict[str, int], *words: str | Path) -> str:
        root = tmp_path / "images"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        found = sorted((place / "photos").glob("*/*.png"))
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for number in range(count):
                shutil.copy(found[number % len(found)], root / name / f"{number}.png")
        return refusal(f"{place}/net.py:two", *words, data=root, weights=place / "two.pt")

    return tell


def test_sets_that_are_too_small_or_not_one(told: Callable[..., str]) -> None:
    assert "found only 'a'" in told({"a": 30})
    assert "at least 10 images to be judged, but 'a' of images has 5" in told({"a": 5, "b": 5})
    assert "'b' of images has 3" in told({"a": 30, "b": 3})
    assert "must hold images" in told({"a": 30, "b": 0})
    said = told({"train/a": 12, "train/b": 12, "val/a": 12, "val/b": 12})
    assert "has the splits train, val; give one of them, such as" in said
    assert "found no folder in it" in told({})


def test_folders_without_labels_say_what_can_still_be_shown(place: Path, refusal: Callable[..., str]) -> None:
    said = refusal(f"{place}/net.py:two", data=place / "photos" / "bar 0", weights=place / "two.pt")
    assert "20 without labels" in said
    assert "still show what it looks at" in said


def test_broken_images_and_other_places(place: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    model, weights = f"{place}/net.py:two", place / "two.pt"
    data = shutil.copytree(place / "photos", tmp_path / "broken")
    for path in data.glob("*/*.png"):
        path.write_bytes(b"no image")
    assert "40 of 40 images" in refusal(model, "--set", "images.on_error=skip", data=data, weights=weights)
    assert "did you mean" in refusal(model, data=place / "photoz", weights=weights)
    assert "got the file" in refusal(model, data=place / "net.py", weights=weights)
    assert "got nothing" in refusal(model, data="", weights=weights)
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    assert "must be a whole tar file" in refusal(model, data=tmp_path / "bad.tar", weights=weights)
    assert "all 40 of photos are also in photos" in refusal(model, "--test", place / "photos", weights=weights)


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_not_in_utf_8(place: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    data = shutil.copytree(place / "photos", tmp_path / "latin")
    try:
        os.rename(data / "bar 1", os.fsencode(data) + b"/caf\xe9")
    except OSError:
        pytest.skip("the file system takes Unicode alone")
    said = refusal(f"{place}/net.py:two", data=data, weights=place / "two.pt")
    assert "must be in UTF-8" in said
    assert "caf\\udce9" in said


def test_tables_that_lack_something(place: Path, refusal: Callable[..., str]) -> None:
    model, weights, table = f"{place}/net.py:two", place / "two.pt", place / "photos.csv"
    names = sorted(path.relative_to(place).as_posix() for path in (place / "photos").glob("*/*.png"))

    def write(head: str, change: tuple[str, str] = ("", "")) -> None:
        rows = [f"{name},{name[11]},{number % 2}".replace(*change) for number, name in enumerate(names)]
        table.write_text("\n".join([head, *rows]) + "\n")

    write("path,labels,place")
    assert "unknown column 'label' (did you mean 'labels'?)" in refusal(model, data=table, weights=weights)
    write("path,label,place")
    said = refusal(model, "--groups", "plac", data=table, weights=weights)
    assert "unknown column 'plac' (did you mean 'place'?)" in said
    write("path,label,place", (names[3], "photos/none.png"))
    assert "the file is missing" in refusal(model, "--set", "images.on_error=stop", data=table, weights=weights)
    write("path,label,place", (names[3], "/etc/passwd"))
    assert "must lie below the data set's folder" in refusal(model, data=table, weights=weights)
    write("path,label,place", (names[3], names[4]))
    assert "must be listed once" in refusal(model, data=table, weights=weights)


# From Python


def _arrays() -> tuple[Any, Any]:
    split = planted_shortcut(2, sizes=(4, 40, 4)).val
    return split.images.batch(np.arange(40)), split.labels


X, Y = _arrays()


@pytest.mark.parametrize(
    ("model", "images", "given", "said"),
    [
        (None, (X, Y), {}, "must be a torch.nn.Module that was built"),
        ("timm:resnet18", (X, Y), {}, "exmap audit --model"),
        (Net, (X, Y), {}, "got the class Net"),
        (2, None, {}, "images are given as"),
        (2, (X, Y[:9]), {}, "one label per image"),
        (2, (X, Y - 1), {}, "from 0 on"),
        (2, (X, np.eye(2)[Y]), {}, "several labels at once"),
        (2, (X[Y == 0], Y[Y == 0]), {}, "2 or more classes"),
        (2, (X[:, :1], Y), {}, "3 channels"),
        (2, (X * np.nan, Y), {}, "NaN"),
        (3, (X, Y), {}, r"which ones.*outputs=\[5, 7\]"),
        (3, (X, Y), {"outputs": [0, 7]}, "0 to 2, got 7"),
        (3, (X, Y), {"outputs": [0, 0]}, "different numbers"),
        (3, (X, Y), {"outputs": [0.5, 1]}, "whole numbers"),
        (3, (X, Y), {"outputs": "01"}, "whole numbers"),
        (3, (X, Y), {"outputs": [0, 1, 2]}, "one output for each class"),
        (2, (X, Y), {"classes": ["a", "a"]}, "names 'a' again"),
        (2, (X, Y), {"classes": "ab"}, "a list of names"),
        (2, (X, Y), {"classes": ["a", "b", "c"]}, "outputs 2 classes, the data set has 3"),
        (2, (X, Y), {"test": (X, Y + 1)}, "same classes, but test has 0, 1, 2"),
        (2, (X, Y), {"test": (X[Y == 0], Y[Y == 0])}, "'1' has 0 in split test"),
        (2, (X, Y), {"settings": ["foo.x=1"]}, "unknown setting 'foo'"),
        (2, (X, Y), {"transform": 3}, "a transform must be callable"),
        (2, [(X[0], 0)], {"transform": lambda image: 1 / 0}, "ZeroDivisionError"),
        (nn.Conv2d(3, 2, 1), (X, Y), {}, "must return logits"),
    ],
)
def test_analyze_refuses_in_a_sentence(model: Any, images: Any, given: dict[str, Any], said: str) -> None:
    made = Net(model).eval() if isinstance(model, int) else model
    with pytest.raises((DataError, SettingsError), match=f"(?s){said}"):
        exmap.analyze(made, images, **given)


def test_analyze_refuses_the_same_images_twice() -> None:
    with pytest.raises(SettingsError, match="must be other images"):
        exmap.analyze(Net(2), (images := (X, Y)), test=images)


def _says(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None or pytest.fail(f"{pattern!r} is not in {text!r}")
