from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.cluster._spectral import cluster_qr as sklearn_cluster_qr
from sklearn.metrics import adjusted_rand_score

from exmap.cluster import cluster_qr, eigengap, laplacian_spectrum
from exmap.cluster.graph import neighbor_graph
from exmap.cluster.spectrum import DENSE_BELOW

SIZES = [12, 120, DENSE_BELOW + 60]  # the dense way, and the iteration above DENSE_BELOW


def slow_laplacian(graph: sparse.csr_array) -> np.ndarray:
    """I - D^-1/2 A D^-1/2, with a row of zeros for a vertex without edges."""
    a = graph.toarray()
    degree = a.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        laplacian = np.diag((degree > 0).astype(float)) - a / np.sqrt(np.outer(degree, degree))
    return np.nan_to_num(laplacian)


def blobs(n: int, k: int, seed: int, spread: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.normal(50 * c, spread, (len(part), 2)) for c, part in enumerate(np.array_split(range(n), k))]
    )


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_eigenvalues_are_those_of_the_dense_laplacian(n: int, seed: int) -> None:
    graph = neighbor_graph(np.random.default_rng(seed).normal(size=(n, 3)), 6)
    found = laplacian_spectrum(graph, 10, seed)
    laplacian = slow_laplacian(graph)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(laplacian)[:10], atol=1e-8)
    assert (np.diff(found.values) >= 0).all()
    np.testing.assert_allclose(laplacian @ found.vectors, found.vectors * found.values, atol=1e-6)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(10), atol=1e-8)
    assert found.components == 1


@pytest.mark.parametrize("n", [120, DENSE_BELOW + 60])
@pytest.mark.parametrize("k", [2, 3, 6, 9, 12])
def test_as_many_eigenvalues_are_zero_as_there_are_components(n: int, k: int) -> None:
    graph = neighbor_graph(blobs(n, k, seed=k), 6)
    found = laplacian_spectrum(graph, 10, 0)
    assert found.components == k
    assert int((found.values < 1e-8).sum()) == min(k, 10)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(slow_laplacian(graph))[:10], atol=1e-8)


@pytest.mark.parametrize("n", [60, DENSE_BELOW + 60])
def test_an_isolated_vertex_is_a_component_of_its_own(n: int) -> None:
    graph = neighbor_graph(np.random.default_rng(0).normal(size=(n, 3)), 6).tolil()
    for vertex in (3, n - 1):
        graph[vertex, :] = 0
        graph[:, vertex] = 0
    found = laplacian_spectrum(sparse.csr_array(graph), 5, 0)
    assert found.components == 3
    assert (found.values < 1e-8).tolist() == [True, True, True, False, False]
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(slow_laplacian(sparse.csr_array(graph)))[:5], atol=1e-8)


@pytest.mark.parametrize("n", SIZES)
def test_the_same_seed_gives_the_same_spectrum(n: int) -> None:
    graph = neighbor_graph(np.random.default_rng(0).normal(size=(n, 3)), 5)
    one, other = laplacian_spectrum(graph, 6, 4), laplacian_spectrum(graph, 6, 4)
    assert np.array_equal(one.values, other.values)
    assert np.array_equal(one.vectors, other.vectors)


def test_no_more_eigenvalues_than_samples_are_returned() -> None:
    found = laplacian_spectrum(neighbor_graph(np.arange(4.0)[:, None], 2), 10, 0)
    assert found.values.shape == (4,)
    assert found.vectors.shape == (4, 4)


def slow_gap(values: list[float], first: int) -> int:
    best, best_gap = first, -1.0
    for k in range(first, len(values)):
        if values[k] - values[k - 1] > best_gap:
            best, best_gap = k, values[k] - values[k - 1]
    return min(best, len(values))


@pytest.mark.parametrize("seed", range(20))
def test_the_gap_is_the_one_found_by_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.sort(rng.random(int(rng.integers(1, 11))))
    assert eigengap(values) == slow_gap(values.tolist(), 2)
    assert eigengap(values, first=1) == slow_gap(values.tolist(), 1)


def test_the_first_gap_is_skipped_unless_asked_for() -> None:
    values = np.array([0.0, 0.9, 0.91, 0.95])
    assert eigengap(values) == 3
    assert eigengap(values, first=1) == 1


@pytest.mark.parametrize(("values", "wanted"), [([0.0], 1), ([0.0, 0.3], 2), ([0.0, 0.3, 0.4], 2)])
def test_the_gap_of_few_values(values: list[float], wanted: int) -> None:
    assert eigengap(np.array(values)) == wanted


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_cluster_qr_gives_scikit_learns_labels(seed: int, k: int) -> None:
    vectors = np.linalg.qr(np.random.default_rng(seed).normal(size=(40, k)))[0]
    found = cluster_qr(vectors)
    assert found.dtype == np.int64
    assert adjusted_rand_score(found, sklearn_cluster_qr(vectors)) == 1


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_cluster_qr_recovers_planted_blocks_however_they_are_rotated(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(k), rng.integers(0, k, 60)])
    blocks = np.eye(k)[truth] / np.sqrt(np.bincount(truth))
    vectors = blocks @ np.linalg.qr(rng.normal(size=(k, k)))[0]
    found = cluster_qr(vectors)
    assert adjusted_rand_score(found, truth) == 1
    assert np.unique(found).tolist() == list(range(k))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("first", [1, 2])
def test_the_relative_gap_is_the_largest_ratio(seed: int, first: int) -> None:
    values = np.sort(np.random.default_rng(seed).random(10))
    best, wanted = 0.0, 0
    for k in range(first, 10):
        if values[k] / values[k - 1] > best:
            best, wanted = values[k] / values[k - 1], k
    assert eigengap(values, first, relative=True) == wanted


def test_the_relative_gap_of_measured_heatmaps_sees_the_one_deep_split() -> None:
    measured = np.array([0, 0.000149, 0.004528, 0.010109, 0.010617, 0.015033, 0.015174, 0.024749, 0.025246, 0.030672])
    assert eigengap(measured) == 7
    assert eigengap(measured, relative=True) == 2


def test_the_order_that_the_iteration_runs_in_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    vectors = np.concatenate([rng.normal(center, 1, (300, 6)) for center in (0, 4, 20)])
    graph = neighbor_graph(vectors, 8)
    plain = laplacian_spectrum(graph, 6, 0)
    turned = laplacian_spectrum(graph, 6, 0, rng.permutation(900))
    np.testing.assert_allclose(turned.values, plain.values, atol=1e-10)
    assert turned.components == plain.components
    assert turned.residual < 1e-8
    overlaps = np.linalg.svd(plain.vectors[:, :4].T @ turned.vectors[:, :4], compute_uv=False)
    np.testing.assert_allclose(overlaps, 1, atol=1e-6)
