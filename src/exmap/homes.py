"""Where files of the user's own may lie: in the home, or in the temporary directory where there is none to write into.

Containers are run for users without a home (``docker run --user 1234``), and homes may be read-only or lost.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

__all__ = ["cache_folder", "cache_remark", "usable_home", "use_some_home"]

NAME = "exmap"


def cache_folder() -> Path:
    """Return where exmap keeps what can be made again."""
    named, home = os.environ.get("XDG_CACHE_HOME", ""), usable_home()
    for place in (Path(named) if os.path.isabs(named) else None, None if home is None else home / ".cache"):
        if place is not None and _may_write(place):
            return place / NAME
    return _temporary_home() / ".cache" / NAME


def cache_remark() -> str:
    """Return where that is in a sentence, if it is not where users would look for it; else nothing."""
    folder, temporary = cache_folder(), Path(tempfile.gettempdir())
    if not folder.is_relative_to(temporary) or not folder.relative_to(temporary).parts[0].startswith(f"{NAME}-"):
        return ""
    return (
        f"decoded images are kept in {folder}, because there is no home that can be written; name another folder with "
        "--set images.cache_dir=DIR"
    )


def usable_home() -> Path | None:
    """Return the user's home, or None if there is none that can be written; the root of all folders is none."""
    named = os.environ.get("HOME", "")
    if not named:
        try:
            named = os.path.expanduser("~" if os.name == "nt" else f"~{_user_name()}")
        except KeyError:
            return None
    home = Path(named)
    is_home = home.is_absolute() and home != Path(home.anchor) and home.is_dir()
    return home if is_home and _may_write(home) else None


def use_some_home() -> None:
    """Give the libraries of this process, and of those that it starts, a home and a name of the user to work with.

    For the command line alone: some of them fail when they are loaded, others leave their files in ``/``.
    """
    if os.name == "nt":
        return
    if usable_home() is None:
        os.environ["HOME"] = str(_temporary_home())
    try:
        _user_name()
    except KeyError:
        os.environ.setdefault("LOGNAME", f"user-{os.getuid()}")


def _user_name() -> str:
    """Return the name that the system knows the user by; raise KeyError if it knows none."""
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _may_write(folder: Path) -> bool:
    """Return whether a folder can be written, or made: by trying, for permissions tell root nothing about ``/proc``."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _temporary_home() -> Path:
    """Return a folder of this user's alone in the temporary directory: the same one each time, if it can be trusted."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"{NAME}-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o077:
            return folder
    except (OSError, NotImplementedError):
        pass
    return _folder_of_this_process()


@lru_cache(maxsize=1)
def _folder_of_this_process() -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"{NAME}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
