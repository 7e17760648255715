from __future__ import annotations

import math
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
from exmap.errors import DataError, NumericalError, SettingsError
from exmap.records import Groups, silent
from exmap.retrain.group_dro import GroupDRO, RobustRisk

SPLIT = biased()
GROUPS = true_groups(SPLIT)


def risk(learner: GroupDRO, groups: Groups = GROUPS, split=SPLIT) -> RobustRisk:
    objective = learner.objective(net(), split, groups, silent)
    assert isinstance(objective, RobustRisk)
    return objective


def cross_entropy(logits: list[float], label: int) -> float:
    return math.log(sum(math.exp(z) for z in logits)) - logits[label]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("step_size", "adjustment"), [(0.01, 0.0), (0.5, 2.0)])
def test_weights_and_loss_are_those_of_the_algorithm_in_plain_loops(
    step_size: float, adjustment: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    index = rng.integers(-1, 6, 60)
    index[index == 4] = 5  # group 4 is empty
    split = array_split(np.zeros((60, 2, 8, 8), dtype=np.float32), rng.integers(0, 3, 60))
    objective = risk(GroupDRO(SHORT, RUNTIME, step_size=step_size, adjustment=adjustment), groups_of(index), split)
    sizes = {g: int(np.sum(index == g)) for g in (0, 1, 2, 3, 5)}
    q = dict.fromkeys(sizes, 1 / 5)
    for _ in range(8):
        rows = rng.choice(np.flatnonzero(index >= 0), 7)  # some groups are absent
        logits = torch.tensor(rng.normal(0, 2, (7, 3)), dtype=torch.float32)
        loss = objective.loss(logits, torch.from_numpy(split.labels[rows]), rows)
        adjusted = {}
        for g, size in sizes.items():
            own = [cross_entropy(logits[i].tolist(), split.labels[r]) for i, r in enumerate(rows) if index[r] == g]
            adjusted[g] = (sum(own) / len(own) if own else 0.0) + adjustment / math.sqrt(size)
        q = {g: weight * math.exp(step_size * adjusted[g]) for g, weight in q.items()}
        q = {g: weight / sum(q.values()) for g, weight in q.items()}
        assert objective.q.numpy() == pytest.approx([q.get(g, 0.0) for g in range(6)], rel=1e-6)
        assert float(loss) == pytest.approx(sum(q[g] * adjusted[g] for g in q), rel=1e-5)
    assert objective.q.dtype == torch.float64


def test_a_step_by_hand() -> None:
    split = array_split(np.zeros((4, 2, 8, 8), dtype=np.float32), [0, 0, 1, 1])
    objective = risk(GroupDRO(SHORT, RUNTIME, step_size=1.0), groups_of([0, 0, 1, 2]), split)
    loss = objective.loss(torch.zeros(3, 2), torch.tensor([0, 0, 1]), np.array([0, 1, 2]))
    # Groups 0 and 1 lose log 2, group 2 is absent: the weights go as 2 : 2 : 1.
    assert objective.q.tolist() == pytest.approx([0.4, 0.4, 0.2])
    assert float(loss) == pytest.approx(0.8 * math.log(2))


def test_the_gradient_takes_the_weights_as_constants() -> None:
    objective = risk(GroupDRO(SHORT, RUNTIME, step_size=0.7))
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(SPLIT), 16)
    labels = torch.from_numpy(SPLIT.labels[rows])
    logits = torch.tensor(rng.normal(size=(16, 3)), dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(objective.loss(logits, labels, rows), logits)
    assert not objective.q.requires_grad
    count = np.bincount(GROUPS.index[rows], minlength=9)
    weight = torch.from_numpy(objective.q.numpy()[GROUPS.index[rows]] / count[GROUPS.index[rows]])
    expected = weight[:, None] * (torch.softmax(logits, 1) - torch.nn.functional.one_hot(labels, 3))
    assert torch.allclose(found, expected.detach())


def test_samples_of_all_groups_are_shown_equally_often_or_each_once() -> None:
    out = np.arange(len(SPLIT)) % 3 == 0
    groups = groups_of(np.where(out, -1, GROUPS.index))
    drawn, plain = (risk(GroupDRO(SHORT, RUNTIME, balanced=balanced), groups) for balanced in (True, False))
    rng = np.random.default_rng(0)
    rows = np.concatenate([drawn.order(epoch, rng) for epoch in range(50)])
    assert len(rows) == 50 * int((~out).sum())
    n = len(rows)
    assert np.abs(np.bincount(groups.index[rows]) - n / 9).max() < 5 * np.sqrt(n / 9)
    once = plain.order(0, rng)
    assert np.array_equal(np.sort(once), np.flatnonzero(~out))
    assert not np.array_equal(once, np.sort(once))


def test_small_groups_are_shown_less_often_where_they_are_pooled() -> None:
    sizes = GROUPS.counts()
    objective = risk(GroupDRO(SHORT, RUNTIME, pooled=30))
    rng = np.random.default_rng(0)
    shown = np.bincount(GROUPS.index[np.concatenate([objective.order(epoch, rng) for epoch in range(50)])])
    expected = sizes / (sizes + 30)
    assert shown / shown.sum() == pytest.approx(expected / expected.sum(), abs=0.01)
    assert objective.q.tolist() == pytest.approx([1 / 9] * 9)


def test_the_objective_can_be_sent_to_another_process() -> None:
    objective = pickle.loads(pickle.dumps(risk(GroupDRO(SHORT, RUNTIME))))
    assert objective.q.tolist() == pytest.approx([1 / 9] * 9)


def test_large_losses_move_weights_without_overflow() -> None:
    split = array_split(np.zeros((2, 2, 8, 8), dtype=np.float32), [0, 1])
    objective = risk(GroupDRO(SHORT, RUNTIME, step_size=1.0), groups_of([0, 1]), split)
    objective.loss(torch.tensor([[-4e4, 4e4], [0.0, 0.0]]), torch.tensor([0, 1]), np.array([0, 1]))
    assert objective.q.tolist() == [1.0, 0.0]


def test_a_second_fit_starts_with_equal_weights_of_the_groups() -> None:
    learner = GroupDRO(SHORT, RUNTIME)
    assert same(learner.fit(net(), SPLIT, GROUPS), learner.fit(net(), SPLIT, GROUPS))


def test_unassigned_samples_are_never_shown() -> None:
    images = SPLIT.images.batch(np.arange(len(SPLIT)))
    out = np.arange(len(SPLIT)) % 4 == 0
    images[out] = np.nan
    groups = groups_of(np.where(out, -1, GROUPS.index))
    for balanced in (True, False):
        learner = GroupDRO(SHORT, RUNTIME, balanced=balanced)
        model = learner.fit(net(), array_split(images, SPLIT.labels), groups)
        assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
        assert learner.notes_ == (f"{out.sum()} samples are in no group and were left out",)


def test_the_worst_group_gains_over_erm_in_as_many_steps() -> None:
    split, test = biased(large=200, small=20), planted([[200] * 3] * 3, seed=100)
    index = test.true_groups().index
    erm = worst_accuracy(ERM(TRAIN, RUNTIME).fit(net(), split), test, index)
    for balanced in (True, False):
        learner = GroupDRO(TRAIN, RUNTIME, step_size=0.1, balanced=balanced)
        assert worst_accuracy(learner.fit(net(), split, true_groups(split)), test, index) > erm + 0.03


def test_a_group_of_one_sample_is_trained_on() -> None:
    index = GROUPS.index.copy()
    alone = np.flatnonzero(index == 1)[0]
    index[index == 1] = 0
    index[alone] = 1
    objective = risk(GroupDRO(SHORT, RUNTIME), groups_of(index))
    rows = np.concatenate([objective.order(epoch, np.random.default_rng(epoch)) for epoch in range(20)])
    assert 0.09 < np.mean(rows == alone) < 0.13
    GroupDRO(SHORT, RUNTIME).fit(net(), SPLIT, groups_of(index))


def test_groups_that_are_missing_or_not_of_the_split_are_refused() -> None:
    learner = GroupDRO(SHORT, RUNTIME)
    with pytest.raises(DataError, match=r"^the learner group_dro needs groups of the split it trains on, got none"):
        learner.fit(net(), SPLIT)
    with pytest.raises(DataError, match=r"got 10 groups for 432 samples; use the groups of the same split$"):
        learner.fit(net(), SPLIT, groups_of(range(10)))
    with pytest.raises(DataError, match=r"^group_dro must show samples of each class, at least 1, but 0 of class '1'"):
        learner.fit(net(), SPLIT, groups_of(np.where(SPLIT.labels == 1, -1, GROUPS.index)))


@pytest.mark.parametrize(("step_size", "adjustment"), [(0.0, 0.0), (-1.0, 0.0), (0.01, -1.0), (math.nan, 0.0)])
def test_parameters_out_of_range_are_refused(step_size: float, adjustment: float) -> None:
    with pytest.raises(SettingsError) as caught:
        GroupDRO(step_size=step_size, adjustment=adjustment)
    assert str(caught.value) == (
        f"group_dro needs a positive step_size and an adjustment of at least 0, got {step_size:g} and {adjustment:g}; "
        "the authors' are 0.01 and 0"
    )


def test_several_processes_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"runs in one process, got 2; set runtime.devices=1$"):
        GroupDRO(SHORT, RUNTIME.model_copy(update={"devices": 2})).fit(net(), SPLIT, GROUPS)


def test_a_loss_that_is_not_finite_stops() -> None:
    learner = GroupDRO(SHORT.model_copy(update={"learning_rate": 1e30}), RUNTIME)
    with pytest.raises(NumericalError, match=r"lower train\.learning_rate"):
        learner.fit(net(), SPLIT, GROUPS)
