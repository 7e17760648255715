"""What lies between the command line and the system: streams, the width of a terminal, and refused files in words."""

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
AGAIN = "give the same command again: what is finished is kept"

# What the system says, and what to do: {file} stands for the file, with its name where that is known.
REFUSALS: dict[str, tuple[str, ...]] = {
    "{file} cannot be written, because no space is left there; free some, and {again}": ("ENOSPC", "EDQUOT"),
    "{file} may not be read or written by this user; permit it, or choose another place": ("EACCES", "EPERM"),
    "{file} cannot be changed, because it lies on a disk that can only be read; choose another place": ("EROFS",),
    "{file} has a name or a path that is too long for this system; choose a shorter one": ("ENAMETOOLONG",),
    "{file} has a name that is not allowed on its disk; choose another": ("EILSEQ", "EINVAL"),
    "{file} cannot be opened, because too many files are open; permit more with ulimit -n, or read images with fewer "
    "processes (--set images.workers=0)": ("EMFILE", "ENFILE"),
    "{file} is a directory, where a file was expected; name another, or move it away": ("EISDIR",),
    "{file} lies below something that is a file and no directory; name another place": ("ENOTDIR",),
    "{file} is not there; put it there, or name another": ("ENOENT",),
    "{file} is there already; move it away, or name another": ("EEXIST", "ENOTEMPTY"),
    "{file} is a link that leads back to itself; name another": ("ELOOP",),
    "{file} would be larger than this system or this user's limits allow (ulimit -f); raise them, and {again}": (
        "EFBIG",
    ),
    "{file} cannot be had, because its disk or network drive does not answer ({said}); see that it is connected and "
    "whole, and {again}": ("EIO", "ESTALE", "ENODEV", "ENXIO", "ENOTCONN", "EHOSTDOWN", "ETIMEDOUT", "EREMOTEIO"),
    "{file} is in use by another program ({said}); wait until that has ended, and {again}": ("EBUSY", "ETXTBSY"),
    "the system has no room for another process or for what it needs ({said}); end other programs, or take fewer "
    "processes (--set images.workers=0), and {again}": ("EAGAIN", "ENOMEM"),
    "a process that this one works with has ended ({said}); {again}": ("EPIPE", "ECONNRESET"),
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
    '/mnt/run cannot be changed, because it lies on a disk that can only be read; choose another place'
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
    return f"the system refused {file} ({said}); mend that, and {AGAIN}"


def _shortened(name: str) -> str:
    return name if len(name) <= 300 else f"{name[:140]} ... {name[-140:]}"


def make_ready() -> None:
    """Give the libraries streams and an environment that they can work with."""
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # no text can then fail to be printed, whatever the encoding
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for name in WIDTHS:
        if not WIDTH.fullmatch(os.environ.get(name, "80")):
            os.environ.pop(name)
    os.environ["MPLBACKEND"] = "agg"  # figures are files; a notebook's backend may not be there


def _open_streams() -> None:
    """Open nothing in the place of standard streams that are closed: else files would get their numbers."""
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
    """Lead what would still be printed nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if _is_gone(stream) or stream is sys.stdout:
            with suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())


def reader_is_gone() -> bool:
    """Return whether nobody reads standard output, or the error stream, any more."""
    return _is_gone(sys.stdout) or _is_gone(sys.stderr)


def _is_gone(stream: object) -> bool:
    try:
        number = stream.fileno()  # type: ignore[attr-defined]
        waiting = select.poll()
        waiting.register(number, select.POLLERR)
        return any(event & select.POLLERR for _, event in waiting.poll(0))
    except (OSError, ValueError, AttributeError):  # no file; Windows
        return False
