from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.metrics import adjusted_rand_score

from exmap.cluster import SampledKMeans, make_clusterer, rows
from exmap.errors import DataError, NumericalError
from exmap.groups import cluster_samples, crossed_groups
from exmap.groups.assign import by_size
from exmap.runtime import child_seed
from exmap.settings import ClusterSettings

NEAR: dict[str, dict[str, int]] = {"spectral": {"n_neighbors": 8}, "kmeans": {}}


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three classes; each holds a large and a small blob, except class 2, which is a single blob."""
    rng = np.random.default_rng(seed)
    kinds = rng.permutation(np.repeat([0, 1, 2, 3, 4], [30, 12, 25, 15, 20]))
    labels = np.array([0, 0, 1, 1, 2])[kinds]
    centres = np.array([[0, 0], [9, 0], [0, 9], [9, 9], [0, 0]])
    return centres[kinds] + rng.normal(0, 0.5, (len(kinds), 2)), labels, kinds


def settings(method: str = "kmeans", **changes: Any) -> ClusterSettings:
    return ClusterSettings(method=method, **changes)


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
@pytest.mark.parametrize("seed", range(3))
def test_local_scope_clusters_inside_each_class(seed: int, method: str) -> None:
    vectors, labels, kinds = planted(seed)
    found = cluster_samples(vectors, labels, settings(method, scope="local", n_clusters=2, **NEAR[method]), seed=seed)
    assert found.scope == "local"
    for label in (0, 1):
        members = labels == label
        assert adjusted_rand_score(found.labels[members], kinds[members]) == 1
        assert np.bincount(found.labels[members])[0] > np.bincount(found.labels[members])[1]
    assert [note["samples_of"] for note in found.notes] == ["class 0", "class 1", "class 2"]
    assert [note["n_samples"] for note in found.notes] == [42, 40, 20]
    assert [note["n_clusters"] for note in found.notes] == [2, 2, 2]


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
@pytest.mark.parametrize("seed", range(3))
def test_global_scope_clusters_all_samples_together(seed: int, method: str) -> None:
    vectors, labels, kinds = planted(seed)
    found = cluster_samples(vectors, labels, settings(method, scope="global", n_clusters=4, **NEAR[method]), seed=seed)
    place = np.where(kinds == 4, 0, kinds)
    assert adjusted_rand_score(found.labels, place) == 1
    assert [(note["samples_of"], note["n_samples"]) for note in found.notes] == [("all", 102)]
    counts = np.bincount(found.labels)
    assert (np.diff(counts) <= 0).all()


def test_a_class_is_clustered_as_if_it_were_alone() -> None:
    vectors, labels, _ = planted()
    found = cluster_samples(vectors, labels, settings("spectral", scope="local"), seed=7)
    alone = make_clusterer(settings("spectral"), child_seed(7, "class 1")).fit(vectors[labels == 1])
    assert adjusted_rand_score(found.labels[labels == 1], alone.labels_) == 1
    moved = vectors.copy()
    moved[labels == 0] += 100
    again = cluster_samples(moved, labels, settings("spectral", scope="local"), seed=7)
    assert np.array_equal(again.labels[labels == 1], found.labels[labels == 1])


def test_each_class_has_a_seed_of_its_own_derived_from_its_name() -> None:
    vectors, labels = np.random.default_rng(0).random((150, 6)), np.arange(150) % 3
    found = cluster_samples(vectors, labels, settings(scope="local", n_clusters=6), seed=7)
    seeds = {name: child_seed(7, name) for name in ("class 1", "class 2")}
    wanted, other = (
        by_size(make_clusterer(settings(n_clusters=6), seed).fit(vectors[labels == 1]).labels_)
        for seed in seeds.values()
    )
    assert np.array_equal(found.labels[labels == 1], wanted)
    assert not np.array_equal(wanted, other)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_samples_that_are_not_usable_get_no_cluster_and_no_say(scope: str) -> None:
    vectors, labels, _ = planted()
    usable = np.random.default_rng(1).random(len(labels)) < 0.8
    broken = vectors.copy()
    broken[~usable] = np.nan
    found = cluster_samples(broken, labels, settings(scope=scope, n_clusters=2), seed=0, usable=usable)
    assert ((found.labels == -1) == ~usable).all()
    rest = cluster_samples(vectors[usable], labels[usable], settings(scope=scope, n_clusters=2), seed=0)
    assert np.array_equal(found.labels[usable], rest.labels)
    assert sum(note["n_samples"] for note in found.notes) == usable.sum()


@pytest.mark.parametrize("scope", ["local", "global"])
def test_nothing_usable_gives_no_clusters_and_no_error(scope: str) -> None:
    vectors, labels, _ = planted()
    found = cluster_samples(vectors, labels, settings(scope=scope), seed=0, usable=np.zeros(len(labels), dtype=bool))
    assert (found.labels == -1).all()


def test_vectors_on_disk_are_clustered_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels, _ = planted()
    np.save(tmp_path / "v.npy", vectors)
    stored = np.load(tmp_path / "v.npy", mmap_mode="r")
    seen = []

    def fit(self: SampledKMeans, X: np.ndarray) -> SampledKMeans:
        seen.append(X)
        self.labels_ = labels
        return self

    monkeypatch.setattr(SampledKMeans, "fit", fit)
    cluster_samples(stored, labels, settings(), seed=0)
    assert seen[0] is stored


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_vectors_on_disk_get_the_same_clusters(scope: str, method: str, tmp_path: Path) -> None:
    vectors, labels, _ = planted()
    np.save(tmp_path / "v.npy", vectors)
    stored = np.load(tmp_path / "v.npy", mmap_mode="r")
    one, other = (cluster_samples(v, labels, settings(method, scope=scope), seed=0) for v in (vectors, stored))
    assert np.array_equal(one.labels, other.labels)


def test_a_broken_vector_in_the_last_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK", 20)
    vectors, labels, _ = planted()
    vectors[-1, 0] = np.nan
    with pytest.raises(NumericalError, match="1 of 102 samples"):
        cluster_samples(vectors, labels, settings(), seed=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_usable_samples_must_be_finite(bad: float) -> None:
    vectors, labels, _ = planted()
    vectors[[3, 8], 1] = bad
    with pytest.raises(NumericalError, match="needs finite numbers, but 2 of 102 samples hold NaN or infinity"):
        cluster_samples(vectors, labels, settings(), seed=0)


def test_a_class_may_be_one_cluster() -> None:
    vectors, labels, _ = planted()
    found = cluster_samples(vectors, labels, settings(scope="local", n_clusters=1), seed=0)
    assert not found.labels.any()
    assert [note["n_clusters"] for note in found.notes] == [1, 1, 1]


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_tiny_class_is_one_cluster_and_says_so(n: int, method: str) -> None:
    vectors, labels, _ = planted()
    vectors = np.concatenate([vectors, np.eye(3)[:n, :2]])
    labels = np.concatenate([labels, np.full(n, 3)])
    found = cluster_samples(vectors, labels, settings(method, scope="local"), seed=0)
    assert found.labels[-n:].tolist() == [0] * n
    wanted = {"samples_of": "class 3", "n_samples": n, "n_clusters": 1, "note": "too few samples to cluster"}
    assert found.notes[3] == wanted


def test_more_clusters_than_a_class_has_samples_are_refused() -> None:
    vectors, labels, _ = planted()
    with pytest.raises(DataError, match="n_clusters"):
        cluster_samples(vectors, labels, settings("spectral", scope="local", n_clusters=21), seed=0)


@pytest.mark.parametrize("method", ["kmeans", "spectral"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_same_seed_gives_the_same_clusters(scope: str, method: str) -> None:
    vectors, labels, _ = planted()
    one, other = (cluster_samples(vectors, labels, settings(method, scope=scope), seed=3) for _ in range(2))
    assert np.array_equal(one.labels, other.labels)
    assert one.notes == other.notes


def test_spectral_notes_hold_eigenvalues_components_and_the_reason() -> None:
    vectors, labels, _ = planted()
    for note in cluster_samples(vectors, labels, settings("spectral", scope="local"), seed=0).notes:
        assert len(note["eigenvalues"]) == 10
        assert note["graph_components"] >= 1
        assert note["note"].startswith(f"{note['n_clusters']} clusters")


# An estimator that is given


@pytest.mark.parametrize("scope", ["local", "global"])
def test_an_estimator_is_cloned_for_each_fit(scope: str) -> None:
    vectors, labels, _ = planted()
    given = KMeans(2, n_init=3)
    found = cluster_samples(vectors, labels, settings(scope=scope), seed=0, clusterer=given)
    again = cluster_samples(vectors, labels, settings(scope=scope), seed=0, clusterer=given)
    assert np.array_equal(found.labels, again.labels)
    assert given.random_state is None
    assert not hasattr(given, "labels_")
    assert [note["n_clusters"] for note in found.notes] == [2] * (3 if scope == "local" else 1)


def test_what_an_estimator_takes_for_noise_is_in_no_cluster() -> None:
    vectors, labels, kinds = planted()
    vectors[7] = 1000
    found = cluster_samples(
        vectors, labels, settings(scope="global"), seed=0, clusterer=HDBSCAN(min_cluster_size=8, copy=True)
    )
    assert found.labels[7] == -1
    rest = found.labels >= 0
    assert rest.mean() > 0.9
    assert adjusted_rand_score(found.labels[rest], np.where(kinds == 4, 0, kinds)[rest]) > 0.95
    assert (np.diff(np.bincount(found.labels[rest])) <= 0).all()


@given(st.lists(st.integers(-2, 4), max_size=30))
def test_by_size_keeps_negative_labels_apart(labels: list[int]) -> None:
    found = by_size(np.array(labels, dtype=np.int64))
    assert [number == -1 for number in found] == [label < 0 for label in labels]
    pairs = {(label, number) for label, number in zip(labels, found.tolist(), strict=True) if label >= 0}
    assert len(pairs) == len({label for label, _ in pairs}) == len({number for _, number in pairs})


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_by_size_numbers_the_same_clusters_by_falling_size(labels: list[int]) -> None:
    found = by_size(np.array(labels))
    assert adjusted_rand_score(found, labels) == 1
    counts = np.bincount(found)
    assert (counts > 0).all()
    assert (np.diff(counts) <= 0).all()


# Crossed with the class


def test_groups_are_named_by_class_and_cluster_and_numbered_in_that_order() -> None:
    labels = np.array([1, 0, 2, 1, 0, 1])
    clusters = np.array([0, 1, 0, 2, 0, -1])
    groups = crossed_groups(labels, clusters, ("cat", "dog / wolf", "owl"), source="mine")
    assert groups.names == (
        "class cat / cluster 0",
        "class cat / cluster 1",
        "class dog / wolf / cluster 0",
        "class dog / wolf / cluster 2",
        "class owl / cluster 0",
    )
    assert groups.index.tolist() == [2, 1, 4, 3, 0, -1]
    assert (groups.classes, groups.parts) == ((0, 0, 1, 1, 2), (0, 1, 0, 2, 0))
    assert (groups.source, groups.labels_used, groups.clusters) == ("mine", ("class labels",), None)


SPLITS = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 5)), max_size=40)


@given(SPLITS, st.booleans())
def test_crossed_groups_are_a_partition_of_what_has_a_part(pairs: list[tuple[int, int]], named: bool) -> None:
    labels, parts = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    part_names = [f"part {n}" for n in range(6)] if named else None
    groups = crossed_groups(labels, parts, list("abcde"), source="mine", part_names=part_names)
    there = sorted({pair for pair in pairs if pair[1] >= 0})
    assert list(zip(groups.classes, groups.parts, strict=True)) == there  # groups without samples are not there
    wanted = [there.index(pair) if pair[1] >= 0 else -1 for pair in pairs]
    assert groups.index.tolist() == wanted
    assert groups.counts().sum() == sum(part >= 0 for part in parts)
    assert (groups.counts() > 0).all()
    word = "part" if named else "cluster"
    assert groups.names == tuple(f"class {'abcde'[label]} / {word} {part}" for label, part in there)


def test_no_assigned_sample_makes_no_group() -> None:
    groups = crossed_groups(np.array([0, 1]), np.array([-1, -1]), ("a", "b"), source="mine")
    assert groups.index.tolist() == [-1, -1]
    assert groups.names == groups.classes == groups.parts == ()
