from __future__ import annotations

import numpy as np
import pytest

from exmap.cluster import group_means, similarity_to_means
from exmap.cluster.rows import BLOCK
from exmap.errors import DataError


def some_vectors(n: int = 50) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 6)).astype(np.float32)


def test_means_are_those_of_each_groups_members() -> None:
    vectors, index = some_vectors(), np.arange(50) % 4 - 1
    means = group_means(vectors, index, 3)
    for group in range(3):
        np.testing.assert_allclose(means[group], vectors[index == group].mean(axis=0), atol=1e-6)


def test_an_empty_group_has_a_mean_of_zero_and_no_similarity() -> None:
    means = group_means(some_vectors(), np.zeros(50, dtype=np.int64), 2)
    assert not means[1].any()
    assert not similarity_to_means(some_vectors(), means)[:, 1].any()


def test_similarity_is_the_cosine() -> None:
    vectors, means = some_vectors(), some_vectors(3)
    expected = [[v @ m / (np.linalg.norm(v) * np.linalg.norm(m)) for m in means] for v in vectors]
    np.testing.assert_allclose(similarity_to_means(vectors, means), expected, atol=1e-6)


def test_more_vectors_than_are_read_at_once_give_the_same_as_one_by_one() -> None:
    width = 5000
    vectors = np.random.default_rng(0).normal(size=(BLOCK // width + 7, width)).astype(np.float32)
    index = np.arange(len(vectors)) % 2
    means = group_means(vectors, index, 2)
    np.testing.assert_allclose(means[1], vectors[index == 1].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(
        similarity_to_means(vectors, means)[-3:], similarity_to_means(vectors[-3:], means), atol=1e-6
    )


def test_a_vector_without_a_group_is_refused() -> None:
    with pytest.raises(DataError, match="each vector needs one group, got 50 vectors and 2 groups"):
        group_means(some_vectors(), np.zeros(2, dtype=np.int64), 1)
