"""What harm a property does that predictions follow, and what is said where it does none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planted_pictures import Scene, scene
from scipy.stats import binom, fisher_exact

from exmap.auto import Effort, choose_groups
from exmap.auto.against import exchange_candidates, find_by_exchanges, reactions
from exmap.auto.exchange import Exchanges, measure_exchanges
from exmap.exchange import exchange_colour
from exmap.results import AutoRecord
from exmap.settings import AutoSettings

PROPERTIES = ("colour", "background", "place")
LITTLE = Effort(
    sizes=1,
    clusterings=("gap=relative", "n_clusters=2"),
    most_halvings=1,
    draws=5,
    curve_draws=1,
    strengths=(0.3,),
    subsamples=2,
)


def measured(drawn: Scene) -> Exchanges:
    return measure_exchanges(drawn.looks, drawn.explained, seed=0)


@pytest.fixture(scope="module", params=PROPERTIES)
def fooled(request: pytest.FixtureRequest) -> tuple[str, Scene, Exchanges]:
    """A classifier that reads nothing but one property, with images that go against it."""
    drawn = scene(request.param)
    return request.param, drawn, measured(drawn)


@pytest.fixture(scope="module")
def tinted() -> tuple[Scene, Exchanges]:
    drawn = scene("colour")
    return drawn, measured(drawn)


def test_a_classifier_that_reads_one_property_is_found_to_follow_that_one(
    fooled: tuple[str, Scene, Exchanges],
) -> None:
    prop, drawn, exchanges = fooled
    assert {each.property for each in exchanges.reliances if each.relied_on} == {prop}
    assert sum(each.relied_on for each in exchanges.reliances) == 2
    test = find_by_exchanges(exchanges, drawn.explained)
    assert (test.found, test.tested) == (True, 2)
    for label, finding in enumerate(test.classes.values()):
        led = (drawn.split.labels == label) & (drawn.values != label)
        assert (finding.found, finding.property) == (True, prop)
        assert finding.candidate == f"exchange[property={prop}]"
        assert finding.images == led.sum()
        assert finding.effect == 1
        assert finding.effect_low is not None
        assert 0.5 < finding.effect_low < 1
        others = int((drawn.split.labels == label).sum() - led.sum())
        errors = fisher_exact([[led.sum(), 0], [0, others]], alternative="greater").pvalue
        reliance = next(each for each in exchanges.of(f"block {label}") if each.property == prop)
        assert finding.p_value == pytest.approx(max(reliance.p_value, 2 * errors))
        assert f"whose {prop} speaks for another class 100% are classified wrong" in finding.why


@pytest.mark.parametrize("prop", PROPERTIES)
def test_a_classifier_that_reads_the_object_follows_no_property_of_a_coin(prop: str) -> None:
    drawn = scene(prop, {"object": 1.0}, correlation=0.5, unlike=0.1)
    exchanges = measured(drawn)
    assert not any(each.relied_on for each in exchanges.reliances)
    assert exchanges.votes == {}
    test = find_by_exchanges(exchanges, drawn.explained)
    assert (test.found, test.tested) == (False, 0)
    for finding in test.classes.values():
        assert (finding.found, finding.p_value, finding.candidate) == (False, 1, "")
        assert finding.why == "Its predictions follow neither colour, background nor place of the image."


def test_a_property_that_is_followed_but_that_nothing_goes_against_is_not_found() -> None:
    drawn = scene("colour", correlation=1.0)
    exchanges = measured(drawn)
    assert set(exchanges.votes) == {"colour"}
    for finding in find_by_exchanges(exchanges, drawn.explained).classes.values():
        assert finding.found is False
        assert finding.why.startswith("Its predictions follow the colour, but hardly any of its images here goes")
    assert exchange_candidates(exchanges, drawn.explained) == ()


def test_a_property_that_does_no_harm_is_not_found(tinted: tuple[Scene, Exchanges]) -> None:
    drawn, exchanges = tinted
    right = replace(drawn.explained.outputs, logits=np.eye(2, dtype=np.float32)[drawn.split.labels])
    for finding in find_by_exchanges(exchanges, replace(drawn.explained, outputs=right)).classes.values():
        assert (finding.found, finding.p_value, finding.property) == (False, 1, "")
        assert finding.why.endswith("which is no clear difference.")


def test_the_level_is_asked_for(tinted: tuple[Scene, Exchanges]) -> None:
    drawn, exchanges = tinted
    assert not find_by_exchanges(exchanges, drawn.explained, AutoSettings(level=1e-30)).found


def test_a_class_of_fewer_than_twenty_right_images_is_not_tested() -> None:
    drawn = scene("colour", n=180, correlation=1.0)
    labels = drawn.split.labels.copy()
    labels[np.flatnonzero(labels == 1)[19:]] = 0
    explained = replace(drawn.explained, labels=labels)
    exchanges = measure_exchanges(drawn.looks, explained, seed=0)
    assert {each.class_name for each in exchanges.reliances} == {"block 0"}
    test = find_by_exchanges(exchanges, explained)
    assert test.classes["block 0"].found is not None
    assert test.classes["block 1"].found is None
    assert test.classes["block 1"].p_value is None
    assert "Too few" in test.classes["block 1"].why
    assert all(finding.found is None for finding in find_by_exchanges(Exchanges(), explained).classes.values())


def test_images_against_a_property_are_restored_by_that_of_the_others(tinted: tuple[Scene, Exchanges]) -> None:
    drawn, exchanges = tinted
    found = reactions(drawn.looks, exchanges, drawn.explained, seed=0)
    assert set(found) == {"block 0", "block 1"}
    assert found == reactions(drawn.looks, exchanges, drawn.explained, seed=0)
    tests = find_by_exchanges(replace(exchanges, reactions=found), drawn.explained)
    for name, finding in tests.classes.items():
        assert found[name].restored is not None
        assert finding.restored == found[name].restored[0]


# The choice among groupings


def test_a_property_is_a_grouping_only_where_all_images_voted(tinted: tuple[Scene, Exchanges]) -> None:
    drawn, exchanges = tinted
    (made,) = exchange_candidates(exchanges, drawn.explained)
    assert made.name == "exchange[property=colour]"
    assert len(made.groups.names) == 4
    expected = 2 * drawn.split.labels + (drawn.values != drawn.split.labels)
    np.testing.assert_array_equal(made.groups.index, expected)
    votes = exchanges.votes["colour"].copy()
    votes[3] = np.nan
    some = replace(exchanges, votes={"colour": votes})
    assert exchange_candidates(some, drawn.explained) == ()
    assert find_by_exchanges(some, drawn.explained).found


def test_a_choice_uses_exchanges_where_there_are_some_and_clusters_else(tinted: tuple[Scene, Exchanges]) -> None:
    drawn, exchanges = tinted
    explained = drawn.explained
    usual = replace(explained, heatmaps=replace(explained.maps(), finite=np.ones(len(explained), dtype=bool)))
    logits = explained.outputs.logits + 0.6 * np.eye(2, dtype=np.float32)[explained.labels]  # better than chance
    usual = replace(usual, outputs=replace(explained.outputs, logits=logits))
    by_exchange, none, empty = (
        choose_groups(usual, exchanges=each, effort=LITTLE).record for each in (exchanges, None, Exchanges())
    )
    assert by_exchange.exchanges == exchanges.reliances
    assert {each.name for each in by_exchange.candidates} >= {"exchange[property=colour]"}
    assert by_exchange.shortcut == find_by_exchanges(exchanges, usual).classes
    assert (none.exchanges, empty.exchanges) == ((), ())
    assert none.shortcut == empty.shortcut
    assert not any(each.name.startswith("exchange") for each in (*none.candidates, *empty.candidates))
    assert not any("exchange" in each.candidate for each in none.shortcut.values())
    assert AutoRecord.from_json(by_exchange.to_json()) == by_exchange


# The level


def test_few_are_found_where_the_property_is_a_coin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classifiers that read the colour a little, of images whose colour says nothing, with errors of other causes."""
    monkeypatch.setattr("exmap.auto.exchange.PROPERTIES", {"colour": exchange_colour})
    draws, found, wrong = 60, 0, 0
    for seed in range(draws):
        drawn = scene("colour", {"object": 1.0, "colour": 0.3}, correlation=0.5, n=80, unlike=0.1, seed=seed)
        wrong += int((~drawn.explained.correct).sum())
        exchanges = measure_exchanges(drawn.looks, drawn.explained, seed=seed)
        found += find_by_exchanges(exchanges, drawn.explained).found
    assert wrong > 5 * draws
    assert found <= binom.ppf(0.999, draws, 0.05)


def test_errors_that_do_not_depend_on_the_property_are_found_as_rarely_as_asked_for() -> None:
    """A classifier follows the colour, but whom it gets wrong is drawn: the second null hypothesis alone."""
    drawn = scene("colour", n=240)
    exchanges, rng, draws, found = measured(drawn), np.random.default_rng(0), 300, 0
    for _ in range(draws):
        called = np.where(rng.random(240) < 0.2, 1 - drawn.split.labels, drawn.split.labels)
        outputs = replace(drawn.explained.outputs, logits=np.eye(2, dtype=np.float32)[called])
        found += find_by_exchanges(exchanges, replace(drawn.explained, outputs=outputs)).found
    assert found <= binom.ppf(0.999, draws, 0.05)
