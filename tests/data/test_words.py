from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exmap.data.words import data_settings_of
from exmap.errors import DataError
from trees import class_folders, own_table, picture, png, shards


def said_of(text: str | Path) -> dict[str, Any]:
    found = data_settings_of(text)
    return {
        name: getattr(found, name)
        for name in ("name", "id", "dir", "table", "part", "image_column")
        if getattr(found, name)
    }


def test_a_folder_is_recognised_by_what_it_holds(tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", {"cat": 1, "dog": 1})
    (photos / "notes.csv").write_text("a,b")
    assert said_of(photos) == said_of(f"{photos}/") == {"name": "folder", "dir": photos}
    shards(tmp_path / "shards", 2)
    assert said_of(tmp_path / "shards") == {"name": "webdataset", "dir": tmp_path / "shards"}
    own_table(tmp_path / "listed", [["images/a.png", 1]])
    listed = {"name": "table", "dir": tmp_path / "listed", "table": Path("own.csv"), "image_column": "path"}
    assert said_of(tmp_path / "listed") == listed
    for name in ("masks/a.png", "more/b.png"):
        picture(tmp_path / "listed" / name)
    (tmp_path / "listed" / "own.csv").write_text("nr,mask,img_filename,y\n0,masks/a.png,images/a.png,1\n")
    assert said_of(tmp_path / "listed") == listed | {"image_column": "img_filename"}
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_info.json").write_text("{}")
    assert said_of(tmp_path / "saved") == {"name": "huggingface", "dir": tmp_path / "saved"}
    (tmp_path / "empty").mkdir()
    assert said_of(tmp_path / "empty")["name"] == "folder"  # whose own sentence says what it must hold


def test_files_are_tables_or_hold_images(tmp_path: Path) -> None:
    table = own_table(tmp_path, [["a.png", 1]])
    assert said_of(table) == {"name": "table", "table": table, "image_column": "path"}
    table.write_text("path,label\ngone.png,1\n")
    assert said_of(table) == {"name": "table", "table": table}
    pq.write_table(pa.table({"path": ["a.png"], "label": [1]}), tmp_path / "t.parquet")
    assert said_of(tmp_path / "t.parquet") == {
        "name": "table",
        "table": tmp_path / "t.parquet",
        "image_column": "path",
    }
    rows = pa.table({"image": [{"bytes": png(1), "path": None}], "label": [1]})
    pq.write_table(rows, tmp_path / "images.parquet")
    wanted = {"name": "huggingface", "dir": tmp_path, "table": Path("images.parquet")}
    assert said_of(tmp_path / "images.parquet") == wanted
    assert said_of(f"hf:{tmp_path / 'images.parquet'}") == wanted
    (tmp_path / "p" / "data").mkdir(parents=True)
    pq.write_table(rows, tmp_path / "p" / "data" / "train-0.parquet")
    assert said_of(tmp_path / "p") == {"name": "huggingface", "dir": tmp_path / "p"}


def test_shards_are_given_as_a_file_or_a_pattern(tmp_path: Path) -> None:
    shards(tmp_path, 20)
    assert said_of(f"{tmp_path}/*.tar") == {"name": "webdataset", "dir": tmp_path, "table": Path("*.tar")}
    assert said_of(tmp_path / "part-001.tar")["table"] == Path("part-001.tar")


def test_hugging_face_sets_are_folders_or_ids_and_may_name_a_split(tmp_path: Path) -> None:
    assert said_of(f"hf:{tmp_path}") == {"name": "huggingface", "dir": tmp_path}
    assert said_of(f"hf:{tmp_path}:test") == {"name": "huggingface", "dir": tmp_path, "part": "test"}
    assert said_of("hf:someone/pets.v1") == {"name": "huggingface", "id": "someone/pets.v1"}
    assert said_of("hf:cifar10:test") == {"name": "huggingface", "id": "cifar10", "part": "test"}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("phtos", "there is no {}/phtos (did you mean {}/photos?); images are given as a folder per class, a CSV or"),
        ("gone/*.tar", "there are no shards {}/gone/*.tar; images are given as"),
        ("a.png", "images are given as a folder per class"),
        ("a.png", "got the file {}/a.png; give what lists it, or its folder"),
    ],
)
def test_what_is_not_there_is_one_sentence(tmp_path: Path, word: str, said: str) -> None:
    (tmp_path / "photos").mkdir()
    picture(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        data_settings_of(tmp_path / word)
    assert said.format(tmp_path, tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("hf:", "hf: needs a folder or an id, as hf:FOLDER_OR_ID[:SPLIT], and got none"),
        (
            "hf:./no/such/place",
            "there is no folder no/such/place; hf: needs one that save_to_disk has written, or an id",
        ),
    ],
)
def test_a_hugging_face_word_for_nothing_is_one_sentence(word: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        data_settings_of(word)
    assert str(caught.value) == said
