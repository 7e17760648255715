from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import estimator_checks_generator

from exmap.cluster import UmapKMeans
from exmap.errors import DataError

# UMAP looks for tensorflow when it is imported, and says so by a warning that Python hides by default.
pytestmark = pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")

CHECKS = (
    "check_estimator_cloneable",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_fit1d",
    "check_fit2d_1sample",
    "check_estimators_nan_inf",
    "check_estimators_empty_data_messages",
    "check_n_features_in",
    "check_dict_unchanged",
    "check_dont_overwrite_parameters",
    "check_complex_data",
    "check_estimator_sparse_array",
)


def blobs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(3), 20))
    return 4.0 * truth[:, None] + rng.normal(size=(60, 4)), truth


@pytest.mark.parametrize("seed", range(2))
def test_separated_blobs_are_recovered(seed: int) -> None:
    points, truth = blobs(seed)
    ours = UmapKMeans(3, n_neighbors=15, random_state=seed).fit(points)
    assert adjusted_rand_score(ours.labels_, truth) > 0.9
    assert ours.embedding_.shape == (60, 2)
    assert ours.embedding_.dtype == np.float32


def test_labels_are_those_of_k_means_on_the_embedding() -> None:
    ours = UmapKMeans(3, n_neighbors=15, random_state=0).fit(blobs()[0])
    theirs = KMeans(3, n_init=10, random_state=0).fit(ours.embedding_)
    assert adjusted_rand_score(ours.labels_, theirs.labels_) > 0.99


def test_the_embedding_has_the_dimensions_asked_for() -> None:
    assert UmapKMeans(n_components=3, random_state=0).fit(blobs()[0]).embedding_.shape == (60, 3)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 9])
def test_few_samples_are_clustered(n: int) -> None:
    labels = UmapKMeans(2, random_state=0).fit(blobs()[0][:n]).labels_
    assert labels.shape == (n,)
    assert np.unique(labels).tolist() == [0, 1]


def test_identical_samples_are_clustered_without_an_error() -> None:
    assert UmapKMeans(2, random_state=0).fit(np.zeros((20, 3))).labels_.shape == (20,)


def test_one_cluster_is_possible() -> None:
    assert not UmapKMeans(1, random_state=0).fit(blobs()[0]).labels_.any()


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match=r"n_clusters must lie in \[1, 5\] for 5 samples, got 6"):
        UmapKMeans(6).fit(blobs()[0][:5])
    with pytest.raises(DataError, match=r"n_neighbors must lie in \[2, 4\] for 5 samples, got 5"):
        UmapKMeans(2, n_neighbors=5).fit(blobs()[0][:5])


def test_it_passes_scikit_learns_own_checks() -> None:
    ran = []
    for estimator, check in estimator_checks_generator(UmapKMeans(n_neighbors=5, random_state=0)):
        if check.func.__name__ in CHECKS:
            check(estimator)
            ran.append(check.func.__name__)
    assert sorted(set(ran)) == sorted(CHECKS)


def test_samples_that_are_not_embedded_join_the_nearest_one_that_is() -> None:
    rng = np.random.default_rng(0)
    truth = rng.permutation(np.repeat(np.arange(3), 50))
    points = 12.0 * truth[:, None] + rng.normal(size=(150, 4))
    ours = UmapKMeans(3, n_neighbors=10, fit_most=60, random_state=0).fit(points)
    assert ours.embedding_.shape == (60, 2)
    assert adjusted_rand_score(ours.labels_, truth) == 1
    assert ours.note_ == "embedded 60 of 150 samples; the others joined the nearest embedded one"
    assert UmapKMeans(3, n_neighbors=10, random_state=0).fit(points[:60]).note_ == ""
