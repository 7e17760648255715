"""What all worker processes of a test run share: it is made once, by whichever needs it first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` has filled, once for all workers of this run; the others wait for it.

    For fixtures of scope ``session``: without it each worker would train the model or run the stages anew. Tests read
    what is in the folder, and write into it no more: one that must change it takes a copy.

    Parameters
    ----------
    factory : pytest.TempPathFactory
    name : str
        Name of the folder, one for each thing that is shared.
    make : callable
        Takes the path of the folder, which does not exist yet. If it fails, the next worker tries again.
    """
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with FileLock(base / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder
