from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import random
import stat
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from exmap.data import fetch
from exmap.data.fetch import Remote, checksum, download
from exmap.data.unpack import extract
from exmap.errors import DataError
from exmap.records import Progress

OLD, NEW = (np.random.default_rng(seed).bytes(700_001) for seed in (0, 1))


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


# --- download


@dataclass
class Site:
    """What the server holds and how it behaves; the lists are used up, one entry per request."""

    url: str = ""
    content: bytes = OLD
    etag: str | None = '"old"'
    ranges: bool = True
    if_range: bool = True
    shift: int = 0  # answer a range that starts elsewhere
    sized: bool = True
    whole_size: bool = True  # name it in the answer to a range
    cuts: list[int | None] = field(default_factory=list)  # close after so many bytes
    statuses: list[int] = field(default_factory=list)
    location: str | None = None
    seen: list[Message] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.seen.append(request.headers)
        if self.location:
            request.send_response(302)
            request.send_header("Location", self.location)
            request.end_headers()
            return
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            request.send_error(status)
            return
        body, wanted = self.content, request.headers.get("Range")
        same = not self.if_range or request.headers.get("If-Range", self.etag) == self.etag
        if wanted and self.ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(body)}")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            start += self.shift
            request.send_response(206)
            request.send_header(
                "Content-Range", f"bytes {start}-{len(body) - 1}/{len(body) if self.whole_size else '*'}"
            )
            body = body[start:]
        else:
            request.send_response(200)
        if self.sized:
            request.send_header("Content-Length", str(len(body)))
        if self.etag:
            request.send_header("ETag", self.etag)
        request.end_headers()
        request.wfile.write(body[: self.cuts.pop(0) if self.cuts else None])

    @property
    def ranges_asked(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.seen]

    def remote(self, **told: Any) -> Remote:
        return Remote(self.url, "set.tgz", **{"md5": md5(self.content), "size": len(self.content)} | told)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}/files/set.tgz"
        yield site
        server.shutdown()
        thread.join()


def refused(remote: Remote, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        download(remote, folder)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def half(site: Site, folder: Path, **told: Any) -> int:
    """Leave the part of a download that stopped half way, and return its size."""
    stop = len(site.content) // 2
    site.cuts = [stop, 0, 0, 0]
    assert "could not be downloaded in 4 tries" in refused(site.remote(**told), folder)
    site.seen.clear()
    return stop


def test_a_file_is_downloaded_under_its_name_with_progress_in_bytes(site: Site, tmp_path: Path) -> None:
    told: list[Progress] = []
    path = download(site.remote(), tmp_path / "new" / "folder", listen=told.append)
    assert path == tmp_path / "new" / "folder" / "set.tgz"
    assert path.read_bytes() == OLD
    assert names(path.parent) == ["set.tgz"]
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert (told[0].done, told[-1].done) == (0, len(OLD))
    assert {(p.task, p.total, p.unit) for p in told} == {("download set.tgz", len(OLD), "bytes")}
    assert site.seen[0]["User-Agent"] == "exmap"


@pytest.mark.parametrize("told", [{}, {"size": None}, {"md5": None}, {"md5": None, "size": None}])
def test_a_finished_file_is_returned_without_network(site: Site, tmp_path: Path, told: dict[str, None]) -> None:
    (tmp_path / "set.tgz").write_bytes(OLD)
    assert download(site.remote(**told), tmp_path) == tmp_path / "set.tgz"
    assert site.seen == []


@pytest.mark.parametrize(
    ("content", "told"),
    [(NEW, {}), (b"x", {"md5": None}), (b"", {"md5": None, "size": None})],
    ids=["checksum", "size", "empty"],
)
def test_a_finished_file_that_is_another_is_downloaded_again(
    site: Site, tmp_path: Path, content: bytes, told: dict[str, None]
) -> None:
    (tmp_path / "set.tgz").write_bytes(content)
    assert download(site.remote(**told), tmp_path).read_bytes() == OLD


def test_a_wrong_finished_file_stays_until_the_right_one_is_whole(site: Site, tmp_path: Path) -> None:
    (tmp_path / "set.tgz").write_bytes(b"my own")
    site.statuses = [404]
    refused(site.remote(), tmp_path)
    assert (tmp_path / "set.tgz").read_bytes() == b"my own"


@pytest.mark.parametrize("etag", ['"old"', None])
def test_a_dropped_connection_is_continued_in_the_same_call(site: Site, tmp_path: Path, etag: str | None) -> None:
    site.etag, site.cuts = etag, [300_000, 0, 100_000]
    told: list[Progress] = []
    assert download(site.remote(), tmp_path, listen=told.append).read_bytes() == OLD
    assert site.ranges_asked == [None, "bytes=300000-", "bytes=300000-", "bytes=400000-"]
    assert [headers["If-Range"] for headers in site.seen] == [None, *[etag] * 3]
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert {p.total for p in told} == {len(OLD)}
    assert names(tmp_path) == ["set.tgz"]


def test_giving_up_keeps_the_part_and_the_next_call_continues_it(site: Site, tmp_path: Path) -> None:
    site.cuts = [300_000, 0, 0, 0]
    message = refused(site.remote(), tmp_path)
    assert message == (
        f"{site.url} could not be downloaded in 4 tries (the connection closed after 300,000 of 700,001 bytes); "
        "300,000 bytes are kept and the same command continues them, or fetch the file elsewhere and give it with "
        "--source"
    )
    assert len(site.seen) == 4
    assert names(tmp_path) == ["set.tgz.part", "set.tgz.part.etag"]
    assert (tmp_path / "set.tgz.part").read_bytes() == OLD[:300_000]
    site.seen.clear()
    assert download(site.remote(), tmp_path).read_bytes() == OLD
    assert site.ranges_asked == ["bytes=300000-"]


def test_a_dropped_connection_without_an_announced_length_is_seen_by_the_published_size(
    site: Site, tmp_path: Path
) -> None:
    site.sized, site.cuts = False, [300_000]
    assert download(site.remote(md5=None), tmp_path).read_bytes() == OLD
    assert site.ranges_asked == [None, "bytes=300000-"]


@pytest.mark.parametrize("whole_size", [True, False])
def test_a_dropped_connection_is_seen_by_the_announced_length(site: Site, tmp_path: Path, whole_size: bool) -> None:
    site.cuts, site.whole_size = [500_000, 100_000], whole_size
    assert download(site.remote(md5=None, size=None), tmp_path).read_bytes() == OLD
    assert site.ranges_asked == [None, "bytes=500000-", "bytes=600000-"]


def test_without_any_length_the_total_is_told_as_zero(site: Site, tmp_path: Path) -> None:
    site.sized = False
    told: list[Progress] = []
    assert download(site.remote(size=None), tmp_path, listen=told.append).read_bytes() == OLD
    assert {p.total for p in told} == {0}


def test_a_server_that_ignores_ranges_sends_all_of_it_anew(site: Site, tmp_path: Path) -> None:
    half(site, tmp_path)
    site.ranges = False
    assert download(site.remote(), tmp_path).read_bytes() == OLD
    assert len(site.seen) == 1


def test_a_range_that_starts_elsewhere_is_not_appended(site: Site, tmp_path: Path) -> None:
    stop = half(site, tmp_path, md5=None)
    site.shift = 1
    assert download(site.remote(md5=None), tmp_path).read_bytes() == OLD
    assert site.ranges_asked == [f"bytes={stop}-", None]


@pytest.mark.parametrize("if_range", [True, False], ids=["the server sees to it", "the server ignores If-Range"])
def test_a_changed_file_is_never_spliced_to_an_old_part(site: Site, tmp_path: Path, if_range: bool) -> None:
    half(site, tmp_path, md5=None)
    site.content, site.etag, site.if_range = NEW, '"new"', if_range
    assert download(site.remote(md5=None), tmp_path).read_bytes() == NEW


@pytest.mark.parametrize("etag", [None, 'W/"weak"', '"un fit"', '"\xe4"'])
def test_a_part_that_nothing_can_tell_of_is_begun_again(site: Site, tmp_path: Path, etag: str | None) -> None:
    site.etag, site.cuts = etag, [300_000, 0, 0, 300_000]
    assert "); try again later, or fetch the file elsewhere" in refused(site.remote(md5=None), tmp_path)
    site.content = NEW
    assert download(site.remote(md5=None), tmp_path).read_bytes() == NEW
    assert site.ranges_asked == [None] * 5


def test_a_tag_never_stands_beside_the_bytes_of_another_answer(site: Site, tmp_path: Path) -> None:
    half(site, tmp_path)
    site.content, site.etag, site.cuts = NEW, None, [100, 0, 0, 0]
    refused(site.remote(), tmp_path)
    assert names(tmp_path) == ["set.tgz.part"]


@pytest.mark.parametrize("tag", [b"", b"\xff\xfe", b'"a"\r\nX-Evil: 1', b'"a'])
def test_a_damaged_tag_file_is_not_sent(site: Site, tmp_path: Path, tag: bytes) -> None:
    (tmp_path / "set.tgz.part").write_bytes(OLD[:9])
    (tmp_path / "set.tgz.part.etag").write_bytes(tag)
    assert download(site.remote(), tmp_path).read_bytes() == OLD
    assert site.seen[0]["If-Range"] is None
    assert site.ranges_asked == ["bytes=9-"]


@pytest.mark.parametrize("told", [{}, {"md5": None}, {"md5": None, "size": None}])
def test_a_part_that_is_whole_only_needs_its_name(site: Site, tmp_path: Path, told: dict[str, None]) -> None:
    (tmp_path / "set.tgz.part").write_bytes(OLD)
    (tmp_path / "set.tgz.part.etag").write_text('"old"')
    assert download(site.remote(**told), tmp_path).read_bytes() == OLD
    assert len(site.seen) == 1
    assert names(tmp_path) == ["set.tgz"]


@pytest.mark.parametrize("part", [OLD + b"x", NEW], ids=["longer", "as long"])
def test_a_part_beyond_the_end_that_is_wrong_is_begun_again_once(site: Site, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "set.tgz.part").write_bytes(part)
    assert download(site.remote(), tmp_path).read_bytes() == OLD
    assert site.ranges_asked == [f"bytes={len(part)}-", None]


def test_a_part_longer_than_the_file_is_not_taken_where_only_the_server_knows_its_size(
    site: Site, tmp_path: Path
) -> None:
    (tmp_path / "set.tgz.part").write_bytes(OLD + b"x")
    (tmp_path / "set.tgz.part.etag").write_text('"old"')
    assert download(site.remote(md5=None, size=None), tmp_path).read_bytes() == OLD


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"md5": "0" * 32}, f"a file with the MD5 checksum {md5(OLD)} where {'0' * 32} was expected"),
        ({"size": 5}, "700,001 bytes where 5 were expected"),
    ],
)
def test_a_file_that_is_not_the_published_one_is_deleted(
    site: Site, tmp_path: Path, told: dict[str, Any], sentence: str
) -> None:
    message = refused(site.remote(**told), tmp_path)
    assert message.startswith(f"{site.url} delivered {sentence}, so it was deleted; run the same command again")
    assert names(tmp_path) == []
    assert len(site.seen) == 1


def test_an_empty_file_is_refused_where_nothing_is_known_of_it(site: Site, tmp_path: Path) -> None:
    site.content = b""
    assert "delivered an empty file" in refused(site.remote(md5=None, size=None), tmp_path)
    assert names(tmp_path) == []


def test_a_checksum_may_be_written_in_capitals(site: Site, tmp_path: Path) -> None:
    assert download(site.remote(md5=md5(OLD).upper()), tmp_path).is_file()


def test_a_refusal_of_the_server_is_not_asked_twice(site: Site, tmp_path: Path) -> None:
    site.statuses = [404]
    assert refused(site.remote(), tmp_path) == (
        f"{site.url} could not be downloaded (the server answered 404 Not Found); "
        "fetch the file elsewhere and give it with --source"
    )
    assert len(site.seen) == 1


def test_a_refusal_leaves_what_has_come(site: Site, tmp_path: Path) -> None:
    stop = half(site, tmp_path)
    site.statuses = [403]
    refused(site.remote(), tmp_path)
    assert (tmp_path / "set.tgz.part").read_bytes() == OLD[:stop]


def test_a_server_in_trouble_is_asked_again(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429]
    assert download(site.remote(), tmp_path).read_bytes() == OLD
    site.statuses = [500] * 4
    message = refused(site.remote(md5="0" * 32), tmp_path)
    assert "in 4 tries (the server answered 500 Internal Server Error); try again later, or fetch" in message


def test_nobody_at_the_address_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        url = f"http://127.0.0.1:{server.server_port}/x"
    message = refused(Remote(url, "x"), tmp_path)
    assert message.startswith(f"{url} could not be downloaded in 4 tries ([Errno ")
    assert "refused); try again later, or fetch the file elsewhere and give it with --source" in message
    assert "urlopen" not in message
    assert pauses == [0.0, 1.0, 2.0, 3.0]


def test_a_server_that_says_nothing_is_given_up_in_time(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch.TIMEOUT == 30.0
    monkeypatch.setattr(fetch, "TIMEOUT", 0.05)
    wait = threading.Event()
    monkeypatch.setattr(site, "answer", lambda _: wait.wait(10), raising=False)
    assert "(timed out)" in refused(site.remote(), tmp_path)
    wait.set()


def test_a_server_that_falls_silent_half_way_is_continued(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT", 0.2)
    answer, wait, first = site.answer, threading.Event(), [True]

    def stall(request: BaseHTTPRequestHandler) -> None:
        if first:
            first.clear()
            site.cuts = [600_000]
            answer(request)
            request.wfile.flush()
            wait.wait(10)
        else:
            answer(request)

    monkeypatch.setattr(site, "answer", stall)
    assert download(site.remote(), tmp_path).read_bytes() == OLD
    wait.set()
    assert site.ranges_asked == [None, f"bytes={2 * (1 << 18)}-"]


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/hostname", "/etc/hostname", "data:,x", ""])
def test_only_the_web_is_read(tmp_path: Path, url: str) -> None:
    message = refused(Remote(url, "x"), tmp_path)
    assert message.startswith(f"{url!r} must be an http or https address; fetch the file yourself and give it with")


@pytest.mark.parametrize("url", ["http://", "http://[bad", "http://127.0.0.1:port/x", "http://127.0.0.1/a b"])
def test_an_address_that_is_none_is_one_sentence(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    assert refused(Remote(url, "x"), tmp_path).startswith(f"{url} could not be downloaded in 4 tries (")


@pytest.mark.parametrize(
    ("location", "sentence"),
    [("file:///etc/hostname", "is not allowed"), ("ftp://127.0.0.1:9/x", "(unknown url type: ftp)")],
)
def test_a_redirect_does_not_leave_the_web(site: Site, tmp_path: Path, location: str, sentence: str) -> None:
    site.location = location
    assert sentence in refused(site.remote(md5=None, size=None), tmp_path)
    assert names(tmp_path) == []


def test_a_redirect_in_a_circle_ends(site: Site, tmp_path: Path) -> None:
    site.location = site.url
    assert "infinite loop" in refused(site.remote(), tmp_path)


def test_a_redirect_is_followed_with_the_range(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = half(site, tmp_path)
    answer = site.answer

    def redirect(request: BaseHTTPRequestHandler) -> None:
        site.location = site.url + "/moved" if "moved" not in request.path else None
        answer(request)

    monkeypatch.setattr(site, "answer", redirect)
    assert download(site.remote(), tmp_path).read_bytes() == OLD
    assert site.ranges_asked == [f"bytes={stop}-"] * 2


def test_a_folder_that_cannot_be_written_is_not_blamed_on_the_server(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refused(site.remote(), tmp_path / "file")
    assert "could not be saved as" in message
    assert site.seen == []


def test_a_full_disk_is_not_retried(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", *a, **k: Full(self, "a") if mode == "ab" else real(self, mode, *a, **k)
    )
    message = refused(site.remote(), tmp_path)
    assert "No space left on device" in message
    assert "make room or choose another folder" in message
    assert len(site.seen) == 1


def test_a_checksum_is_of_all_the_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(OLD)
    assert checksum(tmp_path / "x") == md5(OLD)


# --- extract

TREE = {"birds/images/a.jpg": OLD[:3000], "birds/list.txt": b"a.jpg 0\n", "birds/empty": b"", "note.md": b"hello"}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


def entry(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def link(name: str, to: str, type: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=type, linkname=to)


def hard(name: str, to: str) -> tuple[tarfile.TarInfo, bytes]:
    return link(name, to, tarfile.LNKTYPE)


def tar_bytes(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def zip_bytes(*entries: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names given twice
        for info, content in entries:
            file.writestr(info, content)
    return stream.getvalue()


def tree_bytes(kind: str) -> bytes:
    if kind == "zip":
        return zip_bytes(*TREE.items())
    return COMPRESS[kind](tar_bytes(*(entry(*item) for item in TREE.items())))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def unpack_refused(archive: Path, folder: Path) -> str:
    """Return the sentence of a refusal, which leaves everything as it was."""
    before = sorted(folder.parent.rglob("*")), contents(folder.parent)
    with pytest.raises(DataError) as caught:
        extract(archive, folder)
    assert (sorted(folder.parent.rglob("*")), contents(folder.parent)) == before
    return str(caught.value)


@pytest.mark.parametrize("name", ["x.tgz", "download.php"])
@pytest.mark.parametrize("kind", [*COMPRESS, "zip"])
def test_an_archive_is_unpacked_by_what_it_is_and_not_by_its_name(tmp_path: Path, kind: str, name: str) -> None:
    told: list[Progress] = []
    extract(write(tmp_path / name, tree_bytes(kind)), tmp_path / "a" / "b", listen=told.append)
    assert contents(tmp_path / "a" / "b") == TREE
    assert names(tmp_path / "a" / "b") == ["birds", "note.md"]
    assert [(p.task, p.done, p.total, p.unit) for p in told] == [(f"unpack {name}", n, 4, "files") for n in range(5)]


def test_what_is_there_stays_beside_what_is_unpacked(tmp_path: Path) -> None:
    write(tmp_path / "images", b"mine")
    extract(write(tmp_path / "x.tgz", tree_bytes("tar.gz")), tmp_path)
    assert names(tmp_path) == ["birds", "images", "note.md", "x.tgz"]
    assert (tmp_path / "images").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
@pytest.mark.parametrize("archive", ["tar.gz", "zip"])
def test_nothing_that_is_there_is_overwritten(tmp_path: Path, kind: str, archive: str) -> None:
    clash = tmp_path / "out" / "note.md"
    clash.parent.mkdir()
    clash.touch() if kind == "file" else clash.mkdir() if kind == "folder" else clash.symlink_to("nowhere")
    message = unpack_refused(write(tmp_path / "x", tree_bytes(archive)), tmp_path / "out")
    assert f"holds 'note.md', which {tmp_path / 'out'} already has; remove that or choose another folder" in message


def test_the_leftover_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".unpacking" / "birds").mkdir(parents=True)
    write(tmp_path / ".unpacking" / "birds" / "x", b"")
    extract(write(tmp_path / "x.zip", tree_bytes("zip")), tmp_path)
    assert names(tmp_path) == ["birds", "note.md", "x.zip"]
    assert "x" not in names(tmp_path / "birds")


def test_a_link_in_place_of_the_leftover_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "precious", b"")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".unpacking").symlink_to(tmp_path / "elsewhere")
    extract(write(tmp_path / "x.zip", tree_bytes("zip")), tmp_path / "out")
    assert names(tmp_path / "elsewhere") == ["precious"]
    assert contents(tmp_path / "out") == TREE


def test_an_interrupt_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == 2:
            raise KeyboardInterrupt

    archive = write(tmp_path / "x.tgz", tree_bytes("tar.gz"))
    with pytest.raises(KeyboardInterrupt):
        extract(archive, tmp_path / "a" / "b", listen=interrupt)
    assert names(tmp_path) == ["x.tgz"]


def test_a_move_that_fails_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "note.md":
            raise PermissionError(13, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    message = unpack_refused(write(tmp_path / "x.tgz", tree_bytes("tar.gz")), tmp_path / "out")
    assert "could not be unpacked into" in message
    assert "Permission denied" in message


HOSTILE_NAMES = [
    "../evil", "birds/../../evil", "birds/..", "..", "/evil", "//evil", "birds\\..\\..\\evil", "..\\evil",
    "C:evil", "c:/evil", "birds/C:/evil", "./../evil",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_name_that_leaves_the_folder_is_refused_before_anything_is_written(
    tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [*TREE.items(), (name, b"evil")]
    content = zip_bytes(*items) if kind == "zip" else tar_bytes(*(entry(*item) for item in items))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("written before the check"))
    message = unpack_refused(write(tmp_path / "x", content), tmp_path / "out")
    assert "which would be written outside the folder; nothing was unpacked" in message


def test_a_hostile_name_is_refused_even_as_litter(tmp_path: Path) -> None:
    content = tar_bytes(entry("ok", b""), entry("../._evil", b""))
    assert "outside the folder" in unpack_refused(write(tmp_path / "x", content), tmp_path / "out")


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([link("l", "../evil")], "the symbolic link 'l' to '../evil', which leaves the folder"),
        ([link("l", "/etc")], "leaves the folder"),
        ([link("l", "..")], "leaves the folder"),
        ([link("a/l", "../../evil")], "leaves the folder"),
        ([link("l", "a\\..\\..")], "leaves the folder"),
        ([link("l", "C:/")], "leaves the folder"),
        # what looks inside and is not: b is the folder itself, so that b/.. is the one above
        ([link("b", "."), link("l", "b/../evil")], "leaves the folder"),
        ([link("l", "a"), entry("l/evil", b"")], "'l/evil', which lies below a file or link"),
        ([entry("l/evil", b""), link("l", "a")], "below a file or link"),
        ([link("l", "."), link("l/m", "..")], "'l/m', which lies below a file or link"),
        ([link("l", "."), link("l/m", ".")], "below a file or link"),
        ([entry("f", b""), entry("f/evil", b"")], "below a file or link"),
        ([link("l", "a"), entry("l", b"evil")], "'l' twice, as a symbolic link and as a file"),
        ([entry("l", b"evil"), link("l", "a")], "'l' twice, as a file and as a symbolic link"),
        ([link("l", "a"), link("l", "b")], "'l' twice"),
        ([link("l", "a"), entry("l", type=tarfile.DIRTYPE)], "'l' twice"),
        ([hard("h", "../evil")], "the hard link 'h' to '../evil', which is no file before it in the archive"),
        ([hard("h", "/etc/passwd")], "no file before it"),
        ([link("l", "nowhere"), hard("h", "l")], "no file before it"),
        ([hard("h", "f"), entry("f", b"")], "no file before it"),
        ([entry("f", b""), hard("h", "f"), entry("h", b"")], "'h' twice"),
        ([entry("p", type=tarfile.FIFOTYPE)], "'p', a device or pipe, where only files, folders and a tar's links"),
        ([entry("d", type=tarfile.CHRTYPE, devmajor=1, devminor=3)], "a device or pipe"),
        ([entry("d", type=tarfile.BLKTYPE, devmajor=1, devminor=3)], "a device or pipe"),
        ([entry("u", type=b"Z")], "a device or pipe"),
        ([entry(".", b"x")], "a file without a name"),
        ([entry(".UNPACKING/x", b"x")], "already has"),
    ],
)
def test_a_hostile_tar_is_refused_before_anything_is_written(
    tmp_path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("written before the check"))
    content = tar_bytes(*(entry(*item) for item in TREE.items()), *entries)
    assert sentence in unpack_refused(write(tmp_path / "x", content), tmp_path / "out")


def test_links_that_stay_inside_are_kept(tmp_path: Path) -> None:
    content = tar_bytes(
        entry("./", type=tarfile.DIRTYPE),
        entry("./a/b/file", b"text"),
        link("./a/b/same", "file"),
        link("a/up", "../c"),
        link("a/b/far", "../../c/far"),
        hard("c/hard", "./a/b/file"),
        entry("c/far", b"far"),
    )
    told: list[Progress] = []
    extract(write(tmp_path / "x", content), tmp_path / "out", listen=told.append)
    out = tmp_path / "out"
    assert {"a/b/same": b"text", "a/b/far": b"far", "c/hard": b"text"}.items() <= contents(out).items()
    assert (out / "a" / "up").resolve() == out / "c"
    assert (told[-1].done, told[-1].total) == (6, 6)


def mode_info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [(stat.S_IFLNK, "a link in a zip archive"), (stat.S_IFIFO, "a device or pipe"), (stat.S_IFCHR, "a device or pipe")],
)
def test_a_zip_may_hold_neither_links_nor_devices(tmp_path: Path, mode: int, sentence: str) -> None:
    archive = write(tmp_path / "x", zip_bytes(*TREE.items(), (mode_info("l", mode | 0o777), b"../evil")))
    assert f"'l', {sentence}, where only" in unpack_refused(archive, tmp_path / "out")


def test_a_zip_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    content = zip_bytes(("fineXevil", b"")).replace(b"fineXevil", b"fine\0evil")
    assert "outside the folder" in unpack_refused(write(tmp_path / "x", content), tmp_path / "out")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_bytes(*TREE.items()))
    for magic, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(magic) + offset] |= 1
    message = unpack_refused(write(tmp_path / "x", bytes(content)), tmp_path / "out")
    assert "'birds/images/a.jpg', an encrypted file, where only" in message


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_an_archive_larger_than_the_free_space_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3007))
    message = unpack_refused(write(tmp_path / "x", tree_bytes(kind)), tmp_path / "out")
    assert "unpacks to 3,008 bytes or more, but the disk of" in message
    assert "has 3,007 free; make room or choose another folder" in message
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3013))
    extract(tmp_path / "x", tmp_path / "out")


def test_a_size_below_zero_does_not_hang(tmp_path: Path) -> None:
    info, _ = entry("f")
    info.size = -1024
    content = info.tobuf(tarfile.GNU_FORMAT) + tar_bytes(entry("g"))
    assert "'f', a file of -1,024 bytes" in unpack_refused(write(tmp_path / "x", content), tmp_path / "out")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_litter_is_left_out(tmp_path: Path, kind: str) -> None:
    litter = ("__MACOSX/birds/._a.jpg", "__MACOSX/x", "._birds", "birds/._list.txt", "birds/.DS_Store", ".DS_Store")
    items = [*TREE.items(), *((name, b"litter") for name in litter), ("birds/.hidden", b"kept")]
    content = zip_bytes(*items) if kind == "zip" else tar_bytes(*(entry(*item) for item in items))
    extract(write(tmp_path / "x", content), tmp_path / "out")
    assert contents(tmp_path / "out") == TREE | {"birds/.hidden": b"kept"}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_files_and_folders_can_be_read_whatever_their_permissions(tmp_path: Path, kind: str) -> None:
    if kind == "zip":
        content = zip_bytes((mode_info("d/", stat.S_IFDIR), b""), (mode_info("d/f", stat.S_IFREG), b"x"))
    else:
        content = tar_bytes(entry("d", type=tarfile.DIRTYPE, mode=0), entry("d/f", b"x", mode=0))
    extract(write(tmp_path / "x", content), tmp_path / "out")
    assert (tmp_path / "out" / "d").stat().st_mode & 0o700 == 0o700
    assert (tmp_path / "out" / "d" / "f").stat().st_mode & 0o600 == 0o600
    (tmp_path / "out" / "d" / "f").read_bytes()


def test_permissions_beyond_the_ordinary_are_dropped(tmp_path: Path) -> None:
    extract(write(tmp_path / "x", tar_bytes(entry("f", b"x", mode=0o6777))), tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out" / "f").stat().st_mode) == 0o755


def test_a_tar_that_holds_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = zip_bytes(("inner", b""))
    content = tar_bytes(entry("PKLot/x.zip", inner))
    assert zipfile.is_zipfile(io.BytesIO(content))
    extract(write(tmp_path / "x", content), tmp_path / "out")
    assert contents(tmp_path / "out") == {"PKLot/x.zip": inner}


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><p>Sign in to download", b"", b"\x1f\x8b", gzip.compress(b"text", mtime=0)]
)
def test_a_file_of_another_kind_is_named_by_its_start(tmp_path: Path, content: bytes) -> None:
    message = unpack_refused(write(tmp_path / "x.tgz", content), tmp_path / "out")
    assert ("must be a whole tar" in message and repr(content[:16]) in message) or "is damaged" in message
    assert "fetch it again" in message
    assert "\n" not in message


def test_a_missing_archive_is_one_sentence(tmp_path: Path) -> None:
    assert "there is no such file; download it first" in unpack_refused(tmp_path / "x.zip", tmp_path / "out")


@pytest.mark.parametrize("content", [tar_bytes(), zip_bytes(), tar_bytes(entry("./", type=tarfile.DIRTYPE))])
def test_an_archive_of_nothing_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "must hold files, found none" in unpack_refused(write(tmp_path / "x", content), tmp_path / "out")


@pytest.mark.parametrize("kind", [*COMPRESS, "zip"])
def test_an_archive_cut_anywhere_is_damaged(tmp_path: Path, kind: str) -> None:
    whole = tree_bytes(kind)
    padding = len(whole) - len(whole.rstrip(b"\0")) - 512 if kind == "tar" else 0  # one block of zeros is an end
    for cut in sorted({*range(0, len(whole) - padding, 509), len(whole) - padding - 1}):
        message = unpack_refused(write(tmp_path / "x", whole[:cut]), tmp_path / "out")
        assert message.endswith("fetch it again"), message


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_a_changed_byte_is_never_unpacked_as_if_it_were_right(tmp_path: Path, kind: str) -> None:
    whole, draw = tree_bytes(kind), random.Random(0)
    damaged = 0
    for number in range(150):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        out, message = tmp_path / f"out{number}", ""
        try:
            extract(write(tmp_path / "x", bytes(content)), out)
        except DataError as error:
            message = str(error)
        if message:
            damaged += 1
            assert not out.exists()
            assert "\n" not in message
            assert "could not be unpacked" not in message  # the disk is not to blame
        else:  # a date, a flag: fields of an entry that say nothing of its content
            assert sorted(contents(out).values()) == sorted(TREE.values())
    assert damaged > 100


def test_a_damaged_tar_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    whole = bytearray(tree_bytes("tar"))
    whole[whole.index(b"birds/list.txt")] ^= 1
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        assert len(tar.getnames()) == 1  # what Python alone would unpack, without a word
    message = unpack_refused(write(tmp_path / "x", bytes(whole)), tmp_path / "out")
    assert message == f"{tmp_path / 'x'} is damaged (its end mark is missing); fetch it again"


def test_a_wrong_checksum_behind_the_last_file_is_seen(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(tree_bytes("tar")))
    whole[-8] ^= 1
    assert "is damaged (CRC check failed" in unpack_refused(write(tmp_path / "x", bytes(whole)), tmp_path / "out")


def test_a_bad_zip_checksum_is_damage_and_removes_what_was_unpacked(tmp_path: Path) -> None:
    content = zip_bytes(*TREE.items(), compression=zipfile.ZIP_STORED).replace(b"hello", b"jello")
    message = unpack_refused(write(tmp_path / "x", content), tmp_path / "out")
    assert "is damaged (Bad CRC-32 for file 'note.md'); fetch it again" in message


def test_a_damaged_zip_directory_is_not_taken_for_a_short_one(tmp_path: Path) -> None:
    whole = bytearray(zip_bytes(*TREE.items()))
    whole[whole.index(b"PK\1\2") + 33] = 9  # the first entry's comment swallows the others
    assert len(zipfile.ZipFile(io.BytesIO(whole)).namelist()) == 1  # what Python alone would unpack
    message = unpack_refused(write(tmp_path / "x", bytes(whole)), tmp_path / "out")
    assert "is damaged (4 entries announced, 1 found); fetch it again" in message


def test_a_zip_directory_that_points_before_the_start_is_damage(tmp_path: Path) -> None:
    whole = bytearray(zip_bytes(*TREE.items()))
    whole[-4] = 1  # the directory's place in the file, 64 KiB too far
    assert "is damaged (" in unpack_refused(write(tmp_path / "x", bytes(whole)), tmp_path / "out")


def test_a_zip_of_many_files_with_a_comment_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as file:
        file.comment = b"PK" * 30_000
        for number in range(70):
            file.writestr(str(number), b"")
    extract(tmp_path / "x", tmp_path / "out")
    assert len(names(tmp_path / "out")) == 70


def test_a_full_disk_while_unpacking_is_told_apart_from_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    message = unpack_refused(write(tmp_path / "x", tree_bytes("zip")), tmp_path / "out")
    assert "could not be unpacked into" in message
    assert "No space left on device" in message


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "out", b"")
    message = unpack_refused(write(tmp_path / "x", tree_bytes("zip")), tmp_path / "out")
    assert "could not be unpacked into" in message


def test_the_folder_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x", tree_bytes("tar.xz"))
    monkeypatch.chdir(tmp_path)
    extract(Path("x"), Path("a/b"))
    assert contents(tmp_path / "a" / "b") == TREE
