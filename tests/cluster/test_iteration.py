from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from threadpoolctl import threadpool_limits

from exmap.cluster import iteration, laplacian_spectrum
from exmap.cluster.graph import neighbor_graph
from exmap.cluster.spectrum import Spectrum

MANY = 10**9


def ring(n: int) -> np.ndarray:
    """Points on a circle, whose graph has very small eigenvalues."""
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def mixture(n: int) -> np.ndarray:
    """Three parts in 40 dimensions: small eigenvalues, and all others close together."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(3, 40))[rng.integers(0, 3, n)] + rng.normal(size=(n, 40))


def apart(n: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    return rng.normal(size=(n, 3)) + 50 * rng.integers(0, 4, n)[:, None]


GRAPHS = {"ring": (ring, 8), "mixture": (mixture, 7), "apart": (apart, 6)}


def spectrum_of(kind: str, monkeypatch: pytest.MonkeyPatch, single_from: int, n: int = 1500) -> Spectrum:
    monkeypatch.setattr(iteration, "SINGLE_FROM", single_from)
    monkeypatch.setattr(iteration, "ROWS", 400)
    monkeypatch.setattr(iteration, "TOGETHER", 700)
    points, neighbors = GRAPHS[kind]
    return laplacian_spectrum(neighbor_graph(points(n), neighbors), 8, 0)


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_filter_finds_what_the_plain_iteration_finds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, filtered = (spectrum_of(kind, monkeypatch, single_from) for single_from in (MANY, 1))
    np.testing.assert_allclose(filtered.values, plain.values, rtol=1e-4, atol=1e-7)
    assert filtered.components == plain.components
    assert plain.residual < 1e-8
    assert filtered.residual < 1e-3
    k = int(np.argmax(np.diff(plain.values)[3:])) + 4  # vectors of nearly equal values may be turned
    overlaps = np.linalg.svd(plain.vectors[:, :k].T @ filtered.vectors[:, :k], compute_uv=False)
    np.testing.assert_allclose(overlaps, 1, atol=1e-5)
    np.testing.assert_allclose(filtered.vectors.T @ filtered.vectors, np.eye(8), atol=1e-6)


@pytest.mark.parametrize("single_from", [1, MANY])
def test_the_number_of_threads_changes_nothing(single_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        with threadpool_limits(threads, "blas"):
            found.append(spectrum_of("mixture", monkeypatch, single_from))
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0].vectors, found[1].vectors)
    np.testing.assert_array_equal(found[0].values, found[1].values)


def test_many_equal_eigenvalues_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stars have eigenvalues 1, 0 and -1 alone, so the bound is one of the wanted ones."""
    monkeypatch.setattr(iteration, "SINGLE_FROM", 1)
    star = np.zeros((20, 20))
    star[0, 1:] = star[1:, 0] = 1
    graph = sparse.csr_array(sparse.block_diag([star] * 40))
    found = laplacian_spectrum(graph, 45, 0)
    assert found.components == 40
    np.testing.assert_allclose(found.values, [0.0] * 40 + [1.0] * 5, rtol=1e-4, atol=1e-6)
