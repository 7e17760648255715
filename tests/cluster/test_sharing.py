"""Whoever does the work of a clustering, and whoever hears of it, what comes out is the same."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import pytest

from exmap.cluster import SpectralEigengap, iteration, neighbors
from exmap.cluster.neighbors import approximate_neighbors
from exmap.cluster.sharing import in_threads, shared_out, sharing
from exmap.records import Progress, silent

VECTORS = np.random.default_rng(0).normal(size=(3000, 150)).astype(np.float32)


def copied(function: Callable[..., Any], shared: Any, blocks: Sequence[Any]) -> Generator[Any, None, None]:
    """Map as other processes do: each block is done with a copy of what it needs, the last one first."""
    packed = pickle.dumps((function, shared))
    done = []
    for block in reversed(blocks):
        again, needed = pickle.loads(packed)
        done.append(again(needed, block))
    yield from reversed(done)


@pytest.mark.parametrize("at_once", [1, 7, 64, 10_000])
def test_neighbours_are_the_same_whoever_searches_which_cells(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = approximate_neighbors(VECTORS, 8, 5)
    monkeypatch.setattr(neighbors, "CELLS_AT_ONCE", at_once)
    with shared_out(copied):
        found = approximate_neighbors(VECTORS, 8, 5)
    assert np.array_equal(found, plain)


def test_blocks_are_made_in_order() -> None:
    assert list(in_threads(pow, 2, [5, 0, 3])) == [32, 1, 8]


def test_what_was_said_holds_inside_the_block_alone() -> None:
    before = sharing()
    with shared_out(copied):
        assert sharing().map_blocks is copied
    assert sharing() is before
    assert before.listen is silent


def test_a_long_clustering_says_how_far_it_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iteration, "SINGLE_FROM", 1)
    monkeypatch.setattr(neighbors, "CELLS_AT_ONCE", 4)
    rng = np.random.default_rng(1)
    points = (np.repeat(np.eye(3), 700, axis=0) * 6 + rng.normal(size=(2100, 3))).astype(np.float32)
    told: list[Progress] = []
    with shared_out(listen=told.append):
        SpectralEigengap(3, exact_below=1, random_state=0).fit(points)
    searched = [each for each in told if each.task == "neighbours" and each.done]
    assert len(searched) > 5
    assert [each.done for each in searched] == sorted({each.done for each in searched})
    assert searched[-1].done == searched[-1].total == 2100
    rounds = [each for each in told if each.task == "eigenvectors"]
    assert rounds
    assert [each.done for each in rounds] == sorted(each.done for each in rounds)
    assert all(each.done <= each.total for each in rounds)
