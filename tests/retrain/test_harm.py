"""A repair that makes a class worse: it is found, not applied to that class, and said first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from planted_groups import ERM, RUNTIME, TRAIN, biased, groups_of, net, same
from torch import nn

from exmap import evaluate
from exmap.data import Split, array_split
from exmap.errors import DataError
from exmap.model import collect_outputs
from exmap.records import Groups
from exmap.retrain import AFR, DFR, ClassBalanced, Head, LastLayer, Selection
from exmap.retrain.harm import judge_head, judge_network, parts_of_classes
from exmap.retrain.old_rows import with_old_rows
from exmap.retrain.worse import compare_classes

QUICK: dict[str, Any] = {"strengths": (0.3, 0.1), "tuning_splits": 2, "subsamples": 10}
NAMES = ("a", "b", "c", "d")
DIMENSIONS = 12


def drawn(counts: Sequence[int], seed: int, against: float = 0.05) -> tuple[np.ndarray, np.ndarray, Groups]:
    """Draw features of four classes; a last one tells a from b, except for the share `against` of their images."""
    rng, means = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(4, DIMENSIONS))
    labels = np.repeat(np.arange(4), counts)
    features = rng.normal(size=(len(labels), DIMENSIONS)) + means[labels]
    turned = rng.random(len(labels)) < against
    side = np.where(labels < 2, labels ^ turned, rng.integers(2, size=len(labels)))
    features[:, -1] = 4 * (side - 0.5) + rng.normal(size=len(labels))
    index = np.where(labels < 2, 2 * labels + side, labels + 2)
    return features.astype(np.float32), labels, Groups(index, tuple("pqrstu"), "own", ())


def trained(seed: int = 0) -> Head:
    """Return a last layer that was fitted to many images, and so relies on the shortcut."""
    from sklearn.linear_model import LogisticRegression

    features, labels, _ = drawn([1500, 1500, 1500, 60], 1000 + seed)
    found = LogisticRegression(max_iter=300).fit(features, labels)
    return Head(found.coef_.astype(np.float32), found.intercept_.astype(np.float32))


def recall(head: Head, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    right = head.predict(features) == labels
    return np.array([right[labels == k].mean() for k in range(4)])


def repaired(learner: LastLayer, own: Head, counts: Sequence[int], seed: int = 0) -> tuple[Head, Head, Any]:
    """Return a last layer as fitted and as handed over, and the verdict."""
    features, labels, groups = drawn(counts, seed)
    head = learner.fit_head(features, labels, groups, n_classes=4, head=own)
    verdict = judge_head(learner, head, features, labels, groups, own=own, class_names=NAMES)
    return head, verdict.applied(head, own, features), verdict


@pytest.mark.parametrize(
    "learner", [DFR(**QUICK), ClassBalanced(**QUICK), AFR(gammas=(4.0,), lambdas=(0.1,), steps=50)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_class_of_five_in_a_thousand_does_not_fall(learner: LastLayer, seed: int) -> None:
    own, test = trained(seed), drawn([400] * 4, 500 + seed)[:2]
    before = recall(own, *test)
    _, handed_over, _ = repaired(learner, own, [330, 330, 335, 5], seed)
    assert recall(handed_over, *test)[3] > before[3] - 0.1


def test_without_that_it_falls_and_the_first_line_says_so() -> None:
    own, test = trained(), drawn([400] * 4, 500)[:2]
    head, handed_over, verdict = repaired(ClassBalanced(**QUICK), own, [330, 330, 335, 5])
    assert recall(head, *test)[3] < recall(own, *test)[3] - 0.3
    assert 3 in verdict.kept
    assert not verdict.left_alone
    (of_d,) = [each for each in verdict.classes if each.class_name == "d"]
    assert of_d.kept
    assert of_d.images == 5
    assert of_d.after <= of_d.before
    assert handed_over.notes[0] == verdict.first_line
    assert "class 'd'" in verdict.first_line.lower()
    insisted = replace(ClassBalanced(**QUICK), harm="warn")
    head, handed_over, verdict = repaired(insisted, own, [330, 330, 335, 5])
    assert np.array_equal(head.weight, handed_over.weight)
    assert not verdict.kept
    assert "is handed over anyway" in verdict.first_line


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_dfr_gains_on_a_shortcut_is_untouched(seed: int) -> None:
    own, (features, labels, groups) = trained(seed), drawn([800, 800, 1, 1], 500 + seed, against=0.5)
    plain, handed_over, _ = repaired(DFR(**QUICK), own, [400, 400, 400, 400], seed)

    def worst(head: Head) -> float:
        right = head.predict(features) == labels
        return min(right[groups.index == g].mean() for g in range(4))

    assert worst(plain) > worst(own) + 0.1
    assert worst(handed_over) > worst(plain) - 0.05


def test_a_class_without_images_keeps_its_old_decision() -> None:
    own, test = trained(), drawn([400] * 4, 500)[:2]
    for learner in (DFR(**QUICK), ClassBalanced(**QUICK), AFR(gammas=(1.0,), lambdas=(0.0,), steps=50)):
        _, handed_over, verdict = repaired(learner, own, [330, 330, 335, 0])
        assert abs(recall(handed_over, *test)[3] - recall(own, *test)[3]) < 0.15
        assert handed_over.bias[3] > -100
        assert (
            "No image to retrain on is of class 'd', so it keeps the classifier's own decision." in verdict.first_line
        )
        assert [(each.images, each.kept) for each in verdict.classes if each.class_name == "d"] == [(0, True)]


def test_old_rows_stand_on_the_scale_of_the_new_ones_and_are_predicted_as_often() -> None:
    own, (features, labels, groups) = trained(), drawn([300, 300, 300, 100], 7)
    head = DFR(**QUICK).fit_head(features, labels, groups, n_classes=4)
    was = own.predict(features) == 3
    for factor in (0.01, 1, 1000):
        scaled = Head(own.weight * factor, own.bias * factor)
        mixed = with_old_rows(head, scaled, [3], features)
        now = mixed.predict(features) == 3
        assert was.sum() <= now.sum() <= 1.5 * was.sum() + 1
        assert (now == was).mean() > 0.9
        assert np.array_equal(mixed.weight[:3], head.weight[:3])
    assert with_old_rows(head, own, [], features) is head
    assert with_old_rows(head, own, [1, 2, 3], features) is head, "of one other class no scale can be found"


def test_two_classes_of_which_one_is_harmed_are_left_as_they_are() -> None:
    labels = np.repeat([0, 1], 100)
    features = np.stack([labels - 0.5, np.ones(200)], axis=1).astype(np.float32)

    class Worse(DFR):
        def fit_head(self, *_: Any, **__: Any) -> Head:
            return Head(np.array([[-1, 0], [1, 0.6]], np.float32), np.array([0, 0.6], np.float32), notes=("fitted",))

    own = Head(np.array([[-1, 0], [1, 0]], np.float32), np.zeros(2, np.float32))
    groups = Groups(labels, ("a", "b"), "classes", ())
    worse = Worse()
    head = worse.fit_head()
    verdict = judge_head(worse, head, features, labels, groups, own=own, class_names=("a", "b"))
    assert verdict.left_alone == "retraining makes class 'a' (100 % to 0 % of 100 images) worse"
    assert verdict.first_line == f"The classifier is left as it is: {verdict.left_alone}."
    handed_over = verdict.applied(head, own, features)
    assert np.array_equal(handed_over.weight, own.weight)
    assert handed_over.notes == (verdict.first_line, "fitted")


def test_noise_is_no_harm_and_by_heart_only_ruin_counts() -> None:
    labels = np.repeat([0, 1], 100)
    before, after = labels.copy(), labels.copy()
    after[:3] = 1
    assert not compare_classes(before, after, labels, labels, 2).worse.any(), "3 of 100, p = 1/8"
    after[:5] = 1
    found = compare_classes(before, after, labels, labels, 2)
    assert found.worse.tolist() == [True, False], "that is said, p = 1/32"
    assert not found.losing(), "but nothing is undone"
    after[:8] = 1
    assert compare_classes(before, after, labels, labels, 2).losing() == {0: pytest.approx(0.08)}
    assert not compare_classes(before, after, labels, labels, 2, by_heart=True).losing()
    after[:60] = 1
    assert compare_classes(before, after, labels, labels, 2, by_heart=True).losing() == {0: pytest.approx(0.6)}


def test_groups_count_alike_unless_they_are_made_of_errors() -> None:
    labels = np.zeros(110, dtype=np.int64)
    index = np.repeat([0, 1], [100, 10])
    before = np.where(np.arange(110) < 101, 0, 1)  # nine of the ten are wrong
    after = np.where((np.arange(110) >= 8) & (np.arange(110) != 109), 0, 1)
    found = compare_classes(before, after, labels, index, 2)
    assert found.losing() == {}, "the large group loses 8 %, the small one gains more"
    errors = Groups((before != labels).astype(np.int64), ("right", "wrong"), "error_set", ("class labels",))
    back = np.where(np.arange(110) < 40, 1, 0)  # whatever is predicted, errors can only become fewer
    assert compare_classes(before, back, labels, errors.index, 2).losing() == {}
    assert 0 in compare_classes(before, back, labels, parts_of_classes(errors), 2).losing()
    clusters = replace(errors, source="exmap")  # a shortcut that is always followed: its clusters are right and wrong
    assert parts_of_classes(clusters) is clusters.index


def test_a_rare_class_is_taken_to_lose_one_image_more_than_is_seen() -> None:
    labels = np.repeat([0, 1, 2], [200, 200, 5])
    same_again = compare_classes(labels, labels, labels, labels, 3)
    assert same_again.rare.tolist() == [False, False, True]
    assert same_again.losing() == {2: pytest.approx(0.2)}
    alone = np.repeat([0, 1], 5)
    assert not compare_classes(alone, alone, alone, alone, 2).losing(), "beside classes as small it is not rare"


# -- models ---------------------------------------------------------------------------------------------------------


def split(features: np.ndarray, labels: np.ndarray, name: str = "val") -> Split:
    return array_split(features[:, :, None, None], labels, class_names=list(NAMES), name=name)


def model(own: Head) -> nn.Module:
    last = nn.Linear(DIMENSIONS, 4)
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(own.weight))
        last.bias.copy_(torch.from_numpy(own.bias))
    return nn.Sequential(nn.Flatten(), last).eval()


def test_a_model_that_is_fitted_says_so_and_does_no_harm() -> None:
    own, (features, labels, groups) = trained(), drawn([330, 330, 335, 5], 0)
    learner, test = ClassBalanced(**QUICK), split(*drawn([300] * 4, 500)[:2], name="test")
    fitted = learner.fit(model(own), split(features, labels), groups)
    before, after = evaluate(model(own), test).accuracy, evaluate(fitted, test).accuracy
    assert after[3] > before[3] - 0.1
    assert learner.verdict_.first_line == learner.head_.notes[0]
    assert [each.class_name for each in learner.verdict_.classes if each.kept] == [
        NAMES[k] for k in learner.verdict_.kept
    ]


@pytest.mark.parametrize("learner", [DFR(**QUICK), AFR(gammas=(1.0,), lambdas=(0.0,), steps=20)])
def test_an_image_without_finite_features_is_left_out_and_named(learner: LastLayer) -> None:
    own, (features, labels, groups) = trained(), drawn([60] * 4, 0)
    broken = features.copy()
    broken[[3, 200], 1] = np.nan, np.inf
    given = split(broken, labels)
    with np.errstate(all="ignore"):
        fitted = learner.fit(model(own), given, groups)
    assert f"2 images were left out, because features hold NaN or infinity: {given.ids[3]}, {given.ids[200]}" in (
        learner.head_.notes
    )
    kept = np.setdiff1d(np.arange(len(labels)), [3, 200])
    without = learner.fit(model(own), split(features[kept], labels[kept]), replace(groups, index=groups.index[kept]))
    assert same(fitted, without)
    assert learner.head_.predict(np.array([[np.nan] * DIMENSIONS])).tolist() == [-1], "no class is right of it"
    with pytest.raises(DataError, match="NaN or infini"):
        learner.fit(model(own), split(np.full_like(features, np.nan), labels), groups)


def test_a_network_that_harms_a_class_is_not_handed_over_unless_asked_for() -> None:
    labels = np.repeat([0, 1, 2], 40)
    before, after = labels.copy(), labels.copy()
    before[:10] = 1
    after[80:110] = 0
    names = ("a", "b", "c")
    verdict = judge_network(before, after, labels, labels, names)
    assert verdict.left_alone == "retraining makes class 'c' (100 % to 25 % of 40 images) worse"
    insisted = judge_network(before, after, labels, labels, names, harm="warn")
    assert not insisted.left_alone
    assert "is handed over anyway" in insisted.first_line
    assert not judge_network(np.zeros(120, dtype=int), after, labels, labels, names).classes, "it was not trained yet"


def test_training_again_that_ruins_a_class_returns_the_network_as_it_was() -> None:
    data, val = biased(large=60, small=40), biased(large=40, small=40, seed=1)
    train = TRAIN.model_copy(update={"epochs": 3})
    good = ERM(train=train, runtime=RUNTIME).fit(net(), data)
    one_class = replace(data, labels=np.where(data.labels == 2, 0, data.labels), truth=None)
    selection = Selection(val, groups_of(val.labels))
    learner = ERM(train=train, runtime=RUNTIME)
    assert same(learner.fit(good, one_class, selection=selection), good)
    assert learner.verdict_.left_alone
    assert learner.notes_[0].startswith("The classifier is left as it is: retraining makes class")
    before, worst = collect_outputs(good, val).predicted, nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    insisted = replace(learner, harm="warn").judged(before, worst, selection)
    assert not insisted.left_alone
    assert "handed over anyway" in insisted.first_line
