"""The Python front door: the five lines, models and arrays of one's own, and what may not be looked at."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.cluster import KMeans
from torch import nn

import exmap
from exmap.api import evaluate
from exmap.auto import choose_groups
from exmap.data import Split, Task, TrueGroups
from exmap.errors import DataError, SettingsError
from exmap.runtime import torch_seed
from running import LITTLE, cheap_settings, finished_run


@pytest.fixture(scope="module")
def digits() -> Task:
    return exmap.load("digits")


@pytest.fixture(scope="module")
def model(digits: Task) -> nn.Module:
    return exmap.train(digits, cheap_settings())


@pytest.fixture(scope="module")
def groups(digits: Task, model: nn.Module) -> exmap.Groups:
    return exmap.ExMap(scope="global").infer(model, digits.val)


def fast_dfr() -> exmap.DFR:
    return exmap.DFR(strengths=(0.3,), subsamples=2)


def small_network(n_classes: int) -> nn.Module:
    with torch_seed(0):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, n_classes),
        )


# The five lines


def test_the_five_lines_give_a_table_of_the_true_groups(digits: Task, model: nn.Module, groups: exmap.Groups) -> None:
    fixed = exmap.DFR(tuning_splits=2, subsamples=3).fit(model, digits.val, groups)
    table = exmap.evaluate(fixed, digits.test)
    assert table.names == digits.test.true_groups().names
    assert "worst group" in str(table)


def test_repair_lifts_the_worst_group_of_the_digits(digits: Task, model: nn.Module, groups: exmap.Groups) -> None:
    fixed = exmap.DFR(tuning_splits=2, subsamples=3).fit(model, digits.val, groups)
    assert evaluate(fixed, digits.test).worst > evaluate(model, digits.test).worst + 0.3


def test_training_by_api_is_training_by_command(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> None:
    stored = load_file(finished_run(tmp_path_factory) / "train" / "model.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


def test_a_trained_model_comes_in_evaluation_mode_and_stays_as_it_is(digits: Task, model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = exmap.ExMap(scope="local", method="kmeans").infer(model, digits.val)
    fast_dfr().fit(model, digits.val, groups)
    evaluate(model, digits.test)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_infer_keeps_its_heatmaps_and_outputs(digits: Task, model: nn.Module) -> None:
    explainer = exmap.ExMap(size=4, n_clusters=3)
    groups = explainer.infer(model, digits.val)
    assert explainer.heatmaps_.values.shape == (450, 3, 4, 4)
    assert explainer.outputs_.features.shape == (450, 32)
    assert len(groups) == 450
    assert groups.source == "exmap"
    assert groups.labels_used == ("class labels",)


def test_the_same_seed_gives_the_same_groups(digits: Task, model: nn.Module, groups: exmap.Groups) -> None:
    again = exmap.ExMap(scope="global").infer(model, digits.val)
    assert np.array_equal(again.index, groups.index)
    assert again.names == groups.names


def test_work_is_heard_of(digits: Task, model: nn.Module) -> None:
    heard: list[str] = []
    exmap.ExMap(method="kmeans", size=4).infer(model, digits.val, listen=lambda progress: heard.append(progress.task))
    assert {"heatmaps (val)"} == set(heard)  # features are of the same pass


# A grouping chosen among many


@pytest.fixture(scope="module")
def trained_network() -> tuple[Task, nn.Module]:
    """A small network that tells two classes apart by themselves, whatever patch goes with them."""
    task = exmap.planted_shortcut(n_classes=2, sizes=(400, 240, 200), correlation=0.85, seed=3)
    network, images = small_network(2), torch.from_numpy(task.train.images.batch(np.arange(400)))
    labels = torch.from_numpy(task.train.labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return task, network.eval()


@pytest.fixture(scope="module")
def chosen(trained_network: tuple[Task, nn.Module]) -> tuple[exmap.ExMap, exmap.Groups]:
    finder = exmap.ExMap(auto=True, size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exmap.api.sources.choose_groups", partial(choose_groups, effort=LITTLE))
        return finder, finder.infer(trained_network[1], trained_network[0].val)


def test_auto_returns_the_groups_that_were_chosen(
    trained_network: tuple[Task, nn.Module], chosen: tuple[exmap.ExMap, exmap.Groups]
) -> None:
    finder, groups = chosen
    choice = finder.choice_
    assert groups is choice.groups
    assert (len(groups), groups.source, groups.labels_used) == (240, "auto", ("class labels",))
    assert choice.record.chosen == choice.record.candidates[0].name
    assert choice.record.judged_on == "held-out halves"
    assert set(choice.record.shortcut) == set(trained_network[0].val.class_names)
    assert finder.heatmaps_.values.shape == (240, 3, 4, 4)


def test_a_model_without_a_shortcut_is_not_to_be_repaired_but_can_be_retrained(
    trained_network: tuple[Task, nn.Module], chosen: tuple[exmap.ExMap, exmap.Groups]
) -> None:
    (task, network), (finder, groups) = trained_network, chosen
    assert not finder.choice_.repair
    assert not any(row.found for row in finder.choice_.record.shortcut.values())
    fixed = fast_dfr().fit(network, task.val, groups)
    assert evaluate(fixed, task.test).worst > 0.9


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "kmeans", "n_clusters": 2}, "would ignore method='kmeans', n_clusters=2; leave that out, or auto"),
        ({"scope": "local"}, "would ignore scope='local';"),
        ({"representation": "channels"}, "would ignore representation='channels';"),
        ({"gap": "absolute", "n_neighbors": 5}, "would ignore n_neighbors=5, gap='absolute';"),
    ],
)
def test_auto_refuses_a_clustering_that_it_would_ignore(
    three_classes: Task, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        exmap.ExMap(auto=True, **options).infer(small_network(3), three_classes.val)


def test_auto_looks_at_no_true_groups_and_says_where_it_cannot_choose(three_classes: Task) -> None:
    network = small_network(3)  # untrained
    first, again = exmap.ExMap(auto=True), exmap.ExMap(auto=True)
    groups = first.infer(network, three_classes.val)
    again.infer(network, with_other_truth(three_classes.val, "none"))
    assert first.choice_.record == again.choice_.record
    assert first.choice_.record.chosen is None
    assert not first.choice_.repair
    assert "no better than chance" in first.choice_.record.why
    assert np.array_equal(groups.index, three_classes.val.labels)


# What explains, and what of it is clustered


def test_channels_of_an_inner_layer_are_clustered_and_kept(three_classes: Task) -> None:
    network = small_network(3)
    finder = exmap.ExMap(method="kmeans", n_clusters=2, representation="channels", layer="3")
    groups = finder.infer(network, three_classes.val)
    assert finder.heatmaps_.channels is not None
    assert finder.heatmaps_.channels.shape == (150, 16)
    assert finder.heatmaps_.check["layer"] == "3"
    pixels = exmap.ExMap(method="kmeans", n_clusters=2).infer(network, three_classes.val)
    assert len(groups) == len(pixels) == 150
    assert not np.array_equal(groups.index, pixels.index)


@pytest.mark.parametrize("options", [{"explainer": "gradient_x_input"}, {"target": "margin"}, {"composite": "epsilon"}])
def test_heatmaps_are_made_as_asked_for(three_classes: Task, options: dict[str, Any]) -> None:
    network = small_network(3)
    usual, other = exmap.ExMap(method="kmeans", n_clusters=2), exmap.ExMap(method="kmeans", n_clusters=2, **options)
    for finder in (usual, other):
        assert len(finder.infer(network, three_classes.val)) == 150
    assert not np.allclose(usual.heatmaps_.values, other.heatmaps_.values, atol=1e-3)
    assert usual.heatmaps_.check["composite"] == "symmetric_gamma"


def test_without_a_last_linear_layer_groups_are_found_and_dfr_says_what_to_do(three_classes: Task) -> None:
    network = nn.Sequential(small_network(3), nn.Tanh())
    finder = exmap.ExMap(method="kmeans", n_clusters=2)
    groups = finder.infer(network, three_classes.val)
    assert np.array_equal(finder.outputs_.features, finder.outputs_.logits)
    assert len(exmap.GEORGE(method="kmeans", n_clusters=2).infer(network, three_classes.val)) == 150
    with pytest.raises(
        DataError, match=r"groups and report work as they are, and for retraining name a layer by head="
    ):
        fast_dfr().fit(network, three_classes.val, groups)


# Models and arrays of one's own


def test_a_network_and_arrays_of_ones_own_need_no_true_groups(three_classes: Task) -> None:
    splits = {
        split.name: exmap.array_split(split.images.array, split.labels, name=split.name)  # type: ignore[attr-defined]
        for split in (three_classes.val, three_classes.test)
    }
    network = small_network(3)
    groups = exmap.ExMap(method="kmeans", n_clusters=2).infer(network, splits["val"])
    fixed = fast_dfr().fit(network, splits["val"], groups)
    table = evaluate(fixed, splits["test"])
    assert table.names == ("0", "1", "2")
    assert table.count.tolist() == [50, 50, 50]
    assert table.mean > evaluate(network, splits["test"]).mean
    with pytest.raises(DataError, match="no true groups"):
        splits["test"].true_groups()


def test_accuracy_can_be_asked_for_by_any_groups_of_the_split(digits: Task, model: nn.Module) -> None:
    halves = exmap.Groups(np.arange(450) % 2, ("even", "odd"), "mine", ())
    table = evaluate(model, digits.test, halves)
    assert table.names == ("even", "odd")
    assert table.count.tolist() == [225, 225]


def test_a_network_with_other_classes_than_the_split_is_refused(three_classes: Task) -> None:
    for use in (exmap.ExMap().infer, exmap.GEORGE().infer, evaluate):
        with pytest.raises(DataError, match=r"outputs 5 classes, the data set has 3 .*which ones"):
            use(small_network(5), three_classes.val)


def test_probabilities_are_evaluated_as_the_logits_before_them(three_classes: Task) -> None:
    network = small_network(3)
    wrapped = nn.Sequential(network, nn.Softmax(dim=1))
    plain, other = (evaluate(model, three_classes.val) for model in (network, wrapped))
    assert plain.mean == other.mean


# True groups are for evaluation


def with_other_truth(split: Split, kind: str) -> Split:
    if kind == "none":
        return replace(split, truth=None)
    truth = split.true_groups()
    shuffled = np.random.default_rng(0).permutation(truth.index)
    return replace(split, truth=TrueGroups(shuffled, tuple(reversed(truth.names))))


@pytest.mark.parametrize("kind", ["shuffled", "none"])
@pytest.mark.parametrize("source", [exmap.ExMap(method="kmeans"), exmap.GEORGE(method="kmeans")])
def test_groups_are_the_same_whatever_the_true_groups(
    three_classes: Task, source: exmap.ExMap | exmap.GEORGE, kind: str
) -> None:
    network = small_network(3)
    found = source.infer(network, three_classes.val)
    again = source.infer(network, with_other_truth(three_classes.val, kind))
    assert np.array_equal(found.index, again.index)
    assert found.names == again.names


def test_a_given_clusterer_takes_the_place_of_the_method(three_classes: Task) -> None:
    network = small_network(3)
    groups = exmap.ExMap(scope="local", clusterer=KMeans(2, n_init=1)).infer(network, three_classes.val)
    assert len(groups.names) == 6
    assert groups.clusters is not None
    assert groups.clusters.scope == "local"
    with pytest.raises(SettingsError, match=r"a clusterer must be one of .*; give an instance"):
        exmap.ExMap(clusterer=KMeans).infer(network, three_classes.val)
    with pytest.raises(SettingsError, match="would ignore clusterer="):
        exmap.ExMap(auto=True, clusterer=KMeans(2)).infer(network, three_classes.val)


def test_training_is_the_same_without_true_groups(digits: Task, model: nn.Module) -> None:
    blind = replace(digits, **{s: with_other_truth(getattr(digits, s), "none") for s in ("train", "val", "test")})
    trained = exmap.train(blind, cheap_settings()).state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())


# Names


@pytest.mark.parametrize(
    ("name", "changes", "hint"),
    [
        ("digts", {}, "unknown data set 'digts' .did you mean 'digits'"),
        ("digits", {"corelation": 0.5}, "unknown setting 'data.corelation' .did you mean 'data.correlation'"),
        ("digits", {"correlation": 2}, "data.correlation: .* less than or equal to 1, got 2"),
    ],
)
def test_unknown_names_are_refused_with_the_closest_one(name: str, changes: dict[str, float], hint: str) -> None:
    with pytest.raises(SettingsError, match=hint):
        exmap.load(name, **changes)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        (exmap.ExMap(method="spectrl"), "did you mean 'spectral'"),
        (exmap.ExMap(composite="symetric_gamma"), "did you mean 'symmetric_gamma'"),
        (exmap.ExMap(explainer="lpr"), "unknown explainer 'lpr' .did you mean 'lrp'"),
        (exmap.ExMap(explainer=object()), "explainer must be one of .*or an object with explain"),
        (exmap.ExMap(target="margn"), "explain.target: must be predicted, true, margin or the number of a class"),
        (exmap.ExMap(scope="globl"), "cluster.scope: input should be 'local' or 'global'"),
        (exmap.ExMap(representation="channels", explainer="occlusion"), "or set cluster.representation=pixels"),
        (exmap.ExMap(target=3), r"explain.target must be .*\[0, 2\], got 3"),
        (exmap.GEORGE(method="kmean"), "did you mean 'kmeans'"),
    ],
)
def test_unknown_methods_are_refused_with_the_closest_one(
    three_classes: Task, source: exmap.ExMap | exmap.GEORGE, hint: str
) -> None:
    with pytest.raises(SettingsError, match=hint):
        source.infer(small_network(3), three_classes.val)


def test_load_takes_the_settings_of_the_data(digits: Task) -> None:
    fair = exmap.load("digits", correlation=0.5)
    assert np.array_equal(fair.train.labels, digits.train.labels)
    assert fair.train.true_groups().counts().min() > 200 > digits.train.true_groups().counts().min()


def test_cmnist_without_a_folder_says_where_to_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXMAP_DATA_DIR", raising=False)
    with pytest.raises(DataError, match="--data-dir"):
        exmap.load("cmnist")


def test_the_folder_of_the_data_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXMAP_DATA_DIR", str(tmp_path / "there"))
    with pytest.raises(DataError, match="there must hold mnist"):
        exmap.load("cmnist")
    with pytest.raises(DataError, match="elsewhere must hold mnist"):
        exmap.load("cmnist", data_dir=tmp_path / "elsewhere")


@pytest.mark.parametrize("name", exmap.__all__)
def test_every_public_name_is_there_and_is_no_module(name: str) -> None:
    assert not isinstance(getattr(exmap, name), ModuleType)
    assert name in dir(exmap)


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute"):
        exmap.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, exmap; print(sorted({'torch', 'numpy', 'sklearn', 'pydantic', 'zennit'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.strip() == "[]"
