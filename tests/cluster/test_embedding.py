from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from exmap.cluster.embedding import embed
from exmap.errors import NumericalError


def two_clouds(each: int, features: int = 120, apart: float = 8.0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], each)
    return (rng.normal(size=(2 * each, features)) + apart * label[:, None]).astype(np.float32), label


@pytest.mark.parametrize("each", [20, 260])  # principal components, and UMAP
def test_two_clouds_stay_two_and_the_same_seed_gives_the_same_plane(each: int) -> None:
    vectors, label = two_clouds(each)
    before = vectors.copy()
    one, again = embed(vectors, seed=3), embed(vectors, seed=3)
    assert (one.shape, one.dtype) == ((2 * each, 2), np.float32)
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(vectors, before)
    centres = np.stack([one[label == k].mean(axis=0) for k in (0, 1)])
    nearest = np.linalg.norm(one[:, None] - centres, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(nearest, label)


@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (2, 5), (5, 1), (5, 0), (501, 1), (600, 3)])
def test_few_samples_or_features_have_a_place_each(shape: tuple[int, int]) -> None:
    found = embed(np.random.default_rng(0).normal(size=shape).astype(np.float32), seed=0)
    assert found.shape == (shape[0], 2)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("samples", [5, 550])
def test_equal_vectors_lie_in_one_place(samples: int) -> None:
    np.testing.assert_array_equal(embed(np.ones((samples, 7), dtype=np.float32), seed=0), 0)


def test_vectors_that_are_not_finite_are_refused() -> None:
    vectors = np.ones((4, 3))
    vectors[[1, 2], 0] = np.nan, np.inf
    with pytest.raises(NumericalError, match="2 of 4"):
        embed(vectors, seed=0)
