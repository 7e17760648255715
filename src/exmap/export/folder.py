"""Exports as folders: written beside their place, and renamed into it when they are whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from exmap.analysis import Analysis
from exmap.errors import RunFolderError, SettingsError, unknown_name
from exmap.export.table import write_table
from exmap.export.virelay import import_h5py, write_virelay
from exmap.pipeline.disk import read_json, write_json
from exmap.pipeline.store import move_into_place
from exmap.records import Listener, silent

__all__ = ["check_target", "export_run", "export_targets"]

FORMAT = 1
MARKER = "export.json"
TARGETS = ("parquet", "virelay")


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
    if target == "virelay":
        import_h5py()


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
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and read_json(out / MARKER) is None)):
        raise RunFolderError(
            f"an export needs a new folder, an empty one or an earlier export, but {out} holds something else; choose "
            "another --out"
        )
    if target == "virelay" and analysis.no_images:
        raise RunFolderError(f"a project for ViRelAy holds the images, but {analysis.no_images}")
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if target == "virelay":
        write_virelay(analysis, part, listen)
    else:
        write_table(analysis, part, listen)
    write_json(part / MARKER, {"format": FORMAT, "target": target, "grouping": analysis.grouping})
    move_into_place(part, out)
    return out / ("project.yaml" if target == "virelay" else "images.parquet")
