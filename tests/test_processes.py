"""Runs over several real processes: the same results however they are started, and what the death of one leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from exmap.pipeline.runs import open_run, run_until
from exmap.settings import RuntimeSettings, change_settings
from running import CHEAP, LONGEST, Said, as_options, bring_up, copy_run, results_of, start_process

pytestmark = pytest.mark.long

OVERRIDES = ["train.epochs=3", "groups.sources=[exmap]", "retrain.repeats=1"]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
FABRIC_RUN = (sys.executable, "-m", "lightning_fabric.cli")


@dataclass(frozen=True)
class Continued:
    """A run of two processes, one of which was killed in training, and which the same command continued to its end."""

    folder: Path
    killed: Said
    after: Said
    trained: bool  # whether training was finished already when one was killed


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> Continued:
    folder = tmp_path_factory.mktemp("shared") / "run"
    words = ("run", "digits", "--out", folder, "--devices", "2", *as_options(*CHEAP, *OVERRIDES))
    process = start_process(*words)
    wait_until((folder / "train.part" / "state.safetensors").exists, process)
    os.kill(one_of_two(process, "spawn_main"), signal.SIGKILL)
    killed, trained = ended(process), (folder / "train").exists()
    return Continued(folder, killed, ended(start_process(*words)), trained)


@pytest.fixture
def shared(continued: Continued) -> Path:
    """The folder of that run."""
    assert continued.after.code == 0, continued.after.err
    return continued.folder


def started(*words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], seconds: int = LONGEST) -> Said:
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        for pid in descendants(process.pid):  # of what hangs nothing is left
            os.kill(pid, signal.SIGKILL)
        process.kill()
    return Said(process.returncode, out, err)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and they in turn."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [pid]
    for number in found:
        found += [child for child, parent in parents.items() if parent == number]
    return found[1:]


def one_of_two(process: subprocess.Popen[str], mark: str) -> int:
    """Return the process whose command or environment holds `mark`; the last one where there are several."""
    for pid in reversed(descendants(process.pid)):
        place = Path(f"/proc/{pid}")
        if mark in (place / "cmdline").read_text() + (place / "environ").read_text():
            return pid
    raise AssertionError(f"no process with {mark}")


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LONGEST
    while not happened():
        assert process.poll() is None, f"the process ended first: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alike(one: Path, other: Path) -> None:
    """Two runs of the same settings agree but for what sums round in other processes."""
    left, right = (load_file(folder / "train" / "model.safetensors") for folder in (one, other))
    assert all(np.allclose(left[name], right[name], atol=1e-2) for name in left)
    left, right = (json.loads((folder / "train" / "history.json").read_text()) for folder in (one, other))
    assert [row["epoch"] for row in left] == [row["epoch"] for row in right]

    for step in ("explain-val", "test"):
        left, right = (load_file(folder / step / "outputs.safetensors") for folder in (one, other))
        assert all(np.allclose(left[name], right[name], atol=1e-2) for name in left), step
    left, right = (results_of(folder)["methods"] for folder in (one, other))
    assert list(left) == list(right)
    for name in left:
        assert left[name]["mean_accuracy"] == pytest.approx(right[name]["mean_accuracy"], abs=0.02)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_shared_run_says_how_quick_it_was_and_leaves_nothing_half_written(shared: Path) -> None:
    rates = results_of(shared)["images_per_second"]
    assert list(rates) == ["train", "explain"]
    assert all(rate > 0 for rate in rates.values())
    assert [path.name for path in shared.rglob("*") if path.suffix == ".part"] == []


def test_two_hosts_make_the_run_that_two_processes_of_one_host_make_though_one_was_killed(
    shared: Path, tmp_path: Path
) -> None:
    port, folder = free_port(), tmp_path / "run"
    hosts = [
        started(
            *(*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", f"--node-rank={number}", "--master-addr=127.0.0.1"),
            *(f"--master-port={port}", "-m", "exmap", "run", "digits", "--out", folder),
            *as_options(*CHEAP, *OVERRIDES),
        )
        for number in range(2)
    ]
    said = [ended(host) for host in hosts]
    assert [each.code for each in said] == [0, 0], [each.err for each in said]
    assert "Run folder" in said[0].out
    assert said[1].out == ""
    alike(folder, shared)
    settings = change_settings(open_run(folder)[1], runtime__devices=2, runtime__num_nodes=1)
    lines = bring_up(folder, settings, until="train")
    assert lines == ["train: finished before, kept"]  # it counts how many processes trained, not where they were


def test_a_process_killed_in_training_ends_the_run_and_the_same_command_continues_it(continued: Continued) -> None:
    said = continued.killed
    assert said.code == 2
    assert "(of 2; SIGKILL)" in said.err
    assert "finished steps and epochs are kept" in said.err
    assert "Traceback" not in said.err
    assert not continued.trained
    assert continued.after.code == 0, continued.after.err
    assert "train, classifier: continued" in continued.after.out


def test_a_process_killed_in_extraction_ends_the_run_and_a_new_start_makes_what_one_process_makes(
    shared: Path, tmp_path: Path
) -> None:
    folder, alone = copy_run(shared, tmp_path / "run"), copy_run(shared, tmp_path / "alone")
    script = tmp_path / "start.py"
    script.write_text("from exmap.cli import main\nmain()\n")
    overrides = ["explain.target=true", "explain.batch_size=7"]  # 65 batches for two, the last of 2 images
    words = ("explain", folder, *as_options(*overrides))
    process = started(*TORCHRUN, "--nproc-per-node=2", "-m", "exmap", *words)
    wait_until((folder / "explain-val.part" / "heatmaps.npy").exists, process)
    os.kill(one_of_two(process, "LOCAL_RANK=1\0"), signal.SIGKILL)
    said = ended(process)
    assert said.code != 0
    assert "exmap: " in said.err
    assert "epochs are kept" in said.err
    assert not (folder / "explain-val.part" / "done.json").exists()
    assert not (folder / "results.json").exists()

    said = ended(started(*FABRIC_RUN, "--accelerator=cpu", "--devices=2", script, *words))
    assert said.code == 0, said.err
    assert "train: finished before, kept" in said.out
    assert "explain, heatmaps of the val split: continued" in said.out
    run, settings = open_run(alone, change_settings(open_run(alone)[1], overrides), change=True)
    run_until(run, settings, until="explain", runtime=RuntimeSettings(accelerator="cpu"), say=lambda _: None)
    found, wanted = (np.load(path / "explain-val" / "heatmaps.npy", allow_pickle=False) for path in (folder, alone))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert np.abs(found).max(axis=(1, 2, 3)).tolist() == [1.0] * 450
    for name in ("heatmaps.parquet", "outputs.safetensors"):
        assert (folder / "explain-val" / name).stat().st_size == (alone / "explain-val" / name).stat().st_size


def test_hosts_without_torchrun_are_refused_with_what_to_do(tmp_path: Path) -> None:
    said = ended(start_process("run", "digits", "--out", tmp_path / "run", "--devices", "2", "--num-nodes", "2"))
    assert said.code == 2
    assert said.is_one_sentence()
    assert "runtime.num_nodes=2 needs torchrun on every host" in said.err
