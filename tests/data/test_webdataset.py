from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exmap.data import build_task
from exmap.data.table import ImageTable
from exmap.data.webdataset import web_dataset
from exmap.errors import DataError
from exmap.settings import DataSettings, ImageSettings
from trees import png, shard, shards, truncate

TINY = ImageSettings(resize=6, crop=None, random_crop=None, workers=0, cache="never", normalize="none")


def read(root: Path, **changes: Any) -> ImageTable:
    return web_dataset(DataSettings(**{"name": "webdataset", "dir": root, "one_set": True, **changes}))


def refused(root: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_are_read_from_their_places(tmp_path: Path) -> None:
    shards(tmp_path, 24)
    task = build_task(DataSettings(name="webdataset", dir=tmp_path, one_set=True), TINY)
    assert task.val.ids[:2] == ("part-000.tar/0000.png", "part-000.tar/0001.png")
    assert task.val.class_names == ("0", "1")
    assert task.val.labels.tolist() == [0, 1] * 12
    seen = 255 * task.val.images.pixels(np.arange(24)).mean(axis=(1, 2, 3))
    assert np.allclose(seen, 5 * np.arange(24), atol=0.01)
    facts = task.val.images.facts(np.arange(2))
    assert (facts["width"], facts["bytes"]) == ([8, 8], [len(png(0)), len(png(5))])


def test_labels_may_be_words_or_fields_of_json_and_other_fields_are_metadata(tmp_path: Path) -> None:
    members = []
    for i in range(20):
        record = {"kind": ("dog", "cat")[i % 2], "camera": f"c{i % 3}", "size": 1.5, "boxes": [1], "ok": True}
        members += [(f"./sub/a{i}.JPG", png(i)), (f"./sub/a{i}.json", json.dumps(record).encode())]
    members += [("sub/b.txt", b"dog"), ("sub/b.png", png(3)), ("sub/c.txt", b"cat"), ("sub/c.png", png(4))]
    shard(tmp_path / "x.tar", members)
    found = read(tmp_path, label_column="kind", group_columns=())
    assert found.class_names == ("cat", "dog")
    assert found.names[0] == "x.tar/sub/a0.jpg"
    assert found.labels[:2].tolist() == [1, 0]
    assert found.metadata["camera"][:4] == ["c0", "c1", "c2", "c0"]
    assert set(found.metadata) == {"camera", "size", "ok"}
    assert found.metadata["camera"][-1] == ""
    assert "must have the field camera, but one has not" in refused(
        tmp_path, label_column="kind", group_columns=("camera",)
    )
    shard(tmp_path / "x.tar", members[:40])
    assert read(tmp_path, label_column="kind", group_columns=("camera",)).attributes[0].name == "camera"


def test_a_pattern_and_a_split_in_the_names_choose_shards(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        shards(tmp_path / split, 20).rename(tmp_path / f"{split}-000.tar")
    assert len(read(tmp_path, table=Path("val-*.tar")).names) == 10
    found = read(tmp_path, one_set=False)
    assert np.bincount(found.splits).tolist() == [10, 10, 10]
    assert build_task(DataSettings(name="webdataset", dir=tmp_path), TINY).val.ids[0] == "val-000.tar/0000.png"
    with pytest.raises(DataError, match=r"has the splits train, val, test; give one of them, by --set data.part=test"):
        build_task(DataSettings(name="webdataset", dir=tmp_path, one_set=True), TINY)


def test_what_is_no_image_is_listed_and_nothing_is_unpickled_or_unpacked(tmp_path: Path) -> None:
    shards(tmp_path, 20)
    fired = tmp_path / "fired"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (fired,)

    members = [
        ("a.png", png(1)), ("a.cls", b"1"), ("a.pyd", pickle.dumps(Bomb())), (".hidden.png", png(1)),
        ("__MACOSX/b.png", png(1)), ("lonely.cls", b"1"), ("empty.png", b""), ("empty.cls", b"1"),
        ("../../up.png", png(2)), ("../../up.cls", b"0"),
    ]  # fmt: skip
    shard(tmp_path / "z.tar", members)
    with tarfile.open(tmp_path / "z.tar", "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    found = read(tmp_path)
    assert found.ignored == {
        "files that are neither images nor labels": ["z.tar/a.pyd"],
        "hidden files": ["z.tar/.hidden.png", "z.tar/__MACOSX/b.png"],
        "keys without an image": ["z.tar/lonely"],
        "links and other entries that are no files": ["z.tar/link.png"],
        "empty files": ["z.tar/empty.png"],
    } | {k: v for k, v in found.ignored.items() if "up" in str(v)}
    assert not fired.exists()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.png", png(1))], "every image must have a label, but a in"),
        ([("a.png", png(1)), ("a.cls", b"")], "every image must have a label, but a in"),
        ([("a.png", png(1)), ("a.txt", b"a long\ncaption")], "every image must have a label, but a in"),
        ([("a.png", png(1)), ("a.json", b"{")], "the JSON of a in"),
        ([("a.png", png(1)), ("a.cls", pickle.dumps(1))], "must be text, but one is not"),
        ([("a.png", png(1)), ("a.jpg", png(1)), ("a.cls", b"1")], "has several images (png, jpg); name the ending"),
        ([("a.png", png(1)), ("a.cls", b"1" * (1 << 21))], "a label must be short, but a.cls in"),
        ([("a.cls", b"1")], "holds no images in *.tar"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, members: list[tuple[str, bytes]], said: str) -> None:
    shard(tmp_path / "x.tar", members)
    assert said in refused(tmp_path)


def test_a_cut_or_compressed_shard_and_none_at_all_are_said(tmp_path: Path) -> None:
    truncate(shards(tmp_path, 20))
    assert "part-000.tar must be a whole tar file that is not compressed, but it cannot be read" in refused(tmp_path)
    with tarfile.open(tmp_path / "part-000.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO(b""))
    assert "must be a whole tar file that is not compressed" in refused(tmp_path)
    assert "there is no *.tar in" in refused(tmp_path / "none")


def test_one_of_several_images_of_a_key_is_taken_by_its_ending(tmp_path: Path) -> None:
    members = []
    for i in range(20):
        members += [(f"{i}.png", png(i)), (f"{i}.webp", png(200)), (f"{i}.cls", str(i % 2).encode())]
    shard(tmp_path / "x.tar", members)
    assert read(tmp_path, image_column="webp").names[0] == "x.tar/0.webp"
    assert "has no image with the ending gif, but png, webp" in refused(tmp_path, image_column="gif")
