"""Every source of groups behind one seam: what it is given, what it returns, and what it may not see."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from exmap.data import Task
from exmap.errors import DataError, SettingsError
from exmap.groups import (
    ClassGroups,
    ErrorSetGroups,
    ExMapGroups,
    GeorgeGroups,
    OracleGroups,
    RandomGroups,
    check_channels,
    make_source,
    needs_of,
    source_names,
)
from exmap.groups.source import TRUE_GROUPS
from exmap.methods import Part, parse_part
from exmap.records import Explained, Groups, Heatmaps, Outputs
from exmap.registry import SOURCES
from exmap.settings import ClusterSettings, ExplainSettings, GroupsSettings, Settings, change_settings

CLASSES = ("bar 0", "bar 1", "bar 2")
KMEANS = ClusterSettings(method="kmeans", n_clusters=3)
BROKEN = [4, 17]  # images without a finite heatmap


def outputs(predicted: np.ndarray, n_features: int = 5) -> Outputs:
    features = np.random.default_rng(0).normal(size=(len(predicted), n_features)).astype(np.float32)
    return Outputs(features, np.eye(3, dtype=np.float32)[predicted])


def maps_of(values: np.ndarray, **more: Any) -> Heatmaps:
    finite = ~np.isin(np.arange(len(values)), BROKEN)
    nothing = np.zeros(len(values), dtype=np.int64)
    return Heatmaps(values, nothing, nothing.astype(np.float32), finite, nothing.astype(bool), **more)


def bare(labels: list[int], predicted: list[int]) -> Explained:
    """A split that was not explained."""
    ids = tuple(map(str, range(len(labels))))
    return Explained("val", ids, np.array(labels), CLASSES, outputs(np.array(predicted)))


@pytest.fixture(scope="module")
def explained(three_classes: Task) -> Explained:
    """A classifier that follows the patch in the corner: its heatmaps are the patch, its features noise."""
    val = three_classes.val
    predicted = val.true_groups().index % 3
    heatmaps = val.images.batch(np.arange(len(val)))[:, :, :4, :4].copy()
    heatmaps[BROKEN] = 0
    return Explained("val", val.ids, val.labels, val.class_names, outputs(predicted), maps_of(heatmaps))


@pytest.fixture(scope="module")
def given(explained: Explained, three_classes: Task) -> Explained:
    """The same, with all that any source asks for."""
    groups = ExMapGroups(KMEANS).infer(explained, seed=0)
    return explained.with_given(
        exmap=groups,
        choice=dataclasses.replace(groups, source="auto"),
        reference=explained.outputs,
        twins=explained.predicted,
        truth=three_classes.val.true_groups(),
    )


def source(name: str) -> Any:
    settings = change_settings(Settings(), cluster__method="kmeans", cluster__n_clusters=3)
    return make_source(parse_part("eiil[steps=50]" if name == "eiil" else name), settings)


def test_those_of_the_settings_are_registered() -> None:
    assert set(GroupsSettings().sources) <= set(source_names())
    assert {"auto", "classes", "eiil", "error_set", "exmap", "george", "oracle", "random", "xrm"} <= set(source_names())


@pytest.mark.parametrize("name", source_names())
def test_a_source_gives_one_named_group_to_each_sample(name: str, given: Explained) -> None:
    for seed in (0, 3):
        groups = source(name).infer(given, seed=seed)
        assert groups.source == name
        assert len(groups) == len(given)
        assert groups.index.dtype == np.int64
        assert len(set(groups.names)) == len(groups.names)
        assert groups.counts().sum() == (groups.index >= 0).sum()
        for group in range(len(groups.names)):
            labels = np.unique(given.labels[groups.index == group])
            assert len(labels) <= 1  # a group lies inside one class, its name says which, and so does its record
            assert all(given.class_names[label] in groups.names[group] for label in labels)
            assert not groups.classes or set(labels) <= {groups.classes[group]}


@pytest.mark.parametrize("name", source_names())
def test_the_same_seed_gives_the_same_groups(name: str, given: Explained) -> None:
    for seed in (0, 1):
        assert source(name).infer(given, seed=seed) == source(name).infer(given, seed=seed)


@pytest.mark.parametrize("name", source_names())
def test_a_source_leaves_what_it_is_given_as_it_is(name: str, given: Explained) -> None:
    before = copy.deepcopy(given)
    source(name).infer(given, seed=0)
    assert np.array_equal(given.labels, before.labels)
    assert np.array_equal(given.features, before.features)
    assert np.array_equal(given.outputs.logits, before.outputs.logits)
    assert np.array_equal(given.maps().values, before.maps().values)
    assert given.given["exmap"] == before.given["exmap"]


@pytest.mark.parametrize("name", source_names())
def test_a_source_says_what_it_needs_and_does_with_that(name: str, given: Explained) -> None:
    made = source(name)
    asked = dataclasses.replace(given, given={need: given.given[need] for need in needs_of(made)})
    assert made.infer(asked, seed=0) == made.infer(given, seed=0)


def test_only_the_oracle_uses_true_groups(given: Explained) -> None:
    for name in source_names():
        wanted = ("true groups",) if name == "oracle" else ("class labels",)
        assert source(name).infer(given, seed=0).labels_used == wanted
        assert (TRUE_GROUPS in needs_of(source(name))) == (name == "oracle")


# True groups


@dataclass(frozen=True)
class Curious:
    """A source that asks for the true groups under another name."""

    name: ClassVar[str] = "curious"
    needs: ClassVar[tuple[str, ...]] = ("truth",)

    def infer(self, explained: Explained, *, seed: int) -> Groups:
        truth = explained.given["truth"]
        return Groups(truth.index, truth.names, self.name, ("class labels",))


class HonestOracle(Curious):
    """The same under a name that says so."""

    name: ClassVar[str] = "oracle of mine"


@pytest.fixture
def registered() -> Iterator[None]:
    for kind in (Curious, HonestOracle):
        SOURCES.register(kind)
    yield
    for kind in (Curious, HonestOracle):
        del SOURCES._own[kind.name]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["curious", f"{__name__}:Curious"])
def test_a_source_that_wants_the_true_groups_must_say_so_in_its_name(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_source(Part(name), Settings())
    assert str(caught.value) == (
        "only a source that says oracle in its name may see the true groups, but curious needs them; rename it, or "
        "infer its groups without them"
    )
    assert isinstance(make_source(Part("oracle of mine"), Settings()), HonestOracle)


def test_what_a_source_is_given_has_no_place_for_true_groups() -> None:
    fields = {field.name for field in dataclasses.fields(Explained)}
    assert fields == {"split", "ids", "labels", "class_names", "outputs", "heatmaps", "given"}


def test_the_oracle_returns_the_true_groups(given: Explained, three_classes: Task) -> None:
    truth = three_classes.val.true_groups()
    groups = OracleGroups().infer(given, seed=0)
    assert np.array_equal(groups.index, truth.index)
    assert groups.names == truth.names


# Clusters of heatmaps and of features


def test_exmap_finds_the_patch_within_each_class(explained: Explained, three_classes: Task) -> None:
    truth = three_classes.val.true_groups().index
    for scope in ("local", "global"):
        groups = ExMapGroups(KMEANS.model_copy(update={"scope": scope})).infer(explained, seed=0)
        assert groups.index[BROKEN].tolist() == [-1, -1]
        assert (groups.index >= 0).sum() == len(truth) - 2
        used = explained.maps().finite
        assert adjusted_rand_score(groups.index[used], truth[used]) > 0.95
        assert groups.clusters is not None
        assert groups.clusters.scope == scope


def test_george_reads_features_at_one_scale(explained: Explained) -> None:
    scale = np.random.default_rng(0).uniform(0.1, 50, (len(explained), 1)).astype(np.float32)
    scaled = dataclasses.replace(
        explained, outputs=dataclasses.replace(explained.outputs, features=explained.features * scale)
    )
    one, other = (GeorgeGroups(ClusterSettings(method="kmeans")).infer(e, seed=0) for e in (explained, scaled))
    assert adjusted_rand_score(one.index, other.index) > 0.95
    assert (one.index >= 0).all()


def test_a_feature_vector_of_zeros_is_grouped_like_any_other(explained: Explained) -> None:
    features = explained.features.copy()
    features[5] = 0
    changed = dataclasses.replace(explained, outputs=Outputs(features, explained.outputs.logits))
    assert (GeorgeGroups(ClusterSettings(method="kmeans")).infer(changed, seed=0).index >= 0).all()


def test_exmap_without_heatmaps_is_refused_and_george_needs_none() -> None:
    split = bare([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2])
    with pytest.raises(DataError, match="split val has no heatmaps, which are needed here; explain it first"):
        ExMapGroups().infer(split, seed=0)
    assert len(GeorgeGroups(ClusterSettings(method="kmeans")).infer(split, seed=0)) == 6


def test_an_estimator_of_ones_own_takes_the_place_of_the_clustering(explained: Explained) -> None:
    own = ExMapGroups(ClusterSettings(scope="local"), clusterer=KMeans(2, n_init=1)).infer(explained, seed=0)
    assert (own.source, len(own.names)) == ("exmap", 6)
    again = GeorgeGroups(clusterer=KMeans(2, n_init=1)).infer(explained, seed=0)
    assert (again.source, len(again.names)) == ("george", 6)


def test_channels_are_clustered_in_the_place_of_pixels(explained: Explained, three_classes: Task) -> None:
    truth = three_classes.val.true_groups()
    told_apart = np.eye(len(truth.names), dtype=np.float32)[truth.index]
    channels = KMEANS.model_copy(update={"representation": "channels"})
    noise = np.random.default_rng(1).normal(size=explained.maps().values.shape).astype(np.float32)
    first, other = (
        dataclasses.replace(explained, heatmaps=maps_of(values, channels=told_apart)) for values in (noise, noise + 1)
    )
    groups = ExMapGroups(channels).infer(first, seed=0)
    assert groups == ExMapGroups(channels).infer(other, seed=0)  # whatever the pixels
    assert groups.source == "exmap"
    assert groups.index[BROKEN].tolist() == [-1, -1]
    assert groups != ExMapGroups(KMEANS).infer(first, seed=0)


def test_channels_that_are_not_there_are_refused_with_the_setting_to_change(explained: Explained) -> None:
    chosen = ExMapGroups(KMEANS.model_copy(update={"representation": "channels"}))
    with pytest.raises(DataError, match=r"set explain.layer to auto or to a module's name"):
        chosen.infer(explained, seed=0)


def test_george_takes_no_representation(explained: Explained) -> None:
    george = GeorgeGroups(ClusterSettings(scope="local", representation="channels"))
    with pytest.raises(SettingsError, match=r"takes no representation, got 'channels'; leave .* out"):
        george.infer(explained, seed=0)


@pytest.mark.parametrize("changes", [{"explainer": "occlusion"}, {"layer": "none"}])
def test_channels_that_would_not_be_kept_are_refused_before_any_work(changes: dict[str, str]) -> None:
    channels = ClusterSettings(representation="channels")
    with pytest.raises(SettingsError, match=r"change these, or set cluster.representation=pixels"):
        check_channels(channels, ExplainSettings(**changes))
    check_channels(ClusterSettings(), ExplainSettings(**changes))
    check_channels(channels, ExplainSettings())


# Options


def test_options_stand_over_the_sections_of_the_settings() -> None:
    settings = change_settings(
        Settings(), cluster__method="kmeans", cluster__n_clusters=5, groups__george__gap="relative"
    )
    plain, chosen = (make_source(parse_part(text), settings) for text in ("exmap", "exmap[n_clusters=2,size=7]"))
    assert (plain.clustering.n_clusters, plain.size) == (5, None)
    assert (chosen.clustering.method, chosen.clustering.n_clusters, chosen.size) == ("kmeans", 2, 7)
    george = make_source(parse_part("george[n_clusters=4]"), settings)
    assert (george.clustering.gap, george.clustering.n_clusters) == ("relative", 4)


def test_random_groups_are_of_the_sizes_of_what_they_are_given() -> None:
    made = make_source(parse_part("random[n_clusters=4,method=kmeans]"), Settings())
    assert needs_of(made) == ("exmap[method=kmeans,n_clusters=4]",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exmapp", "did you mean 'exmap'"),
        ("exmap[size=0]", "explain.size"),
        ("exmap[representation=channels,size=7]", "representation=channels clusters none"),
        ("exmap[scope=globl]", "input should be 'local' or 'global'"),
        ("eiil[steps=many]", "option steps of the group source eiil"),
        ("classes[k=2]", "the group source classes has no options, got 'k'"),
    ],
)
def test_what_is_no_source_or_option_is_refused(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_source(parse_part(text), Settings())
    assert said in str(caught.value)


# Controls


@pytest.mark.parametrize("seed", range(4))
def test_random_groups_keep_the_sizes_within_each_class_and_nothing_else(seed: int, given: Explained) -> None:
    like = given.given["exmap"]
    groups = RandomGroups().infer(given, seed=seed)
    assert (groups.names, groups.classes, groups.parts) == (like.names, like.classes, like.parts)
    for label in range(3):
        members = given.labels == label
        assert sorted(groups.index[members]) == sorted(like.index[members])  # the unassigned included
        assert abs(adjusted_rand_score(groups.index[members], like.index[members])) < 0.2
    assert groups != RandomGroups().infer(given, seed=seed + 100)


def test_classes_are_groups_even_where_one_is_empty() -> None:
    groups = ClassGroups().infer(bare([0, 2, 2], [0, 0, 2]), seed=0)
    assert groups.names == ("class bar 0", "class bar 1", "class bar 2")
    assert groups.counts().tolist() == [1, 0, 2]
    assert groups.classes == (0, 1, 2)


def test_the_error_set_splits_each_class_into_right_and_wrong() -> None:
    groups = ErrorSetGroups().infer(bare([0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 0, 1]), seed=0)
    # Class 1 has no errors, class 2 nothing but errors: one group each.
    assert groups.names == ("class bar 0 / right", "class bar 0 / wrong", "class bar 1 / right", "class bar 2 / wrong")
    assert groups.index.tolist() == [0, 1, 2, 2, 2, 3, 3]
