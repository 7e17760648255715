from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import exmap
from exmap.config import ClusterSettings, ExplainSettings, GroupsSettings
from exmap.data import Task
from exmap.errors import DataError, SettingsError
from exmap.groups import (
    ClassGroups,
    ErrorSetGroups,
    Evidence,
    ExMapGroups,
    GeorgeGroups,
    GroupSource,
    OracleGroups,
    RandomGroups,
    check_channels,
    source_names,
)
from exmap.records import Groups

CLASSES = ("bar 0", "bar 1", "bar 2")


@pytest.fixture(scope="module")
def evidence(three_classes: Task) -> Evidence:
    """A classifier that follows the patch in the corner: its heatmaps are the patch, its features noise."""
    val = three_classes.val
    truth = val.true_groups()
    images = val.images.batch(np.arange(len(val)))
    rng = np.random.default_rng(0)
    usable = np.ones(len(val), dtype=bool)
    usable[[4, 17]] = False
    heatmaps = images[:, :, :4, :4].reshape(len(val), -1).copy()
    heatmaps[~usable] = 0
    return Evidence(
        labels=val.labels,
        predicted=truth.index % 3,
        class_names=val.class_names,
        heatmaps=heatmaps,
        usable=usable,
        features=rng.normal(size=(len(val), 5)).astype(np.float32),
    )


def every_source(evidence: Evidence, task: Task) -> dict[str, GroupSource]:
    truth = task.val.true_groups()
    exmap_source = ExMapGroups(ClusterSettings(method="kmeans", n_clusters=3))
    sources: list[GroupSource] = [
        exmap_source,
        GeorgeGroups(),
        ClassGroups(),
        ErrorSetGroups(),
        RandomGroups(exmap_source.infer(evidence, seed=0)),
        OracleGroups(truth.index, truth.names),
    ]
    return {source.name: source for source in sources}


def test_the_names_are_those_of_every_source(evidence: Evidence, three_classes: Task) -> None:
    assert source_names() == sorted(every_source(evidence, three_classes))
    assert set(GroupsSettings().sources) == set(source_names())


@pytest.mark.parametrize("name", source_names())
def test_a_source_gives_one_named_group_to_each_sample(name: str, evidence: Evidence, three_classes: Task) -> None:
    source = every_source(evidence, three_classes)[name]
    for seed in (0, 3):
        groups = source.infer(evidence, seed=seed)
        assert groups.source == name
        assert len(groups) == len(evidence.labels)
        assert np.issubdtype(groups.index.dtype, np.integer)
        assert groups.index.min() >= -1
        assert groups.index.max() < len(groups.names)
        assert len(set(groups.names)) == len(groups.names)
        assert groups.counts().sum() == (groups.index >= 0).sum()
        for group in range(len(groups.names)):
            labels = np.unique(evidence.labels[groups.index == group])
            assert len(labels) <= 1  # a group lies inside one class, and its name says which
            assert all(evidence.class_names[label] in groups.names[group] for label in labels)


@pytest.mark.parametrize("name", source_names())
def test_the_same_seed_gives_the_same_groups(name: str, evidence: Evidence, three_classes: Task) -> None:
    source = every_source(evidence, three_classes)[name]
    for seed in (0, 1):
        one, other = source.infer(evidence, seed=seed), source.infer(evidence, seed=seed)
        assert np.array_equal(one.index, other.index)
        assert one.names == other.names


@pytest.mark.parametrize("name", source_names())
def test_a_source_leaves_its_evidence_as_it_is(name: str, evidence: Evidence, three_classes: Task) -> None:
    fields = ("labels", "predicted", "heatmaps", "usable", "features")
    before = {field: getattr(evidence, field).copy() for field in fields}
    every_source(evidence, three_classes)[name].infer(evidence, seed=0)
    assert all(np.array_equal(before[field], getattr(evidence, field)) for field in fields)


def test_only_the_oracle_uses_true_groups(evidence: Evidence, three_classes: Task) -> None:
    for name, source in every_source(evidence, three_classes).items():
        wanted = ("true groups",) if name == "oracle" else ("class labels",)
        assert source.infer(evidence, seed=0).labels_used == wanted


def test_the_oracle_returns_the_true_groups(evidence: Evidence, three_classes: Task) -> None:
    truth = three_classes.val.true_groups()
    groups = OracleGroups(truth.index, truth.names).infer(evidence, seed=0)
    assert np.array_equal(groups.index, truth.index)
    assert groups.names == truth.names


def test_exmap_finds_the_patch_within_each_class(evidence: Evidence, three_classes: Task) -> None:
    truth = three_classes.val.true_groups().index
    for scope in ("local", "global"):
        source = ExMapGroups(ClusterSettings(method="kmeans", n_clusters=3, scope=scope))
        groups = source.infer(evidence, seed=0)
        assert groups.index[[4, 17]].tolist() == [-1, -1]
        assert (groups.index >= 0).sum() == len(truth) - 2
        used = evidence.usable
        assert adjusted_rand_score(groups.index[used], truth[used]) > 0.95
        assert groups.clusters is not None
        assert groups.clusters.scope == scope


def test_george_reads_features_at_one_scale(evidence: Evidence) -> None:
    rng = np.random.default_rng(0)
    scaled = dataclasses.replace(
        evidence, features=evidence.features * rng.uniform(0.1, 50, (150, 1)).astype(np.float32)
    )
    one, other = (GeorgeGroups(ClusterSettings(method="kmeans")).infer(e, seed=0) for e in (evidence, scaled))
    assert adjusted_rand_score(one.index, other.index) > 0.95
    assert (one.index >= 0).all()


def test_a_feature_vector_of_zeros_is_grouped_like_any_other(evidence: Evidence) -> None:
    features = evidence.features.copy()
    features[5] = 0
    groups = GeorgeGroups(ClusterSettings(method="kmeans")).infer(
        dataclasses.replace(evidence, features=features), seed=0
    )
    assert (groups.index >= 0).all()


def test_exmap_without_heatmaps_and_george_without_features_are_refused(evidence: Evidence) -> None:
    bare = Evidence(evidence.labels, evidence.predicted, CLASSES)
    with pytest.raises(
        DataError, match="the exmap source needs heatmaps, and the evidence has none; explain the split"
    ):
        ExMapGroups().infer(bare, seed=0)
    with pytest.raises(DataError, match="the george source needs features, and the evidence has none; collect outputs"):
        GeorgeGroups().infer(bare, seed=0)


@pytest.mark.parametrize("seed", range(4))
def test_random_groups_keep_the_sizes_within_each_class_and_nothing_else(seed: int, evidence: Evidence) -> None:
    like = ExMapGroups(ClusterSettings(method="kmeans", n_clusters=3)).infer(evidence, seed=0)
    groups = RandomGroups(like).infer(evidence, seed=seed)
    assert groups.names == like.names
    for label in range(3):
        members = evidence.labels == label
        assert sorted(groups.index[members]) == sorted(like.index[members])  # the unassigned included
        assert abs(adjusted_rand_score(groups.index[members], like.index[members])) < 0.2
    assert not np.array_equal(groups.index, RandomGroups(like).infer(evidence, seed=seed + 100).index)


def test_classes_are_groups_even_where_one_is_empty() -> None:
    bare = Evidence(np.array([0, 2, 2]), np.array([0, 0, 2]), CLASSES)
    groups = ClassGroups().infer(bare, seed=0)
    assert groups.names == ("class bar 0", "class bar 1", "class bar 2")
    assert groups.counts().tolist() == [1, 0, 2]


def test_the_error_set_splits_each_class_into_right_and_wrong() -> None:
    labels, predicted = np.array([0, 0, 1, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 1, 0, 1])
    groups = ErrorSetGroups().infer(Evidence(labels, predicted, CLASSES), seed=0)
    # Class 1 has no errors, class 2 nothing but errors: one group each.
    assert groups.names == ("class bar 0 / right", "class bar 0 / wrong", "class bar 1 / right", "class bar 2 / wrong")
    assert groups.index.tolist() == [0, 1, 2, 2, 2, 3, 3]


def test_a_group_without_a_name_is_refused() -> None:
    with pytest.raises(DataError, match=r"group numbers must lie in \[-1, 0\], got 0 to 1"):
        Groups(np.array([0, 1]), ("a",), "mine", ())


def test_channels_are_clustered_in_the_place_of_pixels(evidence: Evidence, three_classes: Task) -> None:
    truth = three_classes.val.true_groups()
    told_apart = np.eye(len(truth.names), dtype=np.float32)[truth.index]
    kmeans = ClusterSettings(method="kmeans", n_clusters=3, representation="channels")
    noise = np.random.default_rng(1).normal(size=evidence.heatmaps.shape).astype(np.float32)
    given = dataclasses.replace(evidence, heatmaps=noise, channels=told_apart)
    groups = ExMapGroups(kmeans).infer(given, seed=0)
    same = ExMapGroups(kmeans).infer(dataclasses.replace(given, heatmaps=None), seed=0)
    assert np.array_equal(groups.index, same.index)
    assert groups.source == "exmap"
    assert groups.index[~evidence.usable].tolist() == [-1, -1]
    pixels = ExMapGroups(kmeans.model_copy(update={"representation": "pixels"})).infer(given, seed=0)
    assert not np.array_equal(pixels.index, groups.index)


def test_channels_that_are_not_there_are_refused_with_the_setting_to_change(evidence: Evidence) -> None:
    source = ExMapGroups(ClusterSettings(method="kmeans", n_clusters=3, representation="channels"))
    with pytest.raises(DataError, match=r"set explain.layer to auto or to a module's name"):
        source.infer(evidence, seed=0)


def test_george_takes_no_representation(evidence: Evidence) -> None:
    source = GeorgeGroups(ClusterSettings(scope="local", representation="channels"))
    with pytest.raises(SettingsError, match=r"takes no representation, got 'channels'; leave .* out"):
        source.infer(evidence, seed=0)


@pytest.mark.parametrize("changes", [{"explainer": "occlusion"}, {"layer": "none"}])
def test_channels_that_would_not_be_kept_are_refused_before_any_work(changes: dict[str, str]) -> None:
    channels = ClusterSettings(representation="channels")
    with pytest.raises(SettingsError, match=r"change these, or set cluster.representation=pixels"):
        check_channels(channels, ExplainSettings(**changes))
    check_channels(ClusterSettings(), ExplainSettings(**changes))
    check_channels(channels, ExplainSettings())


def test_evidence_has_no_place_for_true_groups() -> None:
    fields = {field.name for field in dataclasses.fields(Evidence)}
    assert fields == {"labels", "predicted", "class_names", "heatmaps", "usable", "features", "channels"}


def names_in(source: str) -> Iterator[str]:
    """Every identifier of a module, and every string that could name an attribute; prose is left out."""
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value


def test_no_module_before_evaluation_asks_for_true_groups() -> None:
    root = Path(exmap.__file__).parent
    paths = sorted(root.rglob("*.py"))
    assert len(paths) > 20
    asking = set()
    for path in paths:
        found = {"true_groups", "truth", "TrueGroups"} & set(names_in(path.read_text(encoding="utf-8")))
        if found - ({"TrueGroups"} if path.name == "__init__.py" else set()):
            asking.add(path.relative_to(root).as_posix())
    allowed = {path for path in asking if path.startswith(("data/", "evaluation/"))} | {"stages.py", "api.py"}
    allowed |= {"reporting.py", "report/page.py", "draw.py", "export/table.py"}  # they show what is evaluated
    assert asking <= allowed
    assert {"data/dataset.py", "stages.py"} <= asking  # the search itself works
