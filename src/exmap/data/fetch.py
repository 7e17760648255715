"""Fetch and unpack published archives, safely.

A download goes on where it stopped and takes its name only once it is verified; a part is never continued with bytes
that may belong to another file. An archive is checked in full before anything is written, and what it holds appears in
its folder only once all of it is unpacked.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from exmap.data.regular import open_regular
from exmap.errors import DataError
from exmap.records import Listener, Progress, silent

__all__ = ["Remote", "checksum", "download"]

TIMEOUT = 30.0  # seconds without a byte
PAUSE = 1.0  # seconds before the first retry; twice and three times that before the others
_TRIES = 4
BLOCK = 1 << 18


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
    with open_regular(path) as file:
        while block := file.read(BLOCK):
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
        while block := answer.read(BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(reason_of(error)) from error


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
        raise _InterruptedError(reason_of(error)) from error
    return answer


def reason_of(error: BaseException) -> str:
    return " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__
