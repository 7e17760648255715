"""Copies of samples: the same seed gives the same clusters, and no cluster comes out of nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from exmap.auto import find_candidates
from exmap.cluster import SampledKMeans, SpectralEigengap, UmapKMeans, embed
from exmap.cluster.rows import distinct_rows
from exmap.errors import NumericalError
from exmap.groups import ExMapGroups, GeorgeGroups
from exmap.groups.assign import cluster_samples
from exmap.records import Clusters, Explained, Heatmaps, Outputs
from exmap.settings import ClusterSettings

METHODS = ("spectral", "kmeans", "umap_kmeans")


def clustered(vectors: NDArray[Any], seed: int = 0, **settings: Any) -> Clusters:
    labels = np.zeros(len(vectors), dtype=np.int64)
    return cluster_samples(vectors, labels, ClusterSettings.model_validate(settings), seed=seed)


def copied(kinds: int, copies: int, features: int = 30) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(kinds, features)).astype(np.float32).repeat(copies, 0)


def test_distinct_rows_give_the_vectors_again() -> None:
    vectors = copied(7, 5)[np.random.default_rng(1).permutation(35)]
    vectors[3, 0], vectors[4] = -0.0, vectors[3]
    vectors[4, 0] = 0.0
    first, place = distinct_rows(vectors)
    np.testing.assert_array_equal(vectors[first][place], vectors)
    assert (np.diff(first) > 0).all()
    assert place[3] == place[4]
    assert len(first) == len(np.unique(vectors, axis=0))
    assert [len(part) for part in distinct_rows(np.zeros((0, 4)))] == [0, 0]
    assert len(distinct_rows(np.zeros((5, 0)))[0]) == 1


@pytest.mark.parametrize("method", METHODS)
def test_copies_share_a_cluster_and_the_same_seed_gives_the_same_clusters(method: str) -> None:
    vectors = copied(30, 4)
    runs = [clustered(vectors, method=method, n_clusters=3).labels for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        runs += pool.map(lambda _: clustered(vectors, method=method, n_clusters=3).labels, range(2))
    for run in runs:
        np.testing.assert_array_equal(run, runs[0])
    assert (runs[0].reshape(30, 4) == runs[0][::4, None]).all()
    assert set(runs[0]) == {0, 1, 2}


def test_a_umap_of_copies_is_the_same_each_time() -> None:
    vectors = copied(30, 4)
    one, two = (UmapKMeans(3, random_state=0).fit(vectors) for _ in range(2))
    np.testing.assert_array_equal(one.embedding_, two.embedding_)
    plane = embed(copied(60, 10), seed=0)
    np.testing.assert_array_equal(plane, embed(copied(60, 10), seed=0))
    np.testing.assert_array_equal(plane.reshape(60, 10, 2), plane[::10, None].repeat(10, 1))


@pytest.mark.parametrize("settings", [{}, {"n_clusters": 4}, {"n_neighbors": 9}], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_vectors_that_are_all_equal_are_one_cluster(method: str, value: float, settings: dict[str, Any]) -> None:
    if method == "kmeans" and "n_neighbors" in settings:
        pytest.skip("k-means has no neighbours")
    found = clustered(np.full((60, 12), value, dtype=np.float32), method=method, **settings)
    np.testing.assert_array_equal(found.labels, 0)
    assert found.notes[0]["note"] == "59 of 60 samples are copies of others and share their cluster"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("kinds", "asked"), [(2, None), (2, 5), (3, 8), (3, 2), (6, 6), (5, 2), (12, 3)])
def test_there_are_never_more_clusters_than_different_vectors(method: str, kinds: int, asked: int | None) -> None:
    found = clustered(copied(kinds, 9), method=method, n_clusters=asked).labels
    assert len(np.unique(found)) <= min(kinds, asked or kinds)
    assert (found.reshape(kinds, 9) == found[::9, None]).all()


def test_more_neighbours_than_different_vectors_are_as_many_as_there_are() -> None:
    for method in ("spectral", "umap_kmeans"):
        assert clustered(copied(8, 10), method=method, n_neighbors=20, n_clusters=2).labels.max() == 1


def explained(maps: NDArray[np.floating]) -> Explained:
    n, none = len(maps), np.zeros(len(maps), dtype=np.float32)
    finite = np.isfinite(maps).all(axis=(1, 2, 3))
    values = np.where(finite[:, None, None, None], maps, 0).astype(np.float32)
    logits = np.eye(2, dtype=np.float32)[np.arange(n) % 2]
    held = Heatmaps(values, np.arange(n) % 2, none, finite, finite & ~values.any(axis=(1, 2, 3)))
    outputs = Outputs(np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32), logits)
    return Explained("val", tuple(map(str, range(n))), np.arange(n) % 2, ("a", "b"), outputs, held)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", ["global", "local"])
def test_zero_maps_give_the_classes_and_broken_ones_nothing(method: str, scope: str) -> None:
    source = ExMapGroups(ClusterSettings.model_validate({"method": method, "scope": scope}))
    groups = source.infer(explained(np.zeros((40, 1, 6, 6))), seed=0)
    assert groups.counts().tolist() == [20, 20]
    broken = source.infer(explained(np.full((40, 1, 6, 6), np.nan)), seed=0)
    assert (broken.index == -1).all()
    some = np.zeros((40, 1, 6, 6))
    some[:10] = np.nan
    assert source.infer(explained(some), seed=0).counts().tolist() == [15, 15]


def test_candidates_of_zero_maps_are_the_classes_alone() -> None:
    found = find_candidates(explained(np.zeros((60, 1, 8, 8))), seed=0, features=False)
    assert [candidate.groups.counts().max() for candidate in found.each] == [30] * len(found.each)
    assert found.graphs == {}


def test_copies_do_not_stand_apart_as_a_cluster_of_their_own() -> None:
    maps = np.random.default_rng(0).normal(size=(60, 1, 8, 8))
    maps[:20] = maps[0]
    found = find_candidates(explained(maps), seed=0, features=False)
    for rows, graph in found.graphs.values():
        assert len(rows) == graph.shape[0] == 21  # of 30 images of a class, ten are one
    for candidate in found.each:
        assert all(len(np.unique(candidate.groups.index[part:20:2])) == 1 for part in (0, 1))


def test_vectors_that_are_not_finite_are_still_refused() -> None:
    with pytest.raises(NumericalError, match="hold NaN or infinity"):
        clustered(np.full((5, 2), np.nan))


def test_estimators_by_themselves_make_no_clusters_of_copies_either() -> None:
    zeros = np.array([[0.0, -0.0], [-0.0, 0.0], [0.0, 0.0], [-0.0, -0.0]] * 2, dtype=np.float32)
    found = SpectralEigengap(random_state=0).fit(zeros)
    assert (found.labels_.tolist(), found.n_clusters_, found.note_) == ([0] * 8, 1, "1 cluster: all samples are equal")
    twice = SpectralEigengap(n_clusters=2, n_neighbors=5, random_state=0).fit(copied(2, 4))
    assert len(np.unique(twice.labels_)) == 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_numbers_whose_squares_cannot_be_held_are_clustered_without_a_warning(size: float) -> None:
    near = np.random.default_rng(0).normal(size=(20, 3))
    near[:10] += 20
    found = SampledKMeans(2, random_state=0).fit((near * size).astype(np.float32)).labels_
    if size > 1:
        assert len({*found[:10]}) == len({*found[10:]}) == 1
        assert found[0] != found[-1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "estimator", [SampledKMeans(2), SpectralEigengap(), UmapKMeans()], ids=lambda e: type(e).__name__
)
def test_infinite_numbers_are_refused_without_a_warning(estimator: Any) -> None:
    with pytest.raises(ValueError, match="infinity"):
        estimator.fit(np.array([[np.inf], [-np.inf], [1.0], [2.0]], dtype=np.float32))


def test_features_that_are_not_finite_are_in_no_group_of_george() -> None:
    known = explained(np.random.default_rng(0).normal(size=(40, 1, 6, 6)))
    known.outputs.features[3] = np.nan
    known.outputs.features[4, 1] = np.inf
    assert np.flatnonzero(GeorgeGroups().infer(known, seed=0).index < 0).tolist() == [3, 4]
