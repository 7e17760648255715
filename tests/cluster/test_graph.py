from __future__ import annotations

import numpy as np
import pytest

from exmap.cluster.graph import default_neighbors, neighbor_graph
from exmap.errors import DataError


def slow_graph(vectors: np.ndarray, n_neighbors: int) -> np.ndarray:
    """Each vector points at its nearest ones, itself included; directed edges count one half each."""
    n = len(vectors)
    directed = np.zeros((n, n))
    for i in range(n):
        distance = [float(np.sqrt(((vectors[i] - vectors[j]) ** 2).sum())) for j in range(n)]
        distance[i] = -1.0
        for j in sorted(range(n), key=lambda j: distance[j])[:n_neighbors]:
            directed[i, j] = 1
    np.fill_diagonal(directed, 0)
    return (directed + directed.T) / 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_neighbors", [2, 3, 7, 15])
def test_the_graph_is_the_one_found_by_brute_force(seed: int, n_neighbors: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(15, 4))
    np.testing.assert_array_equal(neighbor_graph(vectors, n_neighbors).toarray(), slow_graph(vectors, n_neighbors))


def test_a_line_of_points_by_hand() -> None:
    vectors = np.array([[0.0], [1.0], [1.9], [5.0]])  # 0 -> 1, 1 -> 2, 2 -> 1, 3 -> 2
    wanted = [[0, 0.5, 0, 0], [0.5, 0, 1, 0], [0, 1, 0, 0.5], [0, 0, 0.5, 0]]
    assert neighbor_graph(vectors, 2).toarray().tolist() == wanted


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_graph_is_symmetric_without_loops_or_stored_zeros(dtype: type) -> None:
    graph = neighbor_graph(np.random.default_rng(0).normal(size=(40, 3)).astype(dtype), 5)
    assert (graph != graph.T).nnz == 0
    assert not graph.diagonal().any()
    assert set(graph.data.tolist()) <= {0.5, 1.0}


@pytest.mark.parametrize("n_neighbors", [0, 1, 6])
def test_neighbours_out_of_range_are_refused(n_neighbors: int) -> None:
    message = rf"n_neighbors must lie in \[2, 5\] for 5 samples .* got {n_neighbors}; lower cluster\.n_neighbors"
    with pytest.raises(DataError, match=message):
        neighbor_graph(np.zeros((5, 2)), n_neighbors)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(DataError, match="give more samples"):
        neighbor_graph(np.zeros((1, 2)), 2)


@pytest.mark.parametrize(("n", "wanted"), [(0, 2), (1, 2), (7, 2), (21, 3), (5000, 8), (10_000, 9), (100_000, 11)])
def test_the_default_number_of_neighbours_is_the_logarithm(n: int, wanted: int) -> None:
    assert default_neighbors(n) == wanted
