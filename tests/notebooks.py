"""Execute the tutorials and save them with their outputs: ``python tests/notebooks.py`` (``make tutorials``)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
SECONDS = 600  # of a cell, on a busy machine


def notebooks() -> list[Path]:
    """Return the tutorials, in the order of their names."""
    return sorted(TUTORIALS.glob("*.ipynb"))


def execute(path: Path) -> NotebookNode:
    """Return a notebook with the outputs of a fresh kernel.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        For the first cell that fails.
    """
    here = Path(sys.executable).parent  # the command exmap, for cells that call it
    os.environ["PATH"] = os.pathsep.join([str(here), os.environ["PATH"]])
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=SECONDS, kernel_name="python3", record_timing=False, coalesce_streams=True).execute()
    return book


def main() -> None:
    for path in notebooks():
        print(path.name, flush=True)
        nbformat.write(execute(path), path)


if __name__ == "__main__":
    main()
