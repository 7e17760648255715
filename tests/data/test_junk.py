from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from exmap.data import build_task
from exmap.data.junk import Junk
from exmap.data.own import image_folder
from exmap.data.regular import IrregularError, open_regular, read_regular
from exmap.data.table import ImageTable
from exmap.errors import DataError
from exmap.settings import DataSettings, ImageSettings
from trees import class_folders, own_table, picture

TINY = ImageSettings(resize=6, crop=None, random_crop=None, workers=0, cache="never", normalize="none")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes")


def folder(root: Path, **changes: object) -> ImageTable:
    return image_folder(DataSettings(name="folder", dir=root, **changes))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "folders of the system") for name in ("@eaDir", "$RECYCLE.BIN", "lost+found", "__MACOSX", "#recycle")),
        ("System Volume Information", "folders of the system"),
        *((name, "hidden folders") for name in (".ipynb_checkpoints", "__pycache__", ".git")),
    ],
)
@pytest.mark.parametrize("where", [".", "cat"])
def test_folders_that_nobody_made_on_purpose_are_passed_over(tmp_path: Path, name: str, kind: str, where: str) -> None:
    class_folders(tmp_path, {"cat": 6, "dog": 6})
    picture(tmp_path / where / name / "x.png")
    found = folder(tmp_path)
    assert (found.class_names, len(found.names)) == (("cat", "dog"), 12)
    assert found.ignored == {kind: [(Path(where) / name).as_posix()]}


def test_links_in_a_circle_and_to_folders_that_are_counted_already_are_passed_over(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 6, "dog": 6})
    for link, target in (("a", "."), ("b", "cat"), ("cat/up", ".."), ("dog/over", "../cat"), ("dog/here", ".")):
        (tmp_path / link).symlink_to(target)
    found = folder(tmp_path)
    assert (found.class_names, len(found.names)) == (("cat", "dog"), 12)
    assert sorted(found.ignored["links to folders that are counted already"]) == [
        "a",
        "b",
        "cat/up",
        "dog/here",
        "dog/over",
    ]
    assert found.notes == ("Links to folders that are counted already are passed over: 'a', 'b'.",)


def test_links_to_folders_elsewhere_are_followed_once(tmp_path: Path) -> None:
    class_folders(tmp_path / "pool", {"cat": 6, "dog": 6})
    for link, target in (("cat", "cat"), ("dog", "dog"), ("again", "cat")):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / link).symlink_to(tmp_path / "pool" / target)
    found = folder(tmp_path / "set")
    assert (found.class_names, len(found.names)) == (("again", "dog"), 12)
    assert found.ignored == {"links to folders that are counted already": ["cat"]}


def test_a_file_that_several_links_lead_to_counts_once_in_its_class(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 6, "dog": 6})
    (tmp_path / "cat" / "000-link.png").symlink_to("000.png")
    os.link(tmp_path / "cat" / "001.png", tmp_path / "cat" / "001-too.png")
    (tmp_path / "cat" / "nowhere.png").symlink_to("gone.png")
    (tmp_path / "cat" / "circle.png").symlink_to("circle.png")
    found = folder(tmp_path)
    assert [name for name in found.names if name.startswith("cat")][:2] == ["cat/000.png", "cat/001-too.png"]
    assert found.ignored == {
        "links to images that are counted already": ["cat/001.png", "cat/000-link.png"],
        "links that lead nowhere": ["cat/circle.png", "cat/nowhere.png"],
    }


def test_pipes_and_sockets_are_never_waited_for(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 6, "dog": 6})
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "device.png").symlink_to("/dev/zero")
    assert folder(tmp_path).ignored == {"pipes, devices and the like": ["cat/pipe.png", "cat/device.png"]}


def test_pipes_and_devices_in_a_table_are_left_out_with_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_table(tmp_path, [[f"{i:03d}.png", i % 2] for i in range(60)])
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        for number in range(3):
            Path(f"{number:03d}.png").unlink()
        os.mkfifo("000.png")
        listening.bind("001.png")
        Path("002.png").symlink_to("/dev/zero")
        settings = DataSettings(name="table", dir=tmp_path, table=Path("own.csv"))
        task = build_task(settings, TINY)
    assert task.skipped == {
        "000.png": "the file is none: it is a pipe",
        "001.png": "the file is none: it is a socket",
        "002.png": "the file is none: it is a device",
    }


def test_a_pipe_or_a_device_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "own.csv")
    for table, kind in (("own.csv", "a pipe"), ("/dev/zero", "a device"), (".", "a folder")):
        with pytest.raises(DataError, match=f"it is {kind}; save it as CSV in UTF-8, or as Parquet$"):
            build_task(DataSettings(name="table", dir=tmp_path, table=Path(table)), TINY)


def test_regular_files_alone_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "a") == read_regular(tmp_path / "link") == b"abc"
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "a pipe"), (".", "a folder"), ("/dev/null", "a device")):
        with pytest.raises(IrregularError, match=f"^it is {kind}$"):
            open_regular(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "gone")


def test_images_whose_names_are_not_in_utf_8_are_left_out_and_listed(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 6, "dog": 6})
    try:
        shutil.copy(tmp_path / "cat" / "000.png", os.fsencode(tmp_path / "cat") + b"/\xff.png")
    except OSError:
        pytest.skip("this file system takes no such names")
    found = folder(tmp_path)
    assert len(found.names) == 12
    assert found.ignored == {"images whose names are not in UTF-8": ["cat/\\udcff.png"]}
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(DataError, match=r"^names of classes must be in UTF-8, but .* has '\\udcff'; rename it$"):
        folder(tmp_path)


def test_the_folder_of_a_run_inside_the_data_is_no_class(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 6, "dog": 6})
    before = folder(tmp_path)
    run = tmp_path / "runs" / "folder-seed0"
    picture(run / "report" / "strategies.png")
    (run / "settings.yaml").write_text("format: 2\nsettings: {}\n")
    picture(tmp_path / "out" / "x.png")
    (tmp_path / "out" / "settings.yaml").write_text("format: 2\nsettings: {}\n")
    found = folder(tmp_path)
    assert (found.names, found.class_names, found.notes) == (before.names, before.class_names, before.notes)
    assert found.ignored == {"folders of runs": ["out", "runs/folder-seed0"], "folders without images": ["runs"]}
    (tmp_path / "cat" / "settings.yaml").write_text("camera: X\n")
    assert len(folder(tmp_path).names) == 12


def test_folders_that_differ_only_in_case_are_refused_unless_both_are_named(tmp_path: Path) -> None:
    class_folders(tmp_path, {"Cat": 6, "dog": 6})
    if (tmp_path / "cat").exists():
        pytest.skip("this file system does not tell them apart")
    class_folders(tmp_path, {"cat": 6})
    with pytest.raises(DataError, match="'Cat' and 'cat' differ only in case"):
        folder(tmp_path)
    assert folder(tmp_path, classes=("dog", "cat", "Cat")).class_names == ("dog", "cat", "Cat")


def test_two_names_of_one_split_are_taken_together_and_said(tmp_path: Path) -> None:
    class_folders(tmp_path, {f"{split}/{kind}": 6 for split in ("train", "Dev", "eval", "test") for kind in "ab"})
    found = folder(tmp_path)
    assert np.bincount(found.splits).tolist() == [12, 24, 12]
    assert found.notes == ("Dev and eval are taken together as the split val.",)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("exmap.data.junk.os.scandir", refuse)
    with pytest.raises(DataError, match=r"must be readable, but .* is not \(Permission denied\); permit reading it"):
        Junk(tmp_path).folders(tmp_path)
