from __future__ import annotations

import gzip
import hashlib
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.datasets import MNIST

from exmap.data.idx import FILES, download_set, find_idx, read_idx, read_pair
from exmap.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
LABELS = np.array([7, 0, 9], dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_set(folder: Path, *, gz: bool) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    written = {}
    for name in FILES:
        raw = idx_bytes(IMAGES if "images" in name else LABELS)
        written[f"{name}.gz" if gz else name] = gzip.compress(raw, mtime=0) if gz else raw
    for name, stored in written.items():
        (folder / name).write_bytes(stored)
    return written


def refusal(path: Path, dimensions: int = 3) -> str:
    with pytest.raises(DataError) as caught:
        read_idx(path, dimensions)
    return str(caught.value)


@pytest.mark.parametrize("gz", [False, True])
def test_a_pair_is_read_with_the_digests_of_the_files_as_they_lie(tmp_path: Path, gz: bool) -> None:
    written = write_set(tmp_path, gz=gz)
    images, labels, digests = read_pair(tmp_path, "train")
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(labels, LABELS)
    assert digests == {n: hashlib.sha256(b).hexdigest() for n, b in written.items() if n.startswith("train")}


def test_the_real_files_read_the_same_gzipped_or_not(mnist_dir: Path, tmp_path: Path) -> None:
    for name in FILES[2:]:
        path = find_idx(mnist_dir, name)
        stored = path.read_bytes()
        plain = gzip.decompress(stored) if path.suffix == ".gz" else stored
        (tmp_path / name).write_bytes(plain)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(plain, 1))
        dimensions = 3 if "images" in name else 1
        first, second = (read_idx(tmp_path / n, dimensions)[0] for n in (name, f"{name}.gz"))
        assert np.array_equal(first, second)
        assert np.array_equal(first, read_idx(path, dimensions)[0])
        assert first.shape == ((10_000, 28, 28) if dimensions == 3 else (10_000,))


def test_the_plain_file_is_taken_before_the_gzipped_one(tmp_path: Path) -> None:
    for name in (FILES[0], f"{FILES[0]}.gz"):
        (tmp_path / name).write_bytes(b"")
    assert find_idx(tmp_path, FILES[0]) == tmp_path / FILES[0]


def test_a_missing_file_is_named_with_both_ways_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_pair(tmp_path, "t10k")
    assert str(caught.value) == (
        f"{tmp_path} must hold t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz, but has neither; give the folder "
        "of the IDX files with --data-dir, or let them be downloaded with --set data.download=true"
    )


@pytest.mark.parametrize("cut", [1, 60, 65])
def test_a_truncated_file_is_refused_with_both_sizes(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(IMAGES)[:-cut])
    expected = 76 if cut <= 60 else 16
    assert refusal(path) == (
        f"{path} must hold {expected} bytes by its header, found {76 - cut}; it is truncated: fetch it again"
    )


def test_a_file_with_bytes_too_many_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(IMAGES) + bytes(1924))
    assert refusal(path) == f"{path} must hold 76 bytes by its header, found 77 or more; it is too long: fetch it again"


@pytest.mark.parametrize(
    ("start", "found"), [(b"\0\0\x08\x01", "00000801"), (b"\x89PNG", "89504e47"), (b"", "an empty file")]
)
def test_a_wrong_magic_number_is_refused_with_both_numbers(tmp_path: Path, start: bytes, found: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(start + idx_bytes(IMAGES)[4:] if start else b"")
    assert refusal(path) == (
        f"{path} must start with the IDX magic number 00000803 (3-dimensional unsigned bytes), found {found}; give the "
        "original IDX file"
    )


def damaged(whole: bytes) -> dict[str, bytes]:
    return {
        "not gzip": idx_bytes(IMAGES),
        "cut": whole[:-9],
        "empty header": whole[:5],
        "flipped": whole[:20] + bytes([whole[20] ^ 0xFF]) + whole[21:],
        "wrong checksum": whole[:-8] + bytes(4) + whole[-4:],
    }


@pytest.mark.parametrize("kind", damaged(bytes(30)))
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(damaged(gzip.compress(idx_bytes(IMAGES)))[kind])
    message = refusal(path)
    assert message.startswith(f"{path} is not a whole gzip file: ")
    assert message.endswith("; fetch it again")


def test_a_different_number_of_images_and_labels_is_refused_with_both_numbers(tmp_path: Path) -> None:
    images, labels = (tmp_path / name for name in FILES[:2])
    images.write_bytes(idx_bytes(IMAGES))
    labels.write_bytes(idx_bytes(LABELS[:2]))
    with pytest.raises(DataError) as caught:
        read_pair(tmp_path, "train")
    assert str(caught.value) == (
        f"{images} and {labels} must hold one label per image, found 3 images and 2 labels; they belong to "
        "different sets"
    )


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.requested.append(self.path)  # type: ignore[attr-defined]
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


class Mirror:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files = write_set(folder, gz=True)
        self.folder = folder
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.requested: list[str] = []
        self.server.requested = self.requested  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        md5s = [(name, hashlib.md5(stored).hexdigest()) for name, stored in self.files.items()]
        monkeypatch.setattr(MNIST, "mirrors", [self.url])
        monkeypatch.setattr(MNIST, "resources", md5s)
        monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    made = Mirror(tmp_path / "served", monkeypatch)
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_four_files_are_downloaded_and_can_be_read(mirror: Mirror, tmp_path: Path) -> None:
    download_set(tmp_path / "a" / "b", "mnist")
    assert content(tmp_path / "a" / "b") == mirror.files
    assert np.array_equal(read_pair(tmp_path / "a" / "b", "t10k")[0], IMAGES)


def test_a_file_that_is_there_gzipped_or_not_is_not_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / FILES[0]).write_bytes(b"plain")
    (folder / f"{FILES[1]}.gz").write_bytes(b"zipped")
    download_set(folder, "mnist")
    assert {path.strip("/") for path in mirror.requested} == {f"{name}.gz" for name in FILES[2:]}
    assert (folder / FILES[0]).read_bytes() == b"plain"
    mirror.requested.clear()
    download_set(folder, "mnist")
    assert mirror.requested == []


def test_a_wrong_checksum_is_an_error_that_leaves_nothing_behind(mirror: Mirror, tmp_path: Path) -> None:
    (mirror.folder / f"{FILES[0]}.gz").write_bytes(b"something else")
    folder = tmp_path / "mine"
    with pytest.raises(DataError) as caught:
        download_set(folder, "mnist")
    message = str(caught.value)
    assert message.startswith(f"{FILES[0]}.gz could not be downloaded ({mirror.url}: ")
    assert message.endswith(f"); fetch it elsewhere and put it into {folder}")
    assert content(folder) == {}


def test_the_next_mirror_is_asked_when_one_has_not_the_file(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [f"{mirror.url}nothing/", mirror.url])
    download_set(tmp_path / "mine", "mnist")
    assert content(tmp_path / "mine") == mirror.files
    monkeypatch.setattr(MNIST, "mirrors", [f"{mirror.url}nothing/", f"{mirror.url}neither/"])
    with pytest.raises(DataError, match=r"nothing/: .*404.*; .*neither/: .*404"):
        download_set(tmp_path / "other", "mnist")
    assert content(tmp_path / "other") == {}


def test_a_part_left_by_a_kill_is_replaced(mirror: Mirror, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / f"{FILES[0]}.gz.part").write_bytes(b"half")
    download_set(folder, "mnist")
    assert content(folder) == mirror.files


def write_pairs(folder: Path, train: tuple[int, int], test: tuple[int, int], labels: np.ndarray = LABELS) -> None:
    for stem, size in (("train", train), ("t10k", test)):
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((3, *size), dtype=np.uint8)))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels), mtime=0))


@pytest.mark.parametrize("stem", ["train", "t10k"])
def test_test_images_of_another_size_than_training_images_are_refused(tmp_path: Path, stem: str) -> None:
    write_pairs(tmp_path, (28, 28), (32, 32))
    sizes = ("28 x 28", "32 x 32") if stem == "train" else ("32 x 32", "28 x 28")
    with pytest.raises(DataError, match=f"must hold images of one size, found {sizes[0]} and {sizes[1]}; they belong"):
        read_pair(tmp_path, stem)


def test_images_of_another_size_than_is_needed_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path, (32, 32), (32, 32))
    assert read_pair(tmp_path, "train")[0].shape == (3, 32, 32)
    with pytest.raises(DataError, match=r"must hold images of 28 x 28 pixels, found 32 x 32; give the original IDX"):
        read_pair(tmp_path, "train", 28)
    write_pairs(tmp_path, (0, 28), (0, 28))
    with pytest.raises(DataError, match=r"must hold images of 1 x 1 or more pixels, found 0 x 28"):
        read_pair(tmp_path, "train")


def test_labels_from_1_to_10_are_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path, (4, 4), (4, 4), np.array([1, 2, 10], dtype=np.uint8))
    with pytest.raises(DataError, match=r"must hold labels from 0 to 9, found 1 to 10; give the original IDX file, or"):
        read_pair(tmp_path, "train")


def test_no_more_of_a_small_file_is_unpacked_than_its_header_states(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(idx_bytes(IMAGES))
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    said = refusal(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said == f"{path} must hold 76 bytes by its header, found 77 or more; it is too long: fetch it again"
    assert most < 8 * 2**20


def test_a_header_that_states_more_than_any_set_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1))
    assert refusal(path).startswith(f"{path} must hold at most 1,073,741,824 bytes, but its header states 79,228,162,4")
