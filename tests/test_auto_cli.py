"""Choosing groups from the command line: what `exmap auto` and `exmap run` print, and the section of the report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from exmap.auto import words
from exmap.cli.tables import kept_repairs, mention_choice, show_choice
from exmap.results import (
    AutoRecord,
    ClassFinding,
    DataCurvePoint,
    LastLayerVerdict,
    Reliance,
    RepairTrial,
    Results,
    ScoredGrouping,
    repairs_in_words,
)
from running import (
    KEPT,
    Give,
    changed,
    command,
    copy_run,
    finished_run,
    little_choices,
    modification_times,
    redone,
    results_of,
)

NOTHING = "Nothing can be concluded: class 1 has 7 images to judge groupings by, and at least 20 are needed."

DESCRIBED = {"describe-exmap", "describe-auto"}  # the choice tells what predictions follow


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Give]:
    monkeypatch.delenv("EXMAP_DATA_DIR", raising=False)
    with little_choices():
        yield lambda *words: command(monkeypatch, capsys, *words)


def candidate(name: str, score: float, *, eligible: bool = True) -> ScoredGrouping:
    return ScoredGrouping(name=name, also=(), score=score, groups=4, like_chosen=0.5, eligible=eligible)


def record(**changes: Any) -> AutoRecord:
    """Return a record of a shortcut in the first of two classes, with nine groupings."""
    name = "exmap[size=7,scope=local,gap=relative]"
    scores = (-0.3, -0.4, -0.5, -0.6, -1.9, -1.2)
    fields: dict[str, Any] = {
        "chosen": name,
        "runner_up": "other 2",
        "confidence": 0.86,
        "judged_on": "held-out halves",
        "reliance": Reliance(classifier=1.7, chosen=0.2),
        "candidates": (
            candidate(name, -0.2),
            *(candidate(f"other {n}", score) for n, score in enumerate(scores, 1)),
            candidate("error_set", -0.1, eligible=False),
        ),
        "shortcut": {
            "dress": ClassFinding(
                found=True,
                p_value=2e-9,
                effect=0.18,
                effect_low=0.1,
                images=59,
                conductance=0.0,
                candidate=name,
                why="11 of 59 images in a cluster that stands apart are classified wrong, 5 of the other 941.",
            ),
            "[bold]coat": ClassFinding.nothing(False, "No cluster stands apart."),
        },
        "repair": LastLayerVerdict(
            last_layer_suffices=False, before=0.5, after=0.85, group="dress / cluster 1", images=59, why="It is not."
        ),
        "data_curve": (
            DataCurvePoint(images=100, smallest_group=1.7, worst_group_accuracy=0.47, spread=0.02),
            DataCurvePoint(images=1000, smallest_group=18.0, worst_group_accuracy=0.79, spread=0.03),
        ),
        "repaired": True,
        "why": f"{name} was chosen of 8 groupings.",
        "remarks": ("The choice is uncertain.",),
    }
    return AutoRecord(**{**fields, **changes})


def nothing() -> AutoRecord:
    untested = ClassFinding.nothing(None, "not tested")
    empty = dict.fromkeys(("chosen", "runner_up", "confidence", "judged_on", "reliance", "repair"))
    return record(
        **empty,
        candidates=(),
        data_curve=(),
        shortcut={"0": untested, "1": untested},
        repaired=False,
        why=NOTHING,
        remarks=(NOTHING,),
    )


def shown(given: AutoRecord) -> str:
    console = Console(width=160, soft_wrap=True)
    with console.capture() as captured:
        show_choice(console, given)
    return captured.get()


def mentioned(given: AutoRecord) -> list[str]:
    console = Console(width=80, soft_wrap=True)
    with console.capture() as captured:
        mention_choice(console, given, Path("runs/a"))
    return captured.get().splitlines()


def row_of(text: str, name: str) -> str:
    """Return the row of a table that begins with a name, without its rules."""
    (line,) = (line for line in text.splitlines() if line.startswith("│") and line.strip("│ ").startswith(name))
    return " ".join(line.replace("│", " ").split())


# What is printed


def test_the_verdict_comes_first_and_everything_follows() -> None:
    given = record()
    text = shown(given)
    assert text.splitlines()[0].strip() == words.verdict(given)
    assert row_of(text, "dress").startswith("dress found < 0.001 +18 points 11 of 59 images")
    assert row_of(text, "[bold]coat") == "[bold]coat not found No cluster stands apart."
    assert row_of(text, "exmap[size=7,scope=local,gap=relative]").endswith("-0.20 4 0.50 chosen")
    assert row_of(text, "other 2").endswith("runner-up")
    assert row_of(text, "the classifier as it is").endswith("-1.70")
    assert row_of(text, "1,000") == "1,000 18 79.0% ± 3.0%"
    for sentence in (given.why, words.confidence(given), words.last_layer(given), words.more_images(given)):
        assert sentence in text
    assert "The choice is uncertain." in text


def test_the_best_five_groupings_and_the_worst_are_listed() -> None:
    text = shown(record())
    listed = [name for name in re.findall(r"other \d|error_set", text[text.index("by score") :]) if name]
    assert list(dict.fromkeys(listed)) == ["other 1", "other 2", "other 3", "other 4", "other 5"]  # 5 has -1.9
    assert "Groupings by score, 8 in all" in text


def test_where_nothing_can_be_concluded_no_table_of_groupings_is_printed() -> None:
    text = shown(nothing())
    assert text.splitlines()[0] == NOTHING
    assert row_of(text, "1") == "1 not tested not tested"
    assert "Groupings" not in text
    assert mentioned(nothing()) == [NOTHING]


def test_a_run_mentions_the_choice_in_four_lines() -> None:
    given = record()
    assert mentioned(given) == [
        words.verdict(given),
        "Chosen grouping: exmap[size=7,scope=local,gap=relative], confidence 86%.",
        words.last_layer(given),
        "All groupings: exmap auto runs/a",
    ]


def test_a_run_says_which_repair_was_kept_and_what_the_others_would_give() -> None:
    results = Results.from_json(json.loads(Path(__file__).with_name("written").joinpath("results.json").read_text()))
    assert kept_repairs(results) == []
    numbers = {"low": 0.7, "high": 0.9, "gain_low": -0.01, "gain_high": 0.08, "seconds": 3.0, "trainings": 0.5}
    tried = (
        RepairTrial(name="dfr", worst=0.8, gain=0.0, kept=True, **numbers),
        RepairTrial(name="rwg", worst=0.84, gain=0.04, **numbers),
    )
    row = results.methods["exmap+dfr"].changed(repairs=tried)
    (line,) = kept_repairs(results.changed(methods={**results.methods, "auto+cheapest": row}))
    assert line.plain == f"auto+cheapest: {repairs_in_words(tried)}"
    assert "rwg would gain 4.0 points" in line.plain


# A whole run


def test_exmap_auto_adds_the_choice_to_a_finished_run_and_keeps_what_is_there(
    give: Give, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    run = copy_run(finished_run(tmp_path_factory), tmp_path / "run")
    before = modification_times(run)
    said = give("auto", run)
    assert said.code == 0, said.err
    assert said.steps() == [
        *KEPT[:2],
        "cluster, exchange of properties: started",
        "cluster, choice of a grouping: started",
        "cluster, groups of the val split by auto: started",
        "retrain, auto+dfr: started",
        "retrain, repaired classifier: started",
        "evaluate, description of the groups by exmap: started",
        "evaluate, description of the groups by auto: started",
        "evaluate, results: started",
        "report: started",
    ]
    new = {"exchange", "auto", "groups-val-auto", "fit-auto+dfr", "repaired", *DESCRIBED, "evaluate", "report"}
    assert redone(before, run) == new
    results = results_of(run)
    given = AutoRecord.from_json(results["auto"])
    first = results.get("first_lines", [])
    steps = said.steps()
    lines = [line for line in said.out.splitlines() if line not in steps and not line.startswith("runtime: ")]
    assert lines[: len(first)] == first
    assert lines[len(first)].startswith(words.verdict(given))
    assert given.chosen in said.out
    assert "auto+dfr" in results["methods"]

    text = (run / "report" / "report.html").read_text(encoding="utf-8")
    section = text[text.index('<section id="choice"') :].split("</section>")[0]
    visible = " ".join(unescape(re.sub(r"<[^>]+>", " ", section)).split())
    assert words.verdict(given) in visible
    for name in given.shortcut:
        assert f"{name}: " in visible
    for row in given.candidates:
        assert row.name in visible
    assert f"{len(given.candidates)} groupings" in visible
    assert "groups.auto=true" in text  # in the command that makes the run again
    best = max(row.score for row in given.candidates if row.eligible)
    assert np.isclose(-best, given.reliance.chosen)

    before = modification_times(run)
    said = give("auto", run)  # again, nothing is left to do
    assert said.code == 0, said.err
    assert said.steps() == KEPT
    assert words.verdict(given) in said.out
    assert redone(before, run) == set()
    said = give("evaluate", run)  # by the folder's own settings
    assert "All groupings: exmap auto" in said.out


def test_a_run_without_it_says_nothing_of_it(
    give: Give, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    run = copy_run(finished_run(tmp_path_factory), tmp_path / "run")
    changed(run, "groups.sources=[exmap]")
    said = give("evaluate", run)
    assert said.code == 0
    assert "auto" not in said.out
    assert "rouping" not in said.out


def test_no_run_folder_is_refused_in_one_sentence(give: Give, tmp_path: Path) -> None:
    assert give("auto", tmp_path / "none").refused()
