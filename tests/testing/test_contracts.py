"""What exmap.testing asks of other packages holds for our own things, all of them, as soon as they are registered."""

from __future__ import annotations

from typing import Any

import pytest

from exmap.registry import CLUSTERERS, DATASETS, EXPLAINERS, MODELS, SOURCES
from exmap.testing import check_clusterer, check_dataset, check_explainer, check_model_builder, check_source

# UMAP looks for tensorflow when it is imported, and says so by a warning that Python hides by default.
pytestmark = pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")

QUICK: dict[str, dict[str, Any]] = {"eiil": {"steps": 50}}


TIERS = {
    "umap_kmeans": pytest.mark.long,  # UMAP is compiled in each process
    "resnet34": pytest.mark.slow,  # large networks, of the kind of resnet18
    "resnet50": pytest.mark.slow,
}


def tiers(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=TIERS[name]) if name in TIERS else name for name in names]


@pytest.mark.parametrize("name", tiers(CLUSTERERS.names()))
def test_clusterers(name: str) -> None:
    if name.startswith("umap"):
        pytest.importorskip("umap", reason="needs exmap[umap]")
    check_clusterer(name)


@pytest.mark.parametrize("name", EXPLAINERS.names())
def test_explainers(name: str) -> None:
    check_explainer(name)


@pytest.mark.parametrize("name", tiers(MODELS.names()))
def test_models(name: str) -> None:
    check_model_builder(name, side=16)


@pytest.mark.parametrize("name", SOURCES.names())
def test_sources(name: str) -> None:
    check_source(name, **QUICK.get(name, {}))


def test_data_sets() -> None:
    assert "digits" in DATASETS.names()  # the others need files; tests/data/test_catalog.py has these
    check_dataset("digits")


def test_an_estimator_and_a_dotted_path_are_checked_as_a_name_is() -> None:
    from sklearn.cluster import AgglomerativeClustering

    check_clusterer(AgglomerativeClustering(3))
    check_clusterer(AgglomerativeClustering, n_clusters=3, linkage="single")
    check_clusterer("sklearn.cluster:HDBSCAN", min_cluster_size=5, copy=True)
