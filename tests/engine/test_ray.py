"""A cluster of two workers on this machine: the numbers of one process, also where a worker is killed on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exmap.data import Split, planted_shortcut
from exmap.engine import Job, engine_of
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


def workers_of(pid: int) -> list[int]:
    """Return the workers of the cluster that a process has started."""
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
            if Path(f"/proc/{number}/cmdline").read_text().startswith("ray::_Worker"):
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
