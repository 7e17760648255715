"""Folders of a user's looked through for images: what lies there and is none is passed over and listed by kind."""

from __future__ import annotations

import os
from pathlib import Path

from exmap.data.decode import SUFFIXES
from exmap.data.regular import kind_of_file, open_regular
from exmap.errors import DataError
from exmap.plain_text import printable

__all__ = ["LINKED", "LOOSE", "Junk", "is_text"]

LINKED = "links to folders that are counted already"
LOOSE = "images outside of a class's folder"
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", ".ds_store", "ehthumbs.db"})
SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "#recycle", "@recycle", "@tmp", "#snapshot"),  # network disks
        *("$recycle.bin", "recycler", "system volume information", "found.000"),  # Windows
        *("lost+found", "__macosx", "lost&found"),
    }
)
RUN_SETTINGS, RUN_START = "settings.yaml", b"format:"  # what marks the folder of a run, and how that begins


class Junk:
    """Looks through folders for images, and lists by kind what else there is.

    A folder or a file that several links lead to counts once: where it lies, or else at the first link by name.

    Attributes
    ----------
    found : dict of str to list of str
        Paths from the root.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.found: dict[str, list[str]] = {}
        self.real = Path(os.path.realpath(root))
        self.seen: set[Path] = set()  # folders elsewhere that links lead to

    def folders(self, top: Path) -> list[Path]:
        """Return the folders in a folder that may hold images, those that links lead to last.

        Raises
        ------
        DataError
            If the folder may not be read.
        """
        kept = []
        for entry in _listed(top):
            if _is_folder(entry):
                if not self._is_passed(entry):
                    kept.append(Path(entry.path))
            elif not self._is_no_image(entry):
                self._add(LOOSE, entry)
        return sorted(kept)

    def images(self, top: Path) -> list[Path]:
        """Return the images in a folder and those below it.

        Raises
        ------
        DataError
            If one of the folders may not be read.
        """
        kept: list[Path] = []
        files: set[tuple[int, int]] = set()
        waiting = [top]
        while waiting:
            for entry in _listed(waiting.pop()):
                if _is_folder(entry):
                    if not self._is_passed(entry):
                        waiting.append(Path(entry.path))
                    continue
                if self._is_no_image(entry):
                    continue
                found = entry.stat()
                same = found.st_dev, found.st_ino
                if found.st_ino and same in files:  # some systems give no numbers
                    self._add("links to images that are counted already", entry)
                    continue
                files.add(same)
                kept.append(Path(entry.path))
        return sorted(kept)

    def lists(self, kind: str, top: Path) -> bool:
        """Return whether something of a kind was found in a folder."""
        below = f"{self._name(top)}/"
        return any(name.startswith(below) for name in self.found.get(kind, ()))

    def pass_over(self, kind: str, path: Path) -> None:
        """List what a caller leaves out."""
        self._add(kind, path)

    def _is_passed(self, entry: os.DirEntry[str]) -> bool:
        """Return whether a folder holds no images of the user's, or holds what is counted already."""
        name = entry.name.lower()
        if name in SYSTEM_FOLDERS:
            return self._add("folders of the system", entry)
        if name.startswith((".", "__")):
            return self._add("hidden folders", entry)
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            if target in self.seen or target.is_relative_to(self.real) or self.real.is_relative_to(target):
                return self._add(LINKED, entry)
            self.seen.add(target)
        return _is_run(Path(entry.path)) and self._add("folders of runs", entry)

    def _is_no_image(self, entry: os.DirEntry[str]) -> bool:
        name = entry.name.lower()
        if name in SYSTEM_FILES or name.startswith("._"):
            return self._add("files of the system", entry)
        if name.startswith("."):
            return self._add("hidden files", entry)
        if os.path.splitext(name)[1] not in SUFFIXES:
            return self._add("files that are no images", entry)
        try:
            found = entry.stat()
        except OSError:
            return self._add("links that lead nowhere" if entry.is_symlink() else "files that are gone", entry)
        if kind_of_file(found.st_mode):
            return self._add("pipes, devices and the like", entry)
        if not is_text(self._raw(entry)):
            return self._add("images whose names are not in UTF-8", entry)
        return found.st_size == 0 and self._add("empty files", entry)

    def _add(self, kind: str, path: os.PathLike[str]) -> bool:
        self.found.setdefault(kind, []).append(self._name(path))
        return True

    def _name(self, path: os.PathLike[str]) -> str:
        raw = self._raw(path)
        return raw if is_text(raw) else printable(raw)

    def _raw(self, path: os.PathLike[str]) -> str:
        return Path(path).relative_to(self.root).as_posix()


def _listed(top: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, by name, links last: what they lead to may lie beside them."""
    try:
        with os.scandir(top) as entries:
            return sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        raise DataError(
            f"every folder of the images must be readable, but {printable(str(top))} is not ({error.strerror}); "
            "permit reading it, or take it out"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _is_run(path: Path) -> bool:
    """Return whether a folder is that of a run, whose pictures are none of the user's."""
    try:
        with open_regular(path / RUN_SETTINGS) as file:
            return file.read(len(RUN_START)) == RUN_START
    except OSError:
        return False


def is_text(name: str) -> bool:
    """Return whether a name can be written as UTF-8: that of a file need not."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
