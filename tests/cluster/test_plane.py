from __future__ import annotations

import numpy as np
import pytest

from exmap.cluster import plane
from exmap.cluster.plane import PCA_BELOW


def blobs(n: int, features: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    member = np.arange(n) % 3
    centres = rng.normal(0, 8, (3, features))
    return (centres[member] + rng.normal(0, 1, (n, features))).astype(np.float32), member


@pytest.mark.parametrize(("n", "method"), [(90, "PCA"), (PCA_BELOW, "UMAP")])
def test_vectors_that_are_alike_lie_together(n: int, method: str) -> None:
    vectors, member = blobs(n)
    places, used = plane(vectors, seed=0)
    assert used == method
    assert places.shape == (n, 2)
    assert places.dtype == np.float32
    centres = np.stack([places[member == k].mean(axis=0) for k in range(3)])
    nearest = ((places[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == member).mean() > 0.98


def test_the_same_seed_gives_the_same_map() -> None:
    vectors, _ = blobs(PCA_BELOW)
    assert np.array_equal(plane(vectors, seed=3)[0], plane(vectors, seed=3)[0])


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (5, 1), (3, 4)])
def test_very_few_vectors_or_features_are_placed_too(shape: tuple[int, int]) -> None:
    places, _ = plane(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), seed=0)
    assert places.shape == (shape[0], 2)
    assert np.isfinite(places).all()


def test_vectors_that_are_all_the_same_lie_in_one_place() -> None:
    assert not plane(np.ones((600, 5), dtype=np.float32), seed=0)[0].any()
