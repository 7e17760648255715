from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from exmap.data import build_task
from exmap.data.inputs import InputImages
from exmap.data.preprocess import Preprocess
from exmap.errors import DataError, SettingsError
from exmap.settings import DataSettings, ImageSettings
from trees import class_folders, own_table, picture, png, waterbirds_tree

NORMAL = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KEEPING = transforms.Compose([transforms.Resize(8), transforms.CenterCrop(8), transforms.ToTensor(), NORMAL])
ROWS = np.array([2, 0], dtype=np.int64)


def how(**changes: Any) -> ImageSettings:
    return ImageSettings(**{"workers": 0, "cache": "never", **changes})


def folder(root: Path) -> DataSettings:
    class_folders(root, {"cat": 12, "dog": 12})
    picture(root / "cat" / "wide.jpg", (0, 0, 250), (60, 20))
    return DataSettings(name="folder", dir=root)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["never", "always"])
@pytest.mark.parametrize("exact", [True, False])
def test_inputs_are_what_the_function_makes_with_any_cache_and_workers(
    tmp_path: Path, workers: int, cache: str, exact: bool
) -> None:
    function = KEEPING if exact else transforms.Compose([KEEPING, lambda x: x * 1.01])
    settings = how(workers=workers, cache=cache, cache_dir=tmp_path / "cache")
    for _ in range(2):  # the second one finds what was kept
        split = build_task(folder(tmp_path / "p"), settings, preprocess=Preprocess.of(function)).train
        images = split.images
        assert isinstance(images, InputImages)
        wanted = np.stack([function(Image.open(tmp_path / "p" / name).convert("RGB")).numpy() for name in split.ids])
        assert images.shape == (3, 8, 8)
        assert np.array_equal(images.batch(ROWS), wanted[ROWS])
        streamed = list(images.stream((np.array([i, 0]), 7) for i in range(len(split))))
        assert np.array_equal(np.stack(streamed)[:, 0], wanted)
        assert (images.cache is not None) == (cache == "always")
        if images.cache is not None:
            assert np.load(images.cache).dtype == (np.uint8 if exact else np.float32)
        undone = np.stack([np.asarray(transforms.Compose(KEEPING.transforms[:3])(_open(tmp_path, split.ids[2])))])
        assert np.allclose(images.pixels(ROWS)[0], undone[0], atol=0.01 if exact else 0.02)


def _open(root: Path, name: str) -> Image.Image:
    return Image.open(root / "p" / name).convert("RGB")


def test_an_image_is_given_upright_whole_and_in_colour(tmp_path: Path) -> None:
    seen = []

    def look(image: Image.Image) -> torch.Tensor:
        seen.append((image.size, image.mode))
        return transforms.functional.to_tensor(image.resize((4, 4)))

    settings = folder(tmp_path)
    turned = Image.new("L", (30, 10), 90)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "cat" / "a-first.jpg", exif=exif)
    build_task(settings, how(), preprocess=Preprocess(look))
    assert ((10, 30), "RGB") in seen
    assert ((60, 20), "RGB") in seen


def test_masks_are_applied_before_the_function(tmp_path: Path) -> None:
    waterbirds_tree(tmp_path, dict.fromkeys(range(3), (2,) * 4), masks=True)
    task = build_task(DataSettings(name="waterbirds-fg", dir=tmp_path), how(), preprocess=Preprocess.of(KEEPING))
    assert task.test.images.pixels(np.array([0]))[0, :, 0, 0] == pytest.approx(np.zeros(3), abs=0.01)
    assert task.test.images.pixels(np.array([0])).max() > 0.2


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            transforms.ToTensor(),
            "ToTensor must make inputs of one size, but made 3 x 20 x 60 of cat/wide.jpg and 3 x 6 x",
        ),
        (
            transforms.Compose([KEEPING, lambda x: x + torch.rand(1)]),
            "Compose must make the same input of an image each time, but it made others of cat/000.png; leave out what",
        ),
        (lambda image: image.size[0], "must return a tensor of shape (C, H, W), got int"),
        (lambda image: 1 / 0, "failed with ZeroDivisionError: division by zero"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_that_cannot_be_used_is_one_sentence(tmp_path: Path, function: Any, said: str, workers: int) -> None:
    with pytest.raises(DataError) as caught:
        build_task(folder(tmp_path), how(workers=workers), preprocess=Preprocess.of(function))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_images_are_named_or_left_out(tmp_path: Path) -> None:
    settings = folder(tmp_path)
    (tmp_path / "cat" / "000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 25 images of .* cannot be read: cat/000.png \(not an image\)"):
        build_task(settings, how(on_error="stop"), preprocess=Preprocess.of(KEEPING))
    task = build_task(settings, how(on_error="skip"), preprocess=Preprocess.of(KEEPING))
    assert task.skipped == {"cat/000.png": "not an image"}


def test_another_function_of_the_same_name_is_not_given_what_was_kept(tmp_path: Path) -> None:
    settings = how(cache="always", cache_dir=tmp_path / "cache")

    def task_of(wide: float) -> np.ndarray:  # noise and squares do not tell these two apart
        def function(image: Image.Image) -> torch.Tensor:
            made = transforms.functional.to_tensor(image.resize((4, 4)))
            return made * wide if image.size == (8, 6) else made

        found = build_task(folder(tmp_path / "p"), settings, preprocess=Preprocess(function, about="mine")).train
        return found.images.batch(np.arange(5))

    first, second = task_of(1.0), task_of(0.5)
    assert not np.allclose(first, second)
    assert np.array_equal(task_of(0.5), second)


def test_bytes_that_do_not_say_all_are_not_kept_as_bytes(tmp_path: Path) -> None:
    """Only one late image has values between those of bytes."""

    def function(image: Image.Image) -> torch.Tensor:
        made = transforms.functional.to_tensor(image.resize((4, 4)))
        return made * 0.999 if image.size == (30, 30) else made

    settings = DataSettings(name="table", dir=tmp_path, table=Path("own.csv"))
    own_table(tmp_path, [[f"{i:03d}.png", i % 2] for i in range(40)])
    picture(tmp_path / "033.png", (200, 100, 90), (30, 30))
    task = build_task(settings, how(cache="always", cache_dir=tmp_path / "c"), preprocess=Preprocess(function))
    assert isinstance(task.train.images, InputImages)
    assert np.load(task.train.images.cache).dtype == np.float32


def test_a_word_in_the_settings_is_used_and_its_file_is_an_input(tmp_path: Path) -> None:
    own = tmp_path / "own_eval.py"
    own.write_text("from torchvision import transforms as t\nf = t.Compose([t.Resize((5, 5)), t.ToTensor()])\n")
    task = build_task(folder(tmp_path / "p"), how(transform=f"{own}:f"))
    assert task.train.images.shape == (3, 5, 5)
    assert set(task.digests) == {"images", "transform"}
    with pytest.raises(SettingsError, match=r"images\.transform=model needs the model"):
        build_task(folder(tmp_path / "p"), how(transform="model"))
    with pytest.raises(SettingsError, match=r"images\.transform is for images in files, but digits is made in memory"):
        build_task(DataSettings(name="digits"), how(transform=f"{own}:f"))


@pytest.mark.parametrize("preprocess", [None, Preprocess.of(KEEPING)])
def test_facts_of_files_are_read_without_decoding(tmp_path: Path, preprocess: Preprocess | None) -> None:
    settings = folder(tmp_path)
    made = Image.new("RGB", (20, 10), "red")
    exif = made.getexif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "One\0", 6
    made.save(tmp_path / "cat" / "exif.jpg", exif=exif)
    (tmp_path / "dog" / "000.png").write_bytes(png(3, (7, 5)))
    split = build_task(settings, how(resize=8, crop=None), preprocess=preprocess).train
    facts = split.rows(np.arange(len(split))).images.facts(np.arange(len(split)))
    assert {len(values) for values in facts.values()} == {len(split)}
    found = {name: {key: values[i] for key, values in facts.items()} for i, name in enumerate(split.ids)}
    if "cat/exif.jpg" in found:
        assert found["cat/exif.jpg"] == {
            "bytes": (tmp_path / "cat" / "exif.jpg").stat().st_size,
            "width": 20,
            "height": 10,
            "format": "JPEG",
            "mode": "RGB",
            "camera": "Maker One",
            "software": None,
            "orientation": 6,
        }
    one = found["dog/000.png" if "dog/000.png" in found else split.ids[0]]
    assert (one["format"], one["orientation"], one["camera"]) == ("PNG", 1, None)
