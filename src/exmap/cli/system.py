"""The command line and the operating system: streams, the width of a terminal, and the errors of files in words."""

from __future__ import annotations

import errno
import os
import re
import select
import sys
from contextlib import suppress

__all__ = ["PIPE_CLOSED", "flush", "make_ready", "reader_is_gone", "refusal", "silence"]

PIPE_CLOSED = 141  # exit code where nobody reads what is printed any more, as shells give it
WIDTHS = ("COLUMNS", "LINES", "TERMINAL_WIDTH")
WIDTH = re.compile(r"[2-9][0-9]|[1-9][0-9]{2,3}")  # from 20 to 9999
AGAIN = "rerun the same command: finished work is kept"

# What the system says, and what to do: {file} stands for the file, with its name where that is known.
REFUSALS: dict[str, tuple[str, ...]] = {
    "{file} cannot be written because the disk is full; free some space and {again}": ("ENOSPC", "EDQUOT"),
    "{file} may not be read or written by this user; change its permissions or choose another place": (
        "EACCES",
        "EPERM",
    ),
    "{file} cannot be changed because it is on a read-only disk; choose another place": ("EROFS",),
    "{file} has a name or path that is too long for this system; choose a shorter one": ("ENAMETOOLONG",),
    "{file} has a name that its disk does not allow; choose another one": ("EILSEQ", "EINVAL"),
    "{file} cannot be opened because too many files are open; raise the limit with ulimit -n, or read images with "
    "fewer processes (--set images.workers=0)": ("EMFILE", "ENFILE"),
    "{file} is a directory, but a file was expected; name another one, or move the directory": ("EISDIR",),
    "{file} lies below a file instead of a directory; name another place": ("ENOTDIR",),
    "{file} does not exist; create it, or name another one": ("ENOENT",),
    "{file} already exists; move it, or name another one": ("EEXIST", "ENOTEMPTY"),
    "{file} is a link that points to itself; name another one": ("ELOOP",),
    "{file} would exceed the file size that this system or user is allowed (ulimit -f); raise the limit and {again}": (
        "EFBIG",
    ),
    "{file} cannot be reached because its disk or network drive does not respond ({said}); check the drive and "
    "{again}": ("EIO", "ESTALE", "ENODEV", "ENXIO", "ENOTCONN", "EHOSTDOWN", "ETIMEDOUT", "EREMOTEIO"),
    "{file} is in use by another program ({said}); wait until that program has ended and {again}": ("EBUSY", "ETXTBSY"),
    "the system cannot start another process or has no memory for it ({said}); close other programs or use fewer "
    "processes (--set images.workers=0), and {again}": ("EAGAIN", "ENOMEM"),
    "a process that this one depends on has ended ({said}); {again}": ("EPIPE", "ECONNRESET"),
}
BY_NUMBER = {
    number: sentence
    for sentence, names in REFUSALS.items()
    for number in (getattr(errno, name, None) for name in names)
    if number is not None
}


def refusal(error: OSError) -> str:
    """Return what the system refused, and what to do, as one sentence.

    Examples
    --------
    >>> refusal(OSError(errno.EROFS, "Read-only file system", "/mnt/run"))
    '/mnt/run cannot be changed because it is on a read-only disk; choose another place'
    """
    number, said = error.errno, error.strerror or str(error)
    if number is None and (found := re.search(r"\(os error (\d+)\)", said)):  # of libraries that are not Python's
        number = int(found[1])
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    file = " or ".join(map(_shortened, names)) or "a file"
    if number == errno.ENOENT and not names:
        number = None
    if number in BY_NUMBER:
        return BY_NUMBER[number].format(file=file, said=said, again=AGAIN)
    return f"the system refused {file} ({said}); fix the cause and {AGAIN}"


def _shortened(name: str) -> str:
    return name if len(name) <= 300 else f"{name[:140]} ... {name[-140:]}"


def make_ready() -> None:
    """Prepare the streams and the environment for the libraries."""
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # no text can then fail to be printed, whatever the encoding
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for name in WIDTHS:
        if not WIDTH.fullmatch(os.environ.get(name, "80")):
            os.environ.pop(name)
    os.environ["MPLBACKEND"] = "agg"  # figures are files; a notebook's backend may not be there


def _open_streams() -> None:
    """Open nothing in place of standard streams that are closed: else files would get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            lowest = os.open(os.devnull, os.O_RDWR)  # of the numbers that are free: that of the stream
            setattr(sys, name, os.fdopen(lowest, mode, encoding="utf-8", errors="backslashreplace"))


def flush() -> None:
    """Write out what is still to be printed.

    Raises
    ------
    OSError
        If it cannot be; nothing is tried again then.
    """
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError as error:
        silence()
        raise OSError(error.errno, error.strerror, "what is printed") from error


def silence() -> None:
    """Discard anything that is still printed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if _is_gone(stream) or stream is sys.stdout:
            with suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())


def reader_is_gone() -> bool:
    """Return whether the reader of standard output, or of the error stream, has gone."""
    return _is_gone(sys.stdout) or _is_gone(sys.stderr)


def _is_gone(stream: object) -> bool:
    try:
        number = stream.fileno()  # type: ignore[attr-defined]
        waiting = select.poll()
        waiting.register(number, select.POLLERR)
        return any(event & select.POLLERR for _, event in waiting.poll(0))
    except (OSError, ValueError, AttributeError):  # no file; Windows
        return False
