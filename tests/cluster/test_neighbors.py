from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components
from threadpoolctl import threadpool_limits

from exmap.cluster import neighbors
from exmap.cluster.graph import neighbor_graph
from exmap.cluster.neighbors import AXES, LARGEST_CELL, approximate_neighbors, principal_coordinates
from exmap.runtime import worker_threads


def valid(found: np.ndarray, n: int) -> bool:
    """Whether each row names different vectors that exist."""
    return bool(found.min() >= 0 and found.max() < n and (np.diff(np.sort(found, axis=1)) > 0).all())


@pytest.mark.parametrize("n", [2, 5, 90, 700])
@pytest.mark.parametrize("n_neighbors", [2, 5])
def test_few_vectors_get_the_exact_graph(n: int, n_neighbors: int) -> None:
    vectors = np.random.default_rng(n).normal(size=(n, 5))
    k = min(n, n_neighbors)
    found = neighbor_graph(vectors, k, approximate=True)
    np.testing.assert_array_equal(found.toarray(), neighbor_graph(vectors, k).toarray())
    assert found.dtype == np.float64
    assert found.indices.dtype == np.int32


def test_most_neighbours_are_found_among_few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "CANDIDATES", 1500)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4000, 8)) @ rng.normal(size=(8, 200))
    exact, found = (neighbor_graph(vectors, 8, approximate=way, seed=0).astype(bool) for way in (False, True))
    assert exact.multiply(found).sum() > 0.9 * exact.sum()


@pytest.mark.parametrize("n_neighbors", [2, 9, 500])
@pytest.mark.parametrize("kind", ["zeros", "few", "half"])
def test_equal_vectors_get_neighbours_that_exist(kind: str, n_neighbors: int) -> None:
    rng = np.random.default_rng(0)
    vectors = {
        "zeros": np.zeros((500, 6), dtype=np.float32),
        "few": np.eye(6, dtype=np.float32)[rng.integers(0, 6, 500)],
        "half": rng.normal(size=(500, 6)).astype(np.float32) * (np.arange(500) % 2)[:, None],
    }[kind]
    assert valid(approximate_neighbors(vectors, n_neighbors, 0), 500)


def test_a_large_cell_of_equal_vectors_is_one_component(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "CANDIDATES", 300)
    vectors = np.random.default_rng(0).normal(size=(4000, 6)).astype(np.float32)
    vectors[1000:] = 0
    graph = neighbor_graph(vectors, 9, approximate=True)
    assert len(np.unique(connected_components(graph, directed=False)[1][1000:])) == 1


def test_the_same_seed_gives_the_same_neighbours_with_any_number_of_threads() -> None:
    vectors = np.random.default_rng(0).normal(size=(3000, 150)).astype(np.float32)
    found = []
    for threads in (1, 1, 3):
        with threadpool_limits(threads, "blas"):
            found.append(approximate_neighbors(vectors, 8, 5))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_vectors_on_disk_are_read_as_from_memory(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(1500, 20)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    found = approximate_neighbors(np.load(tmp_path / "v.npy", mmap_mode="r"), 8, 0)
    assert np.array_equal(found, approximate_neighbors(vectors, 8, 0))


@pytest.mark.parametrize(("n", "width"), [(300, 7), (300, 200), (50, 200)])
def test_principal_coordinates_keep_distances_where_there_are_axes_enough(n: int, width: int) -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(n, 5)) @ rng.normal(size=(5, width)) + 3).astype(np.float32)
    found = principal_coordinates(vectors, rng)
    assert found.shape == (n, min(AXES, n, width))
    np.testing.assert_allclose(found @ found.T, (v := vectors - vectors.mean(axis=0)) @ v.T, atol=1e-2)


def test_cells_hold_every_vector_once_and_are_small() -> None:
    points = np.random.default_rng(0).normal(size=(5000, 4)).astype(np.float32)
    with worker_threads() as pool:
        order, starts = neighbors._cells(points, 0, pool)
    assert np.sort(order).tolist() == list(range(5000))
    assert (starts[0], starts[-1]) == (0, 5000)
    assert 0 < np.diff(starts).min() <= np.diff(starts).max() <= LARGEST_CELL


def test_near_cells_are_searched_as_vectors_are_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(6000, 6)) @ rng.normal(size=(6, 40))).astype(np.float32)
    monkeypatch.setattr(neighbors, "CANDIDATES", 800)
    plain = approximate_neighbors(vectors, 8, 0)
    monkeypatch.setattr(neighbors, "ALL_CANDIDATES", 20)
    found = approximate_neighbors(vectors, 8, 0)
    assert valid(found, 6000)
    assert np.mean([len(set(a) & set(b)) for a, b in zip(plain, found, strict=True)]) > 7.5
