from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from exmap.data import build_task
from exmap.data.columns import column, read_table, table_root
from exmap.data.waterbirds import composed, metadata_table, waterbirds
from exmap.errors import DataError
from exmap.settings import DataSettings, ImageSettings
from trees import picture, waterbirds_tree

COUNTS = {0: (6, 2, 3, 5), 1: (3, 2, 2, 4), 2: (2, 3, 4, 2)}
TREE = "waterbird_complete95_forest2water2"
TINY = ImageSettings(resize=16, crop=None, random_crop=None, workers=0, cache="never", normalize="none")
HEAD = "img_id,img_filename,y,split,place,place_filename\n"


def csv_file(folder: Path, data: bytes | str) -> Path:
    path = folder / "own.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def parquet_file(folder: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), folder / "own.parquet")
    return folder / "own.parquet"


@pytest.mark.parametrize(
    "data",
    [
        b"path,label\na.jpg,01\nb.jpg,02\n",
        b"path,label\r\na.jpg,01\r\nb.jpg,02\r\n",
        b"path,label\ra.jpg,01\rb.jpg,02\r",
        b"path,label\na.jpg,01\nb.jpg,02",
        b"\xef\xbb\xbfpath,label\na.jpg,01\nb.jpg,02\n",
        b'\xef\xbb\xbf"path","label"\r\n"a.jpg","01"\r\n"b.jpg","02"\r\n',
        b" path , label\na.jpg, 01\nb.jpg ,02\n",
        b"\n\npath,label\n\na.jpg,01\n\nb.jpg,02\n\n",
    ],
)
def test_a_csv_file_is_read_as_text_however_it_was_saved(tmp_path: Path, data: bytes) -> None:
    assert read_table(csv_file(tmp_path, data))[0] == {"path": ["a.jpg", "b.jpg"], "label": ["01", "02"]}


def test_quoted_commas_quotes_and_line_ends_belong_to_their_value(tmp_path: Path) -> None:
    path = csv_file(tmp_path, '"path","bird, kind"\n"a, b.jpg","01"\n"c ""d"".jpg","two\nlines"\n')
    assert read_table(path)[0] == {"path": ["a, b.jpg", 'c "d".jpg'], "bird, kind": ["01", "two\nlines"]}


def test_words_that_stand_for_nothing_elsewhere_are_values_here(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "path,label\nNA,null\nNaN,None\n")
    assert read_table(path)[0] == {"path": ["NA", "NaN"], "label": ["null", "None"]}


def test_a_table_is_known_by_the_digest_of_its_bytes(tmp_path: Path) -> None:
    one = read_table(csv_file(tmp_path, "path\na\n"))[1]
    assert one != read_table(csv_file(tmp_path, "path\r\na\r\n"))[1]
    assert one == read_table(csv_file(tmp_path, "path\na\n"))[1]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the table {path} must name its columns in its first row, but it is empty"),
        (b"\xef\xbb\xbf\r\n\r\n", "the table {path} must name its columns in its first row, but it is empty"),
        (
            b"path,label\na.jpg,1\nb.jpg\n",
            "each row of {path} must have a value for each of its 2 columns, but row 3 has 1; put values with commas "
            "in quotes",
        ),
        (
            b"path,label\na, b.jpg,1\n",
            "each row of {path} must have a value for each of its 2 columns, but row 2 has 3; put values with commas "
            "in quotes",
        ),
        (
            b"path,label,label\na.jpg,1,2\n",
            "the columns of {path} must have names of their own, but 'label' comes twice; rename one",
        ),
    ],
)
def test_a_csv_file_that_is_no_table_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    path = csv_file(tmp_path, data)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert str(caught.value) == said.format(path=path)


@pytest.mark.parametrize(
    "data",
    [bytes(range(256)) * 8, b"\xff" * 99, "path\nä\n".encode("latin-1"), "path\na\n".encode("utf-16"), b'path\n"a\n'],
)
@pytest.mark.parametrize("name", ["own.csv", "own.parquet"])
def test_bytes_that_are_no_table_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=r" must be a CSV or Parquet file, but it cannot be read: "):
        read_table(tmp_path / name)


def test_a_field_beyond_what_csv_allows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: field larger than field limit"):
        read_table(csv_file(tmp_path, "path\n" + "a" * 200_000))


def test_a_missing_table_and_a_folder_in_its_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^the table .*own.csv does not exist; give a CSV or Parquet file$"):
        read_table(tmp_path / "own.csv")
    (tmp_path / "own.csv").mkdir()
    with pytest.raises(DataError, match=r"own.csv must be a CSV or Parquet file, but it cannot be read: "):
        read_table(tmp_path / "own.csv")


def test_parquet_columns_of_any_plain_kind_become_text(tmp_path: Path) -> None:
    path = parquet_file(
        tmp_path,
        whole=pa.array([10, 9, None]),
        real=pa.array([1.0, 2.5, float("nan")]),
        small=pa.array([1.0, None, 2.0], pa.float32()),
        truth=pa.array([True, False, None]),
        words=pa.array(["x", " y ", None]).dictionary_encode(),
        numbers=pa.array([3, 4, None]).dictionary_encode(),
        long=pa.array(["a", "b", None], pa.large_string()),
        none=pa.nulls(3),
        day=pa.array([datetime.date(2020, 1, 2), None, None]),
    )
    assert read_table(path)[0] == {
        "whole": ["10", "9", ""],
        "real": ["1", "2.5", ""],
        "small": ["1", "", "2"],
        "truth": ["true", "false", ""],
        "words": ["x", "y", ""],
        "numbers": ["3", "4", ""],
        "long": ["a", "b", ""],
        "none": ["", "", ""],
        "day": ["2020-01-02", "", ""],
    }


@pytest.mark.parametrize("values", [[[1], [2]], [{"a": 1}, {"a": 2}], [b"\xff\xfe", b""]])
def test_parquet_columns_that_are_no_text_are_named_where_they_are_asked_for(
    tmp_path: Path, values: list[object]
) -> None:
    path = parquet_file(tmp_path, path=["a", "b"], odd=values)
    columns, _ = read_table(path)
    assert columns == {"path": ["a", "b"]}
    with pytest.raises(DataError, match=r"^column odd of .*own.parquet must hold text or numbers, found "):
        column(columns, "odd", path)


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "own.parquet")
    with pytest.raises(DataError, match=r"own.parquet must have names of their own, but 'a' comes twice; rename one$"):
        read_table(tmp_path / "own.parquet")


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = parquet_file(tmp_path, a=list(range(1000)))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="must be a CSV or Parquet file, but it cannot be read"):
        read_table(path)


def test_waterbirds_are_read_as_their_archive_unpacks(tmp_path: Path) -> None:
    root = waterbirds_tree(tmp_path, COUNTS)
    for folder in (root, root / TREE):
        table = waterbirds(folder)
        assert {split: tuple(n) for split, n in table.counts().items()} == {
            name: COUNTS[number] for number, name in enumerate(("train", "val", "test"))
        }
        assert table.groups().names == ("landbird, land", "landbird, water", "waterbird, land", "waterbird, water")
        assert table.names[0] == "001.Some_Bird/Some_Bird_0_0000.jpg"
        assert list(table.digests) == ["metadata.csv"]


def test_a_waterbirds_task_holds_the_colours_of_its_places(tmp_path: Path) -> None:
    waterbirds_tree(tmp_path, COUNTS)
    task = build_task(DataSettings(name="waterbirds", dir=tmp_path), TINY)
    assert (len(task.train), len(task.val), len(task.test)) == (16, 11, 11)
    for split in (task.train, task.val, task.test):
        mean = split.images.pixels(np.arange(len(split))).mean(axis=(2, 3))
        assert np.array_equal(mean[:, 2] > mean[:, 1], split.true_groups().index % 2 == 1)


def rewritten(tmp_path: Path, change: tuple[str, str]) -> Path:
    root = waterbirds_tree(tmp_path, {0: (2, 2, 2, 2), 1: (2, 2, 2, 2), 2: (2, 2, 2, 2)})
    path = root / TREE / "metadata.csv"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            (",y,", ",yy,"),
            "unknown column 'y' (did you mean 'yy'?); choose one of: img_filename, img_id, place, place_filename, "
            "split, yy; the table is {path}",
        ),
        (
            ("1,001.Some_Bird/Some_Bird_0_0000.jpg,0,", "1,001.Some_Bird/Some_Bird_0_0000.jpg,2,"),
            "column y of {path} must hold 0 (landbird) or 1 (waterbird), got '2' in row 2",
        ),
        (
            ("2,001.Some_Bird/Some_Bird_0_0001.jpg,0,0", "2,001.Some_Bird/Some_Bird_0_0001.jpg,0,train"),
            "column split of {path} must hold 0 (train) or 1 (val) or 2 (test), got 'train' in row 3",
        ),
        (
            (",0,0,0,/o/ocean/0.jpg", ",0,0,,/o/ocean/0.jpg"),
            "column place of {path} must hold 0 (land) or 1 (water), got '' in row 2",
        ),
        (
            ("001.Some_Bird/Some_Bird_0_0000.jpg", "../../secret.jpg"),
            "an image's path must lie below the data set's folder, got '../../secret.jpg' in {path}; write it relative "
            "to the folder",
        ),
        (
            ("Some_Bird_0_0001.jpg", "Some_Bird_0_0000.jpg"),
            "each image must be listed once, but waterbirds lists 001.Some_Bird/Some_Bird_0_0000.jpg again; leave one "
            "out",
        ),
    ],
)
def test_damaged_metadata_are_refused(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    path = rewritten(tmp_path, change)
    with pytest.raises(DataError) as caught:
        waterbirds(tmp_path)
    assert str(caught.value) == said.format(path=path)


def test_metadata_with_a_head_only_list_no_images(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(HEAD)
    with pytest.raises(DataError, match="waterbirds must list images, found none"):
        waterbirds(tmp_path)


@pytest.mark.parametrize("folder", [".", "no-such-folder", "a-file"])
def test_a_folder_without_metadata_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a-file").write_text("")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "metadata.csv").write_text(HEAD)
    with pytest.raises(DataError, match=r"must hold metadata.csv, itself or in a folder below it, but it does not$"):
        waterbirds(tmp_path / folder)


def test_the_folder_itself_comes_before_those_below_it(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.csv").write_text("")
    assert table_root(tmp_path, "metadata.csv") == tmp_path / "a"
    (tmp_path / "metadata.csv").write_text("")
    assert table_root(tmp_path, "metadata.csv") == tmp_path


def test_images_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(HEAD + "1,a.jpg,0,0,0,x\n2,b.jpg,1,0,1,x\n")
    how = ("things", tmp_path, ("cat", "dog"), "place", ("in", "out"))
    assert metadata_table(*how, images="pictures").files.root == tmp_path  # type: ignore[attr-defined]
    (tmp_path / "pictures").mkdir()
    table = metadata_table(*how, images="pictures")
    assert table.files.root == tmp_path / "pictures"  # type: ignore[attr-defined]
    assert table.attributes[0].name == "place"


@pytest.mark.parametrize("beside", [True, False])
def test_fg_only_blackens_the_background_of_test_images_alone(tmp_path: Path, beside: bool) -> None:
    waterbirds_tree(tmp_path, COUNTS, masks=True)
    if not beside:
        (tmp_path / "segmentations").rename(tmp_path / TREE / "segmentations")
    task = build_task(DataSettings(name="waterbirds-fg", dir=tmp_path), TINY)
    plain = build_task(DataSettings(name="waterbirds", dir=tmp_path), TINY)
    assert task.name == "waterbirds-fg"
    test = task.test.images.pixels(np.arange(len(task.test)))
    assert test[:, :, 0, 0].max() == 0
    assert test[:, :, 8, 8].min(axis=0).max() > 0
    for name in ("train", "val"):
        rows = np.arange(len(getattr(task, name)))
        same = [getattr(t, name).images.pixels(rows) for t in (task, plain)]
        assert np.array_equal(*same)


def test_fg_only_without_masks_says_where_they_belong(tmp_path: Path) -> None:
    waterbirds_tree(tmp_path, COUNTS)
    with pytest.raises(DataError) as caught:
        waterbirds(tmp_path, foreground_only=True)
    assert str(caught.value) == (
        f"Waterbirds (FG-Only) needs CUB's masks in {tmp_path / TREE / 'segmentations'}, and there is no such folder; "
        "unpack CUB's segmentations.tgz there (exmap data prepare waterbirds-fg does)"
    )


def test_a_missing_or_misfit_mask_is_named_with_its_image(tmp_path: Path) -> None:
    waterbirds_tree(tmp_path, COUNTS, masks=True)
    masks = sorted((tmp_path / "segmentations").rglob("*_2_*.png"))
    masks[0].unlink()
    Image.fromarray(np.zeros((3, 3), dtype=np.uint8)).save(masks[1])
    with pytest.raises(DataError) as caught:
        build_task(DataSettings(name="waterbirds-fg", dir=tmp_path), TINY.model_copy(update={"on_error": "stop"}))
    said = str(caught.value)
    assert said.startswith("2 of 38 images of waterbirds-fg cannot be read: ")
    assert f"its mask ../segmentations/{masks[0].relative_to(tmp_path / 'segmentations').as_posix()} is missing" in said
    assert "its mask must have its size, but is 3 x 3 for an image of 24 x 18 pixels" in said


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"counts": 3}', '{"name": "an app", "icons": []}', '{"layout": 1, "classes": 2}']
)
def test_a_manifest_of_something_else_is_none_of_ours(tmp_path: Path, text: str) -> None:
    waterbirds_tree(tmp_path, COUNTS)
    (tmp_path / TREE / "manifest.json").write_text(text)
    assert composed(tmp_path / TREE) is None
    assert waterbirds(tmp_path).class_names == ("landbird", "waterbird")


def test_a_composed_set_brings_its_own_names(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(HEAD + "1,a/1.jpg,0,0,2,x\n2,b/2.jpg,2,0,1,x\n")
    for name in ("a/1.jpg", "b/2.jpg"):
        picture(tmp_path / name)
    made = {"layout": "waterbirds", "classes": ["cat", "cow", "dog"], "backgrounds": ["x", "y", "z"], "counts": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(made))
    table = waterbirds(tmp_path)
    assert table.class_names == ("cat", "cow", "dog")
    assert [table.groups().names[i] for i in table.groups().index] == ["cat, z", "dog, y"]
