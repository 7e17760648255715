"""Exports as folders: written beside their place, and renamed into it when they are whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exmap.analysis import Analysis
from exmap.errors import RunFolderError, SettingsError, unknown_name
from exmap.export.fiftyone import write_fiftyone
from exmap.export.spotlight import write_spotlight
from exmap.export.table import write_table
from exmap.export.virelay import import_h5py, write_virelay
from exmap.pipeline.disk import read_json, write_json
from exmap.pipeline.store import move_into_place
from exmap.records import Listener, silent

__all__ = ["check_target", "export_run", "export_targets"]

FORMAT = 1
MARKER = "export.json"


@dataclass(frozen=True)
class Target:
    """A format: what writes it into a folder, the file to open, and what it needs."""

    write: Callable[[Analysis, Path, Listener], None]
    opened: str
    what: str
    needs_images: bool = False
    library: Callable[[], Any] | None = None


TARGETS = {
    "fiftyone": Target(write_fiftyone, "metadata.json", "a data set for FiftyOne", needs_images=True),
    "parquet": Target(write_table, "images.parquet", "a table"),
    "spotlight": Target(write_spotlight, "images.parquet", "a table for Renumics Spotlight"),
    "virelay": Target(write_virelay, "project.yaml", "a project for ViRelAy", needs_images=True, library=import_h5py),
}


def export_targets() -> list[str]:
    """Return the names of the formats."""
    return list(TARGETS)


def check_target(target: str) -> None:
    """Refuse an unknown format, and one whose library is not installed, before any work is done.

    Raises
    ------
    SettingsError
    """
    if target not in TARGETS:
        raise SettingsError(unknown_name("export format", target, TARGETS))
    if (library := TARGETS[target].library) is not None:
        library()


def export_run(analysis: Analysis, target: str, out: Path, *, listen: Listener = silent) -> Path:
    """Write an analysis in another format into a folder, in place of an earlier export.

    Parameters
    ----------
    analysis : Analysis
    target : str
        Of :func:`export_targets`.
    out : Path
        New, empty, or an earlier export. Written as ``OUT.part``, which is renamed last.
    listen : Listener

    Returns
    -------
    Path
        The file to open.

    Raises
    ------
    SettingsError
        For an unknown format, or one whose library is not installed.
    RunFolderError
        If the folder holds other files, or the format needs images that are not at hand.
    """
    check_target(target)
    kind = TARGETS[target]
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and read_json(out / MARKER) is None)):
        raise RunFolderError(
            f"an export needs a new folder, an empty one or an earlier export, but {out} holds something else; choose "
            "another --out"
        )
    if kind.needs_images and analysis.no_images:
        raise RunFolderError(f"{kind.what} holds the images, but {analysis.no_images}")
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    kind.write(analysis, part, listen)
    write_json(part / MARKER, {"format": FORMAT, "target": target, "grouping": analysis.grouping})
    move_into_place(part, out)
    return out / kind.opened
