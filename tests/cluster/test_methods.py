from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score

from exmap.cluster import clusterer_names, make_clusterer
from exmap.errors import SettingsError
from exmap.settings import ClusterSettings

# UMAP looks for tensorflow when it is imported, and says so by a warning that Python hides by default.
pytestmark = pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")

EVERY = pytest.mark.parametrize("name", clusterer_names())


def points(seed: int = 0, dtype: type = np.float64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.repeat([0.0, 4.0, 9.0], [25, 20, 15])
    return (centres[:, None] + rng.normal(0, 0.8, (60, 3))).astype(dtype)


def make(name: str, seed: int = 0, **settings: Any) -> Any:
    return make_clusterer(ClusterSettings(method=name, **settings), seed)


@EVERY
def test_an_estimator_can_be_cloned_and_its_settings_read_and_set(name: str) -> None:
    estimator = make(name, n_clusters=3)
    settings = estimator.get_params()
    assert settings["n_clusters"] == 3
    assert clone(estimator).get_params() == settings
    assert clone(estimator).set_params(n_clusters=4).get_params()["n_clusters"] == 4
    assert not hasattr(estimator, "labels_")


@EVERY
def test_fit_returns_itself_and_changes_neither_settings_nor_data(name: str) -> None:
    estimator, data = make(name), points()
    settings, kept = estimator.get_params(), data.copy()
    assert estimator.fit(data) is estimator
    assert estimator.get_params() == settings
    assert np.array_equal(data, kept)


@EVERY
@pytest.mark.parametrize("n_clusters", [None, 2, 3, 5])
def test_labels_count_from_zero_without_gaps(name: str, n_clusters: int | None) -> None:
    labels = make(name, n_clusters=n_clusters).fit(points()).labels_
    assert labels.shape == (60,)
    assert np.issubdtype(labels.dtype, np.integer)
    found = np.unique(labels)
    assert found.tolist() == list(range(len(found)))
    if n_clusters is not None:
        assert len(found) == n_clusters


@EVERY
def test_the_same_seed_gives_the_same_labels(name: str) -> None:
    one, other = make(name, seed=1).fit(points()), make(name, seed=1).fit(points())
    assert np.array_equal(one.labels_, other.labels_)
    assert np.array_equal(clone(one).fit(points()).labels_, one.labels_)
    assert np.array_equal(one.fit(points()).labels_, other.labels_)  # a second fit starts afresh


@EVERY
def test_fit_predict_returns_the_labels(name: str) -> None:
    estimator = make(name)
    assert np.array_equal(estimator.fit_predict(points()), estimator.labels_)


@EVERY
def test_both_float_widths_are_accepted_and_give_the_same_clusters(name: str) -> None:
    narrow = make(name, n_clusters=3).fit(points(dtype=np.float32)).labels_
    wide = make(name, n_clusters=3).fit(points(dtype=np.float32).astype(np.float64)).labels_
    assert adjusted_rand_score(narrow, wide) > 0.9


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    data = points()
    data[3, 1] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        make(name).fit(data)


@EVERY
def test_fewer_samples_than_clusters_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="n_clusters"):
        make(name, n_clusters=5).fit(points()[:4])


@EVERY
def test_no_global_generator_is_touched(name: str) -> None:
    before = np.random.get_state()[1].copy()
    make(name).fit(points())
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("name", ["kmeans", "umap_kmeans"])
def test_the_methods_that_cannot_choose_make_two_clusters(name: str) -> None:
    assert len(np.unique(make(name).fit(points()).labels_)) == 2


@pytest.mark.parametrize("name", ["spectral", "umap_kmeans"])
def test_the_number_of_neighbours_reaches_the_estimator(name: str) -> None:
    assert make(name, n_neighbors=7).get_params()["n_neighbors"] == 7


def test_the_names_are_the_three_methods() -> None:
    assert clusterer_names() == ["kmeans", "spectral", "umap_kmeans"]


def test_an_unknown_method_is_refused_with_the_closest_name() -> None:
    with pytest.raises(SettingsError, match=r"unknown clustering method 'spektral'.*did you mean 'spectral'"):
        make("spektral")
