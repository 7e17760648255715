"""One root error and a few children.

Every message is one sentence a user can act on: what is wrong, what was allowed, what was found, and what to do.
The command line prints it and exits with code 2; everything else lets it pass.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "CheckpointError",
    "DataError",
    "ExMapError",
    "NotTrustedError",
    "NumericalError",
    "ProcessError",
    "RunFolderError",
    "SettingsError",
    "not_written",
    "shown",
    "unknown_name",
]


class ExMapError(Exception):
    """Root of every error that a user of exmap can act on."""


class SettingsError(ExMapError, ValueError):
    """A setting, preset or argument that is unknown or out of its range."""


class NotTrustedError(SettingsError):
    """Code of somebody's own that a run names, where the run is only looked at."""


class DataError(ExMapError, ValueError):
    """Input data that is missing, damaged, or too small for what was asked."""


class CheckpointError(ExMapError, ValueError):
    """Weights that do not fit the model, or a file that is not a weights file."""


class NumericalError(ExMapError, ArithmeticError):
    """A computation that left the finite numbers."""


class ProcessError(ExMapError, RuntimeError):
    """A process, of several that work together, that ended before their work was done."""


class RunFolderError(ExMapError, RuntimeError):
    """A run folder that belongs to other settings, or that cannot be written."""


def shown(value: object, most: int = 80) -> str:
    """Return how a value is written in Python, shortened where it is long, for a sentence that says what was found.

    Examples
    --------
    >>> shown("7"), shown(10**100, most=10)
    ("'7'", '1000000...')
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists without end
        text = f"a {type(value).__name__} of great length"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def unknown_name(what: str, name: str, allowed: Iterable[str]) -> str:
    """Return the sentence for a name that is not one of the allowed names, with the closest one as a hint.

    Examples
    --------
    >>> unknown_name("preset", "cmist", ["cmnist", "digits"])
    "unknown preset 'cmist' (did you mean 'cmnist'?); choose one of: cmnist, digits"
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not close:  # a nested name: compare its last part alone
        tails = {n.rsplit(".", 1)[-1]: n for n in names}
        close = [tails[m] for m in difflib.get_close_matches(name.rsplit(".", 1)[-1], tails, n=1, cutoff=0.6)]
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown {what} {shown(name)}{hint}; choose one of: {', '.join(names)}"


def not_written(path: Path, error: Exception) -> OSError:
    """Return the system's own error, with the file's name, for a library that says it in words.

    Examples
    --------
    >>> not_written(Path("a"), ValueError("I/O error: No space left on device (os error 28)"))
    OSError(28, 'No space left on device')
    """
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is None:
        return OSError(f"{path} could not be written: {error}")
    return OSError(int(found[1]), os.strerror(int(found[1])), str(path))
