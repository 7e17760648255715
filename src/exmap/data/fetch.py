"""Fetch and unpack published archives, safely.

A download goes on where it stopped and takes its name only once it is verified; a part is never continued with bytes
that may belong to another file. An archive is checked in full before anything is written, and what it holds appears in
its folder only once all of it is unpacked.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import itertools
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn

from exmap.errors import DataError
from exmap.records import Listener, Progress, silent

__all__ = ["Remote", "checksum", "download", "extract"]

TIMEOUT = 30.0  # seconds without a byte
PAUSE = 1.0  # seconds before the first retry; twice and three times that before the others
_TRIES = 4
_BLOCK = 1 << 18

_UNPACKING = ".unpacking"
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,  # a compression this Python does not know
    ArithmeticError,  # dates beyond what a file system can hold
    LookupError,
    ValueError,
)


@dataclass(frozen=True)
class Remote:
    """A published file.

    Attributes
    ----------
    url : str
        An http or https address.
    file : str
        The name to save it under.
    md5 : str or None
        Its published checksum; None where the publisher names none.
    size : int or None
        Its published size in bytes.
    """

    url: str
    file: str
    md5: str | None = None
    size: int | None = None


def checksum(path: Path) -> str:
    """Return the MD5 checksum of a file, read in blocks."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def download(remote: Remote, folder: Path, *, listen: Listener = silent) -> Path:
    """Download a file into `folder`, or go on with a download that stopped there.

    A file that is there already and is what `remote` says is returned without any network. What has come of a file lies
    in ``NAME.part``; it is continued if its server's entity tag or its MD5 can tell whether it still belongs to the
    file that is published, and begun again otherwise.

    Parameters
    ----------
    remote : Remote
        What to download, and how to know it.
    folder : Path
        Made if it is not there.
    listen : Listener
        Told the bytes there are, of 0 where their total is not known.

    Returns
    -------
    Path
        `folder` / `remote.file`, whole and verified.

    Raises
    ------
    DataError
        If the file cannot be had or cannot be saved, or is not the one `remote` describes.
    """
    if not remote.url.lower().startswith(("http://", "https://")):
        raise DataError(
            f"{remote.url!r} must be an http or https address; fetch the file yourself and give it with --source"
        )
    target = folder / remote.file
    part = _Part(folder / f"{remote.file}.part", folder / f"{remote.file}.part.etag")
    try:
        if target.is_file() and not _fault(target, remote):
            return target
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(remote, part, listen)
        if fault := _fault(part.path, remote):
            part.discard()
            raise DataError(
                f"{remote.url} delivered {fault}, so it was deleted; "
                "run the same command again, or fetch the file elsewhere and give it with --source"
            )
        part.path.replace(target)
        part.tag.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{remote.url} could not be saved as {target} ({error}); make room or choose another folder, "
            "or fetch the file elsewhere and give it with --source"
        ) from error
    return target


def extract(archive: Path, folder: Path, *, listen: Listener = silent) -> None:
    """Unpack a tar (plain, gzip, bzip2, xz) or zip archive into `folder`, wholly or not at all.

    The kind of archive is told by its content. macOS litter (``__MACOSX``, ``.DS_Store``, ``._*``) is left out.

    Parameters
    ----------
    archive : Path
        Read twice: all of it is checked before any of it is written.
    folder : Path
        Made if it is not there; it may hold other things, but none that the archive would overwrite.
    listen : Listener
        Told the files there are.

    Raises
    ------
    DataError
        If the archive is damaged, encrypted, empty or of another kind, does not fit on the disk, would write outside
        `folder` or onto what is there, or holds devices or pipes.
    """
    if not archive.is_file():
        raise DataError(f"{archive} must be a tar or zip archive, but there is no such file; download it first")
    scratch = folder / _UNPACKING
    try:
        with ExitStack() as on_failure:
            _remove(scratch)
            with _opened(archive) as opened:
                members = _checked(opened.members(), archive, folder)
                for missing in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
                    missing.mkdir()
                    on_failure.callback(missing.rmdir)
                scratch.mkdir()
                on_failure.callback(_remove, scratch)
                opened.unpack(_told(members, f"unpack {archive.name}", listen), scratch)
            for entry in sorted(scratch.iterdir()):
                entry.rename(folder / entry.name)
                on_failure.callback((folder / entry.name).rename, entry)
            scratch.rmdir()
            on_failure.pop_all()
    except DataError:
        raise
    except (*_DAMAGE, OSError) as error:
        if getattr(error, "errno", None) in (None, errno.EINVAL):  # of bad data: gzip, bzip2; a place before the start
            raise DataError(f"{archive} is damaged ({_reason(error)}); fetch it again") from error
        raise DataError(
            f"{archive} could not be unpacked into {folder} ({error}); make room or choose another folder"
        ) from error


# --- download


class _InterruptedError(Exception):
    """A transfer that stopped before its end, but may be tried again."""


@dataclass(frozen=True)
class _Part:
    """What has come of a file, and beside it the strong entity tag the server gave with it."""

    path: Path
    tag: Path

    def kept(self, remote: Remote) -> tuple[int, str | None]:
        """Return how many bytes can be continued, and their entity tag."""
        if not self.path.exists():
            return 0, None
        etag = _strong(self.tag.read_text("ascii", errors="replace")) if self.tag.exists() else None
        return (self.path.stat().st_size if etag or remote.md5 else 0), etag

    def begin(self, etag: str | None) -> None:
        """Empty the part first, so that the new tag never stands beside old bytes."""
        self.path.write_bytes(b"")
        self.tag.unlink(missing_ok=True)
        if etag:
            self.tag.write_text(etag, "ascii")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)


def _strong(etag: str | None) -> str | None:
    return etag if etag and re.fullmatch(r'"[!#-~]*"', etag) else None


def _fault(path: Path, remote: Remote) -> str | None:
    """Return in words how the file at `path` differs from what was published, or None."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"{size:,} bytes where {remote.size:,} were expected"
    if remote.md5 is not None and (found := checksum(path)) != remote.md5.lower():
        return f"a file with the MD5 checksum {found} where {remote.md5.lower()} was expected"
    return None if size else "an empty file"


def _fetch(remote: Remote, part: _Part, listen: Listener) -> None:
    """Fill the part, in a few tries, each going on where the last one stopped."""
    reason = ""
    for number in range(_TRIES):
        time.sleep(PAUSE * number)
        try:
            return _transfer(remote, part, listen)
        except _InterruptedError as error:
            reason = str(error)
    kept, _ = part.kept(remote)
    raise DataError(
        f"{remote.url} could not be downloaded in {_TRIES} tries ({reason}); "
        + (f"{kept:,} bytes are kept and the same command continues them, or " if kept else "try again later, or ")
        + "fetch the file elsewhere and give it with --source"
    )


def _transfer(remote: Remote, part: _Part, listen: Listener) -> None:
    start, etag = part.kept(remote)
    headers = {"User-Agent": "exmap"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if etag:
            headers["If-Range"] = etag
    with _answer(remote.url, headers) as answer:
        place = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", ""))
        begins, total = (int(n) if n and n.isdigit() else None for n in (place.groups() if place else (None, None)))
        if answer.status == 416 and start:  # the part is at least whole
            if (remote.md5 or total == start) and not _fault(part.path, remote):
                return
            part.discard()
            raise _InterruptedError("what had come is not the server's file")
        if answer.status == 206:
            if begins != start or (etag and answer.headers.get("ETag", etag) != etag):
                part.discard()
                raise _InterruptedError("the server sent another part than the one it was asked for")
        elif answer.status == 200:
            start, total = 0, None
        elif answer.status >= 500 or answer.status in (408, 429):
            raise _InterruptedError(f"the server answered {answer.status} {answer.reason}")
        else:
            raise DataError(
                f"{remote.url} could not be downloaded (the server answered {answer.status} {answer.reason}); "
                "fetch the file elsewhere and give it with --source"
            )
        if total is None and answer.length is not None:
            total = start + answer.length
        if not start:
            part.begin(_strong(answer.headers.get("ETag")))
        _save(answer, part.path, start, total or remote.size or 0, f"download {remote.file}", listen)


def _save(answer: http.client.HTTPResponse, path: Path, start: int, total: int, task: str, listen: Listener) -> None:
    done = start
    with path.open("ab") as file:
        listen(Progress(task, done, total, unit="bytes"))
        for block in _blocks(answer):
            file.write(block)
            done += len(block)
            listen(Progress(task, done, total, unit="bytes"))
    if done < total:
        raise _InterruptedError(f"the connection closed after {done:,} of {total:,} bytes")


def _blocks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while block := answer.read(_BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(_reason(error)) from error


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Hand over answers of 400 and more like any other."""

    def http_response(
        self, request: urllib.request.Request, response: http.client.HTTPResponse
    ) -> http.client.HTTPResponse:
        answer: http.client.HTTPResponse = (
            response if response.status >= 400 else super().http_response(request, response)
        )
        return answer

    https_response = http_response


def _answer(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    opener = urllib.request.OpenerDirector()  # with no handler for files or ftp, where a redirect could lead
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        _AnyStatus,
    ):
        opener.add_handler(handler())
    try:
        answer: http.client.HTTPResponse = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):  # a redirect that leads nowhere: it holds the connection
            error.close()
        raise _InterruptedError(_reason(error)) from error
    return answer


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__


# --- extract


class _Member(NamedTuple):
    """One entry of an archive; `kind` is one of _KINDS, or says what else it is."""

    path: PurePosixPath
    kind: str
    size: int
    link: str
    raw: Any


_KINDS = ("file", "folder", "symbolic link", "hard link")


@dataclass(frozen=True)
class _Tar:
    tar: tarfile.TarFile

    def members(self) -> Iterator[_Member]:
        for raw in self.tar:
            tests = (raw.isreg(), raw.isdir(), raw.issym(), raw.islnk())
            kind = next(itertools.compress(_KINDS, tests), "a device or pipe")
            yield _Member(PurePosixPath(raw.name), kind, raw.size, raw.linkname, raw)
        # tarfile takes whatever it cannot read for the end, and leaves unread what follows, a checksum perhaps
        stream = self.tar.fileobj
        assert stream is not None
        stream.seek(self.tar.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end mark is missing")
        while stream.read(_BLOCK):
            pass

    def unpack(self, members: Iterable[Any], into: Path) -> None:
        self.tar.extractall(into, members, filter="data")


@dataclass(frozen=True)
class _Zip:
    zip: zipfile.ZipFile

    def members(self) -> Iterator[_Member]:
        stream = self.zip.fp
        assert stream is not None
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - (1 << 16) - 22))
        _, _, end = stream.read().rpartition(b"PK\5\6")
        count = int.from_bytes(end[6:8], "little")
        if count not in (
            len(self.zip.infolist()) & 0xFFFF,
            0xFFFF,
        ):  # zipfile takes a damaged directory for a short one
            raise zipfile.BadZipFile(f"{count:,} entries announced, {len(self.zip.infolist()):,} found")
        for raw in self.zip.infolist():
            mode = raw.external_attr >> 16
            kind = "folder" if raw.is_dir() else "file"
            if stat.S_ISLNK(mode):
                kind = "a link in a zip archive"
            elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                kind = "a device or pipe"
            elif raw.flag_bits & 1:
                kind = "an encrypted file"
            odd = {"\\", "\0"} & set(raw.orig_filename)  # zipfile mends these silently
            yield _Member(PurePosixPath(raw.orig_filename if odd else raw.filename), kind, raw.file_size, "", raw)

    def unpack(self, members: Iterable[Any], into: Path) -> None:
        for raw in members:
            self.zip.extract(raw, into)


@contextmanager
def _opened(archive: Path) -> Iterator[_Tar | _Zip]:
    with archive.open("rb") as stream:
        head = stream.read(16)
        stream.seek(0)
        if head.startswith((b"PK\3\4", b"PK\5\6")):  # not by its end: a tar may hold a zip file
            with zipfile.ZipFile(stream) as opened:
                yield _Zip(opened)
        elif tarfile.is_tarfile(stream):
            stream.seek(0)
            with tarfile.open(fileobj=stream) as tar:
                yield _Tar(tar)
        else:
            raise DataError(
                f"{archive} must be a whole tar, tar.gz, tar.bz2, tar.xz or zip archive, found "
                f"{archive.stat().st_size:,} bytes that start with {head!r}; fetch it again"
            )


def _stays(path: str, depth: int = 0) -> bool:
    """Whether a path, followed from `depth` folders down, stays inside on every system, whatever it passes."""
    parts = PurePosixPath(path).parts
    ups = sum(1 for _ in itertools.takewhile("..".__eq__, parts))
    return not (
        path.startswith("/")
        or ups > depth
        or ".." in parts[ups:]  # after a link, it would lead elsewhere than it seems
        or {"\\", "\0"} & set(path)
        or any(re.match("[A-Za-z]:", part) for part in parts)
    )


def _checked(members: Iterable[_Member], archive: Path, folder: Path) -> list[_Member]:
    """Return what is to be unpacked, once all of it is known to be harmless."""

    def refuse(what: str) -> NoReturn:
        raise DataError(f"{archive} holds {what}; nothing was unpacked, get another archive from the publisher")

    free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.is_dir())).free
    kept: list[_Member] = []
    kinds: dict[PurePosixPath, str] = {}
    size = 0
    for member in members:
        path, kind, name = member.path, member.kind, repr(str(member.path))
        if not _stays(str(path)):
            refuse(f"{name}, which would be written outside the folder")
        if kind not in _KINDS:
            refuse(f"{name}, {kind}, where only files, folders and a tar's links are allowed")
        if member.size < 0:
            refuse(f"{name}, a file of {member.size:,} bytes")
        if path.name.startswith("._") or not {"__MACOSX", ".DS_Store"}.isdisjoint(path.parts):
            continue
        if kind == "symbolic link" and not _stays(member.link, len(path.parts) - 1):
            refuse(f"the symbolic link {name} to {member.link!r}, which leaves the folder")
        if kind == "hard link" and kinds.get(PurePosixPath(member.link)) != "file":
            refuse(f"the hard link {name} to {member.link!r}, which is no file before it in the archive")
        if path in kinds and (kind != kinds[path] or "link" in kind):
            refuse(f"{name} twice, as a {kinds[path]} and as a {kind}")
        if not path.parts and kind != "folder":
            refuse(f"a {kind} without a name")
        size += member.size if kind == "file" else 0
        if size > free:
            raise DataError(
                f"{archive} unpacks to {size:,} bytes or more, but the disk of {folder} has {free:,} free; "
                "make room or choose another folder"
            )
        kinds[path] = kind
        if path.parts:
            kept.append(member)
    for path in kinds:
        if any(kinds.get(parent, "folder") != "folder" for parent in path.parents):
            refuse(f"{str(path)!r}, which lies below a file or link")
    tops = {path.parts[0] for path in kinds if path.parts}
    if not tops:
        raise DataError(f"{archive} must hold files, found none; fetch it again")
    for top in sorted(tops):
        if os.path.lexists(folder / top) or top.casefold() == _UNPACKING:
            raise DataError(
                f"{archive} holds {top!r}, which {folder} already has; remove that or choose another folder"
            )
    return kept


def _told(members: list[_Member], task: str, listen: Listener) -> Iterator[Any]:
    """Yield each member as its archive knows it, and tell of it once the next is asked for."""
    total = sum(member.kind != "folder" for member in members)
    done = 0
    listen(Progress(task, done, total, unit="files"))
    for member in members:
        yield member.raw
        if member.kind != "folder":
            done += 1
            listen(Progress(task, done, total, unit="files"))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
