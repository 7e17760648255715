from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import normalize

from exmap.data.decode import decode
from exmap.data.files import FileImages, FolderFiles, Opened, open_images, worker_count
from exmap.data.huggingface import saved_dataset
from exmap.data.table import ImageTable, task_from_table
from exmap.errors import DataError
from exmap.records import Progress
from exmap.settings import DataSettings, ImageSettings
from hanging import at_most
from trees import picture

MANY_WORKERS = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than this machine has cores
HOSTILE = (
    "a b/c d.png",
    "Vögel/鳥 🐦.png",
    "<img src=x onerror=alert(1)>.png",
    "'; rm -rf $HOME #.png",
    "%s {0} \\n.png",
    "line\nbreak.png",
    "-rf.png",
    "n" * 200 + ".png",
)
FORK = multiprocessing.get_context("fork")  # a test's own files need no import in the process that is started


@dataclass(frozen=True)
class CountedFiles(FolderFiles):
    """Files of a folder, with a line in a log for each that is read, by whichever process."""

    log: Path = field(default=Path("log"), repr=False)

    def read(self, name: str) -> bytes:
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"{json.dumps(name)}\n")
        return super().read(name)

    def reads(self) -> int:
        return len(self.log.read_text(encoding="utf-8").splitlines()) if self.log.exists() else 0


@dataclass(frozen=True)
class FatalFiles(FolderFiles):
    """Files of a folder; reading one of them kills the process."""

    fatal: str = field(default="", repr=False)

    def read(self, name: str) -> bytes:
        if name == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(name)


@dataclass(frozen=True)
class RefusedFiles(FolderFiles):
    """Files of a folder; reading one of them fails as a network drive does."""

    refused: str = field(default="", repr=False)

    def read(self, name: str) -> bytes:
        if name == self.refused:
            raise OSError(5, "Input/output error", name)
        return super().read(name)


@dataclass(frozen=True)
class MeetingFiles(FolderFiles):
    """Files of a folder; before the last one is read, two processes wait for each other."""

    last: str = field(default="", repr=False)
    barrier: Any = field(default=None, repr=False, compare=False)

    def read(self, name: str) -> bytes:
        if name == self.last:
            self.barrier.wait(30)
        return super().read(name)


def how(tmp_path: Path, **changes: Any) -> ImageSettings:
    small = {"resize": 12, "crop": 8, "workers": 0, "cache": "always", "cache_dir": tmp_path / "cache"}
    return ImageSettings.model_validate({**small, **changes})


def fill(root: Path, n: int) -> tuple[str, ...]:
    names = tuple(f"{i:03d}.png" for i in range(n))
    for i, name in enumerate(names):
        picture(root / name, (37 * i % 256, 91 * i % 256, 53 * i % 256))
    return names


def opened(files: FolderFiles, names: tuple[str, ...], settings: ImageSettings, **more: Any) -> Opened:
    return open_images(files, names, ("",) * len(names), settings, **more)


def images_of(
    root: Path, names: tuple[str, ...], settings: ImageSettings, files: FolderFiles | None = None
) -> FileImages:
    files = files or FolderFiles(root)
    cache = opened(files, names, settings).cache
    return FileImages(files, names, ("",) * len(names), settings, cache, np.arange(len(names)))


def decoded_again(root: Path, names: tuple[str, ...], side: int = 12) -> np.ndarray:
    return np.stack([decode((root / name).read_bytes(), side) for name in names])


def folders(settings: ImageSettings) -> list[str]:
    return sorted(path.name for path in settings.cache_folder.iterdir())


def in_a_process(do: Callable[[], object]) -> int | None:
    process = FORK.Process(target=do)
    process.start()
    process.join(60)
    assert not process.is_alive()
    return process.exitcode


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def eventually(true: Callable[[], bool], seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


# Opening


@MANY_WORKERS
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_kept_array_equals_decoding(tmp_path: Path, workers: int) -> None:
    names = fill(tmp_path, 70)
    found = opened(FolderFiles(tmp_path), names, how(tmp_path, workers=workers))
    assert found.broken == {}
    assert found.images_per_second > 0
    assert found.cache is not None
    kept = np.load(found.cache)
    assert kept.dtype == np.uint8
    assert np.array_equal(kept, decoded_again(tmp_path, names))


@pytest.mark.parametrize("cache", ["always", "never"])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_unreadable_image_is_listed_with_its_reason(tmp_path: Path, workers: int, cache: str) -> None:
    names = fill(tmp_path, 70)
    (tmp_path / names[0]).unlink()
    (tmp_path / names[31]).write_bytes(b"")
    (tmp_path / names[32]).write_text("no image\n" * 20)
    (tmp_path / names[50]).write_bytes((tmp_path / names[50]).read_bytes()[:150])
    (tmp_path / names[69]).unlink()
    (tmp_path / names[69]).mkdir()
    settings = how(tmp_path, workers=workers, cache=cache)
    found = opened(FolderFiles(tmp_path), names, settings)
    assert found.broken == {
        0: "the file is missing",
        31: "the file is empty",
        32: "not an image",
        50: "image file is truncated",
        69: "the file is none: it is a folder",
    }
    assert opened(FolderFiles(tmp_path), names, settings).broken == found.broken
    if found.cache is not None:
        kept = np.load(found.cache)
        assert not kept[sorted(found.broken)].any()
        assert np.array_equal(kept[1:31], decoded_again(tmp_path, names[1:31]))


def test_a_drive_that_fails_is_named_and_not_taken_for_a_crash(tmp_path: Path) -> None:
    names = fill(tmp_path, 3)
    found = opened(RefusedFiles(tmp_path, names[1]), names, how(tmp_path))
    assert found.broken == {1: "the file cannot be read (Input/output error)"}


def test_masks_are_applied_and_missing_ones_are_named(tmp_path: Path) -> None:
    names = fill(tmp_path, 3)
    Image.fromarray(np.zeros((18, 24), dtype=np.uint8)).save(tmp_path / "black.png")
    found = open_images(FolderFiles(tmp_path), names, ("black.png", "", "gone/m.png"), how(tmp_path))
    assert found.broken == {2: "its mask gone/m.png is missing"}
    kept = np.load(found.cache)
    assert not kept[0].any()
    assert np.array_equal(kept[1], decoded_again(tmp_path, names)[1])


def test_a_missing_image_is_not_taken_for_its_mask(tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    found = open_images(FolderFiles(tmp_path), ("images/x.png",), ("x.png",), how(tmp_path))
    assert found.broken == {0: "the file is missing"}


def test_the_progress_ends_with_all_images(tmp_path: Path) -> None:
    seen: list[Progress] = []
    opened(FolderFiles(tmp_path), fill(tmp_path, 70), how(tmp_path), what="birds", listen=seen.append)
    assert [(p.task, p.done, p.total) for p in seen] == [("opening birds", done, 70) for done in (32, 64, 70)]


@MANY_WORKERS
@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("cache", ["always", "never", "auto"])
@pytest.mark.parametrize("n", [0, 1])
def test_no_images_and_one_image_can_be_opened(tmp_path: Path, n: int, cache: str, workers: int) -> None:
    settings = how(tmp_path, cache=cache, workers=workers)
    images = images_of(tmp_path, fill(tmp_path, n), settings)
    assert opened(FolderFiles(tmp_path), images.names, settings).broken == {}
    assert images.batch(np.arange(n)).shape == (n, 3, 8, 8)
    assert images.pixels(np.arange(n)).shape == (n, 3, 8, 8)
    assert len(list(images.stream([(np.arange(n), 1)] * n))) == n


@pytest.mark.parametrize("cache", ["always", "never"])
def test_no_rows_of_some_images_are_an_empty_batch(tmp_path: Path, cache: str) -> None:
    images = images_of(tmp_path, fill(tmp_path, 2), how(tmp_path, cache=cache))
    assert images.batch(np.arange(0)).shape == (0, 3, 8, 8)


def test_strange_names_are_only_names(tmp_path: Path) -> None:
    root = tmp_path / "a folder with ünicode"
    for name in HOSTILE:
        picture(root / name)
    odd = os.fsdecode(b"latin-\xe9.png")  # not UTF-8
    shutil.copy(root / HOSTILE[0], root / odd)
    names = (*HOSTILE, odd, "<b>gone</b>.png")
    settings = how(tmp_path, cache_dir=tmp_path / "c ä che <i>", workers=1)
    found = opened(FolderFiles(root), names, settings)
    assert found.broken == {len(names) - 1: "the file is missing"}
    assert np.array_equal(np.load(found.cache)[:-1], decoded_again(root, names[:-1]))
    assert opened(FolderFiles(root), names, settings).broken == found.broken
    assert len(folders(settings)) == 1


# Remembering


def counted(tmp_path: Path, n: int = 5) -> tuple[CountedFiles, tuple[str, ...]]:
    return CountedFiles(tmp_path / "images", tmp_path / "log"), fill(tmp_path / "images", n)


@pytest.mark.parametrize("cache", ["always", "never", "auto"])
def test_the_same_files_are_not_opened_again(tmp_path: Path, cache: str) -> None:
    files, names = counted(tmp_path)
    first = opened(files, names, how(tmp_path, cache=cache))
    second = opened(files, names, how(tmp_path, cache=cache))
    assert files.reads() == 5
    assert (second.broken, second.cache, second.digest) == (first.broken, first.cache, first.digest)
    assert np.isnan(second.images_per_second)


def test_a_file_is_known_by_its_size_and_time_of_change_and_then_by_its_bytes(tmp_path: Path) -> None:
    files, names = counted(tmp_path)
    first = opened(files, names, how(tmp_path))
    path = files.root / names[2]
    data, before = path.read_bytes(), path.stat()
    path.write_bytes(data)
    again = opened(files, names, how(tmp_path))
    assert (files.reads(), again.digest, again.digests) == (10, first.digest, first.digests)
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy does that keeps the time of the original
    other = opened(files, names, how(tmp_path))
    assert other.broken == {2: "not an image"}
    assert (files.reads(), other.digest == first.digest) == (15, False)
    assert [a == b for a, b in zip(first.digests, other.digests, strict=True)] == [True, True, False, True, True]


@pytest.mark.parametrize("change", ["image", "new image", "mask", "new mask", "side", "root", "order"])
def test_whatever_changes_the_decoded_images_opens_them_again(tmp_path: Path, change: str) -> None:
    files, names = counted(tmp_path)
    masks, settings = ("m.png", "gone.png", "", "", ""), how(tmp_path)
    Image.fromarray(np.full((18, 24), 255, dtype=np.uint8)).save(files.root / "m.png")
    assert open_images(files, names, masks, settings).broken == {1: "its mask gone.png is missing"}
    before = files.reads()
    if change == "image":
        picture(files.root / names[3], (1, 2, 3), (10, 10))
    elif change == "new image":
        names, masks = (*names, "m.png"), (*masks, "")
    elif change == "mask":
        Image.fromarray(np.zeros((18, 24), dtype=np.uint8)).save(files.root / "m.png")
    elif change == "new mask":
        shutil.copy(files.root / "m.png", files.root / "gone.png")
    elif change == "side":
        settings = how(tmp_path, resize=13)
    elif change == "root":
        shutil.copytree(files.root, tmp_path / "other")
        files = CountedFiles(tmp_path / "other", files.log)
    elif change == "order":
        names = names[::-1]
    found = open_images(files, names, masks, settings)
    assert files.reads() >= before + 5
    kept = np.load(found.cache)
    for row in set(range(len(names))) - set(found.broken):
        mask = (files.root / masks[row]).read_bytes() if masks[row] else None
        assert np.array_equal(kept[row], decode((files.root / names[row]).read_bytes(), settings.resize, mask))


def test_the_same_mask_at_another_image_is_another_set(tmp_path: Path) -> None:
    names = fill(tmp_path, 2)
    Image.fromarray(np.zeros((18, 24), dtype=np.uint8)).save(tmp_path / "black.png")
    for masks in (("black.png", ""), ("", "black.png")):
        kept = np.load(open_images(FolderFiles(tmp_path), names, masks, how(tmp_path)).cache)
        assert [bool(image.any()) for image in kept] == [not mask for mask in masks]


def test_two_image_columns_of_one_saved_data_set_are_not_confused(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    rows = [{"bytes": picture(tmp_path / f"{i}.png").read_bytes(), "path": None} for i in range(20)]
    black = [{"bytes": picture(tmp_path / f"b{i}.png", (0, 0, 0)).read_bytes(), "path": None} for i in range(20)]
    features = Features({"image": ImageFeature(), "bare": ImageFeature(), "label": Value("string")})
    data = Dataset.from_dict({"image": rows, "bare": black, "label": list("ab" * 10)}, features=features)
    data.save_to_disk(tmp_path / "saved")
    means = []
    for column in ("image", "bare", "image"):
        table = saved_dataset(DataSettings(dir=tmp_path / "saved", image_column=column))
        found = opened(table.files, table.names, how(tmp_path))
        means.append(np.load(found.cache).mean())
    assert means[0] == means[2]
    assert means[0] > 2 * means[1]
    assert len(folders(how(tmp_path))) == 2


def test_the_digest_follows_names_and_sizes_alone(tmp_path: Path) -> None:
    names = fill(tmp_path, 4)
    digest = opened(FolderFiles(tmp_path), names, how(tmp_path)).digest
    os.utime(tmp_path / names[0], ns=(1, 1))
    assert opened(FolderFiles(tmp_path), names, how(tmp_path, cache="never", resize=9)).digest == digest
    picture(tmp_path / names[0], size=(9, 9))
    assert opened(FolderFiles(tmp_path), names, how(tmp_path)).digest != digest


@pytest.mark.parametrize("done", [None, "", '{"images": 5, "bro', "null", "{}", "[]", '{"images": 5}'])
@pytest.mark.parametrize("cache", ["always", "never"])
def test_an_unfinished_cache_folder_is_made_anew(tmp_path: Path, cache: str, done: str | None) -> None:
    files, names = counted(tmp_path)
    settings = how(tmp_path, cache=cache)
    opened(files, names, settings)
    (home,) = settings.cache_folder.iterdir()
    (home / "done.json").unlink()
    if done is not None:
        (home / "done.json").write_text(done)
    if cache == "always":
        (home / "images.npy").write_bytes(b"half")
    found = opened(files, names, settings)
    assert files.reads() == 10
    assert folders(settings) == [home.name]
    if found.cache is not None:
        assert np.array_equal(np.load(found.cache), decoded_again(files.root, names))
    opened(files, names, settings)
    assert files.reads() == 10


@pytest.mark.parametrize("size", [None, 0, 50, 500])
def test_decoded_images_that_were_taken_away_are_made_anew(tmp_path: Path, size: int | None) -> None:
    files, names = counted(tmp_path)
    cache = opened(files, names, how(tmp_path)).cache
    cache.unlink() if size is None else os.truncate(cache, size)
    found = opened(files, names, how(tmp_path))
    assert files.reads() == 10
    assert np.array_equal(np.load(found.cache), decoded_again(files.root, names))


@pytest.mark.parametrize("cache", ["always", "never"])
def test_a_killed_opening_leaves_nothing_that_is_taken_for_finished(tmp_path: Path, cache: str) -> None:
    names = fill(tmp_path / "images", 70)
    settings = how(tmp_path, cache=cache)
    fatal = FatalFiles(tmp_path / "images", names[66])
    assert in_a_process(lambda: opened(fatal, names, settings)) == -signal.SIGKILL
    assert all(".part-" in name for name in folders(settings))
    found = opened(FatalFiles(tmp_path / "images"), names, settings)
    assert found.broken == {}
    if found.cache is not None:
        assert ".part-" not in str(found.cache)
        assert np.array_equal(np.load(found.cache), decoded_again(tmp_path / "images", names))


def test_an_interrupted_opening_leaves_nothing_at_all(tmp_path: Path) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    settings = how(tmp_path, workers=1)
    with pytest.raises(KeyboardInterrupt):
        opened(FolderFiles(tmp_path), fill(tmp_path, 70), settings, listen=interrupt)
    assert folders(settings) == []
    assert eventually(lambda: not multiprocessing.active_children())


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("cache", ["always", "never"])
def test_two_processes_may_open_the_same_images_at_once(tmp_path: Path, cache: str, damaged: bool) -> None:
    names = fill(tmp_path / "images", 40)
    settings = how(tmp_path, cache=cache)
    barrier = FORK.Barrier(2)
    files = MeetingFiles(tmp_path / "images", names[-1], barrier)
    if damaged:
        opened(MeetingFiles(tmp_path / "images"), names, settings)
        next(settings.cache_folder.glob("*/done.json")).unlink()

    def build() -> None:
        assert opened(files, names, settings).broken == {}

    processes = [FORK.Process(target=build) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(folders(settings)) == 1
    found = opened(MeetingFiles(tmp_path / "images"), names, settings)
    assert np.isnan(found.images_per_second)
    if found.cache is not None:
        assert np.array_equal(np.load(found.cache), decoded_again(tmp_path / "images", names))


# Where decoded images are kept


def test_auto_keeps_up_to_its_limit(tmp_path: Path) -> None:
    names = fill(tmp_path, 4)
    size = 4 * 12 * 12 * 3 / 2**30
    for share, kept in ((0.99, False), (1.01, True)):
        settings = how(tmp_path, cache="auto", cache_limit_gib=size * share)
        assert (opened(FolderFiles(tmp_path), names, settings).cache is not None) == kept


def test_auto_leaves_half_of_the_free_disk_and_still_uses_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, names = counted(tmp_path, 4)
    size = 4 * 12 * 12 * 3
    free = 2 * size - 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - free, free))
    settings = how(tmp_path, cache="auto", cache_dir=tmp_path / "not" / "yet" / "there")
    assert opened(files, names, settings).cache is None
    free = 2 * size
    assert opened(files, names, settings).cache is not None
    free = size  # after the images were kept
    assert opened(files, names, settings).cache is not None
    assert files.reads() == 8


def test_without_a_folder_of_its_own_the_cache_lies_with_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found = opened(FolderFiles(tmp_path), fill(tmp_path, 1), how(tmp_path, cache_dir=None))
    assert found.cache is not None
    assert found.cache.is_relative_to(tmp_path / "xdg" / "exmap")


@pytest.mark.parametrize("cache", ["always", "never", "auto"])
def test_a_cache_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path, cache: str) -> None:
    (tmp_path / "file").write_text("no folder")
    settings = how(tmp_path, cache=cache, cache_dir=tmp_path / "file" / "cache", workers=1)
    with pytest.raises(OSError, match="file/cache"):
        opened(FolderFiles(tmp_path), fill(tmp_path, 3), settings)


def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    names = fill(tmp_path / "images", 70)
    settings = how(tmp_path)

    def build() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))  # no file may grow larger
        with pytest.raises(OSError, match="File too large"):
            opened(FolderFiles(tmp_path / "images"), names, settings)

    assert in_a_process(build) == 0
    assert folders(settings) == []


# Reading


def test_batches_are_normalised_as_torchvision_does(tmp_path: Path) -> None:
    names = fill(tmp_path, 5)
    images = images_of(tmp_path, names, how(tmp_path))
    rows = np.array([3, 0, 0])
    batch, seen = images.batch(rows), images.pixels(rows)
    for made in (batch, seen):
        assert made.dtype == np.float32
        assert made.shape == (3, 3, 8, 8)
    whole = decoded_again(tmp_path, names)[rows][:, 2:10, 2:10].transpose(0, 3, 1, 2)
    assert np.array_equal(seen, whole.astype(np.float32) / np.float32(255))
    theirs = normalize(torch.from_numpy(seen), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert np.allclose(batch, theirs.numpy(), atol=1e-6)
    plain = images_of(tmp_path, names, how(tmp_path, normalize="none"))
    assert np.array_equal(plain.batch(rows), seen)
    for own in ((0.5, 0.25), ((0.5,) * 3, (0.25,) * 3)):
        half = images_of(tmp_path, names, ImageSettings(**{**dict(how(tmp_path)), "normalize": own}))
        assert np.allclose(half.batch(rows), (seen - 0.5) / 0.25, atol=1e-6)


@pytest.mark.parametrize(
    "own", [(0.5,), (0.5, 0.0), (0.5, -1), ((0.5, 0.5), 1), "half", (float("nan"), 1), (0.5, 1, 1)]
)
def test_a_mean_and_a_deviation_that_are_none_are_refused(own: object) -> None:
    with pytest.raises(ValueError, match="normalize"):
        ImageSettings(normalize=own)


def test_pixels_span_black_to_white(tmp_path: Path) -> None:
    for name, shade in (("black.png", 0), ("white.png", 255)):
        Image.new("RGB", (12, 12), (shade,) * 3).save(tmp_path / name)
    pixels = images_of(tmp_path, ("black.png", "white.png"), how(tmp_path)).pixels(np.arange(2))
    assert (pixels[0] == 0).all()
    assert (pixels[1] == 1).all()


def test_the_shape_is_that_of_the_crop_or_of_the_whole(tmp_path: Path) -> None:
    names = fill(tmp_path, 2)
    for crop, side in ((8, 8), (12, 12), (None, 12)):
        images = images_of(tmp_path, names, how(tmp_path, crop=crop))
        assert len(images) == 2
        assert images.shape == images.batch(np.arange(2)).shape[1:] == (3, side, side)


REQUESTS = [(np.array([5, 1, 9]), 11), (np.array([0]), 12), (np.arange(10), None), (np.array([9, 9]), 13)] * 2


@MANY_WORKERS
@pytest.mark.parametrize("changes", [{}, {"random_crop": None}, {"flip": False}])
def test_streams_are_bit_equal_with_any_workers_and_any_cache(tmp_path: Path, changes: dict[str, Any]) -> None:
    names = fill(tmp_path, 10)
    streams = []
    for workers, cache in ((0, "never"), (0, "always"), (1, "always"), (3, "never"), (3, "always")):
        images = images_of(tmp_path, names, how(tmp_path, cache=cache, **changes))
        assert (images.cache is not None) == (cache == "always")
        images = replace(images, settings=how(tmp_path, workers=workers, cache=cache, **changes))
        streams.append(list(images.stream(iter(REQUESTS))))
    for stream in streams:
        assert [batch.shape for batch in stream] == [(len(rows), 3, 8, 8) for rows, _ in REQUESTS]
        assert all(batch.dtype == np.float32 for batch in stream)
        assert all(np.array_equal(a, b) for a, b in zip(stream, streams[0], strict=True))
        assert np.array_equal(stream[2], images.batch(np.arange(10)))


def test_a_seed_fixes_the_crops_of_each_place_in_a_batch(tmp_path: Path) -> None:
    images = images_of(tmp_path, fill(tmp_path, 4), how(tmp_path, resize=32, crop=24))
    rows = np.array([0, 0, 1, 2])
    first, again, other, shorter = images.stream([(rows, 1), (rows, 1), (rows, 2), (rows[:2], 1)])
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])
    assert np.array_equal(first[:2], shorter)


def test_without_random_crops_about_half_of_the_images_are_flipped_and_nothing_else(tmp_path: Path) -> None:
    images = images_of(tmp_path, fill(tmp_path, 1), how(tmp_path, random_crop=None))
    (batch,) = images.stream([(np.zeros(200, dtype=np.int64), 3)])
    (plain,) = images.batch(np.zeros(1, dtype=np.int64))
    as_it_is = (batch == plain).all(axis=(1, 2, 3))
    flipped = (batch == plain[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (as_it_is ^ flipped).all()
    assert 70 < flipped.sum() < 130


@MANY_WORKERS
@pytest.mark.parametrize(("workers", "ahead"), [(0, 1), (1, 4), (3, 10)])
def test_a_stream_makes_only_a_few_batches_ahead(tmp_path: Path, workers: int, ahead: int) -> None:
    files, names = counted(tmp_path, 60)
    images = FileImages(files, names, ("",) * 60, how(tmp_path, workers=workers))
    stream = images.stream([(np.array([i]), None) for i in range(60)])
    next(stream)
    time.sleep(0.3)
    assert 1 <= files.reads() <= ahead
    assert len(list(stream)) == 59
    assert files.reads() == 60


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_global_random_states_alone(tmp_path: Path, workers: int) -> None:
    names = fill(tmp_path, 6)
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    images = images_of(tmp_path, names, how(tmp_path, workers=workers))
    list(images.stream([(np.arange(6), seed) for seed in range(4)]))
    images.batch(np.arange(6))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(np.random.get_state()) == before[1]
    assert random.getstate() == before[2]


@pytest.mark.parametrize("end", ["close", "break", "error"])
def test_a_stream_that_is_left_midway_leaves_no_processes(tmp_path: Path, end: str) -> None:
    images = images_of(tmp_path, fill(tmp_path, 4), how(tmp_path, workers=2, cache="never"))
    threads = threading.active_count()
    stream = images.stream([(np.arange(4), None)] * 50)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    if end == "close":
        stream.close()
    elif end == "break":
        for _ in stream:
            break
        del stream
    else:
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt())
    assert eventually(lambda: not multiprocessing.active_children())
    assert eventually(lambda: threading.active_count() <= threads)  # one of an earlier test's may end meanwhile


def test_an_interrupt_from_the_keyboard_leaves_no_processes(tmp_path: Path) -> None:
    images = images_of(tmp_path, fill(tmp_path, 4), how(tmp_path, workers=2, cache="never"))
    note = tmp_path / "children"

    def read() -> None:
        os.setsid()  # the terminal would send the signal to all of them
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the workers say that they were interrupted
        with contextlib.suppress(KeyboardInterrupt):
            for i, _ in enumerate(images.stream([(np.arange(4), None)] * 100_000)):
                if i == 3:
                    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
                    note.with_suffix(".new").write_text(json.dumps(pids))
                    note.with_suffix(".new").rename(note)

    process = FORK.Process(target=read)
    process.start()
    assert eventually(note.exists)
    pids = json.loads(note.read_text())
    assert len(pids) == 3
    os.killpg(pids[0], signal.SIGINT)
    process.join(30)
    assert process.exitcode == 0
    assert eventually(lambda: not any(map(alive, pids[1:])))


# Failures


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_goes_away_later_is_named_in_one_sentence(tmp_path: Path, workers: int) -> None:
    names = fill(tmp_path, 4)
    images = images_of(tmp_path, names, how(tmp_path, workers=workers, cache="never"))
    (tmp_path / names[2]).unlink()
    stream = images.stream([(np.array([i]), None) for i in range(4)])
    next(stream)
    next(stream)
    with pytest.raises(DataError) as caught:
        next(stream)
    wanted = "002.png can no longer be read (the file is missing); restore it and rerun the same command"
    assert str(caught.value) == wanted
    del stream
    assert eventually(lambda: not multiprocessing.active_children())
    with pytest.raises(DataError, match=r"^002.png can no longer be read"):
        images.batch(np.array([2]))


@pytest.mark.parametrize("workers", [0, 2])
def test_images_whose_cache_goes_away_later_are_decoded_again(tmp_path: Path, workers: int) -> None:
    images = images_of(tmp_path, fill(tmp_path, 4), how(tmp_path, workers=workers))
    (before,) = images.stream([(np.arange(4), None)])
    shutil.rmtree(tmp_path / "cache")
    (after,) = images.stream([(np.arange(4), None)])
    assert np.array_equal(before, after)


@pytest.mark.parametrize("opening", [True, False])
def test_a_killed_worker_is_a_clear_error_and_no_hang(tmp_path: Path, opening: bool) -> None:
    names = fill(tmp_path, 70)
    fatal, settings = FatalFiles(tmp_path, names[40]), how(tmp_path, workers=2, cache="never")
    images = FileImages(fatal, names, ("",) * 70, settings)
    words = r"has died.*images\.workers=0|is killed by signal"
    with at_most(600), pytest.raises((DataError, RuntimeError), match=words) as caught:
        opened(fatal, names, settings) if opening else list(images.stream([(np.array([i]), None) for i in range(70)]))
    assert "\n" not in str(caught.value)
    del caught
    assert eventually(lambda: not multiprocessing.active_children())
    if opening:
        assert folders(settings) == []


def test_what_is_wrong_in_the_program_is_not_called_a_dead_worker(tmp_path: Path) -> None:
    def fail(_: Progress) -> None:
        raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match=r"^of another kind$"):
        opened(FolderFiles(tmp_path), fill(tmp_path, 2), how(tmp_path), listen=fail)


def test_a_table_with_unreadable_images_stops_or_leaves_them_out(tmp_path: Path) -> None:
    names = fill(tmp_path, 24)
    (tmp_path / names[5]).write_bytes(b"")
    table = ImageTable(
        "birds", FolderFiles(tmp_path), names, np.arange(24) % 2, np.arange(24) % 3, ("a", "b"), digests={}
    )
    with pytest.raises(DataError, match=r"^1 of 24 images of birds cannot be read: 005.png \(the file is empty\)"):
        task_from_table(table, how(tmp_path, on_error="stop"))
    for cache in ("always", "never"):
        task = task_from_table(table, how(tmp_path, on_error="skip", cache=cache))
        assert task.skipped == {"005.png": "the file is empty"}
        for split in (task.train, task.val, task.test):
            assert names[5] not in split.ids
            wanted = decoded_again(tmp_path, split.ids)[:, 2:10, 2:10].transpose(0, 3, 1, 2) / np.float32(255)
            assert np.array_equal(split.images.pixels(np.arange(len(split))), wanted)


def test_as_many_workers_as_cores_but_one_read_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [worker_count(how(tmp_path, workers=n)) for n in (0, 1, 30)] == [0, 1, 30]
    for cores, workers in ((1, 1), (2, 1), (4, 3), (64, 8)):
        monkeypatch.setattr("exmap.data.reading.usable_cores", lambda n=cores: n)
        assert worker_count(how(tmp_path, workers=None)) == workers
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")  # as many processes compute on this host
    assert worker_count(how(tmp_path, workers=None)) == 3


@dataclass(frozen=True)
class Refusing(FolderFiles):
    """A folder whose files the system refuses to give, as it does without permission (root is never refused)."""

    def read(self, name: str) -> bytes:
        raise PermissionError(13, "Permission denied", name)


def test_a_refusal_by_the_system_is_not_remembered(tmp_path: Path) -> None:
    settings = ImageSettings(resize=8, crop=None, workers=0, cache="always", cache_dir=tmp_path / "cache")
    picture(tmp_path / "own" / "a.png")
    found = open_images(Refusing(tmp_path / "own"), ["a.png"], [""], settings)
    assert found.broken == {0: "the file cannot be read (Permission denied)"}
    assert found.cache is None
    assert list((tmp_path / "cache").iterdir()) == []
