"""Which grouping is chosen, by what, and what is said where nothing can be: by arrays with a planted shortcut."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from planted_strategies import Planted, planted
from sklearn.metrics import adjusted_rand_score, homogeneity_score

from exmap.auto import AutoChoice, choose_groups
from exmap.auto.choice import held_out_margins, margins_of, reliance
from exmap.bench.methods import parse_method
from exmap.config import AutoSettings
from exmap.errors import DataError
from exmap.groups import Evidence
from exmap.records import Groups, IntArray, Progress
from exmap.runtime import generator

KEYS = {
    "chosen",
    "runner_up",
    "confidence",
    "judged_on",
    "reliance",
    "candidates",
    "shortcut",
    "repair",
    "data_curve",
    "repaired",
    "why",
    "remarks",
}


def choice_of(known: Planted, settings: AutoSettings | None = None, **changes: Any) -> AutoChoice:
    evidence = replace(known.evidence, **changes)
    return choose_groups(evidence, known.shape, logits=known.logits, settings=settings, seed=0)


def rows_of(known: Planted, rows: IntArray, **changes: Any) -> Planted:
    """Return some of the images."""
    names = ("labels", "predicted", "heatmaps", "usable", "features")
    kept = {name: getattr(known.evidence, name)[rows] for name in names}
    evidence = replace(known.evidence, **kept, **changes)
    return Planted(evidence, known.shape, known.logits[rows], known.strategy[rows])


@pytest.fixture(scope="module")
def known() -> Planted:
    return planted()


@pytest.fixture(scope="module")
def choice(known: Planted) -> AutoChoice:
    return choice_of(known)


@pytest.fixture(scope="module")
def fair() -> Planted:
    """Heatmaps of two kinds, in both of which the classifier is equally good."""
    return planted(reliance=0)


@pytest.fixture(scope="module")
def fair_choice(fair: Planted) -> AutoChoice:
    return choice_of(fair)


# Margins and reliance


def test_a_margin_is_the_own_logit_less_the_largest_other() -> None:
    logits = np.array([[3, 1, 0], [0, 2, 5], [-1, -1, -4]], dtype=np.float32)
    assert margins_of(logits, np.array([0, 1, 2])).tolist() == [2, -3, -3]
    assert logits[0, 0] == 3  # the logits stay as they are


def test_reliance_by_hand() -> None:
    margins = np.array([[2.0] * 5 + [0.0] * 5])  # mean 1, deviation 1
    index = np.repeat([0, 1], 5)
    # The worse group's mean with five samples of the class's mean: (5 * 0 + 5 * 1) / 10.
    assert reliance(margins, np.zeros(10, dtype=int), index) == pytest.approx([0.5])


def test_reliance_is_that_of_the_worst_class() -> None:
    margins = np.array([[2.0] * 5 + [0.0] * 5 + [1.0] * 9 + [-9.0]])
    labels, index = np.repeat([4, 7], 10), np.repeat([0, 1, 2, 3], 5)
    first = reliance(margins[:, :10], labels[:10], index[:10])
    second = reliance(margins[:, 10:], labels[10:], index[10:])
    assert reliance(margins, labels, index) == pytest.approx(np.maximum(first, second))
    assert second < first


def test_groups_that_are_no_worse_than_their_class_are_not_relied_on() -> None:
    margins, labels = np.array([[1.0, 3.0] * 6, [5.0] * 12]), np.repeat([0, 1], 6)
    assert reliance(margins, labels, np.repeat([0, 1], 6)).tolist() == [0, 0]


def test_images_without_a_group_and_groups_of_two_have_no_say() -> None:
    margins = np.array([[2.0] * 5 + [0.0] * 5])
    labels = np.zeros(10, dtype=int)
    assert reliance(margins, labels, np.repeat([0, -1], 5)).tolist() == [0]
    assert reliance(margins, labels, np.full(10, -1)).tolist() == [0]
    assert reliance(margins, labels, np.array([0] * 8 + [1] * 2)).tolist() == [0]
    assert reliance(margins, labels, np.array([0] * 7 + [1] * 3)) > 0


def random_heads(seed: int) -> tuple[NDArray[np.float64], IntArray, IntArray, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 90)
    index = np.where(rng.random(90) < 0.1, -1, labels * 4 + rng.integers(0, 4, 90))
    return rng.normal(size=(4, 90)) + index % 3, labels, index, rng.integers(0, 4, 90).astype(float)


def slow_reliance(
    margins: NDArray[np.float64], labels: IntArray, index: IntArray, weight: NDArray[np.float64]
) -> list[float]:
    found = []
    for head in margins:
        worst = 0.0
        for label in set(labels.tolist()):
            own = labels == label
            mean = np.average(head[own], weights=weight[own])
            deviation = np.sqrt(np.average((head[own] - mean) ** 2, weights=weight[own]))
            for group in set(index[own].tolist()) - {-1}:
                inside = own & (index == group)
                count = weight[inside].sum()
                if count >= 3:
                    shrunk = ((weight * head)[inside].sum() + 5 * mean) / (count + 5)
                    worst = max(worst, (mean - shrunk) / deviation)
        found.append(worst)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_reliance_is_what_plain_loops_give(seed: int) -> None:
    margins, labels, index, weight = random_heads(seed)
    assert reliance(margins, labels, index) == pytest.approx(slow_reliance(margins, labels, index, np.ones(90)))
    assert reliance(margins, labels, index, weight) == pytest.approx(slow_reliance(margins, labels, index, weight))


@pytest.mark.parametrize("seed", range(3))
def test_weights_are_repetitions(seed: int) -> None:
    margins, labels, index, weight = random_heads(seed)
    times = weight.astype(int)
    repeated = reliance(np.repeat(margins, times, axis=1), np.repeat(labels, times), np.repeat(index, times))
    assert reliance(margins, labels, index, weight) == pytest.approx(repeated)


@pytest.mark.parametrize("seed", range(3))
def test_neither_the_scale_of_a_head_nor_its_bias_matters(seed: int) -> None:
    margins, labels, index, _ = random_heads(seed)
    moved = margins * np.array([[0.1], [1], [7], [1000]]) + np.array([0.5, -3.0, 20.0])[labels]
    assert reliance(moved, labels, index) == pytest.approx(reliance(margins, labels, index))


def test_margins_of_one_value_and_classes_of_no_weight_give_finite_numbers() -> None:
    labels, index = np.repeat([0, 1], 10), np.repeat([0, 1, 2, 3], 5)
    assert reliance(np.ones((2, 20)), labels, index).tolist() == [0, 0]
    found = reliance(np.random.default_rng(0).normal(size=(2, 20)), labels, index, (labels == 0).astype(float))
    assert np.isfinite(found).all()


def test_held_out_margins_are_by_heads_that_did_not_see_the_image(known: Planted) -> None:
    features, labels = known.evidence.features, known.evidence.labels
    groups = Groups(labels * 2 + known.strategy, ("a", "b", "c", "d"), "mine", ())

    def margins(features: NDArray[np.float32]) -> NDArray[np.float64]:
        return held_out_margins(features, labels, groups, n_classes=2, repeats=1, seed=3)

    before = margins(features)
    assert np.abs(before).mean() == pytest.approx(1)  # a head's scale says nothing of it
    side = generator(3, "auto", "halves", 0).permutation(len(labels)) % 2
    changed = features.copy()
    changed[0] = -20 * changed[0]
    after = margins(changed)
    same = (side == side[0]) & (np.arange(len(side)) > 0)
    ratio = after[same] / before[same]  # their heads are the same, but for the scale
    assert ratio == pytest.approx(ratio[0])
    assert not np.allclose(after[side != side[0]] / before[side != side[0]], ratio[0], rtol=1e-3)
    assert np.array_equal(before, margins(features))


# What is chosen


def test_the_choice_follows_the_planted_shortcut(known: Planted, choice: AutoChoice) -> None:
    for label in (0, 1):
        own = known.evidence.labels == label
        assert adjusted_rand_score(choice.groups.index[own], known.strategy[own]) > 0.9  # 0 for classes
    assert choice.groups.source == "auto"
    assert choice.groups.labels_used == ("class labels",)
    assert choice.repair
    assert choice.record["remarks"] == [] or "uncertain" in choice.record["remarks"][0]


def test_the_retrained_head_relies_less_on_it_than_the_classifier(choice: AutoChoice) -> None:
    assert choice.record["reliance"]["chosen"] < choice.record["reliance"]["classifier"] / 2
    scores = {row["name"]: row["score"] for row in choice.record["candidates"]}
    assert scores[choice.record["chosen"]] > scores["classes"]
    repair = choice.record["repair"]
    assert repair["last_layer_suffices"] is True
    assert repair["after"] > repair["before"] + 0.5


def test_the_choice_among_three_classes_parts_the_strategies_of_each() -> None:
    known = planted(n_classes=3, n=210)
    groups = choice_of(known).groups
    for label in range(3):
        own = known.evidence.labels == label
        assert homogeneity_score(known.strategy[own], groups.index[own]) > 0.9  # 0 for classes
        assert adjusted_rand_score(known.strategy[own], groups.index[own]) > 0  # however finely it parts them


def test_the_record_has_what_is_documented_and_is_json(choice: AutoChoice, fair_choice: AutoChoice) -> None:
    for made in (choice, fair_choice):
        record = made.record
        assert set(record) == KEYS
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        names = [row["name"] for row in record["candidates"]]
        assert record["chosen"] == names[0]
        assert record["runner_up"] in names[1:]
        assert 0 <= record["confidence"] <= 1
        assert record["judged_on"] == "held-out halves"
        assert set(record["shortcut"]) == {"bar 0", "bar 1"}
        assert all({"found", "p_value", "effect"} <= set(row) for row in record["shortcut"].values())
        assert {"last_layer_suffices", "why"} <= set(record["repair"])
        assert [set(row) for row in record["data_curve"]] == [
            {"images", "smallest_group", "worst_group_accuracy", "spread"}
        ] * 4
        assert record["chosen"] in record["why"]
        assert record["repaired"] is made.repair


def test_candidates_are_listed_best_first_with_what_may_not_be_chosen_last(choice: AutoChoice) -> None:
    rows = choice.record["candidates"]
    assert [row["eligible"] for row in rows] == sorted((row["eligible"] for row in rows), reverse=True)
    for eligible in (True, False):
        scores = [row["score"] for row in rows if row["eligible"] is eligible]
        assert scores == sorted(scores, reverse=True)
    assert rows[0]["like_chosen"] == 1
    assert rows[0]["groups"] == len(choice.groups.names)
    assert all(row["groups"] >= 2 for row in rows)
    for name in [name for row in rows for name in (row["name"], *row["also"])]:
        parse_method(f"{name}+dfr")


def test_the_same_seed_gives_the_same_choice_and_progress_is_heard_of(known: Planted, choice: AutoChoice) -> None:
    heard: list[Progress] = []
    again = choose_groups(known.evidence, known.shape, logits=known.logits, seed=0, listen=heard.append)
    assert again.record == choice.record
    assert np.array_equal(again.groups.index, choice.groups.index)
    assert again.groups.names == choice.groups.names
    assert {progress.unit for progress in heard} == {"clusterings", "heads"}
    assert heard[-1].done == heard[-1].total == len(choice.record["candidates"])


def test_the_evidence_has_no_place_for_true_groups_and_stays_as_it_is(known: Planted, choice: AutoChoice) -> None:
    assert {field.name for field in fields(Evidence)}.isdisjoint({"truth", "true_groups", "groups", "strategy"})
    fresh = planted()
    for name in ("labels", "predicted", "heatmaps", "usable", "features"):
        assert np.array_equal(getattr(known.evidence, name), getattr(fresh.evidence, name))


# Whether to repair


def test_without_a_shortcut_the_model_is_left_alone(fair_choice: AutoChoice) -> None:
    assert not fair_choice.repair
    assert not any(row["found"] for row in fair_choice.record["shortcut"].values())
    assert "No shortcut was found, so the model is left alone" in " ".join(fair_choice.record["remarks"])


def test_where_it_is_asked_for_the_model_is_repaired_all_the_same(fair: Planted, fair_choice: AutoChoice) -> None:
    made = choice_of(fair, AutoSettings(only_if_found=False))
    assert made.repair
    assert made.record["repaired"] is True
    assert "left alone" not in " ".join(made.record["remarks"])
    assert made.record["chosen"] == fair_choice.record["chosen"]


def test_a_model_that_knows_the_images_is_judged_by_others(known: Planted) -> None:
    others = planted(n=160, seed=5)
    made = choose_groups(
        known.evidence, known.shape, judged=(others.evidence, others.shape), logits=others.logits, seed=0
    )
    assert made.record["judged_on"] == "the validation split"
    assert len(made.groups) == 240
    assert homogeneity_score(known.strategy, made.groups.index) > 0.9
    assert made.repair
    assert made.record["repair"]["images"] <= 160
    assert made.record["data_curve"][-1]["images"] == 240  # not half of them
    json.dumps(made.record, allow_nan=False)


# What cannot be chosen among


def nothing_was_chosen(made: AutoChoice, known: Planted, why: str) -> None:
    assert made.record["chosen"] is None
    assert made.record["repaired"] is False
    assert not made.repair
    assert set(made.record) == KEYS
    assert made.record["why"].startswith(why)
    assert made.record["remarks"] == [made.record["why"]]
    assert [row["found"] for row in made.record["shortcut"].values()] == [None] * len(known.evidence.class_names)
    assert np.array_equal(made.groups.index, known.evidence.labels)
    assert len(made.groups.names) == len(known.evidence.class_names)
    json.dumps(made.record, allow_nan=False)


def test_too_few_images_of_a_class_are_said() -> None:
    small = planted(n=38)
    nothing_was_chosen(choice_of(small), small, "Nothing can be concluded: class bar 0 has 19 images with a heatmap")


def test_too_few_images_to_judge_by_are_said(known: Planted) -> None:
    small = planted(n=38)
    made = choose_groups(known.evidence, known.shape, judged=(small.evidence, small.shape), logits=small.logits)
    nothing_was_chosen(made, known, "Nothing can be concluded: class bar 0 has 19 images")


def test_a_class_without_images_is_said(known: Planted) -> None:
    names = (*known.evidence.class_names, "bar 2")
    wider = replace(known, evidence=replace(known.evidence, class_names=names))
    nothing_was_chosen(choice_of(wider), wider, "Nothing can be concluded: class bar 2 has 0 images")


def test_a_classifier_at_chance_is_said(known: Planted) -> None:
    guesses = np.random.default_rng(0).permutation(known.evidence.labels)
    made = choice_of(known, predicted=guesses)
    nothing_was_chosen(made, known, "Nothing can be concluded: the classifier is right in")
    assert "no better than chance" in made.record["why"]


def test_heatmaps_that_are_all_broken_are_said(known: Planted) -> None:
    usable = np.zeros(240, dtype=bool)
    broken = np.zeros_like(known.evidence.heatmaps)
    made = choice_of(known, usable=usable, heatmaps=broken)
    nothing_was_chosen(made, known, "Nothing can be concluded: class bar 0 has 0 images with a heatmap")


def test_where_heatmaps_and_features_are_all_the_same_the_model_is_left_alone(known: Planted) -> None:
    made = choice_of(
        known, heatmaps=np.ones_like(known.evidence.heatmaps), features=np.ones_like(known.evidence.features)
    )
    assert not made.repair
    assert made.record["reliance"]["chosen"] < 1
    json.dumps(made.record, allow_nan=False)


def test_heatmaps_of_zeros_are_one_strategy(known: Planted) -> None:
    made = choice_of(known, heatmaps=np.zeros_like(known.evidence.heatmaps))
    assert not made.repair  # features are not tested
    json.dumps(made.record, allow_nan=False)


def test_a_classifier_without_errors_is_left_alone(known: Planted) -> None:
    logits = (4 * np.eye(2)[known.evidence.labels]).astype(np.float32)
    evidence = replace(known.evidence, predicted=known.evidence.labels)
    made = choose_groups(evidence, known.shape, logits=logits, seed=0)
    assert not made.repair
    assert all("is classified wrong" in row["why"] for row in made.record["shortcut"].values())
    json.dumps(made.record, allow_nan=False)


def test_classes_of_different_sizes_and_images_without_a_heatmap(known: Planted) -> None:
    labels = known.evidence.labels
    rows = np.sort(np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:50]]))
    uneven = rows_of(known, rows)
    usable = uneven.evidence.usable.copy()
    usable[:6] = False
    made = choice_of(uneven, usable=usable)
    found = made.groups.index
    assert homogeneity_score(uneven.strategy[found >= 0], found[found >= 0]) > 0.9
    assert (found[6:] >= 0).all()
    assert made.record["shortcut"]["bar 0"]["found"]
    json.dumps(made.record, allow_nan=False)


@pytest.mark.parametrize("missing", ["heatmaps", "features"])
def test_evidence_without_heatmaps_or_features_is_refused(known: Planted, missing: str) -> None:
    with pytest.raises(DataError, match="needs heatmaps and features; explain the split and collect outputs first"):
        choice_of(known, **{missing: None})
    bare = replace(known.evidence, **{missing: None})
    with pytest.raises(DataError, match="needs heatmaps and features; explain the split and collect outputs first"):
        choose_groups(known.evidence, known.shape, judged=(bare, known.shape), logits=known.logits)


def test_where_nothing_is_chosen_the_groups_of_either_split_are_its_classes() -> None:
    rng = np.random.default_rng(0)

    def few(n: int) -> Evidence:
        labels = np.arange(n) % 2
        maps = rng.random((n, 48)).astype(np.float32)
        return Evidence(labels, labels, ("a", "b"), maps, np.ones(n, dtype=np.bool_), maps)

    judge = few(12)
    choice = choose_groups(few(90), (3, 4, 4), judged=(judge, (3, 4, 4)), logits=np.zeros((12, 2), np.float32))
    assert choice.record["chosen"] is None
    assert (len(choice.groups), choice.groups.source) == (90, "auto")
    assert (len(choice.judged), choice.judged.source) == (12, "auto-judged")
