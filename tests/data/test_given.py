from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)
from torchvision import datasets as vision
from torchvision import transforms

from exmap.data import Split, array_split
from exmap.data import items as module
from exmap.data.given import as_split
from exmap.errors import DataError
from trees import class_folders, picture, shards

EVAL = transforms.Compose(
    [
        transforms.Resize((6, 6)),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)
ALL = np.arange(8, dtype=np.int64)


def bytes_of(n: int = 8, shape: tuple[int, ...] = (3, 6, 5)) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


class Pairs(Dataset[Any]):
    """Items of any form, and a count of how often they are read."""

    def __init__(self, items: list[Any], **more: Any) -> None:
        self.items, self.reads = items, 0
        self.__dict__.update(more)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.items[index]


def tensors(n: int = 8) -> list[torch.Tensor]:
    return list(torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(0)))


def refused(images: Any, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        as_split(images, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- arrays


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_arrays_of_bytes_are_read_in_either_order_of_axes(kind: Any) -> None:
    first, y = bytes_of(), [0, 1, 2, 0, 1, 2, 0, 1]
    last = np.ascontiguousarray(first.transpose(0, 2, 3, 1))
    for array in (first, last):
        split = as_split((kind(array), kind(np.array(y))))
        assert np.array_equal(split.images.batch(ALL), first.astype(np.float32) / np.float32(255))
        assert (split.labels.tolist(), split.class_names, split.ids[1]) == (y, ("0", "1", "2"), "val/1")


def test_floating_arrays_are_inputs_and_grey_ones_get_a_channel() -> None:
    normal = np.random.default_rng(0).normal(size=(8, 6, 6))
    split = as_split((normal, np.zeros(8)), class_names=["a", "b"])
    assert split.images.shape == (1, 6, 6)
    assert np.allclose(split.images.batch(ALL)[:, 0], normal)
    assert split.images.pixels(ALL).max() <= 1
    assert split.class_names == ("a", "b")


def test_arrays_and_pictures_go_through_a_transform() -> None:
    pictures = [Image.fromarray(one.transpose(1, 2, 0)) for one in bytes_of()]
    wanted = np.stack([EVAL(one).numpy() for one in pictures])
    for given in (bytes_of(), bytes_of().transpose(0, 2, 3, 1), pictures):
        split = as_split((given, ["b", "a"] * 4), transform=EVAL)
        assert np.array_equal(split.images.batch(ALL), wanted)
        assert (split.class_names, split.labels[:2].tolist()) == (("a", "b"), [1, 0])
    grey = as_split((bytes_of(8, (6, 6)), [0, 1] * 4), transform=EVAL)
    assert grey.images.shape == (3, 6, 6)


def test_a_split_is_taken_as_it_is() -> None:
    given = array_split(bytes_of(), [0, 1] * 4, true_groups=[0] * 8)
    assert as_split(given, name="test").name == "test"
    assert as_split(given).truth is given.truth
    assert len(as_split(given, limit=3)) == 3


# --- torch data sets


def test_an_image_folder_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 5, "dog": 4})
    dataset = vision.ImageFolder(tmp_path, transform=EVAL)
    split = as_split(dataset)
    assert (len(split), split.class_names) == (9, ("cat", "dog"))
    assert split.labels.tolist() == dataset.targets
    assert split.ids[0] == "cat/000.png"
    assert np.array_equal(split.images.batch(ALL), np.stack([dataset[i][0].numpy() for i in range(8)]))
    plain = np.stack([transforms.Compose(EVAL.transforms[:2])(dataset.loader(p)).numpy() for p, _ in dataset.samples])
    assert np.allclose(split.images.pixels(ALL), plain[:8], atol=1e-5)
    facts = split.rows(np.array([8])).images.facts(np.array([0]))
    assert (facts["width"], facts["format"]) == ([8], ["PNG"])


def test_labels_are_taken_from_beside_the_images_where_they_are_those_of_the_items() -> None:
    images = tensors(40)
    beside = Pairs([(image, i % 2) for i, image in enumerate(images)], targets=[i % 2 for i in range(40)])
    assert as_split(beside).labels.tolist() == [0, 1] * 20
    assert beside.reads < 15
    changed = Pairs([(image, 1 - i % 2) for i, image in enumerate(images)], targets=[i % 2 for i in range(40)])
    assert as_split(changed).labels.tolist() == [1, 0] * 20
    assert changed.reads >= 40


@pytest.mark.parametrize("form", [0, 1, 2, 3])
def test_items_may_be_pairs_or_dicts_and_labels_numbers_or_names(form: int) -> None:
    forms = [
        lambda x, y: (x, torch.tensor(y), "more"),
        lambda x, y: {"pixel_values": x, "labels": np.int64(y)},
        lambda x, y: {"image": x, "label": ("zero", "one")[y], "path": "p"},
        lambda x, y: [x.numpy().astype(np.float64), float(y)],
    ]
    split = as_split(Pairs([forms[form](x, i % 2) for i, x in enumerate(tensors())]))
    assert split.labels.tolist() == ([1, 0] if form == 2 else [0, 1]) * 4
    assert split.class_names == (("one", "zero") if form == 2 else ("0", "1"))
    assert np.allclose(split.images.batch(ALL), torch.stack(tensors()).numpy())


def test_parts_and_joined_data_sets_are_read() -> None:
    whole = TensorDataset(torch.stack(tensors()), torch.arange(8) % 3)
    split = as_split(Subset(Subset(whole, [7, 1, 4, 2]), [2, 0]))
    assert split.labels.tolist() == [1, 1]
    assert np.array_equal(split.images.batch(np.array([1])), tensors()[7][None].numpy())
    assert as_split(ConcatDataset([whole, whole])).labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1] * 2


def test_a_subset_of_an_image_folder_keeps_its_classes_and_paths(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 5, "dog": 4})
    split = as_split(Subset(vision.ImageFolder(tmp_path, transform=EVAL), [8, 0]))
    assert (split.ids, split.class_names) == (("dog/003.png", "cat/000.png"), ("cat", "dog"))
    assert as_split(Subset(vision.ImageFolder(tmp_path), [8, 0]), transform=EVAL).images.shape == (3, 6, 6)


def test_a_limit_takes_some_at_random_and_always_the_same() -> None:
    dataset = Pairs([(x, i % 2) for i, x in enumerate(tensors(30))])
    first, again = (as_split(dataset, limit=10) for _ in range(2))
    assert first.ids == again.ids
    assert len(first) == 10
    assert first.ids != as_split(dataset).ids[:10]
    assert "limit must be at least 1, got 0" in refused(dataset, limit=0)


@pytest.mark.parametrize("kept", [0, 2**30])
def test_images_are_kept_only_while_they_are_few(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr(module, "KEPT", kept)
    dataset = Pairs([(x, i % 2) for i, x in enumerate(tensors())], targets=[0, 1] * 4)
    split = as_split(dataset)
    before = dataset.reads
    for _ in range(3):
        split.images.batch(ALL)
    assert dataset.reads - before == (24 if not kept else 8)
    assert not pickle.loads(pickle.dumps(split.images)).memory


# --- loaders


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_is_read_in_the_order_of_its_data_set(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(module, "KEPT", 0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loader = DataLoader(
        TensorDataset(torch.stack(tensors()), torch.arange(8) % 2), 3, shuffle=True, num_workers=workers, drop_last=True
    )
    split = as_split(loader)
    assert split.labels.tolist() == [0, 1] * 4
    streamed = list(split.images.stream([(ALL[:5], None), (ALL[5:], 3)]))
    assert np.array_equal(np.concatenate(streamed), torch.stack(tensors()).numpy())
    assert torch.equal(torch.get_rng_state(), before)
    chosen = DataLoader(loader.dataset, sampler=SubsetRandomSampler([5, 2, 3]))
    assert as_split(chosen).labels.tolist() == [0, 1, 1]


def test_a_collate_function_is_used_where_items_are_not_understood() -> None:
    def collate(rows: list[Any]) -> dict[str, Any]:
        return {
            "pixel_values": torch.stack([row["picture"] for row in rows]),
            "labels": torch.tensor([row["kind"] for row in rows]),
        }

    rows = [{"picture": x, "kind": i % 2} for i, x in enumerate(tensors())]
    split = as_split(DataLoader(Pairs(rows), batch_size=4, collate_fn=collate))
    assert split.labels.tolist() == [0, 1] * 4
    assert np.array_equal(split.images.batch(ALL), torch.stack(tensors()).numpy())


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter((x, i % 2) for i, x in enumerate(tensors()))


def test_streams_are_read_once_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from exmap.data import given

    for stream in (Stream(), DataLoader(Stream(), batch_size=3), iter(Stream())):
        split = as_split(stream)
        assert np.array_equal(split.images.batch(ALL), torch.stack(tensors()).numpy())
        assert split.labels.tolist() == [0, 1] * 4
    assert len(as_split(Stream(), limit=3)) == 3
    monkeypatch.setattr(given, "IN_MEMORY", 7)
    assert "the stream of images has more than 7" in refused(Stream())
    assert "is empty, or was read before" in refused(iter([]))


# --- Hugging Face


@pytest.fixture
def hf() -> Any:
    library = pytest.importorskip("datasets", reason="needs exmap[huggingface]")
    library.disable_progress_bars()
    return library


def saved(hf: Any) -> Any:
    pictures = [Image.fromarray(one.transpose(1, 2, 0)) for one in bytes_of()]
    made = hf.Dataset.from_dict({"img": pictures}, features=hf.Features({"img": hf.Image()}))
    return made.add_column("label", [0, 1] * 4, feature=hf.ClassLabel(names=["zebra", "ant"])).add_column(
        "site", list("abababab")
    )


def test_a_hugging_face_data_set_is_read_with_its_names_and_columns(hf: Any) -> None:
    split = as_split(saved(hf), transform=EVAL)
    assert (split.class_names, split.labels[:2].tolist()) == (("zebra", "ant"), [0, 1])
    assert split.metadata == {"site": list("abababab")}
    wanted = np.stack([EVAL(one["img"]).numpy() for one in saved(hf)])
    assert np.array_equal(split.images.batch(ALL), wanted)


def test_the_transform_of_a_hugging_face_data_set_is_respected(hf: Any) -> None:
    def batched(rows: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": [EVAL(one) for one in rows["img"]], "label": rows["label"]}

    dataset = saved(hf)
    dataset.set_transform(batched)
    split = as_split(dataset)
    assert np.array_equal(split.images.batch(ALL), np.stack([one["pixel_values"].numpy() for one in dataset]))
    assert dataset[0]["pixel_values"].shape == (3, 6, 6)  # still as it was
    assert split.metadata == {"site": list("abababab")}
    assert "one set of images is needed, but here are several (train, test)" in refused(
        hf.DatasetDict({"train": dataset, "test": dataset})
    )


# --- a path


def test_a_path_is_opened_as_on_the_command_line(tmp_path: Path) -> None:
    shards(tmp_path, 24)
    split = as_split(tmp_path, transform=EVAL, name="test", class_names=["a", "b"])
    assert (split.name, len(split), split.images.shape, split.class_names) == ("test", 24, (3, 6, 6), ("a", "b"))


# --- what is refused


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "the data set of images is empty"),
        (
            [torch.zeros(3, 6, 6)],
            "must be (image, label) or a dict of them, got Tensor; add labels, or give the classif",
        ),
        ([{"image": torch.zeros(3, 6, 6), "box": 1}], "must have a label under one of label, labels, target"),
        ([{"pic": torch.zeros(3, 6, 6), "label": 1}], "must have an image under one of pixel_values, image"),
        ([(torch.zeros(3, 6, 6), {"boxes": [1]})], "must have one label, the number or name of its class, got dict"),
        ([(torch.zeros(3, 6, 6), torch.tensor([0, 1, 1]))], "must have one label, the number of its class, got 3 numb"),
        (
            [(Image.new("RGB", (6, 6)), 0)],
            "image 0 of the data set is a picture, and a model takes numbers: its images",
        ),
        ([(torch.zeros(4), 0)], "an image must have shape (C, H, W), but image 0 of the data set is (4,)"),
        ([(torch.zeros(3, 6, 6, dtype=torch.int64), 0)], "must return floating-point numbers"),
        ([(torch.full((3, 6, 6), torch.nan), 0)], "must return finite numbers"),
        ([(torch.zeros(3, 6, 6), -1)], "labels must be the numbers of classes from 0 on, got -1"),
        ([(torch.zeros(3, 6, 6), 0.5)], "got 0.5; correct it, or leave such images out"),
    ],
)
def test_what_is_no_image_with_a_label_is_one_sentence(items: list[Any], said: str) -> None:
    assert said in refused(Pairs(items))


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    class Failing(Pairs):
        def __getitem__(self, index: int) -> Any:
            raise KeyError(f"no row {index}")

    pair = (torch.zeros(3, 6, 6), 0)
    assert "image 0 of the data set could not be read (KeyError: 'no row 0')" in refused(Failing([pair]))
    assert "images are given as a Split, arrays" in refused(3)
    assert "there must be one label per image, got 2 for 8 images" in refused((bytes_of(), [0, 1]))
    assert "got (8, 30)" in refused((np.zeros((8, 30)), [0] * 8))
    assert "got int64 from 0 to 255; give them as bytes by" in refused((bytes_of().astype(np.int64), [0] * 8))
    assert "got 7; name every class" in refused(Pairs([(pair[0], 7)]), class_names=["a", "b"])
    assert "one of the classes 'a', 'b', got 'c'; correct" in refused(Pairs([(pair[0], "c")]), class_names=["a", "b"])
    random = Pairs([(torch.zeros(3, 6, 6), 0)])
    random.__class__ = type("Random", (Pairs,), {"__getitem__": lambda self, i: (torch.rand(3, 6, 6), 0)})
    assert "must be the same each time it is read, but the first of the data set is not" in refused(random)


def test_an_image_of_another_shape_is_named_when_it_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", size=(6, 6))
    picture(tmp_path / "b" / "2.png", size=(9, 9))
    split: Split = as_split(vision.ImageFolder(tmp_path, transform=transforms.ToTensor()))
    with pytest.raises(DataError, match=r"all images must have one shape, but .*2.png has \(3, 9, 9\) and the first"):
        split.images.batch(np.arange(2))
