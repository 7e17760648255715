"""The cache over all sets: what it holds, one limit, and how it is emptied."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from exmap.data import cache_folders
from exmap.data.cache_folders import allowed, can_hold, finished, half_written, use
from exmap.data.cached import CachedSet, cached_sets, clear_cache
from exmap.data.files import FolderFiles, open_images
from exmap.errors import SettingsError
from exmap.settings import ImageSettings
from running import command
from trees import picture

SIDE = 12
BYTES = SIDE * SIDE * 3  # of an image
HOLD = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, int(sys.argv[2])); print(1, flush=True); "
SHARED, EXCLUSIVE = 1, 2


@pytest.fixture(autouse=True)
def _holds_nothing() -> Iterator[None]:
    yield
    forget()


def forget() -> None:
    """Use no set any more, as after the end of a process."""
    for lock in cache_folders._held.values():
        os.close(lock)
    cache_folders._held.clear()


@contextmanager
def held(home: Path, kind: int = SHARED, seconds: float = 600) -> Iterator[None]:
    """Have another process lock a folder."""
    words = [sys.executable, "-c", f"{HOLD}time.sleep({seconds})", str(home / ".lock"), str(kind)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def opened(tmp_path: Path, name: str, images: int = 4, **changes: object) -> Path | None:
    """Open a set of that name, and return its folder in the cache; None if no decoded images are kept."""
    names = tuple(f"{i}.png" for i in range(images))
    for number, image in enumerate(names):
        if not (tmp_path / name / image).exists():
            picture(tmp_path / name / image, (37 * number % 256, 91, 53))
    how = {"resize": SIDE, "crop": 8, "workers": 0, "cache_dir": tmp_path / "cache", **changes}
    settings = ImageSettings.model_validate(how)
    kept = open_images(FolderFiles(tmp_path / name), names, ("",) * images, settings, what=name).cache
    return None if kept is None else kept.parent


def aged(home: Path | None, days: float) -> Path:
    assert home is not None
    os.utime(home / "done.json", (time.time() - days * 24 * 3600,) * 2)
    return home


def names_of(sets: list[CachedSet]) -> list[str]:
    return [one.name for one in sets]


def test_sets_are_listed_with_source_size_and_last_use(tmp_path: Path) -> None:
    aged(opened(tmp_path, "birds"), 3)
    forget()
    opened(tmp_path, "cars", images=2)
    opened(tmp_path, "planes", cache="never")
    cars, birds = (one for one in cached_sets(tmp_path / "cache") if one.decoded)
    assert (birds.name, birds.source, birds.images) == ("birds", str(tmp_path / "birds"), 4)
    assert birds.size > 4 * BYTES
    assert 2.9 < (time.time() - birds.used) / (24 * 3600) < 3.1
    assert (birds.in_use, cars.in_use) == (False, True)
    (planes,) = (one for one in cached_sets(tmp_path / "cache") if not one.decoded)
    assert planes.size < 1000


def test_what_earlier_versions_kept_and_what_is_damaged_is_listed_and_goes(tmp_path: Path) -> None:
    for number, text in enumerate(("{", "[]", '{"images": "many", "set": 3}')):
        home = tmp_path / f"{number}{'a' * 31}-1"
        home.mkdir()
        (home / "done.json").write_text(text)
    assert {(one.name, one.source, one.images) for one in cached_sets(tmp_path)} == {("", "", 0)}
    assert len(clear_cache(tmp_path)[0]) == 3
    assert list(tmp_path.iterdir()) == []
    assert cached_sets(tmp_path / "nowhere") == []


def test_one_limit_for_all_sets_and_the_longest_unused_goes_first(tmp_path: Path) -> None:
    limit: dict[str, Any] = {"cache_limit_gib": 3 * 4 * BYTES / 2**30}
    for days, name in enumerate(("a", "b", "c"), start=1):
        aged(opened(tmp_path, name), 10 - days)
        forget()
    opened(tmp_path, "d", **limit)
    assert {"c", "d"} <= set(names_of(cached_sets(tmp_path / "cache"))) <= {"b", "c", "d"}
    assert "a" not in names_of(cached_sets(tmp_path / "cache"))


def test_room_is_made_before_images_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit: dict[str, Any] = {"cache_limit_gib": 5 * BYTES / 2**30}
    aged(opened(tmp_path, "a"), 1)
    forget()
    seen: list[list[str]] = []
    read = FolderFiles.read

    def reading(self: FolderFiles, name: str) -> bytes:
        seen.append(names_of(cached_sets(tmp_path / "cache")))
        return read(self, name)

    monkeypatch.setattr(FolderFiles, "read", reading)
    assert opened(tmp_path, "b", **limit) is not None
    assert seen == [[]] * 4


def test_auto_keeps_nothing_that_does_not_fit_beside_sets_in_use_and_deletes_none_for_it(tmp_path: Path) -> None:
    limit: dict[str, Any] = {"cache_limit_gib": 10 * BYTES / 2**30}
    used, other = opened(tmp_path, "used"), opened(tmp_path, "other", images=2)
    forget()
    assert used is not None
    with held(used):
        assert opened(tmp_path, "new", images=9, **limit) is None
        assert other is not None
        assert other.exists()
        assert opened(tmp_path, "new", images=9, cache="always", **limit) is not None
        assert not other.exists()
        assert used.exists()


def test_images_that_another_process_is_writing_count_in_full(tmp_path: Path) -> None:
    home = tmp_path / f"{'a' * 32}-1"
    with half_written(home) as part:
        with open(part / "images.npy", "wb") as file:
            file.truncate(1000)
        assert not can_hold(tmp_path, 1500, 501)
        assert can_hold(tmp_path, 1501, 501)


def test_a_lower_limit_holds_from_the_next_use(tmp_path: Path) -> None:
    aged(opened(tmp_path, "a"), 1)
    opened(tmp_path, "b")
    forget()
    opened(tmp_path, "b", cache_limit_gib=5 * BYTES / 2**30)
    assert names_of(cached_sets(tmp_path / "cache")) == ["b"]


def test_all_sets_take_at_most_half_of_the_disk_that_is_free_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9000, 6000, 3000))
    assert allowed(tmp_path / "not" / "yet", 10**6) == 1500
    home = tmp_path / f"{'a' * 32}-1"
    home.mkdir()
    (home / "images.npy").write_bytes(bytes(1000))
    assert allowed(tmp_path, 10**6) == 2000
    assert allowed(tmp_path, 100) == 100


def test_to_look_at_a_set_or_to_finish_it_does_not_make_it_decoded_again(tmp_path: Path) -> None:
    home = opened(tmp_path, "a")
    forget()
    assert home is not None
    with held(home, EXCLUSIVE, seconds=0.2):
        assert finished(home.parent)[0].in_use
        assert use(home)


def test_a_set_that_is_being_deleted_is_not_used(tmp_path: Path) -> None:
    home = opened(tmp_path, "a")
    forget()
    assert home is not None
    with held(home, EXCLUSIVE):
        later = threading.Timer(0.1, home.rename, [home.with_name(f"{home.name}.part-00000000")])
        later.start()
        assert not use(home)
        later.join()


def test_clear_leaves_what_is_in_use_and_takes_names_and_days(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, days in (("a", 40), ("b", 40), ("c", 2)):
        aged(opened(tmp_path, name), days)
    forget()
    with pytest.raises(SettingsError, match=r"set in the cache 'aa' \(did you mean 'a'\?\); choose one of: a, b, c"):
        clear_cache(cache, ["aa"])
    assert [names_of(some) for some in clear_cache(cache, ["a", "c"], older_than=30)] == [["a"], []]
    (b,) = (one.path for one in cached_sets(cache) if one.name == "b")
    with held(b):
        deleted, left = clear_cache(cache)
        assert (names_of(deleted), names_of(left), left[0].in_use) == (["c"], ["b"], True)
    assert names_of(clear_cache(cache)[0]) == ["b"]
    with pytest.raises(SettingsError, match="holds no named set"):
        clear_cache(cache, ["a"])


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def give(*words: object) -> str:
        said = command(monkeypatch, capsys, "cache", *words, "--dir", tmp_path / "cache")
        assert (said.code, said.err) == (0, "")
        return said.out

    assert "0 sets, 0 B; limit" in give("list")
    home = aged(opened(tmp_path, "birds\x1b[1m"), 2)
    aged(opened(tmp_path, "cars"), 0)
    forget()
    said = give("list", "--json", tmp_path / "cache.json")
    assert "2 days ago" in said
    assert "today" in said
    assert "2 sets, " in said
    assert "\x1b" not in said
    found = json.loads((tmp_path / "cache.json").read_text())
    assert [row["images"] for row in found["sets"]] == [4, 4]
    assert found["sets"][1]["folder"] == str(home)
    assert found["bytes"] == sum(row["bytes"] for row in found["sets"]) <= found["limit_bytes"]
    with held(home):
        assert "(in use)" in give("clear")
    assert "1 set deleted" in give("clear", "--older-than", "1")
    assert list((tmp_path / "cache").iterdir()) == []
