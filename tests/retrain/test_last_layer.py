from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import nn

from exmap.data import array_split
from exmap.errors import DataError
from exmap.records import Groups, Progress
from exmap.retrain import DFR, Head, balanced_subset
from exmap.retrain.last_layer import ClassBalanced
from exmap.runtime import generator

QUICK: dict[str, Any] = {"strengths": (0.3,), "subsamples": 4}
Planted = tuple[np.ndarray, np.ndarray, Groups]


def planted(n_classes: int = 3, *, n: int = 400, seed: int = 0, minority: float = 0.06) -> Planted:
    """Features: a faint trace of the class, a loud one of the attribute, noise; and a last feature that is always 0."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    other = (labels + rng.integers(1, n_classes, n)) % n_classes
    attributes = np.where(rng.random(n) < minority, other, labels)
    core = 2.0 * np.eye(n_classes)[labels] + rng.normal(0, 0.8, (n, n_classes))
    loud = 6.0 * np.eye(n_classes)[attributes] + rng.normal(0, 0.3, (n, n_classes))
    features = np.concatenate([core, loud, rng.normal(3, 2, (n, 3)), np.zeros((n, 1))], axis=1).astype(np.float32)
    names = tuple(f"class {y}, attribute {a}" for y in range(n_classes) for a in range(n_classes))
    return features, labels, Groups(labels * n_classes + attributes, names, "test", ("class labels",))


def worst(head: Head, features: np.ndarray, labels: np.ndarray, groups: Groups) -> float:
    right = head.predict(features) == labels
    return min(float(right[groups.index == g].mean()) for g in np.unique(groups.index[groups.index >= 0]))


def slow_fit(features: np.ndarray, labels: np.ndarray, rows: np.ndarray, strength: float) -> LogisticRegression:
    how = {"solver": "saga", "tol": 1e-8, "max_iter": 20_000}
    if len(np.unique(labels[rows])) == 2:
        how = {"solver": "liblinear", "max_iter": 500}
    regression = LogisticRegression(l1_ratio=1, C=strength, random_state=0, **how)
    return regression.fit(features[rows], labels[rows])


def standardised(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    deviation = features.std(axis=0)
    return (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_planted_minority_is_recovered(seed: int, n_classes: int) -> None:
    features, labels, groups = planted(n_classes, n=1200, seed=seed)
    balanced = DFR(**QUICK, seed=seed).fit_head(features, labels, groups, n_classes=n_classes)
    by_class = Groups(labels, tuple("abc"[:n_classes]), "classes", ())
    plain = DFR(**QUICK, seed=seed).fit_head(features, labels, by_class, n_classes=n_classes)
    fresh = planted(n_classes, n=600, seed=seed + 50, minority=0.5)
    assert balanced.weight.shape == (n_classes, features.shape[1])
    assert balanced.weight.dtype == balanced.bias.dtype == np.float32
    assert worst(balanced, *fresh) > max(0.78, worst(plain, *fresh) + 0.08)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_folded_head_averages_the_logits_of_the_standardised_heads(seed: int, n_classes: int) -> None:
    features, labels, groups = planted(n_classes, seed=seed)
    head = DFR(**QUICK, seed=seed).fit_head(features, labels, groups, n_classes=n_classes)
    scaled = standardised(features)
    total = np.zeros((len(features), n_classes))
    for number in range(4):
        rows = balanced_subset(groups.index, generator(seed, "subsample", number))
        decision = slow_fit(scaled, labels, rows, 0.3).decision_function(scaled)
        total += np.stack([-decision / 2, decision / 2], axis=1) if decision.ndim == 1 else decision
    np.testing.assert_allclose(features @ head.weight.T + head.bias, total / 4, atol=1e-3)
    assert (head.predict(features) == (total / 4).argmax(axis=1)).mean() > 0.99
    assert head.strength == 0.3
    assert head.chosen == {"strength": 0.3}
    assert head.tuning == {}


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_the_strength_is_the_one_that_a_plain_reading_of_the_method_chooses(seed: int, n_classes: int) -> None:
    features, labels, groups = planted(n_classes, n=240, seed=seed)
    strengths = (1.0, 0.1, 0.03, 0.003)
    head = DFR(strengths, tuning_splits=3, subsamples=1, seed=seed).fit_head(
        features, labels, groups, n_classes=n_classes
    )
    scaled, wanted = standardised(features), {}
    for strength in strengths:
        scores = []
        for number in range(3):
            rng = generator(seed, "halves", number)
            order = rng.permutation(len(labels))
            fitted, held_out = order[: len(order) // 2], order[len(order) // 2 :]
            rows = fitted[balanced_subset(groups.index[fitted], rng)]
            right = slow_fit(scaled, labels, rows, strength).predict(scaled) == labels
            parts = [held_out[groups.index[held_out] == g] for g in range(n_classes**2)]
            scores.append(min(right[part].mean() for part in parts if len(part)))
        wanted[strength] = float(np.mean(scores))
    assert head.tuning == pytest.approx(wanted)
    assert head.strength == next(c for c in strengths if wanted[c] == max(wanted.values()))
    assert len(set(wanted.values())) > 1


def test_the_same_seed_gives_the_same_head_and_another_seed_another() -> None:
    features, labels, groups = planted()
    one, same, other = (DFR(**QUICK, seed=s).fit_head(features, labels, groups, n_classes=3) for s in (1, 1, 2))
    assert one.weight.tobytes() == same.weight.tobytes()
    assert one.bias.tobytes() == same.bias.tobytes()
    assert not np.array_equal(one.weight, other.weight)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_any_number_of_threads_gives_the_same_head(n_classes: int) -> None:
    features, labels, groups = planted(n_classes)
    heads = []
    for threads in (1, 2, 4):
        with threadpool_limits(threads, "blas"):
            heads.append(DFR(**QUICK).fit_head(features, labels, groups, n_classes=n_classes))
    assert len({head.weight.tobytes() + head.bias.tobytes() for head in heads}) == 1
    assert len({tuple(head.tuning.items()) for head in heads}) == 1


def test_constant_features_get_no_weight() -> None:
    features, labels, groups = planted()
    head = DFR(**QUICK).fit_head(features, labels, groups, n_classes=3)
    assert not head.weight[:, -1].any()
    assert np.isfinite(head.weight).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_feature_that_is_not_zero_changes_nothing(dtype: type) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(300) < 0.2).astype(np.int64)
    features = (rng.normal(size=(300, 4)) + 2 * labels[:, None]).astype(dtype)
    groups = Groups(labels, ("a", "b"), "classes", ())
    features[:, 3] = 0
    plain = DFR(**QUICK).fit_head(features, labels, groups, n_classes=2)
    features[:, 3] = 0.1
    head = DFR(**QUICK).fit_head(features, labels, groups, n_classes=2)

    np.testing.assert_allclose(head.weight, plain.weight, atol=1e-4)
    np.testing.assert_allclose(head.bias, plain.bias, atol=1e-4)


def test_a_class_without_samples_is_never_predicted() -> None:
    features, labels, groups = planted(2)
    head = DFR(**QUICK).fit_head(features, labels, groups, n_classes=3)
    assert head.weight.shape == (3, features.shape[1])
    assert set(head.predict(features)) == {0, 1}
    assert np.isfinite(head.bias).all()


def test_notes_name_small_groups_and_unassigned_samples() -> None:
    features, labels, groups = planted()
    index = groups.index.copy()
    index[index == 1] = -1
    index[np.flatnonzero(index == 2)[3:]] = -1
    three = int((index == 2).sum())
    notes = DFR(**QUICK).fit_head(features, labels, Groups(index, groups.names, "t", ()), n_classes=3).notes
    assert any(note.startswith(f"group 'class 0, attribute 2' has {three} samples, fewer than 6") for note in notes)
    assert f"{(index < 0).sum()} samples are in no group and were left out" in notes
    assert not any("'class 0, attribute 1'" in note for note in notes)  # it is empty
    large = Groups(labels, ("a", "b", "c"), "t", ())
    assert DFR(**QUICK).fit_head(features, labels, large, n_classes=3).notes == ()


def test_unassigned_samples_do_not_teach() -> None:
    features, labels, groups = planted()
    index = groups.index.copy()
    index[::7] = -1
    lied = labels.copy()
    lied[::7] = (labels[::7] + 1) % 3
    kept = Groups(index, groups.names, "t", ())
    one = DFR(strengths=(1.0, 0.1), tuning_splits=2, subsamples=2).fit_head(features, labels, kept, n_classes=3)
    other = DFR(strengths=(1.0, 0.1), tuning_splits=2, subsamples=2).fit_head(features, lied, kept, n_classes=3)
    assert np.array_equal(one.weight, other.weight)
    assert one.tuning == other.tuning


def test_fits_that_stop_early_are_noted_and_do_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exmap.retrain.last_layer.MOST_ITERATIONS", 5)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(90, 60)) * np.geomspace(1, 1e4, 60) + rng.standard_cauchy((90, 60))
    labels = np.arange(90) % 3
    head = DFR(strengths=(1e6,), subsamples=2).fit_head(
        features, labels, Groups(labels, tuple("abc"), "t", ()), n_classes=3
    )
    assert "2 logistic regressions stopped at their iteration limit" in head.notes


def test_progress_is_told_for_each_split_and_fit() -> None:
    features, labels, groups = planted(n=200)
    told: list[Progress] = []
    learner = DFR(strengths=(0.1, 0.01), tuning_splits=2, subsamples=3)
    learner.fit_head(features, labels, groups, n_classes=3, listen=told.append)
    assert [(p.task, p.done, p.total) for p in told] == [
        *(("tune", i, 2) for i in (1, 2)),
        *(("retrain", i, 3) for i in (1, 2, 3)),
    ]


def test_arrays_of_different_lengths_are_refused() -> None:
    features, labels, groups = planted(n=60)
    with pytest.raises(DataError, match="got 59 vectors, 60 labels and 60 groups; use the groups of the same split"):
        DFR(**QUICK).fit_head(features[:59], labels, groups, n_classes=3)


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels, groups = planted(n=60)
    features[3, 1] = np.nan
    with pytest.raises(DataError, match="retraining needs finite features"):
        DFR(**QUICK).fit_head(features, labels, groups, n_classes=3)


def test_fewer_than_two_classes_with_groups_are_refused() -> None:
    features, labels, groups = planted(n=60)
    index = np.where(labels == 1, groups.index, -1)
    for one_class in (index, np.full(60, -1)):
        with pytest.raises(DataError, match="retraining needs samples of at least 2 classes"):
            DFR(**QUICK).fit_head(features, labels, Groups(one_class, groups.names, "t", ()), n_classes=3)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_class_balanced_is_dfr_with_the_classes_as_groups(n_classes: int) -> None:
    features, labels, groups = planted(n_classes, n=200)
    options: dict[str, Any] = {"strengths": (1.0, 0.01), "tuning_splits": 2, "subsamples": 2, "seed": 5}
    by_class = Groups(labels, tuple("abc"[:n_classes]), "classes", ())
    wanted = DFR(**options).fit_head(features, labels, by_class, n_classes=n_classes)
    for ignored in (None, groups):
        found = ClassBalanced(**options).fit_head(features, labels, ignored, n_classes=n_classes)
        assert np.array_equal(found.weight, wanted.weight)
        assert np.array_equal(found.bias, wanted.bias)
        assert (found.strength, found.tuning, found.notes) == (wanted.strength, wanted.tuning, wanted.notes)


def test_class_balanced_refuses_labels_of_another_length() -> None:
    features, labels, _ = planted(n=60)
    with pytest.raises(DataError, match="got 60 vectors, 59 labels and 59 groups"):
        ClassBalanced(**QUICK).fit_head(features, labels[:59], n_classes=3)


def test_learners_say_what_they_use_groups_for() -> None:
    assert (DFR.name, DFR.part, DFR.fits_groups, DFR.tunes_groups) == ("dfr", "last layer", True, True)
    assert (ClassBalanced.name, ClassBalanced.part) == ("class_balanced", "last layer")
    assert (ClassBalanced.fits_groups, ClassBalanced.tunes_groups) == (False, False)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    )


def test_fit_returns_an_ordinary_model_with_another_head_and_leaves_the_model_alone() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = rng.random((60, 3, 8, 8)).astype(np.float32)
    images[np.arange(60), labels] += 0.5
    split, model = array_split(images, labels), small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learner = DFR(strengths=(1.0,), subsamples=2)
    retrained = learner.fit(model, split, Groups(labels, ("0", "1", "2"), "classes", ()))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert type(retrained) is nn.Sequential
    assert type(retrained[-1]) is nn.Linear
    assert all(
        torch.equal(one, other) for one, other in zip(model[:-1].parameters(), retrained[:-1].parameters(), strict=True)
    )
    with torch.no_grad():
        features = model.eval()[:-1](torch.from_numpy(images)).numpy()
        logits = retrained.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits, features @ learner.head_.weight.T + learner.head_.bias, rtol=1e-4, atol=1e-4)
    assert learner.head_.predict(features).tolist() == logits.argmax(axis=1).tolist()
    assert (logits.argmax(axis=1) == labels).mean() > 0.9
    nn.init.zeros_(retrained[0].weight)  # the two models share no memory
    assert torch.equal(model[0].weight, before["0.weight"])


def test_fit_refuses_groups_of_another_split() -> None:
    split = array_split(np.zeros((9, 3, 8, 8), dtype=np.float32), np.arange(9) % 3)
    with pytest.raises(DataError, match="got 9 vectors, 9 labels and 8 groups"):
        DFR(**QUICK).fit(small_model(), split, Groups(np.arange(8) % 3, ("0", "1", "2"), "classes", ()))


def test_class_balanced_fit_needs_no_groups() -> None:
    labels = np.arange(30) % 3
    split = array_split(np.random.default_rng(0).random((30, 3, 8, 8)).astype(np.float32), labels)
    model, options = small_model(), {"strengths": (1.0,), "subsamples": 1}
    found = ClassBalanced(**options).fit(model, split)
    wanted = DFR(**options).fit(model, split, Groups(labels, ("0", "1", "2"), "classes", ()))
    assert torch.equal(found[-1].weight, wanted[-1].weight)
