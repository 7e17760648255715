"""What is executed of what a run's files name: nothing where it is only looked at, for they may be a stranger's."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from exmap.errors import NotTrustedError, shown

__all__ = ["looking_only", "only_looking", "refuse_to_call", "refuse_to_import", "under_this_rule"]

Made = TypeVar("Made")
_looking: ContextVar[bool] = ContextVar("looking", default=False)


@contextmanager
def looking_only(*, trust: bool = False) -> Iterator[None]:
    """Import and call nothing inside the block that the files of a run name by a word, as these may be a stranger's.

    Modules of installed packages are imported; what is registered, by them too, is used as ever. The present folder is
    none of the places where modules are found.

    Parameters
    ----------
    trust : bool
        Whether all of that is done nevertheless.
    """
    if trust:
        yield
        return
    before, token = list(sys.path), _looking.set(True)
    if here := _present_folder():
        sys.path[:] = [place for place in before if Path(place).resolve() != here]
    try:
        yield
    finally:
        _looking.reset(token)
        sys.path[:] = [*before, *(place for place in sys.path if place not in before)]


def only_looking() -> bool:
    """Return whether a run is only looked at."""
    return _looking.get()


def under_this_rule(work: Callable[[], Made]) -> Callable[[], Made]:
    """Return work that is done later under the rule of now: only looking, or not."""
    trust = not _looking.get()

    def later() -> Made:
        with looking_only(trust=trust):
            return work()

    return later


def refuse_to_import(word: str) -> None:
    """Refuse a word of a module that is not installed, where a run is only looked at.

    Raises
    ------
    NotTrustedError
    """
    if _looking.get() and not _is_installed(word.rpartition(":")[0]):
        refuse_to_call(word)


def refuse_to_call(word: str) -> None:
    """Refuse to call what a word names, where a run is only looked at: an installed function may do anything.

    Raises
    ------
    NotTrustedError
    """
    if _looking.get():
        raise NotTrustedError(
            f"the run names {shown(word)}, and code that a run names is not executed where it is only looked at; if "
            "the run is yours, add --trust, or trust=True in Python"
        )


def _is_installed(place: str) -> bool:
    if place.endswith(".py") or place == "__main__":  # whatever started this process
        return False
    try:
        spec = importlib.util.find_spec(place.partition(".")[0])
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    within = list(spec.submodule_search_locations or [])  # of a package
    files = within or ([spec.origin] if spec.has_location and spec.origin else [])
    here = _present_folder()
    return here is None or all(Path(file).resolve().parent != here for file in files)


def _present_folder() -> Path | None:
    """Return the present folder, unless it is gone or itself a place of installed packages."""
    try:
        here = Path().resolve()
    except OSError:
        return None
    return None if str(here) in sysconfig.get_paths().values() else here
