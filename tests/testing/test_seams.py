"""What settings and objects reach: estimators, networks of other packages, options of explainers, functions as data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import HDBSCAN, KMeans
from torch import nn

from exmap.cluster import as_clusterer, make_clusterer
from exmap.data import Task, build_task, planted_shortcut
from exmap.data.catalog import entries, entry
from exmap.errors import DataError, SettingsError
from exmap.explain.heatmaps import compute_heatmaps
from exmap.model import build_model
from exmap.settings import ClusterSettings, DataSettings, ExplainSettings, ModelSettings
from exmap.testing.common import small_model


def refusal(make: Any, *given: Any, **named: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        make(*given, **named)
    return str(caught.value)


# --- clusterers --------------------------------------------------------------------------------------------------


def test_an_estimator_is_cloned_and_seeded_where_it_has_no_seed() -> None:
    mine = KMeans(3)
    made = as_clusterer(mine, 7)
    assert made is not mine
    assert (made.random_state, mine.random_state) == (7, None)
    assert as_clusterer(KMeans(3, random_state=1), 7).random_state == 1
    assert as_clusterer(HDBSCAN(copy=True), 7).get_params() == HDBSCAN(copy=True).get_params()


def test_an_object_without_parameters_is_copied() -> None:
    class Halves:
        def fit(self, X: np.ndarray) -> Halves:
            self.labels_ = np.arange(len(X)) % 2
            return self

    mine = Halves()
    as_clusterer(mine, 0).fit(np.zeros((4, 1)))
    assert not hasattr(mine, "labels_")


@pytest.mark.parametrize("wrong", [KMeans, "kmeans", 3])
def test_what_cannot_be_fitted_is_refused(wrong: Any) -> None:
    said = refusal(as_clusterer, wrong, 0)
    assert said.startswith("a clusterer must be one of kmeans, spectral, umap_kmeans, or an object with fit(X)")


def test_shared_settings_reach_the_methods_that_have_them() -> None:
    path = "sklearn.cluster:AgglomerativeClustering"
    made = make_clusterer(ClusterSettings(method=path, n_clusters=3, linkage="single"), 0)
    assert (made.n_clusters, made.linkage) == (3, "single")
    assert make_clusterer(ClusterSettings(method="kmeans", gap="absolute"), 0).n_clusters == 2
    assert make_clusterer(ClusterSettings(), 5).random_state == 5
    assert refusal(make_clusterer, ClusterSettings(method="kmeans", n_neighbors=4), 0) == (
        "the clustering method kmeans has no n_neighbors, got 4; leave cluster.n_neighbors out"
    )
    assert refusal(make_clusterer, ClusterSettings(method="sklearn.cluster:OPTICS", n_clusters=4), 0) == (
        "the clustering method sklearn.cluster:OPTICS has no n_clusters, got 4; leave cluster.n_clusters out"
    )


# --- models ------------------------------------------------------------------------------------------------------


def of_any_size(n_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, n_classes))


def of_one_size() -> nn.Module:
    return of_any_size(2)


def no_module() -> str:
    return "a network"


def test_a_function_at_a_dotted_path_builds_a_model_from_the_seed() -> None:
    settings = ModelSettings(name=f"{__name__}:of_any_size")
    first, same, other = (build_model(settings, 4, seed=seed) for seed in (1, 1, 2))
    assert first[1].out_features == 4
    assert torch.equal(first[1].weight, same[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)
    assert build_model(ModelSettings(name=f"{__name__}:of_one_size"), 4, seed=0)[1].out_features == 2


def test_the_tiny_model_has_32_features() -> None:
    model = build_model(ModelSettings(name="tiny", stem="3x3"), 5, seed=0)
    assert model[-1].weight.shape == (5, 32)
    for size in ((8, 8), (56, 28)):
        assert model(torch.zeros(2, 3, *size)).shape == (2, 5)


def test_what_builds_no_model_and_pretrained_weights_that_are_not_there_are_refused() -> None:
    with pytest.raises(DataError, match=r":no_module must return a torch\.nn\.Module, got str$"):
        build_model(ModelSettings(name=f"{__name__}:no_module"), 2, seed=0)
    assert refusal(build_model, ModelSettings(name="tiny", pretrained=True), 2, seed=0).startswith(
        "model.pretrained is for models of torchvision and timm, and tiny takes no settings"
    )
    assert "did you mean 'tiny'" in refusal(build_model, ModelSettings(name="tyny"), 2, seed=0)


# --- explainers and data -----------------------------------------------------------------------------------------


def test_options_of_the_settings_reach_the_explainer() -> None:
    split, model = planted_shortcut(3, (9, 9, 9), side=8).val, small_model()
    coarse, fine = (
        compute_heatmaps(model, split, ExplainSettings(explainer="occlusion", patch=patch)).values for patch in (8, 2)
    )
    assert len(np.unique(coarse[0].round(5))) == 1
    assert len(np.unique(fine[0].round(5))) > 1
    first, last = (
        compute_heatmaps(model, split, ExplainSettings(explainer="grad_cam", layer=layer)).values for layer in "16"
    )
    assert not np.allclose(first, last)


def bars(settings: DataSettings) -> Task:
    """Bars with patches."""
    return planted_shortcut(correlation=settings.correlation)


def test_a_function_is_a_data_set() -> None:
    path = f"{__name__}:bars"
    assert (entry(path).about, entry(path).origin) == ("Bars with patches.", "the package")
    assert build_task(DataSettings(name=path)).n_classes == 2
    assert dict(entries())["digits"].origin == "the package"
    assert refusal(entry, "string:digits").startswith("the data set string:digits must be an exmap.data.entry.Entry")
