"""Unpack archives of others: whole or not at all, and nothing outside the folder."""

from __future__ import annotations

import errno
import itertools
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn

from exmap.data.fetch import BLOCK, reason_of
from exmap.errors import DataError
from exmap.records import Listener, Progress, silent

__all__ = ["extract"]


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
            raise DataError(f"{archive} is damaged ({reason_of(error)}); fetch it again") from error
        raise DataError(
            f"{archive} could not be unpacked into {folder} ({error}); make room or choose another folder"
        ) from error


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
        while stream.read(BLOCK):
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
