"""Regular files alone are read: a pipe would be waited for, and a device has no end."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

__all__ = ["IrregularError", "kind_of_file", "open_regular", "read_regular"]

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class IrregularError(OSError):
    """What stands in place of a file is none; its text says what it is, such as ``it is a pipe``."""


def kind_of_file(mode: int) -> str:
    """Return what a path leads to by the mode of its stat: empty for a regular file, else such as ``a pipe``."""
    return "" if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "no regular file")


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file, or a link to one, to read its bytes; nothing is waited for.

    Raises
    ------
    IrregularError
        If it is a folder, a pipe, a socket or a device.
    OSError
        If it cannot be opened.
    """
    _check(os.stat(path).st_mode)  # before it is opened: some devices do something then
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    number = os.open(path, flags)
    try:
        _check(os.fstat(number).st_mode)
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def read_regular(path: Path) -> bytes:
    """Return the bytes of a regular file; see :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read()


def _check(mode: int) -> None:
    if kind := kind_of_file(mode):
        raise IrregularError(f"it is {kind}")
