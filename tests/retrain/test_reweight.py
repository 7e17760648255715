from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from planted_groups import (
    ERM,
    RUNTIME,
    SHORT,
    TRAIN,
    biased,
    groups_of,
    net,
    planted,
    same,
    true_groups,
    worst_accuracy,
)

from exmap.data import array_split
from exmap.errors import DataError, NumericalError
from exmap.records import Groups, silent
from exmap.retrain.learner import Selection, WholeNetwork
from exmap.retrain.reweight import RWG, SUBG, balanced_draws, checked_rows

BOTH = [RWG, SUBG]
SPLIT = biased()
GROUPS = true_groups(SPLIT)


def orders(learner: WholeNetwork, groups: Groups, epochs: int = 1, split=SPLIT) -> list[np.ndarray]:
    objective = learner.objective(net(), split, groups, silent)
    return [objective.order(epoch, np.random.default_rng(epoch)) for epoch in range(epochs)]


def test_chances_by_hand() -> None:
    drawn = balanced_draws(groups_of([2, -1, 0, 0, 2, 2, -1]))  # group 1 has no sample, and no part in it
    assert drawn.rows.tolist() == [0, 2, 3, 4, 5]
    assert drawn.chances == pytest.approx([1 / 6, 1 / 4, 1 / 4, 1 / 6, 1 / 6])


def test_pooled_chances_by_hand() -> None:
    groups = groups_of(np.repeat([0, 2, -1, 3], [5, 500, 7, 50]))  # group 1 has no sample
    drawn = balanced_draws(groups, pooled=50)
    shares = np.bincount(groups.index[drawn.rows], weights=drawn.chances)
    assert shares == pytest.approx(np.array([5 / 55, 0, 500 / 550, 50 / 100]) / (5 / 55 + 500 / 550 + 50 / 100))
    for group in (0, 2, 3):
        assert np.ptp(drawn.chances[groups.index[drawn.rows] == group]) == 0
    assert drawn.chances.sum() == pytest.approx(1)


def test_every_group_and_every_sample_in_it_is_drawn_equally_often() -> None:
    index = np.repeat([0, 1, 2, -1], [200, 40, 1, 9])
    split = array_split(np.zeros((250, 1, 8, 8), dtype=np.float32), np.arange(250) % 2)
    drawn = orders(RWG(SHORT, RUNTIME), groups_of(index), 400, split)
    assert {len(rows) for rows in drawn} == {241}
    times = np.bincount(np.concatenate(drawn), minlength=250)
    n, members = 241 * 400, {g: int((index == g).sum()) for g in range(3)}
    for g, size in members.items():  # five standard deviations of a binomial count
        chance = 1 / 3 / size
        assert abs(times[index == g].sum() - n / 3) < 5 * np.sqrt(n / 3 * 2 / 3), g
        assert np.abs(times[index == g] - n * chance).max() < 5 * np.sqrt(n * chance), g
    assert times[index == -1].sum() == 0


def test_the_subset_is_one_for_all_epochs_and_changes_with_the_seed() -> None:
    first, second = (np.sort(rows) for rows in orders(SUBG(SHORT, RUNTIME), GROUPS, 2))
    assert np.array_equal(first, second)
    assert np.array_equal(first, np.unique(first))
    assert np.bincount(GROUPS.index[first]).tolist() == [12] * 9
    (other,) = orders(SUBG(SHORT, RUNTIME, seed=1), GROUPS)
    assert not np.array_equal(first, np.sort(other))


def test_an_epoch_of_the_subset_is_shuffled() -> None:
    first, second = orders(SUBG(SHORT, RUNTIME), GROUPS, 2)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("smallest_group", "sizes"), [(6, [30, 30, 3]), (1, [3, 3, 3])])
def test_a_small_group_takes_part_with_all_it_has_and_is_named(smallest_group: int, sizes: list[int]) -> None:
    index = np.repeat([0, 1, 2], [50, 30, 3])
    split = array_split(np.zeros((83, 1, 8, 8), dtype=np.float32), np.arange(83) % 2)
    learner = SUBG(SHORT, RUNTIME, smallest_group=smallest_group)
    (rows,) = orders(learner, groups_of(index), split=split)
    assert np.bincount(index[rows]).tolist() == sizes
    assert [note for note in learner.notes_ if "'g2' has 3 samples, fewer than 6" in note] == (
        ["group 'g2' has 3 samples, fewer than 6: it takes part with all of them but does not set the balanced size"]
        if smallest_group == 6
        else []
    )
    assert (
        learner.notes_[0] == f"groups were cut to {max(sizes)} samples each: an epoch shows {sum(sizes)} of 83 samples"
    )


def test_the_loss_is_the_mean_cross_entropy_of_the_batch() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
    expected = (np.log(np.exp([2, 0, 0]).sum()) - 2 + np.log(np.exp([0, 1, 3]).sum()) - 1) / 2
    for learner in BOTH:
        objective = learner(SHORT, RUNTIME).objective(net(), SPLIT, GROUPS, silent)
        found = objective.loss(logits, torch.tensor([0, 1]), np.array([5, 3]))
        assert float(found) == pytest.approx(expected, rel=1e-6)
        assert np.array_equal(
            pickle.loads(pickle.dumps(objective)).order(0, np.random.default_rng(0)),
            objective.order(0, np.random.default_rng(0)),
        )


def test_each_selection_gets_the_epoch_it_would_get_alone() -> None:
    val = planted([[40] * 3] * 3, seed=5)
    chosen = [groups_of(index) for index in (val.labels, val.true_groups().index, np.where(val.labels == 1, 0, -1))]
    settings = TRAIN.model_copy(update={"select": "worst_class", "learning_rate": 0.1})
    trained = RWG(settings, RUNTIME)
    models = trained.fit_choices(net(), SPLIT, GROUPS, [Selection(val, groups) for groups in chosen])
    histories = trained.history_
    for model, groups, history in zip(models, chosen, histories, strict=True):
        alone = RWG(settings, RUNTIME)
        assert same(model, alone.fit(net(), SPLIT, GROUPS, selection=Selection(val, groups)))
        assert alone.history_ == [history]
        best = max(row["score"] for row in history)
        assert worst_accuracy(model, val, groups.index) == pytest.approx(best)
        assert len(history) == 6
    assert len({tuple(row["score"] for row in history) for history in histories}) == 3


@pytest.mark.parametrize("learner", BOTH)
def test_unassigned_samples_are_never_shown(learner: type[WholeNetwork]) -> None:
    images = SPLIT.images.batch(np.arange(len(SPLIT)))
    out = np.arange(len(SPLIT)) % 4 == 0
    images[out] = np.nan
    groups = groups_of(np.where(out, -1, GROUPS.index))
    trained = learner(SHORT, RUNTIME)
    model = trained.fit(net(), array_split(images, SPLIT.labels), groups)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert trained.notes_[-1] == f"{out.sum()} samples are in no group and were left out"


def test_the_worst_group_gains_over_erm_in_as_many_steps() -> None:
    split, test = biased(large=200, small=20), planted([[200] * 3] * 3, seed=100)
    index = test.true_groups().index
    erm = worst_accuracy(ERM(TRAIN, RUNTIME).fit(net(), split), test, index)
    for learner in BOTH:
        epochs = TRAIN.epochs * (4 if learner is SUBG else 1)  # its epochs are a fourth as long
        trained = learner(TRAIN.model_copy(update={"epochs": epochs}), RUNTIME)
        assert worst_accuracy(trained.fit(net(), split, true_groups(split)), test, index) > erm + 0.03


@pytest.mark.parametrize("learner", BOTH)
def test_groups_that_are_missing_or_not_of_the_split_are_refused(learner: type[WholeNetwork]) -> None:
    trained = learner(SHORT, RUNTIME)
    with pytest.raises(
        DataError, match=f"^the learner {learner.name} needs groups of the split it trains on, got none"
    ):
        trained.fit(net(), SPLIT)
    with pytest.raises(DataError, match=r"got 10 groups for 432 samples; use the groups of the same split$"):
        trained.fit(net(), SPLIT, groups_of(range(10)))
    with pytest.raises(DataError, match=r"all of split train are unassigned$"):
        trained.fit(net(), SPLIT, Groups(np.full(len(SPLIT), -1), ("a",), "own", ()))


@pytest.mark.parametrize(("learner", "least"), [(RWG, 1), (SUBG, 2)])
def test_a_class_without_groups_is_refused(learner: type[WholeNetwork], least: int) -> None:
    groups = groups_of(np.where(SPLIT.labels == 1, -1, GROUPS.index))
    with pytest.raises(DataError) as caught:
        learner(SHORT, RUNTIME).fit(net(), SPLIT, groups)
    assert str(caught.value) == (
        f"{learner.name} must show samples of each class, at least {least}, but 0 of class '1' would be left; give "
        "groups that do not mix classes, or more samples in groups"
    )


def test_one_sample_groups() -> None:
    index = np.arange(40) // 2 % 2 + 2 * (np.arange(40) % 2)  # two groups in each of two classes
    index[index == 3] = 2
    index[39] = 3  # group 3 keeps one sample
    split = array_split(np.random.default_rng(0).random((40, 2, 8, 8), dtype=np.float32), np.arange(40) % 2)
    groups = groups_of(index)
    assert groups.counts().tolist() == [10, 10, 19, 1]
    rows = np.concatenate(orders(RWG(SHORT, RUNTIME), groups, 100, split))
    assert 0.2 < np.mean(rows == 39) < 0.3
    learner = SUBG(SHORT, RUNTIME, smallest_group=1)
    (rows,) = orders(learner, groups, split=split)
    assert np.bincount(index[rows]).tolist() == [1, 1, 1, 1]
    assert learner.fit(net(2), split, groups) is not None
    (rows,) = orders(SUBG(SHORT, RUNTIME), groups, split=split)
    assert np.bincount(index[rows]).tolist() == [10, 10, 10, 1]
    classes = groups_of(np.where(index == 3, -1, split.labels))
    classes.index[split.labels == 1] = -1
    classes.index[39] = 1  # the only sample of its class that is left
    with pytest.raises(DataError, match=r"^subg must show samples of each class, at least 2, but 1 of class '1' would"):
        SUBG(SHORT, RUNTIME).fit(net(2), split, classes)


def test_fewer_samples_than_the_processes_need_are_refused() -> None:
    split = array_split(np.zeros((6, 2, 8, 8), dtype=np.float32), [0, 1] * 3)
    checked_rows("rwg", split, np.arange(4), 2)
    with pytest.raises(DataError) as caught:
        checked_rows("rwg", split, np.arange(3), 2)
    assert str(caught.value) == (
        "rwg must show at least 2 samples to each of 2 processes, but 3 would be left; give more samples in groups"
    )


@pytest.mark.parametrize("learner", BOTH)
def test_a_loss_that_is_not_finite_stops(learner: type[WholeNetwork]) -> None:
    settings = SHORT.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(NumericalError, match=r"lower train\.learning_rate"):
        learner(settings, RUNTIME).fit(net(), SPLIT, GROUPS)
