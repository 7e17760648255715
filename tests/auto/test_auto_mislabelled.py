"""Label errors are named and are no shortcut; the victims of a shortcut are not called mislabelled."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from exmap.auto import choose_groups
from exmap.auto.effort import Effort
from exmap.auto.exchange import Exchanges
from exmap.auto.mislabelled import doubtful_labels, doubtful_rows
from exmap.records import Explained, Heatmaps, Outputs
from exmap.results import PropertyReliance
from exmap.settings import AutoSettings

NAMES = ("above", "below")
QUICK = Effort(sizes=1, clusterings=("gap=relative",), fewest_halvings=1, most_halvings=1, draws=5, curve_draws=1)


def seen(
    classes: NDArray[np.int64], labels: NDArray[np.int64], *, sure: float = 4.0, seed: int = 0, apart: float = 0.0
) -> Explained:
    """Images of some classes with labels that may say another; `apart` moves wrong ones in a direction of their own."""
    rng = np.random.default_rng(seed)
    n, wrong = len(classes), classes != labels
    features = rng.normal(size=(n, 6)) + 4 * np.eye(6)[classes]
    features[wrong, 5] += apart
    maps = rng.normal(size=(n, 1, 6, 6)) + 2 * (np.arange(6) // 3 == classes[:, None])[:, None, :, None]
    margin = np.abs(rng.normal(sure, 1, n))
    logits = np.zeros((n, int(max(classes.max(), labels.max())) + 1))
    logits[np.arange(n), classes] = margin
    return Explained(
        "val",
        tuple(f"{row}.png" for row in range(n)),
        labels,
        NAMES if logits.shape[1] == 2 else tuple(map(str, range(logits.shape[1]))),
        Outputs(features.astype(np.float32), logits.astype(np.float32)),
        Heatmaps(
            maps.astype(np.float32),
            logits.argmax(1),
            np.zeros(n, dtype=np.float32),
            np.ones(n, dtype=np.bool_),
            np.zeros(n, dtype=np.bool_),
        ),
    )


def flipped(n: int, share: float, ways: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rng, classes = np.random.default_rng(seed), np.arange(n) % 2
    labels = classes.copy()
    for label in range(ways):
        labels[rng.choice(np.flatnonzero(classes == label), int(share * n), replace=False)] = 1 - label
    return classes, labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("share", [0.02, 0.04, 0.08])
def test_flipped_labels_are_named_exactly(share: float, ways: int, seed: int) -> None:
    classes, labels = flipped(600, share, ways, seed)
    explained = seen(classes, labels, seed=seed)
    found = doubtful_labels(explained, seed=seed)
    np.testing.assert_array_equal(doubtful_rows(found, explained), classes != labels)
    wanted = {NAMES[::-1], NAMES} if ways == 2 else {NAMES[::-1]}
    assert {(each.class_name, each.looks_like) for each in found} == wanted
    assert all(each.told_apart <= 0.7 for each in found)
    assert f"{int(share * 600)} images of 'below' look mislabelled" in " ".join(each.why for each in found)


def test_images_of_their_own_class_that_a_shortcut_leads_astray_are_not_named() -> None:
    classes, labels = flipped(600, 0.04, 1)
    assert doubtful_labels(seen(classes, labels, apart=4.0)) == ()


def test_pixels_tell_victims_apart_where_features_do_not() -> None:
    classes, labels = flipped(600, 0.04, 1)
    pixels = np.random.default_rng(1).normal(size=(600, 20)) + 3 * (classes != labels)[:, None]
    assert doubtful_labels(seen(classes, labels), pixels=lambda rows: pixels[rows]) == ()


def test_hard_images_are_not_named() -> None:
    classes, labels = flipped(600, 0.04, 1)
    explained = seen(classes, labels)
    explained.outputs.logits[classes != labels] *= 0.2  # hardly surer of one class than of the other
    assert doubtful_labels(explained) == ()


def test_the_surest_errors_are_named_where_a_few_others_are_hard() -> None:
    classes, labels = flipped(600, 0.06, 1)
    explained = seen(classes, labels, sure=6.0)
    wrong = np.flatnonzero(classes != labels)
    explained.outputs.logits[wrong[:9]] *= 0.1
    named = np.flatnonzero(doubtful_rows(doubtful_labels(explained), explained))
    assert set(named) <= set(wrong[9:])
    assert len(named) >= 20


def test_a_classifier_that_takes_every_image_for_one_class_is_wrong_and_not_the_labels() -> None:
    labels = np.arange(100) % 2
    assert doubtful_labels(seen(np.zeros_like(labels), labels)) == ()


def test_many_classes_with_labels_drawn_at_random() -> None:
    rng = np.random.default_rng(0)
    classes = np.arange(2_000) % 5
    labels = classes.copy()
    rows = rng.choice(2_000, 100, replace=False)
    labels[rows] = (classes[rows] + rng.integers(1, 5, 100)) % 5
    explained = seen(classes, labels)
    found = doubtful_rows(doubtful_labels(explained), explained)
    assert not found[classes == labels].any()
    assert found[classes != labels].mean() > 0.7


@pytest.mark.parametrize("case", ["no error", "no logit is finite", "two images"])
def test_what_cannot_be_asked_names_nothing(case: str) -> None:
    classes, labels = flipped(100, 0.0 if case == "no error" else 0.1, 1)
    explained = seen(classes, labels)
    if case == "no logit is finite":
        explained.outputs.logits[:] = np.nan
    if case == "two images":
        explained = explained.rows(np.array([0, 1]))
    assert doubtful_labels(explained) == ()


def relied_on(name: str) -> PropertyReliance:
    shares = {"moved": 1.0, "moved_low": 0.9, "turned": 1.0, "turned_control": 0.0, "p_value": 0.0}
    return PropertyReliance(property="place", class_name=name, pairs=50, relied_on=True, **shares)


def test_label_errors_are_no_shortcut_and_are_left_out_of_the_groups() -> None:
    classes, labels = flipped(400, 0.04, 1)
    explained = seen(classes, labels)
    votes = np.where(np.arange(2) == classes[:, None], 1.0, -1.0).astype(np.float32)  # the place is the class
    exchanges = Exchanges(tuple(map(relied_on, NAMES)), {"place": votes}, mislabelled=())
    blind = choose_groups(explained, exchanges=exchanges, settings=AutoSettings(), effort=QUICK)
    assert blind.record.shortcut["below"].found  # what it was before anybody asked for label errors
    told = Exchanges(exchanges.reliances, exchanges.votes, mislabelled=doubtful_labels(explained))
    for given in (told, None):
        choice = choose_groups(explained, exchanges=given, settings=AutoSettings(), effort=QUICK)
        assert not choice.repair
        assert not choice.record.found
        (named,) = choice.record.mislabelled
        assert (named.class_name, named.looks_like, len(named.images)) == ("below", "above", 16)
        np.testing.assert_array_equal(choice.groups.index < 0, classes != labels)
        assert named.why in choice.record.remarks
        assert type(choice.record).from_json(choice.record.to_json()) == choice.record


def test_images_without_finite_logits_are_in_no_group() -> None:
    classes, labels = flipped(200, 0.05, 1)
    labels = np.where(np.arange(200) < 100, classes, labels)  # no label error among the first hundred
    explained = seen(classes, labels)
    explained.outputs.logits[:3] = np.nan
    explained.outputs.features[[4, 5]] = np.inf  # one of each class
    choice = choose_groups(explained, effort=QUICK)
    unassigned = np.flatnonzero(choice.groups.index < 0)
    assert {0, 1, 2, 4, 5} <= set(unassigned)
    assert set(unassigned) - {0, 1, 2, 4, 5} <= set(np.flatnonzero(classes != labels))
