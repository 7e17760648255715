"""The folders of the cache: what killed processes left goes, what is in use stays, and there are never too many."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exmap.data import cache_folders
from exmap.data.cache_folders import half_written, make_room, use

A, B, C = (f"{letter * 32}-1" for letter in "abc")
WORK = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("cache_folders", sys.argv[3])  # without the package, which takes seconds
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
home, what = Path(sys.argv[1]), sys.argv[2]
with module.half_written(home) as part:
    (part / "images.npy").write_bytes(bytes(1000))
    if what == "write":
        print("ready", flush=True)
        time.sleep(600)
    (part / "done.json").write_text("{}")
    part.rename(home)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _holds_nothing() -> Iterator[None]:
    yield
    for lock in cache_folders._held.values():
        os.close(lock)
    cache_folders._held.clear()


def made(home: Path, size: int = 1000, age: float = 0.0) -> Path:
    home.mkdir(parents=True)
    (home / "images.npy").write_bytes(bytes(size))
    (home / "done.json").write_text("")
    os.utime(home / "done.json", (time.time() - age,) * 2)
    return home


def write(home: Path) -> None:
    with half_written(home) as part:
        (part / "done.json").write_text("{}")
        part.rename(home)


def at_work(home: Path, what: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", WORK, home, what, cache_folders.__file__]
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_left_is_deleted_and_what_another_writes_is_not(tmp_path: Path) -> None:
    process = at_work(tmp_path / A, "write")
    try:
        write(tmp_path / B)
        assert len(names(tmp_path)) == 2
    finally:
        process.kill()
        process.communicate()
    write(tmp_path / C)
    assert names(tmp_path) == [B, C]


def test_what_is_in_use_makes_no_room(tmp_path: Path) -> None:
    process = at_work(tmp_path / A, "use")
    try:
        os.utime(tmp_path / A / "done.json", (0, 0))
        made(tmp_path / B, age=5)
        make_room(tmp_path, 0)
        assert names(tmp_path) == [A]
    finally:
        process.kill()
        process.communicate()
    make_room(tmp_path, 0)
    assert names(tmp_path) == []


def test_the_longest_unused_goes_first_and_strangers_stay(tmp_path: Path) -> None:
    for name, age in ((A, 30), (B, 90), (C, 60)):
        made(tmp_path / name, age=age)
    (tmp_path / "thesis").mkdir()
    (tmp_path / ("d" * 32 + "-1")).symlink_to(tmp_path / "thesis")
    make_room(tmp_path, 5000)
    assert len(names(tmp_path)) == 5
    make_room(tmp_path, 2500)
    assert names(tmp_path) == [A, C, "d" * 32 + "-1", "thesis"]
    assert use(tmp_path / C)
    make_room(tmp_path, 0)
    assert names(tmp_path) == [C, "d" * 32 + "-1", "thesis"]


def test_use_is_noted_and_what_is_gone_cannot_be_used(tmp_path: Path) -> None:
    home = made(tmp_path / A, age=1000)
    assert use(home)
    assert time.time() - (home / "done.json").stat().st_mtime < 100
    assert not use(tmp_path / B)


def test_what_does_not_become_a_folder_is_deleted(tmp_path: Path) -> None:
    def broken() -> None:
        with half_written(tmp_path / A) as part:
            (part / "images.npy").write_bytes(b"half")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert names(tmp_path) == []


def test_a_damaged_folder_is_made_again(tmp_path: Path) -> None:
    made(tmp_path / A)
    write(tmp_path / A)
    assert (tmp_path / A / "done.json").read_text() == "{}"
    assert not (tmp_path / A / "images.npy").exists()
    write(tmp_path / A)  # which this process uses, too
    assert (tmp_path / A / "done.json").read_text() == "{}"


def test_a_damaged_folder_that_another_process_uses_is_made_again_and_leaves_nothing(tmp_path: Path) -> None:
    process = at_work(tmp_path / A, "use")
    try:
        (tmp_path / A / "images.npy").write_bytes(b"")
        write(tmp_path / A)
        assert names(tmp_path) == [A]
        assert not (tmp_path / A / "images.npy").exists()
    finally:
        process.kill()
        process.communicate()


def test_what_nobody_locked_is_deleted_when_it_is_old(tmp_path: Path) -> None:
    for kind in ("new", "part"):
        for number, age in ((1, 30), (2, 100_000)):
            part = tmp_path / f"{A}.{kind}-0000000{number}"
            part.mkdir(parents=True)
            os.utime(part, (time.time() - age,) * 2)
    write(tmp_path / B)
    assert names(tmp_path) == [f"{A}.new-00000001", f"{A}.part-00000001", B]


def test_disks_without_locks_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_folders, "fcntl", None)
    write(tmp_path / A)
    assert use(tmp_path / A)
    make_room(tmp_path, 0)
    assert names(tmp_path) == []
