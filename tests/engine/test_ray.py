"""A cluster of two workers on this machine: the numbers of one process, also where a worker is killed on the way."""

from __future__ import annotations

import os
import signal
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exmap.cluster import neighbors
from exmap.cluster.neighbors import approximate_neighbors
from exmap.cluster.sharing import shared_out
from exmap.data import Split, planted_shortcut
from exmap.engine import Job, engine_of, on_ray
from exmap.explain import explain_split
from exmap.model import build_model
from exmap.pipeline.extraction import compute_split
from exmap.records import Progress
from exmap.settings import ExplainSettings, ModelSettings, RuntimeSettings

ray: Any = pytest.importorskip("ray")
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # Ray leaves files and processes open


@pytest.fixture(scope="module")
def split() -> Split:
    return planted_shortcut(n_classes=2, sizes=(60, 600, 60), correlation=0.9, seed=2).val


def workers_of(pid: int, name: str = "ray::_Worker") -> list[int]:
    """Return the workers of the cluster that a process has started, by what they are at."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    below = [pid]
    for number in below:
        below += [child for child, parent in parents.items() if parent == number]
    for number in below[1:]:
        try:
            if Path(f"/proc/{number}/cmdline").read_text().startswith(name):
                found.append(number)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_a_cluster_makes_what_one_process_makes_though_a_worker_is_killed(split: Split, tmp_path: Path) -> None:
    model, settings = build_model(ModelSettings(name="tiny"), 2, seed=0).eval(), ExplainSettings(batch_size=50, size=8)
    maps, outputs = explain_split(model, split, settings)
    engine = engine_of(RuntimeSettings(engine="ray", actors=2), move=False)
    killed: list[int] = []

    def listen(progress: Progress) -> None:
        if not killed and (found := workers_of(os.getpid())):
            killed.append(found[0])
            os.kill(found[0], signal.SIGKILL)

    found = compute_split(
        engine, Job.of(model, split, settings), split, size=50, folder=tmp_path / "shards", listen=listen
    )
    assert killed
    assert engine.measured["workers_lost"] >= 1
    assert found.ids == split.ids
    assert np.abs(found.maps().values - maps.values).max() <= 1e-6
    assert np.abs(found.outputs.features - outputs.features).max() <= 1e-5
    assert np.array_equal(found.predicted, outputs.predicted)
    assert not ray.is_initialized()


def test_neighbours_are_searched_by_tasks_though_a_worker_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "CELLS_AT_ONCE", 2)
    vectors = np.random.default_rng(0).normal(size=(9000, 40)).astype(np.float32)
    plain = approximate_neighbors(vectors, 8, 5)
    engine = engine_of(RuntimeSettings(engine="ray", actors=2), move=False)
    killed: list[int] = []

    def listen(progress: Progress) -> None:
        if not killed and progress.done and (found := workers_of(os.getpid(), "ray::_block")):
            killed.append(found[0])
            os.kill(found[0], signal.SIGKILL)

    with shared_out(engine.map_blocks, listen):
        found = approximate_neighbors(vectors, 8, 5)
    assert killed
    assert np.array_equal(found, plain)
    assert not ray.is_initialized()


def test_what_a_task_finds_wrong_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(RuntimeSettings(engine="ray", actors=1), move=False)
    monkeypatch.setattr(on_ray, "FEWEST_BLOCKS", 1)
    with pytest.raises(ZeroDivisionError):
        list(engine.map_blocks(truediv, 1.0, [4.0, 0.0]))
    assert not ray.is_initialized()
