from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from exmap.cluster import SpectralEigengap
from exmap.cluster.libraries import SEARCHES, search_by
from exmap.errors import SettingsError


def mixture() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 3000)
    return (rng.normal(size=(3, 30))[truth] + 0.4 * rng.normal(size=(3000, 30))).astype(np.float32), truth


@pytest.mark.parametrize("search", ["cells", "faiss"])
def test_each_search_finds_neighbours_that_give_the_same_clusters(search: str) -> None:
    if search == "faiss":
        pytest.importorskip("faiss")
    points, truth = mixture()
    found, order = search_by(search)(points, 9, 0)
    assert found.shape == (3000, 9)
    assert found.dtype == np.int32
    distances = ((points[:200, None] - points[None]) ** 2).sum(axis=2)
    nearest = np.argsort(distances, axis=1)[:, :9]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(nearest, found[:200], strict=True)]) > 7
    assert order is not None
    assert np.sort(order).tolist() == list(range(3000))
    ours = SpectralEigengap(3, exact_below=1, search=search, random_state=0).fit(points)
    assert adjusted_rand_score(ours.labels_, truth) == 1


def test_an_unknown_search_is_refused_before_any_work() -> None:
    with pytest.raises(SettingsError, match=r"unknown search 'fais' \(did you mean 'faiss'\?\)"):
        SpectralEigengap(search="fais").fit(np.eye(5))


@pytest.mark.parametrize("search", sorted(set(SEARCHES) - {"cells"}))
def test_a_library_that_is_not_installed_is_named(search: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("faiss", "cuvs", "cupy"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingsError, match=f"the search {search} needs the package {search}"):
        SpectralEigengap(search=search, exact_below=1).fit(mixture()[0][:50])


def test_small_data_do_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert len(SpectralEigengap(search="faiss").fit(mixture()[0][:60]).labels_) == 60
