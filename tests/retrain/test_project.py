from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from planted_features import classes_alone, misled_head, planted_features, worst

from exmap.records import Groups
from exmap.retrain import DFR, Project
from exmap.retrain.edited import Samples
from exmap.retrain.project import group_differences

QUICK: dict[str, Any] = {"strengths": (1.0, 0.1), "subsamples": 4, "tuning_splits": 3}
BOTH = pytest.mark.parametrize("covariance", ["shrunken", "none"])


def samples_of(features: np.ndarray, labels: np.ndarray, groups: Groups) -> Samples:
    return Samples(features, labels, groups.index, np.zeros(len(labels), dtype=bool))


@BOTH
@pytest.mark.parametrize("n_classes", [2, 3])
def test_after_all_directions_group_means_are_equal_inside_each_class(n_classes: int, covariance: Any) -> None:
    given = planted_features(n_classes, minority=0.4)
    edit = Project(directions=(99,), covariance=covariance).edits(samples_of(*given))[0]
    edited = edit.applied(given[0])
    labels, index = given[1], given[2].index
    for k in range(n_classes):
        means = np.array([edited[index == g].mean(axis=0) for g in np.unique(index[labels == k])])
        np.testing.assert_allclose(means - means[0], 0, atol=1e-5)
    again = edit.applied(edited)
    np.testing.assert_allclose(again, edited, atol=1e-8)  # what is gone is gone
    weight = np.random.default_rng(0).normal(size=(n_classes, given[0].shape[1]))
    np.testing.assert_allclose(given[0] @ edit.folded(weight).T, edited @ weight.T, atol=1e-6)


def test_without_covariance_it_is_the_orthogonal_projection_of_standardised_features() -> None:
    given = planted_features(minority=0.3)
    edit = Project(directions=(1,), covariance="none").edits(samples_of(*given))[0]
    spread = given[0].std(axis=0, dtype=np.float64)
    scaled = given[0] / spread
    differences = group_differences(scaled, given[1], given[2].index, 6)[0]
    direction = np.linalg.svd(differences)[2][0]
    wanted = scaled - np.outer(scaled @ direction, direction)
    np.testing.assert_allclose(edit.applied(given[0]) / spread, wanted, atol=1e-6)


def test_the_shrunken_one_leaves_more_of_what_only_goes_along_with_the_shortcut() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 400)
    noise = rng.normal(0, 1, 800)
    features = np.stack([noise + 0.2 * rng.normal(size=800) + groups, noise + 0.2 * rng.normal(size=800)], axis=1)
    samples = Samples(features, np.zeros(800, np.int64), groups, np.zeros(800, dtype=bool))
    left = {
        how: Project(directions=(1,), covariance=how).edits(samples)[0].applied(features)  # type: ignore[arg-type]
        for how in ("shrunken", "none")
    }
    change = {how: np.linalg.norm(edited - features, axis=1).mean() for how, edited in left.items()}
    assert change["shrunken"] < 0.75 * change["none"]


@BOTH
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_planted_minority_is_recovered(n_classes: int, covariance: Any) -> None:
    given, fresh = planted_features(n_classes), planted_features(n_classes, seed=50, minority=0.5)
    found = Project(**QUICK, covariance=covariance).fit_head(*given, n_classes=n_classes)
    oracle = DFR(**QUICK).fit_head(*given, n_classes=n_classes)
    assert worst(found, *fresh) > max(0.8, worst(oracle, *fresh) - 0.03, worst(misled_head(n_classes), *fresh) + 0.5)
    assert set(found.chosen) == {"directions", "strength"}
    assert "of" in found.notes[0]
    assert "projected out" in found.notes[0]


def test_no_direction_is_dfr() -> None:
    given = planted_features(3)
    one: dict[str, Any] = {"strengths": (0.3,), "subsamples": 3, "seed": 2}
    found = Project(directions=(0,), **one).fit_head(*given, n_classes=3)
    plain = DFR(**one).fit_head(*given, n_classes=3)
    np.testing.assert_allclose(found.weight, plain.weight, atol=1e-6)
    np.testing.assert_allclose(found.bias, plain.bias, atol=1e-5)


def test_no_direction_that_was_chosen_is_not_taken_for_none_that_there_is() -> None:
    given = planted_features(3)
    found = Project(directions=(0, 1), strengths=(0.3,), subsamples=2, tuning_splits=1).fit_head(*given, n_classes=3)
    number = int(found.chosen["directions"])
    plural = "" if number == 1 else "s"
    assert found.notes[0] == f"{number} direction{plural} of 12 features projected out"
    learner, samples = Project(directions=(0, 1)), samples_of(*given)
    assert learner.notes(learner.edits(samples)[0], samples, given[2])[0] == "0 directions of 12 features projected out"


def test_classes_without_two_groups_give_no_direction_and_it_is_said() -> None:
    features, labels, _ = planted_features()
    found = Project(**QUICK).fit_head(features, labels, classes_alone(labels), n_classes=2)
    assert found.notes[0].startswith("no class has two groups")
    assert np.isfinite(found.weight).all()


def test_a_feature_that_is_nothing_but_the_shortcut_gets_no_weight_from_rounding() -> None:
    features, labels, groups = planted_features(minority=0.4)
    attribute = (groups.index % 2).astype(np.float32)
    features = np.concatenate([features[:, :2], 7 * attribute[:, None], np.full((len(labels), 1), 3.0)], axis=1)
    for covariance in ("none", "shrunken"):
        found = Project(directions=(1,), covariance=covariance, strengths=(1.0,), subsamples=2).fit_head(  # type: ignore[arg-type]
            features.astype(np.float32), labels, groups, n_classes=2
        )
        assert np.abs(found.weight).max() < 20
        assert (found.predict(features) == labels).mean() > 0.9


def test_unassigned_samples_have_no_part() -> None:
    features, labels, groups = planted_features()
    index = np.where(np.arange(len(labels)) % 5 == 0, -1, groups.index)
    differences, rest = group_differences(features.astype(np.float64), labels, index, 1)
    assert len(rest) == (index >= 0).sum()
    assert len(differences) == 4
    partly = Groups(index, groups.names, "test", ())
    found = Project(**QUICK).fit_head(features, labels, partly, n_classes=2)
    assert any("120 samples are in no group" in note for note in found.notes)
