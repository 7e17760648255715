"""One page, one story: headline, titles, groups, bars and the command line never contradict the test for a shortcut."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from html import unescape
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sample_page import HOSTILE, sample_page, sample_record

from exmap.analysis import Analysis
from exmap.cli.tables import mention_choice, show_choice
from exmap.cluster import embed
from exmap.records import Groups
from exmap.report import compose, story
from exmap.report.choice_card import ChoiceCard
from exmap.report.choose_pictures import rows_on_map, small_vectors
from exmap.report.compose import write_page
from exmap.report.notebook import analysis_html
from exmap.report.page import render_page
from exmap.results import AutoRecord, ClassFinding
from sample_analysis import sample_analysis, with_method

WHY = "Its heatmaps form no small cluster that stands apart: the classifier has one strategy for it."
NOTHING = "Nothing can be concluded: class bar 0 has 3 images with a heatmap, and at least 20 are needed."
LEFT_ALONE = "No shortcut was found, so the model is left alone; the grouping is shown for inspection only."
CHOSEN = "exmap[size=3,scope=local,gap=relative]"
WORST_BEFORE, WORST_AFTER = 0.31, 0.87
VERDICTS: dict[str, tuple[bool | None, bool | None]] = {
    "found in one": (True, False),
    "found in both": (True, True),
    "found in none": (False, False),
    "none of the tested": (False, None),
    "not tested": (None, None),
}

Write = Callable[[Analysis], str]


class Record(AutoRecord):
    """A record as it will be: with what predictions follow, and warnings."""

    exchanges: tuple[Any, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exchange:
    property: str = "colour"
    class_name: str = "bar 1"
    pairs: int = 240
    moved: float | None = 0.82
    moved_low: float | None = 0.75
    turned: float | None = 0.61
    turned_control: float | None = 0.03
    p_value: float | None = 1e-7
    relied_on: bool = True
    why: str = "With the colour of another class, 61 % of predictions turn to it."


FOLLOWS = (Exchange(), Exchange("border", "bar 0", moved=-0.01, p_value=0.4, relied_on=False, why=""))
WARNS = ("The class can be told from the colour alone in 99 % of the images.",)


def finding(found: bool | None) -> ClassFinding:
    if not found:
        return ClassFinding.nothing(found, "not tested" if found is None else WHY)
    return ClassFinding(
        found=True,
        p_value=0.0001,
        effect=0.64,
        effect_low=0.48,
        images=12,
        conductance=0.001,
        candidate="exmap[size=7,scope=global,gap=relative]",
        why="9 of 12 images in a cluster that stands apart are classified wrong, 2 of the other 33.",
    )


def record(verdict: str, *, repaired: bool, **more: Any) -> Record:
    given = sample_record().changed(
        shortcut=dict(zip(("bar 0", "bar 1"), map(finding, VERDICTS[verdict]), strict=True)),
        chosen=CHOSEN,
        repaired=repaired,
        remarks=() if repaired or (verdict.startswith("found in") and verdict != "found in none") else (LEFT_ALONE,),
    )
    if verdict == "not tested" and not repaired:
        empty = dict.fromkeys(("chosen", "runner_up", "confidence", "judged_on", "reliance", "repair"))
        given = given.changed(**empty, candidates=(), data_curve=(), why=NOTHING, remarks=(NOTHING,))
    return Record(**{**dict(given), **more})


def an_analysis(given: AutoRecord, same: bool | None = False) -> Analysis:
    """Return an analysis with such a record, whose chosen grouping is the one shown, another one, or not at hand."""
    analysis = with_method(sample_analysis(), "auto+dfr")
    assert analysis.results is not None
    methods = dict(analysis.results.methods)
    for name, worst in (("erm", WORST_BEFORE), ("auto+dfr", WORST_AFTER)):
        methods[name] = methods[name].changed(worst_group_accuracy=worst)
    own, groups = analysis.pseudo_groups, dict(analysis.groups)
    if same is not None:
        labels = analysis.explained.labels
        index = own.index.max() - own.index if same else labels
        names = tuple(str(n) for n in range(int(index.max()) + 1))
        groups["auto"] = Groups(np.asarray(index), names, "auto", ("class labels",))
    return replace(analysis, groups=groups, results=analysis.results.changed(methods=methods, auto=given))


@cache
def shared(name: str) -> Any:
    """Return the map and the pictures, which are the same in all pages of these tests."""
    analysis = sample_analysis()
    if name == "embed":
        return embed(small_vectors(analysis), seed=0)
    return compose._pictures(analysis, rows_on_map(analysis))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write the page of an analysis and return its HTML; what takes seconds and says nothing is made once."""
    for chart in ("trust_card.share_chart", "cards.eigenvalue_chart", "choice_card.score_chart"):
        monkeypatch.setattr(f"exmap.report.{chart}", lambda *_, **__: None)
    monkeypatch.setattr("exmap.report.choice_card.data_chart", lambda *_, **__: None)
    places, pictures = shared("embed"), shared("pictures")
    monkeypatch.setattr(compose, "embed", lambda *_, **__: places)
    monkeypatch.setattr(compose, "_pictures", lambda *_: pictures)

    def write_it(analysis: Analysis) -> str:
        write_page(analysis, tmp_path / "report.html")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write_it


def words(html: str) -> str:
    """Return what a reader sees."""
    body = re.sub(r"<(style|script|svg).*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def part(html: str, pattern: str) -> str:
    (found,) = re.findall(pattern, html, re.DOTALL)
    return words(found)


def headline(html: str) -> str:
    return part(html, r'<p class="headline(?: long)?">(.*?)</p>')


def printed(given: AutoRecord, show: Callable[..., None] = show_choice, *more: Any) -> str:
    console = Console(width=200, soft_wrap=True)
    with console.capture() as captured:
        show(console, given, *more)
    return captured.get()


@pytest.mark.parametrize(("show", "more"), [(show_choice, ()), (mention_choice, (Path("runs/a"),))])
def test_a_terminal_says_that_a_repair_left_the_classifier_alone(show: Callable[..., None], more: Any) -> None:
    given = record("found in one", repaired=True)
    assert "was retrained" in printed(given, show, *more)
    said = printed(given, show, *more, "retraining makes class 'a' worse")
    assert "was retrained" not in said
    assert "The classifier is left as it is: retraining makes class 'a' worse." in said


@pytest.mark.parametrize(
    ("verdict", "repaired", "same"), [*product(VERDICTS, (True, False), (True, False)), ("found in one", True, None)]
)
def test_no_sentence_contradicts_the_verdict(write: Write, verdict: str, repaired: bool, same: bool | None) -> None:
    given = record(verdict, repaired=repaired)
    html = write(an_analysis(given, same))
    said, top = words(html).replace(WHY, ""), headline(html)

    # found or not, in the headline and everywhere
    assert ("A shortcut was found in" in top) == ("A shortcut was found in" in said) == given.found
    none_found = any(row.found is False for row in given.shortcut.values()) and not given.found
    assert ("No shortcut was found" in top) == ("No shortcut was found" in said) == none_found
    only = "for inspection only: differences in accuracy between them are no evidence of a shortcut"
    assert (only in top) != given.found
    if not given.found:
        assert "strateg" not in said.lower()
    assert "No test for a shortcut" not in said

    # class by class, in the section of groups and in that of the test
    sections = re.findall(r"<h3>Class (bar \d): (.*?) <span[^>]*>(.*?)</span></h3>", html)
    assert [name for name, *_ in sections] == ["bar 0", "bar 1"]
    for name, called, badge in sections:
        found = given.shortcut[name].found
        assert badge == {True: "shortcut found", False: "no shortcut found", None: "not tested"}[found]
        assert f"<strong>{name}: {badge}</strong>" in html
        assert "strateg" not in called or found
        if found:
            assert f"class {name}" in top
    title = "Strategies" if given.found else "Groups of heatmaps"
    assert part(html, r'<h2 id="strategies-title">(.*?)</h2>') == title
    assert part(html, r'<a href="#strategies">(.*?)</a>') == title

    # what was done about it
    assert ("was retrained on the chosen groups" in top) == repaired
    assert ("The classifier is left as it is" in said) == (not repaired)
    assert ("31 % to 87 %" in top) == repaired
    assert ("On test images the worst group is right 31 % of the time." in top) == (not repaired)
    assert ('class="track after"' in html) == repaired
    assert ("on the chosen groups (auto+dfr)" in said) == repaired
    assert "Nothing was retrained yet" not in said

    # which groups are shown
    told = [each for each in ("which differs.", "differs, and nothing") if each in said]
    differ = same is False and given.chosen is not None
    assert told == ([f"{'which differs.' if repaired else 'differs, and nothing'}"] if differ else [])
    assert said.count("The groups shown here come from the run's own") == (differ or same is None)
    assert ("For comparison, the run also retrained on the groups of its own" in said) == (same is not True)
    assert ("although the test found no shortcut" in said) == (same is False and not given.found)


@pytest.mark.parametrize("run", [True, False])
def test_without_a_test_the_page_claims_no_shortcut_and_says_what_tests(write: Write, run: bool) -> None:
    html = write(sample_analysis() if run else replace(sample_analysis(), grouping=""))
    said, top = words(html), headline(html)
    assert re.match(r"Class bar 0 splits into \d groups of heatmaps: on [\d,]+ of its [\d,]+ images the model is", top)
    how = "exmap auto RUN_DIR" if run else "groups.auto=true"
    assert top.endswith(f"No test for a shortcut was made; {how} makes one.")
    assert "strateg" not in said.lower()
    assert "shortcut found" not in said
    assert "shortcut was found" not in said
    assert said.count("not tested") == 2
    assert 'class="track after"' in html  # ExMap's own repair


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (
            "found in one",
            "A shortcut was found in class bar 0: the classifier errs on 12 of its images, whose heatmaps "
            "stand apart, 64 points more often than on the rest of the class.",
        ),
        (
            "found in both",
            "A shortcut was found in class bar 0 and class bar 1 (2 of 2 classes). The evidence is clearest in class "
            "bar 0: the classifier errs on 12 of its images, whose heatmaps stand apart, 64 points more "
            "often than on the rest of the class.",
        ),
        ("found in none", "No shortcut was found in any of the 2 classes."),
        ("none of the tested", "No shortcut was found in the 1 of 2 classes that could be tested."),
        ("not tested", NOTHING),
    ],
)
def test_the_finding_is_said_with_its_evidence(verdict: str, said: str) -> None:
    assert story.finding(record(verdict, repaired=False)) == said


def test_a_shortcut_without_a_cluster_is_said_without_one() -> None:
    bare = ClassFinding.nothing(True, "")
    one = record("found in one", repaired=True).changed(shortcut={"bar 0": bare})
    assert story.finding(one) == "A shortcut was found in class bar 0."
    both = one.changed(shortcut={f"bar {n}": bare for n in range(7)})
    assert story.finding(both).endswith("class bar 4 and 2 more (7 of 7 classes).")
    assert story.finding(one.changed(shortcut={})) == "No class was tested for a shortcut."
    only = one.changed(shortcut={"bar 0": finding(False)})
    assert story.finding(only) == "No shortcut was found in class bar 0."


def test_a_property_that_is_the_evidence_is_said_once() -> None:
    class Finding(ClassFinding):
        property: str = "colour"

    given = record("found in one", repaired=True, exchanges=FOLLOWS)
    row = Finding(**{**dict(finding(True)), "property": "colour"})
    told = story.finding(Record(**{**dict(given), "shortcut": {"bar 1": row}}))
    assert told == (
        "A shortcut was found in class bar 1: predictions follow colour, and the classifier errs on 12 of its images, "
        "whose colour speaks for another class, 64 points more often than on the rest of the class."
    )
    told = story.finding(Record(**{**dict(given), "shortcut": {"bar 0": row}}))
    assert told.endswith("the rest of the class. Predictions follow colour (class bar 1).")


def test_a_class_that_the_runs_own_clustering_did_not_divide_is_said_to_be_so() -> None:
    given = record("found in one", repaired=True)
    assert story.groups_of_class(given, "bar 0", 1) == "1 group of heatmaps"
    assert story.groups_of_class(given, "bar 0", 3) == "3 strategies"
    assert story.groups_of_class(given, "bar 1", 3) == "3 groups of heatmaps"
    assert story.about_class(given, "bar 0", 1).endswith("The run's own clustering did not divide this class.")
    assert story.about_class(given, "bar 1", 1) == ""


def test_a_classifier_that_could_not_be_retrained_is_never_said_to_be(write: Write) -> None:
    analysis = an_analysis(record("found in one", repaired=True))
    fit = replace(analysis.fits["auto+dfr"], left_alone="it has no last linear layer")
    said = words(write(replace(analysis, fits={**analysis.fits, "auto+dfr": fit})))
    assert said.count("The classifier is left as it is") == 2  # in the headline and in the verdict
    assert "left as it is: it has no last linear layer." in said
    assert "was retrained on the chosen groups" not in said


def test_a_repair_without_a_measurement_is_said_without_numbers(write: Write) -> None:
    analysis = an_analysis(record("found in one", repaired=True))
    fits = {name: fit for name, fit in analysis.fits.items() if name != "auto+dfr"}
    assert "The last layer was retrained on the chosen groups." in headline(write(replace(analysis, fits=fits)))


def test_a_notebook_tells_the_same_story() -> None:
    said = words(analysis_html(an_analysis(record("found in none", repaired=False))))
    assert said.startswith("No shortcut was found in any of the 2 classes. The classifier is left as it is.")
    assert "strateg" not in said


# What predictions follow, and warnings


@pytest.mark.parametrize("verdict", VERDICTS)
def test_what_predictions_follow_is_part_of_the_story(write: Write, verdict: str) -> None:
    given = record(verdict, repaired=VERDICTS[verdict][0] is True, exchanges=FOLLOWS, warnings=WARNS)
    html = write(an_analysis(given))
    said, top = words(html), headline(html)
    follows = "redictions follow colour (class bar 1)"
    assert follows in top
    assert said.count(follows) == 2  # in the headline and in the verdict
    assert ("which may be a shortcut" in top) != given.found
    assert not re.search(r"No shortcut was found[^,.]*\.", top)  # that alone would be too much
    assert "What predictions follow" in said
    assert "colour bar 1 240 82 % (at least 75 %) 61 % 3 % < 0.001 yes" in said
    assert "border bar 0 240 -1 % (at least 75 %) 61 % 3 % 0.400 no" in said
    assert FOLLOWS[0].why in said
    assert f"Warnings {WARNS[0]}" in said
    assert "There is 1 warning, listed under “Is there a shortcut?”." in said

    shown = printed(given)
    assert follows in shown.splitlines()[0]
    assert "What predictions follow" in shown
    assert re.search(r"colour +│ bar 1 +│ +240 │ +82.% \(at least 75.%\) │ +61.% │ +3.% │ < 0.001 │ yes", shown)
    assert f"Warning: {WARNS[0]}" in shown
    assert f"Warning: {WARNS[0]}" in printed(given, mention_choice, Path("runs/a"))


def test_without_them_neither_a_table_nor_a_list_is_there(write: Write) -> None:
    given = record("found in one", repaired=True)
    for said in (words(write(an_analysis(given))), printed(given)):
        assert not re.search(r"(P|What p)redictions follow", said)
        assert not re.search(r"Warning: |[0-9] warnings?,", said)
    assert not story.exchanges(sample_record())
    assert not story.warnings(sample_record())  # of a record without the fields


def test_what_is_not_known_of_an_exchange_is_left_empty() -> None:
    bare = Exchange("[bold]hue", "", 0, None, float("nan"), None, None, None, relied_on=True)
    given = record("found in none", repaired=False, exchanges=(bare,), warnings=("a [red]b[/red] c", "d"))
    assert story.exchange_rows(given) == [("[bold]hue", "all", "0", "", "", "", "", "yes")]
    shown = printed(given)
    assert "predictions follow [bold]hue, which may be a shortcut" in shown
    assert "│ [bold]hue" in shown
    assert "Warning: a [red]b[/red] c" in shown


def test_exchanges_and_warnings_are_text_whatever_is_in_them() -> None:
    hostile = Exchange(HOSTILE, HOSTILE, why=HOSTILE)
    given = record("found in one", repaired=True, exchanges=(hostile,), warnings=(HOSTILE,))
    card = ChoiceCard(given, which_groups=HOSTILE)
    text = render_page(sample_page(choice=card, headline=story.finding(given), with_pictures=False, clusterings=[]))
    assert HOSTILE not in text
    assert words(text).count(HOSTILE) >= 6


# On the command line


@pytest.mark.parametrize(("verdict", "repaired"), [*product(VERDICTS, (True, False))])
def test_the_command_line_tells_the_same_story(verdict: str, repaired: bool) -> None:
    given = record(verdict, repaired=repaired)
    shown = printed(given).replace(WHY, "")
    assert shown.splitlines()[0] == story.verdict(given)
    none_found = any(row.found is False for row in given.shortcut.values()) and not given.found
    for said in (shown, printed(given, mention_choice, Path("runs/a"))):
        assert ("A shortcut was found" in said) == given.found
        assert ("No shortcut was found" in said) == none_found
        assert ("was retrained on the chosen groups" in said) == repaired
        if not given.found:
            assert "strateg" not in said
    assert ("differences in accuracy between them are no evidence of a shortcut" in shown) != given.found
