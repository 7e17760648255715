from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planted_features import classes_alone, misled_head, planted_features, worst

from exmap.errors import DataError
from exmap.retrain import DPE

BALANCES = ("groups", "classes")
QUICK: dict[str, Any] = {"members": 4, "steps": (10, 60), "tuning_splits": 2, "learning_rate": 0.05}


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("diversity", [0.0, 2.0])
def test_the_slope_is_that_of_the_loss(diversity: float, n_classes: int) -> None:
    rng = np.random.default_rng(0)
    learner = DPE(members=3, temperature=5.0, diversity=diversity)
    prototypes = rng.normal(size=(3, n_classes, 4))
    inputs = rng.normal(size=(3, 7, 4))
    inputs /= np.linalg.norm(inputs, axis=2, keepdims=True)
    targets = rng.integers(0, n_classes, (3, 7))

    def loss(p: np.ndarray) -> float:
        p = p / np.linalg.norm(p, axis=2, keepdims=True)
        total = 0.0
        for m in range(3):
            for x, y in zip(inputs[m], targets[m], strict=True):
                logits = 5.0 * p[m] @ x
                total += (np.log(np.exp(logits).sum()) - logits[y]) / 7
        alike = [abs(p[a, k] @ p[b, k]) for k in range(n_classes) for a in range(3) for b in range(3) if a != b]
        return float(total + diversity * np.mean(alike))

    found = learner._slope(prototypes, inputs, targets)
    for place in np.ndindex(prototypes.shape):
        step = np.zeros_like(prototypes)
        step[place] = 1e-6
        assert found[place] == pytest.approx((loss(prototypes + step) - loss(prototypes - step)) / 2e-6, abs=1e-4)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_planted_minority_is_recovered(n_classes: int) -> None:
    given, fresh = planted_features(n_classes, n=1200), planted_features(n_classes, seed=50, minority=0.5)
    found = DPE(**QUICK).fit_head(*given, n_classes=n_classes)
    features, labels, _ = given
    plain = DPE(**QUICK).fit_head(features, labels, classes_alone(labels), n_classes=n_classes)
    assert worst(found, *fresh) > max(0.7, worst(plain, *fresh), worst(misled_head(n_classes), *fresh) + 0.4)
    assert found.weight.dtype == found.bias.dtype == np.float32
    assert found.chosen["steps"] in (10, 60)
    assert set(found.tuning) == {"steps=10", "steps=60"}


def test_the_layer_predicts_what_the_members_mean_similarity_predicts() -> None:
    features, labels, groups = planted_features(3)
    learner = DPE(members=4, steps=(20,))
    found = learner.fit_head(features, labels, groups, n_classes=3)
    scaled = (features - features.mean(axis=0, dtype=np.float64)) / features.std(axis=0, dtype=np.float64)
    inputs = (scaled / np.linalg.norm(scaled, axis=1, keepdims=True)).astype(np.float32)
    weight, present = learner._train(inputs, labels, groups.index, 3, [20], "members")[20]
    assert present.all()
    similar = inputs @ weight.T  # the mean over members of the cosines with their prototypes
    assert (found.predict(features) == similar.argmax(axis=1)).mean() > 0.998
    norms = np.linalg.norm(scaled, axis=1)
    logits = features @ found.weight.T + found.bias
    np.testing.assert_allclose(logits * (norms.mean() / norms)[:, None], 30 * similar, atol=1e-3)


def test_members_are_less_alike_where_that_is_penalised() -> None:
    features, labels, groups = planted_features(3)
    alike = []
    for diversity in (0.0, 3.0):
        learner = DPE(members=4, steps=(150,), diversity=diversity, learning_rate=0.05)
        weight = learner._train(features, labels, groups.index, 3, [150], "members")[150][0]
        alike.append(np.linalg.norm(weight, axis=1).mean())  # of a mean of unit vectors: 1 if all are the same
    assert alike[1] < 0.9 * alike[0]


def test_steps_of_one_training_are_those_of_shorter_ones() -> None:
    features, labels, groups = planted_features()
    learner = DPE(members=3)
    both = learner._train(features, labels, groups.index, 2, [5, 15], "members")
    for steps in (5, 15):
        alone = learner._train(features, labels, groups.index, 2, [steps], "members")[steps]
        assert np.array_equal(alone[0], both[steps][0])


def test_large_subsets_are_seen_in_batches_and_seeds_reproduce() -> None:
    given = planted_features(2, n=2400, minority=0.5)
    first, again, other = (DPE(members=2, steps=(8,), seed=seed).fit_head(*given, n_classes=2) for seed in (1, 1, 2))
    assert np.array_equal(first.weight, again.weight)
    assert not np.array_equal(first.weight, other.weight)


def test_balanced_by_classes_groups_choose_the_number_of_steps_alone() -> None:
    features, labels, groups = planted_features()
    one: dict[str, Any] = {"members": 3, "steps": (20,), "balance": "classes"}
    by_groups = DPE(**one).fit_head(features, labels, groups, n_classes=2)
    by_classes = DPE(**one).fit_head(features, labels, classes_alone(labels), n_classes=2)
    assert np.array_equal(by_groups.weight, by_classes.weight)
    rare = replace(groups, index=np.where((groups.index == 1) & (np.cumsum(groups.index == 1) > 3), -1, groups.index))
    notes = {how: DPE(**one | {"balance": how}).fit_head(features, labels, rare, n_classes=2).notes for how in BALANCES}
    assert [any("does not set the balanced size" in note for note in notes[how]) for how in BALANCES] == [True, False]


def test_a_class_without_samples_is_never_predicted() -> None:
    features, labels, groups = planted_features()
    found = DPE(**QUICK).fit_head(features, labels, groups, n_classes=3)
    assert set(found.predict(features)) == {0, 1}


def test_the_fit_for_parts_chooses_nothing_again() -> None:
    given = planted_features()
    learner = DPE(**QUICK)
    found = learner.fit_head(*given, n_classes=2)
    assert learner.for_parts(found, given[2], 5).steps == (int(found.chosen["steps"]),)


def test_groups_are_needed() -> None:
    features, labels, _ = planted_features()
    with pytest.raises(DataError, match="needs the groups"):
        DPE().fit_head(features, labels, None, n_classes=2)
