"""What every registered learner keeps: whatever is registered passes at once."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from planted_groups import RUNTIME, TRAIN, biased, groups_of, net, same, true_groups

from exmap.retrain import LEARNERS, Selection, WholeNetwork
from exmap.testing import check_learner

SPLIT, VAL = biased(large=60, small=10), biased(large=30, small=8, seed=1)
TRUE = true_groups(SPLIT)


QUICK: dict[str, Any] = {
    "tuning_splits": 2,
    "subsamples": 2,
    "strengths": (0.3, 0.03),
    "gammas": (2.0,),
    "lambdas": (0.0, 0.1),
    "up_weight": 3,
    "members": 3,
    "repairs": "dfr|rwg[epochs=2]",  # a last layer and a whole network, of those that test_cheapest.py tries
}


def build(name: str, seed: int = 0) -> Any:
    options = {key: value for key, value in QUICK.items() if key in LEARNERS.options(name)}
    return LEARNERS.build(name, options, train=TRAIN.model_copy(update={"epochs": 2}), runtime=RUNTIME, seed=seed)


def trained(seed: int = 0) -> torch.nn.Module:
    """Return a net that gets some samples wrong and none of the classes altogether."""
    return net(seed=seed)


every = pytest.mark.parametrize("name", sorted(LEARNERS))


@every
def test_every_learner_keeps_what_is_asked_of_other_packages(name: str) -> None:
    kind: Any = LEARNERS[name]
    check_learner(name, **{key: value for key, value in QUICK.items() if key in LEARNERS.options(name)})
    assert "20" in (inspect.getmodule(kind).__doc__ or "") or "20" in (kind.__doc__ or ""), f"cite {name}"


@every
def test_another_seed_gives_other_bits(name: str) -> None:
    if name in ("afr", "class_balanced", "neurontune"):
        pytest.skip("here these see all samples: the seed only draws the halves to tune on")
    assert not same(*(build(name, seed).fit(trained(), SPLIT, TRUE) for seed in (3, 4)))


@every
def test_groups_matter_to_those_that_say_so_and_to_no_other(name: str) -> None:
    kind = LEARNERS[name]
    other = groups_of(np.where(SPLIT.labels > 0, 1, SPLIT.labels))
    first, second = (build(name).fit(trained(), SPLIT, groups) for groups in (TRUE, other))
    if kind.fits_groups:
        assert not same(first, second)
    elif not (kind.part == "last layer" and kind.tunes_groups):
        assert same(first, second)


@pytest.mark.parametrize("name", [n for n in sorted(LEARNERS) if issubclass(LEARNERS[n], WholeNetwork)])
def test_one_training_serves_several_selections(name: str) -> None:
    by_class = groups_of(VAL.labels)
    selections = [Selection(VAL, true_groups(VAL)), Selection(VAL, by_class)]
    learner = build(name)
    models = learner.fit_choices(trained(), SPLIT, TRUE, selections)
    assert len(models) == len(learner.history_) == 2
    alone = [build(name).fit(trained(), SPLIT, TRUE, selection=selection) for selection in selections]
    assert all(same(a, b) for a, b in zip(models, alone, strict=True))
    for rows in learner.history_:
        scores = [row["score"] for row in rows]
        assert [row["kept"] for row in rows] == [s > max(scores[:i], default=-1) for i, s in enumerate(scores)]
