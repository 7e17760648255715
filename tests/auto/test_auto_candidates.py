"""The groupings that are weighed: their names, what is merged, and odd heatmaps and features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted_strategies import Planted, planted
from sklearn.metrics import adjusted_rand_score

from exmap.auto import Candidate, find_candidates
from exmap.bench.methods import Part, parse_method
from exmap.config import ClusterSettings
from exmap.explain import reduce_heatmaps
from exmap.groups import ExMapGroups, GeorgeGroups
from exmap.records import Progress

SETTINGS = 6  # four spectral clusterings and two of k-means


@pytest.fixture(scope="module")
def known() -> Planted:
    return planted(shape=(1, 8, 8))


def of(known: Planted, **changes: object) -> tuple[Candidate, ...]:
    return find_candidates(replace(known.evidence, **changes), known.shape, seed=0).each


def source_of(name: str) -> Part:
    source = parse_method(f"{name}+dfr").source
    assert source is not None
    return source


def flat(known: Planted, maps: np.ndarray) -> np.ndarray:
    return maps.reshape(len(known.strategy), -1)


def test_every_name_is_a_source_that_the_bench_knows(known: Planted) -> None:
    candidates = find_candidates(known.evidence, known.shape, seed=0)
    assert len(candidates.names()) == 3 * 2 * SETTINGS + 2  # heatmaps of two sizes and features, in two scopes
    sources = [source_of(name) for name in candidates.names()]
    assert {part.name for part in sources} == {"exmap", "george", "error_set", "classes"}
    assert {dict(part.options).get("size") for part in sources if part.name == "exmap"} == {3, 4}
    assert len(set(map(str, sources))) == len(sources)


def test_a_name_says_how_the_grouping_is_made(known: Planted) -> None:
    maps = known.evidence.heatmaps.reshape(-1, *known.shape)
    looked_at = set()
    for name, candidate in find_candidates(known.evidence, known.shape, seed=0).names().items():
        part = source_of(name)
        options = dict(part.options)
        if part.name not in ("exmap", "george") or options.get("method") == "kmeans":
            continue  # k-means depends on its seed
        size = options.pop("size", None)
        clustering = ClusterSettings(**options)
        if part.name == "exmap":
            reduced = replace(known.evidence, heatmaps=reduce_heatmaps(maps, size))
            groups = ExMapGroups(clustering).infer(reduced, seed=5)
        else:
            groups = GeorgeGroups(clustering).infer(known.evidence, seed=5)
        assert adjusted_rand_score(groups.index, candidate.groups.index) > 0.98, name
        looked_at.add((part.name, clustering.scope))
    assert len(looked_at) == 4


def test_groupings_that_turn_out_alike_are_one_candidate(known: Planted) -> None:
    each = of(known)
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
    assert np.array_equal(first.groups.index, known.evidence.labels * 2 + known.strategy)


def test_other_numbers_of_the_same_groups_make_no_other_candidate(known: Planted) -> None:
    maps = known.evidence.heatmaps.reshape(-1, *known.shape).copy()
    turned = known.evidence.labels == 1
    maps[turned] = maps[turned][:, :, ::-1, ::-1]  # the larger cluster of a class is no longer the larger one of all
    names = {
        name: c.name
        for name, c in find_candidates(replace(known.evidence, heatmaps=flat(known, maps)), known.shape, seed=0)
        .names()
        .items()
    }
    assert names["exmap[size=4,scope=local,gap=relative]"] == names["exmap[size=4,scope=global,gap=relative]"]


def test_a_grouping_that_leaves_images_out_is_not_merged_with_one_that_does_not(known: Planted) -> None:
    usable = np.ones(len(known.strategy), dtype=bool)
    usable[known.evidence.labels == 0] = False  # what is left of heatmaps is one class, in one group or several
    constant = np.ones_like(known.evidence.heatmaps)
    each = of(known, usable=usable, heatmaps=constant)
    left_out = [c for c in each if (c.groups.index < 0).any()]
    assert any("exmap[size=4,scope=local,method=kmeans,n_clusters=2]" in (c.name, *c.also) for c in left_out)
    assert {c.representation.split()[0] for c in left_out} == {"heatmaps"}
    assert any("classes" in (c.name, *c.also) for c in each if c not in left_out)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_no_group_lies_in_two_classes(n_classes: int) -> None:
    known = planted(n_classes=n_classes, n=150)
    for candidate in of(known):
        groups = candidate.groups
        assert len(groups) == 150
        assert groups.source
        for group in np.unique(groups.index):
            (label,) = np.unique(known.evidence.labels[groups.index == group])
            assert known.evidence.class_names[label] in groups.names[group]


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((1, 3, 3), [3]), ((3, 3, 3), [3]), ((3, 56, 28), [14, 7, 3]), ((1, 4, 9), [3]), ((2, 2, 2), [2])],
)
def test_heatmaps_of_any_shape_are_reduced_to_at_most_three_sizes(
    shape: tuple[int, int, int], sizes: list[int]
) -> None:
    known = planted(n=80, shape=shape)
    candidates = find_candidates(known.evidence, shape, seed=0, features=False)
    found = {dict(source_of(name).options).get("size") for name in candidates.names()} - {None}
    assert found == set(sizes)
    assert {representation for representation, _ in candidates.graphs} == {f"heatmaps {size}" for size in sizes}
    assert np.array_equal(candidates.each[0].groups.index, known.evidence.labels * 2 + known.strategy)


def test_without_features_only_heatmaps_are_clustered(known: Planted) -> None:
    bare = replace(known.evidence, features=None)
    names = find_candidates(bare, known.shape, seed=0, features=False).names()
    assert {source_of(name).name for name in names} == {"exmap", "error_set", "classes"}


def test_features_of_one_column_are_clustered(known: Planted) -> None:
    column = known.evidence.features[:, :1]
    names = find_candidates(replace(known.evidence, features=column), known.shape, seed=0).names()
    assert "george[scope=local,method=kmeans,n_clusters=8]" in names


def test_heatmaps_and_features_that_are_all_the_same_leave_the_classes_and_the_errors(known: Planted) -> None:
    heatmaps, features = np.ones_like(known.evidence.heatmaps), np.ones_like(known.evidence.features)
    found = find_candidates(replace(known.evidence, heatmaps=heatmaps, features=features), known.shape, seed=0).names()
    for name in (
        "exmap[size=4,scope=local,method=kmeans,n_clusters=2]",
        "george[scope=global,method=kmeans,n_clusters=8]",
    ):
        assert adjusted_rand_score(found[name].groups.index, known.evidence.labels) == 1
    assert len({id(found[name]) for name in ("error_set", "classes")}) == 2


def test_images_without_a_heatmap_are_in_no_group_of_heatmaps(known: Planted) -> None:
    usable = np.ones(len(known.strategy), dtype=bool)
    usable[[0, 3, 8]] = False
    heatmaps = known.evidence.heatmaps.copy()
    heatmaps[~usable] = 0
    for candidate in of(known, usable=usable, heatmaps=heatmaps):
        left_out = np.flatnonzero(candidate.groups.index < 0).tolist()
        assert left_out == ([0, 3, 8] if candidate.judges else [])


def test_only_heatmaps_judge(known: Planted) -> None:
    each = find_candidates(known.evidence, known.shape, seed=0).names()
    assert {source_of(name).name for name, c in each.items() if c.judges and name == c.name} == {"exmap"}
    assert not each["classes"].judges


def test_a_class_too_small_to_cluster_is_one_group() -> None:
    known = planted(n=80)
    few = np.concatenate([np.flatnonzero(known.evidence.labels == 0), np.flatnonzero(known.evidence.labels == 1)[:3]])
    fields = ("labels", "predicted", "heatmaps", "usable", "features")
    evidence = replace(known.evidence, **{name: getattr(known.evidence, name)[few] for name in fields})
    for name, candidate in find_candidates(evidence, known.shape, seed=0).names().items():
        if "scope=local" in name:
            assert len(np.unique(candidate.groups.index[-3:])) == 1


def test_the_same_seed_gives_the_same_candidates(known: Planted) -> None:
    one, other = of(known), of(known)
    assert [(c.name, c.also) for c in one] == [(c.name, c.also) for c in other]
    assert all(np.array_equal(a.groups.index, b.groups.index) for a, b in zip(one, other, strict=True))


def test_graphs_are_of_each_class_and_size(known: Planted) -> None:
    graphs = find_candidates(known.evidence, known.shape, seed=0).graphs
    assert set(graphs) == {(f"heatmaps {size}", label) for size in (4, 3) for label in (0, 1)}
    for (_, label), (rows, graph) in graphs.items():
        assert np.array_equal(rows, np.flatnonzero(known.evidence.labels == label))
        assert graph.shape == (len(rows), len(rows))


def test_evidence_stays_as_it_is_and_progress_is_heard_of(known: Planted) -> None:
    before = {name: getattr(known.evidence, name).copy() for name in ("labels", "heatmaps", "features")}
    heard: list[Progress] = []
    find_candidates(known.evidence, known.shape, seed=0, listen=heard.append)
    assert all(np.array_equal(values, getattr(known.evidence, name)) for name, values in before.items())
    assert [progress.done for progress in heard] == [1, 2, 3, 4, 5, 6]
    assert {progress.total for progress in heard} == {6}
