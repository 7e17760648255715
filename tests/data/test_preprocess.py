from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models, transforms
from torchvision.transforms import v2

from exmap.data.preprocess import Preprocess, preprocess_by_word
from exmap.errors import DataError, SettingsError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMAL = transforms.Normalize(MEAN, STD)
RED = Image.new("RGB", (30, 20), (255, 0, 0))


def plain(*steps: Any) -> transforms.Compose:
    return transforms.Compose([*steps, transforms.ToTensor()])


@pytest.mark.parametrize(
    ("transform", "mean", "std"),
    [
        (transforms.Compose([plain(transforms.Resize(12), transforms.CenterCrop(8)), NORMAL]), MEAN, STD),
        (
            v2.Compose([v2.ToImage(), v2.Compose([v2.ToDtype(torch.float32, scale=True)]), v2.Normalize(MEAN, STD)]),
            MEAN,
            STD,
        ),
        (models.ResNet18_Weights.DEFAULT.transforms(), MEAN, STD),
        (plain(), (0, 0, 0), (1, 1, 1)),
        (lambda image: np.asarray(image, dtype=np.float32).transpose(2, 0, 1), (0, 0, 0), (1 / 255,) * 3),
        (transforms.Compose([plain(transforms.Grayscale()), transforms.Normalize([0.4], [0.2])]), (0.4,), (0.2,)),
    ],
)
def test_the_normalisation_is_found_and_undone(transform: Any, mean: tuple[float], std: tuple[float]) -> None:
    made = Preprocess.of(transform)
    assert made.mean == pytest.approx(mean, abs=1e-5)
    assert made.std == pytest.approx(std, abs=1e-5)
    shown = made.shown(made(RED)[None])
    grey = len(mean) == 1
    assert shown[0, :, 4, 4] == pytest.approx([76 / 255] if grey else [1, 0, 0], abs=0.01)


@pytest.mark.parametrize(
    "transform",
    [
        transforms.Compose([plain(), lambda x: x.flip(0)]),  # the other order of colours
        transforms.Compose([plain(), lambda x: x**2]),
        transforms.Compose([plain(), NORMAL, torch.sigmoid]),
        transforms.Compose([plain(), lambda x: x - x.mean()]),
    ],
)
def test_what_is_no_normalisation_is_not_taken_for_one(transform: Any) -> None:
    made = Preprocess.of(transform)
    assert (made.mean, made.std) == (None, None)
    shown = made.shown(made(RED)[None])
    assert 0 <= shown.min() <= shown.max() <= 1


def test_a_normalisation_that_is_stated_but_does_another_thing_is_measured() -> None:
    bytes_first = transforms.Compose([plain(), lambda x: x * 255, transforms.Normalize((100.0,) * 3, (50.0,) * 3)])
    assert Preprocess.of(bytes_first).mean == pytest.approx((100 / 255,) * 3, abs=1e-5)


def test_a_hugging_face_processor_and_timm_are_taken_as_they_are() -> None:
    transformers = pytest.importorskip("transformers")
    timm = pytest.importorskip("timm")
    made = Preprocess.of(transformers.ViTImageProcessor(size={"height": 16, "width": 16}))
    assert made(RED).shape == (3, 16, 16)
    assert made.std == pytest.approx((0.5,) * 3)
    assert made(RED)[:, 0, 0].tolist() == [1, -1, -1]
    config = timm.data.resolve_model_data_config(timm.create_model("resnet18"))
    own = Preprocess.of(timm.data.create_transform(**config, is_training=False))
    assert (own(RED).shape, own.mean) == ((3, 224, 224), pytest.approx(MEAN))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda image: image, "must return a tensor of shape (C, H, W), got Image; end it with what makes a tensor"),
        (np.asarray, "channels first, got (20, 30, 3)"),
        (lambda image: np.zeros((2, 3, 8, 8), np.float32), "must return one image of shape (C, H, W), channels first"),
        (
            lambda image: torch.zeros(3, 8, 8, dtype=torch.uint8),
            "must return floating-point numbers as the model wants",
        ),
        (lambda image: torch.full((3, 8, 8), torch.nan), "must return finite numbers, got NaN or infinite ones"),
        (lambda image: image.no_such(), "has no attribute 'no_such'; it is called with an RGB PIL image"),
    ],
)
def test_what_is_no_input_is_one_sentence(function: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        Preprocess.of(function, "mine")(RED)
    assert said in str(caught.value)
    assert str(caught.value).startswith("mine ")


def test_a_batch_of_one_and_double_numbers_are_taken() -> None:
    made = Preprocess.of(lambda image: torch.zeros(1, 3, 4, 4, dtype=torch.float64))(RED)
    assert (made.shape, made.dtype) == ((3, 4, 4), np.float32)


def test_values_in_the_unit_range_are_shown_as_they_are_and_others_stretched() -> None:
    one = Preprocess(lambda image: image)
    batch = np.array([0.2, 0.4, -1.0, 3.0], dtype=np.float32).reshape(2, 1, 1, 2)
    assert one.shown(batch).reshape(2, 2) == pytest.approx(np.array([[0.2, 0.4], [0, 1]]))


OWN = """
import torch
from torchvision import transforms
compose = transforms.Compose([transforms.Resize((6, 6)), transforms.ToTensor()])
def of_image(image, side=5):
    import own_later
    return transforms.functional.to_tensor(image.resize((side, side))) * own_later.factor
def factory(side=4):
    return transforms.Compose([transforms.Resize((side, side)), transforms.ToTensor()])
class Made:
    def __call__(self, image):
        return torch.zeros(3, 7, 7)
def two(image, side): pass
def nothing(): return None
number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_transforms.py").write_text(OWN)
    (tmp_path / "own_later.py").write_text("factor = 0.5")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "own_transforms.py"


@pytest.mark.parametrize(("name", "side"), [("compose", 6), ("of_image", 5), ("factory", 4), ("Made", 7)])
def test_a_word_names_a_function_an_object_a_class_or_what_makes_one(own: Path, name: str, side: int) -> None:
    made = preprocess_by_word(f"{own}:{name}")
    assert made(RED).shape == (3, side, side)
    assert made.about == f"{own}:{name}"
    again = pickle.loads(pickle.dumps(made))
    assert np.array_equal(again(RED), made(RED))
    assert len(made.source) == 64


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (
            "two",
            SettingsError,
            "must take an image, or no arguments and return what takes one, but it needs image, side;",
        ),
        ("nothing", DataError, "must return a transform, something to call with an image, got NoneType"),
        ("number", SettingsError, "must be a function of an image, got int"),
        ("compse", SettingsError, "unknown function 'compse' (did you mean 'compose'"),
    ],
)
def test_a_word_for_something_else_is_one_sentence(own: Path, name: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        preprocess_by_word(f"{own}:{name}")
    assert said in str(caught.value)


def test_a_fingerprint_tells_functions_of_one_name_apart() -> None:
    prints = {Preprocess.of(plain(transforms.Resize((side, side))), "t").fingerprint for side in (8, 8, 9)}
    assert len(prints) == 2
