from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from planted_features import misled_head, planted_features, worst

from exmap.errors import DataError
from exmap.retrain import ClassBalanced, NeuronTune
from exmap.retrain.neurontune import spuriousness

QUICK: dict[str, Any] = {"strengths": (1.0, 0.1), "subsamples": 4, "tuning_splits": 3}


def test_scores_are_medians_of_magnitudes_wrong_less_right() -> None:
    features, labels, _ = planted_features(3, n=90)
    wrong = np.random.default_rng(0).random(90) < 0.3
    wrong[labels == 2] = False
    found = spuriousness(features, labels, wrong)
    for k in (0, 1):
        for i in range(features.shape[1]):
            column = [abs(float(x)) for x in features[:, i]]
            sides = [
                [x for x, y, w in zip(column, labels, wrong, strict=True) if y == k and w == side] for side in (1, 0)
            ]
            assert found[k, i] == pytest.approx(np.median(sides[0]) - np.median(sides[1]))
    assert not found[2].any()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_planted_shortcut_is_set_to_zero_and_the_minority_recovered(n_classes: int) -> None:
    given, fresh = planted_features(n_classes), planted_features(n_classes, seed=50, minority=0.5)
    own = misled_head(n_classes)
    found = NeuronTune(**QUICK).fit_head(*given, n_classes=n_classes, head=own)
    plain = ClassBalanced(**QUICK).fit_head(*given, n_classes=n_classes)
    assert not found.weight[:, n_classes : 2 * n_classes].any()
    assert np.diag(found.weight).min() > 0.1
    assert worst(found, *fresh) > max(worst(plain, *fresh), worst(own, *fresh) + 0.5)
    assert set(found.chosen) == {"threshold", "strength"}
    assert found.strength == found.chosen["strength"]
    assert len(found.tuning) == 10
    assert found.tuning[f"threshold={found.chosen['threshold']:g}, strength={found.strength:g}"] == max(
        found.tuning.values()
    )
    assert "features were set to zero" in found.notes[0]


def test_a_threshold_beyond_all_scores_is_class_balanced_retraining() -> None:
    given, own = planted_features(3), misled_head(3)
    one: dict[str, Any] = {"strengths": (0.3,), "subsamples": 3, "seed": 2}
    found = NeuronTune(thresholds=(100.0,), **one).fit_head(*given, n_classes=3, head=own)
    plain = ClassBalanced(**one).fit_head(*given, n_classes=3)
    np.testing.assert_allclose(found.weight, plain.weight, atol=1e-6)
    np.testing.assert_allclose(found.bias, plain.bias, atol=1e-5)
    assert found.tuning == {}


def test_a_threshold_that_would_leave_no_feature_leaves_all() -> None:
    features, labels, groups = planted_features()
    own = misled_head()
    features[own.predict(features) != labels] *= 50
    found = NeuronTune(thresholds=(0.0,), strengths=(1.0,), subsamples=2).fit_head(
        features, labels, groups, n_classes=2, head=own
    )
    assert "0 of 10 features" in found.notes[0]


def test_a_classifier_without_errors_teaches_nothing_of_features() -> None:
    features, labels, groups = planted_features(minority=0.0)
    own = misled_head()
    found = NeuronTune(**QUICK).fit_head(features, labels, groups, n_classes=2, head=own)
    assert "0 of 10 features" in found.notes[0]
    assert "no image of classes 0, 1 wrong, so nothing is learned of features from them" in found.notes[1]


def test_the_fit_for_parts_chooses_nothing_again() -> None:
    given, own = planted_features(), misled_head()
    learner = NeuronTune(**QUICK)
    found = learner.fit_head(*given, n_classes=2, head=own)
    lighter = learner.for_parts(found, given[2], 2)
    assert lighter.thresholds == (found.chosen["threshold"],)
    assert lighter.strengths == (found.strength,)
    assert lighter.subsamples == 2


def test_without_the_head_that_belongs_to_the_features_there_are_no_errors_to_look_at() -> None:
    given = planted_features()
    with pytest.raises(DataError, match="no head was given"):
        NeuronTune().fit_head(*given, n_classes=2)
    with pytest.raises(DataError, match=r"shape \(2, 10\), got \(3, 12\)"):
        NeuronTune().fit_head(*given, n_classes=2, head=misled_head(3))
