"""Whether there is a shortcut at all: clusters that stand apart and are worse, and all that only looks like it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted_strategies import explained_of, planted, predicting
from scipy import sparse
from scipy.stats import beta, betabinom, binom

from exmap.auto import Candidate, Candidates, find_candidates, find_shortcuts
from exmap.auto.shortcut import ShortcutTest, conductance, upper_bound
from exmap.records import Explained, Groups
from exmap.results import ClassFinding
from exmap.settings import AutoSettings

Island = tuple[int, int]  # images, and how many of them are classified wrong


def ring(size: int) -> sparse.csr_array:
    eye = np.eye(size)
    return sparse.csr_array(np.roll(eye, 1, axis=1) + np.roll(eye, -1, axis=1))


def islands(*classes: tuple[Island, ...], bridges: int = 0) -> tuple[Candidates, Explained]:
    """Return each class as rings of images without an edge between them; `bridges` join the first two of a class."""
    labels, index, wrong, graphs, names = [], [], [], {}, []
    for label, parts in enumerate(classes):
        rows = np.arange(len(labels), len(labels) + sum(size for size, _ in parts))
        graph = sparse.lil_array(sparse.block_diag([ring(size) for size, _ in parts]))
        for number in range(bridges if len(parts) > 1 else 0):
            graph[number, parts[0][0] + number] = graph[parts[0][0] + number, number] = 1
        graphs["heatmaps 3", label] = (rows, sparse.csr_array(graph))
        for size, errors in parts:
            labels += [label] * size
            index += [len(names)] * size
            wrong += [True] * errors + [False] * (size - errors)
            names.append(f"class {label} / cluster {len(names)}")
    groups = Groups(np.array(index), tuple(names), "auto", ("class labels",))
    truth = np.array(labels)
    predicted = np.where(wrong, (truth + 1) % len(classes), truth)
    nothing, logits = np.zeros((len(truth), 1)), np.eye(max(len(classes), 2))[predicted]
    names = tuple(f"bar {label}" for label in range(len(classes)))
    explained = explained_of(truth, nothing.reshape(-1, 1, 1, 1), nothing, logits, class_names=names)
    return Candidates((Candidate("exmap[size=3]", "heatmaps 3", groups),), graphs), explained


def findings(test: ShortcutTest) -> list[ClassFinding]:
    return list(test.classes.values())


def verdicts(*classes: tuple[Island, ...], bridges: int = 0, **settings: float) -> ShortcutTest:
    return find_shortcuts(*islands(*classes, bridges=bridges), AutoSettings(**{"minority": 1, **settings}))


# Conductance


def test_conductance_of_two_triangles_joined_by_an_edge() -> None:
    graph = np.kron(np.eye(2), np.ones((3, 3)) - np.eye(3))
    graph[2, 3] = graph[3, 2] = 1
    members = np.arange(6) < 3
    assert conductance(sparse.csr_array(graph), members) == pytest.approx(1 / 7)
    assert conductance(sparse.csr_array(graph), ~members) == pytest.approx(1 / 7)
    assert conductance(sparse.csr_array(graph * 0.5), members) == pytest.approx(1 / 7)
    graph[2, 3] = graph[3, 2] = 3  # a heavier edge
    assert conductance(sparse.csr_array(graph), members) == pytest.approx(3 / 9)


def test_conductance_is_over_the_lighter_side() -> None:
    path = sparse.csr_array(np.diag(np.ones(4), 1) + np.diag(np.ones(4), -1))
    assert conductance(path, np.arange(5) < 1) == 1
    assert conductance(path, np.arange(5) < 2) == pytest.approx(1 / 3)
    assert conductance(path, np.array([True, False, True, False, True])) == 1


def test_conductance_of_what_no_edge_leaves_is_nothing() -> None:
    graph = sparse.csr_array(sparse.block_diag([ring(4), ring(7)]))
    assert conductance(graph, np.arange(11) < 4) == 0
    assert conductance(graph, np.arange(11) < 3) > 0


def test_a_side_without_edges_does_not_stand_apart() -> None:
    graph = sparse.csr_array(sparse.block_diag([ring(5), sparse.csr_array((2, 2))]))
    assert conductance(graph, np.arange(7) >= 5) == 1  # isolated vertices
    assert conductance(graph, np.zeros(7, dtype=bool)) == 1
    assert conductance(graph, np.ones(7, dtype=bool)) == 1
    assert conductance(sparse.csr_array((3, 3)), np.arange(3) < 1) == 1


# The test


def test_a_separate_cluster_with_many_errors_is_found() -> None:
    test = verdicts(((20, 10), (100, 4)), ((60, 3), (60, 3)))
    assert test.found
    assert test.tested == 4
    found, other = findings(test)
    assert list(test.classes) == ["bar 0", "bar 1"]
    assert (found.found, found.images) == (True, 20)
    assert found.effect == pytest.approx(0.5 - 0.04)
    assert 0 < found.effect_low < found.effect
    assert found.conductance == 0
    assert found.candidate == "exmap[size=3]"
    assert found.why == "10 of 20 images in a cluster that stands apart are classified wrong, 4 of the other 100."
    assert not other.found
    assert other.p_value == 1


def test_the_p_value_is_that_of_twice_the_errors_times_the_number_of_tests() -> None:
    rest = beta(4.5, 96.5)  # what the rate of the rest may be
    one = rest.expect(lambda rate: binom.sf(9, 20, min(2 * rate, 1)))  # 10 or more of 20, at twice that
    assert verdicts(((20, 10), (100, 4)), ((50, 2),)).classes["bar 0"].p_value == pytest.approx(2 * one, rel=0.01)
    more = verdicts(((20, 10), (100, 4)), ((20, 0), (20, 1), (20, 1)))
    assert more.tested == 5
    assert more.classes["bar 0"].p_value == pytest.approx(5 * one, rel=0.01)


@pytest.mark.parametrize(("wrong", "others_wrong"), [(3, 2), (6, 15), (12, 9)])
def test_at_a_ratio_of_one_the_p_value_is_that_of_a_beta_binomial(wrong: int, others_wrong: int) -> None:
    found = verdicts(((30, wrong), (90, others_wrong)), ((50, 2),), ratio=1).classes["bar 0"]
    exact = betabinom.sf(wrong - 1, 30, others_wrong + 0.5, 90 - others_wrong + 0.5)
    assert found.p_value == pytest.approx(min(2 * exact, 1), rel=0.01)


def test_few_images_beside_a_cluster_do_not_make_it_a_shortcut() -> None:
    # No error among 18 images does not say that errors are rare among them.
    assert not verdicts(((102, 13), (18, 0)), ((50, 2),)).found


def test_many_tests_make_a_finding_none() -> None:
    few = verdicts(((20, 9), (100, 8)), ((50, 2),))
    assert few.found
    many = verdicts(((20, 9), (100, 8)), tuple((10, 1) for _ in range(12)))
    assert many.classes["bar 0"].p_value > few.classes["bar 0"].p_value
    assert not many.found


def test_a_separate_cluster_of_the_same_errors_is_none() -> None:
    test = verdicts(((30, 6), (90, 18)), ((30, 6), (90, 18)))
    assert not test.found
    assert test.tested == 4
    assert all(verdict.p_value > 0.5 for verdict in findings(test))


def test_the_ratio_and_the_level_are_those_of_the_settings() -> None:
    parts = ((40, 16), (200, 20)), ((50, 2),)  # four times the errors
    assert verdicts(*parts).found
    assert not verdicts(*parts, ratio=4).found
    assert not verdicts(*parts, level=1e-9).found


def test_a_cluster_that_many_edges_leave_is_not_tested() -> None:
    parts = ((40, 30), (200, 4)), ((50, 2),)
    assert verdicts(*parts, bridges=1).found  # 1 of 81 edges
    joined = verdicts(*parts, bridges=4)
    assert joined.tested == 0
    assert joined.classes["bar 0"].why.startswith("Its heatmaps form no small cluster that stands apart")
    assert joined.classes["bar 0"].p_value == 1
    assert verdicts(*parts, bridges=4, conductance=0.1).found


def test_a_cluster_of_much_of_its_class_is_not_tested() -> None:
    parts = ((35, 20), (65, 3)), ((50, 2),)
    assert verdicts(*parts, minority=0.35).found
    assert verdicts(*parts, minority=0.34).tested == 0
    assert find_shortcuts(*islands(*parts)).tested == 1  # by default, that of 35 images alone


def test_clusters_of_too_few_images_are_not_tested() -> None:
    assert verdicts(((7, 7), (100, 1)), ((50, 2),)).tested == 0
    assert verdicts(((8, 8), (100, 1)), ((50, 2),)).tested == 2
    assert verdicts(((8, 8), (7, 0)), ((50, 2),)).tested == 0


def test_a_class_without_errors_has_no_group_that_is_worse() -> None:
    verdict = verdicts(((20, 0), (100, 0)), ((50, 2),)).classes["bar 0"]
    assert not verdict.found
    assert verdict.why.startswith("None of its 120 images is classified wrong")


def test_a_cluster_with_fewer_errors_than_the_rest_is_not_found_but_the_rest_is() -> None:
    verdict = verdicts(((100, 0), (20, 12)), ((50, 2),)).classes["bar 0"]
    assert (verdict.found, verdict.images) == (True, 20)


def test_a_cluster_that_two_groupings_share_is_tested_once() -> None:
    candidates, explained = islands(((20, 10), (100, 4)), ((50, 2),))
    again = replace(candidates.each[0], name="exmap[size=3,scope=local]")
    twice = Candidates((*candidates.each, again), candidates.graphs)
    settings = AutoSettings(minority=1)
    assert find_shortcuts(twice, explained, settings).tested == 2
    assert find_shortcuts(candidates, explained, settings).tested == 2


def test_groups_of_features_are_not_tested() -> None:
    candidates, explained = islands(((20, 10), (100, 4)), ((50, 2),))
    features = Candidates((replace(candidates.each[0], representation="features"),), candidates.graphs)
    assert find_shortcuts(features, explained).tested == 0


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_errors_that_know_nothing_of_clusters_rarely_alarm(rate: float) -> None:
    candidates, explained = islands(((12, 0), (40, 0), (100, 0)), ((30, 0), (90, 0)), ((60, 0), (60, 0)))
    rng, draws = np.random.default_rng(7), 200
    settings = AutoSettings(ratio=1, minority=1)  # the strictest: any excess counts
    alarms = 0
    for _ in range(draws):
        wrong = rng.random(len(explained)) < rate
        drawn = predicting(explained, np.where(wrong, (explained.labels + 1) % 3, explained.labels))
        alarms += find_shortcuts(candidates, drawn, settings).found
    assert alarms <= binom.ppf(0.999, draws, settings.level)


# Heatmaps themselves


def test_a_planted_shortcut_is_found_in_every_class() -> None:
    known = planted(n_classes=3, n=300)
    test = find_shortcuts(find_candidates(known.explained, seed=0, features=False), known.explained)
    assert [verdict.found for verdict in findings(test)] == [True, True, True]
    assert [verdict.images for verdict in findings(test)] == [15, 15, 15]


def test_heatmaps_of_two_kinds_without_more_errors_in_one_are_no_shortcut() -> None:
    known = planted(reliance=0)
    wrong = np.random.default_rng(3).random(len(known.strategy)) < 0.15
    labels = known.explained.labels
    explained = predicting(known.explained, np.where(wrong, 1 - labels, labels))
    test = find_shortcuts(find_candidates(explained, seed=0, features=False), explained)
    assert test.tested >= 2
    assert not test.found


@pytest.mark.parametrize("seed", range(3))
def test_hard_images_at_the_rim_of_a_class_are_no_shortcut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(400) % 2
    maps = 1 + 0.2 * rng.normal(size=(400, 9))
    rim = maps[:, 0] - maps[:, 1] > np.quantile(maps[:, 0] - maps[:, 1], 0.9)
    wrong = rim & (rng.random(400) < 0.8)
    logits = np.eye(2)[np.where(wrong, 1 - labels, labels)]
    explained = explained_of(labels, maps.reshape(-1, 1, 3, 3), logits, logits)
    test = find_shortcuts(find_candidates(explained, seed=0, features=False), explained)
    assert not test.found


def test_a_class_that_is_absent_is_not_tested() -> None:
    candidates, explained = islands(((20, 10), (100, 4)), ((50, 2),))
    test = find_shortcuts(candidates, replace(explained, class_names=("bar 0", "bar 1", "bar 2")))
    assert [verdict.found for verdict in findings(test)] == [True, False, None]


def test_where_nothing_stands_apart_there_is_no_effect() -> None:
    test = verdicts(((20, 10), (100, 4)), ((50, 2),))
    other = test.classes["bar 1"]
    assert (other.found, other.p_value, other.images, other.candidate) == (False, 1, 0, "")
    assert (other.effect, other.effect_low, other.conductance) == (None, None, None)
    assert not ShortcutTest({}, 0).found


def test_the_upper_bound_covers_the_rate_as_often_as_it_says() -> None:
    assert upper_bound(8, 8) == 1
    assert upper_bound(0, 8) == pytest.approx(1 - 0.05 ** (1 / 8))
    for rate in (0.1, 0.5, 0.9):
        chance = sum(binom.pmf(k, 30, rate) for k in range(31) if upper_bound(k, 30) < rate)
        assert chance <= 0.05
