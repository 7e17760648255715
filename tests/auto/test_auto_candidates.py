"""The groupings that are weighed: their names, what is merged, and odd heatmaps and features."""

from __future__ import annotations

import numpy as np
import pytest
from planted_strategies import Planted, planted, with_features, with_maps
from sklearn.metrics import adjusted_rand_score

from exmap.auto import Candidate, Candidates, Effort, find_candidates
from exmap.explain import reduce_heatmaps
from exmap.groups import ExMapGroups, GeorgeGroups
from exmap.methods import Part, parse_method
from exmap.records import Explained, Progress
from exmap.settings import ClusterSettings

SETTINGS = 6  # four spectral clusterings and two of k-means


@pytest.fixture(scope="module")
def known() -> Planted:
    return planted(shape=(1, 8, 8))


@pytest.fixture(scope="module")
def found(known: Planted) -> Candidates:
    return find_candidates(known.explained, seed=0)


def candidates_of(explained: Explained) -> tuple[Candidate, ...]:
    return find_candidates(explained, seed=0).each


def source_of(name: str) -> Part:
    source = parse_method(f"{name}+dfr").source
    assert source is not None
    return source


def test_every_name_is_a_source_that_the_bench_knows(found: Candidates) -> None:
    assert len(found.names()) == 3 * 2 * SETTINGS + 2  # heatmaps of two sizes and features, in two scopes
    sources = [source_of(name) for name in found.names()]
    assert {part.name for part in sources} == {"exmap", "george", "error_set", "classes"}
    assert {dict(part.options).get("size") for part in sources if part.name == "exmap"} == {3, 4}
    assert len(set(map(str, sources))) == len(sources)


def test_a_name_says_how_the_grouping_is_made(known: Planted, found: Candidates) -> None:
    values = known.explained.maps().values
    looked_at = set()
    for name, candidate in found.names().items():
        part = source_of(name)
        options = dict(part.options)
        if part.name not in ("exmap", "george") or options.get("method") == "kmeans":
            continue  # k-means depends on its seed
        size = options.pop("size", None)
        clustering = ClusterSettings(**options)
        if part.name == "exmap":
            reduced = with_maps(known.explained, reduce_heatmaps(values, size).reshape(-1, 1, size, size))
            groups = ExMapGroups(clustering).infer(reduced, seed=5)
        else:
            groups = GeorgeGroups(clustering).infer(known.explained, seed=5)
        assert adjusted_rand_score(groups.index, candidate.groups.index) > 0.98, name
        looked_at.add((part.name, clustering.scope))
    assert len(looked_at) == 4


def test_groupings_that_turn_out_alike_are_one_candidate(known: Planted, found: Candidates) -> None:
    each = found.each
    partitions = [
        frozenset(frozenset(np.flatnonzero(candidate.groups.index == g)) for g in np.unique(candidate.groups.index))
        for candidate in each
    ]
    assert len(set(partitions)) == len(each)
    first = each[0]
    assert first.name == "exmap[size=4,scope=global,gap=relative]"
    assert {"exmap[size=3,scope=local,gap=relative]", "exmap[size=4,scope=local,method=kmeans,n_clusters=2]"} <= set(
        first.also
    )
    assert np.array_equal(first.groups.index, known.explained.labels * 2 + known.strategy)


def test_other_numbers_of_the_same_groups_make_no_other_candidate(known: Planted) -> None:
    maps = known.explained.maps().values.copy()
    turned = known.explained.labels == 1
    maps[turned] = maps[turned][:, :, ::-1, ::-1]  # the larger cluster of a class is no longer the larger one of all
    known_by = find_candidates(with_maps(known.explained, maps), seed=0).names()
    names = {name: candidate.name for name, candidate in known_by.items()}
    assert names["exmap[size=4,scope=local,gap=relative]"] == names["exmap[size=4,scope=global,gap=relative]"]


def test_a_grouping_that_leaves_images_out_is_not_merged_with_one_that_does_not(known: Planted) -> None:
    finite = known.explained.labels == 1  # what is left of heatmaps is one class, in one group or several
    constant = np.ones_like(known.explained.maps().values)
    each = candidates_of(with_maps(known.explained, constant, finite))
    left_out = [c for c in each if (c.groups.index < 0).any()]
    assert any("exmap[size=4,scope=local,method=kmeans,n_clusters=2]" in (c.name, *c.also) for c in left_out)
    assert {c.representation.split()[0] for c in left_out} == {"heatmaps"}
    assert any("classes" in (c.name, *c.also) for c in each if c not in left_out)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_no_group_lies_in_two_classes(n_classes: int) -> None:
    known = planted(n_classes=n_classes, n=150)
    for candidate in candidates_of(known.explained):
        groups = candidate.groups
        assert len(groups) == 150
        assert groups.source
        for group in np.unique(groups.index):
            (label,) = np.unique(known.explained.labels[groups.index == group])
            assert known.explained.class_names[label] in groups.names[group]
            assert groups.classes[group] == label


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((1, 3, 3), [3]), ((3, 3, 3), [3]), ((3, 56, 28), [14, 7, 3]), ((1, 4, 9), [3]), ((2, 2, 2), [2])],
)
def test_heatmaps_of_any_shape_are_reduced_to_at_most_three_sizes(
    shape: tuple[int, int, int], sizes: list[int]
) -> None:
    known = planted(n=80, shape=shape)
    candidates = find_candidates(known.explained, seed=0, features=False)
    found = {dict(source_of(name).options).get("size") for name in candidates.names()} - {None}
    assert found == set(sizes)
    assert {representation for representation, _ in candidates.graphs} == {f"heatmaps {size}" for size in sizes}
    assert np.array_equal(candidates.each[0].groups.index, known.explained.labels * 2 + known.strategy)


def test_without_features_only_heatmaps_are_clustered(known: Planted) -> None:
    names = find_candidates(known.explained, seed=0, features=False).names()
    assert {source_of(name).name for name in names} == {"exmap", "error_set", "classes"}


def test_features_of_one_column_are_clustered(known: Planted) -> None:
    column = known.explained.features[:, :1]
    names = find_candidates(with_features(known.explained, column), seed=0).names()
    assert "george[scope=local,method=kmeans,n_clusters=8]" in names


def test_heatmaps_and_features_that_are_all_the_same_leave_the_classes_and_the_errors(known: Planted) -> None:
    alike = with_maps(known.explained, np.ones_like(known.explained.maps().values))
    found = find_candidates(with_features(alike, np.ones_like(alike.features)), seed=0).names()
    for name in (
        "exmap[size=4,scope=local,method=kmeans,n_clusters=2]",
        "george[scope=global,method=kmeans,n_clusters=8]",
    ):
        assert adjusted_rand_score(found[name].groups.index, known.explained.labels) == 1
    assert len({id(found[name]) for name in ("error_set", "classes")}) == 2


def test_images_without_a_heatmap_are_in_no_group_of_heatmaps(known: Planted) -> None:
    finite = ~np.isin(np.arange(len(known.strategy)), [0, 3, 8])
    values = known.explained.maps().values * finite[:, None, None, None]
    for candidate in candidates_of(with_maps(known.explained, values, finite)):
        left_out = np.flatnonzero(candidate.groups.index < 0).tolist()
        assert left_out == ([0, 3, 8] if candidate.judges else [])


def test_only_heatmaps_judge(found: Candidates) -> None:
    each = found.names()
    assert {source_of(name).name for name, c in each.items() if c.judges and name == c.name} == {"exmap"}
    assert not each["classes"].judges


def test_a_class_too_small_to_cluster_is_one_group() -> None:
    known = planted(n=80)
    labels = known.explained.labels
    few = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:3]])
    for name, candidate in find_candidates(known.explained.rows(few), seed=0).names().items():
        if "scope=local" in name:
            assert len(np.unique(candidate.groups.index[-3:])) == 1


def test_the_same_seed_gives_the_same_candidates(known: Planted, found: Candidates) -> None:
    one, other = found.each, candidates_of(known.explained)
    assert [(c.name, c.also) for c in one] == [(c.name, c.also) for c in other]
    assert all(np.array_equal(a.groups.index, b.groups.index) for a, b in zip(one, other, strict=True))


def test_graphs_are_of_each_class_and_size(known: Planted, found: Candidates) -> None:
    graphs = found.graphs
    assert set(graphs) == {(f"heatmaps {size}", label) for size in (4, 3) for label in (0, 1)}
    for (_, label), (rows, graph) in graphs.items():
        assert np.array_equal(rows, np.flatnonzero(known.explained.labels == label))
        assert graph.shape == (len(rows), len(rows))


def test_what_is_explained_stays_as_it_is_and_progress_is_heard_of(known: Planted) -> None:
    explained = known.explained
    before = [values.copy() for values in (explained.labels, explained.maps().values, explained.features)]
    heard: list[Progress] = []
    find_candidates(explained, seed=0, listen=heard.append)
    after = (explained.labels, explained.maps().values, explained.features)
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert [progress.done for progress in heard] == [1, 2, 3, 4, 5, 6]
    assert {progress.total for progress in heard} == {6}


def test_with_less_effort_there_are_fewer_candidates_and_they_are_the_same(known: Planted, found: Candidates) -> None:
    little, all_of_them = Effort(sizes=1, clusterings=("gap=relative", "n_clusters=4")), found.names()
    fewer = find_candidates(known.explained, seed=0, effort=little).names()
    assert len(fewer) == 2 * 2 * 2 + 2  # heatmaps and features, two scopes, two clusterings
    for name, candidate in fewer.items():
        assert np.array_equal(candidate.groups.index, all_of_them[name].groups.index)
