"""What can be known of settings and data is refused before anything is trained, and leaves the run folder usable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from exmap.data import Task, build_task
from exmap.errors import ExMapError, SettingsError
from exmap.pipeline.checks import check_before_work, check_clustering
from exmap.pipeline.runs import open_run, run_until
from exmap.settings import ClusterSettings, Settings, load_settings

SMALL = ("train.epochs=1", "model.name=tiny", "groups.sources=[exmap]", "retrain.repeats=1")


@pytest.fixture(scope="module")
def task() -> Task:
    return build_task(load_settings("digits").data, load_settings("digits").images)


def settings(*overrides: str) -> Settings:
    return load_settings("digits", [*SMALL, *overrides])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("explain.size=99", "explain.size must be at most the image's side of 8 pixels, got 99; lower it"),
        ("explain.target=2", "explain.target must be predicted, true, margin, or a class in [0, 1], got 2"),
        ("cluster.n_clusters=100000", "n_clusters must be at most the number of images that are clustered together, "),
        ("cluster.n_neighbors=100000", "n_neighbors must be at most the number of images that are clustered together"),
        ("groups.sources=['exmap', 'george[n_clusters=9999]']", "n_clusters must be at most"),
        ("groups.sources=['exmap', 'exmap[size=9]']", "the source exmap[size=9] reduces heatmaps, which have 8 pixels"),
        (
            "explain.layer=nope",
            "the settings of explain do not fit the images or the model: layers must be the path of a module",
        ),
    ],
)
def test_what_data_or_model_do_not_allow_is_refused(override: str, said: str, task: Task) -> None:
    with pytest.raises(SettingsError) as caught:
        check_before_work(settings(override), task)
    assert str(caught.value).startswith(said)


def test_an_explainers_options_are_rehearsed(task: Task) -> None:
    with pytest.raises(SettingsError, match="stride must be at most the patch"):
        check_before_work(settings("explain.explainer=occlusion", "explain.patch=2", "explain.stride=3"), task)


def test_what_is_allowed_passes_and_draws_nothing_from_the_callers_generators(task: Task) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    check_before_work(settings("explain.size=8", "explain.target=1", "cluster.n_clusters=3"), task)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_classes_of_few_images_are_one_cluster_and_bound_nothing() -> None:
    labels = np.array([0] * 10 + [1] * 3)
    check_clustering(ClusterSettings(scope="local", n_clusters=10), labels)
    check_clustering(ClusterSettings(scope="global", n_clusters=13), labels)
    with pytest.raises(SettingsError, match="10 in the smallest class, got 11 for the groups of exmap; lower it"):
        check_clustering(ClusterSettings(scope="local", n_clusters=11), labels)


def test_a_refused_run_can_be_started_again_with_the_setting_corrected(tmp_path: Path) -> None:
    said: list[str] = []
    wrong, right = settings("explain.size=99"), settings("explain.size=4")
    with pytest.raises(SettingsError, match=r"explain\.size must be at most"):
        run_until(*open_run(tmp_path / "run", wrong), until="train", say=said.append)
    assert said == []
    run, opened = open_run(tmp_path / "run", right)
    run_until(run, opened, until="train", say=said.append)
    assert [line for line in said if "runtime" not in line] == ["train, classifier: started"]
    kept = run.settings()
    with pytest.raises(SettingsError, match=r"explain\.size must be at most"):
        open_run(tmp_path / "run", wrong, change=True)
    with pytest.raises(SettingsError, match="found no 'nope'"):
        open_run(tmp_path / "run", settings("explain.layer=nope"), change=True)
    assert run.settings() == kept
    with pytest.raises(ExMapError, match=r"made with other settings: explain\.size"):
        open_run(tmp_path / "run", settings("explain.size=5"))
