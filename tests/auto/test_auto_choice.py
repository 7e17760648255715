"""Which grouping is chosen, by what, and what is said where nothing can be: by arrays with a planted shortcut."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from planted_strategies import Planted, planted, predicting, with_features, with_maps
from sklearn.metrics import adjusted_rand_score, homogeneity_score

from exmap.auto import AutoChoice, Effort, choose_groups
from exmap.auto.margins import Images, held_out_margins, margins_of
from exmap.auto.reliance import reliance
from exmap.errors import DataError
from exmap.methods import parse_method
from exmap.records import Explained, Groups, IntArray, Progress
from exmap.results import AutoRecord
from exmap.runtime import generator
from exmap.settings import AutoSettings

LITTLE = Effort(  # what these strategies need, and no more: heatmaps of one size, one halving
    sizes=1,
    clusterings=("gap=relative", "n_clusters=2", "method=kmeans,n_clusters=8"),
    most_halvings=1,
    draws=20,
    curve_draws=2,
    strengths=(0.3,),
    subsamples=2,
)


def choice_of(
    explained: Explained, settings: AutoSettings | None = None, judged: Explained | None = None
) -> AutoChoice:
    made = choose_groups(explained, judged=judged, settings=settings, effort=LITTLE, seed=0)
    assert AutoRecord.from_json(made.record.to_json()) == made.record
    assert made.record.repaired is made.repair
    return made


@pytest.fixture(scope="module")
def known() -> Planted:
    return planted()


@pytest.fixture(scope="module")
def choice(known: Planted) -> AutoChoice:
    return choice_of(known.explained)


@pytest.fixture(scope="module")
def fair() -> Planted:
    """Heatmaps of two kinds, in both of which the classifier is equally good."""
    return planted(reliance=0)


@pytest.fixture(scope="module")
def fair_choice(fair: Planted) -> AutoChoice:
    return choice_of(fair.explained)


# Of very many images


def test_of_too_many_images_a_sample_chooses_and_says_so(known: Planted, choice: AutoChoice) -> None:
    explained = known.explained
    told: list[Progress] = []
    few = AutoSettings().model_copy(update={"most_images": 120})
    made = choose_groups(explained, settings=few, effort=LITTLE, seed=0, listen=told.append)
    drawn = made.groups.index >= 0
    assert len(made.groups) == 240
    assert drawn.sum() == 120
    for label in range(2):
        for predicted in range(2):
            both = (explained.labels == label) & (explained.predicted == predicted)
            assert abs(both[drawn].sum() - both.sum() / 2) < 1
    assert "chosen by 120 of 240 images" in made.record.remarks[0]
    assert [(each.done, each.total) for each in told if each.task == "sample"] == [(120, 240)]
    again = choose_groups(explained, settings=few, effort=LITTLE, seed=0)
    assert np.array_equal(again.groups.index, made.groups.index)
    assert not any("drawn at random" in remark for remark in choice.record.remarks)


def test_as_many_images_as_may_be_choose_themselves(known: Planted, choice: AutoChoice) -> None:
    enough = AutoSettings().model_copy(update={"most_images": 240})
    made = choice_of(known.explained, enough)
    assert made.record == choice.record
    assert np.array_equal(made.groups.index, choice.groups.index)


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
    features, labels = known.explained.features, known.explained.labels
    groups = Groups(labels * 2 + known.strategy, ("a", "b", "c", "d"), "mine", ())

    def margins(features: NDArray[np.float32]) -> NDArray[np.float64]:
        return held_out_margins(Images(features, labels, 2), groups, effort=LITTLE, seed=3)

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


def test_images_are_halved_less_often_where_there_are_many() -> None:
    assert [Effort().halvings(n) for n in (0, 200, 5_000, 8_000, 1_000_000)] == [6, 6, 4, 2, 2]
    assert Effort(most_halvings=1).halvings(200) == 1


# What is chosen


def test_the_choice_follows_the_planted_shortcut(known: Planted, choice: AutoChoice) -> None:
    for label in (0, 1):
        own = known.explained.labels == label
        assert adjusted_rand_score(choice.groups.index[own], known.strategy[own]) > 0.9  # 0 for classes
    assert choice.groups.source == "auto"
    assert choice.groups.labels_used == ("class labels",)
    assert choice.judged == choice.groups
    assert choice.repair
    assert choice.record.remarks == () or "uncertain" in choice.record.remarks[0]


def test_the_retrained_head_relies_less_on_it_than_the_classifier(choice: AutoChoice) -> None:
    record = choice.record
    assert record.reliance.chosen < record.reliance.classifier / 2
    scores = {row.name: row.score for row in record.candidates}
    assert scores[record.chosen] > scores["classes"]
    assert record.repair.last_layer_suffices is True
    assert record.repair.after > record.repair.before + 0.5


def test_the_choice_among_three_classes_parts_the_strategies_of_each() -> None:
    known = planted(n_classes=3, n=210)
    groups = choice_of(known.explained).groups
    for label in range(3):
        own = known.explained.labels == label
        assert homogeneity_score(known.strategy[own], groups.index[own]) > 0.9  # 0 for classes
        assert adjusted_rand_score(known.strategy[own], groups.index[own]) > 0  # however finely it parts them


def test_the_record_has_what_is_documented(choice: AutoChoice, fair_choice: AutoChoice) -> None:
    for made in (choice, fair_choice):
        record = made.record
        names = [row.name for row in record.candidates]
        assert record.chosen == names[0]
        assert record.runner_up in names[1:]
        assert record.judged_on == "held-out halves"
        assert set(record.shortcut) == {"bar 0", "bar 1"}
        assert [point.images for point in record.data_curve] == [12, 24, 60, 120]
        assert record.chosen in record.why


def test_candidates_are_listed_best_first_with_what_may_not_be_chosen_last(choice: AutoChoice) -> None:
    rows = choice.record.candidates
    assert [row.eligible for row in rows] == sorted((row.eligible for row in rows), reverse=True)
    for eligible in (True, False):
        scores = [row.score for row in rows if row.eligible is eligible]
        assert scores == sorted(scores, reverse=True)
    assert rows[0].like_chosen == 1
    assert rows[0].groups == len(choice.groups.names)
    assert all(row.groups >= 2 for row in rows)
    for name in [name for row in rows for name in (row.name, *row.also)]:
        parse_method(f"{name}+dfr")


def test_the_same_seed_gives_the_same_choice_and_progress_is_heard_of(known: Planted, choice: AutoChoice) -> None:
    heard: list[Progress] = []
    again = choose_groups(known.explained, effort=LITTLE, seed=0, listen=heard.append)
    assert again.record == choice.record
    assert again.groups == choice.groups
    assert {progress.unit for progress in heard} == {"classes", "clusterings", "heads", "sizes"}
    heads = [progress for progress in heard if progress.unit == "heads"]
    assert heads[-1].done == heads[-1].total == len(choice.record.candidates)


def test_what_is_explained_has_no_place_for_true_groups_and_stays_as_it_is(known: Planted, choice: AutoChoice) -> None:
    assert {field.name for field in fields(Explained)}.isdisjoint({"truth", "true_groups", "groups", "strategy"})
    one, other = known.explained, planted().explained
    assert np.array_equal(one.labels, other.labels)
    assert np.array_equal(one.maps().values, other.maps().values)
    assert np.array_equal(one.features, other.features)
    assert np.array_equal(one.outputs.logits, other.outputs.logits)


# Whether to repair


def test_without_a_shortcut_the_model_is_left_alone(fair_choice: AutoChoice) -> None:
    assert not fair_choice.repair
    assert not fair_choice.record.found
    assert "No shortcut was found, so the model is left alone" in " ".join(fair_choice.record.remarks)


def test_where_it_is_asked_for_the_model_is_repaired_all_the_same(fair: Planted, fair_choice: AutoChoice) -> None:
    made = choice_of(fair.explained, AutoSettings(only_if_found=False))
    assert made.repair
    assert "left alone" not in " ".join(made.record.remarks)
    assert made.record.chosen == fair_choice.record.chosen


def test_a_model_that_knows_the_images_is_judged_by_others(known: Planted) -> None:
    made = choice_of(known.explained, judged=planted(n=160, seed=5).explained)
    assert made.record.judged_on == "the validation split"
    assert (len(made.groups), made.groups.source) == (240, "auto")
    assert (len(made.judged), made.judged.source) == (160, "auto-judged")
    assert homogeneity_score(known.strategy, made.groups.index) > 0.9
    assert made.repair
    assert made.record.repair.images <= 160
    assert made.record.data_curve[-1].images == 240  # not half of them


def test_settings_say_how_often_images_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Effort] = []

    def stop(*_: object, effort: Effort, **__: object) -> None:
        seen.append(effort)
        raise InterruptedError

    monkeypatch.setattr("exmap.auto.choice.find_candidates", stop)
    for settings in (AutoSettings(halvings=1, draws=7), None):
        with pytest.raises(InterruptedError):
            choose_groups(planted(n=80).explained, settings=settings)
    assert [(effort.halvings(80), effort.draws) for effort in seen] == [(1, 7), (6, 100)]


# What cannot be chosen among


def nothing_was_chosen(made: AutoChoice, explained: Explained, why: str) -> None:
    record = made.record
    assert (record.chosen, record.confidence, record.candidates, record.data_curve) == (None, None, (), ())
    assert not made.repair
    assert record.why.startswith(why)
    assert record.remarks == (record.why,)
    assert [finding.found for finding in record.shortcut.values()] == [None] * len(explained.class_names)
    assert np.array_equal(made.groups.index, explained.labels)
    assert made.groups.source == "auto"
    assert len(made.groups.names) == len(explained.class_names)


def test_too_few_images_of_a_class_are_said() -> None:
    small = planted(n=38).explained
    why = "Nothing can be concluded: class bar 0 has 19 images with a heatmap"
    nothing_was_chosen(choice_of(small), small, why)


def test_too_few_images_to_judge_by_are_said(known: Planted) -> None:
    made = choice_of(known.explained, judged=planted(n=38).explained)
    nothing_was_chosen(made, known.explained, "Nothing can be concluded: class bar 0 has 19 images")
    assert (len(made.judged), made.judged.source) == (38, "auto-judged")


def test_a_class_without_images_is_not_tested_and_the_others_are(known: Planted) -> None:
    wider = replace(known.explained, class_names=(*known.explained.class_names, "bar 2"))
    record = choice_of(wider).record
    assert record.chosen is not None
    assert record.shortcut["bar 2"].found is None
    assert {name for name, finding in record.shortcut.items() if finding.found is not None} == {"bar 0", "bar 1"}


def test_a_classifier_at_chance_is_said(known: Planted) -> None:
    guesses = predicting(known.explained, np.random.default_rng(0).permutation(known.explained.labels))
    made = choice_of(guesses)
    nothing_was_chosen(made, guesses, "Nothing can be concluded: the classifier is right in")
    assert "no better than chance" in made.record.why


def test_heatmaps_that_are_all_broken_are_said(known: Planted) -> None:
    broken = with_maps(known.explained, np.zeros((240, 1, 6, 6)), np.zeros(240, dtype=np.bool_))
    why = "Nothing can be concluded: class bar 0 has 0 images with a heatmap"
    nothing_was_chosen(choice_of(broken), broken, why)


def test_where_heatmaps_and_features_are_all_the_same_the_model_is_left_alone(known: Planted) -> None:
    alike = with_maps(known.explained, np.ones((240, 1, 6, 6)))
    made = choice_of(with_features(alike, np.ones_like(alike.features)))
    assert not made.repair
    assert made.record.reliance.chosen < 1


def test_heatmaps_of_zeros_are_one_strategy(known: Planted) -> None:
    assert not choice_of(with_maps(known.explained, np.zeros((240, 1, 6, 6)))).repair  # features are not tested


def test_a_classifier_without_errors_is_left_alone(known: Planted) -> None:
    made = choice_of(predicting(known.explained, known.explained.labels))
    assert not made.repair
    assert all("is classified wrong" in finding.why for finding in made.record.shortcut.values())


def test_classes_of_different_sizes_and_images_without_a_heatmap(known: Planted) -> None:
    labels = known.explained.labels
    rows = np.sort(np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:50]]))
    uneven, strategy = known.explained.rows(rows), known.strategy[rows]
    made = choice_of(with_maps(uneven, uneven.maps().values, np.arange(len(rows)) >= 6))
    found = made.groups.index
    assert homogeneity_score(strategy[found >= 0], found[found >= 0]) > 0.9
    assert (found[6:] >= 0).all()
    assert made.record.shortcut["bar 0"].found


def test_a_split_that_was_not_explained_is_refused(known: Planted) -> None:
    bare = replace(known.explained, heatmaps=None)
    with pytest.raises(DataError, match="has no heatmaps"):
        choice_of(bare)
    with pytest.raises(DataError, match="has no heatmaps"):
        choice_of(known.explained, judged=bare)


def test_a_grouping_that_either_split_lacks_is_not_weighed(known: Planted) -> None:
    wide = planted(n=160, seed=5, shape=(1, 12, 12)).explained  # its heatmaps are of another size
    made = choice_of(known.explained, judged=wide)
    names = {name for row in made.record.candidates for name in (row.name, *row.also)}
    assert not any("size=6" in name for name in names)
    assert "classes" in names
