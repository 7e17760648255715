"""Batches shared out over real processes: the same as in one, each image once, and no waiting for the dead."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from exmap.data import Split, array_split
from exmap.data.dataset import batch_slices
from exmap.errors import DataError, ProcessError
from exmap.explain import explain_split
from exmap.model import collect_outputs
from exmap.model.batches import computed_batches
from exmap.records import Heatmaps, Outputs
from exmap.runtime import in_processes, torch_seed
from exmap.settings import ExplainSettings, RuntimeSettings
from hanging import at_most

ONE = RuntimeSettings(accelerator="cpu")
TWO = RuntimeSettings(accelerator="cpu", devices=2)
SIZES = (103, 8, 5, 1)  # in batches of 4: an odd and an even number of them, and fewer than processes
Found = list[tuple[list[Outputs], Heatmaps, list[tuple[int, int]]]]


def images_split(n: int) -> Split:
    images = np.random.default_rng(n).random((n, 3, 8, 8)).astype(np.float32)
    return array_split(images, np.arange(n) % 3, class_names=[*"abc"])


def network() -> nn.Module:
    with torch_seed(0):
        return nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(96, 3),
        ).eval()


def explained(fabric: Any) -> Found:
    """At module level, so that a spawned process can import it."""
    found = []
    for n in SIZES:
        split, model = images_split(n), network()
        told: list[tuple[int, int]] = []
        maps, outputs = explain_split(
            model,
            split,
            ExplainSettings(batch_size=4),
            fabric=fabric,
            listen=lambda p, told=told: told.append((p.done, p.total)),
        )
        found.append(([outputs, collect_outputs(model, split, batch_size=4, fabric=fabric)], maps, told))
    return found


def batches_by_free_memory(fabric: Any) -> list[slice]:
    """Ask for other batches in each process, as where memory is not free alike."""

    def compute(_: slice, images: np.ndarray) -> Sequence[torch.Tensor]:
        return (torch.from_numpy(images),)

    return [part for part, _ in computed_batches(images_split(23), 5 - fabric.global_rank, compute, fabric)]


def made_together(fabric: Any) -> tuple[Found, list[slice]]:
    return explained(fabric), batches_by_free_memory(fabric)


@pytest.fixture(scope="module")
def of_two() -> tuple[Found, list[slice]]:
    """What two processes make together: to start them takes longer than their work."""
    return in_processes(TWO, made_together)


@pytest.mark.long
def test_two_processes_make_what_one_makes_to_the_last_bit(of_two: tuple[Found, list[slice]]) -> None:
    alone, shared = in_processes(ONE, explained), of_two[0]
    for n, (outputs, maps, told), (outputs_wanted, maps_wanted, told_wanted) in zip(SIZES, shared, alone, strict=True):
        assert len(maps) == n
        assert maps.values.tobytes() == maps_wanted.values.tobytes()
        assert maps.target.tolist() == maps_wanted.target.tolist()
        assert maps.conservation_error.tobytes() == maps_wanted.conservation_error.tobytes()
        assert (maps.finite.all(), maps.zero.any()) == (True, False)
        for found, wanted in zip(outputs, outputs_wanted, strict=True):
            assert len(found.logits) == n
            assert found.features.tobytes() == wanted.features.tobytes()
            assert found.logits.tobytes() == wanted.logits.tobytes()
        assert told == told_wanted


@pytest.mark.long
def test_processes_agree_on_the_batches_whatever_memory_each_has(of_two: tuple[Found, list[slice]]) -> None:
    assert of_two[1] == list(batch_slices(23, 4))


def second_fails(fabric: Any, how: str) -> None:
    split = images_split(40)

    def compute(part: slice, images: np.ndarray) -> Sequence[torch.Tensor]:
        if part.start == 20:  # the second process's third batch
            assert fabric.global_rank == 1
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("an image of the second process cannot be read")
        return (torch.from_numpy(images),)

    for _ in computed_batches(split, 4, compute, fabric):
        pass


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("raised", DataError, "^an image of the second process cannot be read$"),
        ("killed", ProcessError, "^a worker process of this run died before it was done .* epochs are kept$"),
    ],
)
def test_what_happens_to_one_process_ends_all_with_one_sentence(how: str, kind: type[Exception], said: str) -> None:
    with at_most(1200), pytest.raises(kind, match=said):
        in_processes(TWO, partial(second_fails, how=how))


def test_one_process_yields_every_batch_with_its_slice() -> None:
    split = images_split(10)
    found = list(computed_batches(split, 4, lambda _, images: (torch.from_numpy(images).sum(dim=(1, 2, 3)),)))
    assert [part for part, _ in found] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    sums = split.images.batch(np.arange(10)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(np.concatenate([made for _, (made,) in found]), sums, rtol=1e-5)


def test_a_batch_is_halved_where_memory_runs_out() -> None:
    split, sizes = images_split(10), []

    def compute(part: slice, images: np.ndarray) -> list[torch.Tensor]:
        sizes.append(len(images))
        if len(images) > 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return [torch.arange(part.start, part.stop)]

    made = [rows for _, (rows,) in computed_batches(split, 8, compute)]
    assert np.concatenate(made).tolist() == list(range(10))
    assert sizes == [8, 4, 2, 2, 2, 2, 2]  # found out once: later batches come in parts that fit


def test_other_errors_and_single_images_are_not_halved() -> None:
    def fails(_: slice, images: np.ndarray) -> list[torch.Tensor]:
        raise RuntimeError("out of memory" if len(images) == 1 else "another reason")

    with pytest.raises(RuntimeError, match="another reason"):
        list(computed_batches(images_split(4), 4, fails))
    with pytest.raises(DataError, match=r"for one image at a time, but ran out \(out of memory\); give smaller images"):
        list(computed_batches(images_split(4), 1, fails))
