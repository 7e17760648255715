from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import check_estimator

from exmap.cluster import SampledKMeans
from exmap.errors import DataError


def blobs(n: int = 900, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three blobs in float32; the last holds 5 %."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, n, p=[0.6, 0.35, 0.05])
    return (8.0 * truth[:, None] + rng.normal(size=(n, 4))).astype(np.float32), truth


@pytest.mark.parametrize("seed", range(3))
def test_few_samples_get_scikit_learns_labels(seed: int) -> None:
    points, _ = blobs(seed=seed)
    ours = SampledKMeans(3, random_state=seed).fit(points)
    assert np.array_equal(ours.labels_, KMeans(3, n_init=10, random_state=seed).fit(points).labels_)
    assert ours.note_ == ""


@pytest.mark.parametrize("seed", range(3))
def test_samples_outside_the_fit_join_their_nearest_centre(seed: int) -> None:
    points, truth = blobs(seed=seed)
    ours = SampledKMeans(3, fit_most=200, random_state=seed).fit(points)
    assert adjusted_rand_score(ours.labels_, truth) > 0.99
    distances = ((points[:, None] - ours.cluster_centers_) ** 2).sum(axis=2)
    assert np.array_equal(ours.labels_, distances.argmin(axis=1))
    assert ours.note_ == "fitted on 200 of 900 samples; the others joined their nearest centre"


def test_samples_on_disk_get_the_same_labels(tmp_path: Path) -> None:
    points, _ = blobs()
    np.save(tmp_path / "v.npy", points)
    ours = SampledKMeans(3, fit_most=200, random_state=0)
    stored = ours.fit(np.load(tmp_path / "v.npy", mmap_mode="r")).labels_
    assert np.array_equal(stored, ours.fit(points).labels_)


def test_more_clusters_than_samples_in_the_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"n_clusters must lie in \[1, 5\] for 5 samples to fit, got 6"):
        SampledKMeans(6, fit_most=5).fit(blobs()[0])


def test_it_passes_scikit_learns_own_checks() -> None:
    results = check_estimator(SampledKMeans(), on_skip=None, on_fail=None)
    assert [r["check_name"] for r in results if r["status"] not in ("passed", "skipped")] == []
