"""Repairs round by round: a run that is explained again after its repair, until no shortcut is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import exmap
from exmap.api.in_rounds import RepairedInRounds
from exmap.errors import SettingsError
from exmap.groups.crossed import cross_groups
from exmap.pipeline.files import load_groups
from exmap.pipeline.looking import open_analysis
from exmap.pipeline.rounds import run_rounds
from exmap.pipeline.runs import open_run
from exmap.results import AutoRecord, ClassFinding, Round, Rounds
from exmap.settings import change_settings
from running import (
    CHEAP,
    Said,
    as_options,
    auto_run,
    changed,
    cheap_settings,
    command,
    copy_run,
    little_choices,
    modification_times,
    redone,
)
from sharing import shared

SETTINGS = cheap_settings("groups.sources=[exmap]")


@pytest.fixture(autouse=True)
def little() -> Iterator[None]:
    with little_choices():
        yield


def go_on(folder: Path, rounds: int) -> tuple[Rounds, list[str]]:
    lines: list[str] = []
    return run_rounds(folder, SETTINGS, rounds, say=lines.append), lines


@pytest.fixture(scope="session")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = auto_run(tmp_path_factory)

    def make(folder: Path) -> None:
        copy_run(chosen, folder)
        with little_choices():
            go_on(folder, 3)

    return shared(tmp_path_factory, "two-rounds", make)


@pytest.fixture
def run(two_rounds: Path, tmp_path: Path) -> Path:
    return copy_run(two_rounds, tmp_path / "run")


def written(folder: Path) -> Rounds:
    return Rounds.from_json(json.loads((folder / "rounds.json").read_text(encoding="utf-8")))


def test_what_is_said_of_rounds_is_taken_away_with_their_results(run: Path) -> None:
    changed(run)
    assert (run / "rounds.json").exists()
    changed(run / "round-2", "retrain.repeats=3")
    assert not (run / "rounds.json").exists()


def test_the_shortcut_is_found_and_repaired_and_then_none_is_left(two_rounds: Path) -> None:
    rounds = written(two_rounds)
    first, second = rounds.rounds
    assert rounds.stopped == "silent"
    assert {(each.class_name, each.property) for each in first.found} == {
        ("digit 0-4", "colour"),
        ("digit 5-9", "colour"),
    }
    assert second.found == ()
    assert first.after is not None
    assert second.before is not None
    assert first.after == second.before > first.before + 0.3
    assert first.fitted
    assert second.test_worst_before > first.test_worst_before + 0.3
    assert rounds.why == (
        "Round 1 found digit 0-4 (colour), digit 5-9 (colour); round 2 found no shortcut; it stopped because the test "
        "finds none any more."
    )


def test_each_round_is_an_ordinary_run_of_the_classifier_that_the_one_before_left(two_rounds: Path) -> None:
    later = two_rounds / "round-2"
    left, found = (load_file(place / "model.safetensors") for place in (two_rounds / "repaired", later / "train"))
    assert all(np.array_equal(values, left[name]) for name, values in found.items())
    analysis = open_analysis(later)
    assert analysis.settings.train == SETTINGS.train  # which learners of the whole network go by
    assert analysis.settings.model.trained
    assert analysis.settings.groups.sources == ("exmap",)
    assert (later / "report" / "report.html").is_file()


def test_groups_of_a_later_round_are_crossed_with_those_of_the_one_before(two_rounds: Path) -> None:
    later = two_rounds / "round-2"
    before, now, chosen = (
        load_groups(folder)
        for folder in (two_rounds / "groups-val-auto", later / "groups-val-auto", later / "auto" / "groups")
    )
    assert now == cross_groups(chosen, before)
    identities = [
        json.loads((place / "groups-val-auto" / "identity.json").read_text()) for place in (two_rounds, later)
    ]
    done = json.loads((two_rounds / "groups-val-auto" / "done.json").read_text())
    assert [each["settings"].get("earlier") for each in identities] == [None, done["identity"]]


def test_what_is_finished_is_kept_and_fewer_rounds_stop_earlier(run: Path) -> None:
    before = {place: modification_times(place) for place in (run, run / "round-2")}
    again, said = go_on(run, 3)
    assert again == written(run)
    assert not any("started" in line for line in said)
    one, _ = go_on(run, 1)
    assert all(redone(times, place) <= {"round-2"} for place, times in before.items())
    assert (one.stopped, len(one.rounds)) == ("limit", 1)
    assert one.why.endswith("1 round was asked for, and what is left after the last repair was not tested.")


@pytest.mark.slow
def test_a_first_round_that_changes_reaches_the_later_ones(run: Path) -> None:
    before = modification_times(run / "round-2")
    settings = change_settings(SETTINGS, ["retrain.learner=rwg", "retrain.epochs=1", "groups.sources=[exmap]"])
    lines: list[str] = []
    changed = open_run(run, change_settings(settings, groups__auto=True), change=True)[1]
    run_rounds(run, changed, 2, say=lines.append)
    assert "train" in redone(before, run / "round-2")
    assert written(run).rounds[0].method == "auto+rwg"


def test_the_command_says_what_each_round_found(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = as_options(*CHEAP, "groups.sources=[exmap]")
    said: Said = command(monkeypatch, capsys, "run", "digits", "--out", run, "--rounds", "2", *options)
    assert said.code == 0, said.err
    assert "digits, seed 0: 2 of at most 2 rounds" in said.out
    assert written(run).why in said.out.replace("\n", " ")
    assert f"Classifier after all rounds: {run / 'round-2' / 'repaired' / 'model.safetensors'}" in said.out
    refused = command(monkeypatch, capsys, "run", "digits", "--out", run, "--rounds", "0", *options)
    assert refused.refused(), refused.err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.name=onnx:net.onnx"], "which onnx:net.onnx cannot take from a file; leave --rounds out"),
        (["model.name=torchvision:resnet18", "model.outputs=[3, 5]"], "torchvision:resnet18 cannot with model.outputs"),
    ],
)
def test_models_that_cannot_start_from_weights_again_are_refused_before_any_work(
    tmp_path: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(SettingsError, match="a later round starts from the weights that the one before left") as caught:
        run_rounds(tmp_path / "run", cheap_settings(*overrides), 2, say=lambda _: None)
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def in_memory(run: Path, rounds: int) -> RepairedInRounds:
    analysis = open_analysis(run)
    options = [*CHEAP, "explain.size=null"]
    return exmap.analyze_in_rounds(
        analysis.network(), analysis.task, rounds=rounds, settings=options, sources=["exmap"]
    )


@pytest.mark.slow
def test_in_memory_it_is_the_same(two_rounds: Path) -> None:
    found = in_memory(two_rounds, 2)
    assert [each.in_words for each in found.record.rounds] == [each.in_words for each in written(two_rounds).rounds]
    assert found.record.stopped == "silent"
    first, second = (each.explained.outputs.logits for each in found.analyses)
    assert not np.allclose(first, second)


def test_in_memory_it_stops_where_nothing_is_found(two_rounds: Path) -> None:
    found = in_memory(two_rounds / "round-2", 2)
    assert found.record.stopped == "silent"
    assert [each.number for each in found.record.rounds] == [1]
    assert (found.record.rounds[0].before, found.record.rounds[0].groups) == (None, 0)
    assert repr(found) == f"RepairedInRounds({found.record.why})"
    assert found.model is not None


@pytest.mark.parametrize("rounds", [0, -1, 1.5, True, "2"])
def test_numbers_of_rounds_that_are_none_are_refused(rounds: object) -> None:
    with pytest.raises(SettingsError, match="rounds must be a whole number of at least 1, got"):
        exmap.analyze_in_rounds(exmap.planted_shortcut(), None, rounds=rounds)  # type: ignore[arg-type]


NOTHING = dict.fromkeys(("runner_up", "confidence", "judged_on", "reliance", "repair"))


def choice(found: bool | None) -> AutoRecord:
    finding = ClassFinding.nothing(found, "").changed(property="place" if found else "")
    return AutoRecord(
        **NOTHING,
        chosen=None if found is None else "exmap",
        candidates=(),
        shortcut={"cat": finding},
        data_curve=(),
        repaired=bool(found),
        why="Nothing can be concluded: too few.",
        remarks=(),
    )


def a_round(make: Callable[..., Round] = Round, **given: object) -> Round:
    numbers = dict.fromkeys(("test_worst_before", "test_worst_after", "test_mean_before", "test_mean_after"), 0.5)
    usual = {"number": 1, "found": (), "chosen": "exmap", "groups": 4, "crossed": False, "worst_group": "a"}
    return make(**{**numbers, **usual, "before": 0.1, "after": 0.9, "fitted": False, **given})


@pytest.mark.parametrize(
    ("found", "left_alone", "stopped", "why"),
    [
        (False, "", "silent", "Round 1 found no shortcut; there was nothing to repair."),
        (None, "", "nothing concluded", "could not be made (Nothing can be concluded: too few)."),
        (True, "It harms cat.", "left alone", "that repair left the classifier as it was (It harms cat)."),
        (True, "", "limit", "1 round was asked for, and what is left after the last repair was not tested."),
    ],
)
def test_it_says_why_it_stopped(found: bool | None, left_alone: str, stopped: str, why: str) -> None:
    record = Rounds.of([a_round(left_alone=left_alone)], choice(found), dataset="pets", seed=0, asked=1)
    assert record.stopped == stopped
    assert record.why.endswith(why)
    assert Rounds.from_json(record.to_json()) == record
    assert list(record.to_frame()["number"]) == [1]


def test_what_a_repair_does_to_a_class_is_said_first() -> None:
    rounds = (a_round(), a_round(number=2, first_line="Retraining costs class 'cat'."))
    record = Rounds.of(rounds, choice(False), dataset="pets", seed=0, asked=3)
    assert record.first_lines == ("Round 2: Retraining costs class 'cat'.",)
