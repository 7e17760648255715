"""Shared fixtures: seeds to sweep, small tasks, a finished run, and the real MNIST where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # sums in another order round otherwise: all tests, and what they start, take one

import pytest
import torch
from hypothesis import HealthCheck, settings

from exmap.data import Task, planted_shortcut
from exmap.data.idx import find_set
from exmap.errors import DataError
from running import copy_run, finished_run

torch.set_num_threads(1)  # in case a plugin was first

# Of tests over drawn examples: how many, no limit on the time of one, and in CI the same ones each time.
settings.register_profile(
    "exmap",
    max_examples=40,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no fault
)
settings.load_profile("exmap")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="slow: run with -m slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The folder of MNIST's IDX files, from the environment variable EXMAP_MNIST_DIR."""
    folder = Path(os.environ.get("EXMAP_MNIST_DIR") or "not-given")
    if not any(folder.glob("train-images-idx3-ubyte*")):
        pytest.skip("MNIST is not here: set EXMAP_MNIST_DIR to the folder of its IDX files")
    return folder


@pytest.fixture(scope="session")
def idx_dir(mnist_dir: Path) -> Path:
    """The folder above that of MNIST, which holds Fashion-MNIST, too."""
    folder = mnist_dir.parent
    try:
        for name in ("mnist", "fashion-mnist"):
            find_set(folder, name)
    except DataError:
        pytest.skip("Fashion-MNIST is not here: put it into fashion-mnist beside EXMAP_MNIST_DIR, a folder named mnist")
    return folder


@pytest.fixture(scope="session")
def three_classes() -> Task:
    """A planted shortcut over three classes, small."""
    return planted_shortcut(n_classes=3, sizes=(240, 150, 150), correlation=0.9, seed=1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, which is not to be changed."""
    return finished_run(tmp_path_factory)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return copy_run(finished, tmp_path / "run")
