from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import check_estimator

from exmap.cluster import SpectralEigengap, neighbors, rows
from exmap.errors import DataError, SettingsError


def blobs(k: int, each: int, seed: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(k), each))
    angle = 2 * np.pi * truth / k
    centres = distance * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centres + rng.normal(size=(len(truth), 2)), truth


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("k", "each"), [(2, 60), (3, 40), (3, 190)])
def test_it_agrees_with_scikit_learn(k: int, each: int, seed: int) -> None:
    points, truth = blobs(k, each, seed, 3.0)  # near enough for one component
    ours = SpectralEigengap(k, n_neighbors=20, random_state=seed).fit(points)
    assert ours.n_components_ == 1
    theirs = SpectralClustering(
        k, affinity="nearest_neighbors", n_neighbors=20, assign_labels="cluster_qr", random_state=seed
    ).fit(points)
    assert adjusted_rand_score(ours.labels_, theirs.labels_) == pytest.approx(1, abs=0.06)
    assert adjusted_rand_score(ours.labels_, truth) > 0.7


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("each", [30, 200])
def test_the_gap_finds_the_planted_number_of_blobs(seed: int, each: int) -> None:
    points, truth = blobs(3, each, seed, 5.0)
    ours = SpectralEigengap(gap="absolute", n_neighbors=each // 2, random_state=seed).fit(points)
    assert ours.n_clusters_ == 3
    assert adjusted_rand_score(ours.labels_, truth) > 0.95
    assert ours.note_.startswith("3 clusters")


def test_the_note_says_that_a_disconnected_graph_only_counts_components() -> None:
    points, truth = blobs(3, 30, 0, 100.0)
    ours = SpectralEigengap(random_state=0).fit(points)
    assert ours.n_components_ >= 3
    assert "component" in ours.note_
    assert "raise n_neighbors" in ours.note_
    exact = SpectralEigengap(n_neighbors=20, random_state=0).fit(points)
    assert (
        exact.note_ == "3 clusters; the gap only counts the graph's components: raise n_neighbors, or give n_clusters"
    )
    assert adjusted_rand_score(exact.labels_, truth) == 1


@pytest.mark.parametrize("k", [2, 6, 9])
def test_far_blobs_are_told_apart_in_a_large_sample(k: int) -> None:
    points, truth = blobs(k, 600 // k, 1, 300.0)
    ours = SpectralEigengap(k, n_neighbors=12, random_state=0).fit(points)
    assert ours.n_components_ == k

    assert int((ours.eigenvalues_ < 1e-8).sum()) == k
    assert adjusted_rand_score(ours.labels_, truth) == 1


def test_the_note_names_the_gap_of_a_connected_graph() -> None:
    ours = SpectralEigengap(n_neighbors=20, random_state=0).fit(blobs(3, 40, 0, 3.0)[0])
    k = ours.n_clusters_
    below, above = ours.eigenvalues_[k - 1], ours.eigenvalues_[k]
    between = f"eigenvalues {k} ({below:.2g}) and {k + 1} ({above:.2g})"
    assert ours.note_ == f"{k} clusters: the relative gap between {between} is the largest"
    assert above / below == pytest.approx((ours.eigenvalues_[2:] / ours.eigenvalues_[1:-1]).max())


def test_an_unknown_gap_is_refused() -> None:
    with pytest.raises(SettingsError, match="did you mean 'relative'"):
        SpectralEigengap(gap="relativ").fit(blobs(2, 40, 0, 3.0)[0])


def test_a_given_number_of_clusters_is_taken() -> None:
    ours = SpectralEigengap(4, random_state=0).fit(blobs(2, 40, 0, 3.0)[0])
    assert ours.n_clusters_ == 4
    assert ours.note_ == "4 clusters were asked for"


def test_more_clusters_than_eigenvalues_looked_at_are_possible() -> None:
    points, truth = blobs(12, 15, 0, 100.0)
    ours = SpectralEigengap(12, n_neighbors=8, random_state=0).fit(points)
    assert adjusted_rand_score(ours.labels_, truth) == 1


@pytest.mark.parametrize("seed", range(3))
def test_duplicates_share_a_cluster(seed: int) -> None:
    corners = 10 * np.eye(4)
    truth = np.random.default_rng(seed).permutation(np.repeat(np.arange(4), 12))
    ours = SpectralEigengap(n_neighbors=12, random_state=seed).fit(corners[truth])
    assert adjusted_rand_score(ours.labels_, truth) == 1


def test_identical_samples_are_clustered_without_an_error() -> None:
    labels = SpectralEigengap(random_state=0).fit(np.zeros((20, 3))).labels_
    assert labels.shape == (20,)
    assert labels.min() == 0


def test_fewer_samples_than_clusters_are_refused() -> None:
    with pytest.raises(DataError, match=r"n_clusters must lie in \[1, 3\] for 3 samples, got 4"):
        SpectralEigengap(4).fit(np.arange(6.0).reshape(3, 2))
    with pytest.raises(DataError, match="got 0"):
        SpectralEigengap(0).fit(np.arange(6.0).reshape(3, 2))


def test_fewer_samples_than_neighbours_are_refused() -> None:
    with pytest.raises(DataError, match=r"n_neighbors must lie in \[2, 4\] for 4 samples"):
        SpectralEigengap(n_neighbors=5).fit(np.arange(8.0).reshape(4, 2))


def test_two_samples_are_the_fewest() -> None:
    ours = SpectralEigengap().fit(np.array([[0.0], [1.0]]))
    assert sorted(ours.labels_.tolist()) == [0, 1]
    assert "too few samples for a gap" in ours.note_
    with pytest.raises(ValueError, match="minimum of 2"):
        SpectralEigengap().fit(np.array([[0.0]]))


@pytest.mark.parametrize("random_state", [0, np.random.RandomState(0), None])
def test_any_random_state_of_scikit_learn_is_accepted(random_state: object) -> None:
    assert (
        len(SpectralEigengap(random_state=random_state).fit(np.random.default_rng(0).normal(size=(9, 2))).labels_) == 9
    )


@pytest.mark.parametrize("exact_below", [15_000, 1])
def test_it_passes_scikit_learns_own_checks(exact_below: int) -> None:
    results = check_estimator(SpectralEigengap(exact_below=exact_below), on_skip=None, on_fail=None)
    assert [r["check_name"] for r in results if r["status"] not in ("passed", "skipped")] == []
    assert sum(r["status"] == "passed" for r in results) > 30


def mixture(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four clusters in 200 dimensions, one of them with 1 % of the samples."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, n, p=[0.01, 0.33, 0.33, 0.33])
    points = 0.6 * rng.normal(size=(4, 200))[truth] + rng.normal(size=(n, 200))
    return points.astype(np.float32), truth


def test_the_approximate_search_finds_the_same_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "CANDIDATES", 1500)
    points, truth = mixture(4500, 0)
    exact, ours = (SpectralEigengap(4, exact_below=below, random_state=0).fit(points) for below in (15_000, 1))
    assert adjusted_rand_score(exact.labels_, ours.labels_) > 0.95
    assert adjusted_rand_score(ours.labels_, truth) > 0.95
    rare = truth == 0
    assert np.bincount(ours.labels_[rare]).max() > 0.95 * rare.sum()


def test_the_eigengap_is_the_same_with_the_approximate_search() -> None:
    points, _ = mixture(3000, 0)
    exact, ours = (SpectralEigengap(exact_below=below, random_state=0).fit(points) for below in (15_000, 1))
    assert exact.n_clusters_ == ours.n_clusters_
    assert ours.note_.endswith("; neighbours were searched approximately")
    assert "approximately" not in exact.note_
    assert ours.residual_ < 1e-6


def test_the_size_chooses_the_search() -> None:
    points, _ = mixture(300, 0)
    notes = [SpectralEigengap(exact_below=below, random_state=0).fit(points).note_ for below in (300, 301)]
    assert ["approximately" in note for note in notes] == [True, False]


def test_samples_on_disk_get_the_same_labels(tmp_path: Path) -> None:
    points, _ = mixture(1200, 0)
    np.save(tmp_path / "v.npy", points)
    for below in (1, 15_000):
        ours = SpectralEigengap(exact_below=below, random_state=0)
        stored = ours.fit(np.load(tmp_path / "v.npy", mmap_mode="r")).labels_
        assert np.array_equal(stored, ours.fit(points).labels_)


def test_components_are_counted_with_the_approximate_search() -> None:
    points, truth = blobs(3, 300, 0, 300.0)
    ours = SpectralEigengap(exact_below=1, n_neighbors=20, random_state=0).fit(points)
    assert ours.n_components_ == 3
    assert adjusted_rand_score(ours.labels_, truth) == 1
    assert "component" in ours.note_


@pytest.mark.parametrize("n", [2, 3, 20, 700])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_equal_samples_are_clustered_with_the_approximate_search(n: int, share: float) -> None:
    points = np.random.default_rng(0).normal(size=(n, 3))
    points[: int(share * n)] = 0
    one, other = (SpectralEigengap(exact_below=1, random_state=0).fit(points).labels_ for _ in range(2))
    assert np.array_equal(one, other)
    assert one.min() == 0


def test_fewer_samples_than_neighbours_are_refused_by_the_approximate_search() -> None:
    with pytest.raises(DataError, match=r"n_neighbors must lie in \[2, 4\] for 4 samples"):
        SpectralEigengap(n_neighbors=5, exact_below=1).fit(np.arange(8.0).reshape(4, 2))


@pytest.mark.parametrize("below", [1, 15_000])
def test_half_precision_on_disk_gives_the_same_clusters(below: int, tmp_path: Path) -> None:
    points, _ = mixture(1200, 3)
    np.save(tmp_path / "v.npy", points.astype(np.float16))
    stored = SpectralEigengap(4, exact_below=below, random_state=0).fit(np.load(tmp_path / "v.npy", mmap_mode="r"))
    plain = SpectralEigengap(4, exact_below=below, random_state=0).fit(points)
    assert adjusted_rand_score(stored.labels_, plain.labels_) > 0.98


def test_copies_on_disk_do_not_bring_all_rows_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points, _ = mixture(1200, 0)
    points[7] = points[900]
    monkeypatch.setattr(rows, "BLOCK", 50 * points.shape[1])
    np.save(tmp_path / "v.npy", points)
    asked: list[int] = []
    read = rows.SomeRows.__getitem__

    def counted(self: rows.SomeRows, which: slice | np.ndarray) -> np.ndarray:
        part = read(self, which)
        asked.append(len(part))
        return part

    monkeypatch.setattr(rows.SomeRows, "__getitem__", counted)
    monkeypatch.setattr(neighbors, "SAMPLE", 100)
    labels = SpectralEigengap(4, exact_below=1, random_state=0).fit(np.load(tmp_path / "v.npy", mmap_mode="r")).labels_
    assert labels[7] == labels[900]
    assert max(asked) <= 100
