"""Put a data set into the layout that exmap reads: unpack local archives, or download public ones first."""

from __future__ import annotations

import shutil
from pathlib import Path

from exmap.data.catalog import entry, read_images
from exmap.data.fetch import download
from exmap.data.idx import download_set, find_set
from exmap.data.unpack import extract
from exmap.errors import DataError
from exmap.records import Listener, silent
from exmap.settings import DataSettings

__all__ = ["prepare_data"]

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
TABLES = (".txt", ".csv")
DOWNLOADS = "downloads"


def prepare_data(
    name: str, to: Path, *, source: Path | None = None, fetch: bool = False, listen: Listener = silent
) -> Path:
    """Prepare a data set and return the folder to give as ``--data-dir``.

    Parameters
    ----------
    name : str
        Of the catalogue.
    to : Path
        Where it is unpacked to.
    source : Path, optional
        An archive, a folder of archives (and CelebA's tables), or a folder that is already in the right layout; that
        one is used as it is.
    fetch : bool
        Whether to download what is public into ``downloads`` in `to`; a download that broke off is continued.
    listen : Listener

    Raises
    ------
    DataError
        If there is nothing to prepare, nothing to prepare it from, or the result is not the data set.
    """
    found = entry(name)
    if found.arrays is not None and not found.idx:
        raise DataError(f"{name} comes with a library exmap needs: there is nothing to prepare, run it")
    if not (found.idx or found.counts):
        raise DataError(f"{name} is your own images: there is nothing to prepare, run them with --data-dir")
    if _readable(name, to):
        return to
    if source is not None:
        return _from_source(name, to, source, listen)
    if not fetch:
        public = "with --download, or from" if found.remotes or found.idx else "from"
        raise DataError(
            f"{name} can be prepared {public} an archive or a folder with --source PATH; name one. "
            f"{found.instead}".strip()
        )
    for one in found.idx:
        try:
            find_set(to, one)
        except DataError:
            download_set(to / one, one)
    if not found.idx and not found.remotes:
        raise DataError(f"{name} cannot be downloaded. {found.instead}")
    for remote in found.remotes:
        _unpack(download(remote, to / DOWNLOADS, listen=listen), to, listen)
    return _whole(name, to)


def _from_source(name: str, to: Path, source: Path, listen: Listener) -> Path:
    if not source.exists():
        raise DataError(f"the source {source} does not exist; give an archive or a folder")
    if _readable(name, source):
        return source
    if source.is_file():
        _unpack(source, to, listen)
        return _whole(name, to)
    there = [path for place in (source, *source.glob("*/")) for path in sorted(place.iterdir())]
    archives = [path for path in there if path.name.lower().endswith(ARCHIVES)]
    for archive in archives:
        _unpack(archive, to, listen)
    if not archives:
        return _whole(name, source)
    for table in (path for path in there if path.suffix.lower() in TABLES):
        target = to / table.name
        if not (target.exists() and target.samefile(table)):
            shutil.copyfile(table, target)
    return _whole(name, to)


def _unpack(archive: Path, to: Path, listen: Listener) -> None:
    """Unpack an archive unless that has been done: each holds a folder of its own name, wholly or not at all."""
    ending = max((kind for kind in ARCHIVES if archive.name.lower().endswith(kind)), key=len, default="")
    own = archive.name[: len(archive.name) - len(ending)]
    if not (to / own).is_dir():
        extract(archive, to, listen=listen)


def _whole(name: str, folder: Path) -> Path:
    """Return the folder if the data set can be read there; else let the reader say what it lacks."""
    found = entry(name)
    if found.images is not None:
        table = read_images(DataSettings(name=name, dir=folder))
        for image in (*table.names[:1], *[mask for mask in table.masks if mask][:1]):
            if table.files.stamp(image)[0] < 0:
                raise DataError(f"the images of {name} must also be in {folder}, but {image} is missing; unpack them")
    for one in found.idx:
        find_set(folder, one)
    return folder


def _readable(name: str, folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        _whole(name, folder)
    except DataError:
        return False
    return True
