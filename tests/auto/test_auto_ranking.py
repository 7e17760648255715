"""How sure a choice is: by margins that are made, so that it is known which candidates are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from planted_strategies import Planted, planted

from exmap.auto.candidates import Candidate
from exmap.auto.ranking import Ranking, _half_of_judges, _lost, rank
from exmap.records import Groups, IntArray


@pytest.fixture(scope="module")
def known() -> Planted:
    return planted(n=200, minority=0.2)


def candidate(name: str, representation: str, index: IntArray) -> Candidate:
    names = tuple(str(n) for n in range(int(index.max()) + 1))
    return Candidate(name, representation, Groups(index, names, "auto", ()))


def made(known: Planted, sizes: int = 3, judges: int = 4, seed: int = 0) -> list[Candidate]:
    """Return groupings that part the strategies, some more cleanly than others."""
    rng, labels = np.random.default_rng(seed), known.explained.labels
    found = []
    for size in range(sizes):
        for judge in range(judges):
            flipped = known.strategy ^ (rng.random(len(labels)) < 0.05 * judge)
            found.append(candidate(f"{size} {judge}", f"heatmaps {size}", labels * 2 + flipped))
    return found


def heads(known: Planted, short: list[float], noise: float = 0.3) -> NDArray[np.float64]:
    """Return margins that lie so far lower in the minority."""
    rng = np.random.default_rng(1)
    return np.array([1.5 - by * known.strategy + rng.normal(scale=noise, size=len(known.strategy)) for by in short])


def ranked(known: Planted, candidates: list[Candidate], margins: NDArray[np.float64], draws: int = 60) -> Ranking:
    return rank(candidates, known.explained, margins, margins[0], draws=draws, seed=0)


def test_a_clear_choice_is_as_sure_as_its_witnesses_allow(known: Planted) -> None:
    for sizes, most in ((1, 2 / 3), (2, 3 / 4), (3, 4 / 5)):
        candidates = made(known, sizes)
        found = ranked(known, candidates, heads(known, [0.0, *[3.0] * (len(candidates) - 1)]))
        assert found.best == 0
        assert found.confidence == pytest.approx(most)


def test_without_judges_nothing_is_known(known: Planted) -> None:
    features = [replace(each, representation="features") for each in made(known, 1)]
    assert ranked(known, features, heads(known, [0.0, 1.0, 1.0, 1.0])).confidence == 0.5


def test_heads_that_are_equally_good_are_all_right(known: Planted) -> None:
    candidates = made(known)
    noise = np.random.default_rng(2).normal(scale=0.3, size=len(known.strategy))
    margins = np.tile(2 + noise, (len(candidates), 1))
    margins += 0.2 * np.random.default_rng(3).normal(size=margins.shape)  # who wins is chance, and no image is wrong
    assert (margins > 0).all()
    assert ranked(known, candidates, margins).confidence == pytest.approx(4 / 5)


def test_judges_that_contradict_each_other_make_a_choice_unsure(known: Planted) -> None:
    # Half of the judges see the strategies, the others an attribute that has nothing to do with them. Each of two heads
    # fails on the worst group of one kind: what is chosen depends on who is asked.
    labels, rng = known.explained.labels, np.random.default_rng(4)
    other = (rng.random(len(labels)) < 0.2).astype(int)
    candidates = [
        candidate(
            f"{size} {n}", f"heatmaps {size}", labels * 2 + ((known.strategy, other)[n % 2] ^ (rng.random(200) < 0.02))
        )
        for size in range(3)
        for n in range(4)
    ]
    fails = [(other, known.strategy)[n % 2] for _ in range(3) for n in range(4)]
    margins = np.array([1.2 - 2 * each for each in fails]) + rng.normal(scale=0.3, size=(12, 200))
    found = ranked(known, candidates, margins)
    assert 0.2 < found.confidence < 0.75
    assert ranked(known, candidates, margins).confidence == found.confidence


def test_half_of_the_judges_of_each_representation_judge(known: Planted) -> None:
    candidates = [*made(known, 2, judges=3), *made(known, 1, judges=1), candidate("classes", "classes", known.strategy)]
    candidates[6] = replace(candidates[6], representation="heatmaps 9")
    seen = set()
    for seed in range(20):
        drawn = _half_of_judges(candidates, np.random.default_rng(seed))
        kinds = [each.representation for each in drawn if each.judges]
        assert sorted(kinds) == ["heatmaps 0"] * 2 + ["heatmaps 1"] * 2 + ["heatmaps 9"]
        assert [each.name for each in drawn] == [each.name for each in candidates]
        assert drawn[-1] == candidates[-1]
        seen.add(tuple(each.judges for each in drawn))
    assert len(seen) > 4


def test_what_a_choice_loses_by_hand() -> None:
    index = np.repeat([0, 1, 2, -1], [10, 10, 7, 3])
    own, chosen = np.ones(30, dtype=bool), np.ones(30, dtype=bool)
    chosen[10:13] = False  # three of ten in group 1
    chosen[20:] = False  # group 2 is too small to look at, and what is in no group is in none
    assert _lost(own, chosen, index) == pytest.approx(0.3)
    assert _lost(chosen, own, index) == pytest.approx(-0.3)
    assert _lost(own, chosen, np.full(30, -1)) == 0
