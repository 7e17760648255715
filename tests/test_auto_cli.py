"""Choosing groups from the command line: what `exmap auto` and `exmap run` print, and the section of the report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from exmap.auto import words
from exmap.cli import _mention_choice, _show_choice
from running import STAGE_NAMES, Said, command, copy_run, finished_run, modification_times, trained_run

Give = Callable[..., Said]
NOTHING = "Nothing can be concluded: class 1 has 7 images to judge groupings by, and at least 20 are needed."


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Give:
    monkeypatch.delenv("EXMAP_DATA_DIR", raising=False)
    return lambda *words: command(monkeypatch, capsys, *words)


def candidate(name: str, score: float, *, eligible: bool = True) -> dict[str, Any]:
    return {"name": name, "also": [], "score": score, "groups": 4, "like_chosen": 0.5, "eligible": eligible}


def record(**changes: Any) -> dict[str, Any]:
    """Return a record of a shortcut in the first of two classes, with seven groupings."""
    name = "exmap[size=7,scope=local,gap=relative]"
    apart = "11 of 59 images in a cluster that stands apart are classified wrong, 5 of the other 941."
    found = {"found": True, "p_value": 2e-9, "effect": 0.18, "effect_low": 0.1, "why": apart}
    none = {"found": False, "p_value": 1.0, "effect": None, "effect_low": None, "why": "No cluster stands apart."}
    scores = (-0.2, -0.3, -0.4, -0.5, -0.6, -1.9, -1.2)
    others = [candidate(f"other {n}", score) for n, score in enumerate(scores[1:], 1)]
    return {
        "chosen": name,
        "runner_up": "other 2",
        "confidence": 0.86,
        "judged_on": "held-out halves",
        "reliance": {"classifier": 1.7, "chosen": 0.2},
        "candidates": [candidate(name, -0.2), *others, candidate("error_set", -0.1, eligible=False)],
        "shortcut": {"dress": found, "[bold]coat": none},
        "repair": {"last_layer_suffices": False, "why": "Its worst group is right in 85%."},
        "data_curve": [
            {"images": 100, "smallest_group": 1.7, "worst_group_accuracy": 0.47, "spread": 0.02},
            {"images": 1000, "smallest_group": 18.0, "worst_group_accuracy": 0.79, "spread": 0.03},
        ],
        "repaired": True,
        "why": f"{name} was chosen of 8 groupings.",
        "remarks": ["The choice is uncertain."],
        **changes,
    }


def nothing() -> dict[str, Any]:
    untested = {"found": None, "p_value": None, "effect": None, "why": "not tested"}
    empty = dict.fromkeys(("chosen", "runner_up", "confidence", "judged_on", "reliance", "repair"))
    return record(
        **empty,
        candidates=[],
        data_curve=[],
        shortcut={"0": untested, "1": untested},
        repaired=False,
        why=NOTHING,
        remarks=[NOTHING],
    )


def shown(given: dict[str, Any]) -> str:
    console = Console(width=160, soft_wrap=True)
    with console.capture() as captured:
        _show_choice(console, given)
    return captured.get()


def mentioned(given: dict[str, Any]) -> list[str]:
    console = Console(width=80, soft_wrap=True)
    with console.capture() as captured:
        _mention_choice(console, given, Path("runs/a"))
    return captured.get().splitlines()


def row_of(text: str, name: str) -> str:
    """Return the row of a table that begins with a name, without its rules."""
    (line,) = (line for line in text.splitlines() if line.startswith("│") and line.strip("│ ").startswith(name))
    return " ".join(line.replace("│", " ").split())


# In words


def test_the_verdict_names_the_classes_and_counts_them() -> None:
    assert words.verdict(record()) == (
        "A shortcut was found in class dress (1 of 2 classes); the last layer was retrained on the chosen groups."
    )
    ten = {str(n): {"found": n < 8} for n in range(10)}
    said = words.verdict(record(shortcut=ten))
    assert "in class 0, class 1, class 2, class 3, class 4 and 3 more (8 of 10 classes)" in said
    assert "in class 0, class 1 and class 2 (3 of 10" in words.verdict(
        record(shortcut={str(n): {"found": n < 3} for n in range(10)})
    )


def test_no_shortcut_is_a_result_and_says_what_became_of_the_classifier() -> None:
    none = {"a": {"found": False}}
    left = record(shortcut=none, repaired=False)
    assert words.verdict(left) == "No shortcut was found; the classifier is left as it is."
    assert "retrained on the chosen groups all the same" in words.verdict(record(shortcut=none))


def test_where_nothing_can_be_concluded_the_verdict_is_the_reason_and_nothing_else_is_said() -> None:
    given = nothing()
    assert words.verdict(given) == NOTHING
    assert words.confidence(given) == words.last_layer(given) == words.more_images(given) == ""
    assert words.remarks(given) == []


@pytest.mark.parametrize(
    ("suffices", "said"), [(True, "is enough."), (False, "is not enough."), (None, "is enough cannot be said.")]
)
def test_the_last_layer_is_enough_or_not_or_nobody_can_say(suffices: bool | None, said: str) -> None:
    given = record(repair={"last_layer_suffices": suffices, "why": "Because."})
    assert words.last_layer(given).endswith(f"{said} Because.")


@pytest.mark.parametrize(("spread", "helps"), [(0.02, True), (0.4, False)])
def test_more_images_help_where_the_last_step_is_more_than_draws_differ(spread: float, helps: bool) -> None:
    curve = record()["data_curve"]
    curve[1]["spread"] = spread
    said = words.more_images(record(data_curve=curve))
    assert said.startswith("From 100 to 1,000 images the worst chosen group goes from 47% to 79% right, ")
    assert ("are likely to help." in said) == helps
    assert words.more_images(record(data_curve=curve[:1])) == ""


def test_without_a_runner_up_none_is_named() -> None:
    assert words.confidence(record()).endswith("86% of the time; the runner-up is other 2.")
    assert "no other grouping may be chosen" in words.confidence(record(runner_up=None))


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
    for sentence in (given["why"], words.confidence(given), words.last_layer(given), words.more_images(given)):
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
    lines = mentioned(given)
    assert lines == [
        words.verdict(given),
        "Chosen grouping: exmap[size=7,scope=local,gap=relative], confidence 86%.",
        words.last_layer(given),
        "All that was weighed: exmap auto runs/a",
    ]


# A whole run


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A copy of the one finished run, and when the files of its stages were written."""
    run = copy_run(trained_run(tmp_path_factory.getbasetemp()), tmp_path_factory.mktemp("auto") / "run")
    return run, modification_times(run)


def test_exmap_auto_adds_the_choice_to_a_finished_run_and_keeps_what_is_there(
    give: Give, chosen: tuple[Path, dict[str, int]]
) -> None:
    run, before = chosen
    said = give("auto", run)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    kept = [f"{name}: finished before, kept" for name in STAGE_NAMES[:3]]
    assert lines[:7] == [*kept, "auto: started", "retrain: started", "evaluate: started", "report: started"]
    results = json.loads((run / "results.json").read_text())
    given = results["auto"]
    assert lines[7] == words.verdict(given)
    assert given["chosen"] in said.out
    assert "auto+dfr" in results["methods"]
    after = modification_times(run)
    assert all(after[file] == before[file] for file in before if file.split("/")[0] in STAGE_NAMES[:3])

    said = give("report", run)  # by the folder's own settings
    assert said.code == 0, said.err
    assert "All that was weighed: exmap auto" in said.out
    text = (run / "report" / "report.html").read_text(encoding="utf-8")
    section = text[text.index('<section id="choice"') :].split("</section>")[0]
    visible = " ".join(unescape(re.sub(r"<[^>]+>", " ", section)).split())
    assert words.verdict(given) in visible
    for name in given["shortcut"]:
        assert f"{name}: " in visible
    for row in given["candidates"]:
        assert row["name"] in visible
    assert section.count("<svg") == 2
    assert f"{len(given['candidates'])} groupings" in visible
    assert "groups.auto=true" in text  # in the command that makes the run again
    best = max(row["score"] for row in given["candidates"] if row["eligible"])
    assert np.isclose(-best, given["reliance"]["chosen"])

    said = give("auto", run)  # again, nothing is left to do
    assert said.code == 0, said.err
    assert "started" not in said.out
    assert words.verdict(given) in said.out


def test_a_run_without_it_says_nothing_of_it(give: Give, tmp_path_factory: pytest.TempPathFactory) -> None:
    said = give(
        "evaluate", copy_run(finished_run(tmp_path_factory.getbasetemp()), tmp_path_factory.mktemp("n") / "run")
    )
    assert said.code == 0
    assert "auto" not in said.out
    assert "rouping" not in said.out


def test_no_run_folder_is_refused_in_one_sentence(give: Give, tmp_path: Path) -> None:
    said = give("auto", tmp_path / "none")
    assert said.code == 2
    assert said.is_one_sentence()
